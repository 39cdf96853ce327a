"""Data sets in YOLO form: `data.yaml` names classes and splits; beside images/ lies labels/, a text
file per image.

A line is `class cx cy w h`, the box as fractions of the image as stored: EXIF orientation is not
applied. A longer line is an outline, `class x y x y x y ...`, of which the bounding box is taken.
An image without label file holds no objects. Category ids are the class numbers, image ids count
the sorted names.
"""

import os
import posixpath
import reprlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
from redetr.data.forms.paths import Listing, find_below, find_images, read_file, read_sizes
from redetr.errors import InputError

_FILES = ("data.yaml", "data.yml")
_KEYS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_BOX, _OUTLINE, _BAD = range(3)
_LARGEST = 1e6  # as a fraction of an image


def yolo_splits(root: Path) -> list[Split]:
    """The splits that the `data.yaml` of the folder (or `root`, if it is a file) names; test only
    if it is there, since tools write its name in any case.

    Raises InputError if the file cannot be read.
    """
    file = _locate(root)
    if file is None:
        return []
    config = _parse_config(file)
    return [
        s
        for s in SPLITS
        if (any(_places(file, config, s)) if s == "test" else _entries(file, config, s))
    ]


def yolo_sought(split: Split, file: str = _FILES[0]) -> str:
    """Where the split is looked for, in words."""
    return f"{' or '.join(_KEYS[split])} in {file}"


def read_yolo(root: Path, split: Split) -> Annotations:
    """The split of a folder, or of the file `root`, which has to be there.

    Raises InputError for a `data.yaml` that does not tell classes and images.
    """
    file = _locate(root)
    if file is None:
        raise InputError(f"{root}: no {split} split: looked for {yolo_sought(split)}")
    config, faults = _parse_config(file), list[Fault]()
    classes = _classes(file, config)
    below, names = _find_images(file, config, split, faults)
    folder = file.parent / below
    rows = Rows(len(names), faults, lambda i: (folder / names[i], ""))
    sizes = read_sizes(folder, names)
    rows.fault(
        "image-unreadable",
        sizes[:, 0] == 0,
        lambda i: "not an image, or a damaged one",
        "replace the file, or delete it with its labels",
    )
    images = Images(rows, folder, names, np.arange(len(names)), sizes, lambda i: names[i])
    lines = _Lines([f"{file.parent}/{label_name(posixpath.join(below, name))}" for name in names])
    if not lines.found:
        text, remedy = (
            f"no image of {split} has a label file",
            "put them there, or all images count as empty",
        )
        faults.append(Fault("warning", "labels-missing", Path(lines.files[0]), "", text, remedy))
    return assemble(
        file, classes, images, _read_objects(lines, sizes, list(classes), file, faults), faults
    )


def label_name(image: str) -> str:
    """The label file of an image, both relative to the data folder: the last folder `images`
    becomes `labels`."""
    before, images, after = f"/{image}".rpartition("/images/")
    return posixpath.splitext(f"{before}/labels/{after}" if images else after)[0][1:] + ".txt"


def _locate(root: Path) -> Path | None:
    if root.is_file():
        return root
    return next((root / name for name in _FILES if (root / name).is_file()), None)


def _parse_config(file: Path) -> dict[str, Any]:
    """What the file says; numbers stay text, so that a class may be called 1 or no."""
    try:
        config = yaml.load(read_file(file), Loader=yaml.BaseLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # also not UTF-8, or nested beyond reason
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: not YAML: {reason}; write it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds no settings; write names, train and val into it")
    return config


def _entries(file: Path, config: dict[str, Any], split: Split) -> list[str]:
    """The folders and lists of images of a split, as the file says them."""
    value: Any = next((config[key] for key in _KEYS[split] if config.get(key)), [])
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise InputError(
            f"{file}: {split} is no path; write a folder of images, relative to this file"
        )
    return entries


def _classes(file: Path, config: dict[str, Any]) -> dict[int, str]:
    """Names by number, sorted."""
    names = config.get("names")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) for name in names.values())
    ):
        raise InputError(
            f"{file}: names is missing or no list of texts; write the names of the classes"
        )
    wrong = [
        number
        for number in names
        if not (isinstance(number, str) and number.isdecimal() and len(number) < 10)
    ]
    if wrong:
        raise InputError(
            f"{file}: {reprlib.repr(wrong[0])} in names is no class number; number them from 0"
        )
    return dict(sorted((int(number), name) for number, name in names.items()))


def _find_images(
    file: Path, config: dict[str, Any], split: Split, faults: list[Fault]
) -> tuple[str, list[str]]:
    """The folder of the images of a split, relative to the data folder, and their sorted paths
    below it."""
    root, there = file.parent, Listing(file.parent)
    entries, places = _entries(file, config, split), _places(file, config, split)
    if "" in places:
        lost = reprlib.repr(entries[places.index("")])
        raise InputError(
            f"{file}: {split}: {lost} is not in {root}; put it there, or write a path relative to "
            "this file"
        )
    folder = places[0] if len(places) == 1 and (root / places[0]).is_dir() else "."
    found: list[str] = []
    for place in places:
        if (root / place).is_file():
            found += _listed(there, place, _base(there, config), faults)
        else:
            below = posixpath.relpath(place, folder)
            found += [posixpath.normpath(f"{below}/{name}") for name in find_images(root / place)]
    if not found:
        raise InputError(
            f"{file}: {split} holds no images ({reprlib.repr(entries)}); put them there"
        )
    return folder, sorted(set(found), key=os.fsencode)


def _base(there: Listing, config: dict[str, Any]) -> str:
    """The folder that entries are relative to, below the data folder; empty if the file does not
    say one."""
    base = config.get("path")
    return find_below(there, base) if isinstance(base, str) else ""


def _places(file: Path, config: dict[str, Any], split: Split) -> list[str]:
    """Where the entries of a split are below the data folder; empty if they are not there."""
    there = Listing(file.parent)
    return [
        find_below(there, entry, (_base(there, config), ""))
        for entry in _entries(file, config, split)
    ]


def _listed(there: Listing, place: str, base: str, faults: list[Fault]) -> list[str]:
    """The images that a text file lists, one a line."""
    file = there.root / place
    lines = [os.fsdecode(line.strip()) for line in read_file(file).splitlines()]
    found = [
        line and find_below(there, line, (posixpath.dirname(place), base, "")) for line in lines
    ]
    missing = [line != "" and name == "" for line, name in zip(lines, found, strict=True)]
    Rows(len(lines), faults, lambda i: (file, f"line {i + 1}")).fault(
        "image-missing",
        missing,
        lambda i: f"{reprlib.repr(lines[i])} is not in {there.root}",
        "put it there, or delete the line",
    )
    return [name for name in found if name]


@dataclass
class _Lines:
    """The lines of all label files: A of them, read one file after the other."""

    files: list[str]  # of each image
    found: bool = False  # whether there is any of them
    image: array = field(default_factory=lambda: array("q"))  # [A], its number
    line: array = field(default_factory=lambda: array("q"))  # [A], from 1
    kind: array = field(default_factory=lambda: array("b"))  # [A], box, outline, or neither
    values: array = field(
        default_factory=lambda: array("d")
    )  # [5 A], class and box as cxcywh fractions

    def __post_init__(self) -> None:
        for number, file in enumerate(self.files):
            try:
                with open(file, "rb") as opened:
                    content = opened.read()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise InputError(
                    f"{file}: cannot be read: {error.strerror}; copy the labels again"
                ) from None
            self.found = True
            for line, row in enumerate(content.splitlines(), start=1):
                if words := row.split():
                    kind, values = _parse_line(words)
                    self.image.append(number)
                    self.line.append(line)
                    self.kind.append(kind)
                    self.values.extend(values)

    def place(self, i: int) -> tuple[Path, str]:
        return Path(self.files[self.image[i]]), f"line {self.line[i]}"

    def said(self, i: int) -> str:
        line = Path(self.files[self.image[i]]).read_bytes().splitlines()[self.line[i] - 1]
        return reprlib.repr(line.decode("utf-8", "replace"))


def _parse_line(words: list[bytes]) -> tuple[int, Sequence[float]]:
    """The kind of a line, its class, and its box as cxcywh fractions."""
    bad = (_BAD, (-1.0, 0.0, 0.0, 1.0, 1.0))
    try:
        numbers = list(map(float, words))
    except ValueError:
        return bad
    if not sum(map(abs, numbers)) < _LARGEST:  # also not a number
        return bad
    if len(numbers) == 5:
        return _BOX, numbers
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        return bad
    (left, right), (top, bottom) = (
        (min(side), max(side)) for side in (numbers[1::2], numbers[2::2])
    )
    return _OUTLINE, (
        numbers[0],
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
    )


def _read_objects(
    lines: _Lines, sizes: np.ndarray, classes: list[int], file: Path, faults: list[Fault]
) -> Objects:
    rows = Rows(len(lines.image), faults, lines.place)
    kind, image = np.array(lines.kind, np.int8), np.array(lines.image, np.int64)
    rows.fault(
        "line-invalid",
        kind == _BAD,
        lambda i: f"{lines.said(i)} is neither a box nor an outline",
        "write class cx cy w h",
    )
    values = np.array(lines.values, np.float64).reshape(-1, 5)
    labels = np.searchsorted(classes, values[:, 0]).clip(max=len(classes) - 1)
    unknown = np.array(classes)[labels] != values[:, 0]
    rows.fault(
        "class-unknown",
        unknown,
        lambda i: f"{lines.said(i)} begins with no class of {file}",
        f"write one of the {len(classes)} numbers, or add a name",
    )
    rows.fault(
        "outline", kind == _OUTLINE, lambda i: "is an outline", "its bounding box is taken", "note"
    )
    centers, sides = values[:, 1:3], values[:, 3:]
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1) * np.tile(
        sizes[image, ::-1], 2
    )
    corners = corners.round(9)  # px: what was 0 or 100 before it became a fraction is so again
    return Objects(
        rows=rows,
        image=image,
        labels=labels,
        corners=corners,
        iscrowd=np.zeros(len(image), bool),
        area=np.full(len(image), -1, np.float32),
        ids=np.arange(1, len(image) + 1),
        said=lines.said,
        remedy="write class cx cy w h as fractions of the image",
    )
