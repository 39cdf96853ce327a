"""Does a training step cost more than at an earlier commit?

    python benchmarks/step_before.py COMMIT
    python benchmarks/step_before.py COMMIT --image-size 256 --batch-size 32 --device cuda

The package at COMMIT and this checkout take turns: in each round, each trains a few steps of the
same recipe on `digits` with `redetr train`, as a user does, with the whole loop around the step. A
round measures the images per second in all windows of the log except the first, which is warm-up;
the ratio is the median over rounds of the ratio within a round. Above 1, this checkout is faster.
Also reports the largest difference between their losses, which is rounding if the recipe has not
changed. Writes results/DATE-step-before.json.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from record import record

from redetr.pages.curves import read_metrics

ROOT = Path(__file__).parent.parent
WINDOWS = 4  # of the log


def unpack(commit: str, folder: Path) -> None:
    """The package at a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "redetr"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(folder, filter="data")


def train(package: Path, output: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains with the package in this folder, and returns the windows of the log."""
    flags: dict[str, Any] = {
        "data": "digits",
        "output": output,
        "steps": arguments.steps,
        "log-every": arguments.steps // WINDOWS,
        "eval-every": arguments.steps,
        "batch-size": arguments.batch_size,
        "image-size": arguments.image_size,
        "device": arguments.device,
        "precision": "fp32",
        "num-workers": 0,
    }
    command = [sys.executable, "-m", "redetr", "train", arguments.model]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(package)}
    subprocess.run(command, cwd=package, env=environment, check=True, capture_output=True)
    return [line for line in read_metrics(output) if "images_per_s" in line]


def largest_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> float:
    """The largest relative difference between the losses in the windows."""
    differences = []
    for old, new in zip(before, now, strict=True):
        for name in old:
            if name.startswith("loss"):
                differences.append(abs(new[name] - old[name]) / old[name])
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--model", default="redetr_n")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {"before": [], "now": []}
    differences = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(arguments.commit, folder / "before")
        packages = {"before": folder / "before", "now": ROOT}
        for number in range(arguments.rounds):
            windows = {}
            for side, package in packages.items():
                windows[side] = train(package, folder / f"{side} {number}", arguments)
                of_windows = [window["images_per_s"] for window in windows[side][1:]]
                rates[side].append(median(of_windows))
            differences.append(largest_difference(windows["before"], windows["now"]))
    ratios = [now / before for before, now in zip(*rates.values(), strict=True)]
    content: dict[str, Any] = {"setting": vars(arguments)}
    for side, values in rates.items():
        content[side] = {
            "images per second": round(median(values), 2),
            "spread": [round(min(values), 2), round(max(values), 2)],
        }
    content["times faster"] = round(median(ratios), 3)
    content["spread of the ratio"] = [round(min(ratios), 3), round(max(ratios), 3)]
    content["largest relative difference of losses"] = max(differences)
    record("step-before", content)


if __name__ == "__main__":
    main()
