"""Files in Datumaro's own format: `annotations/SUBSET.json`, images in `images/SUBSET/`.

Boxes, polygons, masks, ellipses and rotated boxes are objects, and crowds are ignored. Points,
lines and other shapes are not objects. Polygons with the same label and group are parts of one
object, which is how Datumaro stores COCO's. The id of a category is the index of its label, from 0.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redetr.data.annotations import Split
from redetr.data.formats.columns import Row, are_rows
from redetr.data.formats.outlines import is_number
from redetr.data.formats.shapes import (
    MAY_CROSS,
    Document,
    as_dict,
    as_list,
    ellipse,
    parse_json,
    polygon,
    turned,
)
from redetr.errors import InputError

_CATEGORIES = re.compile(rb'"categories"\s*:\s*\{')  # COCO's are a list
_VERSION = re.compile(rb'"dm_format_version"\s*:')  # a key, and not a class of that name
_OF_IMAGE = ("label", "caption")  # annotations of the image as a whole


def is_datumaro(head: bytes) -> bool:
    """Whether a file that begins with these bytes is in Datumaro's format."""
    return _VERSION.search(head) is not None or _CATEGORIES.search(head) is not None


def read_datumaro(file: Path, split: Split, files: Sequence[Path]) -> Document:
    """All images of the file. The `files` of other splits are not read, because each states all
    classes. Raises InputError if it is not JSON in Datumaro's format."""
    content = as_dict(parse_json(file))
    categories = as_dict(content.get("categories"))
    labels = as_dict(categories.get("label")).get("labels")
    items = content.get("items")
    if not are_rows(labels) or not isinstance(items, list):
        text = "holds no labels and items in Datumaro's format"
        raise InputError(text, where=file, remedy="export in Datumaro or COCO format again")
    document = Document()
    for index, label in enumerate(labels):
        document.categories.append({"id": index, "name": label.get("name")})
    for item in items:
        _add_item(document, as_dict(item))
    return document


def _add_item(document: Document, item: Row) -> None:
    image = as_dict(item.get("image") or item.get("media"))
    height = None
    width = None
    size = as_list(image.get("size"))
    if len(size) == 2:
        height, width = size
    document.add_image(image.get("path") or item.get("id"), height, width)
    for annotation in as_list(item.get("annotations")):
        _add_annotation(document, as_dict(annotation))


def _add_annotation(document: Document, annotation: Row) -> None:
    kind = annotation.get("type")
    if kind in _OF_IMAGE:
        return
    shape = _shape(annotation)
    if shape is None:
        document.leave_out(str(kind))
        return
    attributes = as_dict(annotation.get("attributes"))
    shape["iscrowd"] = attributes.get("is_crowd")
    rotation = attributes.get("rotation")
    if is_number(rotation):
        shape["attributes"] = {"rotation": rotation}
    document.add_object(annotation.get("label_id"), shape, annotation.get("group"))


def _shape(annotation: Row) -> Row | None:
    """The box or outline of an annotation, in COCO's format; None if it is not an object."""
    kind = annotation.get("type")
    points = annotation.get("points")
    if kind == "bbox":
        return {"bbox": annotation.get("bbox")}
    if kind == "polygon":
        return {"segmentation": [points]}
    if kind == "mask":
        return {"segmentation": annotation.get("rle"), "bbox": annotation.get("bbox")}
    if kind == "ellipse":
        return _ellipse(as_list(points))
    if kind == "rotated_bbox":
        return _turned_box(as_list(points))
    return None


def _ellipse(corners: list[Any]) -> Row:
    """The outline of an ellipse, from the x1, y1, x2, y2 around it. Invalid values are returned as
    the outline, so that a message quotes them."""
    if len(corners) != 4 or not all(map(is_number, corners)):
        return polygon(corners)
    x1, y1, x2, y2 = corners
    center_x = (x1 + x2) / 2
    center_y = (y1 + y2) / 2
    radius_x = (x2 - x1) / 2
    radius_y = (y2 - y1) / 2
    return ellipse(center_x, center_y, radius_x, radius_y)


def _turned_box(numbers: list[Any]) -> Row:
    """The outline of a rotated box, from its centre, sides and degrees. Invalid values are returned
    as the outline, so that a message quotes them."""
    if len(numbers) != 5 or not all(map(is_number, numbers)):
        return polygon(numbers)
    center_x, center_y, width, height, degrees = numbers
    half_width = width / 2
    half_height = height / 2
    offsets = (
        (half_width, half_height),
        (half_width, -half_height),
        (-half_width, -half_height),
        (-half_width, half_height),
    )
    return polygon(turned(offsets, (center_x, center_y), degrees)) | {MAY_CROSS: 1}
