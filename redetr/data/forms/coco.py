"""Data sets in COCO form: per split one JSON file of images, annotations and categories.

Labels count all categories, sorted by id. Crowds and boxes marked `"ignore"` have `iscrowd` True.
Boxes that leave their image by up to 2 px or 1% of its side are clipped. Images without annotations
are kept. Where there is no `bbox`, the extent of the `segmentation` (polygons or RLE) is the box.
"""

import json
import math
import reprlib
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask
from numpy.typing import ArrayLike

from redetr.data.annotations import (
    SPLITS,
    Annotations,
    Fault,
    Images,
    Objects,
    Rows,
    Split,
    assemble,
)
from redetr.data.forms.paths import find_files, path_inside, read_file
from redetr.errors import InputError

ROBOFLOW_FILE = "_annotations.coco.json"
_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid"),
    "test": ("test",),
}
_LARGEST = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = 200

Row = dict[str, Any]


def coco_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in COCO form."""
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
        raise InputError(f"{root}: no {split} split: looked for {coco_sought(split)}")
    file, folders = located
    return from_document(file, _parse(file), folders)


def from_document(source: Path, document: Any, folders: list[Path]) -> Annotations:
    """The annotations of a document in COCO form. Without `folders`, it is left open whether image
    files are there.

    Raises InputError if it does not hold the three lists.
    """
    faults: list[Fault] = []
    images, annotations, categories = _tables(source, document, faults)
    category_ids = categories.ids()
    numbered = categories.good.copy()
    classes = _read_categories(categories, category_ids)
    image_ids = images.ids()
    known = images.good.copy()
    found = _read_images(images, image_ids, folders)
    image = annotations.rows_of("image_id", image_ids, known)
    annotations.tell(
        "image-unknown",
        image < 0,
        "no image has its image_id {image_id}",
        "add it, or delete the annotation",
    )
    category = annotations.rows_of("category_id", category_ids, numbered)
    annotations.tell(
        "category-unknown",
        category < 0,
        "no category has its category_id {category_id}",
        "add it, or correct the id",
    )
    label_of = {id_: label for label, id_ in enumerate(classes)}
    labels = np.array([label_of.get(id_, -1) for id_ in category_ids.tolist()])[category]
    return assemble(source, classes, found, _read_objects(annotations, image, labels), faults)


def _files(root: Path, split: Split) -> list[Path]:
    """The annotation files that claim to be the split."""
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    exact = [file for file in found if file.stem == f"instances_{split}"]
    exported = [root / name / ROBOFLOW_FILE for name in _FOLDERS[split]]
    return exact or found or [file for file in exported if file.is_file()][:1]


def _locate(root: Path, split: Split) -> tuple[Path, list[Path]] | None:
    """The annotation file of the split and the folders where its images may be; None if there is
    none.

    Raises InputError if several files claim to be the split.
    """
    files = _files(root, split)
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise InputError(
            f"{root}: several files for the {split} split ({listed}); keep one in annotations/"
        )
    if not files or files[0].name == ROBOFLOW_FILE:
        return (files[0], [files[0].parent]) if files else None
    names = (files[0].stem.removeprefix("instances_"), *_FOLDERS[split])
    folders = [parent / name for parent in (root, root / "images") for name in names]
    return files[0], [*folders, root / "images", root]


class _Table(Rows):
    """One of the three lists of a file."""

    def __init__(self, file: Path, kind: str, rows: list[Row], faults: list[Fault]):
        """`kind` is what a row describes."""
        super().__init__(len(rows), faults, lambda i: (file, self._called(i)))
        self.kind, self.rows = kind, rows

    def _called(self, i: int) -> str:
        row = self.rows[i]
        name = self.said(i, "id") if "id" in row else f"number {i} (without id)"
        return f"{self.kind} {name}" + "".join(
            f" ({self.said(i, key)})" for key in ("file_name", "name") if key in row
        )

    def said(self, i: int, key: str) -> str:
        """What row `i` says there, shortened to one line."""
        return _SHORT.repr(self.rows[i].get(key))

    def tell(self, code: str, bad: ArrayLike, text: str, remedy: str, **known: Any) -> None:
        """A fault of the rows that are `bad`, bool `[N]`. `{key}` in the text stands for what the
        first of them says there, or for what is `known` besides."""

        def filled(i: int) -> str:
            keys = [part.partition("}")[0] for part in text.split("{")[1:]]
            return text.format(**{key: known.get(key) or self.said(i, key) for key in keys})

        self.fault(code, bad, filled, remedy)

    def column(self, key: str) -> list[Any]:
        return [row.get(key) for row in self.rows]

    def whole_numbers(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """What the rows say, int64 `[N]`, and which of them say no whole number, bool `[N]` (there
        it is 0)."""
        values = self.column(key)
        if set(map(type, values)) == {int}:  # nearly always, and then many times faster
            with suppress(OverflowError):
                return np.array(values, np.int64), np.zeros(len(values), bool)
        good = [_is_number(value) and value == int(value) for value in values]
        whole = [int(value) if ok else 0 for ok, value in zip(good, values, strict=True)]
        return np.array(whole, np.int64), ~np.array(good, bool)

    def ids(self) -> np.ndarray:
        """The ids of the rows, int64 `[N]`; tells of those that are no whole number or there
        twice."""
        ids, bad = self.whole_numbers("id")
        self.tell("id-invalid", bad, "its id {id} is not a whole number", "number all of them")
        good, repeated = np.flatnonzero(self.good), np.ones(len(ids), bool)
        repeated[good[np.unique(ids[good], return_index=True)[1]]] = False
        self.tell("id-twice", repeated, "its id {id} is there twice", "give each its own")
        return ids

    def rows_of(self, key: str, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        """In which row of another table each id stands that these rows name, int64 `[N]`; -1 where
        in none.

        `ids` are those of the other table, where they are `known`.
        """
        wanted, bad = self.whole_numbers(key)
        rows = np.flatnonzero(known)
        rows = rows[np.argsort(ids[rows])]
        if not len(rows):
            return np.full(len(wanted), -1)
        found = rows[np.searchsorted(ids[rows], wanted).clip(max=len(rows) - 1)]
        return np.where((ids[found] == wanted) & ~bad, found, -1)


def _parse(file: Path) -> Any:
    """What the file holds, without the outlines of objects that have a bbox, which are most of
    it."""

    def without_outline(row: Row) -> Row:
        if row.get("bbox"):
            row.pop("segmentation", None)
        return row

    try:
        return json.loads(read_file(file), object_hook=without_outline)
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        raise InputError(
            f"{file}: not JSON: {error}; export or copy the annotations again"
        ) from None


def _tables(file: Path, document: Any, faults: list[Fault]) -> list[_Table]:
    """Images, annotations and categories."""
    tables = []
    for key, kind in (
        ("images", "image"),
        ("annotations", "annotation"),
        ("categories", "category"),
    ):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(
                f'{file}: "{key}" is missing or not a list of objects; export in COCO form again'
            )
        if not rows and key != "annotations":
            raise InputError(f'{file}: "{key}" is empty; export the annotations again')
        tables.append(_Table(file, kind, rows, faults))
    return tables


def _read_categories(table: _Table, ids: np.ndarray) -> dict[int, str]:
    """Names by id, sorted by id."""
    names = table.column("name")
    table.tell(
        "name-invalid",
        [not isinstance(name, str) for name in names],
        "its name {name} is no text",
        "write one",
    )
    return {int(ids[i]): names[i] for i in np.argsort(ids) if table.good[i]}


def _read_images(table: _Table, ids: np.ndarray, folders: list[Path]) -> Images:
    names = [path_inside(name) for name in table.column("file_name")]
    table.tell(
        "path-outside",
        [not name for name in names],
        "file_name {file_name} is no path inside the data folder",
        "write one",
    )
    (heights, bad_height), (widths, bad_width) = (
        table.whole_numbers("height"),
        table.whole_numbers("width"),
    )
    bad = bad_height | bad_width | (heights <= 0) | (widths <= 0)
    table.tell(
        "size-invalid", bad, "{width}x{height} is no size in pixels", "write that of the file"
    )
    folder, missing = (
        find_files(names, folders) if folders else (Path(), np.zeros(len(names), bool))
    )
    table.tell(
        "image-missing",
        missing,
        "its file is not in {folder}",
        "put it there, or delete the entry",
        folder=folder,
    )
    sizes = np.stack([heights, widths], axis=1)
    return Images(table, folder, names, ids, sizes, lambda i: str(ids[i]))


def _read_objects(table: _Table, image: np.ndarray, labels: np.ndarray) -> Objects:
    ids, without = table.whole_numbers("id")
    _take_boxes_from_outlines(table)
    values = table.column("bbox")
    no_box = (math.nan,) * 4
    four = chain.from_iterable(v if isinstance(v, list) and len(v) == 4 else no_box for v in values)
    boxes = _numbers(list(four)).reshape(-1, 4)
    invalid = np.isnan(boxes).any(1)
    boxes[invalid] = (0, 0, 1, 1)
    table.tell(
        "box-invalid",
        invalid,
        "bbox {bbox} is not 4 finite numbers [x, y, width, height]",
        "correct it",
    )
    area = _numbers(table.column("area"))
    iscrowd = [
        row.get("iscrowd") in (1, "1") or row.get("ignore") in (1, "1") for row in table.rows
    ]
    return Objects(
        rows=table,
        image=image,
        labels=labels,
        corners=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        iscrowd=np.array(iscrowd, bool),
        area=np.where(area >= 0, area, -1).astype(np.float32),
        ids=np.where(without, np.arange(len(ids)), ids),
        said=lambda i: f"bbox {table.said(i, 'bbox')}",
        remedy="is it xyxy given as xywh? write [x, y, width, height] in pixels",
    )


def _take_boxes_from_outlines(table: _Table) -> None:
    """Writes a bbox into the rows that have a segmentation only."""
    outlined = np.array(
        [not row.get("bbox") and bool(row.get("segmentation")) for row in table.rows], bool
    )
    invalid = np.zeros(len(outlined), bool)
    for i in np.flatnonzero(outlined):
        table.rows[i]["bbox"] = extent = _extent(table.rows[i]["segmentation"])
        invalid[i] = extent is None
    table.tell(
        "box-invalid",
        invalid,
        "it has no bbox, and its segmentation {segmentation} is neither polygons [[x, y, x, y, x, "
        "y, ...]] nor RLE",
        "correct it, or write a bbox",
    )
    table.fault(
        "outline",
        outlined,
        lambda i: "has a segmentation and no bbox",
        "its bounding box is taken",
        "note",
    )


def _extent(outline: Any) -> list[float] | None:
    """x, y, width, height of polygons or an RLE mask in COCO's form; None if it is neither."""
    if isinstance(outline, dict):
        try:
            return mask.to_bbox(outline).tolist()
        except (TypeError, ValueError, OverflowError):
            return None
    polygons = outline if isinstance(outline, list) else [outline]
    if not all(
        isinstance(polygon, list) and len(polygon) > 5 and len(polygon) % 2 == 0
        for polygon in polygons
    ):
        return None
    points = _numbers(list(chain.from_iterable(polygons))).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return None if np.isnan(low).any() else [*low.tolist(), *(high - low).tolist()]


def _numbers(values: list[Any]) -> np.ndarray:
    """The values as float64; NaN where one is no number."""
    if set(map(type, values)) <= {int, float}:
        with suppress(OverflowError):
            numbers = np.array(values, np.float64)
            return np.where(np.abs(numbers) < _LARGEST, numbers, np.nan)
    return np.array([value if _is_number(value) else np.nan for value in values], np.float64)


def _is_number(value: Any) -> bool:
    """Whether int64 holds it and float32 holds its square; NaN and infinity are no numbers here."""
    return type(value) in (int, float) and abs(value) < _LARGEST
