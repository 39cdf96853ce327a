"""The correct and wrong detections of a detector at an IoU of 0.5, and how much AP each kind of
mistake costs.

Matching, AP, the cost of mistakes and confusions come from hotcoco. This module adds what hotcoco
does not report: the kind of each detection, and precision and recall over thresholds.

Shapes: N images, M detections that count, T objects (crowds are not objects), C classes. Boxes are
xyxy in pixels of the original image.

Source: Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, for the kinds of mistakes. Deviations, all to agree with COCO's evaluation: 100
detections count per class and image, not per image; detections in a crowd are not mistakes; the
mean is over classes with objects only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from hotcoco import COCOeval
from hotcoco.metrics import calibration_curve, calibration_error
from hotcoco.primitives import bbox_iou
from numpy.typing import NDArray

from redetr.metrics import GroundTruth, coco_evaluation
from redetr.structures import DatasetDetections, StoredTarget

KINDS = ("correct", "class", "localization", "both", "duplicate", "background")

_CORRECT, _CLASS, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(len(KINDS))
_MATCH_IOU = 0.5  # a detection finds an object at this IoU or more
_BACKGROUND_IOU = 0.1  # a detection lies on background up to this IoU
_TIDE_NAMES = {
    "class": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of many images, one after the other."""

    image: Ints  # index of the image in the data set
    label: Ints  # in [0, C)
    xyxy: Floats

    def __len__(self) -> int:
        return len(self.image)

    @property
    def xywh(self) -> Floats:
        """The boxes as (left, top, width, height)."""
        left_top = self.xyxy[:, :2]
        right_bottom = self.xyxy[:, 2:]
        size = right_bottom - left_top
        return np.concatenate([left_top, size], axis=1)

    def take(self, which: NDArray) -> "Boxes":
        """The boxes at these indices, or those where this mask is True."""
        return Boxes(self.image[which], self.label[which], self.xyxy[which])


@dataclass(frozen=True, eq=False)
class Judgement:
    """Every detection that counts, best score first, with its kind, and every object."""

    detections: Boxes  # M; those in crowds, and more than 100 per class and image, are left out
    scores: Floats  # [M]
    kinds: Ints  # [M] index into KINDS
    objects: Boxes  # T
    finder: Ints  # [T] index of the detection that found the object, -1 for none
    crowds: Boxes
    masks: list[bytes] | None  # M, of the detections, as in `DatasetDetections`
    evaluation: COCOeval  # of these detections and objects, as if there were no crowds

    @cached_property
    def correct(self) -> Bools:
        """Bool `[M]`, whether the detection is the first to find an object."""
        return self.kinds == _CORRECT


def judge(
    targets: Sequence[StoredTarget], evaluation: COCOeval, all_detections: DatasetDetections
) -> Judgement:
    """The kind of each detection on the images of `targets`, by their boxes.

    `evaluation` is the result of `metrics.coco_evaluation` for the same images and detections.
    """
    annotations, is_crowd = _annotations(targets)
    objects = annotations.take(~is_crowd)
    crowds = annotations.take(is_crowd)

    diagnostics = evaluation.image_diagnostics(iou_thr=_MATCH_IOU)
    counted = _rows(diagnostics["dt_status"])  # without those in crowds and beyond 100
    counted.sort()
    best_first = np.argsort(-all_detections.scores[counted], kind="stable")
    rows = counted[best_first]
    kept = all_detections.keep(rows)
    detections = Boxes(kept.image_index, kept.labels, kept.boxes.astype(np.float64))

    matches = diagnostics["dt_match"]
    number_of_object = np.cumsum(~is_crowd) - 1
    object_of = np.full(len(all_detections), -1)
    object_of[_rows(matches)] = number_of_object[_rows(matches.values())]
    object_of = object_of[rows]
    correct = object_of >= 0
    finder = np.full(len(objects), -1)
    finder[object_of[correct]] = np.flatnonzero(correct)

    kinds = _kinds(detections, objects, correct, len(targets))
    num_classes = len(evaluation.params.cat_ids)
    scores = kept.scores.astype(np.float64)
    without_crowds = _evaluation_without_crowds(targets, num_classes, detections, scores)
    return Judgement(
        detections=detections,
        scores=scores,
        kinds=kinds,
        objects=objects,
        finder=finder,
        crowds=crowds,
        masks=kept.masks,
        evaluation=without_crowds,
    )


def mistakes(judged: Judgement) -> dict[str, dict[str, Any]]:
    """The number of mistakes of each kind, and the AP50 (a fraction) that fixing them would gain.

    To fix a mistake of class or localization, the detection with the best score is corrected if its
    object was not found, and other detections of that object are removed. All other wrong
    detections are removed, and missed objects are not counted (a class without any objects left
    keeps an AP of 0).
    """
    tide = judged.evaluation.tide_errors(_MATCH_IOU, _BACKGROUND_IOU)
    table = {}
    for kind, tide_name in _TIDE_NAMES.items():
        # A negative value is due to rounding, or to an object of another class that loses a
        # detection: no gain.
        gain = max(0.0, tide["delta_ap"][tide_name])
        table[kind] = {"count": tide["counts"][tide_name], "ap50": gain}
    return table


def confusion(judged: Judgement, threshold: float) -> Ints:
    """Counts `[C + 1, C + 1]`: rows are objects, columns what they were taken for.

    The last row and column are background. Each detection with a score of `threshold` or more, best
    score first, is assigned to the object that it overlaps most, whatever its class.
    """
    table = judged.evaluation.confusion_matrix(
        iou_thr=_MATCH_IOU,
        max_det=max(1, len(judged.detections)),  # the default is 100 per image, whatever the class
        min_score=threshold,
    )
    return table["matrix"].astype(np.int64)


def calibration(
    scores: Floats, correct: Bools, least_score: float, num_bins: int = 10
) -> dict[str, Any]:
    """How far scores of `least_score` or more are from the share of correct detections.

    `error` is the expected calibration error (None without detections). `bins` has the number of
    detections, the mean score and the share of correct detections for each bin of scores that is
    not empty.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    counted = scores >= least_score
    scores, correct = scores[counted], correct[counted]
    bins = []
    for row in calibration_curve(scores, correct, num_bins):
        if row["count"] == 0:
            continue
        bins.append(
            {
                "from": row["bin_lower"],
                "to": row["bin_upper"],
                "count": row["count"],
                "score": row["avg_confidence"],
                "correct": row["avg_accuracy"],
            }
        )
    expected_error, _ = calibration_error(scores, correct, num_bins)
    error = expected_error if len(scores) else None
    return {"error": error, "least_score": least_score, "bins": bins}


def threshold_curve(
    scores: Floats, correct: Bools, num_objects: int, thresholds: Floats
) -> tuple[Floats, Floats]:
    """Precision and recall of the detections that score each threshold or more.

    Precision is NaN at thresholds that no detection reaches, and recall is NaN without objects.
    Detections must be sorted, best score first.
    """
    counts = np.searchsorted(-scores, -thresholds, side="right")
    hits = np.append(0, np.cumsum(correct))[counts]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = hits / counts
        recall = hits / np.float64(num_objects)
    return precision, recall


def exact_best_threshold(scores: Floats, correct: Bools, num_objects: int) -> float | None:
    """The score threshold with the best F1, not in steps as that of an evaluation; the highest of
    several.

    None if no detection is correct. F1 is the harmonic mean of precision and recall: 2 correct /
    (detections + objects).
    """
    if not correct.any():
        return None
    hits = np.cumsum(correct)
    detections = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (detections + num_objects)
    same_as_next = scores[1:] == scores[:-1]
    f1[np.flatnonzero(same_as_next)] = 0.0  # a threshold keeps all detections with the same score
    return float(scores[f1.argmax()])


def image_errors(judged: Judgement, threshold: float, num_images: int) -> tuple[Ints, Ints]:
    """For each image, `[N]`, the number of wrong detections with a score of `threshold` or more,
    and the number of objects that no such detection found."""
    shown = judged.scores >= threshold
    wrong = judged.detections.image[shown & ~judged.correct]
    is_found = np.append(shown, False)[judged.finder]  # -1 takes the False
    missed = judged.objects.image[~is_found]
    wrong_counts = np.bincount(wrong, minlength=num_images)
    missed_counts = np.bincount(missed, minlength=num_images)
    return wrong_counts, missed_counts


def _annotations(targets: Sequence[StoredTarget]) -> tuple[Boxes, Bools]:
    """All annotations, and which of them are crowds."""
    images = [np.zeros(0, np.int64)]
    labels = [np.zeros(0, np.int64)]
    crowds = [np.zeros(0, bool)]
    boxes = [np.zeros((0, 4))]
    for index, target in enumerate(targets):
        images.append(np.full(len(target["labels"]), index))
        labels.append(target["labels"].numpy())
        crowds.append(target["iscrowd"].numpy())
        boxes.append(target["boxes"].numpy())
    annotations = Boxes(np.concatenate(images), np.concatenate(labels), np.concatenate(boxes))
    return annotations, np.concatenate(crowds)


def _evaluation_without_crowds(
    targets: Sequence[StoredTarget], num_classes: int, detections: Boxes, scores: Floats
) -> COCOeval:
    """hotcoco's evaluation of the detections that count, without crowds.

    hotcoco's analysis of mistakes and confusions treats crowds as background, and detections in
    them as mistakes.
    """
    objects = [_without_crowds(target) for target in targets]
    class_names = [str(label) for label in range(num_classes)]
    truth = GroundTruth.from_targets(objects, class_names)
    counted = DatasetDetections(
        image_index=detections.image,
        labels=detections.label,
        scores=scores,
        boxes=detections.xyxy,
    )
    return coco_evaluation(truth, counted)


def _without_crowds(target: StoredTarget) -> StoredTarget:
    is_object = ~target["iscrowd"]
    kept = target.copy()
    kept.pop("masks", None)
    for key in ("boxes", "labels", "iscrowd", "area"):
        kept[key] = target[key][is_object]
    return kept


def _kinds(detections: Boxes, objects: Boxes, correct: Bools, num_images: int) -> Ints:
    """The index into KINDS for each detection. If several kinds apply, the last one that is set
    here counts."""
    same_class, other_class = _best_overlaps(detections, objects, num_images)
    poor_box = (same_class >= _BACKGROUND_IOU) & (same_class <= _MATCH_IOU)
    nearest = np.maximum(same_class, other_class)
    kinds = np.full(len(detections), _BOTH)
    kinds[nearest <= _BACKGROUND_IOU] = _BACKGROUND
    kinds[same_class > _MATCH_IOU] = _DUPLICATE
    kinds[other_class >= _MATCH_IOU] = _CLASS
    kinds[poor_box] = _LOCALIZATION
    kinds[correct] = _CORRECT
    return kinds


def _best_overlaps(detections: Boxes, objects: Boxes, num_images: int) -> tuple[Floats, Floats]:
    """For each detection, `[M]`, the largest IoU with an object of the same class, and with an
    object of another class."""
    same_class = np.zeros(len(detections))
    other_class = np.zeros(len(detections))
    detection_rows = _rows_by_image(detections, num_images)
    object_rows = _rows_by_image(objects, num_images)
    for mine, theirs in zip(detection_rows, object_rows, strict=True):
        if len(mine) == 0 or len(theirs) == 0:
            continue
        detected = detections.take(mine)
        annotated = objects.take(theirs)
        is_crowd = np.zeros(len(theirs), bool)
        iou = bbox_iou(detected.xywh, annotated.xywh, is_crowd)
        same = detected.label[:, None] == annotated.label
        same_class[mine] = np.where(same, iou, 0.0).max(axis=1)
        other_class[mine] = np.where(same, 0.0, iou).max(axis=1)
    return same_class, other_class


def _rows_by_image(boxes: Boxes, num_images: int) -> list[Ints]:
    """The indices of the boxes in each image."""
    order = np.argsort(boxes.image, kind="stable")
    edges = np.searchsorted(boxes.image[order], np.arange(1, num_images))
    return np.split(order, edges)


def _rows(ids: Any) -> Ints:
    """The rows of annotations or detections with these ids, which hotcoco numbers from 1."""
    return np.fromiter(ids, np.int64, len(ids)) - 1
