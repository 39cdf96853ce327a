"""Data sets in YOLO format: `data.yaml` names classes and splits; beside images/ lies labels/, a
text file per image.

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
    Severity,
    Split,
    assemble,
)
from redetr.data.formats.labels import label_faults, label_name
from redetr.data.formats.listing import contents_of
from redetr.data.formats.paths import Finder, Resolved, read_file, read_lines, read_sizes
from redetr.errors import InputError

_FILES = ("data.yaml", "data.yml")
_KEYS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_BOX, _OUTLINE, _BAD = range(3)
_NO_VALUES = (-1.0, 0.0, 0.0, 1.0, 1.0)  # class and box of a line that is neither
_LARGEST = 1e6  # as a fraction of an image


def yolo_splits(root: Path) -> list[Split]:
    """The splits that the `data.yaml` of the folder (or `root`, if it is a file) names; test only
    if it is there, since tools always write its name.

    Raises InputError if the file cannot be read.
    """
    file = _locate(root)
    if file is None:
        return []
    config = _parse_config(file)
    splits = []
    for split in SPLITS:
        entries = _entries(file, config, split)
        is_there = bool(entries)
        if split == "test":
            is_there = any(entry.inside for entry in _Places(file, config, []).of(split))
        if is_there:
            splits.append(split)
    return splits


def yolo_sought(split: Split, file: str = _FILES[0]) -> str:
    """Where the split is looked for, in words."""
    return f"{' or '.join(_KEYS[split])} in {file}"


def read_yolo(root: Path, split: Split) -> Annotations:
    """The split of a folder, or of the file `root`, which has to be there.

    Raises InputError for a `data.yaml` that does not name classes and images.
    """
    file = _locate(root)
    if file is None:
        raise InputError(f"no {split} split: looked for {yolo_sought(split)}", where=root)
    config = _parse_config(file)
    classes = _classes(file, config)
    faults: list[Fault] = []
    below, names = _find_images(file, config, split, faults)
    folder = file.parent / below
    images = _read_images(folder, names, faults)
    labels = [label_name(posixpath.join(below, name)) for name in names]
    label_files = [f"{file.parent}/{label}" for label in labels]
    lines = _Lines(label_files)
    faults += label_faults(file.parent, below, names, labels)
    if not lines.any_file:
        text = f"no image of {split} has a label file"
        remedy = "put them there, or all images count as empty"
        faults.append(Fault("warning", "labels-missing", Path(label_files[0]), "", text, remedy))
    objects = _read_objects(lines, images.sizes, list(classes), file, faults)
    return assemble(file, classes, images, objects, faults)


def _read_images(folder: Path, names: list[str], faults: list[Fault]) -> Images:
    rows = Rows(len(names), faults, lambda i: (folder / names[i], ""))
    sizes = read_sizes(folder, names)
    rows.fault(
        "image-unreadable",
        sizes[:, 0] == 0,
        lambda i: "not an image, or a damaged one",
        "replace the file, or delete it with its labels",
    )
    ids = np.arange(len(names))
    return Images(rows, folder, names, ids, sizes, lambda i: names[i])


def _locate(root: Path) -> Path | None:
    if root.is_file():
        return root
    for name in _FILES:
        if (root / name).is_file():
            return root / name
    return None


def _parse_config(file: Path) -> dict[str, Any]:
    """What the file says; numbers stay text, so that a class may be called 1 or no."""
    try:
        config = yaml.load(read_file(file), Loader=yaml.BaseLoader)
    # Also not UTF-8 (ValueError), or nested beyond reason.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"not YAML: {reason}", where=file, remedy="write it again") from None
    if not isinstance(config, dict):
        remedy = "write names, train and val into it"
        raise InputError("holds no settings", where=file, remedy=remedy)
    return config


def _entries(file: Path, config: dict[str, Any], split: Split) -> list[str]:
    """The folders and lists of images of a split, as the file says them."""
    value: Any = []
    for key in _KEYS[split]:
        if config.get(key):
            value = config[key]
            break
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        remedy = "write a folder of images, relative to this file"
        raise InputError(f"{split} is no path", where=file, remedy=remedy)
    return entries


def _classes(file: Path, config: dict[str, Any]) -> dict[int, str]:
    """Names by number, sorted."""
    names = config.get("names")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict):
        names = {}
    if not names or not all(isinstance(name, str) for name in names.values()):
        text = "names is missing or no list of texts"
        raise InputError(text, where=file, remedy="write the names of the classes")
    classes = []
    for text, name in names.items():
        is_number = isinstance(text, str) and text.isdecimal() and len(text) < 10
        if not is_number:
            problem = f"{reprlib.repr(text)} in names is no class number"
            raise InputError(problem, where=file, remedy="number them from 0")
        number = int(text)
        classes.append((number, name))
    return dict(sorted(classes))


def _find_images(
    file: Path, config: dict[str, Any], split: Split, faults: list[Fault]
) -> tuple[str, list[str]]:
    """The folder of the images of a split, relative to the data folder, and their sorted paths
    below it."""
    root = file.parent
    places = _Places(file, config, faults)
    entries = _entries(file, config, split)
    locations = places.require(split)
    folder = "."
    if len(locations) == 1 and (root / locations[0]).is_dir():
        folder = locations[0]
    names: set[str] = set()
    for location in locations:
        if (root / location).is_file():
            names.update(places.listed(location))
            continue
        below = posixpath.relpath(location, folder)
        for name in contents_of(root / location).files:
            names.add(posixpath.normpath(f"{below}/{name}"))
    if not names:
        text = f"{split} holds no images ({reprlib.repr(entries)})"
        raise InputError(text, where=file, remedy="put them there")
    return folder, sorted(names, key=os.fsencode)


class _Places:
    """Where the images are that a `data.yaml` names: in its folder."""

    def __init__(self, file: Path, config: dict[str, Any], faults: list[Fault]):
        """Raises InputError if its `path` is another folder."""
        self.file = file
        self.config = config
        self.faults = faults
        self.root = file.parent
        self.finder = Finder(self.root)
        self.base = self._find_base()  # the folder that entries are relative to, below the root

    def _find_base(self) -> str:
        stated = self.config.get("path")
        if not isinstance(stated, str):
            return ""
        base = self.finder.find(stated, origins=[os.getcwd()])
        if base.outside:
            raise InputError(
                f"path: {stated} is outside of {self.root}, the folder of this file",
                where=self.file,
                remedy=f"move this file to {base.outside}, without path",
            )
        if not base.inside or base.is_guess:
            taken = self.root / base.inside
            names = (self.root.resolve().name, taken.name)
            if posixpath.basename(posixpath.normpath(stated.replace("\\", "/"))) not in names:
                text = f"path: {stated} is not there, {taken} is taken"
                self._add("warning", "path-foreign", "", text, "write the path of the data")
        return base.inside

    def of(self, split: Split) -> list[Resolved]:
        """What the entries of a split lead to."""
        bases = (self.base, "")
        return [self.finder.find(entry, bases) for entry in self.entries(split)]

    def entries(self, split: Split) -> list[str]:
        return _entries(self.file, self.config, split)

    def require(self, split: Split) -> list[str]:
        """Where the entries of a split are below the data folder. Raises InputError if one is not
        there."""
        locations = []
        for entry, resolved in zip(self.entries(split), self.of(split), strict=True):
            said = f"{split}: {reprlib.repr(entry)}"
            if resolved.outside:
                text = f"{said} is outside of {self.root}, the folder of this file"
                remedy = "move this file up, or write a path relative to it"
                raise InputError(text, where=self.file, remedy=remedy)
            if not resolved.inside:
                text = f"{said} is not in {self.root}"
                remedy = "put it there, or write a path relative to this file"
                raise InputError(text, where=self.file, remedy=remedy)
            if resolved.is_guess and not entry.startswith(".."):
                text = f"{said} is not there, {self.root / resolved.inside} is taken"
                remedy = "write a path relative to this file"
                self._add("note", "path-foreign", "", text, remedy)
            locations.append(resolved.inside)
        return locations

    def listed(self, location: str) -> list[str]:
        """The images that a text file lists, one a line."""
        file = self.root / location
        bases = (posixpath.dirname(location), self.base, "")
        lines = read_lines(file)
        resolved = [self.finder.find(line, bases) if line else Resolved() for line in lines]
        rows = Rows(len(lines), self.faults, lambda i: (file, f"line {i + 1}"))
        rows.fault(
            "path-outside",
            [target.outside != "" for target in resolved],
            lambda i: f"{reprlib.repr(lines[i])} is outside of {self.root}",
            "move the image into it, or write a path inside",
        )
        rows.fault(
            "image-missing",
            [
                line != "" and not target.inside
                for line, target in zip(lines, resolved, strict=True)
            ],
            lambda i: f"{reprlib.repr(lines[i])} is not in {self.root}",
            "put it there, or delete the line",
        )
        rows.fault(
            "path-foreign",
            [target.is_guess for target in resolved],
            lambda i: f"{reprlib.repr(lines[i])} is not there, {resolved[i].inside} is taken",
            "write paths relative to the list",
            "note",
        )
        return [target.inside for target in resolved if target.inside]

    def _add(self, severity: Severity, code: str, where: str, text: str, remedy: str) -> None:
        self.faults.append(Fault(severity, code, self.file, where, text, remedy))


class _Lines:
    """The lines of all label files: A of them, read one file after the other.

    Arrays that grow, not lists: a large data set has millions of lines.
    """

    def __init__(self, files: list[str]):
        """`files` has the label file of each image; it need not be there."""
        self.files = files
        self.any_file = False  # whether at least one is there
        self.image = array("q")  # [A], index of the image
        self.line = array("q")  # [A], from 1
        self.kind = array("b")  # [A], box, outline, or neither
        self.values = array("d")  # [5 A], class and box as cxcywh fractions
        for index, file in enumerate(files):
            content = self._content(file)
            if content is None:
                continue
            self.any_file = True
            for number, line in enumerate(content.splitlines(), start=1):
                words = line.split()
                if words:
                    kind, values = _parse_line(words)
                    self.image.append(index)
                    self.line.append(number)
                    self.kind.append(kind)
                    self.values.extend(values)

    @staticmethod
    def _content(file: str) -> bytes | None:
        """What is in the file, None if there is none. Raises InputError if it cannot be read."""
        try:
            with open(file, "rb") as opened:
                return opened.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            text = f"cannot be read: {error.strerror}"
            raise InputError(text, where=file, remedy="copy the labels again") from None

    def place(self, i: int) -> tuple[Path, str]:
        """The file of line `i`, and which line of it that is."""
        return self._file(i), f"line {self.line[i]}"

    def _file(self, i: int) -> Path:
        image = self.image[i]
        return Path(self.files[image])

    def quoted(self, i: int) -> str:
        """The text of line `i`, shortened."""
        lines = self._file(i).read_bytes().splitlines()
        number = self.line[i]
        text = lines[number - 1].decode("utf-8", "replace")
        return reprlib.repr(text)


def _parse_line(words: list[bytes]) -> tuple[int, Sequence[float]]:
    """The kind of a line, its class, and its box as cxcywh fractions."""
    try:
        numbers = list(map(float, words))
    except ValueError:
        return _BAD, _NO_VALUES
    total = sum(map(abs, numbers))
    if not total < _LARGEST:  # also not a number
        return _BAD, _NO_VALUES
    if len(numbers) == 5:
        return _BOX, numbers
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        return _BAD, _NO_VALUES
    label = numbers[0]
    x = numbers[1::2]
    y = numbers[2::2]
    x_min = min(x)
    x_max = max(x)
    y_min = min(y)
    y_max = max(y)
    center_x = (x_min + x_max) / 2
    center_y = (y_min + y_max) / 2
    return _OUTLINE, (label, center_x, center_y, x_max - x_min, y_max - y_min)


def _read_objects(
    lines: _Lines, sizes: np.ndarray, classes: list[int], file: Path, faults: list[Fault]
) -> Objects:
    count = len(lines.image)
    rows = Rows(count, faults, lines.place)
    kind = np.array(lines.kind, np.int8)
    image = np.array(lines.image, np.int64)
    values = np.array(lines.values, np.float64).reshape(-1, 5)
    rows.fault(
        "line-invalid",
        kind == _BAD,
        lambda i: f"{lines.quoted(i)} is neither a box nor an outline",
        "write class cx cy w h",
    )
    numbers = values[:, 0]
    labels = np.searchsorted(classes, numbers).clip(max=len(classes) - 1)
    unknown = np.array(classes)[labels] != numbers
    rows.fault(
        "class-unknown",
        unknown,
        lambda i: f"{lines.quoted(i)} begins with no class of {file}",
        f"write one of the {len(classes)} numbers, or add a name",
    )
    rows.fault(
        "outline", kind == _OUTLINE, lambda i: "is an outline", "its bounding box is taken", "note"
    )
    return Objects(
        rows=rows,
        image=image,
        labels=labels,
        corners=_corners(values[:, 1:], sizes[image, ::-1]),
        iscrowd=np.zeros(count, bool),
        area=np.full(count, -1, np.float32),
        ids=np.arange(1, count + 1),
        quoted=lines.quoted,
        remedy="write class cx cy w h as fractions of the image",
    )


def _corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """xyxy pixels of boxes that are cxcywh fractions, float64 `[A, 4]`; `sizes` are width and
    height of their images."""
    centers = boxes[:, :2]
    half_sides = boxes[:, 2:] / 2
    starts = centers - half_sides
    ends = centers + half_sides
    fractions = np.concatenate([starts, ends], axis=1)
    corners = fractions * np.tile(sizes, 2)
    return corners.round(9)  # px: what was 0 or 100 before it became a fraction is so again
