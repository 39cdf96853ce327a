"""The README and the pages of docs/ are true: their commands parse, their links hold."""

import re
import shlex
from pathlib import Path

import pytest

from redetr.cli import COMMANDS, parse_command

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "examples").glob("**/*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The `redetr` commands in the blocks of a page, those under torchrun too."""
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [
        line.split(" #")[0].removeprefix("$ ") for block in blocks for line in block.replace("\\\n", "").splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("redetr ")] + [
        shlex.split(line.partition("-m redetr ")[2]) for line in lines if "-m redetr " in line
    ]


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=f"{p.stem}: {' '.join(c)}") for p in PAGES for c in commands(p)]
)
def test_commands_parse(command):
    assert command[0] in COMMANDS
    try:
        parse_command(command)
    except SystemExit as shown:  # --help
        assert shown.code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|benchmarks|examples|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
