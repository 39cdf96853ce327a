"""The numbers of a report on one or two checkpoints, as plain values for JSON.

Fractions are in [0, 1]. None means that there is nothing to measure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCOeval

from redetr.data import DetectionDataset
from redetr.errors import InputError
from redetr.metrics import (
    DEFAULT_THRESHOLD,
    METRIC_NAMES,
    CocoResult,
    GroundTruth,
    ap_by_area,
    coco_evaluation,
    coco_result,
    mask_metrics,
)
from redetr.pages.curves import read_metrics
from redetr.panoptic_quality import PanopticResult
from redetr.report.advice import longer_training
from redetr.report.analysis import (
    Bools,
    Floats,
    Ints,
    Judgement,
    calibration,
    confusion,
    exact_best_threshold,
    image_errors,
    judge,
    mistakes,
    threshold_curve,
)
from redetr.report.comparison import Difference
from redetr.report.masks import MaskPairs, mask_numbers, paired_masks
from redetr.structures import DatasetDetections, StoredTarget
from redetr.truth import TruthObjects

_THRESHOLDS = np.linspace(0, 1, 101)  # of the curves
_MOST_IMAGES = 12  # shown

_LEAST_SCORE = 0.05  # for calibration: the many detections below would dominate
_COCO_SIZES = ("small", "medium", "large")
_COCO_EDGES = (32**2, 96**2)  # areas at which the next size begins, px squared
_SIZES = 4  # groups of object size, each of about as many objects
_MOST_POINTS = 400  # of a training curve


@dataclass(frozen=True, eq=False)
class Report:
    """The numbers for `report.json`, and the data for drawing the images."""

    numbers: dict[str, Any]
    dataset: DetectionDataset
    judged: list[Judgement]  # of each checkpoint
    images: list[int]  # indices of the images worth looking at, worst first
    mask_pairs: list[MaskPairs | None]  # of each checkpoint that has masks, where the data has some


def make_report(
    dataset: DetectionDataset,
    checkpoints: Sequence[tuple[str, DatasetDetections]],
    differences: Mapping[str, Difference] | None = None,
    qualities: Sequence[PanopticResult | None] = (),
    why_no_masks: Sequence[str] = (),
) -> Report:
    """The report on one or two checkpoints.

    Each checkpoint is given by its path and its detections on `dataset`, those of all ranks.
    `differences` come from `ap_differences`; those of masks have names such as "mask AP".
    `qualities` are panoptic qualities, if they were measured, and `why_no_masks` says why the masks
    of each were not; empty if they were, or if it has none.
    """
    targets = [dataset.objects(i) for i in range(len(dataset))]
    objects = TruthObjects.from_dataset(dataset)
    truth = GroundTruth.from_objects(objects)
    judged = []
    described = []
    errors = []
    pairs = []
    qualities = qualities or [None] * len(checkpoints)
    reasons = why_no_masks or [""] * len(checkpoints)
    for (path, detections), quality, reason in zip(checkpoints, qualities, reasons, strict=True):
        evaluation = coco_evaluation(truth, detections)
        judgement = judge(targets, evaluation, detections)
        result = coco_result(truth, evaluation)
        threshold = DEFAULT_THRESHOLD if result.threshold is None else result.threshold
        judged.append(judgement)
        errors.append(image_errors(judgement, threshold, len(dataset)))
        numbers_of_masks, pairs_of_masks = _masks(objects, truth, detections, judgement, threshold)
        pairs.append(pairs_of_masks)
        described.append(
            {
                "checkpoint": path,
                "threshold": threshold,
                **_detection_numbers(judgement, truth, evaluation, result, threshold),
                "by_size": _by_size(targets, truth, detections),
                "by_objects_in_image": _by_objects_in_image(targets, truth, evaluation),
                "masks": numbers_of_masks,
                "why_no_masks": reason,
                "panoptic": None if quality is None else quality.to_dict(),
                **_training(Path(path)),
            }
        )
    images = _worst_images(errors)
    numbers = _numbers(dataset, targets, judged[0], described, errors, images)
    if differences is not None:
        numbers["differences"] = differences
    return Report(_plain(numbers), dataset, judged, images, pairs)


def _numbers(
    dataset: DetectionDataset,
    targets: Sequence[StoredTarget],
    judged: Judgement,
    described: list[dict[str, Any]],
    errors: list[tuple[Ints, Ints]],
    images: list[int],
) -> dict[str, Any]:
    """The numbers of the data, of the checkpoints, which are `described`, and of these images."""
    class_names = list(described[0]["per_class"])
    return {
        "data": _data_numbers(dataset, targets, judged, class_names),
        "checkpoints": described,
        "images": [_image_numbers(dataset, targets, errors, index) for index in images],
    }


def _masks(
    objects: TruthObjects,
    truth: GroundTruth,
    detections: DatasetDetections,
    judged: Judgement,
    threshold: float,
) -> tuple[dict[str, Any] | None, MaskPairs | None]:
    """The numbers of masks, and the pairs that they describe; None for both unless detections and
    all objects have masks."""
    result = mask_metrics(truth, detections)
    if result is None:
        return None, None
    pairs = paired_masks(judged, objects, threshold)
    return mask_numbers(result, pairs, judged), pairs


def _data_numbers(
    dataset: DetectionDataset,
    targets: Sequence[StoredTarget],
    judged: Judgement,
    class_names: list[str],
) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "images": len(dataset),
        "objects": len(judged.objects),
        "crowds": len(judged.crowds),
        "sizes": _size_counts(targets),
        "classes": class_names,
    }


def _detection_numbers(
    judged: Judgement,
    truth: GroundTruth,
    evaluation: COCOeval,
    result: CocoResult,
    threshold: float,
) -> dict[str, Any]:
    precision = _precision_at_recall(evaluation)
    has_objects = truth.objects > 0
    if has_objects.any():
        mean_precision = precision[has_objects].mean(axis=0)
    else:
        mean_precision = np.full(precision.shape[1], np.nan)
    num_objects = len(judged.objects)
    curves = _curves(judged.scores, judged.correct, num_objects, mean_precision)
    return {
        "metrics": {name: result.metrics[name] for name in METRIC_NAMES},
        "all": {"objects": num_objects, "AP": result.ap, **curves},
        "per_class": _per_class(judged, result, truth.objects, precision),
        "mistakes": mistakes(judged),
        "confusion": confusion(judged, threshold).tolist(),
        "calibration": calibration(judged.scores, judged.correct, _LEAST_SCORE),
    }


def _precision_at_recall(evaluation: COCOeval) -> Floats:
    """COCO's precision at an IoU of 0.5 over its recall levels, `[C, 101]`; NaN for classes without
    objects."""
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][0, :, :, 0, -1].T  # all sizes, best 100
    return np.where(precision < 0, np.nan, precision)


def _per_class(
    judged: Judgement, result: CocoResult, num_objects: Ints, precision: Floats
) -> dict[str, dict[str, Any]]:
    table = {}
    for label, (name, ap) in enumerate(result.per_class.items()):
        is_of_class = judged.detections.label == label
        scores = judged.scores[is_of_class]
        correct = judged.correct[is_of_class]
        curves = _curves(scores, correct, int(num_objects[label]), precision[label])
        table[name] = {"objects": num_objects[label], "AP": ap, **curves}
    return table


def _curves(
    scores: Floats, correct: Bools, num_objects: int, precision_at_recall: Floats
) -> dict[str, Any]:
    """AP50, the best threshold with its precision and recall, and three curves over recall and
    threshold."""
    precision, recall = threshold_curve(scores, correct, num_objects, _THRESHOLDS)
    return {
        "AP50": precision_at_recall.mean(),
        "best": _at_best_threshold(scores, correct, num_objects),
        "curves": {
            "precision_at_recall": precision_at_recall.round(4).tolist(),
            "precision": precision.round(4).tolist(),
            "recall": recall.round(4).tolist(),
        },
    }


def _at_best_threshold(scores: Floats, correct: Bools, num_objects: int) -> dict[str, float] | None:
    threshold = exact_best_threshold(scores, correct, num_objects)
    if threshold is None:
        return None
    curves = threshold_curve(scores, correct, num_objects, np.array([threshold]))
    precision, recall = (float(curve[0]) for curve in curves)
    f1 = 2 * precision * recall / (precision + recall)
    return {"threshold": threshold, "precision": precision, "recall": recall, "f1": f1}


def _object_areas(targets: Sequence[StoredTarget]) -> Floats:
    """The annotated areas of all objects, px squared."""
    return np.concatenate([[], *(target["area"][~target["iscrowd"]] for target in targets)])


def _size_counts(targets: Sequence[StoredTarget]) -> dict[str, int]:
    """The numbers of objects that are small, medium and large by COCO's definition."""
    groups = np.searchsorted(_COCO_EDGES, _object_areas(targets), side="right")
    counts = np.bincount(groups, minlength=len(_COCO_SIZES)).tolist()
    return dict(zip(_COCO_SIZES, counts, strict=True))


def _by_size(
    targets: Sequence[StoredTarget], truth: GroundTruth, detections: DatasetDetections
) -> list[dict[str, Any]]:
    """The AP of groups of objects by size."""
    areas = _object_areas(targets)
    if not len(areas):
        return []
    edges = np.unique(np.quantile(areas, np.linspace(0, 1, _SIZES + 1)))
    if len(edges) == 1:  # all objects are of one size
        edges = edges.repeat(2)
    group_of_object = np.searchsorted(edges[1:], areas)
    groups = []
    for i, ap in enumerate(ap_by_area(truth, edges.tolist(), detections)):
        group = {
            "from_px": edges[i] ** 0.5,
            "to_px": edges[i + 1] ** 0.5,
            "objects": np.count_nonzero(group_of_object == i),
            "AP": ap,
        }
        groups.append(group)
    return groups


def _by_objects_in_image(
    targets: Sequence[StoredTarget], truth: GroundTruth, evaluation: COCOeval
) -> list[dict[str, Any]]:
    """The AP of groups of images by the number of their objects: 1, 2 to 3, 4 to 7, and so on."""
    counts = np.array([np.count_nonzero(~target["iscrowd"]) for target in targets], np.int64)
    octaves = np.unique(np.log2(counts[counts > 0]).astype(int))
    groups = []
    for octave in octaves:
        images = np.flatnonzero((counts >= 2**octave) & (counts < 2 ** (octave + 1)))
        image_ids = truth.rank[images].tolist()
        ap = evaluation.slice_by({"group": image_ids})["group"]["AP"]
        group = {
            "from": counts[images].min(),
            "to": counts[images].max(),
            "images": len(images),
            "objects": counts[images].sum(),
            "AP": ap,
        }
        groups.append(group)
    return groups


def _worst_images(errors: list[tuple[Ints, Ints]]) -> list[int]:
    """The images with the most errors, or for two checkpoints, those whose numbers of errors differ
    most."""
    totals = [wrong + missed for wrong, missed in errors]
    if len(totals) == 1:
        weight = totals[0]
    else:
        weight = np.abs(totals[0] - totals[1])
    errors_of_all = np.sum(totals, axis=0)
    worst_first = np.lexsort((-errors_of_all, -weight))[:_MOST_IMAGES]
    return [index for index in worst_first.tolist() if weight[index] > 0]


def _image_numbers(
    dataset: DetectionDataset,
    targets: Sequence[StoredTarget],
    errors: list[tuple[Ints, Ints]],
    index: int,
) -> dict[str, Any]:
    counts = [{"wrong": wrong[index], "missed": missed[index]} for wrong, missed in errors]
    image_id = targets[index]["image_id"]
    return {"image_id": image_id, "name": dataset.image_name(index), "errors": counts}


def _training(checkpoint: Path) -> dict[str, Any]:
    """Loss and AP over the steps of the checkpoint's run, with advice on its length: "training";
    None if the checkpoint is not in the folder of a run, or if its log cannot be read, for the
    reason in "why_no_training"."""
    unknown: dict[str, Any] = {"training": None, "why_no_training": ""}
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if not (folder / "metrics.jsonl").is_file():
        return unknown
    steps = []
    evaluations = []
    try:
        metrics = read_metrics(folder)
    except InputError as error:  # the rest of the report does not need them
        return unknown | {"why_no_training": str(error)}
    for line in metrics:
        if line.get("loss") is not None:
            steps.append({"step": line["step"], "loss": line["loss"]})
        if line.get("AP") is not None:
            kept = ("step", "time_s", "AP", "AP50", "val_loss")
            evaluations.append({key: line.get(key) for key in kept})
    every = max(1, math.ceil(len(steps) / _MOST_POINTS))
    longer = longer_training(folder, metrics)
    training = {"steps": steps[::every], "evaluations": evaluations, "longer": longer}
    return {"training": training, "why_no_training": ""}


def _plain(value: Any) -> Any:
    """The same value with Python's numbers instead of NumPy's, and None instead of NaN and
    infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
