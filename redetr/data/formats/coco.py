"""Data sets in COCO format: per split one JSON file of images, annotations and categories.

Labels count all categories, sorted by id. Crowds and boxes marked `"ignore"` have `iscrowd` True.
Boxes that leave their image by up to 2 px or 1% of its side are clipped. Images without annotations
are kept. Where there is no `bbox`, or one without area, the extent of the `segmentation` (polygons
or RLE) is the box; elsewhere the two are compared. CVAT's `instances_default.json` is train.
"""

import math
import os
import reprlib
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
from redetr.data.contradictions import to_corners
from redetr.data.formats.outlines import (
    around_turned,
    extent_of,
    is_number,
    parse,
    to_floats,
)
from redetr.data.formats.paths import find_files, path_inside
from redetr.data.formats.text_ids import number_text_ids
from redetr.errors import InputError

ROBOFLOW_FILE = "_annotations.coco.json"
CVAT_FILE = "instances_default.json"  # of a task that is not divided into splits
_UNDIVIDED_FILE = "instances_default.json"  # of CVAT, if the images are in no split
_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_KINDS = {"images": "image", "annotations": "annotation", "categories": "category"}
_NO_BOX = [math.nan] * 4
_REMEDY = "is it xyxy given as xywh? write [x, y, width, height] in pixels"
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

Row = dict[str, Any]


def coco_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in COCO format."""
    return [split for split in SPLITS if _files(root, split)]


def coco_sought(split: Split) -> str:
    """Where the split is looked for, in words."""
    return f"annotations/instances_{split}*.json or {_FOLDERS[split][-1]}/{ROBOFLOW_FILE}"


def read_coco(root: Path, split: Split) -> Annotations:
    """The split, which has to be there. Images are taken from the folder that has most of them.

    Raises InputError for a file that is not JSON of the three lists, and if several files claim to
    be the split.
    """
    located = _locate(root, split)
    if located is None:
        raise InputError(f"no {split} split: looked for {coco_sought(split)}", where=root)
    file, folders = located
    return from_document(file, parse(file), folders)


def from_document(
    source: Path, document: Any, folders: list[Path], remedy: str = _REMEDY
) -> Annotations:
    """The annotations of a document in COCO format. Without `folders`, image files are not looked
    for. `remedy` is what to do about a box that leaves its image.

    Raises InputError if it does not hold the three lists.
    """
    faults: list[Fault] = []
    images, annotations, categories = _tables(source, document, faults)
    faults += _text_ids(source, images, annotations, "image_id")
    faults += _text_ids(source, categories, annotations, "category_id")
    category_ids = categories.ids()
    has_number = categories.good.copy()  # before those without a name are left out
    classes = _read_categories(categories, category_ids)
    image_ids = images.ids()
    is_known = images.good.copy()
    read_images = _read_images(images, image_ids, folders)

    image = annotations.rows_of("image_id", image_ids, is_known)
    annotations.report(
        "image-unknown",
        image < 0,
        "no image has its image_id {image_id}",
        "add it, or delete the annotation",
    )
    category = annotations.rows_of("category_id", category_ids, has_number)
    annotations.report(
        "category-unknown",
        category < 0,
        "no category has its category_id {category_id}",
        "add it, or correct the id",
    )
    label_of = {id_: label for label, id_ in enumerate(classes)}
    label_of_row = np.array([label_of.get(id_, -1) for id_ in category_ids.tolist()])
    objects = _read_objects(annotations, image, label_of_row[category], remedy)
    assembled = assemble(source, classes, read_images, objects, faults)
    assembled.faults.extend(_listed_twice(assembled))
    return assembled


def _listed_twice(annotations: Annotations) -> list[Fault]:
    """An error if one image file has several entries with different objects, as of several
    annotators; a warning if they are the same."""
    names = annotations.names
    repeated = np.flatnonzero(names[1:] == names[:-1]) + 1  # images are sorted by name
    if not len(repeated):
        return []
    differing = [i for i in repeated.tolist() if not _same_objects(annotations, i - 1, i)]
    severity: Severity = "error" if differing else "warning"
    i = differing[0] if differing else int(repeated[0])
    num_files = len(np.unique(names))
    other = annotations.ids[i - 1]
    text = f"is the same file as image {other} ({num_files} files have {len(names)} entries)"
    if differing:
        text += ", and each entry lacks objects of the other"
    where = f"image {annotations.ids[i]} ({os.fsdecode(names[i])!r})"
    remedy = "make them one entry, with all objects"
    source = annotations.source
    return [Fault(severity, "image-listed-twice", source, where, text, remedy, len(repeated))]


def _same_objects(annotations: Annotations, first: int, second: int) -> bool:
    """Whether two images have the same boxes of the same classes, in any order."""
    rows = []
    for image in (first, second):
        objects = annotations.objects_of(image)
        labels = annotations.labels[objects, None]
        table = np.concatenate([annotations.boxes[objects], labels], axis=1)  # [T, 5]
        rows.append(sorted(table.tolist()))
    return rows[0] == rows[1]


def _files(root: Path, split: Split) -> list[Path]:
    """The annotation files that claim to be the split."""
    folder = root / "annotations"
    exact = folder / f"instances_{split}.json"
    if exact.is_file():
        return [exact]
    instances = sorted(folder.glob(f"instances_{split}*.json"))
    if instances:
        return instances
    default = folder / CVAT_FILE
    if split == "train" and default.is_file():
        return [default]
    for name in _FOLDERS[split]:
        exported = root / name / ROBOFLOW_FILE
        if exported.is_file():
            return [exported]
    undivided = folder / _UNDIVIDED_FILE
    if split == "train" and undivided.is_file():
        return [undivided]
    return []


def _locate(root: Path, split: Split) -> tuple[Path, list[Path]] | None:
    """The annotation file of the split and the folders where its images may be; None if there is
    none.

    Raises InputError if several files claim to be the split.
    """
    files = _files(root, split)
    if not files:
        return None
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        text = f"several files for the {split} split ({listed})"
        raise InputError(text, where=root, remedy="keep one in annotations/")
    file = files[0]
    if file.name == ROBOFLOW_FILE:
        return file, [file.parent]
    names = [file.stem.removeprefix("instances_"), *_FOLDERS[split]]
    folders = []
    for parent in (root, root / "images"):
        folders += [parent / name for name in names]
    return file, [*folders, root / "images", root]


class _Table(Rows):
    """One of the three lists of a file."""

    def __init__(self, file: Path, kind: str, rows: list[Row], faults: list[Fault]):
        """`kind` is what a row describes."""
        super().__init__(len(rows), faults, lambda i: (file, self._name(i)))
        self.kind = kind
        self.rows = rows

    def _name(self, i: int) -> str:
        """Such as "image 12 ('a.jpg')"."""
        row = self.rows[i]
        name = f"{self.kind} number {i} (without id)"
        if "id" in row:
            name = f"{self.kind} {self.quoted(i, 'id')}"
        for key in ("file_name", "name"):
            if key in row:
                name += f" ({self.quoted(i, key)})"
        return name

    def quoted(self, i: int, key: str) -> str:
        """What row `i` holds there, shortened to one line."""
        return _SHORT.repr(self.rows[i].get(key))

    def report(self, code: str, bad: ArrayLike, text: str, remedy: str) -> None:
        """Adds a fault for the rows that are `bad`, bool `[N]`. `{key}` in the text stands for what
        the first of them holds there."""

        def filled(i: int) -> str:
            return text.format_map(_Quotes(self, i))

        self.fault(code, bad, filled, remedy)

    def column(self, key: str) -> list[Any]:
        return [row.get(key) for row in self.rows]

    def whole_numbers(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """What the rows say, int64 `[N]`, and which of them say no whole number, bool `[N]` (there
        it is 0)."""
        values = self.column(key)
        count = len(values)
        kinds = set(map(type, values))
        if kinds == {int}:  # nearly always, and then many times faster
            with suppress(OverflowError):
                numbers = np.array(values, np.int64)
                return numbers, np.zeros(count, bool)
        numbers = np.zeros(count, np.int64)
        bad = np.ones(count, bool)
        for i, value in enumerate(values):
            if is_number(value) and value == int(value):
                numbers[i] = int(value)
                bad[i] = False
        return numbers, bad

    def ids(self) -> np.ndarray:
        """The ids of the rows, int64 `[N]`; reports those that are no whole number or there
        twice."""
        ids, bad = self.whole_numbers("id")
        self.report("id-invalid", bad, "its id {id} is not a whole number", "number all of them")
        good = np.flatnonzero(self.good)
        _, first = np.unique(ids[good], return_index=True)
        repeated = np.ones(len(ids), bool)
        repeated[good[first]] = False
        self.report("id-twice", repeated, "its id {id} is there twice", "give each its own")
        return ids

    def rows_of(self, key: str, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Which row of another table each of these rows names by its id, int64 `[N]`; -1 for none.

        `ids` are those of the other table, where they are `known`.
        """
        wanted, bad = self.whole_numbers(key)
        rows = np.flatnonzero(known)
        if not len(rows):
            return np.full(len(wanted), -1)
        order = np.argsort(ids[rows])
        rows = rows[order]
        last = len(rows) - 1
        nearest = np.searchsorted(ids[rows], wanted)
        nearest = nearest.clip(max=last)
        candidates = rows[nearest]
        is_there = ids[candidates] == wanted
        return np.where(is_there & ~bad, candidates, -1)


class _Quotes(dict[str, str]):
    """What a row holds, as `_Table.quoted` quotes it; nothing is quoted that is not asked for."""

    def __init__(self, table: _Table, row: int):
        super().__init__()
        self.table = table
        self.row = row

    def __missing__(self, key: str) -> str:
        return self.table.quoted(self.row, key)


def _tables(file: Path, document: Any, faults: list[Fault]) -> list[_Table]:
    """Images, annotations and categories."""
    tables = []
    for key, kind in _KINDS.items():
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            text = f'"{key}" is missing or not a list of objects'
            raise InputError(text, where=file, remedy="export in COCO format again")
        if not rows and key != "annotations":
            remedy = "export the annotations again"
            raise InputError(f'"{key}" is empty', where=file, remedy=remedy)
        tables.append(_Table(file, kind, rows, faults))
    return tables


def _text_ids(source: Path, table: _Table, annotations: _Table, key: str) -> list[Fault]:
    """A note if ids are text, which become numbers."""
    text = number_text_ids(table.rows, annotations.rows, key)
    if not text:
        return []
    where = f"the {key}s"
    return [Fault("note", "id-text", source, where, text, "nothing to do, or write numbers")]


def _read_categories(table: _Table, ids: np.ndarray) -> dict[int, str]:
    """Names by id, sorted by id."""
    names = table.column("name")
    invalid = [not isinstance(name, str) for name in names]
    table.report("name-invalid", invalid, "its name {name} is no text", "write one")
    classes = {}
    for i in np.argsort(ids):
        if table.good[i]:
            classes[int(ids[i])] = names[i]
    return classes


def _read_images(table: _Table, ids: np.ndarray, folders: list[Path]) -> Images:
    names = [path_inside(name) for name in table.column("file_name")]
    table.report(
        "path-outside",
        [not name for name in names],
        "file_name {file_name} is no path inside the data folder",
        "write one",
    )
    heights, bad_height = table.whole_numbers("height")
    widths, bad_width = table.whole_numbers("width")
    no_number = bad_height | bad_width
    table.report(
        "size-invalid",
        no_number | (heights <= 0) | (widths <= 0),
        "{width}x{height} is no size in pixels",
        "write that of the file",
    )
    folder = Path()
    missing = np.zeros(len(names), bool)
    if folders:
        folder, missing = find_files(names, folders)
    table.fault(
        "image-missing",
        missing,
        lambda i: f"its file is not in {folder}",
        "put it there, or delete the entry",
    )
    sizes = np.stack([heights, widths], axis=1)
    return Images(table, folder, names, ids, sizes, lambda i: str(ids[i]))


def _read_objects(table: _Table, image: np.ndarray, labels: np.ndarray, remedy: str) -> Objects:
    ids, without_id = table.whole_numbers("id")
    _take_boxes_from_outlines(table)
    boxes = _read_boxes(table)
    area = to_floats(table.column("area"))
    is_crowd = [value in (1, "1") for value in table.column("iscrowd")]
    is_ignored = [value in (1, "1") for value in table.column("ignore")]
    outlines, mask_sizes = _read_outlines(table)
    corners = _replace_empty_boxes(table, to_corners(boxes, "xywh"), outlines)
    corners = _turn_boxes(table, corners, np.isnan(outlines).any(1))
    return Objects(
        rows=table,
        image=image,
        labels=labels,
        corners=corners,
        iscrowd=np.array(is_crowd, bool) | np.array(is_ignored, bool),
        area=np.where(area >= 0, area, -1).astype(np.float32),
        ids=np.where(without_id, np.arange(len(ids)), ids),
        quoted=lambda i: f"bbox {table.quoted(i, 'bbox')}",
        remedy=remedy,
        box_format="xywh",
        outlines=outlines,
        mask_sizes=mask_sizes,
    )


def _read_outlines(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """The xyxy around the outline of each row, float64 `[A, 4]`, NaN where there is none, and
    height and width of its mask, int64 `[A, 2]`, 0 where there is none."""
    outlines = table.column("segmentation")
    mask_sizes = np.zeros((len(outlines), 2), np.int64)
    if set(map(type, outlines)) == {tuple}:  # most often, and then many times faster
        return to_floats(list(chain.from_iterable(outlines))).reshape(-1, 4), mask_sizes
    numbers: list[Any] = []
    for i, outline in enumerate(outlines):
        extent: Any = None
        if isinstance(outline, tuple):
            extent = outline
        elif isinstance(outline, dict):
            size = outline.get("size")
            if isinstance(size, list) and len(size) == 2 and all(map(is_number, size)):
                mask_sizes[i] = size
            if table.rows[i].get("iscrowd") not in (1, "1"):
                extent = extent_of(outline)
        numbers += extent or _NO_BOX
    return to_floats(numbers).reshape(-1, 4), mask_sizes


def _read_boxes(table: _Table) -> np.ndarray:
    """x, y, width, height of each row, float64 `[A, 4]`; reports those that are not four
    numbers."""
    values = table.column("bbox")
    numbers: list[Any] = []
    if set(map(type, values)) == {list} and set(map(len, values)) == {4}:  # nearly always
        numbers = list(chain.from_iterable(values))
    else:
        for value in values:
            is_four = isinstance(value, list) and len(value) == 4
            numbers += value if is_four else _NO_BOX
    boxes = to_floats(numbers).reshape(-1, 4)
    invalid = np.isnan(boxes).any(1)
    boxes[invalid] = (0, 0, 1, 1)
    table.report(
        "box-invalid",
        invalid,
        "bbox {bbox} is not 4 finite numbers [x, y, width, height]",
        "correct it",
    )
    return boxes


def _take_boxes_from_outlines(table: _Table) -> None:
    """Writes a bbox into the rows that have only a segmentation."""
    if all(table.column("bbox")):
        return
    outlined = np.zeros(len(table.rows), bool)
    invalid = np.zeros(len(table.rows), bool)
    for i, row in enumerate(table.rows):
        if row.get("bbox") or not row.get("segmentation"):
            continue
        extent = extent_of(row["segmentation"])
        outlined[i] = True
        invalid[i] = extent is None
        if extent is not None:
            x1, y1, x2, y2 = extent
            row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    table.report(
        "box-invalid",
        invalid,
        "it has no bbox, and its segmentation {segmentation} is neither polygons [[x, y, x, y, x, "
        "y, ...]] nor RLE",
        "correct it, or write a bbox",
    )
    _note_outlines(table, outlined, "has a segmentation and no bbox")


def _replace_empty_boxes(table: _Table, corners: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """Corners `[A, 4]`, those around the outline where a bbox has width or height 0, as some tools
    write it, and the outline has not."""
    is_empty = (corners[:, 2:] == corners[:, :2]).any(1)
    has_area = (outlines[:, 2:] > outlines[:, :2]).all(1)  # not NaN
    _note_outlines(table, is_empty & has_area, "has a segmentation and a bbox without area")
    return np.where((is_empty & has_area)[:, None], outlines, corners)


def _turn_boxes(table: _Table, corners: np.ndarray, is_box: np.ndarray) -> np.ndarray:
    """Corners `[A, 4]`, those around the turned rectangle where an object that `is_box` states its
    `rotation` in degrees, as CVAT does: its bbox is that of the rectangle before it was turned."""
    degrees = np.zeros(len(table.rows))
    for i, attributes in enumerate(table.column("attributes")):
        if isinstance(attributes, dict) and is_number(attributes.get("rotation")):
            degrees[i] = attributes["rotation"] % 180
    is_turned = is_box & (degrees != 0)
    if not is_turned.any():
        return corners
    table.fault(
        "box-turned",
        is_turned,
        lambda i: f"its rectangle is turned by {degrees[i]:.12g} degrees",
        "the box around it is taken",
        "note",
    )
    turned = around_turned(corners, degrees)
    return np.where(is_turned[:, None], turned, corners)


def _note_outlines(table: _Table, outlined: np.ndarray, text: str) -> None:
    table.fault("outline", outlined, lambda i: text, "its bounding box is taken", "note")
