"""How well masks fit the objects that are found: if a box is right, is its mask right too?

A pair is an object and the detection that finds it, which has the same class and a box with an IoU
of 0.5 or more. Shapes: P pairs, M detections that count, T objects, as in `analysis.py`.
"""

from dataclasses import dataclass
from typing import Any

import hotcoco.mask
import numpy as np
from hotcoco.primitives import bbox_iou

from redetr.metrics import METRIC_NAMES, CocoResult, segmentation
from redetr.report.analysis import Floats, Ints, Judgement
from redetr.truth import TruthObjects

POOR_IOU = 0.5  # the mask of a right box is poor below this IoU

_SIZES = 4  # groups of object size, each of about as many pairs


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """The pairs in which both masks are known, poorest mask first."""

    objects: Ints  # [P] index of the object
    detections: Ints  # [P] index of the detection
    mask_iou: Floats  # [P]
    box_iou: Floats  # [P]
    sides: Floats  # [P] square root of the area of the true mask, px
    true_masks: list[bytes]  # P, as in `DatasetDetections`
    masks: list[bytes]  # P

    def __len__(self) -> int:
        return len(self.objects)


def paired_masks(judged: Judgement, truth: TruthObjects, threshold: float) -> MaskPairs:
    """The pairs of objects and detections with a score of `threshold` or more. `truth` has the same
    objects as `judged`, with their masks; the detections must have masks too."""
    assert truth.masks is not None and judged.masks is not None
    true_masks = [truth.masks[row] for row in np.flatnonzero(~truth.iscrowd).tolist()]
    true_rles: Any = segmentation(true_masks, judged.objects.image, truth.image_sizes)
    rles: Any = segmentation(judged.masks, judged.detections.image, truth.image_sizes)
    areas = np.array([hotcoco.mask.area([rle])[0] for rle in true_rles], np.float64)
    shown = np.append(judged.scores >= threshold, False)  # -1 takes the False
    objects = np.flatnonzero(shown[judged.finder])
    detections = judged.finder[objects]
    mask_iou = np.zeros(len(objects))
    box_iou = np.zeros(len(objects))
    pairs = zip(objects.tolist(), detections.tolist(), strict=True)
    for i, (row, finder) in enumerate(pairs):
        overlap = hotcoco.mask.iou([rles[finder]], [true_rles[row]], [False])
        mask_iou[i] = np.asarray(overlap).item()
        detected = judged.detections.xywh[[finder]]
        true = judged.objects.xywh[[row]]
        box_iou[i] = np.asarray(bbox_iou(detected, true, np.zeros(1, bool))).item()
    order = np.argsort(mask_iou, kind="stable")
    return MaskPairs(
        objects=objects[order],
        detections=detections[order],
        mask_iou=mask_iou[order],
        box_iou=box_iou[order],
        sides=areas[objects][order] ** 0.5,
        true_masks=[true_masks[row] for row in objects[order].tolist()],
        masks=[judged.masks[row] for row in detections[order].tolist()],
    )


def mask_numbers(result: CocoResult, pairs: MaskPairs, judged: Judgement) -> dict[str, Any]:
    """The COCO numbers of masks, and three numbers of pairs: `found` (how many there are), `iou`
    (the mean IoU of their masks; NaN without pairs) and `poor` (how many are below POOR_IOU), for
    all pairs, for each class and for groups by size."""
    labels = judged.objects.label[pairs.objects]
    per_class = {}
    for label, (name, ap) in enumerate(result.per_class.items()):
        ap50 = result.per_class_ap50[name]
        class_fit = _fit(pairs.mask_iou[labels == label])
        per_class[name] = {"AP": ap, "AP50": ap50, **class_fit}
    return {
        "metrics": {name: result.metrics[name] for name in METRIC_NAMES},
        "poor_below": POOR_IOU,
        "all": _fit(pairs.mask_iou),
        "per_class": per_class,
        "by_size": _by_size(pairs),
    }


def _by_size(pairs: MaskPairs) -> list[dict[str, Any]]:
    """Groups of pairs by the size of their objects, with about equally many pairs each."""
    smallest_first = np.argsort(pairs.sides, kind="stable")
    groups = []
    for rows in np.array_split(smallest_first, _SIZES):
        if len(rows):
            sides = pairs.sides[rows]
            group = {"from_px": sides[0], "to_px": sides[-1], **_fit(pairs.mask_iou[rows])}
            groups.append(group)
    return groups


def _fit(mask_iou: Floats) -> dict[str, Any]:
    return {
        "found": len(mask_iou),
        "iou": mask_iou.mean() if len(mask_iou) else np.nan,
        "poor": np.count_nonzero(mask_iou < POOR_IOU),
    }
