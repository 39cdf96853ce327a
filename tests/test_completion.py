"""The Tab key in real shells."""

import shlex
import shutil
import subprocess

import pytest

from redetr.cli import COMMANDS, main
from redetr.recipes import RECIPES


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script for each shell, in a file."""
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh", "fish"):
            written = []
            patch.setattr(
                "redetr.commands.console.OUT.out",
                lambda text, written=written, **_: written.append(text),
            )
            main(["completion", shell])
            (folder / shell).write_text(written[0])
    return folder


def shell(name, *arguments):
    if not shutil.which(name):
        pytest.skip(f"no {name} here")
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def tab(scripts, line):
    """What bash offers after `line`."""
    words = line.split(" ")
    call = (
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _redetr; echo "
        f"${{COMPREPLY[@]}}"
    )
    return shell(
        "bash", "--norc", "-c", f"source {scripts}/bash; complete -p redetr > /dev/null; {call}"
    )


def test_commands(scripts):
    assert tab(scripts, "redetr ev") == ["evaluate"]
    assert sorted(tab(scripts, "redetr ")) == sorted(COMMANDS)


def test_recipes_and_choices(scripts):
    assert tab(scripts, "redetr train ") == list(RECIPES)
    assert tab(scripts, "redetr train detr_r101") == [
        "detr_r101",
        "detr_r101_dc5",
        "detr_r101_panoptic",
    ]
    assert tab(scripts, "redetr completion f") == ["fish"]
    assert tab(scripts, "redetr evaluate best.pt --precision ") == ["auto", "fp32", "bf16"]


def test_flags(scripts):
    assert tab(scripts, "redetr evaluate best.pt --re") == ["--report"]
    assert tab(scripts, "redetr train redetr_n --no-g") == ["--no-group-by-size"]
    assert tab(scripts, "redetr train redetr_n --lr") == ["--lr", "--lr-backbone"]
    assert tab(scripts, "redetr verify --acc") == ["--accumulate"]
    assert tab(scripts, "redetr train redetr_n --no") == ["--no-group-by-size", "--no-pictures"]
    assert "--config" not in tab(scripts, "redetr verify --")
    # Nothing of ours: bash completes names of files.
    assert tab(scripts, "redetr evaluate ") == tab(scripts, "redetr evaluate best.pt --data ") == []


def test_fish(scripts):
    for line, expected in (
        ("ev", ["evaluate"]),
        ("evaluate --rep", ["--report"]),
        ("completion z", ["zsh"]),
    ):
        assert (
            shell(
                "fish", "--no-config", "-c", f"source {scripts}/fish; complete -C 'redetr {line}'"
            )
            == expected
        )


def test_zsh_takes_the_script(scripts):
    compinit = "compinit() { : }; autoload() { : }; bashcompinit() { : }; complete() { echo $* }"
    assert shell("zsh", "-f", "-c", f"{compinit}; source {scripts}/zsh") == [
        "-o",
        "default",
        "-F",
        "_redetr",
        "redetr",
    ]
