"""Files of the VGG Image Annotator (VIA): a project, or its annotations exported as JSON.

Rectangles, polygons, circles and ellipses are objects; points and lines are none. The class of a
region is the value of its attribute `label`, `class`, `name`, `type` or `category`, or of its only
one. Classes are sorted by name, with ids from 1. Sizes of images are read from their files.
"""

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

from redetr.data.annotations import Split
from redetr.data.formats.columns import Row
from redetr.data.formats.shapes import Document, ellipse, parse_json, polygon
from redetr.errors import InputError

_ATTRIBUTES = ("label", "class", "name", "type", "category")
_NO_OBJECTS = ("point", "polyline", "line")


def is_via(head: bytes) -> bool:
    """Whether a file that begins so is one of VIA."""
    if b'"_via_settings"' in head or b'"shape_attributes"' in head:
        return True
    return b'"filename"' in head and b'"regions"' in head and b'"file_attributes"' in head


def read_via(file: Path, split: Split) -> Document:
    """All images of the file. Raises InputError if it is not JSON of VIA, or if several attributes
    may be the class."""
    content = parse_json(file)
    if isinstance(content, dict) and "_via_img_metadata" in content:
        content = content["_via_img_metadata"]
    images = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        text = "holds no images with regions, as VIA writes them"
        raise InputError(text, where=file, remedy="export the annotations as JSON again")
    attribute = _class_attribute(file, images)
    names: dict[str, int] = {}
    for image in images:
        for region in _regions(image):
            names.setdefault(_class_of(region, attribute), 0)
    names.pop("", None)
    number_of = {name: number for number, name in enumerate(sorted(names), start=1)}
    document = Document()
    document.categories = [{"id": id_, "name": name} for name, id_ in number_of.items()]
    for image in images:
        document.add_image(image.get("filename"), None, None)
        for region in _regions(image):
            _add_region(document, region, number_of.get(_class_of(region, attribute)))
    return document


def _regions(image: Row) -> list[Row]:
    """The regions of an image: a list, or of VIA 1 a dict by their numbers."""
    regions = image.get("regions") or []
    if isinstance(regions, dict):
        regions = list(regions.values())
    if not isinstance(regions, list):
        return []
    return [region if isinstance(region, dict) else {} for region in regions]


def _class_attribute(file: Path, images: list[Row]) -> str:
    """The attribute of regions that is their class."""
    counts: Counter[str] = Counter()
    for image in images:
        for region in _regions(image):
            counts.update(_attributes(region).keys())
    known = [name for name in counts if name.lower() in _ATTRIBUTES]
    if len(known) > 1:
        known.sort(key=lambda name: _ATTRIBUTES.index(name.lower()))
    if known:
        return known[0]
    if len(counts) > 1:
        listed = ", ".join(map(reprlib.repr, sorted(counts)))
        text = f"its regions have several attributes ({listed}), and none is called label"
        raise InputError(text, where=file, remedy="call the one that is the class label")
    return next(iter(counts), "")


def _attributes(region: Row) -> Row:
    attributes = region.get("region_attributes")
    return attributes if isinstance(attributes, dict) else {}


def _class_of(region: Row, attribute: str) -> str:
    """The class of a region; empty if it has none, or several."""
    value: Any = _attributes(region).get(attribute)
    if isinstance(value, dict):  # checkboxes
        chosen = [name for name, is_chosen in value.items() if is_chosen]
        value = chosen[0] if len(chosen) == 1 else ""
    if type(value) is int:
        value = str(value)
    return value.strip() if isinstance(value, str) else ""


def _add_region(document: Document, region: Row, category: int | None) -> None:
    shape = region.get("shape_attributes")
    if not isinstance(shape, dict):
        shape = {}
    kind = shape.get("name")
    if kind in _NO_OBJECTS:
        document.leave_out(kind)
        return
    document.add_object(category, _outline(shape))


def _outline(shape: Row) -> Row:
    """The box or outline of a region; a message quotes what is none."""
    kind = shape.get("name")
    if kind == "circle":
        radius = shape.get("r")
        return ellipse(shape.get("cx"), shape.get("cy"), radius, radius)
    if kind == "ellipse":
        center = (shape.get("cx"), shape.get("cy"))
        return ellipse(*center, shape.get("rx"), shape.get("ry"), _degrees(shape.get("theta")))
    if kind == "polygon":
        x = shape.get("all_points_x")
        y = shape.get("all_points_y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            return polygon([x, y])
        return polygon([number for point in zip(x, y, strict=True) for number in point])
    return {"bbox": [shape.get(side) for side in ("x", "y", "width", "height")]}


def _degrees(radians: Any) -> Any:
    if radians is None:
        return 0.0
    return radians * 57.29577951308232 if type(radians) in (int, float) else radians
