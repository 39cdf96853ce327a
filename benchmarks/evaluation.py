"""How fast is COCO evaluation, from detections to the twelve numbers? 5,000 images, 100
detections each.

    python benchmarks/evaluation.py

Compared with pycocotools, whose numbers must be equal. All sides start from the same tensors and
from a loaded ground truth, as in training, which evaluates against it many times. redetr also finds
the smallest score worth showing, which pycocotools does not; without it is a side of its own.
"""

import argparse
import contextlib
import io
from typing import Any

import numpy as np
import torch
from interleaved import measure, summary, times_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import record
from torch import Tensor

from redetr.metrics import (
    METRIC_NAMES,
    CocoResult,
    GroundTruth,
    Tables,
    coco_evaluation,
    coco_metrics,
    result_of_tables,
)
from redetr.structures import DatasetDetections, StoredTarget

CLASSES, OBJECTS, DETECTIONS = 80, 7, 100
SIZE = 640


def scenes(images: int) -> tuple[list[StoredTarget], DatasetDetections]:
    """Ground truth, and detections of which some are near an object."""
    random = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    centers, sides = uniform(images, OBJECTS, 2) * SIZE, 8 + uniform(images, OBJECTS, 2) ** 2 * 300
    truth = torch.cat([centers - sides / 2, centers + sides / 2], -1)
    labels = torch.randint(CLASSES, (images, OBJECTS), generator=random)
    which = torch.randint(OBJECTS, (images, DETECTIONS), generator=random)
    noise = (uniform(images, DETECTIONS, 4) - 0.5) * 40 * uniform(images, DETECTIONS, 1) ** 2
    found = truth.gather(1, which[..., None].expand(-1, -1, 4)) + noise
    found = torch.cat([found[..., :2], torch.maximum(found[..., 2:], found[..., :2] + 1)], -1)
    wrong = uniform(images, DETECTIONS) < 0.3
    guessed = torch.where(
        wrong, torch.randint(CLASSES, which.shape, generator=random), labels.gather(1, which)
    )
    targets = [
        StoredTarget(
            boxes=truth[i],
            labels=labels[i],
            image_id=i,
            orig_size=(SIZE, SIZE),
            size=(SIZE, SIZE),
            iscrowd=torch.zeros(OBJECTS, dtype=torch.bool),
            area=(truth[i, :, 2:] - truth[i, :, :2]).prod(-1),
        )
        for i in range(images)
    ]
    return targets, DatasetDetections(
        image_index=torch.arange(images).repeat_interleave(DETECTIONS).numpy(),
        scores=uniform(images * DETECTIONS).numpy(),
        labels=guessed.flatten().numpy(),
        boxes=found.flatten(0, 1).numpy(),
    )


def as_coco(targets: list[StoredTarget]) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": target["image_id"]} for target in targets],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [
            {
                "id": 1 + i * OBJECTS + j,
                "image_id": i,
                "category_id": label,
                "iscrowd": 0,
                "area": area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for i, target in enumerate(targets)
            for j, (label, area, (x1, y1, x2, y2)) in enumerate(
                zip(
                    target["labels"].tolist(),
                    target["area"].tolist(),
                    target["boxes"].tolist(),
                    strict=True,
                )
            )
        ],
    }
    truth.createIndex()
    return truth


def pycocotools_numbers(truth: COCO, found: DatasetDetections) -> list[float]:
    boxes = found.boxes.astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    rows = np.column_stack([found.image_index, boxes, found.scores.astype(float), found.labels])
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def without_threshold(truth: GroundTruth, found: DatasetDetections) -> CocoResult:
    """The result of `coco_metrics`, but for its threshold."""
    evaluation = coco_evaluation(truth, found)
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][..., -1]
    not_counted = np.zeros((2, 100), np.int64)
    tables = Tables(precision, evaluation.eval["recall"], not_counted)
    return result_of_tables(truth.class_names, truth.objects, tables)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    targets, found = scenes(arguments.images)
    ours = GroundTruth.from_targets(targets, [str(label) for label in range(CLASSES)])
    numbers: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = as_coco(targets)
        seconds = measure(
            {
                "redetr": lambda: numbers.update(redetr=coco_metrics(ours, found).metrics),
                "redetr, without the threshold": lambda: without_threshold(ours, found),
                "pycocotools": lambda: numbers.update(
                    pycocotools=pycocotools_numbers(theirs, found)
                ),
            },
            arguments.rounds,
            warm_up=0,
        )
    furthest = max(
        abs(numbers["redetr"][name] - other)
        for name, other in zip(METRIC_NAMES, numbers["pycocotools"], strict=True)
    )
    if furthest > 1e-9:
        raise SystemExit(f"the numbers differ by {furthest}")
    record(
        "evaluation",
        {
            "images": arguments.images,
            "detections": DETECTIONS,
            "largest difference": furthest,
            "AP": numbers["redetr"]["AP"],
            "evaluation": summary(seconds),
            "times faster": times_faster(seconds, "redetr"),
        },
    )


if __name__ == "__main__":
    main()
