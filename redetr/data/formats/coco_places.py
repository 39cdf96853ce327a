"""The annotation files and image folders of the splits of a data set in COCO format."""

import os
import re
from pathlib import Path

from redetr.data.annotations import SPLITS, Split
from redetr.data.formats.datumaro import is_datumaro
from redetr.data.formats.paths import in_capitals
from redetr.data.formats.via import is_via
from redetr.errors import InputError
from redetr.files import first_bytes

ROBOFLOW_FILE = "_annotations.coco.json"
_CVAT_FILE = "instances_default.json"  # of a task without splits
_FIFTYONE_FILE = "labels.json"
_LABEL_STUDIO_FILE = "result.json"
SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_MOST_NAMES = 3  # of JSON files in a message
# Of images and annotations; a class of that name has no colon.
_ROW_KEYS = re.compile(rb'"(file_name|image_id|category_id)"\s*:')
_LABELME = re.compile(rb'"shapes"\s*:\s*\[|"imageData"\s*:')  # matches keys, not class names
_HEAD = 2**16  # bytes of a file that show its format
_MOST_FILES = 20  # a folder with more JSON files is not searched


def coco_splits(root: Path) -> list[Split]:
    """The splits in the folder that have COCO files with the usual names."""
    return [split for split in SPLITS if _files(root, split)]


def other_coco_splits(root: Path) -> list[Split]:
    """The splits in the folder that have COCO files with other names."""
    return [split for split in SPLITS if _other_files(root, split)]


def coco_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    folder = "valid" if split == "val" else split  # Roboflow's name
    return f"annotations/instances_{split}*.json or {folder}/{ROBOFLOW_FILE}"


def coco_locate(root: Path, split: Split) -> tuple[Path, list[Path]] | None:
    """The annotation file of the split, and the folders where its images may be; None if there is
    no file.

    Raises InputError if several files claim to be the split, or if the file is a list of results.
    """
    files = _files(root, split) or _other_files(root, split)
    if not files:
        return None
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        text = f"several files for the {split} split ({listed})"
        remedy = f"keep one, as annotations/instances_{split}.json"
        raise InputError(text, where=root, remedy=remedy)
    file = files[0]
    head = first_bytes(file, _HEAD)
    if head.lstrip().startswith(b"["):
        text = 'is a list without "images" and "categories", like the results of a model'
        raise InputError(
            text, where=file, remedy="give the annotation file that the results were made for"
        )
    parent = file.parent
    if parent.name == "annotations":
        stem = file.stem.removeprefix("instances_")
        return file, image_folders(root, stem, split)
    beside = [parent, parent / "data", parent / "images"]
    return file, beside + image_folders(root, file.stem, split)


def image_folders(root: Path, stem: str, split: Split) -> list[Path]:
    """The folders where the images of a split may be; `stem` is the name of its annotations, such
    as `train2017`."""
    images = root / "images"
    names = dict.fromkeys([stem, stem.lower(), *SPLIT_FOLDERS[split]])
    folders = [root / name for name in names]
    folders += [images / name for name in names]
    folders += [*in_capitals(root, names), *in_capitals(images, names)]
    return [*folders, images, root]


def _files(root: Path, split: Split) -> list[Path]:
    """The annotation files that claim to be the split. Only those with the most specific kind of
    name are returned."""
    folder = root / "annotations"
    exact = folder / f"instances_{split}.json"
    if exact.is_file():
        return [exact]
    names = _json_files(folder)
    alike = "|".join(SPLIT_FOLDERS[split])
    for pattern in (
        f"instances_{split}.*",
        f"(?i:instances_({alike})([^a-z].*)?)",
        f"(?i:({alike})([^a-z].*)?)",
    ):
        matching = []
        for name in names:
            is_named = re.fullmatch(rf"{pattern}\.json", name) is not None
            if is_named and not _is_of_another_tool(first_bytes(folder / name, _HEAD)):
                matching.append(folder / name)
        if matching:
            return matching
    split_folders = [root / name for name in SPLIT_FOLDERS[split]]
    exported = [split_folder / ROBOFLOW_FILE for split_folder in split_folders]
    exported += [split_folder / _FIFTYONE_FILE for split_folder in split_folders]
    if split == "train":  # exports that have all data in one file
        exported += [folder / _CVAT_FILE, root / ROBOFLOW_FILE]
        if (root / "images").is_dir():
            exported.append(root / _LABEL_STUDIO_FILE)
    for file in exported:
        if file.is_file():
            return [file]
    return []


def _is_of_another_tool(head: bytes) -> bool:
    """Whether a file that begins with these bytes is Datumaro's or VIA's, or LabelMe's file for a
    single image."""
    return is_datumaro(head) or is_via(head) or _LABELME.search(head) is not None


def _other_files(root: Path, split: Split) -> list[Path]:
    """COCO files with any name: those in the folder of the split, or else those with the split in
    their name; for train, also those without any split in their name."""
    for name in SPLIT_FOLDERS[split]:
        files = _coco_files(root / name)
        if files:
            return files
    for folder in (root, root / "annotations"):
        of_split = []
        of_no_split = []
        for file in _coco_files(folder):
            named_split = _split_in_name(file)
            if named_split == split:
                of_split.append(file)
            elif named_split is None:
                of_no_split.append(file)
        if of_split:
            return of_split
        if of_no_split and split == "train":
            return of_no_split
    return []


def _split_in_name(file: Path) -> Split | None:
    """The split that occurs as a word in the name of a file; None if there is none, or several."""
    words = set(re.split("[^a-z]+", file.stem.lower()))
    splits = [split for split in SPLITS if words.intersection(SPLIT_FOLDERS[split])]
    return splits[0] if len(splits) == 1 else None


def other_coco_names(root: Path) -> list[str]:
    """The names of the COCO files in the folder."""
    return [file.name for file in _coco_files(root)]


def unread_coco_files(root: Path) -> list[Path]:
    """The COCO files that belong to no split, in the folders of those that do."""
    read = []
    for split in SPLITS:
        read += _files(root, split) or _other_files(root, split)
    folders = dict.fromkeys(file.parent for file in read)  # an ordered set
    unread = []
    for folder in folders:
        unread += [file for file in _coco_files(folder) if file not in read]
    return unread


def _coco_files(folder: Path) -> list[Path]:
    """The JSON files in a folder that begin like COCO's; none if the folder has too many."""
    names = _json_files(folder)
    if len(names) > _MOST_FILES:
        return []
    files = [folder / name for name in names]
    return [file for file in files if _is_coco(first_bytes(file, _HEAD))]


def _is_coco(head: bytes) -> bool:
    is_object = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and _ROW_KEYS.search(head) is not None


def misnamed_files(root: Path) -> str:
    """A remedy for JSON files that may be in COCO format; empty if there are none."""
    names = _json_files(root, any_capitals=True)
    for folder in [root / "annotations", *in_capitals(root, ["annotations"])]:
        names += [f"{folder.name}/{name}" for name in _json_files(folder, any_capitals=True)]
    if not names:
        return ""
    listed = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        listed += ", ..."
    return f"if {listed} is in COCO format, rename it to annotations/instances_train.json"


def _json_files(folder: Path, any_capitals: bool = False) -> list[str]:
    """The names of the JSON files in a folder; with `any_capitals`, also those with the suffix
    .JSON."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    files = []
    for name in names:
        ending = name.lower() if any_capitals else name
        if ending.endswith(".json") and not name.startswith("."):
            files.append(name)
    return sorted(files)
