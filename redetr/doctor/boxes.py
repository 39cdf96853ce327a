"""What is wrong with the boxes and classes of a data set, beyond what its readers refuse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from redetr.config import MOST_QUERIES, Settings
from redetr.data import Hints
from redetr.data.annotations import Annotations, Fault, Severity, Split
from redetr.doctor.images import found, image_place
from redetr.models import build
from redetr.recipes import get_recipe

_FEW_BOXES, _TIMES_RARER = (
    10,
    100,
)  # a class with fewer boxes, or so many fewer than the most common, is hardly learned
_FEW_IMAGES, _SMALL_SHARE = 10, 0.02  # of the val split
_SMALL_PX = 8  # the finest stride of the fast forms: what is smaller falls between two positions
_MANY_SMALL, _FEW_SMALL = 0.25, 0.1  # shares of the boxes
_SAME_IOU = 0.99
_SURE = 10  # boxes all on one side: by chance in one of 2**10 data sets


@dataclass(frozen=True)
class Plan:
    """What a recipe would do with a data set, as far as it concerns boxes."""

    recipe: str
    config: Settings
    resize: Literal["aspect", "square"]
    max_size: int | None
    num_queries: int

    @classmethod
    def of(cls, recipe: str, hints: Hints, num_queries: int | None) -> "Plan":
        """`num_queries` None = the most that training would take. Raises InputError for an unknown
        recipe."""
        config = replace(get_recipe(recipe), weights=None)
        config = config.with_queries(hints, max_objects=MOST_QUERIES)
        with torch.device("meta"):
            model = build(config.model, 1, **config.model_kwargs())
        settings = config.resolved(model, hints, num_images=1)
        queries = num_queries or model.num_queries
        return cls(recipe, settings, model.resize, model.max_size, queries)

    def shorter_sides(self, annotations: Annotations, image_size: int) -> np.ndarray:
        """The shorter side of each box in pixels of what a model sees that is trained at this size,
        float `[A]`."""
        boxes = annotations.boxes
        sizes = annotations.sizes[annotations.image_of(), ::-1]  # width, height, [A, 2]
        if self.config.augment == "aerial":  # crops at native scale, whatever their size
            scale = np.ones((1, 2))
        elif self.resize == "square":
            scale = image_size / sizes
        else:
            longest = (self.max_size or np.inf) * image_size / self.config.image_size
            by_shorter, by_longer = image_size / sizes.min(1), longest / sizes.max(1)
            scale = np.minimum(by_shorter, by_longer)[:, None]
        sides = (boxes[:, 2:] - boxes[:, :2]) * scale  # [A, 2]
        return sides.min(1)


def is_sound(annotations: Annotations) -> bool:
    """Whether the reader had nothing to leave out."""
    return not any(fault.severity == "error" for fault in annotations.faults)


def class_counts(annotations: Annotations) -> np.ndarray:
    """Objects of each class, crowds not counted, int64 `[C]`."""
    return np.bincount(
        annotations.labels[~annotations.iscrowd], minlength=len(annotations.class_names)
    )


def box_faults(annotations: Annotations) -> list[Fault]:
    """Boxes in another format than the file's, boxes there twice, images without any."""
    faults = [*_formats(annotations), *_boxes_twice(annotations)]
    if not is_sound(annotations):  # and what is missing may have been left out by the reader
        return faults
    if len(annotations.boxes):
        faults += found(
            np.diff(annotations.first) == 0,
            "note",
            "image-empty",
            annotations.source,
            lambda i: (image_place(annotations, i), "holds no object"),
            "fine if there is none to see: a model learns from that as well",
        )
    else:
        text = f"none of its {len(annotations)} images holds an object"
        faults.append(
            Fault("error", "no-objects", annotations.source, "", text, "annotate, or export again")
        )
    return faults


def _formats(a: Annotations) -> list[Fault]:
    """Boxes that make more sense in another format."""
    if not len(a.boxes):
        return []
    faults = []
    (x1, y1, x2, y2), sizes = a.boxes.T, a.sizes[a.image_of(), ::-1]
    fractions = (a.boxes.max(1) <= 1.5) & (sizes.min(1) > 15)
    if fractions.mean() > 0.9:
        text = (
            f"{fractions.sum()} of {len(fractions)} boxes lie in the first pixel: fractions "
            "given as pixels"
        )
        remedy = "multiply x and width by the width of the image, y and height by its height"
        faults.append(
            Fault(
                "error",
                "format-fractions",
                a.source,
                _object_place(a, fractions.argmax()),
                text,
                remedy,
            )
        )
    outside = sum(fault.count for fault in a.faults if fault.code == "box-outside")
    corners = (x2 - x1 > x1) & (
        y2 - y1 > y1
    )  # [x, y, width, height] is a box when read as xyxy as well
    if a.source.suffix == ".json" and outside > 0.05 * len(a.boxes) and corners.mean() > 0.95:
        text = (
            f"{outside} boxes leave their image, {corners.sum()} of the other {len(corners)} "
            "make sense as xyxy"
        )
        remedy = "write [x, y, width, height]: subtract x and y from the last two numbers"
        faults.append(Fault("error", "format-xyxy", a.source, "", text, remedy))
    return faults + _lopsided(a, sizes, outside > 0)


def _lopsided(a: Annotations, sizes: np.ndarray, leaving: bool) -> list[Fault]:
    """Boxes moved by half their size: many are near the right and lower border, none near the
    others."""
    half = (a.boxes[:, 2:] - a.boxes[:, :2]) / 2 - 1
    near_start, near_end = a.boxes[:, :2] < half, sizes - a.boxes[:, 2:] < half
    start, end = (near_start & ~near_end).sum(0), (near_end & ~near_start).sum(0)  # over x and y
    for near, other, side, text, remedy in (
        (
            end,
            start,
            "right or lower",
            "the centre given as the corner",
            "write the upper left one: x - width / 2",
        ),
        (
            start,
            end,
            "left or upper",
            "the corner given as the centre",
            "write the centre: x + width / 2",
        ),
    ):
        # Objects that stand on the ground are near the lower border; left and right are alike,
        # unless boxes leave.
        if (near.sum() if leaving else near[0]) >= _SURE and not other.any():
            chance = f"if they were anywhere, 1 in {2 ** min(int(near.sum()), 20):,}"
            seen = (
                f"{near.sum()} boxes are nearer to the {side} border than half their size, "
                "none to the opposite ones"
            )
            return [
                Fault(
                    "warning", "format-center", a.source, "", f"{text}? {seen} ({chance})", remedy
                )
            ]
    return []


def _boxes_twice(a: Annotations) -> list[Fault]:
    """Boxes of one class in one image that are the same but for a pixel.

    Sorted by image, class and left edge, the same boxes stand near each other: each is compared
    with the next, the next but one and so on for as long as the left edges could still be the same.
    """
    image, (x1, y1, x2, y2) = a.image_of(), a.boxes.T
    order = np.lexsort((x1, a.labels, image))
    order = order[~a.iscrowd[order]]
    original = np.full(len(a.boxes), -1)
    active, lag = np.arange(len(order) - 1), 1
    while len(active):
        i, j = order[active], order[active + lag]
        near = (
            (image[i] == image[j])
            & (a.labels[i] == a.labels[j])
            & (x1[j] - x1[i] <= 0.02 * (x2 - x1)[i])
        )
        active, i, j = active[near], i[near], j[near]
        width = np.minimum(x2[i], x2[j]) - np.maximum(x1[i], x1[j])
        height = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        shared = width.clip(0) * height.clip(0)
        union = ((x2 - x1) * (y2 - y1))[np.stack([i, j])].sum(0) - shared
        same = shared > _SAME_IOU * union
        original[j[same]] = i[same]
        lag += 1
        active = active[active + lag < len(order)]
    return found(
        original >= 0,
        "warning",
        "box-twice",
        a.source,
        lambda i: (
            _object_place(a, i),
            f"is the same box as annotation {a.object_ids[original[i]]}",
        ),
        "delete one of them: the model is asked to find the object twice",
    )


def _object_place(a: Annotations, index: int) -> str:
    return f"annotation {a.object_ids[index]} in {image_place(a, int(a.image_of()[index]))}"


def class_faults(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """Classes that the splits list differently, or that are hard to learn or to measure."""
    train, val = splits.get("train"), splits.get("val")
    if train is None:
        return []
    listed = (train.category_ids, train.class_names)
    odd = [
        split
        for split, other in splits.items()
        if (other.category_ids, other.class_names) != listed
    ]
    faults = [_different_classes(train, splits[split], split) for split in odd]
    if val is None or "val" in odd:
        return faults
    names, learned, measured = train.class_names, class_counts(train), class_counts(val)
    folded = [" ".join(name.replace("_", " ").split()).casefold() for name in names]
    twin = [
        names[folded.index(name)] for name in folded
    ]  # the first class that is called nearly so
    whole = is_sound(train) and is_sound(val)  # counts mean something
    few = (learned > 0) & ((learned < _FEW_BOXES) | (learned * _TIMES_RARER < learned.max()))
    checks: list[tuple[np.ndarray, Severity, str, Callable[[int], str], str]] = [
        (
            np.array(twin) != np.array(names),
            "warning",
            "class-alike",
            lambda i: f"is nearly called as {twin[i]!r}",
            "make them one class if they mean the same",
        ),
        (
            np.array([name == "background" for name in folded]),
            "warning",
            "class-background",
            lambda i: "is a class like any other here",
            "take it out: what is in no box is background",
        ),
        (
            whole & (learned == 0) & (measured == 0),
            "note",
            "class-unused",
            lambda i: "has no box in train and val",
            "take it out, or annotate it",
        ),
        (
            whole & (learned == 0) & (measured > 0),
            "warning",
            "class-only-val",
            lambda i: f"has {measured[i]} boxes, all of them in val",
            "move images of it to train: its AP will be 0",
        ),
        (
            whole & (learned > 0) & (measured == 0),
            "warning",
            "class-only-train",
            lambda i: f"has {learned[i]} boxes, all of them in train",
            "move images of it to val: its AP cannot be measured",
        ),
        (
            whole & few,
            "warning",
            "class-rare",
            lambda i: f"has {learned[i]} boxes in train, the most common class {learned.max()}",
            "collect more of it, or expect little AP",
        ),
    ]

    def told(text: Callable[[int], str], i: int) -> tuple[str, str]:
        return f"category {train.category_ids[i]} ({names[i]!r})", text(i)

    for bad, severity, code, text, remedy in checks:
        faults += found(bad, severity, code, train.source, partial(told, text), remedy)
    return faults


def _different_classes(train: Annotations, other: Annotations, split: Split) -> Fault:
    classes = [
        set(zip(listing.category_ids, listing.class_names, strict=True))
        for listing in (train, other)
    ]
    odd = classes[0] ^ classes[1]
    where, (id_, name) = "train" if min(odd) in classes[0] else split, min(odd)
    text = f"train and {split} list different categories: {id_} ({name!r}) is only in {where}"
    remedy = "write the same categories into both annotation files"
    return Fault("error", "category-differs", other.source, "", text, remedy, len(odd)).in_split(
        split
    )


def plan_faults(splits: Mapping[Split, Annotations], plan: Plan) -> list[Fault]:
    """What does not suit the model and its image size, and a val split that measures little."""
    faults = []
    for split, annotations in splits.items():
        if (
            split != "train" or plan.config.augment != "aerial"
        ):  # which trains on a part of each image
            faults += _crowded(annotations, plan.num_queries)
    train, val = splits.get("train"), splits.get("val")
    if train is not None:
        faults += _small_objects(train, plan)
    if (
        train is not None
        and val is not None
        and len(val) < max(_FEW_IMAGES, min(_SMALL_SHARE * len(train), 500))
    ):
        text = (
            f"val has {len(val)} images, train {len(train)}: AP will jump from one evaluation "
            "to the next"
        )
        faults.append(
            Fault("warning", "val-small", val.source, "", text, "hold out 10-20% of the images")
        )
    return faults


def _crowded(a: Annotations, num_queries: int) -> list[Fault]:
    counts = a.object_counts()
    remedy = f"take --num-queries {counts.max(initial=0)}, or cut the images into tiles"
    return found(
        counts > num_queries,
        "warning",
        "image-crowded",
        a.source,
        lambda i: (
            image_place(a, i),
            f"holds {counts[i]} objects, the model has {num_queries} queries",
        ),
        remedy,
    )


def _small_objects(train: Annotations, plan: Plan) -> list[Fault]:
    """A fault if many boxes are smaller than the stride at the size of training, with the size that
    would do."""
    size = plan.config.image_size
    small = plan.shorter_sides(train, size) < _SMALL_PX
    if not len(small) or small.mean() <= _MANY_SMALL:
        return []
    remedy = "cut the images into tiles, or take finer pictures"
    for larger in (round(size * factor / 32) * 32 for factor in (1.5, 2, 3, 4)):
        share = (plan.shorter_sides(train, larger) < _SMALL_PX).mean()
        if share < _FEW_SMALL:
            remedy = (
                f"train at --image-size {larger} (then {share:.0%}), or cut the images into tiles"
            )
            break
    text = (
        f"{small.mean():.0%} of the boxes are under {_SMALL_PX} px where the model sees images "
        f"at {size} px"
    )
    return [Fault("warning", "object-small", train.source, "", text, remedy, int(small.sum()))]
