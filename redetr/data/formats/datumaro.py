"""Files in Datumaro's own format: `annotations/SUBSET.json`, images in `images/SUBSET/`.

Boxes, polygons, masks, ellipses and turned boxes are objects, and crowds are ignored; points, lines
and others are none. Category ids are the numbers of the labels, from 0.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import Split
from redetr.data.formats.columns import Row
from redetr.data.formats.outlines import is_number
from redetr.data.formats.shapes import Document, ellipse, parse_json, polygon
from redetr.errors import InputError

_CATEGORIES = re.compile(rb'"categories"\s*:\s*\{')  # COCO's are a list
_NO_SHAPES = ("label", "caption")  # of the image as a whole


def is_datumaro(head: bytes) -> bool:
    """Whether a file that begins so is one of Datumaro."""
    return b'"dm_format_version"' in head or _CATEGORIES.search(head) is not None


def read_datumaro(file: Path, split: Split) -> Document:
    """All images of the file. Raises InputError if it is not JSON of Datumaro."""
    content = parse_json(file)
    names = _labels(content)
    items = content.get("items") if isinstance(content, dict) else None
    if names is None or not isinstance(items, list):
        text = "holds no labels and items, as Datumaro writes them"
        raise InputError(text, where=file, remedy="export in Datumaro or COCO format again")
    document = Document()
    document.categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    for item in items:
        row = item if isinstance(item, dict) else {}
        _add_item(document, row)
    return document


def _labels(content: Any) -> list[Any] | None:
    """The names of the labels, in order; None if there are none."""
    for key in ("categories", "label", "labels"):
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list) or not all(isinstance(label, dict) for label in content):
        return None
    return [label.get("name") for label in content]


def _add_item(document: Document, item: Row) -> None:
    media = item.get("image") or item.get("media")
    image = media if isinstance(media, dict) else {}
    size = image.get("size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (None, None)
    document.add_image(image.get("path") or item.get("id"), height, width)
    annotations = item.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        _add_annotation(document, annotation if isinstance(annotation, dict) else {})


def _add_annotation(document: Document, annotation: Row) -> None:
    kind = annotation.get("type")
    if kind in _NO_SHAPES:
        return
    shape = _shape(annotation)
    if shape is None:
        document.leave_out(str(kind))
        return
    attributes = annotation.get("attributes")
    if isinstance(attributes, dict):
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
    numbers = points if isinstance(points, list) else []
    if kind == "ellipse":  # the corners of the box around it
        if len(numbers) != 4 or not all(map(is_number, numbers)):
            return polygon(numbers)
        x1, y1, x2, y2 = numbers
        return ellipse((x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2)
    if kind == "rotated_bbox":  # centre, sides and degrees
        if len(numbers) != 5 or not all(map(is_number, numbers)):
            return polygon(numbers)
        return _turned(*numbers)
    return None


def _turned(cx: float, cy: float, width: float, height: float, degrees: float) -> Row:
    """The corners of a turned rectangle as an outline."""
    turn = np.radians(degrees)
    along = np.array([np.cos(turn), np.sin(turn)]) * width / 2
    across = np.array([-np.sin(turn), np.cos(turn)]) * height / 2
    corners = []
    for corner in (along + across, along - across, -along - across, across - along):
        corners += [cx + float(corner[0]), cy + float(corner[1])]
    return polygon(corners)
