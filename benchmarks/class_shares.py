"""What does it cost to evaluate a large data set? Before: every rank held all detections and
computed everything. Now: each rank evaluates its share of the classes, a few at a time.

    python benchmarks/class_shares.py

36,000 images with 300 detections each and 15 objects each, of 365 classes, drawn at random, all in
one run: one evaluation of everything by one process; the same in shards; and by two ranks, each
with the detections of half of the images. Of each process: processor time, and the peak of memory
above what the detections and a fresh process take. The digits are compared. Writes
results/DATE-class-shares.json.
"""

import resource
import time
from typing import Any

import numpy as np
from ranks import in_ranks
from record import record

from redetr.class_shares import shared_metrics
from redetr.distributed import Dist, process_group
from redetr.metrics import GroundTruth, TruthObjects, coco_metrics
from redetr.structures import DatasetDetections

IMAGES, DETECTIONS, OBJECTS, CLASSES = 36_000, 300, 15, 365


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    result = rng.random((count, 4), np.float32) * 300
    result[:, 2:] += result[:, :2] + 1
    return result


def truth() -> TruthObjects:
    rng = np.random.default_rng(0)
    count = IMAGES * OBJECTS
    objects = boxes(rng, count)
    return TruthObjects(
        image_ids=np.arange(IMAGES),
        class_names=tuple(f"class {label}" for label in range(CLASSES)),
        image=np.repeat(np.arange(IMAGES), OBJECTS),
        labels=rng.integers(0, CLASSES, count),
        boxes=objects,
        area=(objects[:, 2:] - objects[:, :2]).prod(1),
        iscrowd=np.zeros(count, bool),
    )


def detections(objects: TruthObjects, rank: int, ranks: int) -> DatasetDetections:
    """The detections in the images of this rank: each object once, slightly moved, and others."""
    parts = []
    for start in range(rank * 1000, IMAGES, ranks * 1000):
        rng = np.random.default_rng(start)
        images = np.arange(start, start + 1000)
        image = np.repeat(images, DETECTIONS)
        found = boxes(rng, len(image)).reshape(1000, DETECTIONS, 4)
        labels = rng.integers(0, CLASSES, (1000, DETECTIONS))
        of_images = slice(start * OBJECTS, (start + 1000) * OBJECTS)
        moved = objects.boxes[of_images] + rng.normal(0, 8, (1000 * OBJECTS, 4))
        found[:, :OBJECTS] = moved.reshape(1000, OBJECTS, 4)
        labels[:, :OBJECTS] = objects.labels[of_images].reshape(1000, OBJECTS)
        scores = rng.random(len(image), np.float32)
        parts.append(DatasetDetections(image, labels.ravel(), scores, found.reshape(-1, 4)))
    return DatasetDetections.concatenate(parts)


def usage() -> tuple[float, float]:
    """Processor time in s and the peak of memory in MB of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def measured(rank: int, ranks: int, way: str) -> dict[str, Any]:
    objects = truth()
    share = detections(objects, rank, ranks)
    with process_group("cpu") as dist:
        before_s, before_mb = usage()
        started = time.perf_counter()
        result = evaluate(way, objects, share, dist)
        wall_s = time.perf_counter() - started
        after_s, after_mb = usage()
    return {
        "processor_s": after_s - before_s,
        "wall_s": wall_s,
        "peak_mb_more": after_mb - before_mb,
        "peak_mb": after_mb,
        "result": result,
    }


def evaluate(
    way: str, objects: TruthObjects, share: DatasetDetections, dist: Dist
) -> dict[str, Any]:
    if way == "whole":
        return coco_metrics(GroundTruth.from_objects(objects), share).to_dict()
    return shared_metrics(objects, share, dist).to_dict()


def main() -> None:
    ways = {
        "whole": in_ranks(1, measured, "whole"),
        "shards": in_ranks(1, measured, "shards"),
        "two_ranks": in_ranks(2, measured, "shards"),
    }
    expected = ways["whole"][0]["result"]
    content: dict[str, Any] = {
        "images": IMAGES,
        "detections": IMAGES * DETECTIONS,
        "classes": CLASSES,
        "machine_is_loaded": True,
        "AP": expected["AP"],
    }
    for way, processes in ways.items():
        same = all(process.pop("result") == expected for process in processes)
        content[way] = {"same_digits": same, "processes": processes}
    record("class-shares", content)


if __name__ == "__main__":
    main()
