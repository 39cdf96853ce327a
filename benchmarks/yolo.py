"""Which learns more from scratch in the same time: redetr_n, or a nano YOLO with its defaults?

    pip install ultralytics        # AGPL-3.0: installed by whoever runs this, and by nothing else
    python benchmarks/yolo.py --sets dense shapes digits --minutes 1 2 5 --threads 1 --seeds 0 1 2

All read the same files: 2,000 images of each set of `scenes.py`, or 8,000 images of digits, and 300
for validation. Each run is a process with as many cores as threads; sides take turns. All train for
the given minutes by the clock. `redetr_n` plans as many steps as should fit, judging by its first
ones, and is stopped when its time is up, even if its learning rate has not come down by then. The
time that a run really took is recorded next to its AP. The boxes of all models are judged by the
same evaluation, which equals pycocotools.

A stopped benchmark continues where it stopped; with `--continue results/FILE.json`, the runs of an
earlier result are not repeated. Writes results/DATE-NAME.json (`--name`) and a plot of the curves.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from record import record
from scenes import SIDE_PX, write_description, write_labels, write_scenes

SETS = ("dense", "shapes", "digits")
SIDES = ("redetr_n", "yolo11n", "yolo26n")
DIGITS = {"train": 8000, "val": 300}
SETTINGS = ("sets", "minutes", "threads", "seeds", "sides")
BATCH_SIZE = 16
TIMED_STEPS = 40
WARM_UP_STEPS = 20
LOG_EVERY = 5  # steps, after which the clock is read
FOLDER = Path("runs/benchmark-yolo")


class Row(NamedTuple):
    """A run: the model, the data, and the settings."""

    data: str
    threads: int
    minutes: float
    seed: int
    side: str

    @property
    def file(self) -> Path:
        """The file with the result of the run."""
        name = f"{self.data}-{self.threads}-threads-{self.minutes:g}-min-{self.seed}-{self.side}"
        return FOLDER / f"{name}.json"


def write_digits(folder: Path) -> None:
    """Images and labels of `digits` in YOLO format."""
    from redetr.data.formats.digits import DigitsDataset

    for split, count in DIGITS.items():
        dataset = DigitsDataset(split, size=count)
        images = folder / "images" / split
        images.mkdir(parents=True)
        for index in range(count):
            image, target = dataset.sample(index)
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(images / f"{index:05}.png", compress_level=1)
            objects = zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
            write_labels(folder / "labels" / split / f"{index:05}.txt", list(objects))
    write_description(folder, [str(digit) for digit in range(10)])


def data_of(name: str) -> Path:
    """The YAML file of a data set, which is written if it is missing."""
    folder = FOLDER / "data" / name
    description = folder / "data.yaml"  # written last
    if not description.exists():
        if name == "digits":
            write_digits(folder)
        else:
            write_scenes(name, folder)
    return description


def run_redetr(row: Row, data: Path, folder: Path) -> dict[str, Any]:
    """Trains `redetr_n`; returns seconds, steps and COCO numbers."""
    from rich.console import Console

    import redetr
    from redetr.errors import StoppedError
    from redetr.recipes import get_recipe
    from redetr.training import train

    settings = replace(
        get_recipe("redetr_n"),
        data=str(data),
        seed=row.seed,
        threads=row.threads,
        batch_size=BATCH_SIZE,
        num_workers=0 if row.threads == 1 else None,
        pictures=False,
    )
    console = Console(stderr=True)
    timed = replace(
        settings,
        steps=TIMED_STEPS,
        log_every=1,
        eval_every=TIMED_STEPS,
        output=str(folder / "timed"),
    )
    train(timed, console)
    warm = step_seconds(folder / "timed")[WARM_UP_STEPS:]
    steps = round(60 * row.minutes / median(warm))
    whole = replace(
        settings,
        steps=steps,
        log_every=LOG_EVERY,
        eval_every=steps,
        output=str(folder / "run"),
    )
    try:
        train(whole, console, callback=Clock(60 * row.minutes))
    except StoppedError as stopped:  # its checkpoint is saved
        print(stopped, file=sys.stderr)
    last = train_lines(folder / "run")[-1]
    model = redetr.load(folder / "run/last.pt")
    detections = model.predict(images_of(data), threshold=0.0)
    boxes = [(d.scores.numpy(), d.labels.numpy(), d.boxes.numpy()) for d in detections]
    trained = {"steps": last["step"], "planned": steps, "seconds": round(last["time_s"], 1)}
    return {**trained, **judged(boxes, data)}


class Clock:
    """Ends the training of this process, given the lines of its log, once its time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, line: dict[str, Any]) -> None:
        if is_train_line(line) and line["time_s"] >= self.seconds:
            os.kill(os.getpid(), signal.SIGTERM)


def is_train_line(line: dict[str, Any]) -> bool:
    """Whether a line of the log is about steps, and not about an evaluation."""
    return "images_per_s" in line


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The lines about steps in the log of a run."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if is_train_line(line)]


def step_seconds(run: Path) -> list[float]:
    """The seconds of each step of a run that logs every step."""
    seconds = [line["time_s"] for line in train_lines(run)]
    return [after - before for before, after in pairwise(seconds)]


def run_yolo(row: Row, data: Path, folder: Path) -> dict[str, Any]:
    """Trains a YOLO with its defaults; returns seconds, epochs and COCO numbers."""
    import torch
    from ultralytics import YOLO

    model = YOLO(f"{row.side}.yaml")
    moments: list[float] = []
    # By default, it would use one thread less than there are cores.
    model.add_callback("on_train_start", lambda trainer: torch.set_num_threads(row.threads))
    model.add_callback("on_train_epoch_start", lambda trainer: moments.append(time.perf_counter()))
    model.add_callback("on_train_epoch_end", lambda trainer: moments.append(time.perf_counter()))
    more = {"workers": 0} if row.threads == 1 else {}
    model.train(
        data=str(data),
        imgsz=SIDE_PX,
        batch=BATCH_SIZE,
        time=row.minutes / 60,
        seed=row.seed,
        device="cpu",
        pretrained=False,
        val=False,
        plots=False,
        project=str(folder),
        name="run",
        **more,
    )
    starts, ends = moments[::2], moments[1::2]
    seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
    model = YOLO(folder / "run/weights/last.pt")
    boxes = []
    for file in images_of(data):
        (answer,) = model.predict(file, imgsz=SIDE_PX, conf=0.001, verbose=False)
        of_image = answer.boxes.cpu()
        labels = of_image.cls.long().numpy()
        boxes.append((of_image.conf.numpy(), labels, of_image.xyxy.numpy()))
    return {"epochs": len(ends), "seconds": round(seconds, 1), **judged(boxes, data)}


def images_of(data: Path) -> list[Path]:
    """The validation images, in the order of their names."""
    return sorted((data.parent / "images/val").iterdir())


def judged(boxes: list[tuple[Any, Any, Any]], data: Path) -> dict[str, float]:
    """COCO numbers, in percent, of the (scores, labels, boxes) of each validation image."""
    from redetr.data import open_dataset
    from redetr.metrics import GroundTruth, coco_metrics
    from redetr.structures import DatasetDetections

    index = [np.full(len(scores), i) for i, (scores, _, _) in enumerate(boxes)]
    detections = DatasetDetections(
        image_index=np.concatenate(index),
        labels=np.concatenate([labels for _, labels, _ in boxes]),
        scores=np.concatenate([scores for scores, _, _ in boxes]),
        boxes=np.concatenate([image_boxes for _, _, image_boxes in boxes]),
    )
    truth = GroundTruth.from_dataset(open_dataset(str(data), "val"))
    numbers = coco_metrics(truth, detections).to_dict()
    return {name: round(100 * numbers[name], 2) for name in ("AP", "AP50", "AP75")}


def run(row: Row) -> None:
    """Executes a run in this process, with as many cores as threads."""
    cores = sorted(os.sched_getaffinity(0))[: row.threads]
    os.sched_setaffinity(0, cores)
    data = data_of(row.data)
    work = run_redetr if row.side == "redetr_n" else run_yolo
    with tempfile.TemporaryDirectory() as folder:
        result = work(row, data, Path(folder))
    row.file.write_text(json.dumps(row._asdict() | result))


def take_over(result: Path) -> None:
    """Writes the files of the runs in an earlier result."""
    for content in json.loads(result.read_text())["runs"]:
        row = Row(*(content[name] for name in Row._fields))
        if not row.file.exists():
            row.file.write_text(json.dumps(content))


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Plots AP over minutes, for each data set and number of threads."""
    from matplotlib import pyplot as plt

    trained = {row["side"] for row in rows}
    sides = [side for side in SIDES if side in trained]
    panels = sorted({(row["data"], row["threads"]) for row in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.5), squeeze=False)
    for axis, (data, threads) in zip(axes[0], panels, strict=True):
        for side in sides:
            by_minutes: dict[float, list[float]] = {}
            for row in rows:
                if (row["data"], row["threads"], row["side"]) == (data, threads, side):
                    by_minutes.setdefault(row["minutes"], []).append(row["AP"])
            minutes = sorted(by_minutes)
            axis.plot(minutes, [median(by_minutes[m]) for m in minutes], marker="o", label=side)
            for m in minutes:
                axis.scatter([m] * len(by_minutes[m]), by_minutes[m], s=6, color="grey")
        axis.set_title(f"{data}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlabel("minutes of training")
    axes[0, 0].set_ylabel("AP")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median AP over seeds, by data set, minutes and threads, and by side."""
    table: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
        sides = table.setdefault(f"{row['data']}, {row['minutes']:g} min, {threads}", {})
        sides.setdefault(row["side"], []).append(row["AP"])
    return {
        name: {side: median(values) for side, values in sides.items()}
        for name, sides in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", choices=SETS, nargs="+", default=["dense", "shapes"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES))
    parser.add_argument("--name", default="yolo", help="of the result")
    parser.add_argument("--continue", dest="earlier", type=Path, help="an earlier result")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        run(Row(*arguments.row))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.earlier:
        take_over(arguments.earlier)
    done = []
    choices = (arguments.seeds, arguments.sets, arguments.threads, arguments.minutes)
    for seed, data, threads, minutes in product(*choices):
        data_of(data)
        for side in arguments.sides:
            row = Row(data, threads, minutes, seed, side)
            if not row.file.exists():
                command = [sys.executable, __file__, "--row", json.dumps(row)]
                subprocess.run(
                    command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
                )
            done.append(json.loads(row.file.read_text()))
            print(done[-1], flush=True)
    setting = {name: getattr(arguments, name) for name in SETTINGS}
    content = {"setting": setting, "ultralytics": version("ultralytics")}
    path = record(arguments.name, {**content, "median AP": medians(done), "runs": done})
    draw(done, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
