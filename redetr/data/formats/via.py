"""Files of the VGG Image Annotator (VIA): a project, or its annotations exported as JSON.

Rectangles, polygons, circles and ellipses are objects; points and lines are not. The class of a
region is the value of its attribute `label`, `class`, `name`, `type` or `category`, or of its only
attribute. As VIA has no list of classes, they are those of the regions in the files of all splits,
sorted by name, with ids from 1. The sizes of images are read from their files.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redetr.data.annotations import Split
from redetr.data.formats.columns import Row, are_rows
from redetr.data.formats.outlines import is_number
from redetr.data.formats.shapes import (
    Document,
    as_dict,
    as_list,
    ellipse,
    parse_json,
    polygon,
)
from redetr.errors import InputError

_ATTRIBUTES = ("label", "class", "name", "type", "category")
# A class of that name has no colon behind it.
_KEYS = re.compile(rb'"(_via_settings|shape_attributes|filename|regions|file_attributes)"\s*:')
_NO_OBJECTS = ("point", "polyline", "line")


def is_via(head: bytes) -> bool:
    """Whether a file that begins with these bytes is in VIA's format."""
    keys = set(_KEYS.findall(head))
    if keys & {b"_via_settings", b"shape_attributes"}:
        return True
    return keys >= {b"filename", b"regions", b"file_attributes"}


def read_via(file: Path, split: Split, files: Sequence[Path]) -> Document:
    """All images of the file, with the classes of all `files`, which are those of the splits.
    Raises InputError if one of them is not JSON in VIA's format, or if several attributes may be
    the class."""
    images = _images(file)
    attribute = _class_attribute(file, images)
    names = _classes_of(images, attribute)
    for other in files:
        if other != file:
            other_images = _images(other)
            names |= _classes_of(other_images, _class_attribute(other, other_images))
    document = Document()
    id_of = document.add_categories(sorted(names))
    for image in images:
        document.add_image(image.get("filename"), None, None)
        for region in _regions(image):
            category = id_of.get(_class_of(region, attribute))
            _add_region(document, region, category)
    return document


def _images(file: Path) -> list[Row]:
    """The images of a project or of an export. Raises InputError if there are none."""
    content = parse_json(file)
    if isinstance(content, dict):
        by_name = content.get("_via_img_metadata", content)
        content = list(by_name.values()) if isinstance(by_name, dict) else by_name
    if not are_rows(content):
        text = "holds no images with regions, as VIA writes them"
        raise InputError(text, where=file, remedy="export the annotations as JSON again")
    return content


def _regions(image: Row) -> list[Row]:
    """The regions of an image. They are a list, or, in files of VIA 1, a dict by number."""
    regions = image.get("regions")
    if isinstance(regions, dict):
        regions = list(regions.values())
    return [as_dict(region) for region in as_list(regions)]


def _class_attribute(file: Path, images: list[Row]) -> str:
    """The attribute of regions that is their class; empty if they have no attributes. Raises
    InputError if several attributes may be the class."""
    names: dict[str, None] = {}  # an ordered set
    for image in images:
        for region in _regions(image):
            names.update(dict.fromkeys(_attributes(region)))
    for usual in _ATTRIBUTES:
        for name in names:
            if name.lower() == usual:
                return name
    if len(names) > 1:
        listed = ", ".join(map(reprlib.repr, sorted(names)))
        text = f"its regions have several attributes ({listed}), and none is called label"
        raise InputError(text, where=file, remedy='rename the one that holds the class to "label"')
    return next(iter(names), "")


def _attributes(region: Row) -> Row:
    return as_dict(region.get("region_attributes"))


def _class_of(region: Row, attribute: str) -> str:
    """The class of a region; empty if it has none or several."""
    value: Any = _attributes(region).get(attribute)
    if isinstance(value, dict):  # checkboxes
        chosen = [name for name, is_chosen in value.items() if is_chosen]
        value = chosen[0] if len(chosen) == 1 else ""
    if type(value) is int:
        value = str(value)
    return value.strip() if isinstance(value, str) else ""


def _classes_of(images: list[Row], attribute: str) -> set[str]:
    """The classes of all regions."""
    names = set()
    for image in images:
        for region in _regions(image):
            names.add(_class_of(region, attribute))
    names.discard("")
    return names


def _add_region(document: Document, region: Row, category: int | None) -> None:
    shape = as_dict(region.get("shape_attributes"))
    kind = shape.get("name")
    if kind in _NO_OBJECTS:
        document.leave_out(kind)
        return
    document.add_object(category, _outline(shape))


def _outline(shape: Row) -> Row:
    """The box or outline of a region, with unchecked values."""
    kind = shape.get("name")
    center_x = shape.get("cx")
    center_y = shape.get("cy")
    if kind == "circle":
        radius = shape.get("r")
        return ellipse(center_x, center_y, radius, radius)
    if kind == "ellipse":
        degrees = _degrees(shape.get("theta"))
        return ellipse(center_x, center_y, shape.get("rx"), shape.get("ry"), degrees)
    if kind == "polygon":
        return _polygon(shape.get("all_points_x"), shape.get("all_points_y"))
    bbox = [shape.get(name) for name in ("x", "y", "width", "height")]
    return {"bbox": bbox}


def _polygon(x: Any, y: Any) -> Row:
    """The outline through points with these x and y coordinates."""
    if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
        return polygon([x, y])
    points: list[Any] = []
    for point in zip(x, y, strict=True):
        points += point
    return polygon(points)


def _degrees(radians: Any) -> Any:
    """An angle in degrees; 0 if none is stated. A value that is not a number is returned
    unchanged."""
    if radians is None:
        return 0.0
    return math.degrees(radians) if is_number(radians) else radians
