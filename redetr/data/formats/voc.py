"""Data sets in Pascal VOC format: an XML file per image.

Either JPEGImages/, Annotations/ and ImageSets/Main/{train,val,trainval,test}.txt, or images and XML
files side by side in train/, val/ (or valid/) and test/. Pixels count from 1 and `xmax, ymax` are
the last ones inside, as in the devkit: a box of the whole image is `1 1 width height`. Boxes are
shifted to `xmin - 1, ymin - 1, xmax, ymax`. Objects marked `difficult` are ignored in evaluation,
as the protocol of VOC does: `iscrowd` is True. An object with a `polygon` or a turned `robndbox`
and no `bndbox` gets the box around it; beside a `bndbox`, a polygon is compared with it. Classes
are all that any XML file of the folder names, sorted, with ids from 1; image ids count the sorted
names.
"""

import math
import os
import posixpath
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from redetr.data.annotations import (
    SPLITS,
    Annotations,
    Fault,
    Images,
    Objects,
    Rows,
    Split,
    assemble,
)
from redetr.data.formats.paths import IMAGE_SUFFIXES, Listing, path_inside, read_file, read_sizes
from redetr.errors import InputError

_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1e9  # px


def voc_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in Pascal VOC format."""
    return [split for split in SPLITS if _locate(root, split)]


def voc_sought(split: Split) -> str:
    """Where the split is looked for, in words."""
    return (
        f"ImageSets/Main/{split}.txt beside JPEGImages/ and Annotations/, or "
        f"{_FOLDERS[split][0]}/*.xml"
    )


def read_voc(root: Path, split: Split) -> Annotations:
    """The split, which has to be there. Raises InputError if it is empty or no file names a
    class."""
    location = _locate(root, split)
    if location is None:
        raise InputError(f"no {split} split: looked for {voc_sought(split)}", where=root)
    faults: list[Fault] = []
    files, names = _files_and_images(location, faults)
    if not files:
        remedy = "write one a line, without ending"
        where = location.listed or location.annotations
        raise InputError("names no image", where=where, remedy=remedy)
    scenes = [_read_scene(file) for file in files]
    images = _read_images(location, files, names, scenes, faults)
    classes = _classes(root, set(files), scenes)
    objects = _read_objects(files, scenes, classes, faults)
    return assemble(
        location.annotations, dict(enumerate(classes, start=1)), images, objects, faults
    )


def _read_images(
    location: "_Location",
    files: list[Path],
    names: list[str],
    scenes: list["_Scene"],
    faults: list[Fault],
) -> Images:
    rows = Rows(len(files), faults, lambda i: (files[i], ""))
    for code, remedy in _REMEDIES.items():
        has_problem = [scene.code == code for scene in scenes]
        rows.fault(code, has_problem, lambda i: scenes[i].problem, remedy)
    rows.fault(
        "image-missing",
        [not name for name in names],
        lambda i: f"{location.images} has no such image",
        "put it there, or delete this file",
    )
    sizes = np.array([scene.size for scene in scenes])
    unstated = np.flatnonzero((sizes <= 0).any(1) & rows.good)
    sizes[unstated] = read_sizes(location.images, [names[i] for i in unstated])
    rows.fault(
        "size-invalid",
        sizes.min(1) <= 0,
        lambda i: "states no size, and its image cannot be read",
        "write width and height, or replace the image",
    )
    ids = np.arange(len(names))
    return Images(rows, location.images, names, ids, sizes, lambda i: names[i])


@dataclass
class _Location:
    """Where a split is."""

    images: Path  # folder
    annotations: Path  # folder
    listed: Path | None = None  # the file that names the images; without it, all XML files count


def _locate(root: Path, split: Split) -> _Location | None:
    """Where the split is, None if there is none. Images that no list of a devkit folder names
    belong to no split."""
    images = root / "JPEGImages"
    annotations = root / "Annotations"
    if not images.is_dir() or not annotations.is_dir():
        for name in _FOLDERS[split]:
            folder = root / name
            if any(folder.glob("*.xml")):
                return _Location(folder, folder)
        return None
    lists = {}
    for name in ("train", "val", "trainval", "test"):
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            lists[name] = file
    if split in lists:
        return _Location(images, annotations, lists[split])
    if split != "train" or "val" in lists:
        return None
    return _Location(images, annotations, lists.get("trainval"))


def _files_and_images(location: _Location, faults: list[Fault]) -> tuple[list[Path], list[str]]:
    """The annotation files, and the path of the image of each (empty if there is none), sorted by
    the image."""
    stems = _stems(location, faults)
    there = Listing(location.images)
    image_of: dict[str, str] = {}
    for parent in {posixpath.dirname(stem) for stem in stems}:
        for file in sorted(there.files(parent), reverse=True):
            stem, suffix = posixpath.splitext(posixpath.join(parent, file))
            if suffix.lower() in IMAGE_SUFFIXES:
                image_of[stem] = stem + suffix
    stems = sorted(stems, key=lambda stem: os.fsencode(image_of.get(stem, "")))
    files = [location.annotations / f"{stem}.xml" for stem in stems]
    names = [image_of.get(stem, "") for stem in stems]
    return files, names


def _stems(location: _Location, faults: list[Fault]) -> list[str]:
    """Paths of the annotation files without their ending."""
    listed = location.listed
    if listed is None:
        return sorted(file.stem for file in location.annotations.glob("*.xml"))
    lines = [os.fsdecode(line.strip()) for line in read_file(listed).splitlines()]
    stems: dict[str, None] = {}  # in order, each once
    outside = []
    for line in lines:
        stem = path_inside(line)
        outside.append(line != "" and stem == "")
        if stem:
            stems[stem] = None
    Rows(len(lines), faults, lambda i: (listed, f"line {i + 1}")).fault(
        "path-outside",
        outside,
        lambda i: f"{reprlib.repr(lines[i])} is no path inside the data folder",
        "write the name of an image without ending",
    )
    return list(stems)


@dataclass
class _Scene:
    """What an XML file says. If it cannot be read, `code` and `problem` are of its fault."""

    size: tuple[int, int] = (0, 0)  # height, width; 0 = not said
    names: list[str] = field(default_factory=list)  # of the class of each object
    boxes: list[list[float]] = field(default_factory=list)  # xmin ymin xmax ymax
    outlines: list[list[float]] = field(default_factory=list)  # the same around it; NaN = none
    has_box: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    code: str = ""
    problem: str = ""


_REMEDIES = {
    "annotation-missing": "put it there, or take the image out of the list",
    "xml-invalid": "export or copy the annotations again",
}


def _read_scene(file: Path) -> _Scene:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        # A document type may declare entities that grow beyond all memory; no annotation needs one.
        root = None if "<!DOCTYPE" in text else ElementTree.fromstring(text)
    except OSError as error:
        return _Scene(code="annotation-missing", problem=f"cannot be read: {error.strerror}")
    except (ValueError, ElementTree.ParseError) as error:
        return _Scene(code="xml-invalid", problem=f"not XML in UTF-8: {error}")
    if root is None:
        return _Scene(code="xml-invalid", problem="declares a document type, which is refused")
    scene = _Scene()
    height = _number(root, "size/height")
    width = _number(root, "size/width")
    if height > 0 and width > 0:
        scene.size = (int(height), int(width))
    for element in root.iter("object"):
        name = element.findtext("name") or ""
        difficult = element.findtext("difficult") or ""
        outline = _outline(element)
        has_box = element.find("bndbox") is not None
        box = outline
        if has_box:
            box = [_number(element, f"bndbox/{side}") for side in _SIDES]
        scene.outlines.append(outline)
        scene.has_box.append(has_box)
        scene.names.append(name.strip())
        scene.boxes.append(box)
        scene.difficult.append(difficult.strip() == "1")
    return scene


def _outline(element: ElementTree.Element) -> list[float]:
    """xmin, ymin, xmax, ymax around the polygon or the turned box of an object; NaN if it has
    none."""
    numbers: dict[str, list[float]] = {"x": [], "y": []}
    for point in element.iterfind("polygon//*"):  # x1 y1 x2 y2 ..., or pt with x and y
        if point.tag[:1] in numbers and not len(point):
            numbers[point.tag[0]].append(_number(point, "."))
    x = numbers["x"]
    y = numbers["y"]
    if len(x) > 2 and len(x) == len(y) and not math.isnan(sum(x + y)):
        return [min(x), min(y), max(x), max(y)]
    turned = [_number(element, f"robndbox/{name}") for name in ("cx", "cy", "w", "h", "angle")]
    center_x, center_y, width, height, angle = turned  # radians
    cosine = abs(math.cos(angle))
    sine = abs(math.sin(angle))
    half_width = (width * cosine + height * sine) / 2
    half_height = (width * sine + height * cosine) / 2
    return [
        center_x - half_width,
        center_y - half_height,
        center_x + half_width,
        center_y + half_height,
    ]


def _number(element: ElementTree.Element, path: str) -> float:
    """The number there, NaN if there is none."""
    try:
        number = float(element.findtext(path) or "")
    except ValueError:
        return math.nan
    return number if abs(number) < _LARGEST else math.nan


def _classes(root: Path, read: set[Path], scenes: list[_Scene]) -> list[str]:
    """The names of all classes in all splits, sorted."""
    files: set[Path] = set()
    for split in SPLITS:
        location = _locate(root, split)
        if location is not None:
            files.update(location.annotations.rglob("*.xml"))
    others = [_read_scene(file) for file in files - read]
    names: set[str] = set()
    for scene in (*scenes, *others):
        names.update(scene.names)
    names.discard("")
    if not names:
        raise InputError("no XML file names an object", where=root, remedy="annotate some")
    return sorted(names)


def _read_objects(
    files: list[Path], scenes: list[_Scene], classes: list[str], faults: list[Fault]
) -> Objects:
    image_of: list[int] = []
    number_of: list[int] = []  # among the objects of its image, from 1
    names: list[str] = []
    all_boxes: list[list[float]] = []
    all_outlines: list[list[float]] = []
    has_box: list[bool] = []
    iscrowd: list[bool] = []
    for index, scene in enumerate(scenes):
        count = len(scene.names)
        image_of += [index] * count
        number_of += range(1, count + 1)
        names += scene.names
        all_boxes += scene.boxes
        all_outlines += scene.outlines
        has_box += scene.has_box
        iscrowd += scene.difficult
    boxes = np.array(all_boxes, np.float64).reshape(-1, 4)
    outlines = np.array(all_outlines, np.float64).reshape(-1, 4)

    def place(i: int) -> tuple[Path, str]:
        return files[image_of[i]], f"object {number_of[i]} ({reprlib.repr(names[i])})"

    rows = Rows(len(names), faults, place)
    rows.fault(
        "class-missing",
        [not name for name in names],
        lambda i: "has no name",
        "write the name of its class",
    )
    invalid = np.isnan(boxes).any(1)
    rows.fault(
        "box-invalid",
        invalid,
        lambda i: f"its bndbox is not 4 finite numbers {' '.join(_SIDES)}",
        "correct it",
    )
    boxes[invalid] = (1, 1, 1, 1)
    rows.fault(
        "outline",
        ~np.array(has_box, bool),
        lambda i: "has an outline and no bndbox",
        "its bounding box is taken",
        "note",
    )
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of.get(name, -1) for name in names]
    count = len(names)
    return Objects(
        rows=rows,
        image=np.array(image_of, np.int64),
        labels=np.array(labels, np.int64),
        corners=boxes - (1, 1, 0, 0),
        iscrowd=np.array(iscrowd, bool),
        area=np.full(count, -1, np.float32),
        ids=np.arange(1, count + 1),
        quoted=lambda i: f"bndbox {boxes[i].tolist()}",
        remedy="write xmin ymin xmax ymax in pixels, counted from 1",
        box_format="xyxy",
        outlines=outlines - (1, 1, 0, 0),
    )
