"""Data sets in Pascal VOC form: an XML file per image.

Either JPEGImages/, Annotations/ and ImageSets/Main/{train,val,trainval,test}.txt, or images and XML
files side by side in train/, val/ (or valid/) and test/. Pixels count from 1 and `xmax, ymax` are
the last ones inside, as in the devkit: a box of the whole image is `1 1 width height`. Boxes are
shifted to `xmin - 1, ymin - 1, xmax, ymax`. Objects marked `difficult` are ignored in evaluation,
as the protocol of VOC does: `iscrowd` is True. Classes are all that any XML file of the folder
names, sorted, with ids from 1; image ids count the sorted names.
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
from redetr.data.forms.paths import IMAGE_SUFFIXES, Listing, path_inside, read_file, read_sizes
from redetr.errors import InputError

_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1e9  # px


def voc_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in Pascal VOC form."""
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
    place = _locate(root, split)
    if place is None:
        raise InputError(f"{root}: no {split} split: looked for {voc_sought(split)}")
    faults: list[Fault] = []
    pairs = _pairs(place, faults)
    files, names = (
        [place.annotations / f"{stem}.xml" for stem, _ in pairs],
        [name for _, name in pairs],
    )
    if not pairs:
        raise InputError(
            f"{place.listed or place.annotations}: names no image; write one a line, without ending"
        )
    scenes = [_read_scene(file) for file in files]
    rows = Rows(len(pairs), faults, lambda i: (files[i], ""))
    for code, remedy in _REMEDIES.items():
        rows.fault(code, [s.code == code for s in scenes], lambda i: scenes[i].problem, remedy)
    rows.fault(
        "image-missing",
        [not name for name in names],
        lambda i: f"{place.images} has no such image",
        "put it there, or delete this file",
    )
    sizes = np.array([scene.size for scene in scenes])
    unstated = np.flatnonzero((sizes <= 0).any(1) & rows.good)
    sizes[unstated] = read_sizes(place.images, [names[i] for i in unstated])
    rows.fault(
        "size-invalid",
        sizes.min(1) <= 0,
        lambda i: "states no size, and its image cannot be read",
        "write width and height, or replace the image",
    )
    images = Images(rows, place.images, names, np.arange(len(names)), sizes, lambda i: names[i])
    classes = _classes(root, set(files), scenes)
    return assemble(
        place.annotations,
        dict(enumerate(classes, 1)),
        images,
        _read_objects(files, scenes, classes, faults),
        faults,
    )


@dataclass
class _Place:
    """Where a split is."""

    images: Path  # folder
    annotations: Path  # folder
    listed: Path | None = None  # the file that names the images; without it, all XML files count


def _locate(root: Path, split: Split) -> _Place | None:
    """The place of the split, None if there is none. Images that no list of a devkit folder names
    are of no split."""
    images, annotations, lists = (
        root / "JPEGImages",
        root / "Annotations",
        root / "ImageSets" / "Main",
    )
    if not images.is_dir() or not annotations.is_dir():
        folders = [root / name for name in _FOLDERS[split]]
        return next(
            (_Place(folder, folder) for folder in folders if any(folder.glob("*.xml"))), None
        )
    if (lists / f"{split}.txt").is_file():
        return _Place(images, annotations, lists / f"{split}.txt")
    there = [name for name in ("train", "val", "trainval") if (lists / f"{name}.txt").is_file()]
    if split != "train" or "val" in there:
        return None
    return _Place(images, annotations, lists / "trainval.txt" if there else None)


def _pairs(place: _Place, faults: list[Fault]) -> list[tuple[str, str]]:
    """Path of each annotation file without its ending, and of its image (empty if there is none),
    sorted by that."""
    stems = _stems(place, faults)
    there = Listing(place.images)
    images: dict[str, str] = {}
    for parent in {posixpath.dirname(stem) for stem in stems}:
        for file in sorted(there.files(parent), reverse=True):
            stem, suffix = posixpath.splitext(posixpath.join(parent, file))
            if suffix.lower() in IMAGE_SUFFIXES:
                images[stem] = stem + suffix
    return sorted(
        ((stem, images.get(stem, "")) for stem in stems), key=lambda pair: os.fsencode(pair[1])
    )


def _stems(place: _Place, faults: list[Fault]) -> list[str]:
    if place.listed is None:
        return sorted(file.stem for file in place.annotations.glob("*.xml"))
    lines = [os.fsdecode(line.strip()) for line in read_file(place.listed).splitlines()]
    stems, listed = [path_inside(line) for line in lines], place.listed
    outside = [line != "" and stem == "" for line, stem in zip(lines, stems, strict=True)]
    Rows(len(lines), faults, lambda i: (listed, f"line {i + 1}")).fault(
        "path-outside",
        outside,
        lambda i: f"{reprlib.repr(lines[i])} is no path inside the data folder",
        "write the name of an image without ending",
    )
    return list(dict.fromkeys(stem for stem in stems if stem))


@dataclass
class _Scene:
    """What an XML file says. If it cannot be read, `code` and `problem` tell the fault."""

    size: tuple[int, int] = (0, 0)  # height, width; 0 = not said
    names: list[str] = field(default_factory=list)  # of the class of each object
    boxes: list[list[float]] = field(default_factory=list)  # xmin ymin xmax ymax
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
    height, width = (_number(root, f"size/{side}") for side in ("height", "width"))
    scene = _Scene(size=(int(height), int(width)) if height > 0 and width > 0 else (0, 0))
    for element in root.iter("object"):
        scene.names.append((element.findtext("name") or "").strip())
        scene.boxes.append([_number(element, f"bndbox/{side}") for side in _SIDES])
        scene.difficult.append((element.findtext("difficult") or "").strip() == "1")
    return scene


def _number(element: ElementTree.Element, path: str) -> float:
    """The number there, NaN if there is none."""
    try:
        number = float(element.findtext(path) or "")
    except ValueError:
        return math.nan
    return number if abs(number) < _LARGEST else math.nan


def _classes(root: Path, read: set[Path], scenes: list[_Scene]) -> list[str]:
    """The names of all classes in all splits, sorted."""
    places = [place for split in SPLITS if (place := _locate(root, split))]
    others = {file for place in places for file in place.annotations.rglob("*.xml")} - read
    names = {name for scene in (*scenes, *map(_read_scene, others)) for name in scene.names if name}
    if not names:
        raise InputError(f"{root}: no XML file names an object; annotate some")
    return sorted(names)


def _read_objects(
    files: list[Path], scenes: list[_Scene], classes: list[str], faults: list[Fault]
) -> Objects:
    image = np.repeat(np.arange(len(scenes)), [len(scene.names) for scene in scenes])
    names = [name for scene in scenes for name in scene.names]
    boxes = np.array([box for scene in scenes for box in scene.boxes], np.float64).reshape(-1, 4)
    first = np.searchsorted(image, np.arange(len(scenes)))

    def place(i: int) -> tuple[Path, str]:
        return files[image[i]], f"object {i - first[image[i]] + 1} ({reprlib.repr(names[i])})"

    rows = Rows(len(names), faults, place)
    rows.fault(
        "class-missing",
        [not name for name in names],
        lambda i: "has no name",
        "write the name of its class",
    )
    invalid = np.isnan(boxes.sum(1))
    rows.fault(
        "box-invalid",
        invalid,
        lambda i: f"its bndbox is not 4 finite numbers {' '.join(_SIDES)}",
        "correct it",
    )
    boxes[invalid] = (1, 1, 1, 1)
    label_of = {name: label for label, name in enumerate(classes)}
    return Objects(
        rows=rows,
        image=image,
        labels=np.array([label_of.get(name, -1) for name in names], np.int64),
        corners=boxes - (1, 1, 0, 0),
        iscrowd=np.array([difficult for scene in scenes for difficult in scene.difficult], bool),
        area=np.full(len(names), -1, np.float32),
        ids=np.arange(1, len(names) + 1),
        said=lambda i: f"bndbox {boxes[i].tolist()}",
        remedy="write xmin ymin xmax ymax in pixels, counted from 1",
    )
