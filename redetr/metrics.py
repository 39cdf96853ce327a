"""The twelve COCO numbers and per-class AP, of boxes and masks, on one process, without printing.

Shapes: N images, M detections of all images, C classes. All boxes are xyxy in pixels of the
original image. Numbers are fractions in [0, 1], or nan where there is no ground truth.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray

from redetr.data import DetectionDataset
from redetr.errors import DivergedError
from redetr.structures import DatasetDetections, StoredTarget
from redetr.truth import TruthObjects
from redetr.wording import counted

if TYPE_CHECKING:
    from redetr.panoptic_quality import PanopticResult

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


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations of N images. Build it once and evaluate as often as needed."""

    image_ids: NDArray[np.int64]  # [N], in the order of the data set
    # [N], the rank of each id in ascending order, which breaks ties in score as COCO does
    rank: NDArray[np.int64]
    class_names: tuple[str, ...]  # C names
    objects: NDArray[np.int64]  # [C], how many each class has, crowds not counted
    annotations: hotcoco.COCO  # of images numbered by rank, of categories numbered by label
    image_sizes: NDArray[np.int64] | None = None  # as in `TruthObjects`: None without masks
    why_no_masks: str = ""  # as in `TruthObjects`

    @classmethod
    def from_dataset(cls, dataset: DetectionDataset) -> "GroundTruth":
        """The annotations of all images of a data set, in its order; reads no image."""
        return cls.from_objects(TruthObjects.from_dataset(dataset))

    @classmethod
    def from_targets(
        cls, targets: Iterable[StoredTarget], class_names: Sequence[str]
    ) -> "GroundTruth":
        """The annotations in `targets`, in their order."""
        return cls.from_objects(TruthObjects.from_targets(targets, class_names))

    @classmethod
    def from_objects(cls, objects: TruthObjects) -> "GroundTruth":
        """The annotations of these objects."""
        ids = objects.image_ids
        rank = np.empty_like(ids)
        rank[ids.argsort(kind="stable")] = np.arange(len(ids))
        annotations = hotcoco.COCO.from_arrays(
            [{"id": number} for number in range(len(ids))],
            [{"id": label, "name": name} for label, name in enumerate(objects.class_names)],
            rank[objects.image],
            objects.labels,
            _xyxy_to_xywh(objects.boxes.astype(np.float64)),
            area=objects.area.astype(np.float64),
            iscrowd=objects.iscrowd,
            segmentation=segmentation(objects.masks, objects.image, objects.image_sizes),
        )
        return cls(
            image_ids=ids,
            rank=rank,
            class_names=objects.class_names,
            objects=objects.counts(),
            annotations=annotations,
            image_sizes=objects.image_sizes,
            why_no_masks=objects.why_no_masks,
        )


Measured = Literal["bbox", "segm"]  # overlaps of boxes or of masks, in COCO's words

DEFAULT_THRESHOLD = 0.5  # the smallest score shown, where no better one was measured
_SCORE_STEPS = 100
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # sizes of objects
_BEST_1, _BEST_10, _BEST_100 = range(3)  # detections of a class in an image


class Tables(NamedTuple):
    """The results of an evaluation of C classes; -1 where there is no object."""

    # [10, 101, C, 4], at each IoU threshold, recall level and size
    precision: NDArray[np.float64]
    # [10, C, 4, 3], at each IoU threshold, size and number of detections
    recall: NDArray[np.float64]
    # [2, 100], all detections, and those that are correct at an IoU of 0.5, by their score in
    # steps of 0.01; detections in crowds are not counted
    by_score: NDArray[np.int64]


@dataclass(frozen=True)
class CocoResult:
    """COCO's numbers as fractions; nan where the ground truth has no box of that class or size."""

    metrics: dict[str, float]  # the names of METRIC_NAMES
    per_class: dict[str, float]  # AP by class name; names that occur twice get " (label)" appended
    per_class_ap50: dict[str, float] = field(default_factory=dict)
    # how many objects each class has, by its name, crowds not counted
    objects: dict[str, int] = field(default_factory=dict)
    # of the whole data set, where they were asked for
    losses: dict[str, float] = field(default_factory=dict)
    # the smallest score to show, in steps of 0.01: the one with the best F1 over all classes at an
    # IoU of 0.5; None if no detection is correct
    threshold: float | None = None
    # the same numbers from overlaps of masks, where the model and all objects have them
    masks: "CocoResult | None" = None
    why_no_masks: str = ""  # why a model with masks was measured only by its boxes
    panoptic: "PanopticResult | None" = None  # where model and data are panoptic

    @property
    def ap(self) -> float:
        """Mean over classes and the IoU thresholds 0.50, 0.55 ... 0.95."""
        return self.metrics["AP"]

    @property
    def ap50(self) -> float:
        """AP at an IoU of 0.5."""
        return self.metrics["AP50"]

    def to_dict(self) -> dict[str, Any]:
        """The same ready for JSON: None instead of nan.

        The twelve numbers, `threshold`, losses with the prefix `val_`, and of each class
        `per_class` (AP), `per_class_AP50` and `objects`; where masks were measured, `masks` with
        their twelve numbers, `per_class` and `per_class_AP50`; where they were not, although the
        model has some, `why_no_masks`; and where it was measured, `panoptic`, as
        `PanopticResult.to_dict` gives it.
        """
        further: dict[str, Any] = {}
        if self.why_no_masks:
            further["why_no_masks"] = self.why_no_masks
        if self.panoptic is not None:
            further["panoptic"] = self.panoptic.to_dict()
        if self.masks is not None:
            further["masks"] = {
                **_without_nan(self.masks.metrics),
                "per_class": _without_nan(self.masks.per_class),
                "per_class_AP50": _without_nan(self.masks.per_class_ap50),
            }
        losses = {f"val_{name}": round(value, 6) for name, value in self.losses.items()}
        return {
            **_without_nan(self.metrics),
            "threshold": self.threshold,
            **losses,
            "per_class": _without_nan(self.per_class),
            "per_class_AP50": _without_nan(self.per_class_ap50),
            "objects": self.objects,
            **further,
        }


def coco_metrics(truth: GroundTruth, detections: DatasetDetections) -> CocoResult:
    """The numbers of COCO's evaluation: in each image the best 100 detections of a class count.

    Masks are measured where both sides have them. Raises DivergedError for a score or box that is
    not finite, ValueError for an image or label that `truth` does not have.
    """
    result = coco_result(truth, coco_evaluation(truth, detections))
    return replace(result, masks=mask_metrics(truth, detections))


def mask_metrics(truth: GroundTruth, detections: DatasetDetections) -> CocoResult | None:
    """The numbers from overlaps of masks, None unless both sides have masks; else as
    `coco_metrics`."""
    evaluation = mask_evaluation(truth, detections)
    return None if evaluation is None else coco_result(truth, evaluation)


def mask_evaluation(truth: GroundTruth, detections: DatasetDetections) -> hotcoco.COCOeval | None:
    """The evaluation of masks by `coco_evaluation`, None unless both sides have masks."""
    if truth.image_sizes is None or detections.masks is None:
        return None
    return coco_evaluation(truth, detections, "segm")


def coco_evaluation(
    truth: GroundTruth, detections: DatasetDetections, measured: Measured = "bbox"
) -> hotcoco.COCOeval:
    """hotcoco's evaluation of detections; errors as in `coco_metrics`.

    The ids of its images are those in `truth.rank`, those of its categories are labels. Detections
    and annotations have ids from 1, in the order in which they were given. "segm" compares masks,
    which both sides must have.
    """
    evaluation = _prepared(truth, detections, measured)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def coco_result(truth: GroundTruth, evaluation: hotcoco.COCOeval) -> CocoResult:
    """The numbers of an evaluation by `coco_evaluation`."""
    return result_of_tables(truth.class_names, truth.objects, tables_of(evaluation))


def tables_of(evaluation: hotcoco.COCOeval) -> Tables:
    """The results of an evaluation by `coco_evaluation`, class by class."""
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][..., -1]  # of the best 100
    recall = evaluation.eval["recall"]
    calibration = evaluation.calibration(n_bins=_SCORE_STEPS, iou_threshold=0.5)
    bins = calibration["bins"]
    counts = np.array([row["count"] for row in bins], np.int64)
    shares_of_correct = np.array([row["avg_accuracy"] for row in bins])
    correct = np.rint(counts * shares_of_correct).astype(np.int64)
    by_score = np.stack([counts, correct])
    return Tables(precision, recall, by_score)


def tables_without_objects(num_classes: int, scores: NDArray[np.floating]) -> Tables:
    """The tables of classes of which there is no object, and of wrong detections with `scores`."""
    scores = scores.astype(np.float64)  # as hotcoco computes; ranks send each other fp64
    steps = np.minimum((scores * _SCORE_STEPS).astype(np.int64), _SCORE_STEPS - 1)
    counts = np.bincount(steps, minlength=_SCORE_STEPS)
    return Tables(
        precision=np.full((10, 101, num_classes, 4), -1.0),
        recall=np.full((10, num_classes, 4, 3), -1.0),
        by_score=np.stack([counts, np.zeros_like(counts)]),
    )


def best_threshold(by_score: NDArray[np.int64], num_objects: int) -> float | None:
    """The score, in steps of 0.01, from which on detections have the best F1; the highest of equal
    ones. None if no detection is correct.

    `by_score` is that of `Tables`. F1 is the harmonic mean of precision and recall:
    2 correct / (detections + objects).
    """
    highest_first = by_score[:, ::-1]
    at_least = highest_first.cumsum(axis=1)  # detections of that score or more
    detections, correct = at_least[:, :-1]  # a threshold of 0 would show everything
    if not correct.any():
        return None
    f1 = 2 * correct / (detections + num_objects)
    best = int(f1.argmax())  # the first of equal ones, so the highest threshold
    return (_SCORE_STEPS - 1 - best) / _SCORE_STEPS


def result_of_tables(
    class_names: tuple[str, ...], objects: NDArray[np.int64], tables: Tables
) -> CocoResult:
    """The numbers of the classes with these names and numbers of objects."""
    all_precisions, recall, by_score = tables
    precision = all_precisions[..., _ALL]  # [10, 101, C]
    at_0_50, at_0_75 = precision[0], precision[5]  # [101, C]
    values = {
        "AP": precision,
        "AP50": at_0_50,
        "AP75": at_0_75,
        "APs": all_precisions[..., _SMALL],
        "APm": all_precisions[..., _MEDIUM],
        "APl": all_precisions[..., _LARGE],
        "AR1": recall[..., _ALL, _BEST_1],
        "AR10": recall[..., _ALL, _BEST_10],
        "AR100": recall[..., _ALL, _BEST_100],
        "ARs": recall[..., _SMALL, _BEST_100],
        "ARm": recall[..., _MEDIUM, _BEST_100],
        "ARl": recall[..., _LARGE, _BEST_100],
    }
    metrics = {}
    for name in METRIC_NAMES:
        metrics[name] = _mean_of_known(values[name])
    has_no_truth = precision[0, 0] < 0  # COCO leaves such a class at -1 everywhere
    ap = np.where(has_no_truth, math.nan, precision.mean((0, 1)))
    ap50 = np.where(has_no_truth, math.nan, at_0_50.mean(0))
    names = distinct_names(class_names)
    return CocoResult(
        metrics=metrics,
        per_class=dict(zip(names, ap.tolist(), strict=True)),
        per_class_ap50=dict(zip(names, ap50.tolist(), strict=True)),
        objects=dict(zip(names, objects.tolist(), strict=True)),
        threshold=best_threshold(by_score, int(objects.sum())),
    )


def distinct_names(names: tuple[str, ...]) -> list[str]:
    """The names of classes; those that occur twice get " (label)" appended, more than once if the
    result is the name of another class."""
    counts = Counter(names)
    taken = {name for name, count in counts.items() if count == 1}
    distinct = []
    for label, name in enumerate(names):
        distinct_name = name
        if counts[name] > 1:
            distinct_name += f" ({label})"
            while distinct_name in taken:
                distinct_name += f" ({label})"
        taken.add(distinct_name)
        distinct.append(distinct_name)
    return distinct


def ap_by_area(
    truth: GroundTruth, edges: Sequence[float], detections: DatasetDetections
) -> list[float]:
    """AP of the objects between each two of `edges`, areas in square pixels; nan where there are
    none.

    An object whose area equals an edge counts below it; at the first edge, above it. As in COCO,
    unmatched detections of another size do not count. Errors as in `coco_metrics`.
    """
    areas: list[list[float]] = []
    for low, high in pairwise(edges):
        least = math.nextafter(low, math.inf) if areas else low
        areas.append([least, high])
    evaluation = _prepared(truth, detections)
    if areas:
        evaluation.params.area_rng = areas
        evaluation.params.area_rng_lbl = [f"{low:g} to {high:g}" for low, high in areas]
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][..., -1]  # best 100
    averages = []
    for table in np.moveaxis(precision, 3, 0):
        averages.append(_mean_of_known(table))
    return averages


def _mean_of_known(values: NDArray[np.float64]) -> float:
    """The mean without the -1 that COCO writes where there is no object; nan if nothing is left."""
    known = values[values >= 0]
    return float(known.mean()) if len(known) else math.nan


def _prepared(
    truth: GroundTruth, detections: DatasetDetections, measured: Measured = "bbox"
) -> hotcoco.COCOeval:
    """hotcoco's evaluation before it computes anything; the detections are checked."""
    check_detections(truth.image_ids, len(truth.class_names), detections)
    # The columns are COCO's: image, left, top, width, height, score, category. They are filled one
    # by one: stacking columns of several types takes three times as long.
    rows = np.empty((len(detections), 7))
    rows[:, 0] = truth.rank[detections.image_index]
    rows[:, 1:3] = detections.boxes[:, :2]
    np.subtract(detections.boxes[:, 2:], rows[:, 1:3], out=rows[:, 3:5])  # in fp64, so exact
    rows[:, 5] = detections.scores
    rows[:, 6] = detections.labels
    if measured == "bbox":
        return hotcoco.COCOeval(truth.annotations, truth.annotations.load_res(rows), "bbox")
    assert detections.masks is not None
    masks = segmentation(detections.masks, detections.image_index, truth.image_sizes)
    assert masks is not None
    results = truth.annotations.load_res(rows, segmentation=masks)
    if masks:
        # As from a file of COCO results without boxes: of small, medium or large area by the mask.
        ids = np.arange(1, len(masks) + 1)
        results.update_anns(ids=ids, area=hotcoco.mask.area(masks).astype(np.float64))
    return hotcoco.COCOeval(truth.annotations, results, "segm")


def segmentation(
    masks: list[bytes] | None, image: NDArray[np.int64], image_sizes: NDArray[np.int64] | None
) -> list[Any] | None:
    """The masks as COCO writes them; `image` is the index of each one's image."""
    if masks is None or image_sizes is None:
        return None
    sizes = image_sizes.tolist()
    rles: list[Any] = []
    for counts, index in zip(masks, image.tolist(), strict=True):
        rles.append({"size": sizes[index], "counts": counts})
    return rles


def check_detections(
    image_ids: NDArray[np.int64], num_classes: int, detections: DatasetDetections
) -> None:
    """Raises the errors of `coco_metrics`; `image_ids` are those of the data set."""
    index = detections.image_index
    labels = detections.labels
    if ((index < 0) | (index >= len(image_ids))).any():
        raise ValueError(f"an image index is outside 0 to {len(image_ids) - 1}")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"a label is outside 0 to {num_classes - 1}")
    broken = ~(np.isfinite(detections.scores) & np.isfinite(detections.boxes).all(1))
    if broken.any():
        first = int(index[broken.argmax()])
        share = f"{broken.sum():,} of {counted(len(detections), 'detection')}"
        raise DivergedError(
            f"a score or box is not finite in {share} (first in image {image_ids[first]}): the "
            "model has diverged"
        )


def _xyxy_to_xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes `[M, 4]` as (left, top, width, height); float64, so that the subtraction is exact."""
    boxes = boxes.reshape(-1, 4)
    left_top = boxes[:, :2]
    width_height = boxes[:, 2:] - left_top
    return np.concatenate([left_top, width_height], axis=1)


def _without_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
