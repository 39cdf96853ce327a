"""Compares a file and PyTorch on the same images: the differences between detections, and whether
AP drops by more than chance explains.

Arrays are NumPy's: K detections of an image, best score first, with boxes xyxy in pixels of the
original image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import hotcoco.mask
import numpy as np
import torch
from hotcoco import COCOeval
from scipy.optimize import linear_sum_assignment

from redetr.boxes import iou_and_giou
from redetr.report.comparison import ap_differences

# scores [K], labels [K], boxes [K, 4], and of a model with masks these, compressed, as objects [K]
ImageDetections = dict[str, np.ndarray]

_PAIR_IOU = 0.5  # boxes of one class with at least this IoU count as the same detection
# The boxes of a pair are the same if they overlap this much, or are this close. After rounding and
# near ties, at least this share of the detections is the same.
_SAME_IOU = 0.9
_SAME_PX = 1.0
_SAME_SHARE = 0.9
_PADDING = {"scores": 0, "labels": -1, "boxes": 0, "masks": None}


@dataclass(frozen=True)
class Drop:
    """How far AP of boxes or of masks drops from PyTorch to a file."""

    name: str  # AP or mask AP
    pytorch: float  # in percent
    file: float
    # the 95% confidence interval of the drop, in points; None with fewer than two images
    interval: tuple[float, float] | None
    # whether it may be due to chance: detections above the threshold are the same, and there are
    # too few images to decide (a single image is never enough)
    by_chance: bool

    @property
    def points(self) -> float:
        return self.pytorch - self.file

    @property
    def interval_text(self) -> str:
        """The interval in brackets after a space; empty without one."""
        if self.interval is None:
            return ""
        lower, upper = self.interval
        return f" (95% interval {lower:.2f} to {upper:.2f})"


@dataclass(frozen=True)
class Comparison:
    """A file and PyTorch on the same images."""

    images: int
    threshold: float
    paired: int  # detections of that score or more that PyTorch and the file both have
    unpaired: int  # those that one of them lacks
    same: int  # of the paired ones, those whose boxes agree up to rounding
    # of the paired ones, "scores" and "boxes" (px): the largest difference and the median
    differences: dict[str, tuple[float, float]]
    ap: tuple[float, float]  # PyTorch's and the file's, in percent
    # the 95% confidence interval of the drop of AP, in points; None with fewer than two images
    interval: tuple[float, float] | None = None
    # the same two of masks, where model and data have them
    mask_ap: tuple[float, float] | None = None
    mask_interval: tuple[float, float] | None = None
    mask_iou: tuple[float, float] | None = None  # of paired detections: the smallest, the median
    why_no_masks: str = ""  # why mask AP of a model with masks was not measured

    def drops(self) -> list[Drop]:
        """The drop of AP, and where masks were measured, that of their AP."""
        drops = [Drop("AP", *self.ap, self.interval, self._may_be_chance(self.interval))]
        if self.mask_ap is not None:
            by_chance = self._may_be_chance(self.mask_interval)
            drops.append(Drop("mask AP", *self.mask_ap, self.mask_interval, by_chance))
        return drops

    def _may_be_chance(self, interval: tuple[float, float] | None) -> bool:
        if self.same < _SAME_SHARE * (self.paired + self.unpaired):
            return False
        if interval is None:
            return True
        lower, _ = interval
        return lower <= 0


def drop_interval(pytorch: COCOeval, file: COCOeval) -> tuple[float, float] | None:
    """The 95% confidence interval of the drop of AP from PyTorch to the file, in points.

    None if there are no objects, or fewer than two images.
    """
    differences = ap_differences(pytorch, file)
    if "AP" not in differences:
        return None
    change = differences["AP"]
    return -100 * change["upper"], -100 * change["lower"]


def _padded(detections: ImageDetections, count: int) -> ImageDetections:
    """`count` detections of an image: these, and behind them some that pair with none, because
    their label is that of no class. So their masks are never looked at."""
    missing = count - len(detections["scores"])
    padded = {}
    for name, rows in detections.items():
        shape = (missing, *rows.shape[1:])
        rest = np.full(shape, _PADDING[name], rows.dtype)
        padded[name] = np.concatenate([rows, rest])
    return padded


def aligned(pytorch: ImageDetections, file: ImageDetections) -> ImageDetections:
    """The detections of the file in an image, in the order of the corresponding detections of
    PyTorch. Both have the same number.

    Both are sorted by score, so detections whose scores are equal up to rounding may be swapped.
    """
    apart = {}  # differences between PyTorch (rows) and the file, [K, K] or [K, K, 4]
    for name in ("boxes", "scores", "labels"):
        apart[name] = np.abs(pytorch[name][:, None] - file[name])
    largest = max(1, np.abs(pytorch["boxes"]).max(initial=0))
    box_distance = apart["boxes"].max(-1, initial=0) / largest
    other_label = apart["labels"] != 0
    distance = apart["scores"] + box_distance + other_label
    distance = np.nan_to_num(distance, nan=9.0)
    # Padding costs the same everywhere, so that it does not decide which of the others are paired.
    distance[pytorch["labels"] == _PADDING["labels"]] = 0
    distance[:, file["labels"] == _PADDING["labels"]] = 0
    _, order = linear_sum_assignment(distance)
    return {name: rows[order] for name, rows in file.items()}


@dataclass(frozen=True)
class Apart:
    """The differences between detections above a threshold; the fields are those of
    `Comparison`."""

    paired: int
    unpaired: int
    same: int
    differences: dict[str, tuple[float, float]]
    mask_iou: tuple[float, float] | None


def detections_apart(
    pytorch: Sequence[ImageDetections], file: Sequence[ImageDetections], threshold: float
) -> Apart:
    """Compares the detections of each image that have a score of `threshold` or more on either
    side.

    Low scores are left out, because their order is mostly chance, and they are never shown.
    """
    unpaired = 0
    num_same = 0
    differences: dict[str, list[float]] = {"scores": [], "boxes": []}
    mask_ious: list[float] = []
    for expected, answer in zip(pytorch, file, strict=True):
        # A file for images of a fixed size may have fewer queries than PyTorch, or more.
        count = max(len(expected["scores"]), len(answer["scores"]))
        expected = _padded(expected, count)
        answer = aligned(expected, _padded(answer, count))
        shown = (expected["scores"] >= threshold) | (answer["scores"] >= threshold)
        iou, _ = iou_and_giou(
            torch.from_numpy(expected["boxes"]), torch.from_numpy(answer["boxes"])
        )
        is_pair = (iou.numpy() >= _PAIR_IOU) & (expected["labels"] == answer["labels"])
        unpaired += int((shown & ~is_pair).sum())
        shown &= is_pair
        scores = np.abs(expected["scores"] - answer["scores"])[shown]
        coordinates = np.abs(expected["boxes"] - answer["boxes"])[shown]
        boxes = coordinates.max(axis=1, initial=0)
        is_same = (boxes < _SAME_PX) | (iou.numpy()[shown] >= _SAME_IOU)
        num_same += int(is_same.sum())
        differences["scores"] += scores.tolist()
        differences["boxes"] += boxes.tolist()
        if "masks" in expected:
            pairs = zip(expected["masks"][shown], answer["masks"][shown], strict=True)
            mask_ious += [_mask_iou(*pair) for pair in pairs]
    paired = len(differences["scores"])
    summary = {}
    for name, values in differences.items():
        summary[name] = (max(values), median(values)) if values else (math.nan, math.nan)
    mask_iou = (min(mask_ious), median(mask_ious)) if mask_ious else None
    return Apart(paired, unpaired, num_same, summary, mask_iou)


def _mask_iou(expected: Any, answer: Any) -> float:
    """The IoU of two masks; 1 for two empty masks."""
    if not hotcoco.mask.area(expected) and not hotcoco.mask.area(answer):
        return 1.0
    return float(hotcoco.mask.iou([expected], [answer], [False])[0, 0])
