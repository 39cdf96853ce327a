"""Data sets in COCO form: per split one JSON file of images, annotations and categories.

A file is checked as a whole when it is opened, so that training meets no fault in it later. Only the decoding
of images is left.
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

from redetr.data.dataset import DetectionDataset, Hints, Split, find_files, path_inside, read_image
from redetr.errors import InputError
from redetr.structures import Target

# People overshoot the border a little: up to this many pixels, or this share of the side, boxes are clipped.
_OVERSHOOT_PX = 2.0
_OVERSHOOT_SHARE = 0.01
# COCO's own train2017 holds 2 boxes without height among 860,001: so few are left out, more are a fault.
_FEW_EMPTY_BOXES = 1e-4
_LARGEST = 1e15  # no pixel count is larger, and float32 holds its square
_ROBOFLOW_FILE = "_annotations.coco.json"
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid")}
_PURPOSE = {"train": "a model learns from it", "val": "hold out 10-20% of the images to measure on"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

Row = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file: the first case in one line, and how many there are like it."""

    message: str
    count: int = 1

    def __str__(self) -> str:
        return self.message + (f" (and {self.count - 1} more like it)" if self.count > 1 else "")


class AnnotationError(InputError):
    """A faulty annotation file: the message tells the first fault, `faults` are all that were found."""

    def __init__(self, file: Path, faults: list[Fault]):
        super().__init__(file, faults)
        self.faults = faults

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.faults[0]}"


@dataclass(frozen=True)
class _Images:
    """The images of a file, sorted by id."""

    ids: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N, 2] int64: height, width
    names: np.ndarray  # [N] bytes: paths below `folder`
    folder: Path


@dataclass(frozen=True)
class _Objects:
    """The boxes of a file, sorted by image: image `i` owns `first[i]:first[i + 1]`."""

    first: np.ndarray  # [N + 1] int64
    boxes: np.ndarray  # [A, 4] float32, xyxy pixels, inside the image
    labels: np.ndarray  # [A] int64
    iscrowd: np.ndarray  # [A] bool
    area: np.ndarray  # [A] float32


class CocoDataset(DetectionDataset):
    """One split in COCO form, in the order of image ids.

    Labels count all categories, sorted by id. Crowds and boxes marked `"ignore"` have `iscrowd` True. Boxes
    that leave their image by up to 2 px or 1% of its side are clipped. Images without annotations are kept.
    All that a worker process is sent is a few arrays.
    """

    def __init__(self, annotation_file: Path, image_folders: list[Path], name: str, hints: Hints = Hints()):
        """Images are taken from the folder that has most of them. Raises InputError if the file is faulty."""
        document = _parse(annotation_file)
        keys = ("images", "annotations", "categories")
        images, objects, categories = (_rows(document, key, annotation_file) for key in keys)
        class_names = _read_categories(categories, annotation_file)
        self._images = _read_images(images, annotation_file, image_folders)
        self._objects, self.notes = _read_objects(objects, annotation_file, self._images, list(class_names))
        self.name, self.hints = name, hints
        self.category_ids, self.class_names = tuple(class_names), tuple(class_names.values())
        self._annotation_file = annotation_file

    @classmethod
    def open(cls, root: Path, split: Split, name: str = "", hints: Hints = Hints()) -> "CocoDataset":
        """The split of the data set in `root`. Raises InputError if it is missing or its file is faulty."""
        found = _locate(root, split)
        if found is None:
            looked_for = f"annotations/instances_{split}*.json or {_FOLDERS[split][-1]}/{_ROBOFLOW_FILE}"
            raise InputError(f"{root}: no {split} split (looked for {looked_for}); add it: {_PURPOSE[split]}")
        return cls(*found, name or root.resolve().name, hints)

    def __len__(self) -> int:
        return len(self._images.ids)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._images.folder / os.fsdecode(self._images.names[self._position(index)])

    def target(self, index: int) -> Target:
        position = self._position(index)
        own = slice(self._objects.first[position], self._objects.first[position + 1])
        height, width = self._images.sizes[position].tolist()
        return Target(
            boxes=torch.from_numpy(self._objects.boxes[own].copy()),
            labels=torch.from_numpy(self._objects.labels[own].copy()),
            image_id=int(self._images.ids[position]),
            orig_size=(height, width),
            size=(height, width),
            iscrowd=torch.from_numpy(self._objects.iscrowd[own].copy()),
            area=torch.from_numpy(self._objects.area[own].copy()),
        )

    def image(self, index: int) -> Tensor:
        """The pixels as stored, uint8 `[3, H, W]`: boxes count these, so EXIF orientation is not applied.

        Raises InputError if the file cannot be decoded or does not have the size that the annotations state.
        """
        image = read_image(self.path(index))
        stored = tuple(image.shape[-2:])
        stated = tuple(self._images.sizes[self._position(index)].tolist())
        if stored == stated:
            return image
        remedy = "put back the file that was annotated, or export the annotations again"
        if stored == stated[::-1]:
            remedy = "it was annotated as its EXIF tag turns it: save it turned that way, without the tag"
        raise InputError(
            f"{self.path(index)}: is {stored[1]}x{stored[0]} px, but {self._annotation_file}"
            f" says {stated[1]}x{stated[0]}; {remedy}"
        )


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
        folders = [parent / name for parent in (root, root / "images") for name in names]
        return file, [*folders, root / "images", root]
    for name in _FOLDERS[split]:
        if (root / name / _ROBOFLOW_FILE).is_file():
            return root / name / _ROBOFLOW_FILE, [root / name]
    return None


def _parse(file: Path) -> Any:
    """The content of a JSON file without the outlines of objects, which are most of it."""
    try:
        return json.loads(file.read_bytes(), object_hook=_without_outline)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # not UTF-8, or nested beyond reason
        what = f"not JSON: {error}"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    raise InputError(f"{file}: {what}; export or copy the annotations again")


def _without_outline(record: Row) -> Row:
    record.pop("segmentation", None)
    return record


def _rows(document: Any, key: str, file: Path) -> list[Row]:
    """The list called `key`. Raises InputError if it is missing or not a list of objects."""
    if not isinstance(document, dict) or key not in document:
        raise InputError(f'{file}: no "{key}" in it; COCO form has "images", "annotations" and "categories"')
    rows = document[key]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{file}: "{key}" is not a list of objects; export the annotations again')
    if not rows and key != "annotations":
        raise InputError(f'{file}: "{key}" is empty; export the annotations again')
    return rows


class _Shown:
    """A row as format strings see it: `{key}` is what it says there, shortened to fit a line."""

    def __init__(self, rows: list[Row], place: int):
        self.row, self.place = rows[place], place

    def __getitem__(self, key: str) -> str:
        if key == "id" and key not in self.row:
            return f"number {self.place} (without id)"
        return _SHORT.repr(self.row.get(key))


def _require(file: Path, rows: list[Row], *checks: tuple[np.ndarray, str]) -> None:
    """Raises AnnotationError if a check finds a row bad (bool `[N]`); its text tells of the first of them."""
    found = [(int(bad.argmax()), int(bad.sum()), text) for bad, text in checks if bad.any()]
    if found:
        faults = [Fault(text.format_map(_Shown(rows, place)), count) for place, count, text in found]
        raise AnnotationError(file, faults)


def _read_categories(rows: list[Row], file: Path) -> dict[int, str]:
    """Names by id, sorted by id."""
    ids, bad_id = _whole_numbers(rows, "id")
    names = [row.get("name") for row in rows]
    bad_name = np.array([not isinstance(name, str) for name in names])
    _require(
        file,
        rows,
        (bad_id, "category {name}: its id {id} is not a whole number; number the categories"),
        (_repeated(ids) & ~bad_id, "category {name}: its id {id} is there twice; give each its own"),
        (bad_name, "category {id}: its name {name} is no text; write one"),
    )
    return {int(ids[i]): str(names[i]) for i in np.argsort(ids)}


def _read_images(rows: list[Row], file: Path, folders: list[Path]) -> _Images:
    ids, bad_id = _whole_numbers(rows, "id")
    heights, bad_height = _whole_numbers(rows, "height")
    widths, bad_width = _whole_numbers(rows, "width")
    bad_size = bad_height | bad_width | (heights <= 0) | (widths <= 0)
    names = [path_inside(row.get("file_name")) for row in rows]
    bad_name = np.array([not name for name in names])
    _require(
        file,
        rows,
        (bad_id, "image {file_name}: its id {id} is not a whole number; number the images"),
        (_repeated(ids) & ~bad_id, "image {id} ({file_name}): its id is there twice; give each its own"),
        (bad_name, "image {id}: file_name {file_name} is no path inside the data folder; write one"),
        (bad_size, "image {id} ({file_name}): {width}x{height} is no size in pixels; write that of the file"),
    )
    folder, missing = find_files(names, folders)
    there = str(folder).replace("{", "{{").replace("}", "}}")
    problem = f"image {{id}}: its file {{file_name}} is not in {there}; put it there, or delete the entry"
    _require(file, rows, (missing, problem))
    order = np.argsort(ids)
    encoded = np.array([os.fsencode(name) for name in names])
    return _Images(ids[order], np.stack([heights, widths], axis=1)[order], encoded[order], folder)


def _read_objects(
    rows: list[Row], file: Path, images: _Images, category_ids: list[int]
) -> tuple[_Objects, tuple[str, ...]]:
    """The boxes, and a note if some are left out."""
    image = _positions(images.ids, *_whole_numbers(rows, "image_id"))
    label = _positions(np.array(category_ids), *_whole_numbers(rows, "category_id"))
    xywh, bad_bbox = _four_numbers(rows, "bbox")
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    sizes = images.sizes[image, ::-1]  # width, height; of any image where it is unknown, which is refused
    boxes = corners.clip(0, np.tile(sizes, 2)).astype(np.float32)
    outside = _leaves_image(corners, sizes) & (image >= 0)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1) & (image >= 0) & ~bad_bbox & ~outside
    few = empty.sum() <= _FEW_EMPTY_BOXES * len(rows) and (xywh[:, 2:] >= 0).all()
    width, height = sizes[outside.argmax()] if outside.any() else (0, 0)
    of_size = f"of {width}x{height} px"
    _require(
        file,
        rows,
        (
            image < 0,
            "annotation {id}: no image has its image_id {image_id}; add it, or delete the annotation",
        ),
        (
            label < 0,
            "annotation {id}: no category has its category_id {category_id}; add it, or correct the id",
        ),
        (bad_bbox, "annotation {id}: bbox {bbox} is not 4 finite numbers [x, y, width, height]; correct it"),
        (
            outside,
            f"annotation {{id}}: bbox {{bbox}} leaves its image {{image_id}} {of_size}; is it xyxy given as xywh?"
            " write [x, y, width, height] in pixels",
        ),
        (empty & (not few), "annotation {id}: bbox {bbox} has zero or negative size; correct or delete it"),
    )
    order = np.argsort(image, kind="stable")
    order = order[~empty[order]]
    first = np.searchsorted(image[order], np.arange(len(images.ids) + 1))
    areas = _areas(rows, boxes)
    objects = _Objects(first, boxes[order], label[order], _crowds(rows)[order], areas[order])
    notes = (f"{empty.sum()} of {len(rows)} boxes have no area and are left out",) if empty.any() else ()
    return objects, notes


def _whole_numbers(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """What the rows say, int64 `[N]`, and which of them say no whole number, bool `[N]` (there it is 0)."""
    values: list[Any] = [row.get(key) for row in rows]
    good = [_is_whole(value) for value in values]
    whole = [int(value) if ok else 0 for ok, value in zip(good, values, strict=True)]
    return np.array(whole, np.int64), ~np.array(good, bool)


def _four_numbers(rows: list[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """What the rows say, float64 `[N, 4]`, and which say no 4 finite numbers, bool `[N]` (there it is 0)."""
    values = [row.get(key) for row in rows]
    good = [isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) for value in values]
    numbers = [value if ok else [0.0] * 4 for ok, value in zip(good, values, strict=True)]
    return np.array(numbers, np.float64).reshape(-1, 4), ~np.array(good, bool)


def _is_whole(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # NaN and infinity are not below it


def _areas(rows: list[Row], boxes: np.ndarray) -> np.ndarray:
    """The areas stated, float32 `[A]`; that of the box where there is none."""
    stated = [row.get("area") for row in rows]
    areas = np.array([area if _is_number(area) else -1 for area in stated], np.float32)
    return np.where(areas >= 0, areas, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def _crowds(rows: list[Row]) -> np.ndarray:
    """Which objects are crowds, or to be ignored, bool `[A]`."""
    return np.array([row.get("iscrowd") in (1, "1") or row.get("ignore") in (1, "1") for row in rows], bool)


def _positions(sorted_ids: np.ndarray, wanted: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Where each wanted id stands, int64 `[N]`; -1 where it does not, or is bad."""
    places = np.searchsorted(sorted_ids, wanted).clip(max=len(sorted_ids) - 1)
    return np.where((sorted_ids[places] == wanted) & ~bad, places, -1)


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Which ids stand earlier in the list as well, bool `[N]`."""
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated


def _leaves_image(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which xyxy boxes of positive size leave their image (width, height) by more than a slip, bool `[A]`."""
    slip = np.maximum(_OVERSHOOT_PX, _OVERSHOOT_SHARE * sizes)
    beyond = np.concatenate([corners[:, :2] < -slip, corners[:, 2:] > sizes + slip], axis=1)
    return np.logical_and(beyond.any(1), (corners[:, 2:] > corners[:, :2]).all(1))
