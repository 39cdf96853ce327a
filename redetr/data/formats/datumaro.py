"""Files in Datumaro's own format: `annotations/SUBSET.json`, images in `images/SUBSET/`.

Boxes, polygons, masks, ellipses and turned boxes are objects, and crowds are ignored; points, lines
and others are none. Category ids are the numbers of the labels, from 0.
"""

import math
import re
from pathlib import Path
from typing import Any, TypeGuard

from redetr.data.annotations import Split
from redetr.data.formats.columns import Row
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

_CATEGORIES = re.compile(rb'"categories"\s*:\s*\{')  # COCO's are a list
_NO_SHAPES = ("label", "caption")  # of the image as a whole


def is_datumaro(head: bytes) -> bool:
    """Whether a file that begins so is one of Datumaro."""
    return b'"dm_format_version"' in head or _CATEGORIES.search(head) is not None


def read_datumaro(file: Path, split: Split) -> Document:
    """All images of the file. Raises InputError if it is not JSON of Datumaro."""
    content = as_dict(parse_json(file))
    labels = as_dict(as_dict(content.get("categories")).get("label")).get("labels")
    items = content.get("items")
    if not _are_dicts(labels) or not isinstance(items, list):
        text = "holds no labels and items, as Datumaro writes them"
        raise InputError(text, where=file, remedy="export in Datumaro or COCO format again")
    document = Document()
    for number, label in enumerate(labels):
        document.categories.append({"id": number, "name": label.get("name")})
    for item in items:
        _add_item(document, as_dict(item))
    return document


def _are_dicts(rows: Any) -> TypeGuard[list[Row]]:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


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
    if kind in _NO_SHAPES:
        return
    shape = _shape(annotation)
    if shape is None:
        document.leave_out(str(kind))
        return
    attributes = as_dict(annotation.get("attributes"))
    shape["iscrowd"] = attributes.get("is_crowd")
    if is_number(attributes.get("rotation")):
        shape["attributes"] = {"rotation": attributes["rotation"]}
    document.add_object(annotation.get("label_id"), shape)


def _shape(annotation: Row) -> Row | None:
    """The box or the outline of an object; None if it is none."""
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
    """The outline of an ellipse from x1, y1, x2, y2 around it; a message quotes what is none."""
    if len(corners) != 4 or not all(map(is_number, corners)):
        return polygon(corners)
    x1, y1, x2, y2 = corners
    center_x = (x1 + x2) / 2
    center_y = (y1 + y2) / 2
    return ellipse(center_x, center_y, (x2 - x1) / 2, (y2 - y1) / 2)


def _turned_box(numbers: list[Any]) -> Row:
    """The outline of a turned box from its centre, sides and degrees; a message quotes what is
    none."""
    if len(numbers) != 5 or not all(map(is_number, numbers)):
        return polygon(numbers)
    center_x, center_y, width, height, degrees = numbers
    cosine = math.cos(math.radians(degrees))
    sine = math.sin(math.radians(degrees))
    corners = []
    for right, down in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5)):
        along = right * width
        across = down * height
        x = center_x + along * cosine - across * sine
        y = center_y + along * sine + across * cosine
        corners += [x, y]
    return polygon(corners)
