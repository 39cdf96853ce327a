"""The README and the pages of docs/ are true: their commands and Python run, their links and
pictures are there."""

import re
import shlex
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest

from redetr.cli import COMMANDS, main, parse_command
from redetr.data.formats import digits
from tests.command_line import train_arguments
from tests.conftest import write_tiny_coco

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "examples").glob("**/*.md")),
]
# Commands that are parsed here and run elsewhere, or nowhere, and why.
PARSED_ONLY = {
    "train *": "takes minutes; tests/cli trains for seconds",
    "demo *": "takes minutes: tests/test_demo.py",
    "app *": "serves until it is stopped: tests/test_app.py",
    "verify*": "takes a minute: tests/distributed/test_exactness.py runs a smaller one",
    "export *": "takes seconds for each form: tests/test_export.py has them all",
    "* COCO*": "a data set of 20 GB",
    "* facebook/*": "a download: tests/parity reads such folders",
    "* microsoft/*": "a download: tests/parity reads such folders",
    "* clip.mp4*": "a video: tests/test_tracking.py makes one",
    "push *": "needs a hub: tests/test_push.py has one",
    "* rtsp://*": "a camera: tests/test_streams.py has one",
    "* https://*": "a download: tests/test_predict.py has a server of its own",
}
PLACES = {
    "SOURCE...": "photo.jpg",
    "IMAGE": "photo.jpg",
    "IMAGE_OR_FOLDER": "FOLDER/val",
    "CHECKPOINT": "runs/demo",
    "150": "15",  # the last of the validation images that the digits have here
}


def commands(page: Path) -> list[list[str]]:
    """The `redetr` commands in the blocks of a page, those under torchrun too."""
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [
        line.split(" #")[0].removeprefix("$ ")
        for block in blocks
        for line in block.replace("\\\n", "").splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("redetr ")] + [
        shlex.split(line.partition("-m redetr ")[2]) for line in lines if "-m redetr " in line
    ]


ALL = sorted({shlex.join(command) for page in PAGES for command in commands(page)})


def kept_from_running(command: str) -> list[str]:
    return [pattern for pattern in PARSED_ONLY if fnmatch(command, pattern)]


def test_every_flag_named_in_a_page_exists(capsys):
    """Also in sentences and tables. Flags of other programs are listed here."""
    others = {
        # torchrun
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--rdzv-id",
        "--max-restarts",
        "--standalone",
        "--local-addr",
        # sbatch
        "--nodes",
        "--gpus-per-node",
        "--cpus-per-task",
        # docker
        "--shm-size",
        "--ipc",
        # trtexec
        "--onnx",
        "--minShapes",
        "--optShapes",
        "--maxShapes",
        "--saveEngine",
        "--fp16",
        # polygraphy
        "--trt",
        "--onnxrt",
        "--input-shapes",
        "--rtol",
        "--atol",
        # curl, and benchmarks/families.py
        "--data-binary",
        "--processor-time",
    }
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parse_command([command, *["redetr_n"] * (command in ("train", "verify")), "--help"])
    known = others | set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    for page in PAGES:
        if page.stem != "coming-from":  # it compares
            assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text())) <= known, page


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Iterator[Path]:
    """What the pages speak of: a data set FOLDER, photographs, runs (of a small model, after two
    steps). The digits have 16 validation images instead of 300."""
    place = tmp_path_factory.mktemp("workplace")
    photo = write_tiny_coco(place / "FOLDER") / "val" / "val-0.jpg"
    for name in ("photo.jpg", "a.jpg", "b.jpg", "aerial.tif"):
        shutil.copy(photo, place / name)
    shutil.copytree(ROOT / "examples", place / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(digits._DEFAULT_SIZES, "val", 16)
        for name, data in {"demo": "digits", "mine": place / "FOLDER"}.items():
            words = train_arguments(data, place / "runs" / name, steps=2, eval_every=2)
            main([str(word) for word in words])
        for copy, run in {"other": "demo", "crowns": "mine"}.items():
            shutil.copytree(place / "runs" / run, place / "runs" / copy)
        yield place


@pytest.mark.parametrize("command", ALL)
def test_commands_parse(command, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    assert command.split()[0] in COMMANDS
    try:
        parse_command(shlex.split(command))
    except SystemExit as shown:  # --help
        assert shown.code == 0


@pytest.mark.long
@pytest.mark.parametrize("command", [command for command in ALL if not kept_from_running(command)])
def test_commands_run(command, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    new = {"OTHER_FOLDER": str(tmp_path / "other"), "COCO_FOLDER": str(tmp_path / "other")}
    words = shlex.split(command)
    if words[0] == "check":  # what a conversion has written is a data set like any other
        new["OTHER_FOLDER"] = "FOLDER"
    # Several pages predict into the same folder, which is refused while it holds predictions.
    again = ["--overwrite"] if words[0] == "predict" else []
    main([(PLACES | new).get(word, word) for word in words + again])
    for flag, value in pairwise(words):
        if flag in ("--output", "--report"):
            assert any(Path(value).iterdir())


def test_only_what_cannot_run_is_kept_from_it():
    kept = {pattern for command in ALL for pattern in kept_from_running(command)}
    assert kept == set(PARSED_ONLY)
    for reason in PARSED_ONLY.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]*\w", reason))


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda p: p.stem
)
def test_python_runs(page, workplace, monkeypatch, capsys):
    """All blocks of a page, one after the other."""
    monkeypatch.chdir(workplace)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    if page.stem == "README":
        assert capsys.readouterr().out.startswith("Detections: ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|benchmarks|examples|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_pictures_come_from_commands(monkeypatch):
    """Those of docs/images are the ones that docs/pictures.py makes; each is small, and stands in a
    page."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import pictures

    for command in (*pictures.COMMANDS, pictures.APP):
        parse_command(shlex.split(command))
    files = set((ROOT / "docs/images").iterdir())
    assert {path.name for path in files} == {
        f"{name}.jpg" for name in (*pictures.WRITTEN, *pictures.PHOTOGRAPHED)
    }
    assert all(path.stat().st_size < 300_000 for path in files)
    shown = {
        (p.parent / link).resolve()
        for p in PAGES
        for link in re.findall(r"!\[[^]]+\]\((\S+)\)", p.read_text())
    }
    assert files <= shown
