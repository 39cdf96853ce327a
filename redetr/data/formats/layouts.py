"""Determines the format of a data folder and its splits, and reads a split."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from redetr.data.annotations import Annotations, Split, data_folder
from redetr.data.faults import Fault, listed
from redetr.data.formats.coco import read_coco
from redetr.data.formats.coco_places import (
    coco_sought,
    coco_splits,
    misnamed_files,
    other_coco_names,
    other_coco_splits,
    unread_coco_files,
)
from redetr.data.formats.exports import export_files, export_sought, export_splits, read_export
from redetr.data.formats.label_images import (
    label_image_splits,
    label_images_sought,
    read_label_images,
)
from redetr.data.formats.labelme import labelme_sought, labelme_splits, read_labelme
from redetr.data.formats.labels import LABEL_SUFFIX
from redetr.data.formats.panoptic import panoptic_sought, panoptic_splits, read_panoptic
from redetr.data.formats.shards import read_shards, shard_splits, shards_sought
from redetr.data.formats.unread import ARCHIVES, misspelt_folders, unread_format
from redetr.data.formats.voc import read_voc
from redetr.data.formats.voc_places import other_voc_splits, voc_sought, voc_splits
from redetr.data.formats.yolo import darknet_splits, read_yolo, yolo_files, yolo_sought, yolo_splits
from redetr.data.mask_columns import MaskBuilder, MaskUse
from redetr.errors import InputError
from redetr.files import holds_run

_REMEDIES = {
    "train": "add it: a model learns from it",
    "val": "add it: hold out 10-20% of the images to measure on, or let --val-fraction 0.1 do it",
    "test": "add it, or use val",
}


class _Layout(NamedTuple):
    """A format of data sets: functions that return the splits in a folder, describe where a split
    is looked for, and read a split."""

    splits: Callable[[Path], list[Split]]
    sought: Callable[[Split], str]
    read: Callable[[Path, Split, MaskBuilder | None], Annotations]
    suffix: str = ""  # of annotation files, if each image has one


_LAYOUTS = {
    "COCO": _Layout(coco_splits, coco_sought, read_coco),
    "COCO panoptic": _Layout(panoptic_splits, panoptic_sought, read_panoptic),
    "YOLO": _Layout(yolo_splits, yolo_sought, read_yolo, LABEL_SUFFIX),
    "CVAT, VIA or Datumaro": _Layout(export_splits, export_sought, read_export),
    "Pascal VOC": _Layout(voc_splits, voc_sought, read_voc, ".xml"),
    "LabelMe": _Layout(labelme_splits, labelme_sought, read_labelme, ".json"),
    "label images": _Layout(label_image_splits, label_images_sought, read_label_images),
    "WebDataset": _Layout(shard_splits, shards_sought, read_shards),
}
# The same formats with other names of files and folders, which are looked for if none of the first
# is found.
_OTHER_LAYOUTS = {
    "COCO": _LAYOUTS["COCO"]._replace(splits=other_coco_splits),
    "YOLO": _LAYOUTS["YOLO"]._replace(splits=darknet_splits),
    "Pascal VOC": _LAYOUTS["Pascal VOC"]._replace(splits=other_voc_splits),
}
# A folder that Hugging Face `datasets` saved has one of the first files; an image folder that it
# reads has one of the others.
_SAVED = ("dataset_dict.json", "state.json")
_YAML = (".yaml", ".yml")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def splits_of(root: Path) -> list[Split]:
    """The splits of the data set in a folder, or of a YAML file. Raises InputError if there are
    none, or if they are ambiguous."""
    _, splits = _layout_of(root)
    return splits


def read_annotations(root: Path, split: Split, masks: MaskUse = "none") -> Annotations:
    """A split of the data set in a folder, or of a YAML file, with all of its faults, and with
    masks for this use.

    Raises InputError if there is no such data set or split, or if it cannot be read at all.
    """
    layout, splits = _layout_of(root)
    if split not in splits:
        text = f"no {split} split (looked for {layout.sought(split)})"
        remedy = _REMEDIES[split]
        if split == "val" and "train" not in splits:
            remedy = "add it, or use test (--split test of redetr evaluate and redetr explain)"
        if split == "test" and "val" not in splits:
            remedy = "add it, or use val (--val-fraction 0.1 makes one)"
        raise InputError(text, where=root, remedy=remedy)
    annotations = replace(layout.read(root, split, MaskBuilder.of(masks)), root=root)
    if split == "train":
        annotations.faults.extend(_other_layouts(root, layout))
    return annotations


def _other_layouts(root: Path, layout: _Layout) -> list[Fault]:
    """A warning if the folder also has a data set in another format, which is not read."""
    if root.is_file():
        return []
    others = []
    if layout.read is read_coco:
        others += yolo_files(root)
    if layout.read is read_yolo:
        others += yolo_files(root)[1:]
    if layout.read is read_export:
        others += other_coco_names(root)
    else:
        others += export_files(root)
    is_voc = (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()
    if layout.read is not read_voc and is_voc:
        others.append("JPEGImages")
    if not others:
        return _unread_json(root) if layout.read is read_coco else []
    name = next(name for name, known in _LAYOUTS.items() if known.read is layout.read)
    text = f"the folder is read in {name} format, and {others[0]} is not read"
    remedy = "to read it, give the path of the YAML file, or move that data to another folder"
    return [Fault("warning", "layout-unused", root, "", text, remedy)]


def _unread_json(root: Path) -> list[Fault]:
    """A note if there are annotation files in COCO format that are not read."""
    unread = unread_coco_files(root)
    if not unread:
        return []
    text = "is in COCO format, but no split uses it"
    remedy = "nothing to do if that is intended"
    items = listed(file.name for file in unread)
    count = len(unread)
    return [Fault("note", "json-unread", unread[0].parent, items[0], text, remedy, count, items)]


def annotation_suffix(root: Path) -> str:
    """The suffix of annotation files, in lower case, if each image has one; otherwise empty."""
    layout, _ = _layout_of(root)
    return layout.suffix


def is_saved_by_datasets(root: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face `datasets` wrote the folder."""
    return any((root / name).is_file() for name in _SAVED)


def is_hub_folder(root: Path) -> bool:
    """Whether Hugging Face `datasets` reads the folder: it was saved by it, or has images with
    metadata."""
    if is_saved_by_datasets(root):
        return True
    for folder in (root, *sorted(root.glob("*/"))):
        if any((folder / name).is_file() for name in _METADATA):
            return True
    return False


def _layout_of(root: Path) -> tuple[_Layout, list[Split]]:
    if root.suffix.lower() in _YAML and root.is_file():
        return _layout_of_yaml(root)
    if root.suffix == ".json" and root.name.startswith("panoptic_") and root.is_file():
        layout = _LAYOUTS["COCO panoptic"]
        return layout, layout.splits(root)
    if not root.is_dir():
        raise _no_folder(root)
    if not any(root.iterdir()):
        remedy = f"put a data set in {', '.join(_LAYOUTS)} format into it"
        raise InputError("the folder is empty", where=root, remedy=remedy)
    readable = None
    for layouts in (_LAYOUTS, _OTHER_LAYOUTS):
        for layout in layouts.values():
            splits = layout.splits(root)
            if "train" in splits:
                return layout, splits
            if splits and readable is None:
                readable = layout, splits
        if readable is not None:
            return readable
    raise _no_data_set(root)


def _no_folder(root: Path) -> InputError:
    """The error for a path that is not a folder."""
    remedy = "give the folder of a data set, its data.yaml, or digits or crowns"
    if not root.is_file():
        return InputError("no such folder", where=root, remedy=remedy)
    if root.suffix.lower() == ".tar":
        remedy = "give its folder: an archive called train-000.tar need not be unpacked"
    elif root.suffix.lower() in ARCHIVES:
        remedy = "unpack it, and give the folder"
    elif root.suffix.lower() in (".json", ".xml"):
        remedy = f"give its folder, {data_folder(root)}"
    return InputError("is a file", where=root, remedy=remedy)


def _no_data_set(root: Path) -> InputError:
    """The error for a folder without a data set, with the most helpful remedy."""
    if holds_run(os.listdir(root)):
        text = "is the folder of a run, which is not data"
        return InputError(text, where=root, remedy="give the data that it was trained on")
    for folder in sorted(root.glob("*/")):
        if any(layout.splits(folder) for layout in _LAYOUTS.values()):
            remedy = f"give {folder}, which holds one"
            return InputError("no data set found", where=root, remedy=remedy)
    if is_hub_folder(root):
        remedy = f"Hugging Face `datasets` reads it: give hf:{root}"
        text = "not a folder in a supported format"
        return InputError(text, where=root, remedy=remedy)
    settings = sorted(file for file in root.glob("*.*") if file.suffix.lower() in _YAML)
    if settings:
        remedy = f"give {settings[0]} itself, if it names the images of a data set in YOLO format"
        return InputError("no data set found", where=root, remedy=remedy)
    for path, usual in misspelt_folders(root).items():
        remedy = f"rename {path} to {usual}: names of folders are case-sensitive"
        return InputError("no data set found", where=root, remedy=remedy)
    text, remedy = unread_format(root)
    if text:
        return InputError(f"no data set found: {text}", where=root, remedy=remedy)
    sought = "; ".join(f"{name}: {layout.sought('train')}" for name, layout in _LAYOUTS.items())
    remedy = f"give the folder that holds one of these ({sought})"
    misnamed = misnamed_files(root)
    if (root / "labels").is_dir():
        remedy = "if it is in YOLO format, write a data.yaml that names train, val and the classes"
    elif misnamed:
        remedy = f"{misnamed}; else {remedy}"
    return InputError("no data set found", where=root, remedy=remedy)


def _layout_of_yaml(file: Path) -> tuple[_Layout, list[Split]]:
    splits = yolo_splits(file)
    if not splits:
        raise InputError("lists no images", where=file, remedy="write train and val into it")

    def sought(split: Split) -> str:
        return yolo_sought(split, file.name)

    return _LAYOUTS["YOLO"]._replace(sought=sought), splits
