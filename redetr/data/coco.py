"""Data sets in COCO form: per split one JSON file of images, annotations and categories.

A file is checked as a whole when it is opened, so that training meets no fault in it later. Only the decoding of
images is left.
"""

import json
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redetr.data.dataset import DetectionDataset, Hints, Split, find_files, path_inside
from redetr.data.images import read_image, require_whole
from redetr.errors import InputError
from redetr.structures import Target

# People overshoot the border a little: up to this many pixels, or this share of the side, boxes are clipped.
_OVERSHOOT_PX = 2.0
_OVERSHOOT_SHARE = 0.01
# COCO's own train2017 holds 2 boxes without height among 860,001: so few are left out, more are a fault.
_FEW_EMPTY_BOXES = 1e-4
# Data sets that fit in this much memory are decoded once in each process: decoding is the dearest part of a sample.
_KEPT_BYTES = 256 * 2**20
_ROBOFLOW_FILE = "_annotations.coco.json"
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid")}
_PURPOSE = {"train": "a model learns from it", "val": "hold out 10-20% of the images to measure on"}
_FIELDS = ("id", "file_name", "width", "height", "image_id", "category_id", "bbox", "name")
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

Row = dict[str, Any]


class AnnotationError(InputError):
    """A faulty annotation file: the message tells the first fault, and how many there are like it."""


@dataclass(frozen=True)
class _Table:
    """One of the three lists of a file."""

    file: Path
    kind: str  # what a row describes
    rows: list[Row]

    def column(self, key: str) -> list[Any]:
        return [row.get(key) for row in self.rows]

    def refuse(self, bad: np.ndarray, text: str, **known: Any) -> None:
        """Raises AnnotationError if rows are bad (bool `[N]`): `text` says what is wrong with the first of them.

        `{key}` in it stands for what that row says there, or for what is `known` besides.
        """
        if bad.any():
            row = self.rows[bad.argmax()]
            said = {key: _SHORT.repr(row.get(key)) for key in _FIELDS}
            name = said["id"] if "id" in row else f"number {bad.argmax()} (without id)"
            name += "".join(f" ({said[key]})" for key in ("file_name", "name") if key in row)
            more = f" (and {bad.sum() - 1} more like it)" if bad.sum() > 1 else ""
            raise AnnotationError(f"{self.file}: {self.kind} {name}: {text.format(**said, **known)}{more}")

    def whole_numbers(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """What the rows say, int64 `[N]`, and which of them say no whole number, bool `[N]` (there it is 0)."""
        values = self.column(key)
        good = [_is_number(value) and value == int(value) for value in values]
        whole = [int(value) if ok else 0 for ok, value in zip(good, values, strict=True)]
        return np.array(whole, np.int64), ~np.array(good, bool)

    def ids(self) -> np.ndarray:
        """The ids of the rows, int64 `[N]`. Raises AnnotationError if one is no whole number or there twice."""
        ids, bad = self.whole_numbers("id")
        self.refuse(bad, "its id {id} is not a whole number; number all of them")
        first = np.unique(ids, return_index=True)[1]
        self.refuse(~np.isin(np.arange(len(ids)), first), "its id {id} is there twice; give each its own")
        return ids

    def positions(self, key: str, sorted_ids: np.ndarray) -> np.ndarray:
        """Where each id that the rows name stands, int64 `[N]`; -1 where it does not, or is none."""
        wanted, bad = self.whole_numbers(key)
        places = np.searchsorted(sorted_ids, wanted).clip(max=len(sorted_ids) - 1)
        return np.where((sorted_ids[places] == wanted) & ~bad, places, -1)


class CocoDataset(DetectionDataset):
    """One split in COCO form, in the order of image ids.

    Labels count all categories, sorted by id. Crowds and boxes marked `"ignore"` have `iscrowd` True. Boxes that leave
    their image by up to 2 px or 1% of its side are clipped. Images without annotations are kept. All that a worker
    process is sent is a few arrays.
    """

    def __init__(self, annotation_file: Path, image_folders: list[Path], name: str, hints: Hints = Hints()):
        """Images are taken from the folder that has most of them. Raises InputError if the file is faulty."""
        images, annotations, categories = _parse(annotation_file)
        class_names = _read_categories(categories)
        # Sorted by id: ids [N], height and width [N, 2], paths below the folder [N] (bytes).
        self._ids, self._sizes, self._names, self._folder = _read_images(images, image_folders)
        # Sorted by image, of which number i owns first[i]:first[i + 1] with first [N + 1]:
        # boxes [A, 4] float32 (xyxy pixels), labels [A] int64, iscrowd [A] bool, area [A] float32.
        self._first, self._objects, self.notes = _read_objects(annotations, self._ids, self._sizes, list(class_names))
        self.name, self.hints = name, hints
        self.category_ids, self.class_names = tuple(class_names), tuple(class_names.values())
        self._annotation_file = annotation_file
        small = 3 * int(self._sizes.prod(1).sum()) <= _KEPT_BYTES
        self._kept: dict[int, Tensor] | None = {} if small else None

    @classmethod
    def open(cls, root: Path, split: Split, name: str = "", hints: Hints = Hints()) -> "CocoDataset":
        """The split of the data set in `root`. Raises InputError if it is missing or its file is faulty."""
        found = _locate(root, split)
        if found is None:
            looked_for = f"annotations/instances_{split}*.json or {_FOLDERS[split][-1]}/{_ROBOFLOW_FILE}"
            raise InputError(f"{root}: no {split} split (looked for {looked_for}); add it: {_PURPOSE[split]}")
        return cls(*found, name or root.resolve().name, hints)

    def __len__(self) -> int:
        return len(self._ids)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._folder / os.fsdecode(self._names[self._position(index)])

    def require_whole_images(self) -> None:
        for index in range(len(self)):
            require_whole(self.path(index))

    def target(self, index: int) -> Target:
        position = self._position(index)
        own = slice(self._first[position], self._first[position + 1])
        boxes, labels, iscrowd, area = (torch.from_numpy(array[own].copy()) for array in self._objects)
        image_id, (height, width) = int(self._ids[position]), self._sizes[position].tolist()
        size = (height, width)
        return Target(
            boxes=boxes, labels=labels, image_id=image_id, orig_size=size, size=size, iscrowd=iscrowd, area=area
        )

    def image(self, index: int) -> Tensor:
        """The pixels as stored, uint8 `[3, H, W]`: boxes count these, so EXIF orientation is not applied.

        Raises InputError if the file cannot be decoded or does not have the size that the annotations state.
        """
        position = self._position(index)
        if self._kept is not None and position in self._kept:
            return self._kept[position]
        image = read_image(self.path(index))
        (height, width), stated = image.shape[1:], self._sizes[position].tolist()
        if [height, width] == stated:
            if self._kept is not None:
                self._kept[position] = image
            return image
        remedy = "put back the file that was annotated, or export the annotations again"
        if [width, height] == stated:
            remedy = "it was annotated as its EXIF tag turns it: save it turned that way, without the tag"
        says = f"{self._annotation_file} says {stated[1]}x{stated[0]}"
        raise InputError(f"{self.path(index)}: is {width}x{height} px, but {says}; {remedy}")


def is_coco_folder(root: Path) -> bool:
    """Whether the folder has a train or a val split in COCO form."""
    return any(_locate(root, split) is not None for split in _FOLDERS)


def _locate(root: Path, split: Split) -> tuple[Path, list[Path]] | None:
    """The annotation file of the split and the folders where its images may be; None if there is none.

    Raises InputError if several files claim to be the split.
    """
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    exact = [file for file in found if file.stem == f"instances_{split}"]
    if len(found) > 1 and not exact:
        listed = ", ".join(file.name for file in found)
        raise InputError(f"{root}: several files for the {split} split ({listed}); keep one in annotations/")
    if found:
        file = (exact or found)[0]
        names = (file.stem.removeprefix("instances_"), *_FOLDERS[split])
        return file, [*(parent / name for parent in (root, root / "images") for name in names), root / "images", root]
    files = [root / name / _ROBOFLOW_FILE for name in _FOLDERS[split]]
    return next(((file, [file.parent]) for file in files if file.is_file()), None)


def _parse(file: Path) -> list[_Table]:
    """Images, annotations and categories, without the outlines of objects, which are most of a file."""

    def without_outline(row: Row) -> Row:
        row.pop("segmentation", None)
        return row

    try:
        document = json.loads(file.read_bytes(), object_hook=without_outline)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; copy the annotations again") from None
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        raise InputError(f"{file}: not JSON: {error}; export or copy the annotations again") from None
    tables = []
    for key, kind in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f'{file}: "{key}" is missing or not a list of objects; export in COCO form again')
        if not rows and key != "annotations":
            raise InputError(f'{file}: "{key}" is empty; export the annotations again')
        tables.append(_Table(file, kind, rows))
    return tables


def _read_categories(table: _Table) -> dict[int, str]:
    """Names by id, sorted by id."""
    ids, names = table.ids(), table.column("name")
    table.refuse(np.array([not isinstance(name, str) for name in names]), "its name {name} is no text; write one")
    return {int(ids[i]): names[i] for i in np.argsort(ids)}


def _read_images(table: _Table, folders: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, Path]:
    """Ids, sizes and names as `CocoDataset` keeps them, and the folder that has most of the files."""
    ids, names = table.ids(), [path_inside(name) for name in table.column("file_name")]
    outside = np.array([not name for name in names])
    table.refuse(outside, "file_name {file_name} is no path inside the data folder; write one")
    (heights, bad_height), (widths, bad_width) = table.whole_numbers("height"), table.whole_numbers("width")
    bad = bad_height | bad_width | (heights <= 0) | (widths <= 0)
    table.refuse(bad, "{width}x{height} is no size in pixels; write that of the file")
    folder, missing = find_files(names, folders)
    table.refuse(missing, "its file is not in {folder}; put it there, or delete the entry", folder=folder)
    order = np.argsort(ids)
    encoded = np.array([os.fsencode(name) for name in names])
    return ids[order], np.stack([heights, widths], axis=1)[order], encoded[order], folder


def _read_objects(
    table: _Table, image_ids: np.ndarray, sizes: np.ndarray, category_ids: list[int]
) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[str, ...]]:
    """Where the objects of each image begin, their arrays, and a note if some are left out."""
    image = table.positions("image_id", image_ids)
    table.refuse(image < 0, "no image has its image_id {image_id}; add it, or delete the annotation")
    labels = table.positions("category_id", np.array(category_ids))
    table.refuse(labels < 0, "no category has its category_id {category_id}; add it, or correct the id")
    boxes, empty = _read_boxes(table, sizes[image, ::-1])
    stated = np.array([area if _is_number(area) else -1 for area in table.column("area")], np.float32)
    area = np.where(stated >= 0, stated, (boxes[:, 2:] - boxes[:, :2]).prod(1))
    iscrowd = [row.get("iscrowd") in (1, "1") or row.get("ignore") in (1, "1") for row in table.rows]
    order = np.argsort(image, kind="stable")
    order = order[~empty[order]]
    first = np.searchsorted(image[order], np.arange(len(image_ids) + 1))
    notes = (f"{empty.sum()} of {len(empty)} boxes have no area and are left out",) if empty.any() else ()
    return first, (boxes[order], labels[order], np.array(iscrowd, bool)[order], area[order]), notes


def _read_boxes(table: _Table, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to images of these sizes (width, height), float32 xyxy `[A, 4]`, and the few without area."""
    values = table.column("bbox")
    good = [isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) for value in values]
    table.refuse(~np.array(good, bool), "bbox {bbox} is not 4 finite numbers [x, y, width, height]; correct it")
    x, y, w, h = np.array(values, np.float64).reshape(-1, 4).T
    corners = np.stack([x, y, x + w, y + h], axis=1)
    slip = np.maximum(_OVERSHOOT_PX, _OVERSHOOT_SHARE * sizes)
    leaves = (corners[:, :2] < -slip).any(1) | (corners[:, 2:] > sizes + slip).any(1)
    outside = leaves & (w > 0) & (h > 0)
    size = "{}x{}".format(*sizes[outside.argmax()]) if outside.any() else ""
    remedy = "is it xyxy given as xywh? write [x, y, width, height] in pixels"
    table.refuse(outside, "bbox {bbox} leaves its image {image_id} of {size} px; " + remedy, size=size)
    boxes = corners.clip(0, np.tile(sizes, 2)).astype(np.float32)
    empty = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) <= 0
    if empty.sum() > _FEW_EMPTY_BOXES * len(empty) or min(w.min(initial=0), h.min(initial=0)) < 0:
        table.refuse(empty, "bbox {bbox} has zero or negative size; correct or delete it")
    return boxes, empty


def _is_number(value: Any) -> bool:
    """Whether int64 holds it and float32 holds its square; NaN and infinity are no numbers here."""
    return type(value) in (int, float) and abs(value) < 2**63
