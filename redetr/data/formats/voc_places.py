"""Finds the folders and lists of the splits of a data set in Pascal VOC format, in the layout of
the devkit or of other tools."""

import posixpath
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from redetr.data.annotations import SPLITS, Split
from redetr.data.faults import Fault, listed
from redetr.data.formats.listing import USUAL_FOLDERS, contents_of, files_in, first_below
from redetr.data.formats.paths import in_capitals, read_lines
from redetr.files import open_file

XML = (".xml",)
# The folders that other tools write.
_IMAGE_FOLDERS = ("JPEGImages", "images", "data", "img")
_XML_FOLDERS = ("Annotations", "annotations", "labels", "xml", "xmls")
_TRIED = 5  # files that are read to recognise a folder in this format
_HEAD = 2**14  # bytes that are read to recognise a file
# The first element of a file, in any case and any namespace; CVAT's is <annotations>.
_ROOT = re.compile(rb"<([\w.-]+:)?annotation[\s>]", re.IGNORECASE)


@dataclass
class VocLocation:
    """The files and folders of a split."""

    images: Path  # folder
    annotations: Path  # folder
    listed: Path | None = None  # the list of images; None = all XML files


def voc_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in Pascal VOC format."""
    return [split for split in SPLITS if _locate(root, split)]


def other_voc_splits(root: Path) -> list[Split]:
    """The splits of a folder that are in Pascal VOC format with other names of folders."""
    return [split for split in SPLITS if _locate_elsewhere(root, split)]


def voc_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    return (
        f"ImageSets/Main/{split}.txt beside JPEGImages/ and Annotations/, or "
        f"{USUAL_FOLDERS[split][0]}/*.xml"
    )


def locate_voc(root: Path, split: Split) -> VocLocation | None:
    """The location of a split, with the devkit's names of folders or with others; None if there is
    none."""
    return _locate(root, split) or _locate_elsewhere(root, split)


def _locate(root: Path, split: Split) -> VocLocation | None:
    """The location of a split, with the devkit's names of folders; None if there is none. Images
    that are in no list belong to no split."""
    images = _folder(root, "JPEGImages")
    annotations = _folder(root, "Annotations")
    if not images.is_dir() or not annotations.is_dir():
        for name in USUAL_FOLDERS[split]:
            folder = root / name
            if first_below(folder, XML):
                return VocLocation(folder, folder)
        return None
    lists = {}
    for name in ("train", "val", "trainval", "test", "default"):  # CVAT writes default
        file = _folder(_folder(root, "ImageSets"), "Main") / f"{name}.txt"
        if file.is_file():
            lists[name] = file
    if split in lists:
        return VocLocation(images, annotations, lists[split])
    if split != "train" or "val" in lists:
        return None
    everything = lists.get("trainval", lists.get("default"))
    if everything is None and "test" in lists and _lists_all(lists["test"], annotations):
        return None  # it has only a test split, whose images would be those of train
    return VocLocation(images, annotations, everything)


def _lists_all(listed: Path, annotations: Path) -> bool:
    """Whether a list of images names all annotation files of the folder."""
    stems = {posixpath.splitext(path)[0] for path in contents_of(annotations, XML).files}
    return stems <= set(read_lines(listed))


def _folder(parent: Path, name: str) -> Path:
    """The folder with this name, or the only one whose name differs only in case."""
    exact = parent / name
    if exact.is_dir():
        return exact
    others = in_capitals(parent, [name])
    return others[0] if len(others) == 1 else exact


def _locate_elsewhere(root: Path, split: Split) -> VocLocation | None:
    """The location of a split, with other tools' names of folders: XML files and images in two
    folders, or both in the root. None if there is none."""
    image_folders = [_folder(root, name) for name in _IMAGE_FOLDERS]
    for annotations in [_folder(root, name) for name in _XML_FOLDERS]:
        if not _is_voc(first_below(annotations, XML)):
            continue
        for images, name in product(image_folders, USUAL_FOLDERS[split]):
            location = VocLocation(images / name, annotations / name)
            if location.images.is_dir() and location.annotations.is_dir():
                return location
        if split != "train":
            continue
        for images in (*image_folders, root):
            if images.is_dir():
                return VocLocation(images, annotations)
    if split != "train":
        return None
    for folder in (root, *image_folders):
        if any(_is_voc(file) for file in files_in(folder, XML)[:_TRIED]):
            return VocLocation(folder, folder)
    return None


def unread_lists(root: Path) -> list[Fault]:
    """A warning if there are lists of splits, but not in the folder for detection."""
    lists = []
    for file in sorted(_folder(root, "ImageSets").glob("*/*.txt")):
        if file.stem in ("train", "val", "trainval", "test") and file.parent.name.lower() != "main":
            lists.append(file)
    if not lists:
        return []
    text = "is not read, and all images are train"
    remedy = "copy the lists to ImageSets/Main if they are the splits"
    items = listed(map(str, lists))
    return [Fault("warning", "list-unread", lists[0], "", text, remedy, len(lists), items)]


def _is_voc(file: str) -> bool:
    """Whether a file begins like those of VOC, and not like those of CVAT or the old LabelMe."""
    if not file:
        return False
    try:
        with open_file(file) as opened:
            head = opened.read(_HEAD).replace(b"\0", b"")  # UTF-16
    except OSError:
        return False
    return _ROOT.search(head) is not None and b"<imagesize>" not in head
