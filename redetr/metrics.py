"""The twelve COCO numbers and per-class AP from compact arrays, on one process, without printing.

Shapes: N images, T ground truth boxes of all images, K detections of an image. All boxes are xyxy in pixels
of the original image. Numbers are fractions in [0, 1], or nan where there is no ground truth.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import hotcoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DivergedError
from .structures import Target

# In COCO's own order: precision over all sizes, by size, recall by number of detections, recall by size.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class AnnotatedImages(Protocol):
    """What evaluation needs of a data set."""

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def target(self, index: int, /) -> Target: ...


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of N images as flat arrays: box t belongs to image `image_index[t]`.

    Build it once with `from_dataset` or `from_targets` and evaluate as often as needed.
    """

    image_ids: NDArray[np.int64]  # [N], only their order matters: it settles ties in score as COCO does
    sizes: NDArray[np.int64]  # [N, 2] height, width
    image_index: NDArray[np.int64]  # [T] in [0, N)
    labels: NDArray[np.int64]  # [T] in [0, C)
    boxes: NDArray[np.float64]  # [T, 4] xyxy, pixels of the original image
    iscrowd: NDArray[np.bool_]  # [T]; a crowd is neither found nor missed, detections inside it are ignored
    area: NDArray[np.float64]  # [T] square pixels; decides between small, medium and large
    class_names: tuple[str, ...]  # C names

    @classmethod
    def from_dataset(cls, dataset: AnnotatedImages) -> "GroundTruth":
        """The annotations of all images of a data set, in its order; reads no image."""
        return cls.from_targets([dataset.target(i) for i in range(len(dataset))], dataset.class_names)

    @classmethod
    def from_targets(cls, targets: Sequence[Target], class_names: Sequence[str]) -> "GroundTruth":
        """The annotations in `targets` (boxes xyxy in pixels of the original image), in their order."""
        counts = [len(target["labels"]) for target in targets]
        return cls(
            image_ids=np.array([target["image_id"] for target in targets], dtype=np.int64),
            sizes=np.array([target["orig_size"] for target in targets], dtype=np.int64).reshape(-1, 2),
            image_index=np.repeat(np.arange(len(targets)), counts),
            labels=_joined([target["labels"] for target in targets], np.int64),
            boxes=_joined([target["boxes"] for target in targets], np.float64).reshape(-1, 4),
            iscrowd=_joined([target["iscrowd"] for target in targets], np.bool_),
            area=_joined([target["area"] for target in targets], np.float64),
            class_names=tuple(class_names),
        )


@dataclass(frozen=True)
class CocoResult:
    """COCO's numbers as fractions; nan where the ground truth has no box of that class or size."""

    metrics: dict[str, float]  # the names of METRIC_NAMES
    per_class: dict[str, float]  # AP by class name; names that occur twice get " (label)" appended

    @property
    def ap(self) -> float:
        """Mean over classes and the IoU thresholds 0.50, 0.55 ... 0.95."""
        return self.metrics["AP"]

    @property
    def ap50(self) -> float:
        """AP at an IoU of 0.5."""
        return self.metrics["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """The twelve numbers and `per_class`, ready for JSON: None instead of nan."""
        return {**_without_nan(self.metrics), "per_class": _without_nan(self.per_class)}


def coco_metrics(
    truth: GroundTruth,
    image_index: Tensor | NDArray,
    scores: Tensor | NDArray,
    labels: Tensor | NDArray,
    boxes: Tensor | NDArray,
) -> CocoResult:
    """COCO evaluation of detections: one array per field, from any device (copied to the host).

    `image_index` counts images of `truth` from 0. It is `[N]` with `scores`, `labels` `[N, K]` and `boxes`
    `[N, K, 4]` (what `postprocess.decode` returns), or `[M]` with `[M]`, `[M]`, `[M, 4]` for a flat list.
    Boxes are xyxy in pixels of the original image. Entries whose image index is negative are padding and
    dropped, so that a sampler may repeat images to fill the last batch. In each image the best 100 of a class
    count.

    Raises DivergedError for a score or box that is not finite, ValueError for an image or label that `truth`
    does not have and for shapes that do not fit.
    """
    detections = _detection_rows(image_index, scores, labels, boxes)
    _check_detections(truth, detections)
    evaluation = _run_coco(truth, detections)
    evaluation.summary_lines()  # computes `stats` without printing
    stats = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    return CocoResult(
        metrics=dict(zip(METRIC_NAMES, stats, strict=True)),
        per_class=dict(zip(_distinct(truth.class_names), _ap_per_class(evaluation), strict=True)),
    )


def _run_coco(truth: GroundTruth, detections: NDArray[np.float64]) -> hotcoco.COCOeval:
    """The matched and accumulated evaluation of rows as `_detection_rows` makes them."""
    # COCO goes through images in the order of their ids; the rank keeps that order for ids of any kind.
    rank = np.empty(len(truth.image_ids), dtype=np.int64)
    rank[np.argsort(truth.image_ids, kind="stable")] = np.arange(len(rank))
    expected = hotcoco.COCO.from_arrays(
        [{"id": int(i), "height": int(h), "width": int(w)} for i, (h, w) in zip(rank, truth.sizes, strict=True)],
        [{"id": label, "name": name} for label, name in enumerate(truth.class_names)],
        rank[truth.image_index],
        truth.labels,
        _xyxy_to_xywh(truth.boxes),
        area=truth.area,
        iscrowd=truth.iscrowd,
    )
    if len(detections):
        detections[:, 0] = rank[detections[:, 0].astype(np.int64)]
    evaluation = hotcoco.COCOeval(expected, expected.load_res(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _ap_per_class(evaluation: hotcoco.COCOeval) -> list[float]:
    """AP `[C]` over all sizes with 100 detections per image; nan for a class without ground truth."""
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recall levels, C
    # Without ground truth COCO leaves a class at -1 everywhere.
    return np.where(precision[0, 0] < 0, math.nan, precision.mean((0, 1))).tolist()


def _detection_rows(
    image_index: Tensor | NDArray, scores: Tensor | NDArray, labels: Tensor | NDArray, boxes: Tensor | NDArray
) -> NDArray[np.float64]:
    """Rows (image index, left, top, width, height, score, label) of all entries that are not padding."""
    scores, labels, boxes = _array(scores), _array(labels), _array(boxes)
    index = _array(image_index)
    if labels.shape != scores.shape or boxes.shape != (*scores.shape, 4) or index.shape != scores.shape[: index.ndim]:
        shapes = f"{index.shape}, {scores.shape}, {labels.shape}, {boxes.shape}"
        raise ValueError(f"image_index, scores, labels and boxes do not fit together: {shapes}")
    index = np.broadcast_to(index.reshape(index.shape + (1,) * (scores.ndim - index.ndim)), scores.shape)
    rows = np.empty((scores.size, 7))
    rows[:, 0] = index.ravel()
    rows[:, 1:5] = _xyxy_to_xywh(boxes.reshape(-1, 4))
    rows[:, 5] = scores.ravel()
    rows[:, 6] = labels.ravel()
    return rows if (rows[:, 0] >= 0).all() else rows[rows[:, 0] >= 0]


def _check_detections(truth: GroundTruth, rows: NDArray[np.float64]) -> None:
    """Raises what `coco_metrics` promises for rows that cannot be evaluated."""
    if not len(rows):
        return
    if rows[:, 0].max() >= len(truth.image_ids):
        raise ValueError(f"image index {rows[:, 0].max():.0f}, but there are {len(truth.image_ids)} images")
    if rows[:, 6].min() < 0 or rows[:, 6].max() >= len(truth.class_names):
        raise ValueError(f"a label outside of 0 to {len(truth.class_names) - 1}")
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        image_id = truth.image_ids[int(rows[broken.argmax(), 0])]
        raise DivergedError(
            f"{broken.sum()} of {len(rows)} detections have a score or box that is not finite "
            f"(first in image {image_id}): the model has diverged"
        )


def _array(values: Tensor | NDArray) -> NDArray:
    """The same values as an array on the host; half precision becomes float32, which holds them exactly."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() and values.itemsize == 2 else values).numpy()


def _xyxy_to_xywh(boxes: NDArray) -> NDArray[np.float64]:
    """Boxes `[T, 4]` as (left, top, width, height), in float64: the subtraction must not round."""
    boxes = np.array(boxes, dtype=np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _joined(parts: list[Tensor], dtype: type) -> NDArray:
    """All parts one after the other as one array; an empty one for no parts."""
    return torch.cat(parts).cpu().numpy().astype(dtype) if parts else np.zeros(0, dtype)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names in order, each made unique by its label where several classes share one."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]


def _without_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
