"""What every reader of a data set yields: one split as arrays, and all that is wrong with it."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from redetr.errors import InputError

Split = Literal["train", "val", "test"]
Severity = Literal["error", "warning", "note"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")  # the last one is there or not
# People overshoot the border a little: up to this many pixels, or this share of the side, boxes are
# clipped.
_OVERSHOOT_PX = 2.0
_OVERSHOOT_SHARE = 0.01
# COCO's own train2017 holds 2 boxes without height among 860,001: so few are left out, more are a
# fault.
_FEW_EMPTY_BOXES = 1e-4


@dataclass(frozen=True)
class Fault:
    """One kind of fault in one file: the first place, what is wrong there, what to do, and how
    often it occurs.

    An error would spoil training; `open_dataset` raises the first one. Warnings and notes are told,
    and left to users.
    """

    severity: Severity
    code: str  # a short name of the kind that does not change, such as "box-outside"
    file: Path
    where: str  # such as "annotation 17" or "line 3"; empty for the file as a whole
    text: str  # what is wrong there
    remedy: str  # what to do about it
    count: int = 1

    def in_split(self, split: Split) -> "Fault":
        """The fault as it weighs in this split: no error of test spoils training."""
        return (
            replace(self, severity="warning")
            if split == "test" and self.severity == "error"
            else self
        )

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}: " if self.where else f"{self.file}: "
        more = f" (and {self.count - 1} more like it)" if self.count > 1 else ""
        return f"{place}{self.text}; {self.remedy}{more}"


@dataclass(frozen=True)
class Annotations:
    """One split, sorted by the names of the images, so that a data set is the same in every format.

    N images, A objects, of which image `i` owns `first[i]:first[i + 1]`. Rows that an error speaks
    of are left out, so that the rest can be looked at.
    """

    source: Path  # the annotation file, or the folder of them
    folder: Path  # image files are below it
    names: np.ndarray  # [N] bytes, path of each image below the folder
    ids: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N, 2] int64, height and width as the annotations state them
    category_ids: tuple[int, ...]  # as in the source; label `i` is the i-th of them
    class_names: tuple[str, ...]
    first: np.ndarray  # [N + 1] int64
    boxes: np.ndarray  # [A, 4] float32, xyxy pixels of the stored image, inside it
    labels: np.ndarray  # [A] int64
    iscrowd: np.ndarray  # [A] bool; also objects marked as to be ignored
    area: np.ndarray  # [A] float32, pixels
    object_ids: np.ndarray  # [A] int64, the annotation's id, or its number in the source
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(self.names[index])

    def only(self, images: np.ndarray, objects: np.ndarray) -> "Annotations":
        """These images, bool `[N]`, and of the objects on them these, bool `[A]`."""
        kept = objects & np.repeat(images, np.diff(self.first))
        counts = np.diff(np.append(0, np.cumsum(kept))[self.first])[images]
        columns = {name: getattr(self, name)[images] for name in ("names", "ids", "sizes")}
        columns |= {
            name: getattr(self, name)[kept]
            for name in ("boxes", "labels", "iscrowd", "area", "object_ids")
        }
        return replace(self, first=np.append(0, np.cumsum(counts)), **columns)

    def image_of(self) -> np.ndarray:
        """The image of each object, int64 `[A]`."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def object_counts(self) -> np.ndarray:
        """Objects of each image, crowds not counted, int64 `[N]`."""
        return np.bincount(self.image_of()[~self.iscrowd], minlength=len(self))

    def native_size(self) -> int | None:
        """The longer side of the images in pixels, the median of all; None without images."""
        return int(np.median(self.sizes.max(1))) if len(self) else None

    def require_sound(self) -> None:
        """Raises InputError with the first error, and how many other kinds there are."""
        errors = [fault for fault in self.faults if fault.severity == "error"]
        if errors:
            more = (
                f"; {len(errors) - 1} more kinds of faults: redetr check tells them"
                if len(errors) > 1
                else ""
            )
            raise InputError(f"{errors[0]}{more}")


class Rows:
    """Images, objects or classes on their way in: what is wrong with some is collected, and they
    are left out."""

    def __init__(self, count: int, faults: list[Fault], place: Callable[[int], tuple[Path, str]]):
        """`place` tells the file and the place in it where row `i` stands."""
        self.good = np.ones(count, bool)
        self.faults, self.place = faults, place

    def fault(
        self,
        code: str,
        bad: ArrayLike,
        text: Callable[[int], str],
        remedy: str,
        severity: Severity = "error",
    ) -> None:
        """Tells of the rows that are `bad` (bool `[N]`) by the `text` of the first. None is told of
        after an error."""
        bad = np.asarray(bad, bool) & self.good
        if bad.any():
            row = int(bad.argmax())
            self.faults.append(
                Fault(severity, code, *self.place(row), text(row), remedy, int(bad.sum()))
            )
            if severity == "error":
                self.good &= ~bad


@dataclass
class Images:
    """N images as read, in any order; those that are not `rows.good` are left out."""

    rows: Rows
    folder: Path
    names: list[str]  # path below the folder
    ids: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N, 2] int64, height and width
    called: Callable[[int], str]  # what a message calls image `i`


@dataclass
class Objects:
    """A objects as read; those that are not `rows.good` are left out."""

    rows: Rows
    image: np.ndarray  # [A] int64, which of the images it is on; -1 = none
    labels: np.ndarray  # [A] int64; -1 = a class that is left out
    corners: np.ndarray  # [A, 4] float64, xyxy pixels, not yet cut to the image
    iscrowd: np.ndarray  # [A] bool
    area: np.ndarray  # [A] float32; below 0 = that of the box
    ids: np.ndarray  # [A] int64
    said: Callable[[int], str]  # how the source gives box `i`
    remedy: str  # what to do about a box that leaves its image


def assemble(
    source: Path, classes: dict[int, str], images: Images, objects: Objects, faults: list[Fault]
) -> Annotations:
    """The annotations of a split; `classes` are names by category id, which labels count in their
    order."""
    on_image = np.append(images.rows.good, False)[objects.image]
    objects.rows.good &= on_image & (objects.labels >= 0)
    boxes = _boxes_inside(objects, images)
    repeated = [(name, count) for name, count in Counter(classes.values()).items() if count > 1]
    if repeated:
        name, count = repeated[0]
        faults.append(
            Fault(
                "warning",
                "class-twice",
                source,
                "",
                f"{count} classes are called {name!r}",
                "give each its own name, or make them one",
                len(repeated),
            )
        )
    good = np.flatnonzero(images.rows.good)
    names = np.array([os.fsencode(images.names[i]) for i in good], "S")
    order = np.lexsort((images.ids[good], names))
    place = np.full(len(images.ids) + 1, -1)  # the last one is for objects on no image
    place[good[order]] = np.arange(len(order))
    image = place[objects.image]
    kept = np.flatnonzero(objects.rows.good)
    kept = kept[np.argsort(image[kept], kind="stable")]
    boxes, area = boxes[kept], objects.area[kept]
    return Annotations(
        source=source,
        folder=images.folder,
        names=names[order],
        ids=images.ids[good][order],
        sizes=images.sizes[good][order],
        category_ids=tuple(classes),
        class_names=tuple(classes.values()),
        first=np.searchsorted(image[kept], np.arange(len(order) + 1)),
        boxes=boxes,
        labels=objects.labels[kept],
        iscrowd=objects.iscrowd[kept],
        area=np.where(area >= 0, area, (boxes[:, 2:] - boxes[:, :2]).prod(1)),
        object_ids=objects.ids[kept],
        faults=faults,
    )


def _boxes_inside(objects: Objects, images: Images) -> np.ndarray:
    """Boxes clipped to their images, float32 xyxy `[A, 4]`. Tells of those that leave them, or have
    no area."""
    rows, corners = objects.rows, objects.corners
    sizes = np.concatenate([images.sizes, [[1, 1]]])[objects.image, ::-1]  # width, height
    slip = np.maximum(_OVERSHOOT_PX, _OVERSHOOT_SHARE * sizes)
    leaves = (corners[:, :2] < -slip).any(1) | (corners[:, 2:] > sizes + slip).any(1)
    sides = corners[:, 2:] - corners[:, :2]

    def outside(i: int) -> str:
        width, height = sizes[i]
        return (
            f"{objects.said(i)} leaves its image {images.called(objects.image[i])} of "
            f"{width}x{height} px"
        )

    rows.fault("box-outside", leaves & (sides > 0).all(1), outside, objects.remedy)
    boxes = corners.clip(0, np.tile(sizes, 2)).astype(np.float32)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1) & rows.good
    if empty.sum() > _FEW_EMPTY_BOXES * len(empty) or (sides[rows.good] < 0).any():
        rows.fault(
            "box-empty",
            empty,
            lambda i: f"{objects.said(i)} has zero or negative size",
            "correct or delete it",
        )
    else:
        text = f"has no area and is left out, as one of {empty.sum()} in {len(empty)} boxes"
        rows.fault(
            "box-empty", empty, lambda i: f"{objects.said(i)} {text}", "delete it", "warning"
        )
        rows.good &= ~empty
    return boxes
