"""Does `redetr train` start as fast with a large data set as at an earlier commit?

    python benchmarks/start.py COMMIT
    python benchmarks/start.py COMMIT --images 5000 --rounds 3

The package at COMMIT and this checkout take turns: in each round, each starts to train twice on 8
images, on a data set in COCO format and on one in YOLO format. The first start finds no caches; the
second finds those of the first. With 8 images, a start has only the costs that do not depend on the
data: Python, PyTorch and the step. A process is killed after it has logged its first step; its
processor time until then is counted, including its threads. Reports the median and the spread of
the rounds; the ratio is the median over rounds of the ratio within a round. Below 1, this checkout
is faster. Writes results/DATE-start.json.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from record import record
from step_before import ROOT, unpack
from store import write_split

BOXES, CLASSES = 15, 80  # of an image, of a data set
FEW = 8  # images of the val splits, and of the small data set
LINKS = 60_000  # of one file, as file systems limit their number
POLL_S = 0.02


def write_coco(root: Path, images: int) -> None:
    write_split(root, "train", images, images * BOXES)
    write_split(root, "val", FEW, FEW * BOXES)


def write_yolo(root: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", FEW)):
        pictures = root / "images" / split
        labels = root / "labels" / split
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        for i in range(count):
            if i % LINKS == 0:
                original = root.parent / f"{split}-{i}.jpg"
                Image.fromarray(pixels).save(original)
            os.link(original, pictures / f"{i:06d}.jpg")
            classes = rng.integers(0, CLASSES, BOXES)
            boxes = rng.uniform(0.3, 0.5, (BOXES, 4))
            lines = []
            for label, box in zip(classes.tolist(), boxes.tolist(), strict=True):
                numbers = " ".join(f"{number:.6f}" for number in box)
                lines.append(f"{label} {numbers}\n")
            (labels / f"{i:06d}.txt").write_text("".join(lines))
    names = "".join(f"  {number}: class {number}\n" for number in range(CLASSES))
    text = f"train: images/train\nval: images/val\nnames:\n{names}"
    (root / "data.yaml").write_text(text)


def start(package: Path, data: Path, folder: Path, number: int) -> float:
    """Trains with the package in this folder until the first step is logged, with the caches in
    `folder`, and returns the processor time of the process, s."""
    output = folder / f"run {number}"
    flags: dict[str, Any] = {
        "data": data,
        "output": output,
        "steps": 10_000,
        "log-every": 1,
        "batch-size": 1,
        "image-size": 64,
        "device": "cpu",
        "precision": "fp32",
        "num-workers": 0,
    }
    command = [sys.executable, "-m", "redetr", "train", "redetr_n"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=package, env=environment, process_group=0, **quiet)
    log = output / "metrics.jsonl"
    while not (log.exists() and "loss" in log.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"ended with {process.returncode} before its first step: {command}")
        time.sleep(POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = -signal.SIGKILL
    return used.ru_utime + used.ru_stime


def round_of(packages: dict[str, Path], data: dict[str, Path], folder: Path) -> dict[str, Any]:
    """The processor time of each kind of start, for each side."""
    times: dict[str, dict[str, float]] = {}
    for name, root in data.items():
        for side, package in packages.items():
            caches = folder / f"{name} {side}"
            caches.mkdir(parents=True)
            first = start(package, root, caches, 1)
            second = start(package, root, caches, 2)
            times.setdefault(f"{name}, first", {})[side] = first
            times.setdefault(f"{name}, second", {})[side] = second
    return times


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The numbers for one kind of start, from its rounds."""
    content: dict[str, Any] = {}
    for side in ("before", "now"):
        values = [times[side] for times in rounds]
        content[side] = {
            "processor_s": round(median(values), 2),
            "spread": [round(min(values), 2), round(max(values), 2)],
        }
    ratios = [times["now"] / times["before"] for times in rounds]
    content["ratio"] = round(median(ratios), 3)
    content["spread of the ratio"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(arguments.commit, folder / "before")
        packages = {"before": folder / "before", "now": ROOT}
        data = {name: folder / "data" / name / "data" for name in ("few images", "COCO", "YOLO")}
        write_coco(data["few images"], FEW)
        write_coco(data["COCO"], arguments.images)
        write_yolo(data["YOLO"], arguments.images)
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(round_of(packages, data, folder / f"round {number}"))
    content: dict[str, Any] = {
        "setting": vars(arguments) | {"boxes": arguments.images * BOXES},
        "load_average": os.getloadavg()[0],
    }
    for kind in rounds[0]:
        content[kind] = summary([times[kind] for times in rounds])
    record("start", content)


if __name__ == "__main__":
    main()
