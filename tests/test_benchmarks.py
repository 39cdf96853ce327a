"""The benchmarks of a GPU run where nothing is installed but PyTorch, torchvision, numpy and scipy."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has those four and what they need, and a copy of the checkout's code."""
    folder = tmp_path_factory.mktemp("bare")
    wanted, found = ["torch", "torchvision", "numpy", "scipy"], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found or not any(importlib.metadata.distributions(name=name)):
            continue  # a dependency of another platform
        found.add(name)
        distribution = importlib.metadata.distribution(name)
        requirements = map(Requirement, distribution.requires or [])
        wanted += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "redetr").symlink_to(ROOT / "redetr")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results"))
    return folder


def run(bare: Path, *arguments: str) -> str:
    """What Python prints, in the folder of benchmarks and with those packages alone."""
    environment = os.environ | {"PYTHONPATH": str(bare), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-S", *arguments], env=environment, cwd=bare / "benchmarks",
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def timed(output: str) -> list[str]:
    """The sides that were measured, by the result file that the last line names."""
    result = json.loads(Path(output.splitlines()[-1]).read_text())
    assert "hotcoco" not in result["versions"]
    return list(result.get("steps") or result.get("forward and backward") or result["batch of 1"]["forward"])


def test_the_criterion_is_measured_and_the_others_start(bare: Path) -> None:
    start = "import inference, training_step, criterion; criterion.main()"
    assert timed(run(bare, "-c", start, "--rounds", "1")) == ["redetr", "2020"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "sides"),
    [("training_step.py", ["redetr", "2020"]),
     ("inference.py --batch-sizes 1", ["redetr", "2020", "redetr, memory kept", "2020, memory kept"])],
)  # fmt: skip
def test_models_are_measured(bare: Path, command: str, sides: list[str]) -> None:
    small = "--height 64 --width 96 --rounds 1 --precision fp32"
    assert timed(run(bare, *command.split(), *small.split())) == sides
