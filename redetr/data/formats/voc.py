"""Data sets in Pascal VOC format: an XML file per image, in any encoding that the file states.

Either JPEGImages/, Annotations/ and ImageSets/Main/{train,val,trainval,test}.txt, or images and XML
files side by side in train/, val/ (or valid/) and test/, at any depth. Pixels count from 1 and
`xmax, ymax` are the last ones inside, as in the devkit: a box of the whole image is
`1 1 width height`. Boxes are shifted to `xmin - 1, ymin - 1, xmax, ymax`. Objects marked
`difficult` are ignored in evaluation, as the protocol of VOC does: `iscrowd` is True. An object
with a `polygon` or a turned `robndbox` and no `bndbox` gets the box around it; beside a `bndbox`, a
polygon is compared with it. Classes are all that any XML file of the folder names, sorted, with ids
from 1; image ids count the sorted names.
"""

import codecs
import math
import os
import posixpath
import re
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
from redetr.data.formats.flags import flag_of
from redetr.data.formats.foreign import is_foreign, listed_stem
from redetr.data.formats.listing import contents_of, first_below
from redetr.data.formats.paths import Listing, read_lines, read_sizes
from redetr.data.images import IMAGE_SUFFIXES
from redetr.errors import InputError
from redetr.files import open_file

_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1e9  # px
_XML = (".xml",)
# How files begin that need not state their encoding. UTF-32 is first: its mark begins as UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    codecs.BOM_UTF8: "utf-8-sig",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
# As browsers do: programs state the older standard, and write letters of the newer one.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift-jis": "cp932", "euc-kr": "cp949"}


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
    files, names, scenes = _read_files(location, faults)
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
            if first_below(folder, _XML):
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


def _read_files(
    location: "_Location", faults: list[Fault]
) -> tuple[list[Path], list[str], list["_Scene"]]:
    """The annotation files, the path of the image of each (empty if there is none), and what it
    says, sorted by the image. Raises InputError if there is no file."""
    scene_of: dict[str, _Scene] = {}
    others = []
    for stem, file in _files(location, faults).items():
        scene = _read_scene(file)
        if location.listed or scene.is_annotation:
            scene_of[stem] = scene
        else:
            others.append(file)
    if others:
        text = "is no annotation, and is passed over"
        faults.append(Fault("note", "xml-other", others[0], "", text, "nothing to do", len(others)))
    if not scene_of:
        remedy = "write one a line, without ending"
        where = location.listed or location.annotations
        raise InputError("names no image", where=where, remedy=remedy)
    image_of = _images_of(location, scene_of, faults)
    stems = sorted(scene_of, key=lambda stem: os.fsencode(image_of[stem]))
    scenes = [scene_of[stem] for stem in stems]
    files = [scene.file for scene in scenes]
    names = [image_of[stem] for stem in stems]
    return files, names, scenes


def _images_of(
    location: "_Location", scene_of: dict[str, "_Scene"], faults: list[Fault]
) -> dict[str, str]:
    """The path of the image of each annotation file, empty if there is none: that which has its
    stem; of several, that which the file names, or the first."""
    there = Listing(location.images)
    candidates: dict[str, list[str]] = {stem: [] for stem in scene_of}
    for parent in {posixpath.dirname(stem) for stem in scene_of}:
        for file in sorted(there.files(parent)):
            stem, suffix = posixpath.splitext(posixpath.join(parent, file))
            if suffix.lower() in IMAGE_SUFFIXES and stem in candidates:
                candidates[stem].append(stem + suffix)
    image_of = {}
    shared = []
    for stem, scene in scene_of.items():
        images = candidates[stem]
        named = posixpath.join(posixpath.dirname(stem), scene.image)
        if named in images or (not images and scene.image and named in there):
            images = [named]
        image_of[stem] = images[0] if images else ""
        shared.append(len(images) > 1)
    files = [scene.file for scene in scene_of.values()]
    stems = list(scene_of)

    def names(i: int) -> str:
        listed = ", ".join(candidates[stems[i]])
        return f"{listed} share this file; it is taken for the first"

    Rows(len(files), faults, lambda i: (files[i], "")).fault(
        "annotation-shared",
        shared,
        names,
        "give each image a name and an XML file of its own",
        "warning",
    )
    return image_of


def _files(location: "_Location", faults: list[Fault]) -> dict[str, Path]:
    """The annotation files by their paths without ending."""
    folder = location.annotations
    if location.listed:
        return {stem: folder / f"{stem}.xml" for stem in _listed(location.listed, folder, faults)}
    files = {}
    for path in contents_of(folder, _XML).files:
        stem, _ = posixpath.splitext(path)
        files[stem] = folder / path
    return files


def _listed(file: Path, folder: Path, faults: list[Fault]) -> list[str]:
    """The paths without ending, below the folder of annotations, that a list of images names, each
    once."""
    there = Listing(folder)
    lines = read_lines(file)
    stems: dict[str, None] = {}  # in order, each once
    outside = []
    foreign = []
    for line in lines:
        stem = listed_stem(line, there)
        outside.append(line != "" and stem == "")
        foreign.append(stem != "" and is_foreign(line))
        if stem:
            stems[stem] = None
    rows = Rows(len(lines), faults, lambda i: (file, f"line {i + 1}"))
    rows.fault(
        "path-outside",
        outside,
        lambda i: f"{reprlib.repr(lines[i])} is no path inside the data folder",
        "write the name of an image without ending",
    )
    rows.fault(
        "path-foreign",
        foreign,
        lambda i: (
            f"{lines[i]!r} is not there as written, and {listed_stem(lines[i], there)}.xml is taken"
        ),
        "nothing to do, or write its name without ending",
        "note",
    )
    return list(stems)


@dataclass
class _Scene:
    """What an XML file says. If it cannot be read, `code` and `problem` are of its fault."""

    file: Path
    image: str = ""  # the name of its image, without folders
    is_annotation: bool = True  # other programs write XML files beside images too
    size: tuple[int, int] = (0, 0)  # height, width; 0 = not said
    names: list[str] = field(default_factory=list)  # of the class of each object
    boxes: list[list[float]] = field(default_factory=list)  # xmin ymin xmax ymax
    outlines: list[list[float]] = field(default_factory=list)  # the same around it; NaN = none
    has_box: list[bool] = field(default_factory=list)
    difficult: list[str] = field(default_factory=list)
    code: str = ""
    problem: str = ""


_REMEDIES = {
    "annotation-missing": "put it there, or take the image out of the list",
    "xml-encoding": "save it as UTF-8, or state its encoding in its first line",
    "xml-invalid": "export or copy the annotations again",
}


def _read_scene(file: Path) -> _Scene:
    encoding = "UTF-8"
    try:
        with open_file(file) as opened:
            content = opened.read()
        encoding = _encoding(content)
        text = content.decode(encoding)
        # A document type may declare entities that grow beyond all memory; no annotation needs one.
        root = None if "<!DOCTYPE" in text else ElementTree.fromstring(text)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        return _Scene(file, code="annotation-missing", problem=problem)
    except LookupError:
        problem = f"states an encoding that is not known, {encoding}"
        return _Scene(file, code="xml-encoding", problem=problem)
    except UnicodeError as error:
        problem = f"not XML in {encoding}: {error}"
        return _Scene(file, code="xml-encoding", problem=problem)
    except (ValueError, ElementTree.ParseError) as error:
        return _Scene(file, code="xml-invalid", problem=f"not XML in {encoding}: {error}")
    if root is None:
        problem = "declares a document type, which is refused"
        return _Scene(file, code="xml-invalid", problem=problem)
    return _scene_of(file, root)


def _scene_of(file: Path, root: ElementTree.Element) -> _Scene:
    """What the elements of a file say."""
    named = root.findtext("filename") or ""
    image = posixpath.basename(named.strip().replace("\\", "/"))
    objects = list(root.iter("object"))
    scene = _Scene(file, image, is_annotation=root.tag == "annotation" or bool(objects))
    height = _number(root, "size/height")
    width = _number(root, "size/width")
    if height > 0 and width > 0:
        scene.size = (int(height), int(width))
    for element in objects:
        name = element.findtext("name") or ""
        outline = _outline(element)
        has_box = element.find("bndbox") is not None
        box = outline
        if has_box:
            box = [_number(element, f"bndbox/{side}") for side in _SIDES]
        scene.outlines.append(outline)
        scene.has_box.append(has_box)
        scene.names.append(name.strip())
        scene.boxes.append(box)
        scene.difficult.append(element.findtext("difficult") or "")
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


def _encoding(content: bytes) -> str:
    """The encoding of an XML file: by its byte order mark or first bytes, else as it states."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    declaration = re.match(rb"""<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""", content)
    if declaration is None:
        return "UTF-8"
    stated = declaration[1].decode("ascii", "replace")
    name = stated.lower().replace("_", "-")
    if name.startswith(("utf-16", "utf-32", "ucs")):
        return "UTF-8"  # .NET states UTF-16 of text that it saves as UTF-8: its letters are bytes
    return _SUPERSETS.get(name, stated)


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
    folders = {location.annotations for split in SPLITS if (location := _locate(root, split))}
    for folder in folders:
        files.update(folder / path for path in contents_of(folder, _XML).files)
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
    marks: list[str] = []  # of difficult objects
    for index, scene in enumerate(scenes):
        count = len(scene.names)
        image_of += [index] * count
        number_of += range(1, count + 1)
        names += scene.names
        all_boxes += scene.boxes
        all_outlines += scene.outlines
        has_box += scene.has_box
        marks += scene.difficult
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
    _judge_boxes(rows, boxes, np.array(has_box, bool))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of.get(name, -1) for name in names]
    count = len(names)
    return Objects(
        rows=rows,
        image=np.array(image_of, np.int64),
        labels=np.array(labels, np.int64),
        corners=boxes - (1, 1, 0, 0),
        iscrowd=_read_marks(rows, marks),
        area=np.full(count, -1, np.float32),
        ids=np.arange(1, count + 1),
        quoted=lambda i: f"bndbox {boxes[i].tolist()}",
        remedy="write xmin ymin xmax ymax in pixels, counted from 1",
        box_format="xyxy",
        outlines=outlines - (1, 1, 0, 0),
    )


def _read_marks(rows: Rows, marks: list[str]) -> np.ndarray:
    """Which objects are marked difficult, bool `[A]`; reports where that is not clear."""
    flags = [flag_of(mark) for mark in marks]
    rows.fault(
        "flag-invalid",
        [flag is None for flag in flags],
        lambda i: f"difficult {reprlib.repr(marks[i])} is neither 0 nor 1, and counts as 0",
        "write 1 for what is to be ignored, else 0",
        "warning",
    )
    return np.array([flag is True for flag in flags], bool)


def _judge_boxes(rows: Rows, boxes: np.ndarray, has_box: np.ndarray) -> None:
    """Adds faults for boxes `[A, 4]` that are no numbers, which get others, and for outlines that
    stand for a box."""
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
        ~has_box,
        lambda i: "has an outline and no bndbox",
        "its bounding box is taken",
        "note",
    )
