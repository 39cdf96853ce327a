"""Where the splits of a data set in COCO format are: their annotation files, and the folders of
their images."""

import os
import re
from pathlib import Path

from redetr.data.annotations import SPLITS, Split
from redetr.data.formats.datumaro import is_datumaro
from redetr.errors import InputError
from redetr.files import first_bytes

ROBOFLOW_FILE = "_annotations.coco.json"
_CVAT_FILE = "instances_default.json"  # of a task that is not divided into splits
_FIFTYONE_FILE = "labels.json"
_LABEL_STUDIO_FILE = "result.json"
SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_NAMED = 3  # JSON files in an error
_ROW_KEYS = (b'"file_name"', b'"image_id"', b'"category_id"')  # of images and annotations
_HEAD = 2**16  # bytes of a file that show what it is
_MOST_FILES = 20  # of a folder that are looked into


def coco_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in COCO format."""
    return [split for split in SPLITS if _files(root, split)]


def other_coco_splits(root: Path) -> list[Split]:
    """The splits of a folder that are in COCO format under other names."""
    return [split for split in SPLITS if _other_files(root, split)]


def coco_sought(split: Split) -> str:
    """Where the split is looked for, in words."""
    folder = SPLIT_FOLDERS[split][min(1, len(SPLIT_FOLDERS[split]) - 1)]
    return f"annotations/instances_{split}*.json or {folder}/{ROBOFLOW_FILE}"


def coco_locate(root: Path, split: Split) -> tuple[Path, list[Path]] | None:
    """The annotation file of the split and the folders where its images may be; None if there is
    none.

    Raises InputError if several files claim to be the split, and for a list of results.
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
    if first_bytes(file, _HEAD).lstrip().startswith(b"["):
        text = 'is a list without "images" and "categories", as results of a model are'
        raise InputError(text, where=file, remedy="give the file of annotations it was made for")
    if file.parent.name != "annotations":
        folders = [file.parent, file.parent / "data", file.parent / "images"]
        return file, [*folders, *image_folders(root, file.stem, split)]
    return file, image_folders(root, file.stem.removeprefix("instances_"), split)


def image_folders(root: Path, stem: str, split: Split) -> list[Path]:
    """Where the images of a split may be, whose annotations are called so, such as `train2017`."""
    names = [stem, stem.lower(), *SPLIT_FOLDERS[split]]
    folders = []
    for parent in (root, root / "images"):
        folders += [parent / name for name in dict.fromkeys(names)]
    return [*folders, root / "images", root]


def _files(root: Path, split: Split) -> list[Path]:
    """The annotation files that claim to be the split: those with the most telling names that are
    there."""
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
        matching = [folder / name for name in names if re.fullmatch(rf"{pattern}\.json", name)]
        matching = [file for file in matching if not is_datumaro(first_bytes(file, _HEAD))]
        if matching:
            return matching
    exported = [root / name / ROBOFLOW_FILE for name in SPLIT_FOLDERS[split]]
    exported += [root / name / _FIFTYONE_FILE for name in SPLIT_FOLDERS[split]]
    if split == "train":  # all of the data in one file
        exported += [folder / _CVAT_FILE, root / ROBOFLOW_FILE]
        if (root / "images").is_dir():
            exported.append(root / _LABEL_STUDIO_FILE)
    for file in exported:
        if file.is_file():
            return [file]
    return []


def _other_files(root: Path, split: Split) -> list[Path]:
    """The files that hold rows of COCO, whatever they are called: in the folder of the split, of
    its name, or for train all that name no split."""
    for name in SPLIT_FOLDERS[split]:
        files = _coco_files(root / name)
        if files:
            return files
    for folder in (root, root / "annotations"):
        files = _coco_files(folder)
        named: dict[Split, list[Path]] = {name: [] for name in SPLITS}
        others = []
        for file in files:
            words = re.split("[^a-z]+", file.stem.lower())
            splits = [name for name in SPLITS if set(words) & set(SPLIT_FOLDERS[name])]
            if len(splits) == 1:
                named[splits[0]].append(file)
            else:
                others.append(file)
        chosen = named[split] or (others if split == "train" else [])
        if chosen:
            return chosen
    return []


def other_coco_names(root: Path) -> list[str]:
    """The names of files in the folder that hold rows of COCO."""
    return [file.name for file in _coco_files(root)]


def unread_coco_files(root: Path) -> list[Path]:
    """The files that hold rows of COCO beside those of the splits, and are of no split."""
    read = []
    for split in SPLITS:
        read += _files(root, split) or _other_files(root, split)
    unread = []
    for folder in {file.parent: None for file in read}:
        unread += [file for file in _coco_files(folder) if file not in read]
    return unread


def _coco_files(folder: Path) -> list[Path]:
    """The JSON files in a folder that begin as those of COCO do."""
    names = _json_files(folder)
    if len(names) > _MOST_FILES:
        return []
    return [folder / name for name in names if _is_coco(first_bytes(folder / name, _HEAD))]


def _is_coco(head: bytes) -> bool:
    is_object = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and any(key in head for key in _ROW_KEYS)


def misnamed_files(root: Path) -> str:
    """A sentence on JSON files that may be annotations of COCO, empty if there are none."""
    names = _json_files(root) + [
        f"annotations/{name}" for name in _json_files(root / "annotations")
    ]
    if not names:
        return ""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"if {listed} is in COCO format, call it annotations/instances_train.json"


def _json_files(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in names if name.endswith(".json") and not name.startswith("."))
