"""The command line in a process of its own, and a training run that takes seconds."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forked import Fork

SMALL = ["backbone=[16,32,64]", "hidden_dim=32", "nheads=4", "dec_layers=2", "dim_feedforward=64"]


def train_arguments(
    data: Path, output: Path, recipe: str = "redetr_n", options: list[str] = SMALL, **flags
) -> list:
    """Six steps of a small model, without pictures, which take longer."""
    chosen = {
        "data": data,
        "output": output,
        "steps": 6,
        "batch_size": 4,
        "image_size": 64,
        "device": "cpu",
        "precision": "fp32",
        "num_workers": 0,
        "log_every": 1,
        "eval_every": 3,
    } | flags
    spelled = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    return ["train", recipe, *spelled, "--no-pictures", "--model-options", *options]


def start(
    arguments: list[Any],
    environment: dict[str, Any] | None = None,
) -> subprocess.Popen:
    """`python -m redetr` with these arguments."""
    added = {name: str(value) for name, value in (environment or {}).items()}
    return subprocess.Popen(
        [sys.executable, "-m", "redetr", *map(str, arguments)],
        env=os.environ | added,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(arguments: list[Any]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python -m redetr ...`."""
    process = start(arguments)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen | Fork") -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(lines_of(folder)) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(process: "subprocess.Popen | Fork", code: int = 1) -> str:
    """The one line that a failed process ends with, and its exit code."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors, errors
    return errors.strip().splitlines()[-1]
