"""The benchmarks of a GPU run where nothing is installed but PyTorch, torchvision, numpy and
scipy."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has those four and what they need, and a copy of the checkout's
    code."""
    folder = tmp_path_factory.mktemp("bare")
    wanted, found = ["torch", "torchvision", "numpy", "scipy"], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found or not any(importlib.metadata.distributions(name=name)):
            continue  # a dependency of another platform
        found.add(name)
        distribution = importlib.metadata.distribution(name)
        requirements = map(Requirement, distribution.requires or [])
        wanted += [
            each.name
            for each in requirements
            if not each.marker or each.marker.evaluate({"extra": ""})
        ]
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "redetr").symlink_to(ROOT / "redetr")
    shutil.copytree(
        ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results")
    )
    return folder


def run(bare: Path, *arguments: str) -> str:
    """What Python prints, in the folder of benchmarks and with those packages alone."""
    environment = os.environ | {"PYTHONPATH": str(bare)}
    run = subprocess.run(
        [sys.executable, "-S", *arguments],
        env=environment,
        cwd=bare / "benchmarks",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def timed(output: str) -> list[str]:
    """The sides that were measured, by the result file that the last line names."""
    result = json.loads(Path(output.splitlines()[-1]).read_text())
    assert "hotcoco" not in result["versions"]
    return list(
        result.get("steps") or result.get("forward and backward") or result["batch of 1"]["forward"]
    )


@pytest.mark.long
def test_the_criterion_is_measured_and_the_others_start(bare: Path) -> None:
    start = "import inference, training_step, criterion; criterion.main()"
    assert timed(run(bare, "-c", start, "--rounds", "1")) == ["redetr", "2020"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "sides"),
    [("training_step.py", ["redetr", "2020"]),
     ("inference.py --batch-sizes 1", ["redetr", "2020", "redetr, memory "
                                                         "kept", "2020, memory kept"])],
)  # fmt: skip
def test_models_are_measured(bare: Path, command: str, sides: list[str]) -> None:
    small = "--height 64 --width 96 --rounds 1 --precision fp32"
    assert timed(run(bare, *command.split(), *small.split())) == sides


@pytest.mark.slow
def test_exported_models_are_measured(tmp_path: Path) -> None:
    small = "--height 64 --width 96 --rounds 1 --batch-sizes 1 --exported"
    subprocess.run(
        [sys.executable, "benchmarks/inference.py", *small.split()],
        cwd=ROOT,
        env=os.environ | {"REDETR_RESULTS": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    (file,) = tmp_path.glob("*-inference-cpu.json")
    sides = json.loads(file.read_text())["batch of 1"]["forward"]
    exported = {side for side in sides if side.endswith(("ONNX Runtime", "OpenVINO"))}
    assert exported == {
        "redetr, ONNX Runtime",
        "redetr, OpenVINO",
        "transformers, ONNX Runtime",
        "transformers, OpenVINO",
    }


def test_a_stage_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    begin = """
import json
from pathlib import Path
import gpu
session = gpu.Session(Path(FOLDER), 60)
fails = gpu.Stage("fails", "-c exit(3)", 60)
hangs = gpu.Stage("hangs", "-c 'import signal; signal.pause()'", 2)
session.run([fails, hangs])
session.run([gpu.Stage("writes", "-c print(5)", 60)])
session.end = 0
session.run([gpu.Stage("late", "-c print(6)", 60)])
""".replace("FOLDER", repr(str(tmp_path / "run")))
    subprocess.run([sys.executable, "-c", begin], cwd=ROOT / "benchmarks", check=True)
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())
    ended = {row["stage"]: row["ended"] for row in rows}
    assert ended == {"fails": "failed", "hangs": "out of time", "writes": "ok", "late": "skipped"}
    with tarfile.open(tmp_path / "run.tar.gz") as packed:
        log = packed.extractfile("run/logs/writes.txt")
        assert log and log.read().splitlines()[-1] == b"5"


@pytest.mark.parametrize("flags", [[], ["--quick"]])
def test_every_stage_of_the_gpu_has_its_script(flags: list[str]) -> None:
    listed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--list", *flags],
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    scripts = set(re.findall(r"(?:benchmarks|tests)/[a-z_]+\.py", listed))
    assert len(scripts) > 5
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_a_table_continues_where_it_was(tmp_path, monkeypatch) -> None:
    """With the same settings; other settings begin another table."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    path, rows = record.unfinished("families", {"rounds": 7})
    assert rows == {} and not path.exists()
    row = {"training step": {"times faster": 1.5}}
    record.write(path, "families", {"setting": {"rounds": 7}, "dfine_s": row})
    assert record.unfinished("families", {"rounds": 7}) == (path, {"dfine_s": row})
    assert record.unfinished("families", {"rounds": 3})[1] == {}
    monkeypatch.setattr(record, "commit", lambda: "another")
    assert record.unfinished("families", {"rounds": 7})[1] == {}


@pytest.mark.long
def test_redetr_is_stopped_by_the_clock(tmp_path, monkeypatch) -> None:
    """In the comparison with YOLO, even where fewer steps fit than were planned."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scenes
    import yolo

    monkeypatch.setattr(scenes, "COUNTS", {"train": 16, "val": 2})
    scenes.write_scenes("shapes", tmp_path / "data")
    monkeypatch.setattr(yolo, "TIMED_STEPS", 2)
    monkeypatch.setattr(yolo, "WARM_UP_STEPS", 0)
    monkeypatch.setattr(yolo, "median", lambda seconds: 1e-4)  # of a step
    row = yolo.Row("shapes", threads=1, minutes=0.02, seed=0, side="redetr_n")
    result = yolo.run_redetr(row, tmp_path / "data" / "data.yaml", tmp_path)
    assert result["planned"] == 12_000
    assert 1 <= result["steps"] < 12_000
    assert result["seconds"] >= 1.2
    assert (tmp_path / "run" / "last.pt").exists() and "AP" in result


def test_a_result_is_kept_where_git_is_not_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import record

    monkeypatch.delenv("REDETR_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.commit() == "unknown"
