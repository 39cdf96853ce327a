"""Files that CVAT exports as "CVAT for images 1.1": XML with all images of a task or project.

Boxes, polygons, ellipses and masks are objects; points, lines and cuboids are none. A turned box is
that around it. Classes are the labels of the task in their order, with ids from 1. In a project,
images have a subset each: Train, Validation or Test.
"""

import math
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import torch

from redetr.data.annotations import SPLITS, Split
from redetr.data.formats.coco_places import SPLIT_FOLDERS
from redetr.data.formats.columns import Row
from redetr.data.formats.paths import read_file
from redetr.data.formats.shapes import Document, ellipse, polygon
from redetr.data.formats.voc_xml import encoding_of
from redetr.errors import InputError
from redetr.masks import encode

_SUBSET = re.compile(rb"""<image [^>]*\bsubset=["']([^"']*)["']""")
_LARGEST = 1e9  # px
_LARGEST_MASK = 2**28  # pixels: a file cannot make this machine allocate more


def is_cvat(head: bytes) -> bool:
    """Whether a file that begins so is one of CVAT."""
    text = head.replace(b"\0", b"")  # UTF-16
    return b"<annotations>" in text and (b"<meta>" in text or b"<image " in text)


def cvat_splits(file: Path) -> list[Split]:
    """The splits of a file: its subsets, or if it has none of the usual names, train."""
    subsets = {name.decode("utf-8", "replace") for name in _SUBSET.findall(read_file(file))}
    splits = [split for split in SPLITS if any(_is_of(name, split) for name in subsets)]
    return splits or ["train"]


def _is_of(subset: str, split: Split) -> bool:
    return subset.lower() in SPLIT_FOLDERS[split]


def read_cvat(file: Path, split: Split) -> Document:
    """The images of the split. Raises InputError for a file that is no XML, or that has tracks of a
    video."""
    root = _parse(file)
    if root.find("track") is not None:
        text = "holds tracks, as CVAT for video writes them, which are not read"
        remedy = 'export as "CVAT for images 1.1" or COCO'
        raise InputError(text, where=file, remedy=remedy)
    images = root.findall("image")
    if cvat_splits(file) != ["train"]:
        images = [image for image in images if _is_of(image.get("subset") or "", split)]
    names = _labels(root)
    number_of = {name: number for number, name in enumerate(names, start=1)}
    document = Document()
    document.categories = [{"id": id_, "name": name} for name, id_ in number_of.items()]
    for image in images:
        size = [_number(image, side) for side in ("height", "width")]
        document.add_image(image.get("name"), *(int(side) if side > 0 else None for side in size))
        for shape in image:
            _add_shape(document, shape, number_of, size)
    return document


def _parse(file: Path) -> Element:
    content = read_file(file)
    remedy = "export the annotations again"
    try:
        text = content.decode(encoding_of(content))
        if "<!DOCTYPE" in text:
            raise InputError("declares a document type, which is refused", where=file)
        return ElementTree.fromstring(text)
    except (LookupError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"not XML: {error}", where=file, remedy=remedy) from None


def _labels(root: Element) -> list[str]:
    """The names of the labels of the task, and those of shapes that it does not list."""
    names = dict.fromkeys(label.findtext("name") or "" for label in root.iterfind("meta//label"))
    shapes = [shape.get("label") or "" for shape in root.iterfind("image/*")]
    names |= dict.fromkeys(sorted(set(shapes)))
    names.pop("", None)
    return list(names)


def _add_shape(
    document: Document, element: Element, number_of: dict[str, int], size: list[float]
) -> None:
    if element.tag == "tag":  # of the image as a whole
        return
    shape = _shape(element, size)
    if shape is None:
        document.leave_out(element.tag)
        return
    document.add_object(number_of.get(element.get("label") or ""), shape)


def _shape(element: Element, size: list[float]) -> Row | None:
    """The box or the outline of an object; None if it is none."""
    degrees = _number(element, "rotation")
    turn = 0.0 if np.isnan(degrees) else degrees
    if element.tag == "box":
        x1, y1, x2, y2 = (_number(element, side) for side in ("xtl", "ytl", "xbr", "ybr"))
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "attributes": {"rotation": turn}}
    if element.tag == "polygon":
        return polygon(_points(element.get("points") or ""))
    if element.tag == "ellipse":
        cx, cy, rx, ry = (_number(element, name) for name in ("cx", "cy", "rx", "ry"))
        return ellipse(cx, cy, rx, ry, turn)
    if element.tag == "mask":
        return _mask(element, size)
    return None


def _points(text: str) -> list[float]:
    """The numbers of `x,y;x,y;...`; none if it is something else."""
    try:
        return [float(number) for pair in text.split(";") for number in pair.split(",")]
    except ValueError:
        return []


def _mask(element: Element, size: list[float]) -> Row:
    """A mask, whose runs lie in its own box, along the rows."""
    x, y, width, height = (_number(element, side) for side in ("left", "top", "width", "height"))
    shape: Row = {"bbox": [x, y, width, height]}
    try:
        runs = [int(run) for run in (element.get("rle") or "").split(",")]
        rows, columns = (int(side) for side in size)
        left, top, right, bottom = (int(side) for side in (x, y, x + width, y + height))
    except ValueError:
        return shape
    is_inside = 0 <= left < right <= columns and 0 <= top < bottom <= rows
    is_whole = min(runs) >= 0 and sum(runs) == (right - left) * (bottom - top)
    if not (is_inside and is_whole and rows * columns <= _LARGEST_MASK):
        return shape
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    whole = np.zeros((rows, columns), bool)
    whole[top:bottom, left:right] = inside.reshape(bottom - top, right - left)
    (counts,) = encode(torch.from_numpy(whole)[None])
    return shape | {"segmentation": {"size": [rows, columns], "counts": counts}}


def _number(element: Element, name: str) -> float:
    """The number in an attribute, NaN if there is none."""
    try:
        number = float(element.get(name) or "")
    except ValueError:
        return math.nan
    return number if abs(number) < _LARGEST else math.nan
