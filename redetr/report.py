"""What is known about the detections of one or two checkpoints on a data set, as plain numbers ready for JSON.

Fractions are in [0, 1]; None stands where there is nothing to measure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data import DetectionDataset
from redetr.error_analysis import (
    RECALL_LEVELS,
    Bools,
    Floats,
    Judgement,
    best_threshold,
    calibration,
    confusion,
    image_errors,
    judge,
    mistakes,
    precision_at_recall,
    threshold_curve,
    working_threshold,
)
from redetr.metrics import METRIC_NAMES, CocoResult, GroundTruth, ap_by_area, coco_metrics
from redetr.pages.curves import Metrics, read_metrics
from redetr.structures import Target

THRESHOLDS = np.linspace(0, 1, 101)  # of the curves
IMAGES = 12  # shown in pictures

_LEAST_SCORE = 0.05  # of calibration: the mass of detections below, which nobody looks at, would drown the others
_SIZES = 4  # groups of object size, of about as many objects each
_MOST_POINTS = 400  # of a training curve

Found = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Report:
    """Numbers for `report.json`, and what pictures need besides."""

    numbers: dict[str, Any]
    dataset: DetectionDataset
    judged: list[Judgement]  # of each checkpoint
    images: list[int]  # places of the images worth looking at, worst first


def make_report(dataset: DetectionDataset, checkpoints: Sequence[tuple[str, Found]]) -> Report:
    """The report of one or two checkpoints, each given by its path and what `detect_classes` found on `dataset`."""
    targets = [dataset.target(i) for i in range(len(dataset))]
    truth = GroundTruth.from_targets(targets, dataset.class_names)
    judged, described, errors = [], [], []
    for name, found in checkpoints:
        one = judge(targets, len(dataset.class_names), **found)
        result = coco_metrics(truth, **found)
        threshold = working_threshold(one)
        errors.append(np.stack(image_errors(one, threshold, len(dataset))))
        judged.append(one)
        described.append({"checkpoint": name, "threshold": threshold, **_numbers(one, result, threshold),
                          **_groups(targets, truth, found), "training": _training(Path(name))})  # fmt: skip
    images = _telling(errors)
    one = judged[0]
    about = {"name": dataset.name, "images": len(dataset), "objects": len(one.objects), "crowds": len(one.crowds),
             "classes": list(described[0]["per_class"])}  # fmt: skip
    shown = [
        {"image_id": targets[i]["image_id"],
         "errors": [{"wrong": int(wrong[i]), "missed": int(missed[i])} for wrong, missed in errors]}
        for i in images
    ]  # fmt: skip
    return Report(
        _plain({"data": about, "checkpoints": described, "images": shown}), dataset, judged, images
    )


def _numbers(judged: Judgement, result: CocoResult, threshold: float) -> dict[str, Any]:
    """All that does not ask for another evaluation."""
    labels, correct, scores = judged.detections.label, judged.correct, judged.scores
    objects = np.bincount(judged.objects.label, minlength=judged.num_classes)
    precision = precision_at_recall(labels, correct, objects)
    per_class = {}
    for label, (name, ap) in enumerate(result.per_class.items()):
        own = labels == label
        curves = _curves(scores[own], correct[own], int(objects[label]), precision[label])
        per_class[name] = {"objects": objects[label], "AP": ap, **curves}
    there = precision[objects > 0]
    mean = there.mean(0) if len(there) else np.full(len(RECALL_LEVELS), np.nan)
    return {
        "metrics": {name: result.metrics[name] for name in METRIC_NAMES},
        "all": {
            "objects": len(judged.objects),
            "AP": result.ap,
            **_curves(scores, correct, objects.sum(), mean),
        },
        "per_class": per_class,
        "mistakes": mistakes(judged),
        "confusion": confusion(judged, threshold).tolist(),
        "calibration": calibration(scores, correct, _LEAST_SCORE),
    }


def _curves(
    scores: Floats, correct: Bools, objects: int, precision_at_recall: Floats
) -> dict[str, Any]:
    """AP50, the best threshold with what it gives, and three curves over RECALL_LEVELS and THRESHOLDS."""
    best = best_threshold(scores, correct, objects)
    chosen = None
    if best is not None:
        p, r = (
            float(value[0]) for value in threshold_curve(scores, correct, objects, np.array([best]))
        )
        chosen = {"threshold": best, "precision": p, "recall": r, "f1": 2 * p * r / (p + r)}
    precision, recall = threshold_curve(scores, correct, objects, THRESHOLDS)
    curves = {"precision_at_recall": precision_at_recall, "precision": precision, "recall": recall}
    return {"AP50": precision_at_recall.mean(), "best": chosen,
            "curves": {name: curve.round(4).tolist() for name, curve in curves.items()}}  # fmt: skip


def _groups(targets: Sequence[Target], truth: GroundTruth, found: Found) -> dict[str, Any]:
    """AP of objects by their size, and of images by how many objects they show; crowds do not count."""
    areas = np.concatenate([[], *(target["area"][~target["iscrowd"]] for target in targets)])
    edges = (
        np.unique(np.quantile(areas, np.linspace(0, 1, _SIZES + 1))) if len(areas) else np.zeros(0)
    )
    group = np.searchsorted(edges[1:], areas)
    sizes = [
        {"from_px": low**0.5, "to_px": high**0.5, "objects": (group == i).sum(), "AP": ap}
        for i, (low, high, ap) in enumerate(zip(edges, edges[1:], ap_by_area(truth, edges.tolist(), **found),
                                                strict=False))
    ]  # fmt: skip
    counts = np.array([int((~target["iscrowd"]).sum()) for target in targets], np.int64)
    crowding = []
    for octave in np.unique(np.log2(counts[counts > 0]).astype(int)):
        images = np.flatnonzero((counts >= 2**octave) & (counts < 2 ** (octave + 1)))
        own = GroundTruth.from_targets([targets[i] for i in images.tolist()], truth.class_names)
        shown = np.isin(found["image_index"], images)
        theirs = {name: values[shown] for name, values in found.items()}
        theirs["image_index"] = np.searchsorted(images, theirs["image_index"])
        crowding.append({"from": counts[images].min(), "to": counts[images].max(), "images": len(images),
                         "objects": counts[images].sum(), "AP": coco_metrics(own, **theirs).ap})  # fmt: skip
    return {"by_size": sizes, "by_objects_in_image": crowding}


def _telling(errors: list[np.ndarray]) -> list[int]:
    """Images with the most errors; of two checkpoints those whose numbers of errors differ most."""
    totals = [counts.sum(0) for counts in errors]
    weight = totals[0] if len(totals) == 1 else np.abs(totals[0] - totals[1])
    worst = np.lexsort((-sum(totals), -weight))[:IMAGES]
    return [int(i) for i in worst if weight[i] > 0]


def _training(checkpoint: Path) -> dict[str, Metrics] | None:
    """Loss over steps and AP over evaluations of the run that the checkpoint lies in, thinned out; None without one."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if not (folder / "metrics.jsonl").is_file():
        return None
    lines = read_metrics(folder)
    steps = [
        {key: line[key] for key in ("step", "loss")}
        for line in lines
        if line.get("loss") is not None
    ]
    tests = [{key: line.get(key) for key in ("step", "time_s", "AP", "AP50", "val_loss")} for line in lines
             if line.get("AP") is not None]  # fmt: skip
    return {"steps": steps[:: max(1, math.ceil(len(steps) / _MOST_POINTS))], "evaluations": tests}


def _plain(value: Any) -> Any:
    """The same with Python's own numbers, and None instead of nan."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
