"""Interprets the rows of a Hugging Face data set: which columns have boxes and classes, and in
which format.

Data sets on the hub have no common format. Objects are a list of dicts, a dict of lists, or columns
of the row itself. Classes are ClassLabels, plain numbers or texts. Boxes are xywh, xyxy or cxcywh,
in pixels or as fractions of the image. Of all this, only the names of classes are stated.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from redetr.data.contradictions import (
    FEWEST_FOR_CORNERS,
    FORMATS,
    BoxFormat,
    look_like_corners,
    to_corners,
)
from redetr.data.crossing import OVERSHOOT_SHARE, leaves_image
from redetr.data.formats.hub_boxes import NamedNumbers, named_numbers
from redetr.data.formats.hub_images import image_column
from redetr.data.formats.outlines import is_number
from redetr.data.segment_images import has_losses
from redetr.errors import InputError
from redetr.masks import encode
from redetr.wording import counted

Row = dict[str, Any]

# Names of columns, the most usual first.
_OBJECTS = ("objects", "annotations", "object", "annotation", "labels", "label", "target")
_FIELDS = {
    "bbox": ("bbox", "bboxes", "boxes", "box"),
    "category": (
        "category",
        "categories",
        "category_id",
        "category_ids",
        "label",
        "labels",
        "class",
        "classes",
        "class_id",
        "class_ids",
        "name",
        "names",
    ),
    "area": ("area", "areas"),
    "iscrowd": ("iscrowd", "is_crowd"),
}
_KEY_POINTS = ("keypoints", "key_points")
_MASKS = ("segmentation", "segmentations", "polygons", "polygon", "rle", "masks", "mask")
# Shares of the boxes in a sample.
_NEARLY_ALL = 0.99
_MOST = 0.9
_SAME_AREA = 0.02  # relative
_LARGER_THAN_BOX = 1.5
_SMALLEST_PX = 16  # in images that are smaller, pixels look like fractions


@dataclass(frozen=True)
class Columns:
    """The columns of a row that hold its image and its objects."""

    image: str
    objects: str  # the column with the fields; empty if they are columns of the row
    # The names of the columns that are called bbox, category, area, iscrowd and segmentation here.
    # The bbox is empty if its four numbers are columns of their own.
    fields: dict[str, str]
    numbers: NamedNumbers | None = None  # of a box, if they have names

    def used(self) -> list[str]:
        """The columns that hold objects."""
        if self.objects:
            return [self.objects]
        columns = [column for column in self.fields.values() if column]
        if self.numbers is not None and not self.fields["bbox"]:
            columns += self.numbers.names
        return columns

    def objects_of(self, row: Row) -> list[Row] | str:
        """The objects of a row with our names for the columns. If the lists differ in length, a
        text with the lengths. Objects that are null are left out."""
        fields = row[self.objects] if self.objects else row
        if isinstance(fields, list):
            objects = []
            for thing in fields:
                if thing is not None:  # see `count_nulls`
                    objects.append({name: self._value(name, thing) for name in self.fields})
            return objects
        lists = {}
        for name, column in self.fields.items():
            if name == "bbox" and self.numbers is not None:
                lists[name] = self.numbers.boxes(self._value_of_row(fields or {}))
            else:
                lists[name] = _as_list(name, (fields or {}).get(column))
        if lists["bbox"] == [[None] * 4] and not lists["category"]:
            return []  # the row of an image without objects
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            counts = [f"{count} {self.fields[name] or name}" for name, count in lengths.items()]
            return ", ".join(counts)
        objects = []
        for values in zip(*lists.values(), strict=True):
            objects.append(dict(zip(lists, values, strict=True)))
        return objects

    def have_key_points(self, row: Row) -> bool:
        """Whether an object of the row has keypoints."""
        fields = row[self.objects] if self.objects else row
        things = fields if isinstance(fields, list) else [fields or {}]
        for thing in things:
            values = [(thing or {}).get(column) for column in _KEY_POINTS]
            if any(map(_holds_numbers, values)):
                return True
        return False

    def count_nulls(self, row: Row) -> int:
        """The number of objects of a row that are null."""
        fields = row[self.objects] if self.objects else row
        return fields.count(None) if isinstance(fields, list) else 0

    def _value(self, name: str, thing: Row) -> Any:
        """A field of one object."""
        column = self.fields[name]
        if name != "bbox" or self.numbers is None:
            return thing[column]
        (box,) = self.numbers.boxes([thing[column] if column else thing])
        return box

    def _value_of_row(self, fields: Row) -> Any:
        """The value that holds the boxes of a row."""
        column = self.fields["bbox"]
        return fields.get(column) if column else fields


def _holds_numbers(value: Any) -> bool:
    """Whether there is a number in a value, at any depth of lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_holds_numbers(item) for item in value)
    return is_number(value)


def _as_list(name: str, value: Any) -> list[Any]:
    """The values of a field for all objects of a row, which may have a single object without a
    list."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [value]
    if name == "bbox" and value and not isinstance(value[0], list):
        return [value]
    return value


def find_columns(source: str, features: Any, masks: bool = False) -> Columns:
    """The columns with images, boxes, classes and, on request, masks. Raises InputError if there
    are no images, boxes or classes."""
    image = image_column(source, features)
    for objects in (*_OBJECTS, ""):
        fields = features
        if objects:  # a dict of lists, or a list of dicts
            fields = features.get(objects)
            fields = getattr(fields, "feature", fields)
        if not isinstance(fields, dict):
            continue
        column_of = {}
        for name, aliases in _FIELDS.items():
            present = [alias for alias in aliases if alias in fields]
            if present:
                column_of[name] = present[0]
        present = [alias for alias in _MASKS if masks and alias in fields]
        if present:
            column_of["segmentation"] = present[0]
        numbers = None
        if "bbox" in column_of:
            inner = _inner(fields[column_of["bbox"]])
            numbers = named_numbers(inner) if isinstance(inner, dict) else None
        else:
            numbers = named_numbers(fields)
            if numbers is not None:
                column_of["bbox"] = ""
        if image and "bbox" in column_of and "category" in column_of:
            return Columns(image, objects, column_of, numbers)
    columns = ", ".join(features)
    raise InputError(
        "needs columns image and objects, with bbox (or boxes) and category (or label) in it",
        where=source,
        remedy=f"rename its columns, which are {columns}",
    )


def _inner(feature: Any) -> Any:
    """The type of the items of a list, in any version of `datasets`."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: names by id, and the id of each value of the column."""

    names: dict[int, str]
    id_of: dict[Any, int]
    note: str  # how the classes were determined; empty for a ClassLabel


def find_classes(source: str, columns: Columns, splits: dict[str, Any]) -> Classes:
    """The classes that the column states, or all classes that occur in any row of any split.

    Raises InputError if they are neither numbers nor texts.
    """
    features = next(iter(splits.values())).features
    fields = _inner(features[columns.objects]) if columns.objects else features
    column = columns.fields["category"]
    names = getattr(_inner(fields[column]), "names", None)
    if names is not None:
        by_id = dict(enumerate(names))
        return Classes(by_id, {id_: id_ for id_ in by_id}, "")
    values: set[Any] = set()
    for rows in splits.values():
        for row in rows.select_columns(columns.used()):
            objects = columns.objects_of(row)
            if not isinstance(objects, str):
                values.update(_hashable(thing["category"]) for thing in objects)
    values.discard(None)
    if values and all(isinstance(value, str) for value in values):
        texts = sorted(values)
        number = counted(len(texts), "text")
        note = f"its classes are the {number} values of {column}, in alphabetical order"
        by_id = dict(enumerate(texts))
        return Classes(by_id, {text: id_ for id_, text in by_id.items()}, note)
    if values and all(type(value) is int for value in values):
        note = f"{column} holds numbers without names, which become the class names"
        by_id = {id_: str(id_) for id_ in sorted(values)}
        return Classes(by_id, {id_: id_ for id_ in by_id}, note)
    raise InputError(
        f"{column} is not a ClassLabel, and holds neither texts nor whole numbers",
        where=source,
        remedy="cast it with cast_column",
    )


def _hashable(value: Any) -> Any:
    """The value of a class in the rows. A list or dict, which is not a class, is replaced by its
    type."""
    return type(value) if isinstance(value, list | dict) else value


@dataclass(frozen=True)
class Sample:
    """A boxes as the rows state them, with the sizes of their images, and their areas."""

    numbers: np.ndarray  # [A, 4] float64
    sizes: np.ndarray  # [A, 2], width and height of the image
    area: np.ndarray  # [A], negative if it is not stated

    @classmethod
    def of(cls, objects: Iterable[tuple[tuple[int, int], list[Row]]]) -> "Sample":
        """The sample from images (width and height) with their objects. Values that are not boxes
        are left out."""
        numbers = []
        sizes = []
        area = []
        for size, things in objects:
            for thing in things:
                box = four_numbers(thing["bbox"])
                if box and min(size) > 0:
                    numbers.append(box)
                    sizes.append(size)
                    stated = thing.get("area")
                    is_area = isinstance(stated, int | float) and 0 <= stated < np.inf
                    area.append(stated if is_area else -1)
        return cls(
            np.array(numbers, np.float64).reshape(-1, 4),
            np.array(sizes, np.float64).reshape(-1, 2),
            np.array(area, np.float64),
        )


def four_numbers(value: Any) -> list[float] | None:
    """The numbers of a box; None if the value is not a box."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    for number in value:
        if not isinstance(number, int | float) or not abs(number) < 1e9:
            return None
    return value


@dataclass(frozen=True)
class BoxForm:
    """The format of boxes in a data set."""

    box_format: BoxFormat = "xywh"
    fractions: bool = False
    note: str = ""  # why it is not the usual format

    def pixels(self, box: Any, size: tuple[int, int]) -> Any:
        """A box as x, y, width, height in pixels, in an image of `size` (width, height). Values
        that are not boxes are returned unchanged."""
        numbers = four_numbers(box)
        if numbers is None or (self.box_format == "xywh" and not self.fractions):
            return box
        array = np.array([numbers], np.float64)
        if self.fractions:
            array = array * np.tile(size, 2)
        x1, y1, x2, y2 = to_corners(array, self.box_format)[0].round(9).tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    def segmentation(self, value: Any, size: tuple[int, int]) -> Any:
        """A mask in COCO's format: polygons in pixels, or RLE, to which an image that is not 0
        inside is converted. Other values are returned unchanged."""
        if isinstance(value, Image.Image):
            return _rle_of(value)
        if not isinstance(value, list) or not value:
            return value
        polygons = value if isinstance(value[0], list) else [value]
        numbers = [number for polygon in polygons for number in polygon]
        if not self.fractions or not all(map(is_number, numbers)):
            return polygons
        scaled = []
        for polygon in polygons:
            points = np.resize(np.array(size, np.float64), len(polygon)) * polygon
            scaled.append(points.round(9).tolist())
        return scaled

    def area(self, value: Any, size: tuple[int, int]) -> Any:
        """An area in square pixels. Values that are not numbers are returned unchanged."""
        is_fraction = isinstance(value, int | float) and value <= 1
        if self.fractions and is_fraction:
            width, height = size
            return value * width * height
        return value


def _rle_of(image: Image.Image) -> Row:
    """The RLE of the pixels that are not 0. In an image with lossy compression, these are the
    pixels brighter than half of the maximum. A constant alpha channel is ignored."""
    is_lossy = has_losses(image)  # has to be called before decoding
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        alpha = pixels[..., -1]
        if alpha.min() == alpha.max():
            pixels = pixels[..., :-1]
    if pixels.ndim == 3:
        pixels = pixels.max(2)
    limit = pixels.max() // 2 if is_lossy else 0
    height, width = pixels.shape
    (counts,) = encode(torch.from_numpy(pixels > limit)[None])
    return {"size": [height, width], "counts": counts}


def box_form(
    source: str, sample: Sample, stated: str, numbers_of: NamedNumbers | None = None
) -> BoxForm:
    """The format of boxes: as `stated`, or else as the names of their numbers imply, or else the
    format in which the sample makes sense.

    Raises InputError if several formats make sense, and xywh in pixels is not one of them.
    """
    fractions = _are_fractions(sample)
    if stated:
        for box_format in FORMATS:
            if stated == box_format:
                return BoxForm(box_format, fractions)
        remedy = f"write one of {', '.join(FORMATS)}"
        raise InputError(f"boxes={stated} is not a format", where=source, remedy=remedy)
    if not len(sample.numbers):
        return BoxForm()
    if numbers_of is not None and numbers_of.is_certain:
        names = " ".join(numbers_of.names)
        note = f"its boxes are read as {numbers_of.box_format}, as their names ({names}) state"
        return BoxForm(numbers_of.box_format, fractions, note)
    numbers = sample.numbers
    area = sample.area
    unit = "in pixels"
    if fractions:
        numbers = numbers * np.tile(sample.sizes, 2)
        area = np.where(area <= 1, area * sample.sizes.prod(1), area)
        unit = "as fractions of the image"
    candidates = [form for form in FORMATS if _makes_sense(form, numbers, sample.sizes, area)]
    by_area = [form for form in candidates if _fits_area(form, numbers, area) >= _MOST]
    if len(by_area) == 1:
        candidates = by_area
    elif "xywh" in candidates and not fractions:
        are_corners = "xyxy" in candidates and look_like_corners(numbers, sample.sizes)
        candidates = ["xywh", "xyxy"] if are_corners else ["xywh"]
    if candidates == ["xywh"] and not fractions:
        is_certain = len(by_area) == 1 or not _may_be_few_corners(sample)
        return BoxForm() if is_certain else BoxForm(note=_few(source, len(numbers)))
    if len(candidates) == 1:
        note = f"its boxes are read as {candidates[0]} {unit}, the only format that fits"
        return BoxForm(candidates[0], fractions, note)
    if not candidates:  # the reader reports each box
        return BoxForm("xywh", fractions)
    text = f"its boxes may be {' or '.join(candidates)} {unit}"
    address = source.partition(",boxes=")[0]
    remedy = f"state which, as in {address},boxes={candidates[-1]}"
    raise InputError(text, where=source, remedy=remedy)


def _may_be_few_corners(sample: Sample) -> bool:
    """Whether boxes in pixels may be corners, but are too few to decide it."""
    numbers = sample.numbers
    is_few = len(numbers) < FEWEST_FOR_CORNERS
    return is_few and _makes_sense("xyxy", numbers, sample.sizes, sample.area)


def _few(source: str, count: int) -> str:
    address = source.partition(",boxes=")[0]
    boxes = counted(count, "box is", "boxes are")
    return (
        f"{boxes} too few to tell xywh from xyxy, so xywh is assumed: give "
        f"{address},boxes=xyxy if they are corners, or boxes=xywh to settle it"
    )


def _are_fractions(sample: Sample) -> bool:
    if not len(sample.numbers) or sample.sizes.min() < _SMALLEST_PX:
        return False
    is_fraction = np.abs(sample.numbers).max(1) <= 1 + OVERSHOOT_SHARE
    return bool(is_fraction.mean() >= _NEARLY_ALL)


def _makes_sense(
    box_format: BoxFormat, numbers: np.ndarray, sizes: np.ndarray, area: np.ndarray
) -> bool:
    """Whether boxes of this format lie in their images, and are not smaller than their areas."""
    boxes = to_corners(numbers, box_format)
    starts = boxes[:, :2]
    ends = boxes[:, 2:]
    has_area = (ends > starts).all(1)
    sound = has_area & ~leaves_image(starts, ends, sizes)
    largest = _LARGER_THAN_BOX * (ends - starts + 1).prod(1)
    is_unknown = area < 0
    area_fits = is_unknown | (area <= largest)
    return bool(sound.mean() >= _NEARLY_ALL and area_fits.mean() >= _MOST)


def _fits_area(box_format: BoxFormat, numbers: np.ndarray, area: np.ndarray) -> float:
    """The share of boxes whose area is the stated one."""
    boxes = to_corners(numbers, box_format)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return float((np.abs(areas - area) <= _SAME_AREA * area).mean())


def sample_rows(rows: Any, most: int) -> Iterator[Row]:
    """At most `most` rows, spread over all of them."""
    step = max(1, math.ceil(len(rows) / most))
    yield from rows.select(range(0, len(rows), step))
