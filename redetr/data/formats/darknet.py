"""Data sets in YOLO format without a YAML file. They have either the `obj.data` of Darknet and
CVAT's "YOLO 1.1", or only the names of the classes, as Label Studio, LabelImg and Roboflow write
them (`classes.txt` and others)."""

import posixpath
from pathlib import Path
from typing import Any

from redetr.data.archives import names_below
from redetr.data.faults import Fault
from redetr.data.formats.labels import LABEL_SUFFIX
from redetr.data.formats.listing import first_below
from redetr.data.formats.paths import Listing, composed, read_lines
from redetr.data.images import IMAGE_SUFFIXES, is_image_name
from redetr.errors import InputError
from redetr.wording import counted

_SETTINGS = "obj.data"
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt", "train/_darknet.labels")
_FOLDERS = {
    "train": ("images/train", "train", "images", "data", "."),
    "val": ("images/val", "images/valid", "val", "valid"),
    "test": ("images/test", "test"),
}


def darknet_file(root: Path) -> Path | None:
    """The file that describes the data set in a folder; None if there is none. A file of class
    names counts only if there is a label file as well."""
    if (root / _SETTINGS).is_file():
        return root / _SETTINGS
    for name in _NAMES:
        file = root / name
        if file.is_file() and _has_labels(root):
            return file
    return None


def _has_labels(root: Path) -> bool:
    """Whether there is a text file in `labels/`, or one with the stem of an image in its folder."""
    if first_below(root / "labels", (LABEL_SUFFIX,)):
        return True
    return any(_holds_pair(names_below(root / folder)) for folder in _FOLDERS["train"])


def _holds_pair(names: set[str]) -> bool:
    """Whether the names are those of an image and a text file with one stem. Suffixes may be in
    upper case, as cameras write them."""
    stems = set()
    for name in names:
        if is_image_name(name):
            stem, _ = posixpath.splitext(name)
            stems.add(composed(stem))
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == LABEL_SUFFIX and composed(stem) in stems:
            return True
    return False


def is_darknet(file: Path) -> bool:
    """Whether this is a file that `darknet_file` may return."""
    return file.name == _SETTINGS or file.name in {posixpath.basename(name) for name in _NAMES}


def data_root(file: Path) -> Path:
    """The folder of the data set that a file of `darknet_file` describes."""
    is_below = any(name.endswith(f"/{file.name}") for name in _NAMES)
    if is_below and file.parent.name in ("labels", "train"):
        return file.parent.parent
    return file.parent


def darknet_config(file: Path) -> dict[str, Any]:
    """The equivalent contents of a `data.yaml`. Raises InputError if no file names the classes."""
    root = data_root(file)
    if file.name != _SETTINGS:
        return {"names": _names(file)} | _folders(root)
    settings: dict[str, Any] = {}
    for line in read_lines(file):
        key, _, value = line.partition("=")
        settings[key.strip()] = value.strip()
    named = posixpath.basename(settings.get("names", "").replace("\\", "/"))
    if named not in Listing(root):  # not `is_file`, as the text may be too long for a path
        remedy = f"write names = and put that file beside {_SETTINGS}"
        raise InputError("the file of its classes is missing", where=file, remedy=remedy)
    config: dict[str, Any] = {"names": _names(root / named)}
    for split, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        if settings.get(key):
            config[split] = settings[key]
    return config


def _names(file: Path) -> list[str]:
    """The names of the classes, one per line. Raises InputError for a file without names, or with
    an empty line between them."""
    names = read_lines(file)
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        remedy = "write one class name per line"
        raise InputError("holds no class names, or empty lines", where=file, remedy=remedy)
    return names


def other_names(root: Path, names: list[str]) -> Fault | None:
    """A warning if a file of class names next to a `data.yaml` differs from its `names` in classes
    or their order."""
    for file in [root / name for name in _NAMES]:
        if not file.is_file():
            continue
        listed = [line for line in read_lines(file) if line]
        if listed == names:
            continue
        text = f"lists {counted(len(listed), 'class', 'classes')}, and the YAML file {len(names)}"
        for number, (name, other) in enumerate(zip(names, listed, strict=False)):
            if name != other:
                text = f"class {number} is {other!r} here, and {name!r} in the YAML file"
                break
        remedy = (
            "the YAML file is used: check on the page of --report whether the classes are right"
        )
        return Fault("warning", "classes-differ", file, "", text, remedy)
    return None


def _folders(root: Path) -> dict[str, str]:
    """The folder of images of each split that exists."""
    folders = {}
    for split, names in _FOLDERS.items():
        for name in names:
            if first_below(root / name, IMAGE_SUFFIXES):
                folders[split] = name
                break
    if folders.get("train") in ("images", "data", "."):  # all of the data, without splits
        return {"train": folders["train"]}
    return folders
