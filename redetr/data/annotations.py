"""The result of all readers of data sets: a split as arrays, and its faults."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from redetr.data.contradictions import (
    BoxFormat,
    area_differs,
    other_format,
)
from redetr.data.crossing import clip_crossing, leaves_image
from redetr.data.faults import MOST_ITEMS, Fault, Rows, listed, listed_locations
from redetr.data.mask_columns import MaskBuilder, MaskColumns
from redetr.data.mask_faults import (
    FEW,
    judge_mask_sizes,
    judge_masks,
    judge_outlines,
)
from redetr.data.segment_images import SegmentImages
from redetr.wording import counted

Split = Literal["train", "val", "test"]
# What an object is in its source: an annotation with an id, or a numbered part of a file.
ObjectKind = Literal["annotation", "line", "object", "shape"]

Masks = MaskColumns | SegmentImages

SPLITS: tuple[Split, ...] = ("train", "val", "test")  # a data set need not have the last one
_NOT_READ = "not an image, or a damaged one"
_BLOCK = 2**16  # boxes that are clipped to their images at a time
# The columns of `Annotations` with a row for each image, and for each object.
IMAGE_COLUMNS = ("names", "ids", "sizes")
OBJECT_COLUMNS = ("boxes", "labels", "iscrowd", "area", "object_ids")


def data_folder(root: Path) -> Path:
    """The folder of a data set, which is given by the folder, by a YAML file in it, or by a JSON
    file in its `annotations/`."""
    if not root.is_file():
        return root
    parent = root.parent
    if root.suffix == ".json" and parent.name == "annotations":
        return parent.parent
    return parent


@dataclass(frozen=True)
class Annotations:
    """A split, sorted by the names of its images, so that a data set is the same in every format.

    There are N images and A objects; image `i` has the objects `first[i]:first[i + 1]`. Rows with
    an error are left out, so that the rest can be examined.
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
    object_ids: np.ndarray  # [A] int64, the annotation's id, or its number in its file
    faults: list[Fault] = field(default_factory=list)
    box_format: BoxFormat = "xyxy"  # of the source
    root: Path | None = None  # the data folder or YAML file as it was given, if it is one
    masks: Masks | None = None  # [A], if they were read
    is_thing: tuple[bool, ...] = ()  # whether each class is a thing, not stuff; empty if unknown
    stored: Path | None = None  # the store that the columns are mapped from, see `data/store.py`
    # why the files of images that are left out cannot be read, by their paths below the folder
    unreadable: dict[str, str] = field(default_factory=dict)
    # whether the source counts boxes in images as viewers rotate them, unlike `boxes`
    is_upright: bool = False
    object_kind: ObjectKind = "annotation"  # what `object_ids` are numbers of

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(self.names[index])

    def objects_of(self, index: int) -> slice:
        """The objects of an image."""
        start, stop = self.first[index : index + 2].tolist()
        return slice(start, stop)

    def only(self, images: np.ndarray, objects: np.ndarray) -> "Annotations":
        """The annotations with only these images, bool `[N]`, and of their objects only these, bool
        `[A]`."""
        counts_before = np.diff(self.first)
        is_kept = objects & np.repeat(images, counts_before)
        kept_before = np.append(0, np.cumsum(is_kept))  # [A + 1]
        counts_of_all = np.diff(kept_before[self.first])
        counts = counts_of_all[images]
        columns: dict[str, Any] = {}
        for name in IMAGE_COLUMNS:
            columns[name] = getattr(self, name)[images]
        for name in OBJECT_COLUMNS:
            columns[name] = getattr(self, name)[is_kept]
        if self.masks is not None:
            columns["masks"] = self.masks.take(np.flatnonzero(is_kept))
        first = np.append(0, np.cumsum(counts))
        return replace(self, first=first, stored=None, **columns)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the path of the store if there is one, which a loader process then maps."""
        if self.stored is None:
            return super().__reduce_ex__(protocol)
        from redetr.data.store import reopened

        return reopened, (self.stored, self.faults)

    def image_of(self) -> np.ndarray:
        """The image of each object, int64 `[A]`."""
        counts = np.diff(self.first)
        return np.repeat(np.arange(len(self)), counts)

    def object_counts(self) -> np.ndarray:
        """The number of objects in each image without crowds, int64 `[N]`."""
        crowds = np.flatnonzero(self.iscrowd)  # few, even among millions of objects
        images = np.searchsorted(self.first, crowds, side="right") - 1
        return np.diff(self.first) - np.bincount(images, minlength=len(self))

    def native_size(self) -> int | None:
        """The median of the longer sides of the images in pixels; None without images."""
        if not len(self):
            return None
        longer_sides = self.sizes.max(1)
        return int(np.median(longer_sides))

    def require_sound(self) -> None:
        """Raises InputError with the first error and the number of other kinds, if there are
        errors."""
        errors = [fault for fault in self.faults if fault.severity == "error"]
        if not errors:
            return
        addition = ""
        if len(errors) > 1:
            more = counted(len(errors) - 1, "more kind", "more kinds")
            addition = f"; {more} of faults"
            if not str(self.source).startswith("hf:"):  # where check stops at this error as well
                addition += ": redetr check reports them"
        raise errors[0].to_error(addition)


def image_reference(annotations: Annotations, index: int) -> str:
    """The name of an image in messages, such as "image 12 ('a.jpg')"."""
    name = os.fsdecode(annotations.names[index])
    return f"image {annotations.ids[index]} ({name!r})"


@dataclass
class Images:
    """N images as read, in any order; those that are not `rows.good` are left out."""

    rows: Rows
    folder: Path
    names: list[str]  # path below the folder
    ids: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N, 2] int64, height and width
    called: Callable[[int], str]  # the name of image `i` in messages
    unreadable: Sequence[str] = ()  # names of images whose files are damaged or not images

    @classmethod
    def numbered(
        cls,
        rows: Rows,
        folder: Path,
        names: list[str],
        sizes: np.ndarray,
        is_unreadable: np.ndarray,
    ) -> "Images":
        """Images without ids in their source: numbered in this order, and called by their names.
        `is_unreadable`, bool `[N]`, marks those whose files are damaged or not images."""
        unreadable = [names[i] for i in np.flatnonzero(is_unreadable)]
        ids = np.arange(len(names))
        return cls(rows, folder, names, ids, sizes, lambda i: names[i], unreadable)


@dataclass
class Objects:
    """A objects as read; those that are not `rows.good` are left out."""

    rows: Rows
    image: np.ndarray  # [A] int64, which of the images it is on; -1 = none
    labels: np.ndarray  # [A] int64; -1 = a class that is left out
    corners: np.ndarray  # [A, 4] float64, xyxy pixels, not yet clipped to the image
    iscrowd: np.ndarray  # [A] bool
    area: np.ndarray  # [A] float32; negative = that of the mask if masks are read, else of the box
    ids: np.ndarray  # [A] int64
    quoted: Callable[[int], str]  # box `i` as in the source, for messages
    remedy: str  # what to do about a box that leaves its image
    box_format: BoxFormat  # of the source
    outlines: np.ndarray | None = None  # [A, 4] float64, xyxy around the outline; NaN = none
    mask_sizes: np.ndarray | None = None  # [A, 2] int64, height and width of its mask; 0 = none
    masks: MaskBuilder | None = None  # if masks are read
    kind: ObjectKind = "annotation"  # what `ids` are numbers of
    may_cross: np.ndarray | None = None  # [A] bool, round and rotated shapes: see `crossing`
    crossing: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows clipped


def assemble(
    source: Path, classes: dict[int, str], images: Images, objects: Objects, faults: list[Fault]
) -> Annotations:
    """The annotations of a split. `classes` has names by category id; labels number them in this
    order."""
    all_boxes, masks = _judged(source, classes, images, objects, faults)
    good = np.flatnonzero(images.rows.good)
    names = np.array([os.fsencode(images.names[i]) for i in good], "S")
    by_name = np.lexsort((images.ids[good], names))
    image_order = good[by_name]
    # The last one stays -1: objects without an image, whose `image` is -1, get it.
    new_index = np.full(len(images.ids) + 1, -1)
    new_index[image_order] = np.arange(len(image_order))

    image = new_index[objects.image]
    kept = np.flatnonzero(objects.rows.good)
    by_image = np.argsort(image[kept], kind="stable")
    kept = kept[by_image]
    indices = np.arange(len(image_order) + 1)
    first = np.searchsorted(image[kept], indices)
    boxes = all_boxes[kept]
    area = objects.area[kept]
    sides = boxes[:, 2:] - boxes[:, :2]
    return Annotations(
        source=source,
        folder=images.folder,
        names=names[by_name],
        ids=images.ids[image_order],
        sizes=images.sizes[image_order],
        category_ids=tuple(classes),
        class_names=tuple(classes.values()),
        first=first,
        boxes=boxes,
        labels=objects.labels[kept],
        iscrowd=objects.iscrowd[kept],
        area=np.where(area >= 0, area, sides.prod(1)),
        object_ids=objects.ids[kept],
        faults=faults,
        box_format=objects.box_format,
        object_kind=objects.kind,
        masks=None if masks is None else masks.take(kept),
        unreadable=dict.fromkeys(images.unreadable, _NOT_READ),
    )


def _judged(
    source: Path, classes: dict[int, str], images: Images, objects: Objects, faults: list[Fault]
) -> tuple[np.ndarray, MaskColumns | None]:
    """Adds the faults of objects and classes; returns the boxes, xyxy `[A, 4]`, clipped to their
    images, and the masks.

    Values that messages quote are freed, because they take half of the memory.
    """
    image_is_good = np.append(images.rows.good, False)  # the last is for objects without an image
    has_class = objects.labels >= 0
    objects.rows.good &= image_is_good[objects.image] & has_class
    clip_crossing(objects, images)
    faults += _contradictions(source, objects, images)
    all_boxes = _boxes_inside(objects, images)
    objects.corners = np.zeros((0, 4))  # no longer needed, and takes most of the memory
    masks = judge_masks(objects, images, all_boxes)
    faults += _repeated_names(source, classes)
    faults += _unwritable_names(source, classes)

    images.rows.forget()
    objects.rows.forget()
    return all_boxes, masks


def _repeated_names(source: Path, classes: dict[int, str]) -> list[Fault]:
    """A warning if several classes have the same name."""
    counts = Counter(classes.values())
    repeated = [name for name, count in counts.items() if count > 1]
    if not repeated:
        return []
    name = repeated[0]
    count = counts[name]
    text = f"{count} classes are called {name!r}"
    remedy = "give each its own name, or merge them"
    items = listed(repr(name) for name in repeated)
    return [Fault("warning", "class-twice", source, "", text, remedy, len(repeated), items)]


@dataclass
class _Clipped:
    """Boxes clipped to their images, and their faults."""

    boxes: np.ndarray  # [A, 4] float32, xyxy
    leaves: np.ndarray  # [A] bool, exceeds the image by more than annotators overshoot
    has_area: np.ndarray  # [A] bool, before clipping
    is_negative: np.ndarray  # [A] bool, in width or height


def _clipped(corners: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> _Clipped:
    """Boxes `[A, 4]` clipped to their images; `sizes` `[N + 1, 2]` are the width and height of
    these."""
    count = len(corners)
    boxes = np.empty((count, 4), np.float32)
    leaves = np.empty(count, bool)
    has_area = np.empty(count, bool)
    is_negative = np.empty(count, bool)
    # In blocks, because intermediate values for all boxes would take most of the memory.
    for start in range(0, count, _BLOCK):
        rows = slice(start, start + _BLOCK)
        size = sizes[image[rows]]
        starts = corners[rows, :2]
        ends = corners[rows, 2:]
        sides = ends - starts
        has_area[rows] = (sides > 0).all(1)
        is_negative[rows] = (sides < 0).any(1)
        leaves[rows] = leaves_image(starts, ends, size)
        boxes[rows] = corners[rows].clip(0, np.tile(size, 2))
    return _Clipped(boxes, leaves, has_area, is_negative)


def _unwritable_names(source: Path, classes: dict[int, str]) -> list[Fault]:
    """An error if names of classes are blank, or have characters that text files or terminals
    cannot represent."""
    ids = []
    for id_, name in classes.items():
        if not name.strip() or not all(map(_is_writable, name)):
            ids.append(id_)
    if not ids:
        return []
    items = listed(f"category {id_}" for id_ in ids)
    text = f"its name {classes[ids[0]]!a} is blank, or holds control characters or half a character"
    remedy = "write another name"
    return [Fault("error", "name-invalid", source, items[0], text, remedy, len(ids), items)]


def _is_writable(character: str) -> bool:
    return character in "\t\r\n" or unicodedata.category(character) not in ("Cc", "Cs")


def _contradictions(source: Path, objects: Objects, images: Images) -> list[Fault]:
    """Contradictions between the parts of an object. Impossible areas count as not stated."""
    rows = objects.rows
    outlines = objects.outlines
    if outlines is None:
        outlines = np.broadcast_to(np.nan, objects.corners.shape)  # without memory
    judge_mask_sizes(objects, images, outlines)
    is_judged = rows.good & ~objects.iscrowd
    area = np.where(is_judged, objects.area, -1)
    formats = _format_faults(source, objects, outlines, area, is_judged)
    if formats:
        return formats
    if objects.masks is None or not objects.masks.for_training:  # otherwise judged with masks
        judge_outlines(objects, images, objects.corners, is_judged)
    no_area = area_differs(objects.corners, area, is_judged)

    def areas(i: int) -> str:
        width, height = objects.corners[i, 2:] - objects.corners[i, :2]
        stated = f"area {objects.area[i]:.12g}"
        return f"{stated} cannot be that of {objects.quoted(i)} of {width * height:.12g} px"

    part = "box" if objects.masks is None else "mask or box"
    remedy = f"the area of its {part} is used instead, because AP by size depends on areas"
    rows.fault("area-differs", no_area, areas, remedy, "warning")
    objects.area = np.where(no_area, -1, objects.area)
    return []


def _format_faults(
    source: Path,
    objects: Objects,
    outlines: np.ndarray,
    area: np.ndarray,
    is_judged: np.ndarray,
) -> list[Fault]:
    """An error if outlines and areas agree with the boxes in another format only."""
    other = other_format(objects.corners, outlines, area, objects.box_format, is_judged)
    if other is None:
        return []
    box_format, shown_by = other
    row = int(shown_by.argmax())
    count = int(shown_by.sum())
    file, where = objects.rows.locate(row)
    text = f"{objects.quoted(row)} fits its outline or area only as {box_format}"
    remedy = f"write {objects.box_format}: boxes are {box_format}, as their outlines and areas say"
    shown_rows = np.flatnonzero(shown_by)[:MOST_ITEMS].tolist()
    items = listed_locations(map(objects.rows.locate, shown_rows))
    return [Fault("error", f"format-{box_format}", file, where, text, remedy, count, items)]


def _boxes_inside(objects: Objects, images: Images) -> np.ndarray:
    """Boxes clipped to their images, float32 xyxy `[A, 4]`. Adds a fault for boxes that exceed
    their image, and one for boxes without area."""
    image_sizes = np.concatenate([images.sizes, [[1, 1]]])  # the last is for objects without one
    clipped = _clipped(objects.corners, objects.image, image_sizes[:, ::-1])

    def outside(i: int) -> str:
        number = objects.image[i]
        height, width = image_sizes[number]
        box = objects.quoted(i)
        image = images.called(number)
        return f"{box} leaves its image {image} of {width}x{height} px"

    bad = clipped.leaves & clipped.has_area
    objects.rows.fault("box-outside", bad, outside, objects.remedy)
    _judge_empty_boxes(objects, clipped)
    return clipped.boxes


def _judge_empty_boxes(objects: Objects, clipped: _Clipped) -> None:
    """Leaves out boxes without area, with a warning if they are few, or an error otherwise."""
    rows = objects.rows
    boxes = clipped.boxes
    no_side = boxes[:, 2:] <= boxes[:, :2]
    empty = no_side.any(1) & rows.good
    count = int(empty.sum())
    are_many = count > FEW * len(empty)
    if are_many or (clipped.is_negative & rows.good).any():

        def negative(i: int) -> str:
            return f"{objects.quoted(i)} has zero or negative size"

        remedy = "correct or delete it"
        if objects.box_format == "xyxy":
            remedy += "; if it is xywh, write its corners"
        rows.fault("box-empty", empty, negative, remedy)
        return

    def left_out(i: int) -> str:
        share = f"one of {count:,} in {counted(len(empty), 'box', 'boxes')}"
        return f"{objects.quoted(i)} has no area and is left out, as {share}"

    rows.fault("box-empty", empty, left_out, "delete it", "warning")
    rows.good &= ~empty
