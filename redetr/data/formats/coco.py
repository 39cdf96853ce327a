"""Data sets in COCO format: for each split, a JSON file of images, annotations and categories.

Labels are the positions of categories, sorted by id. Crowds and boxes marked `"ignore"` have
`iscrowd` True. Boxes that exceed their image by up to 2 px or 1% of its side are clipped. Images
without annotations are kept. If there is no `bbox`, or it has no area, the box is the extent of the
`segmentation` (polygons or RLE); otherwise, the two are compared. CVAT's `instances_default.json`
is the train split.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import Annotations, Images, Objects, Split, assemble
from redetr.data.faults import Fault
from redetr.data.formats.coco_places import coco_locate, coco_sought
from redetr.data.formats.columns import Columns, Row, Table
from redetr.data.formats.foreign import FoundFiles, find_files
from redetr.data.formats.json_lists import read_lists
from redetr.data.formats.listing import listed_twice
from redetr.data.formats.outlines import around_turned, extent_of, is_number, quick_extent
from redetr.data.formats.paths import read_sizes
from redetr.data.formats.segmentations import parse_segmentation
from redetr.data.formats.shapes import MAY_CROSS
from redetr.data.formats.text_ids import number_text_ids
from redetr.data.images import problem_of
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError

_KINDS = {"images": "image", "annotations": "annotation", "categories": "category"}
_NO_BOX = [math.nan] * 4
# Keys that occur in no file. `_summarize` adds to an annotation: the xyxy around its outline, the
# size of its mask, whether its bbox is taken from the outline, by how many degrees its box is
# rotated, and whether it has keypoints; and to an image: whether only some classes were annotated
# in it.
_EXTENT = "\0extent"
_MASK_SIZE = ("\0mask height", "\0mask width")
_OUTLINED = "\0outlined"
_ROTATION = "\0rotation"
_KEY_POINTS = "\0keypoints"
_PARTIAL = "\0partial"
# The keys that are kept of the rows of each list.
_KEYS = {
    "images": ("id", "file_name", "width", "height", _PARTIAL),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"),
        *(_EXTENT, *_MASK_SIZE, _OUTLINED, _ROTATION, _KEY_POINTS, MAY_CROSS),
    ),
    "categories": ("id", "name", "isthing"),
}
_LARGEST_SIDE_PX = 10**9  # of an image of any format
XYWH_REMEDY = "is it xyxy given as xywh? write [x, y, width, height] in pixels"


def read_coco(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them.

    Images are taken from the folder that has most of them. Raises InputError if the split is
    missing, if several files claim to be the split, or if its file is not JSON with the three
    lists.
    """
    located = coco_locate(root, split)
    if located is None:
        raise InputError(f"no {split} split: looked for {coco_sought(split)}", where=root)
    return read_file(*located, masks)


def read_file(
    file: Path,
    folders: list[Path],
    masks: MaskBuilder | None = None,
    rewrite: Callable[[str, list[Any]], list[Any]] | None = None,
) -> Annotations:
    """The annotations in a file, whose images are in one of the folders.

    `rewrite` takes the name of a list and some of its rows, and returns rows in COCO's format.
    Raises InputError like `read_coco`.
    """
    lists = _Lists(masks)

    def take(key: str, rows: list[Any]) -> None:
        lists.take(key, rewrite(key, rows) if rewrite else rows)

    is_list = read_lists(file, tuple(_KINDS), take)
    for key in _KINDS:
        lists.are_objects[key] &= is_list.get(key, False)
    return _annotations(file, lists, folders, XYWH_REMEDY)


def from_documents(
    source: Path,
    documents: Iterable[dict[str, list[Row]]],
    remedy: str,
    masks: MaskBuilder | None = None,
    folders: Sequence[Path] = (),
) -> Annotations:
    """The annotations of documents that together form one in COCO format.

    Images are in one of the folders; without folders, image files are not looked for. Documents are
    not kept in memory. `remedy` states what to do about a box that exceeds its image.
    """
    lists = _Lists(masks)
    for document in documents:
        for key, rows in document.items():
            lists.take(key, rows)
    return _annotations(source, lists, list(folders), remedy)


def _annotations(source: Path, lists: "_Lists", folders: list[Path], remedy: str) -> Annotations:
    """The annotations in the three lists. Without `folders`, image files are not looked for."""
    faults: list[Fault] = []
    images, annotations, categories = _tables(source, lists, faults)
    faults += _text_ids(source, images, annotations, "image_id")
    faults += _text_ids(source, categories, annotations, "category_id")
    category_ids = categories.ids()
    # Copied here, because categories without a name are left out below.
    has_number = categories.good.copy()
    classes = _read_categories(categories, category_ids)
    image_ids = images.ids()
    is_known = images.good.copy()
    read_images = _read_images(images, image_ids, folders)

    image = annotations.rows_of("image_id", image_ids, is_known)
    annotations.report(
        "image-unknown",
        image < 0,
        "no image has its image_id {image_id}",
        "write the id of its image, or delete the annotation",
    )
    labels = _read_labels(annotations, category_ids, has_number, classes)
    objects = _read_objects(annotations, image, labels, remedy)
    objects.masks = lists.masks
    assembled = assemble(source, classes, read_images, objects, faults)
    assembled = replace(assembled, is_thing=_read_things(categories, category_ids, classes))
    assembled.faults.extend(listed_twice(assembled))
    return assembled


class _Lists:
    """The three lists of a file, as columns."""

    def __init__(self, masks: MaskBuilder | None) -> None:
        self.masks = masks
        self.columns = {key: Columns(keys) for key, keys in _KEYS.items()}
        self.are_objects = dict.fromkeys(_KEYS, True)  # False for a list with other items

    def take(self, key: str, rows: list[Any]) -> None:
        """Adds rows to the list of this name."""
        if not all(isinstance(row, dict) for row in rows):
            self.are_objects[key] = False
            return
        if key == "images":
            for row in rows:
                row.setdefault("file_name", row.get("coco_url"))  # LVIS
                if "neg_category_ids" in row:  # also LVIS
                    row[_PARTIAL] = 1
        if key == "annotations":
            for row in rows:
                mask = None
                if self.masks is not None:
                    mask = parse_segmentation(row.get("segmentation"))
                    self.masks.add(mask)
                _summarize(row, mask)
        self.columns[key].extend(rows)


def _summarize(row: Row, mask: Any) -> None:
    """Replaces the outline of an annotation, which takes most of a large file, by its extent.
    Writes a bbox if there is none. `mask` is the parsed outline, or None if masks are not read."""
    attributes = row.get("attributes")
    if isinstance(attributes, dict) and is_number(attributes.get("rotation")):
        row[_ROTATION] = attributes["rotation"] % 180
    if row.get("keypoints"):
        row[_KEY_POINTS] = 1
    outline = row.get("segmentation")
    if not outline:
        return
    extent: Any = None
    if isinstance(outline, list) and row.get("bbox"):
        extent = quick_extent(outline)
    elif isinstance(outline, dict):
        size = outline.get("size")
        if isinstance(size, list) and len(size) == 2 and all(map(is_number, size)):
            row.update(zip(_MASK_SIZE, size, strict=True))
        if row.get("iscrowd") not in (1, "1"):
            extent = _extent(outline, mask)
    row[_EXTENT] = list(extent or _NO_BOX)
    if not row.get("bbox"):
        row[_OUTLINED] = 1
        around = _extent(outline, mask)
        if around is None:
            return  # kept, because a message quotes it
        x1, y1, x2, y2 = around
        row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    del row["segmentation"]


def _extent(outline: Any, mask: Any) -> tuple[float, float, float, float] | None:
    """The xyxy around an outline; None if it is not valid. `mask` is the parsed outline, or None.

    An RLE that is not valid may show any pixels, even if a box can be computed.
    """
    if isinstance(outline, dict):
        parsed = parse_segmentation(outline) if mask is None else mask
        if not isinstance(parsed, bytes):
            return None
    return extent_of(outline)


def _tables(file: Path, lists: _Lists, faults: list[Fault]) -> list[Table]:
    """Images, annotations and categories."""
    tables = []
    for key, kind in _KINDS.items():
        if not lists.are_objects[key]:
            text = f'"{key}" is missing or not a list of objects'
            raise InputError(text, where=file, remedy="export in COCO format again")
        columns = lists.columns[key]
        if not columns.count and key != "annotations":
            remedy = "export the annotations again"
            raise InputError(f'"{key}" is empty', where=file, remedy=remedy)
        tables.append(Table(file, kind, columns, faults))
    return tables


def _text_ids(source: Path, table: Table, annotations: Table, key: str) -> list[Fault]:
    """A note if ids are text. They become numbers."""
    text = number_text_ids(table.columns["id"], annotations.columns[key])
    if not text:
        return []
    remedy = "nothing to do, or write numbers"
    return [Fault("note", "id-text", source, f"the {key}s", text, remedy)]


def _read_categories(table: Table, ids: np.ndarray) -> dict[int, str]:
    """Names by id, sorted by id."""
    names = list(table.columns["name"])
    invalid = [not isinstance(name, str) for name in names]
    table.report("name-invalid", invalid, "its name {name} is not text", "write one")
    classes = {}
    for i in np.argsort(ids):
        if table.good[i]:
            classes[int(ids[i])] = names[i]
    return classes


def _read_things(table: Table, ids: np.ndarray, classes: dict[int, str]) -> tuple[bool, ...]:
    """Whether each class is a thing rather than stuff; empty if the categories do not state it."""
    if table.columns["isthing"].is_absent():
        return ()
    is_thing = dict(zip(ids.tolist(), _read_flags(table, "isthing").tolist(), strict=True))
    return tuple(is_thing[id_] for id_ in classes)


def _read_images(table: Table, ids: np.ndarray, folders: list[Path]) -> Images:
    texts = list(table.columns["file_name"])
    files = find_files(texts, folders) if folders else FoundFiles.unsought(texts)
    table.report(
        "path-outside",
        [not name for name in files.names],
        "file_name {file_name} is not a path inside the data folder",
        f"write the path of its file inside {files.folder}, or put that file there",
    )
    table.fault(
        "path-foreign",
        files.is_foreign,
        lambda i: f"it is not there as written, and {files.names[i]!r} in {files.folder} is used",
        "nothing to do, or correct it",
        "note",
    )
    remedy = "put it there, or delete the entry"
    if files.similar:
        remedy = f"write {files.similar!r}, if that is the file"
    table.fault(
        "image-missing",
        files.is_missing,
        lambda i: f"its file is not in {files.folder}",
        remedy,
    )
    partial, _ = table.columns[_PARTIAL].flags()
    table.fault(
        "classes-partial",
        partial,
        lambda i: "lists the classes that were searched for in it, as LVIS does",
        "AP here counts other objects that are found as false: measure it with LVIS's own tool",
        "warning",
    )
    sizes = _read_sizes(table, files, are_sought=bool(folders))
    return Images(table, files.folder, files.names, ids, sizes, lambda i: str(ids[i]))


def _read_sizes(table: Table, files: FoundFiles, are_sought: bool) -> np.ndarray:
    """Height and width of each image, int64 `[N, 2]`, as stated. If they are not stated (null or
    0), those of its file, if files `are_sought`."""
    columns = [table.columns["height"], table.columns["width"]]
    heights, bad_height = columns[0].whole_numbers()
    widths, bad_width = columns[1].whole_numbers()
    sizes = np.stack([heights, widths], axis=1)
    is_impossible = (sizes <= 0) | (sizes > _LARGEST_SIDE_PX)
    is_unclear = bad_height | bad_width | is_impossible.any(1)
    is_unstated = np.zeros(len(sizes), bool)
    for i in np.flatnonzero(is_unclear & table.good & ~files.is_missing):
        stated = [column[i] for column in columns]
        is_unstated[i] = not any(stated) and bool(files.names[i])
    rows = np.flatnonzero(is_unstated)
    sizes[rows] = read_sizes(files.folder, [files.names[i] for i in rows])
    is_read = is_unstated & (sizes > 0).all(1)
    table.fault(
        "size-unstated",
        is_read,
        lambda i: "states no width and height: those of its file are used",
        "nothing to do, if its boxes are in pixels of that file",
        "note",
    )

    def no_size(i: int) -> str:
        problem = problem_of(files.folder / files.names[i])
        return f"states no size, and its file cannot be read: {problem}"

    table.fault(
        "size-invalid",
        is_unstated & ~is_read & are_sought,
        no_size,
        "replace the file, or write its width and height",
    )
    table.report(
        "size-invalid",
        is_unclear & ~is_read,
        "{width}x{height} is not a size in pixels",
        "write the size of the file",
    )
    return sizes


def _read_labels(
    table: Table, category_ids: np.ndarray, known: np.ndarray, classes: dict[int, str]
) -> np.ndarray:
    """The label of each row, int64 `[A]`.

    Reports rows without a category; of the categories, `known` have an id.
    """
    category = table.rows_of("category_id", category_ids, known)
    table.report(
        "category-unknown",
        category < 0,
        "no category has its category_id {category_id}",
        "add it, or correct the id",
    )
    label_of = {id_: label for label, id_ in enumerate(classes)}
    label_of_row = np.array([label_of.get(id_, -1) for id_ in category_ids.tolist()])
    return label_of_row[category]


def _read_objects(table: Table, image: np.ndarray, labels: np.ndarray, remedy: str) -> Objects:
    ids, without_id = table.columns["id"].whole_numbers()
    _report_outlines(table)
    corners = _read_boxes(table)
    corners[:, 2:] += corners[:, :2]  # in place, as a large data set has millions of boxes
    key_points, _ = table.columns[_KEY_POINTS].flags()
    table.fault("key-points", key_points, lambda i: "has keypoints", "its box is used", "note")
    area = table.columns["area"].numbers()
    is_crowd = _read_flags(table, "iscrowd")
    is_ignored = _read_flags(table, "ignore")
    outlines = None
    is_replaced = np.zeros(len(corners), bool)
    if not table.columns[_EXTENT].is_absent():
        outlines = table.columns[_EXTENT].boxes()
        is_replaced = _replace_empty_boxes(table, corners, outlines)
    is_turned = _turn_boxes(table, corners, outlines)
    is_round, _ = table.columns[MAY_CROSS].flags()
    replaced_rows = np.flatnonzero(is_replaced | is_turned)
    replacements = corners[replaced_rows]

    def quoted(i: int) -> str:
        bbox = f"bbox {table.quoted(i, 'bbox')}"
        if not is_replaced[i] and not is_turned[i]:
            return bbox
        box = replacements[np.searchsorted(replaced_rows, i)].round(2).tolist()
        around = "rotated rectangle" if is_turned[i] else "outline"
        return f"the box {box} around its {around} ({bbox})"

    return Objects(
        rows=table,
        image=image,
        labels=labels,
        corners=corners,
        iscrowd=is_crowd | is_ignored,
        area=np.where(area >= 0, area, -1).astype(np.float32),
        ids=np.where(without_id, np.arange(len(ids)), ids),
        quoted=quoted,
        remedy=remedy,
        box_format="xywh",
        outlines=outlines,
        mask_sizes=_read_mask_sizes(table),
        may_cross=is_turned | is_round,
    )


def _read_flags(table: Table, key: str) -> np.ndarray:
    """Which rows are marked, bool `[A]`. Reports marks that are not clear."""
    is_set, unclear = table.columns[key].flags()
    table.fault(
        "flag-invalid",
        unclear,
        lambda i: f"{key} {table.quoted(i, key)} is neither 0 nor 1, and counts as 0",
        "write 1 for objects to ignore, 0 for others",
        "warning",
    )
    return is_set


def _read_mask_sizes(table: Table) -> np.ndarray | None:
    """Height and width of the mask of each row, int64 `[A, 2]`, or 0 for rows without one. None if
    no row has a mask."""
    columns = [table.columns[key] for key in _MASK_SIZE]
    if columns[0].is_absent():
        return None
    return np.stack([column.whole_numbers()[0] for column in columns], axis=1)


def _read_boxes(table: Table) -> np.ndarray:
    """x, y, width and height of each row, float64 `[A, 4]`. Reports rows without four numbers."""
    boxes = table.columns["bbox"].boxes()
    invalid = np.isnan(boxes).any(1)
    boxes[invalid] = (0, 0, 1, 1)
    table.report(
        "box-invalid",
        invalid,
        "bbox {bbox} is not 4 finite numbers [x, y, width, height]",
        "correct it",
    )
    return boxes


def _report_outlines(table: Table) -> None:
    """Reports rows that have a segmentation but no bbox."""
    if table.columns[_OUTLINED].is_absent():
        return
    outlined, _ = table.columns[_OUTLINED].flags()
    invalid = outlined & np.isnan(table.columns["bbox"].boxes()).any(1)
    table.report(
        "box-invalid",
        invalid,
        "it has no bbox, and its segmentation {segmentation} is neither polygons [[x, y, x, y, x, "
        "y, ...]] nor RLE with counts of all its pixels",
        "correct it, or write a bbox",
    )
    _note_outlines(table, outlined, "has a segmentation but no bbox")


def _replace_empty_boxes(table: Table, corners: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """Replaces boxes with a width or height of 0, which some tools write, by the box around their
    outline, if that has an area. Returns which these are, bool `[A]`."""
    is_empty = (corners[:, 2:] == corners[:, :2]).any(1)
    has_area = (outlines[:, 2:] > outlines[:, :2]).all(1)  # not NaN
    replaced = is_empty & has_area
    _note_outlines(table, replaced, "has a segmentation, but its bbox has no area")
    corners[replaced] = outlines[replaced]
    return replaced


def _turn_boxes(table: Table, corners: np.ndarray, outlines: np.ndarray | None) -> np.ndarray:
    """Replaces boxes with a `rotation` in degrees, but without an outline, by the box around the
    rotated rectangle: CVAT writes the bbox of the rectangle before its rotation. Returns which
    these are, bool `[A]`."""
    if table.columns[_ROTATION].is_absent():
        return np.zeros(len(corners), bool)
    degrees = np.nan_to_num(table.columns[_ROTATION].numbers())
    is_turned = degrees != 0
    if outlines is not None:
        is_turned &= np.isnan(outlines).any(1)
    if not is_turned.any():
        return is_turned
    table.fault(
        "box-turned",
        is_turned,
        lambda i: f"its rectangle is rotated by {degrees[i]:.12g} degrees",
        "the box around it is used",
        "note",
    )
    corners[is_turned] = around_turned(corners[is_turned], degrees[is_turned])
    return is_turned


def _note_outlines(table: Table, outlined: np.ndarray, text: str) -> None:
    table.fault("outline", outlined, lambda i: text, "its bounding box is used", "note")
