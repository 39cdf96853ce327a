"""Data sets that Hugging Face `datasets` reads: from the hub, or from a folder that `save_to_disk`
wrote.

A row holds `image` and `objects`: lists of `bbox` (x, y, width, height in pixels) and `category` (a
ClassLabel), and if there are any, of `area` and `iscrowd`. Image ids count the rows. No code of a
data set is run: `datasets` from version 4 on refuses it.
"""

import io
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.coco import from_rows
from redetr.data.formats.folder import AnnotatedDataset, hold_out
from redetr.data.images import decode, image_size
from redetr.errors import InputError

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "val", "valid"),
    "test": ("test",),
}
_FIELDS = {"bbox": "bbox", "category": "category_id", "area": "area", "iscrowd": "iscrowd"}


def hub_splits(source: str) -> list[Split]:
    """The splits that are there. Raises InputError if `datasets` is not installed or cannot read
    it."""
    splits = _load(source)
    names = _split_names(splits)
    return [split for split, name in names.items() if name]


def open_hub(source: str, split: Split, val_fraction: float) -> "HubDataset":
    """The split of `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`; without a val split,
    `val_fraction` is held out.

    Raises InputError if `datasets` is not installed or cannot read it, or if it does not hold
    boxes.
    """
    splits = _load(source)
    names = _split_names(splits)
    is_held_out = bool(val_fraction) and not names["val"] and split != "test"
    name = names["train"] if is_held_out else names[split]
    rows = splits.get(name)
    if rows is None:
        text = f"no {split} split, only {', '.join(splits)}"
        remedy = "use val" if split == "test" else "--val-fraction 0.1 makes one for val"
        raise InputError(text, where=source, remedy=remedy)
    annotations = _annotations(source, rows)
    note = ""
    if is_held_out:
        annotations, note = hold_out(annotations, split, val_fraction)
    return HubDataset(annotations, rows, note)


def _split_names(splits: dict[str, Any]) -> dict[Split, str]:
    """The name of each split there, empty if there is none."""
    names: dict[Split, str] = {}
    for split, aliases in _SPLITS.items():
        names[split] = ""
        for alias in reversed(aliases):  # the first one wins
            if alias in splits:
                names[split] = alias
    return names


def _load(source: str) -> dict[str, Any]:
    """Its splits by name."""
    try:
        import datasets
    except ImportError:
        raise InputError("needs: pip install 'redetr[hub]'", where=source) from None
    address = os.path.expanduser(source.removeprefix("hf:"))
    name, _, revision = address.partition("@")
    try:
        if os.path.isdir(address):
            loaded = datasets.load_from_disk(address)
        else:
            loaded = datasets.load_dataset(name, revision=revision or None)
    # OSError: offline, unknown name, no permission. RuntimeError: a data set that needs its code to
    # run. The others: damaged files, whose content `datasets` does not check before it uses it.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())[:160]
        text = f"`datasets` cannot read it ({reason})"
        raise InputError(text, where=source, remedy="check the name, or give a folder") from None
    if isinstance(loaded, dict):
        return loaded
    return {"train": loaded}


def _annotations(source: str, rows: Any) -> Annotations:
    """The annotations of the rows, by way of COCO's format."""
    categories = []
    for number, name in enumerate(_class_names(source, rows)):
        categories.append({"id": number, "name": name})
    images = []
    annotations: list[dict[str, Any]] = []
    for image_id, row in enumerate(_encoded(rows)):
        width, height = image_size(_file(row))
        images.append(
            {
                "id": image_id,
                "file_name": f"{image_id:09d}",
                "width": width,
                "height": height,
            }
        )
        for annotation in _objects(row["objects"]):
            annotation["id"] = len(annotations)
            annotation["image_id"] = image_id
            annotations.append(annotation)
    document = {"images": images, "annotations": annotations, "categories": categories}
    return from_rows(Path(source), document)


def _class_names(source: str, rows: Any) -> list[str]:
    """The names of the classes. Raises InputError if the columns are not those of boxes."""
    fields = rows.features.get("objects")
    fields = getattr(fields, "feature", fields)  # of a list, in some versions of `datasets`
    category = fields.get("category") if isinstance(fields, dict) else None
    category = getattr(category, "feature", category)
    names = getattr(category, "names", None)
    if "image" not in rows.features or names is None or "bbox" not in fields:
        columns = ", ".join(rows.features)
        raise InputError(
            "needs columns image and objects, with bbox and category (a ClassLabel) in it",
            where=source,
            remedy=f"rename or cast its columns, which are {columns}",
        )
    return names


def _encoded(rows: Any) -> Any:
    """The rows with images as they are stored, not decoded."""
    from datasets import Image as ImageFeature

    return rows.cast_column("image", ImageFeature(decode=False))


def _file(row: dict[str, Any]) -> Any:
    image = row["image"]
    if image["bytes"] is None:
        return image["path"]
    return io.BytesIO(image["bytes"])


def _objects(objects: Any) -> list[dict[str, Any]]:
    """A dict for each object, with the names of COCO."""
    if isinstance(objects, dict):
        objects = _transposed(objects)
    annotations = []
    for fields in objects or []:
        annotation = {}
        for key, value in fields.items():
            if key in _FIELDS:
                annotation[_FIELDS[key]] = value
        annotations.append(annotation)
    return annotations


def _transposed(lists: dict[str, Any]) -> list[dict[str, Any]]:
    """A dict of lists as a list of dicts; what is missing at the end of a list is None."""
    keys = list(lists)
    columns = [values or [] for values in lists.values()]
    rows = []
    for values in zip_longest(*columns):
        rows.append(dict(zip(keys, values, strict=True)))
    return rows


class HubDataset(AnnotatedDataset):
    """Rows with images, as `datasets` stores them."""

    def __init__(self, annotations: Annotations, rows: Any, note: str):
        super().__init__(annotations, str(annotations.source), note=note)
        self._rows = _encoded(rows)

    def _read(self, position: int) -> Tensor:
        row = self._rows[int(self.annotations.ids[position])]
        pixels, _ = decode(_file(row), name=str(self.annotations.path(position)))
        return pixels
