"""Files that CVAT exports as "CVAT for images 1.1": XML with all images of a task or project.

Boxes, polygons, ellipses and masks are objects; points, lines and cuboids are not. A rotated box
becomes the upright box around it. Polygons with the same label and group are parts of one object,
as in CVAT's COCO export. Classes are the labels of the task in their order, with ids from 1,
followed by those of shapes that no task lists, sorted; if each split has its own file, those of all
files. In a project, each image belongs to a subset: Train, Validation or Test. Images in other
subsets are not read, unless no subset has such a name.
"""

import math
import re
from collections.abc import Sequence
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
from redetr.data.formats.voc_xml import encoding_of, number_in
from redetr.errors import InputError
from redetr.masks import encode

_SUBSET = re.compile(rb"""<image [^>]*\bsubset=["']([^"']*)["']""")
_LARGEST_MASK = 2**28  # pixels that a file can make this machine allocate


def is_cvat(head: bytes) -> bool:
    """Whether a file that begins with these bytes is in CVAT's format."""
    text = head.replace(b"\0", b"")  # UTF-16
    return b"<annotations>" in text and (b"<meta>" in text or b"<image " in text)


def cvat_splits(file: Path) -> list[Split]:
    """The splits that have a subset in a file; train if no subset has a usual name."""
    content = read_file(file).replace(b"\0", b"")  # UTF-16
    subsets = set()
    for name in _SUBSET.findall(content):
        subsets.add(name.decode("utf-8", "replace").lower())
    return _splits_among(subsets) or ["train"]


def _splits_among(subsets: set[str]) -> list[Split]:
    """The splits that have a usual name among these subsets, in lower case."""
    return [split for split in SPLITS if subsets.intersection(SPLIT_FOLDERS[split])]


def read_cvat(file: Path, split: Split, files: Sequence[Path]) -> Document:
    """The images of a split, with the classes of all `files`, which are those of the splits. Raises
    InputError if one of them is not XML, or if it has the tracks of a video."""
    root = _parse(file)
    images = root.findall("image")
    document = Document()
    subsets = {_subset(image) for image in images}
    splits = _splits_among(subsets)
    # Train alone does not divide the file, which may be in the folder of another split.
    if splits and (splits != ["train"] or len(subsets) > 1):
        document.other_subsets = _other_subsets(images)
        images = [image for image in images if _subset(image) in SPLIT_FOLDERS[split]]
    id_of = document.add_categories(_labels(file, root, files))
    for image in images:
        height, width = _numbers(image, "height", "width")
        document.add_image(image.get("name"), _side(height), _side(width))
        for shape in image:
            _add_shape(document, shape, id_of, (height, width))
    return document


def _other_subsets(images: list[Element]) -> list[str]:
    """The subset of each image that belongs to no split."""
    subsets = []
    for image in images:
        if not any(_subset(image) in names for names in SPLIT_FOLDERS.values()):
            subsets.append(image.get("subset") or "")
    return subsets


def _subset(image: Element) -> str:
    return (image.get("subset") or "").lower()


def _side(number: float) -> int | None:
    """A side of an image in pixels; None if the file states no valid one."""
    return int(number) if number > 0 else None


def _parse(file: Path) -> Element:
    content = read_file(file)
    remedy = "export the annotations again"
    try:
        text = content.decode(encoding_of(content))
        if "<!DOCTYPE" in text:
            raise InputError("declares a document type, which is refused", where=file)
        root = ElementTree.fromstring(text)
    except (LookupError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"not XML: {error}", where=file, remedy=remedy) from None
    if root.find("track") is not None:
        text = "holds tracks, as CVAT writes them for video, which cannot be read"
        remedy = 'export as "CVAT for images 1.1" or COCO'
        raise InputError(text, where=file, remedy=remedy)
    return root


def _labels(file: Path, root: Element, files: Sequence[Path]) -> list[str]:
    """The labels of the tasks of all files, followed by those labels of shapes that no task lists.
    `root` is the root element of the one `file`."""
    listed: list[str] = []
    used: set[str] = set()
    for path in files:
        element = root if path == file else _parse(path)
        listed += [label.findtext("name") or "" for label in element.iterfind("meta//label")]
        used |= {_label(shape) for shape in element.iterfind("image/*")}
    labels = dict.fromkeys(listed)  # an ordered set
    labels.update(dict.fromkeys(sorted(used)))
    labels.pop("", None)
    return list(labels)


def _label(shape: Element) -> str:
    return shape.get("label") or ""


def _add_shape(
    document: Document, element: Element, id_of: dict[str, int], size: tuple[float, float]
) -> None:
    if element.tag == "tag":  # of the image as a whole
        return
    shape = _shape(element, size)
    if shape is None:
        document.leave_out(element.tag)
        return
    document.add_object(id_of.get(_label(element)), shape, element.get("group_id"))


def _shape(element: Element, size: tuple[float, float]) -> Row | None:
    """The box or outline of an element, in COCO's format; None if it is not an object."""
    if element.tag == "box":
        return _box(element)
    if element.tag == "polygon":
        return polygon(_points(element.get("points") or ""))
    if element.tag == "ellipse":
        center_x, center_y, radius_x, radius_y = _numbers(element, "cx", "cy", "rx", "ry")
        return ellipse(center_x, center_y, radius_x, radius_y, _degrees(element))
    if element.tag == "mask":
        return _mask(element, size)
    return None


def _box(element: Element) -> Row:
    """A box before its rotation, and the angle in degrees."""
    left, top, right, bottom = _numbers(element, "xtl", "ytl", "xbr", "ybr")
    return {
        "bbox": [left, top, right - left, bottom - top],
        "attributes": {"rotation": _degrees(element)},
    }


def _degrees(element: Element) -> float:
    """The clockwise rotation of a shape in degrees."""
    degrees = number_in(element.get("rotation"))
    return 0.0 if math.isnan(degrees) else degrees


def _points(text: str) -> list[float]:
    """The numbers in `x,y;x,y;...`; an empty list if the text is something else."""
    numbers = []
    try:
        for pair in text.split(";"):
            numbers += [float(number) for number in pair.split(",")]
    except ValueError:
        return []
    return numbers


def _mask(element: Element, size: tuple[float, float]) -> Row:
    """A mask. `rle` has runs along the rows of the mask's box, background first; if it is not
    valid, only the box is returned. `size` is the (height, width) of the image."""
    x, y, width, height = _numbers(element, "left", "top", "width", "height")
    shape: Row = {"bbox": [x, y, width, height]}
    rle = element.get("rle") or ""
    try:
        runs = [int(run) for run in rle.split(",")]
        rows, columns = map(int, size)
        left, top = int(x), int(y)
        right, bottom = int(x + width), int(y + height)
    except ValueError:  # also for NaN
        return shape
    mask_height = bottom - top
    mask_width = right - left
    x_fits = 0 <= left < right <= columns
    y_fits = 0 <= top < bottom <= rows
    runs_fit = min(runs) >= 0 and sum(runs) == mask_height * mask_width
    if not (x_fits and y_fits and runs_fit) or rows * columns > _LARGEST_MASK:
        return shape
    is_object = np.arange(len(runs)) % 2 == 1
    pixels = np.repeat(is_object, runs)
    mask = np.zeros((rows, columns), bool)
    mask[top:bottom, left:right] = pixels.reshape(mask_height, mask_width)
    (counts,) = encode(torch.from_numpy(mask)[None])
    shape["segmentation"] = {"size": [rows, columns], "counts": counts}
    return shape


def _numbers(element: Element, *names: str) -> list[float]:
    """The numbers in these attributes; NaN for an attribute that holds no number."""
    return [number_in(element.get(name)) for name in names]
