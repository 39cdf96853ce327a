"""The twelve COCO numbers and per-class AP from flat arrays, on one process, without printing.

Shapes: N images, M detections of all images, C classes. All boxes are xyxy in pixels of the
original image. Numbers are fractions in [0, 1], or nan where there is no ground truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import hotcoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.errors import DivergedError
from redetr.structures import Target

# In COCO's own order: precision over all sizes, by size, recall by number of detections, recall by
# size.
METRIC_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)

Array = Tensor | NDArray


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of N images. Build it once and evaluate as often as needed."""

    image_ids: NDArray[np.int64]  # [N], in the order of the data set
    rank: NDArray[
        np.int64
    ]  # [N], the place of each id in ascending order, which settles ties in score as COCO does
    class_names: tuple[str, ...]  # C names
    objects: NDArray[np.int64]  # [C], of each class, crowds not counted
    annotations: hotcoco.COCO  # of images numbered by rank, of categories numbered by label

    @classmethod
    def from_dataset(cls, dataset: DetectionDataset) -> "GroundTruth":
        """The annotations of all images of a data set, in its order; reads no image."""
        return cls.from_targets(
            [dataset.target(i) for i in range(len(dataset))], dataset.class_names
        )

    @classmethod
    def from_targets(cls, targets: Sequence[Target], class_names: Sequence[str]) -> "GroundTruth":
        """The annotations in `targets` (boxes xyxy in pixels of the original image), in their
        order."""
        ids = np.array([target["image_id"] for target in targets], np.int64)
        rank = np.empty_like(ids)
        rank[ids.argsort(kind="stable")] = np.arange(len(ids))
        labels = _joined([target["labels"] for target in targets]).astype(np.int64)
        crowds = _joined([target["iscrowd"] for target in targets]).astype(bool)
        annotations = hotcoco.COCO.from_arrays(
            [{"id": place} for place in range(len(ids))],
            [{"id": label, "name": name} for label, name in enumerate(class_names)],
            rank.repeat([len(target["labels"]) for target in targets]),
            labels,
            _xyxy_to_xywh(_joined([target["boxes"] for target in targets])),
            area=_joined([target["area"] for target in targets]),
            iscrowd=crowds,
        )
        objects = np.bincount(labels[~crowds], minlength=len(class_names))
        return cls(ids, rank, tuple(class_names), objects, annotations)


@dataclass(frozen=True)
class CocoResult:
    """COCO's numbers as fractions; nan where the ground truth has no box of that class or size."""

    metrics: dict[str, float]  # the names of METRIC_NAMES
    per_class: dict[str, float]  # AP by class name; names that occur twice get " (label)" appended
    per_class_ap50: dict[str, float] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)  # of each class, crowds not counted
    losses: dict[str, float] = field(
        default_factory=dict
    )  # of the whole data set, where they were asked for

    @property
    def ap(self) -> float:
        """Mean over classes and the IoU thresholds 0.50, 0.55 ... 0.95."""
        return self.metrics["AP"]

    @property
    def ap50(self) -> float:
        """AP at an IoU of 0.5."""
        return self.metrics["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """The twelve numbers, losses with the prefix `val_`, and of each class `per_class` (AP),
        `per_class_AP50` and `objects`, ready for JSON: None instead of nan."""
        losses = {f"val_{name}": round(value, 6) for name, value in self.losses.items()}
        classes = {
            "per_class": _without_nan(self.per_class),
            "per_class_AP50": _without_nan(self.per_class_ap50),
        }
        return {**_without_nan(self.metrics), **losses, **classes, "objects": self.objects}


def coco_metrics(
    truth: GroundTruth, image_index: Array, scores: Array, labels: Array, boxes: Array
) -> CocoResult:
    """COCO evaluation of M detections: `image_index`, `scores` and `labels` are `[M]`, `boxes` `[M,
    4]` xyxy pixels.

    Tensors may be on any device. `image_index` counts the images of `truth` from 0. In each image
    the best 100 detections of a class count.

    Raises DivergedError for a score or box that is not finite, ValueError for an image or label
    that `truth` does not have and for shapes that do not fit.
    """
    return coco_result(truth, coco_evaluation(truth, image_index, scores, labels, boxes))


def coco_evaluation(
    truth: GroundTruth, image_index: Array, scores: Array, labels: Array, boxes: Array
) -> hotcoco.COCOeval:
    """hotcoco's evaluation of detections; arrays and errors as in `coco_metrics`.

    The ids of its images are those in `truth.rank`, those of its categories are labels. Detections
    and annotations have ids from 1, in the order in which they were given.
    """
    return _evaluated(truth, image_index, scores, labels, boxes)


def coco_result(truth: GroundTruth, evaluation: hotcoco.COCOeval) -> CocoResult:
    """The numbers of an evaluation by `coco_evaluation`."""
    evaluation.summary_lines()  # computes `stats` without printing
    stats = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][
        :, :, :, 0, -1
    ]  # IoU thresholds, recall levels, C; all sizes, best 100
    # Without ground truth COCO leaves a class at -1 everywhere.
    per_class, ap50 = (
        np.where(precision[0, 0] < 0, math.nan, part.mean((0, 1))).tolist()
        for part in (precision, precision[:1])
    )
    names = truth.class_names
    distinct = [
        name if names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(names)
    ]
    by_name = (
        dict(zip(distinct, values, strict=True))
        for values in (per_class, ap50, truth.objects.tolist())
    )
    return CocoResult(dict(zip(METRIC_NAMES, stats, strict=True)), *by_name)


def ap_by_area(
    truth: GroundTruth,
    edges: Sequence[float],
    image_index: Array,
    scores: Array,
    labels: Array,
    boxes: Array,
) -> list[float]:
    """AP of the objects between each two of `edges`, areas in square pixels; nan where there are
    none.

    An object on an edge belongs below it, on the first one above. Arrays and errors as in
    `coco_metrics`. As in COCO, detections of another size that find nothing do not count.
    """
    areas = [
        (math.nextafter(low, math.inf) if i else low, high)
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    evaluation = _evaluated(truth, image_index, scores, labels, boxes, areas)
    assert evaluation.eval is not None
    tables = np.moveaxis(evaluation.eval["precision"][..., -1], 3, 0)
    return [
        float(np.mean(table[table >= 0])) if (table >= 0).any() else math.nan for table in tables
    ]


def _evaluated(
    truth: GroundTruth,
    image_index: Array,
    scores: Array,
    labels: Array,
    boxes: Array,
    areas: list[tuple[float, float]] | None = None,
) -> hotcoco.COCOeval:
    """hotcoco's evaluation of detections, checked first; `areas` replace COCO's four ranges of
    size."""
    index, scores, labels, boxes = (
        _float64(values) for values in (image_index, scores, labels, boxes)
    )
    if boxes.shape != (len(scores), 4) or not index.shape == scores.shape == labels.shape == (
        len(scores),
    ):
        shapes = f"{index.shape}, {scores.shape}, {labels.shape}, {boxes.shape}"
        raise ValueError(f"image_index, scores, labels and boxes do not fit together: {shapes}")
    detections = np.column_stack([index, _xyxy_to_xywh(boxes), scores, labels])
    _check_detections(truth, detections)
    detections[:, 0] = truth.rank[detections[:, 0].astype(np.int64)]
    evaluation = hotcoco.COCOeval(truth.annotations, truth.annotations.load_res(detections), "bbox")
    if areas:
        evaluation.params.area_rng = [list(area) for area in areas]
        evaluation.params.area_rng_lbl = [f"{low:g} to {high:g}" for low, high in areas]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _check_detections(truth: GroundTruth, rows: NDArray[np.float64]) -> None:
    """Raises what `coco_metrics` promises for rows of (image index, x, y, width, height, score,
    label)."""
    index, labels = rows[:, 0], rows[:, 6]
    if ((index < 0) | (index >= len(truth.rank))).any():
        raise ValueError(f"an image index outside of 0 to {len(truth.rank) - 1}")
    if ((labels < 0) | (labels >= len(truth.class_names))).any():
        raise ValueError(f"a label outside of 0 to {len(truth.class_names) - 1}")
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        image_id = truth.image_ids[int(index[broken.argmax()])]
        raise DivergedError(
            f"{broken.sum()} of {len(rows)} detections have a score or box that is not finite "
            f"(first in image {image_id}): the model has diverged"
        )


def _float64(values: Array) -> NDArray[np.float64]:
    """The same values as an array on the host; float64 holds all of them exactly."""
    return np.asarray(
        values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64
    )


def _joined(parts: list[Tensor]) -> NDArray[np.float64]:
    """All parts one after the other."""
    return _float64(torch.cat(parts)) if parts else np.zeros(0)


def _xyxy_to_xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes `[M, 4]` as (left, top, width, height); float64, so that the subtraction does not
    round."""
    boxes = boxes.reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _without_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
