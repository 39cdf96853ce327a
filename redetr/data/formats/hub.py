"""Data sets that Hugging Face `datasets` reads: from the hub, from a folder that `save_to_disk`
wrote, or from a folder of images with `metadata.jsonl`.

A row has `image` and `objects`: `bbox` (or `boxes`) and `category` (or `label`, and others), and
optionally `area`, `iscrowd` and `segmentation` (or `mask`, and others), which is polygons, RLE or
an image that is not 0 inside. Boxes are x, y, width, height in pixels. Other formats are recognised
by names (`xmin`, `x_center`), or if the numbers make sense in no other format, or are stated as in
`hf:NAME,boxes=xyxy`. Classes are those of a ClassLabel, or all texts or numbers in the rows. Image
ids are row numbers. Images that `datasets` rotates by an EXIF tag are used as stored, and their
boxes and masks are turned back. Code in a data set is never run: `datasets` refuses it from version
4 on.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.faults import Fault
from redetr.data.formats.coco import from_documents
from redetr.data.formats.folder import AnnotatedDataset, require_masks
from redetr.data.formats.holdout import fraction_unused, hold_out
from redetr.data.formats.hub_faults import OddRows
from redetr.data.formats.hub_files import RowFiles
from redetr.data.formats.hub_frames import Frame, image_file, image_problem
from redetr.data.formats.hub_rows import (
    BoxForm,
    Classes,
    Columns,
    Row,
    Sample,
    box_form,
    find_classes,
    find_columns,
    sample_rows,
)
from redetr.data.formats.layouts import is_saved_by_datasets
from redetr.data.images import ROW_REMEDY, decode, open_image, suffix_of
from redetr.data.mask_columns import MaskBuilder, MaskUse
from redetr.download import quiet_hub
from redetr.errors import InputError

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "val", "valid"),
    "test": ("test",),
}
_SAMPLE = 500  # rows of each split that decide how boxes are written
_SAVE_AGAIN = (
    "call its splits train, validation and test: save a datasets.DatasetDict with these names "
    "(save_to_disk), and give hf:FOLDER"
)


class Address(NamedTuple):
    """The parts of `hf:NAME@REVISION,boxes=FORMAT`; empty if they are not given."""

    name: str
    revision: str
    boxes: str

    @classmethod
    def of(cls, source: str) -> "Address":
        """The parts of a source that begins with `hf:`."""
        text, _, boxes = source.removeprefix("hf:").partition(",boxes=")
        path = os.path.expanduser(text)
        if os.path.isdir(path):  # even if its name has an @
            return cls(path, "", boxes)
        name, _, revision = text.partition("@")
        return cls(name, revision, boxes)

    def absolute(self) -> str:
        """The source with an absolute path, if it is a folder."""
        name = os.path.abspath(self.name) if os.path.isdir(self.name) else self.name
        revision = f"@{self.revision}" if self.revision else ""
        boxes = f",boxes={self.boxes}" if self.boxes else ""
        return f"hf:{name}{revision}{boxes}"


def hub_splits(source: str) -> list[Split]:
    """The splits of the data set. Raises InputError if `datasets` is not installed or cannot read
    it, or if no split has a name that is read."""
    splits, _ = splits_and_others(source)
    return splits


def splits_and_others(source: str) -> tuple[list[Split], list[str]]:
    """The splits of the data set, and the names of those that are not read, because they are
    neither train, val nor test. Raises InputError like `hub_splits`."""
    loaded = _load(source)
    names = _split_names(loaded)
    splits = [split for split, name in names.items() if name]
    if not splits:
        text = f"no train, val or test split, only {', '.join(loaded)}"
        raise InputError(text, where=source, remedy=_SAVE_AGAIN)
    others = [name for name in loaded if name not in names.values()]
    return splits, others


def open_hub(
    source: str,
    split: Split,
    val_fraction: float,
    masks: MaskUse = "none",
    follow_links: bool = True,
) -> "HubDataset":
    """A split of `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`, with masks for this use.

    If there is no val split, `val_fraction` of the images are held out for validation.
    `follow_links`: whether rows of a folder may name files outside it; those of the hub never may.
    Raises InputError if `datasets` is not installed or cannot read the data set, if it has no
    boxes, or if a row names a file that it may not.
    """
    splits = _load(source)
    names = _split_names(splits)
    is_held_out = bool(val_fraction) and not names["val"] and split != "test"
    name = names["train"] if is_held_out else names[split]
    rows = splits.get(name)
    if rows is None:
        text = f"no {split} split, only {', '.join(splits)}"
        raise InputError(text, where=source, remedy=_remedy(split, names))
    columns = find_columns(source, rows.features, masks != "none")
    used = {name: splits[name] for name in names.values() if name}
    similar = {name: part for name, part in used.items() if part.features == rows.features}
    form = _box_form(source, columns, similar)
    classes = find_classes(source, columns, similar)
    builder = MaskBuilder.of(masks) if "segmentation" in columns.fields else None
    files = RowFiles(source, Address.of(source).name, name, follow_links)
    annotations = _annotations(source, rows, columns, classes, form, builder, files)
    # All splits have the same source, so the location of a fault has to name the split.
    faults = [_in_part(fault, name) for fault in annotations.faults]
    annotations = replace(annotations, faults=faults)
    if masks == "train":
        annotations.require_sound()
        require_masks(annotations)
    note = ""
    if is_held_out:
        annotations, note = hold_out(annotations, split, val_fraction, source)
    elif val_fraction and split != "test":
        note = fraction_unused(source)
    return HubDataset(annotations, rows, columns.image, note)


def _remedy(split: Split, names: dict[Split, str]) -> str:
    """What to do about a split that the data set does not have; `names` are those of its splits,
    empty for those that it lacks."""
    if split == "val" and names["train"]:
        return "--val-fraction 0.1 makes one for val"
    if split == "val" and names["test"]:
        return "use test (--split test of redetr evaluate and redetr explain)"
    if split == "test" and names["val"]:
        return "use val"
    if split == "test" and names["train"]:
        return "use val (--val-fraction 0.1 makes one)"
    return _SAVE_AGAIN


def _in_part(fault: Fault, name: str) -> Fault:
    """The fault, with the name of the split added to its location, if it states one."""
    if not fault.where:
        return fault
    items = tuple(f"{item} of {name}" for item in fault.items)
    return replace(fault, where=f"{fault.where} of {name}", items=items)


def write_images(source: str, split: Split, folder: Path, follow_links: bool) -> Annotations:
    """The annotations of a split, whose images are written to files in the folder. Raises
    InputError like `open_hub`, and if an image cannot be read."""
    dataset = open_hub(source, split, 0.0, "check", follow_links)
    annotations = replace(dataset.annotations, faults=list(dataset.faults))
    folder.mkdir(parents=True)
    names = []
    for position in range(len(annotations)):
        content = dataset.content(position)
        stem = os.fsdecode(annotations.names[position])
        name = f"{source}: image {stem}"
        with open_image(io.BytesIO(content), name, ROW_REMEDY) as image:
            suffix = suffix_of(image)
        name = f"{split}-{stem}{suffix}"  # VOC uses one folder for all splits
        (folder / name).write_bytes(content)
        names.append(os.fsencode(name))
    return replace(annotations, folder=folder, names=np.array(names, "S"))


def _split_names(splits: dict[str, Any]) -> dict[Split, str]:
    """The name of each split in the data set; empty if it has no such split."""
    names: dict[Split, str] = {}
    for split, aliases in _SPLITS.items():
        names[split] = ""
        for alias in reversed(aliases):  # the first alias takes precedence
            if alias in splits:
                names[split] = alias
    return names


def _load(source: str) -> dict[str, Any]:
    """The splits of a data set, by name."""
    try:
        import datasets
    except ImportError:
        raise InputError('needs: pip install "redetr[hub]"', where=source) from None
    address = Address.of(source)
    if not address.name:
        raise InputError("names no data set", where=source, remedy="write hf:NAME or hf:FOLDER")
    folder = Path(address.name)
    try:
        if is_saved_by_datasets(folder):
            loaded = datasets.load_from_disk(address.name)
        elif folder.is_dir():
            with _no_progress_bars():
                loaded = datasets.load_dataset(address.name)
        else:
            with quiet_hub():
                loaded = datasets.load_dataset(address.name, revision=address.revision or None)
    # OSError: offline, unknown name, or no permission. RuntimeError: the data set needs to run its
    # own code. The others: damaged files, because `datasets` does not check their contents.
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        datasets.exceptions.DatasetsError,
    ) as error:
        cause = error.__cause__ or error  # the cause names the file
        reason = " ".join(str(cause).split())[:160]
        text = f"`datasets` cannot read it ({reason})"
        raise InputError(text, where=source, remedy="check the name, or give a folder") from None
    if isinstance(loaded, dict):
        return loaded
    return {"train": loaded}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides progress bars while files of this machine are read, which is not a download."""
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _box_form(source: str, columns: Columns, splits: dict[str, Any]) -> BoxForm:
    """The format of boxes. It is determined from all splits together, as a small split may not show
    it."""
    objects = []
    for rows in splits.values():
        for row in sample_rows(_encoded(rows, columns.image), _SAMPLE):
            things = columns.objects_of(row)
            if things and not isinstance(things, str):
                frame = Frame.of(row[columns.image]).as_stated(row, columns)
                objects.append((frame.size, things))
    return box_form(source, Sample.of(objects), Address.of(source).boxes, columns.numbers)


def _annotations(
    source: str,
    rows: Any,
    columns: Columns,
    classes: Classes,
    form: BoxForm,
    masks: MaskBuilder | None,
    files: RowFiles,
) -> Annotations:
    """The annotations of the rows, which are converted to COCO's format."""
    odd = OddRows()
    document = _document(rows, columns, classes, form, files, odd)
    address = source.partition(",boxes=")[0]
    remedy = f"if its boxes are not xywh in pixels, state their format, as in {address},boxes=xyxy"
    result = from_documents(Path(source), [document], remedy, masks)
    faults = odd.faults(Path(source), len(rows))
    remedy = "check this on the page of check --report"
    for note in (form.note, classes.note):
        if note:
            faults.append(Fault("note", "hub-form", Path(source), "", note, remedy))
    # The orientation of each image was judged above.
    return replace(result, faults=faults + result.faults, is_upright=True)


def _document(
    rows: Any, columns: Columns, classes: Classes, form: BoxForm, files: RowFiles, odd: OddRows
) -> dict[str, list[Row]]:
    """The rows as a document in COCO's format. Rows with something to report are added to `odd`.

    An image that cannot be read, which is an error, is listed with a size of 1x1 px and without its
    objects.
    """
    images: list[Row] = []
    annotations: list[Row] = []
    for image_id, row in enumerate(_encoded(rows, columns.image)):
        image = row[columns.image]
        files.require_inside(image, image_id)
        shown = Frame.of(image)
        frame = shown.as_stated(row, columns)
        is_readable = 0 not in frame.stored
        width, height = frame.stored if is_readable else (1, 1)
        name = f"{image_id:09d}"
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        if not is_readable:
            odd.unreadable[image_id] = image_problem(image)
            continue
        odd.judge_size(image_id, row, columns, shown, frame)
        num_nulls = columns.count_nulls(row)
        if num_nulls:
            odd.nulls[image_id] = num_nulls
        if columns.have_key_points(row):
            odd.key_points.append(image_id)
        objects = columns.objects_of(row)
        if isinstance(objects, str):
            odd.unequal[image_id] = f"its lists differ in length: {objects}"
            continue
        for thing in objects:
            files.require_inside(_mask_file(thing), image_id)
            annotation = _annotation(thing, classes, form, frame)
            annotation |= {"id": len(annotations), "image_id": image_id}
            annotations.append(annotation)
    categories: list[Row] = [{"id": id_, "name": name} for id_, name in classes.names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(thing: Row, classes: Classes, form: BoxForm, frame: Frame) -> Row:
    """An object with COCO's keys, in the stored image."""
    size = frame.size
    category = thing["category"]
    if not isinstance(category, list | dict):
        category = classes.id_of.get(category, category)
    annotation = {
        "category_id": category,
        "bbox": frame.stored_box(form.pixels(thing["bbox"], size)),
        "area": form.area(thing.get("area"), size),
        "iscrowd": thing.get("iscrowd"),
    }
    if "segmentation" in thing:
        segmentation = form.segmentation(thing["segmentation"], size)
        annotation["segmentation"] = frame.stored_segmentation(segmentation)
    return annotation


def _mask_file(thing: Row) -> Row | None:
    """The file of an object's mask as `datasets` states images, if it is one."""
    mask = thing.get("segmentation")
    path = getattr(mask, "filename", None)  # of an image that was opened by its path
    return {"bytes": None, "path": path} if path else None


def _encoded(rows: Any, column: str) -> Any:
    """The rows with images as stored, without decoding them."""
    from datasets import Image as ImageFeature

    return rows.cast_column(column, ImageFeature(decode=False))


class HubDataset(AnnotatedDataset):
    """Rows with images, as `datasets` stores them."""

    def __init__(self, annotations: Annotations, rows: Any, column: str, note: str):
        super().__init__(annotations, str(annotations.source), note=note)
        self.faults = tuple(annotations.faults)
        self._rows = _encoded(rows, column)
        self._column = column

    def content(self, position: int) -> bytes:
        """The content of an image file. Raises OSError if the file no longer exists."""
        image = self._image(position)
        if image["bytes"] is None:
            return Path(image["path"]).read_bytes()
        return image["bytes"]

    def _image(self, position: int) -> Row:
        row = self._rows[int(self.annotations.ids[position])]
        return row[self._column]

    def _read(self, position: int) -> Tensor:
        file = image_file(self._image(position))
        name = str(self.annotations.path(position))
        pixels, _ = decode(file, name=name, remedy=ROW_REMEDY)
        return pixels
