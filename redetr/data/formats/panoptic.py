"""Data sets in COCO's panoptic format: for each split, a JSON file of images, categories and
segments, and a folder of PNG files in which the colour of each pixel is the id of its segment.

The file is `annotations/panoptic_train*.json`, and the folder has the same name, in `annotations/`
or next to it; images are where COCO has them. If the folder also has `instances_train*.json`, that
file is read instead: to read the panoptic files of all splits, give the path of one of them. An id
is red + 256 green + 65536 blue, and 0 is no segment. The box of a segment is its `bbox`, or the box
around its pixels. Both things and stuff are objects; `is_thing` distinguishes them.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Split, data_folder
from redetr.data.contradictions import outline_differs
from redetr.data.faults import Fault, Rows, Severity
from redetr.data.formats.coco import read_file
from redetr.data.formats.coco_places import SPLIT_FOLDERS, image_folders
from redetr.data.formats.columns import Row
from redetr.data.formats.paths import read_sizes
from redetr.data.formats.text_ids import is_number_text, numbers_of
from redetr.data.mask_columns import MaskBuilder
from redetr.data.relative_paths import path_inside
from redetr.data.segment_images import SegmentImages, read_numbers
from redetr.errors import InputError

_EXPORT = "export the panoptic annotations again, JSON and PNG together"
_SAMPLE = 1000  # PNG files that are decoded before training
_LARGEST_ID = 2**24  # the number of colours
_NOWHERE = (np.nan,) * 4

_Id = int | float | str  # of an image, as JSON may state it


def panoptic_splits(root: Path) -> list[Split]:
    """The splits in COCO's panoptic format in a folder, or next to the JSON file `root`."""
    return [split for split in SPLITS if _file_of(root, split) is not None]


def panoptic_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    return f"annotations/panoptic_{split}*.json"


def png_folder(source: Path) -> Path | None:
    """The folder of PNG files that belongs to a panoptic JSON file; None for other files, or if
    there is none."""
    if not source.name.startswith("panoptic_") or source.suffix != ".json":
        return None
    for folder in (source.with_suffix(""), source.parent.parent / source.stem):
        if folder.is_dir():
            return folder
    return None


def _file_of(root: Path, split: Split) -> Path | None:
    """The JSON file of a split; None if there is none. Raises InputError if there are several."""
    folder = data_folder(root) / "annotations"
    alike = "|".join(SPLIT_FOLDERS[split])
    pattern = re.compile(rf"(?i:panoptic_({alike})([^a-z].*)?\.json)")
    names = []
    if folder.is_dir():
        names = sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    if root.name in names:
        return root
    if len(names) > 1:
        text = f"several files for the {split} split ({', '.join(names)})"
        raise InputError(text, where=folder, remedy="keep one in annotations/")
    return folder / names[0] if names else None


def read_panoptic(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split.

    Masks are read when they are needed. For training on masks, up to 1,000 PNG files, spread over
    the data, are decoded and checked here; for a check of the data, all of them are. Raises
    InputError if the split is missing, or if its file is not JSON with the three lists.
    """
    file = _file_of(root, split)
    if file is None:
        raise InputError(f"no {split} split: looked for {panoptic_sought(split)}", where=root)
    folder = png_folder(file) or file.with_suffix("")
    segments = _Segments(file, folder, masks is not None)
    folders = image_folders(data_folder(root), file.stem.removeprefix("panoptic_"), split)
    annotations = read_file(file, folders, rewrite=segments.as_annotations)
    annotations.faults.extend(segments.faults)
    if masks is None:
        return annotations
    files = segments.files_of(annotations.ids.tolist())
    _judge_files(annotations, masks, folder, files)
    images = annotations.image_of()
    has_file = np.array([bool(name) for name in files], bool)
    return replace(
        annotations,
        masks=SegmentImages(
            folder,
            np.array([os.fsencode(name) for name in files], "S"),
            np.where(has_file[images], images, -1),
            annotations.object_ids,
        ),
    )


class _Segments:
    """The annotations of a panoptic file, each of which has the segments of an image."""

    def __init__(self, file: Path, folder: Path, with_areas: bool):
        """`folder` has the PNG files. `with_areas`: whether areas that are not stated are counted
        in them."""
        self.file = file
        self.folder = folder
        self._with_areas = with_areas
        self.files: dict[_Id, str] = {}  # names of PNG files, by the image id as it is written
        self.image_ids: list[Any] = []  # of the list of images
        self.references: dict[str, None] = {}  # those of segments that are text: an ordered set
        self.faults: list[Fault] = []

    def as_annotations(self, key: str, rows: list[Any]) -> list[Any]:
        """The rows of a list. Annotations are replaced by a row for each of their segments."""
        if not all(isinstance(row, dict) for row in rows):
            return rows
        if key == "images":
            self.image_ids += [row.get("id") for row in rows]
        if key != "annotations":
            return rows
        segments = []
        for row in rows:
            segments += self._segments_of(row)
        return segments

    def files_of(self, ids: list[int]) -> list[str]:
        """The name of the PNG file of each image; empty if there is none."""
        texts = [id_ for id_ in self.image_ids if isinstance(id_, str)]
        # As the reader of these rows numbers them.
        number_of = numbers_of(texts, len(self.image_ids), list(self.references))
        by_number: dict[_Id, str] = {}
        for image_id, name in self.files.items():
            number = number_of.get(image_id, image_id) if isinstance(image_id, str) else image_id
            by_number[number] = name
        return [by_number.get(id_, "") for id_ in ids]

    def _segments_of(self, row: Row) -> list[Row]:
        image_id = row.get("image_id")
        where = f"annotation of image {image_id!r}"
        name = path_inside(row.get("file_name"))
        if not name:
            text = f"file_name {row.get('file_name')!r} is not a path inside {self.folder.name}"
            self._fault("segments-invalid", where, text)
        elif isinstance(image_id, _Id):
            self.files[image_id] = name
        segments = row.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            self._fault("segments-invalid", where, "segments_info is not a list of objects")
            return []
        sound = []
        seen: set[int] = set()
        for segment in segments:
            id_ = segment.get("id")
            if type(id_) is not int or not 0 < id_ < _LARGEST_ID:
                text = f"a segment has the id {id_!r}, which is not a colour from 1"
                self._fault("segment-id", where, text)
            elif id_ in seen:
                self._fault("segment-id", where, f"segment {id_} is listed twice")
            else:
                seen.add(id_)
                sound.append(segment | {"image_id": image_id})
        # A number of an image without segments changes no other number.
        if isinstance(image_id, str) and (sound or is_number_text(image_id)):
            self.references[image_id] = None
        keys = ["bbox", "area"] if self._with_areas else ["bbox"]
        if name and any(segment.get(key) is None for segment in sound for key in keys):
            self._measure(name, sound)
        return sound

    def _measure(self, name: str, segments: list[Row]) -> None:
        """Gives segments without a bbox the box around their pixels, and those without an area the
        number of these."""
        try:
            numbers = read_numbers(self.folder / name)
        except InputError as error:
            if any(segment.get("bbox") is None for segment in segments):
                self.faults.append(Fault.from_error("panoptic-png", error, self.file))
            return
        boxes = _boxes_in(numbers)
        values, counts = np.unique(numbers, return_counts=True)
        areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
        for segment in segments:
            id_ = segment["id"]
            if id_ not in boxes:
                continue
            if segment.get("bbox") is None:
                x1, y1, x2, y2 = boxes[id_]
                segment["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if segment.get("area") is None:
                segment["area"] = areas[id_]

    def _fault(self, code: str, where: str, text: str) -> None:
        self.faults.append(Fault("error", code, self.file, where, text, _EXPORT))


def _boxes_in(numbers: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """The xyxy around the pixels of each number in `numbers` `[H, W]`, except 0."""
    from scipy import ndimage  # slow to import, and not needed for most formats

    values, labels = np.unique(numbers, return_inverse=True)
    # Labels from 1, because `find_objects` passes over 0.
    locations = ndimage.find_objects(labels.reshape(numbers.shape) + 1)
    boxes = {}
    for value, (rows, columns) in zip(values.tolist(), locations, strict=True):
        if value:
            boxes[value] = (columns.start, rows.start, columns.stop, rows.stop)
    return boxes


def _judge_files(
    annotations: Annotations, masks: MaskBuilder, folder: Path, files: Sequence[str]
) -> None:
    """Adds the faults of PNG files: missing ones, sizes that differ from those of their images,
    and, if masks are checked, segments that differ from those in the JSON file."""
    rows = Rows(len(files), annotations.faults, lambda i: (folder / files[i], ""))
    severity = masks.severity
    names = [os.fsdecode(name) for name in annotations.names]
    rows.fault(
        "panoptic-missing",
        [not name for name in files],
        lambda i: f"{annotations.source.name} has no annotation of the image {names[i]}",
        _EXPORT,
        severity,
    )
    is_named = rows.good & np.array([bool(name) for name in files], bool)
    is_there = np.array([bool(name) and (folder / name).is_file() for name in files], bool)
    rows.fault("panoptic-png", is_named & ~is_there, lambda i: "is missing", _EXPORT, severity)
    sizes = np.zeros((len(files), 2), np.int64)
    existing = np.flatnonzero(is_there)
    sizes[existing] = read_sizes(folder, [files[i] for i in existing.tolist()])
    rows.fault(
        "panoptic-png",
        is_there & (sizes[:, 0] == 0),
        lambda i: "is not an image",
        _EXPORT,
        severity,
    )
    is_image = is_there & (sizes[:, 0] > 0)

    def size(i: int) -> str:
        height, width = sizes[i].tolist()
        image_height, image_width = annotations.sizes[i].tolist()
        return f"is {width}x{height} px, its image {names[i]} {image_width}x{image_height} px"

    differs = is_image & (sizes != annotations.sizes).any(1)
    rows.fault("mask-size", differs, size, _EXPORT, severity)
    sound = np.flatnonzero(is_image & ~differs)
    step = math.ceil(len(sound) / _SAMPLE) if masks.for_training else 1
    _judge_pixels(annotations, rows, folder, files, sound[:: max(step, 1)], severity)


def _judge_pixels(
    annotations: Annotations,
    rows: Rows,
    folder: Path,
    files: Sequence[str],
    images: np.ndarray,
    severity: Severity,
) -> None:
    """Adds faults if the PNG files of these images, int64 `[n]`, have other segments than the JSON
    file, or in other places. Decodes all of these files."""
    texts: dict[str, dict[int, str]] = {"panoptic-png": {}, "segment-missing": {}}
    texts |= {"segment-unlisted": {}, "outline-differs": {}}
    for i in images.tolist():
        try:
            boxes = _boxes_in(read_numbers(folder / files[i]))
        except InputError as error:
            texts["panoptic-png"][i] = error.text
            continue
        objects = annotations.objects_of(i)
        listed = annotations.object_ids[objects].tolist()
        absent = [id_ for id_ in listed if id_ not in boxes]
        unlisted = sorted(set(boxes) - set(listed))
        if absent:
            texts["segment-missing"][i] = f"segment {absent[0]} has no pixels"
        if unlisted:
            number = unlisted[0]
            texts["segment-unlisted"][i] = f"segment {number} has pixels, but is not listed"
        around = np.array([boxes.get(id_, _NOWHERE) for id_ in listed]).reshape(-1, 4)
        differs = outline_differs(annotations.boxes[objects], around)
        if differs.any():
            id_ = listed[int(differs.argmax())]
            texts["outline-differs"][i] = f"segment {id_} is at {boxes[id_]}, its bbox is not"
    for code, faulty in texts.items():
        bad = np.zeros(len(files), bool)
        bad[list(faulty)] = True
        rows.fault(code, bad, faulty.__getitem__, _EXPORT, severity)
