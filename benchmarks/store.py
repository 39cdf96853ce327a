"""What time and memory does a large data set take at the start of a run?

    python benchmarks/store.py
    python benchmarks/store.py --images 1000000 --boxes 15000000 --processes 40 --with-store-only

A data set in COCO format, by default of 100,000 images (hard links of one file) and 1.5 M boxes.
Three kinds of start are measured, each in a process: without a store; the first start, which writes
the store and reads the header of every image; and a later start. Then several processes, by default
four, have the data set open at the same time and have read every box. The memory that each adds is
its proportional set size, in which shared pages are divided among the processes that share them.
Forty processes correspond to eight ranks with four loaders each. Reports processor time, and memory
above that of a process that has imported the library. Writes results/DATE-store.json.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import record

from redetr.data import open_dataset, store
from redetr.doctor.check import essential_faults

CLASSES = 80
_LINKS = 60_000  # of one file, as file systems limit their number


def write_split(root: Path, split: str, images: int, boxes: int) -> None:
    rng = np.random.default_rng(0)
    folder = root / split
    folder.mkdir(parents=True)
    pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    rows = []
    for i in range(images):
        if i % _LINKS == 0:
            original = root / f"{split}-{i}.jpg"
            Image.fromarray(pixels).save(original)
        os.link(original, folder / f"{i:012d}.jpg")
        rows.append({"id": i, "file_name": f"{i:012d}.jpg", "width": 128, "height": 96})
    corners = rng.uniform(0, 60, (boxes, 2)).round(2)
    sides = rng.uniform(5, 30, (boxes, 2)).round(2)
    on_image = rng.integers(0, images, boxes)
    labels = rng.integers(1, CLASSES + 1, boxes)
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, CLASSES + 1)]
    (root / "annotations").mkdir(exist_ok=True)
    with open(root / "annotations" / f"instances_{split}.json", "w") as file:
        file.write(f'{{"images": {json.dumps(rows)}, "annotations": [')
        for i in range(boxes):
            row = {"id": i, "image_id": int(on_image[i]), "category_id": int(labels[i])}
            row |= {"bbox": [*corners[i].tolist(), *sides[i].tolist()], "iscrowd": 0}
            row["area"] = float(sides[i].prod())
            file.write((", " if i else "") + json.dumps(row))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def proportional_mb() -> float:
    """The memory of this process, in which shared pages are divided among the processes that share
    them."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1e3
    raise OSError("/proc/self/smaps_rollup does not state Pss")


def start(root: Path, queue: Any, is_stored: bool = True, barrier: Any = None) -> None:
    """Opens the data like a rank at its start."""
    if not is_stored:
        store.WORTH = sys.maxsize
    used = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    shared_before = proportional_mb()
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    if barrier is None:
        essential_faults(train, val)
    most = train.max_objects()
    content: dict[str, Any] = {"most_objects": most}
    if barrier is not None:
        float(train.annotations.boxes.sum())
        barrier.wait()
        content["mb_of_the_machine"] = proportional_mb() - shared_before
        barrier.wait()
    after = resource.getrusage(resource.RUSAGE_SELF)
    content["s"] = round(time.monotonic() - started, 1)
    content["processor_s"] = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    content["peak_mb"] = (after.ru_maxrss - used.ru_maxrss) / 1e3
    queue.put(content)


def in_processes(count: int, *arguments: Any) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    barrier = context.Barrier(count) if count > 1 else None
    processes = []
    for _ in range(count):
        root, is_stored = arguments
        process = context.Process(target=start, args=(root, queue, is_stored, barrier))
        process.start()
        processes.append(process)
    results = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=1_500_000)
    parser.add_argument("--processes", type=int, default=4, help="that have it open together")
    parser.add_argument("--with-store-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        root = Path(folder) / "data"
        write_split(root, "train", arguments.images, arguments.boxes)
        write_split(root, "val", 64, 500)
        content: dict[str, Any] = {"images": arguments.images, "boxes": arguments.boxes}
        content["load_before"] = os.getloadavg()[0]
        if not arguments.with_store_only:
            content["first_without_store"] = in_processes(1, root, False)[0]
            content["every_further_without_store"] = in_processes(1, root, False)[0]
            shutil.rmtree(Path(folder) / "cache" / "redetr" / "images")
        content["first"] = in_processes(1, root, True)[0]
        content["later"] = in_processes(1, root, True)[0]
        content["together"] = in_processes(arguments.processes, root, True)
        files = Path(folder).glob("cache/redetr/annotations/*/*/*.npy")
        content["store_mb"] = sum(file.stat().st_size for file in files) / 1e6
    record("store", content)


if __name__ == "__main__":
    main()
