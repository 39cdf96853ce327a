"""What a detector does right and wrong at an IoU of 0.5, and how much average precision each kind
of mistake costs.

Shapes: N images, M detections that count, T objects (crowds are none), P pairs of a detection and
an object that overlap, C classes. Boxes are xyxy in pixels of the original image.

Source: Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, for the kinds of mistakes and what fixing them means, and the authors' tool
where the paper leaves a choice. Deviations, all towards COCO's own evaluation: 100 detections of a
class and image count, not 100 of an image; detections in a crowd are no mistakes; only classes with
objects enter the mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from redetr.structures import Target

KINDS = ("correct", "class", "localization", "both", "duplicate", "background")
MISTAKES = (*KINDS[1:], "missed")
RECALL_LEVELS = np.linspace(0, 1, 101)

_FOUND_IOU, _BACKGROUND_IOU = (
    0.5,
    0.1,
)  # from which an object is found, up to which there is background
_MOST = 100  # detections of a class in an image
_CORRECT, _CLASS, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(len(KINDS))

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of many images, one after the other."""

    image: Ints  # place of the image in the data set
    label: Ints  # in [0, C)
    xyxy: Floats

    def __len__(self) -> int:
        return len(self.image)

    def take(self, which: NDArray) -> "Boxes":
        return Boxes(self.image[which], self.label[which], self.xyxy[which])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and objects of the same image that overlap."""

    detection: Ints  # [P] place in the detections
    object: Ints  # [P] place in the objects
    iou: Floats  # [P]

    def take(self, which: Bools) -> "Pairs":
        return Pairs(self.detection[which], self.object[which], self.iou[which])


@dataclass(frozen=True, eq=False)
class Judgement:
    """Every detection that counts, best score first, with what it is, and every object."""

    detections: Boxes  # M
    scores: Floats  # [M]
    kind: Ints  # [M] place in KINDS
    # [M] the object that it found, or that it would have found without its mistake; -1 for none
    object: Ints
    objects: Boxes  # T
    found_by: Ints  # [T] the detection that found it, -1 for none
    pairs: Pairs  # of an IoU of 0.5 or more, whatever the classes
    crowds: Boxes  # detections in them are left out
    num_classes: int

    @cached_property
    def correct(self) -> Bools:
        """`[M]`, whether the detection is the first to find an object."""
        return self.kind == _CORRECT

    @cached_property
    def rescued(self) -> Bools:
        """`[M]`, whether the right class or box would make the detection the best one of an object
        nobody found."""
        fixable = np.flatnonzero(np.isin(self.kind, (_CLASS, _LOCALIZATION)) & (self.object >= 0))
        fixable = fixable[self.found_by[self.object[fixable]] < 0]
        _, best = np.unique(self.object[fixable], return_index=True)
        rescued = np.zeros(len(self.kind), bool)
        rescued[fixable[best]] = True
        return rescued

    @cached_property
    def missed(self) -> Bools:
        """`[T]`, whether the object was not found, not even with a wrong class or a poor box."""
        missed = self.found_by < 0
        missed[self.object[self.rescued]] = False
        return missed


def judge(
    targets: Sequence[Target],
    num_classes: int,
    image_index: Ints,
    labels: Ints,
    scores: NDArray,
    boxes: NDArray,
) -> Judgement:
    """What each detection on the images of `targets` is; arrays as `metrics.coco_metrics` takes
    them."""
    everything, crowd = _objects(targets)
    objects, crowds = everything.take(~crowd), everything.take(crowd)
    rank = np.argsort(
        np.argsort([target["image_id"] for target in targets], kind="stable")
    )  # settles ties, as in COCO
    order = np.lexsort((rank[image_index], -scores))
    found = Boxes(image_index[order], labels[order], boxes[order].astype(np.float64))
    counts = _place_in_group(found.image * num_classes + found.label) < _MOST
    order, found = order[counts], found.take(counts)

    pairs = _overlapping(found, objects, _BACKGROUND_IOU)
    partner = _assign(pairs.take(_same_class(pairs, found, objects)), len(found), len(objects))
    hidden = _overlapping(found, crowds, _FOUND_IOU, of_detection=True)
    ignored = np.zeros(len(found), bool)
    ignored[hidden.detection[_same_class(hidden, found, crowds)]] = True
    kept = ~ignored | (partner >= 0)

    number = np.cumsum(kept) - 1
    pairs = pairs.take(kept[pairs.detection])
    pairs = Pairs(number[pairs.detection], pairs.object, pairs.iou)
    found, partner = found.take(kept), partner[kept]
    kind, wanted = _kinds(found, objects, pairs, partner)
    found_by = np.full(len(objects), -1)
    found_by[partner[partner >= 0]] = np.flatnonzero(partner >= 0)
    near = pairs.take(pairs.iou >= _FOUND_IOU)
    scores = scores[order][kept].astype(np.float64)
    return Judgement(found, scores, kind, wanted, objects, found_by, near, crowds, num_classes)


def precision_at_recall(labels: Ints, correct: Bools, objects: Ints) -> Floats:
    """COCO's precision at each of RECALL_LEVELS, `[C, 101]`; nan for classes without objects.

    `labels` and `correct` are of detections, best score first; `objects` `[C]` counts the objects
    of each class. The mean over the levels is AP50.
    """
    table = np.full((len(objects), len(RECALL_LEVELS)), np.nan)
    for label, rows in enumerate(_by_class(labels, len(objects))):
        if objects[label]:
            hits = np.cumsum(correct[rows])
            best_from_here = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            reached = np.searchsorted(hits / objects[label], RECALL_LEVELS)
            table[label] = np.append(best_from_here, 0.0)[reached]
    return table


def mistakes(judged: Judgement) -> dict[str, dict[str, Any]]:
    """Of each of MISTAKES how many there are, and the AP50 (a fraction) that the model would win
    without them.

    A mistake of class or localization is fixed in the detection with the best score, if the object
    was not found; others on that object, and all other mistakes, are taken away; missed objects are
    not counted (a class of which none is left keeps an AP of 0).
    """
    objects = np.bincount(judged.objects.label, minlength=judged.num_classes)
    missing = np.bincount(judged.objects.label[judged.missed], minlength=judged.num_classes)
    there = max(1, np.count_nonzero(objects))

    def ap50(labels: Ints, correct: Bools, objects: Ints) -> float:
        return float(np.nansum(precision_at_recall(labels, correct, objects).mean(1)) / there)

    labels, correct = judged.detections.label, judged.correct
    now = ap50(labels, correct, objects)
    would = {"missed": ap50(labels, correct, objects - missing)}
    for kind, name in enumerate(KINDS[1:], 1):
        wrong = judged.kind == kind
        fixed = labels.copy()
        rescued = wrong & judged.rescued
        fixed[rescued] = judged.objects.label[judged.object[rescued]]
        left = ~wrong | rescued
        would[name] = ap50(fixed[left], (correct | rescued)[left], objects)
    counts = {
        **dict(zip(KINDS, np.bincount(judged.kind, minlength=len(KINDS)).tolist(), strict=True)),
        "missed": int(missing.sum()),
    }
    # What is below zero is rounding, or an object of another class that loses a detection: nothing
    # to win.
    return {name: {"count": counts[name], "ap50": max(0.0, would[name] - now)} for name in MISTAKES}


def threshold_curve(
    scores: Floats, correct: Bools, objects: int, thresholds: Floats
) -> tuple[Floats, Floats]:
    """Precision (nan where nothing is left) and recall (nan without objects) of what scores each
    threshold or more.

    Detections are given best score first.
    """
    left = np.searchsorted(-scores, -thresholds, side="right")
    hits = np.append(0, np.cumsum(correct))[left]
    with np.errstate(divide="ignore", invalid="ignore"):
        return hits / left, hits / np.float64(objects)


def best_threshold(scores: Floats, correct: Bools, objects: int) -> float | None:
    """The score from which on detections have the best F1, the highest such score; None if none is
    right.

    F1 is the harmonic mean of precision and recall: 2 hits / (detections + objects).
    """
    f1 = 2 * np.cumsum(correct) / (np.arange(1, len(scores) + 1) + objects)
    f1[np.flatnonzero(scores[1:] == scores[:-1])] = 0.0  # equal scores come together
    return float(scores[f1.argmax()]) if correct.any() else None


def working_threshold(judged: Judgement) -> float:
    """The best single threshold for all classes, cut to two digits; 0.5 where nothing is found."""
    best = best_threshold(judged.scores, judged.correct, len(judged.objects))
    return 0.5 if best is None else math.floor(100 * best) / 100


def confusion(judged: Judgement, threshold: float) -> Ints:
    """Counts `[C + 1, C + 1]`: rows are objects, columns what they were taken for, the last of both
    is background.

    Detections of `threshold` or more take the object that they overlap most, best score first,
    whatever its class.
    """
    shown = judged.scores >= threshold
    pairs = judged.pairs.take(shown[judged.pairs.detection])
    partner = _assign(pairs, len(judged.detections), len(judged.objects))
    paired = partner >= 0
    alone = np.setdiff1d(np.arange(len(judged.objects)), partner[paired])
    table = np.zeros((judged.num_classes + 1, judged.num_classes + 1), np.int64)
    np.add.at(table, (judged.objects.label[partner[paired]], judged.detections.label[paired]), 1)
    table[-1, :-1] = np.bincount(
        judged.detections.label[shown & ~paired], minlength=judged.num_classes
    )
    table[:-1, -1] = np.bincount(judged.objects.label[alone], minlength=judged.num_classes)
    return table


def calibration(scores: Floats, correct: Bools, least: float, bins: int = 10) -> dict[str, Any]:
    """How far scores of `least` or more are from the share that is right: `error` (expected
    calibration error, None without detections), and of each bin of scores that is not empty its
    detections, mean score and share.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    seen = scores >= least
    scores, correct = scores[seen], correct[seen]
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts, sums, hits = (np.bincount(place, weights, bins) for weights in (None, scores, correct))
    error = np.abs(sums - hits).sum() / len(scores) if len(scores) else None
    rows = [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "count": int(counts[i]),
            "score": sums[i] / counts[i],
            "correct": hits[i] / counts[i],
        }
        for i in np.flatnonzero(counts).tolist()
    ]
    return {"error": error, "least_score": least, "bins": rows}


def image_errors(judged: Judgement, threshold: float, images: int) -> tuple[Ints, Ints]:
    """`[N]` wrong detections of `threshold` or more, and `[N]` objects that none of them found."""
    shown = judged.scores >= threshold
    wrong = judged.detections.image[shown & ~judged.correct]
    found = np.append(shown, False)[judged.found_by]
    return np.bincount(wrong, minlength=images), np.bincount(
        judged.objects.image[~found], minlength=images
    )


def _objects(targets: Sequence[Target]) -> tuple[Boxes, Bools]:
    """All annotations, and which of them are crowds."""
    image = np.repeat(np.arange(len(targets)), [len(target["labels"]) for target in targets])
    labels, crowd = (
        np.concatenate([[], *(target[key] for target in targets)]) for key in ("labels", "iscrowd")
    )
    boxes = np.concatenate([np.zeros((0, 4)), *(target["boxes"] for target in targets)])
    return Boxes(image, labels.astype(np.int64), boxes), crowd.astype(bool)


def _overlapping(found: Boxes, objects: Boxes, least: float, of_detection: bool = False) -> Pairs:
    """Pairs of an IoU of `least` or more; `of_detection`: the share of the detection's own area
    instead of the IoU."""
    order = np.argsort(found.image, kind="stable")
    images, start = np.unique(objects.image, return_index=True)  # objects come image by image
    edges = np.append(start, len(objects))
    first, last = (np.searchsorted(found.image[order], images, side) for side in ("left", "right"))
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for own, a, b in zip(pairwise(edges.tolist()), first.tolist(), last.tolist(), strict=True):
        rows = order[a:b]
        overlap = _overlap(found.xyxy[rows], objects.xyxy[slice(*own)], of_detection)
        i, j = np.nonzero(overlap >= least)
        parts.append((rows[i], own[0] + j, overlap[i, j]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _overlap(a: Floats, b: Floats, of_a: bool) -> Floats:
    """IoU of boxes `[K, 4]` and `[L, 4]`, or the share of the first ones' area, `[K, L]`; 0 for
    boxes without area."""
    corners = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = (corners[1] - corners[0]).clip(0).prod(-1)
    own, other = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b))
    whole = own[:, None] + (0 if of_a else other - common)
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)


def _assign(pairs: Pairs, detections: int, objects: int) -> Ints:
    """`[detections]` the object of each, or -1: best score first, each takes the free object that
    it overlaps most."""
    near = pairs.take(pairs.iou >= _FOUND_IOU)
    partner, taken = [-1] * detections, [False] * objects
    order = np.lexsort((-near.iou, near.detection))
    for detection, thing in zip(
        near.detection[order].tolist(), near.object[order].tolist(), strict=True
    ):
        if partner[detection] < 0 and not taken[thing]:
            partner[detection], taken[thing] = thing, True
    return np.array(partner, np.int64)


def _kinds(found: Boxes, objects: Boxes, pairs: Pairs, partner: Ints) -> tuple[Ints, Ints]:
    """Kind and object of each detection; of several mistakes localization goes before class, class
    before duplicate."""
    same = _same_class(pairs, found, objects)
    own, own_object = _best(pairs.take(same), len(found))
    other, other_object = _best(pairs.take(~same), len(found))
    cases = [
        partner >= 0,
        (own >= _BACKGROUND_IOU) & (own <= _FOUND_IOU),
        other >= _FOUND_IOU,
        own > _FOUND_IOU,
        np.maximum(own, other) <= _BACKGROUND_IOU,
    ]
    kind = np.select(cases, [_CORRECT, _LOCALIZATION, _CLASS, _DUPLICATE, _BACKGROUND], _BOTH)
    return kind, np.select(cases, [partner, own_object, other_object, own_object, -1], -1)


def _best(pairs: Pairs, detections: int) -> tuple[Floats, Ints]:
    """The largest IoU of each detection and its object; 0 and -1 for none."""
    iou, thing = np.zeros(detections), np.full(detections, -1)
    order = np.argsort(pairs.iou, kind="stable")  # the last one written stays
    iou[pairs.detection[order]], thing[pairs.detection[order]] = (
        pairs.iou[order],
        pairs.object[order],
    )
    return iou, thing


def _same_class(pairs: Pairs, found: Boxes, objects: Boxes) -> Bools:
    return found.label[pairs.detection] == objects.label[pairs.object]


def _by_class(labels: Ints, num_classes: int) -> list[Ints]:
    """The places of each class, in their order."""
    order = np.argsort(labels, kind="stable")
    return (
        np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))
        if num_classes
        else []
    )


def _place_in_group(groups: Ints) -> Ints:
    """How many of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    _, start, count = np.unique(groups[order], return_index=True, return_counts=True)
    place = np.empty_like(groups)
    place[order] = np.arange(len(groups)) - np.repeat(start, count)
    return place
