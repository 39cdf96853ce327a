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

from PIL import Image
from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.forms.coco import from_document
from redetr.data.forms.folder import AnnotatedDataset, hold_out
from redetr.data.images import FORMATS, decode
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
    return [split for split, name in _called(_load(source)).items() if name]


def open_hub(source: str, split: Split, val_fraction: float) -> "HubDataset":
    """The split of `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`; without a val split,
    `val_fraction` is held out.

    Raises InputError if `datasets` is not installed or cannot read it, or if it does not hold
    boxes.
    """
    splits = _load(source)
    found = _called(splits)
    held_out = bool(val_fraction) and not found["val"] and split != "test"
    rows = splits.get(found["train" if held_out else split])
    if rows is None:
        remedy = "measure on val" if split == "test" else "--val-fraction 0.1 makes one for val"
        raise InputError(f"{source}: no {split} split, only {', '.join(splits)}; {remedy}")
    annotations, note = _annotations(source, rows), ""
    if held_out:
        annotations, note = hold_out(annotations, split, val_fraction)
    return HubDataset(annotations, rows, note)


def _called(splits: dict[str, Any]) -> dict[Split, str]:
    """The name of each split there, empty if there is none."""
    return {
        split: next((alias for alias in aliases if alias in splits), "")
        for split, aliases in _SPLITS.items()
    }


def _load(source: str) -> dict[str, Any]:
    """Its splits by name."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: needs: pip install 'redetr[hub]'") from None
    place = os.path.expanduser(source.removeprefix("hf:"))
    name, _, revision = place.partition("@")
    try:
        if os.path.isdir(place):
            found = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:  # offline, unknown name, no permission, damaged files
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{source}: `datasets` cannot read it ({reason}); check the name, or give a folder"
        ) from None
    return found if isinstance(found, dict) else {"train": found}


def _annotations(source: str, rows: Any) -> Annotations:
    """The annotations of the rows, by the way of COCO's form."""
    fields = rows.features.get("objects")
    fields = getattr(fields, "feature", fields)
    category = fields.get("category") if isinstance(fields, dict) else None
    names = getattr(getattr(category, "feature", category), "names", None)
    if "image" not in rows.features or names is None or "bbox" not in fields:
        raise InputError(
            f"{source}: needs columns image and objects, with bbox and category (a ClassLabel) in "
            "it; "
            "rename or cast its columns, which are " + ", ".join(rows.features)
        )
    images, annotations = [], []
    for number, row in enumerate(_encoded(rows)):
        width, height = _size(row)
        images.append(
            {"id": number, "file_name": f"{number:09d}", "width": width, "height": height}
        )
        annotations += [{"image_id": number, **thing} for thing in _objects(row["objects"])]
    document = {
        "images": images,
        "annotations": [{"id": number, **thing} for number, thing in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    return from_document(Path(source), document, [])


def _encoded(rows: Any) -> Any:
    """The rows with images as they are stored, not decoded."""
    from datasets import Image as ImageFeature

    return rows.cast_column("image", ImageFeature(decode=False))


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the image, (0, 0) if it cannot be read."""
    try:
        with Image.open(_file(row), formats=FORMATS) as image:
            return image.size
    except Exception:  # decoders raise nearly everything on damaged files
        return 0, 0


def _file(row: dict[str, Any]) -> Any:
    image = row["image"]
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def _objects(objects: Any) -> list[dict[str, Any]]:
    """One dict for each object, with the names of COCO."""
    if isinstance(objects, dict):
        lists = {key: value or [] for key, value in objects.items()}
        objects = [dict(zip(lists, values, strict=True)) for values in zip_longest(*lists.values())]
    return [
        {_FIELDS[key]: value for key, value in thing.items() if key in _FIELDS}
        for thing in objects or []
    ]


class HubDataset(AnnotatedDataset):
    """Rows with images, as `datasets` stores them."""

    def __init__(self, annotations: Annotations, rows: Any, note: str):
        super().__init__(annotations, str(annotations.source), note=note)
        self._rows = _encoded(rows)

    def _read(self, position: int) -> Tensor:
        row = self._rows[int(self.annotations.ids[position])]
        return decode(_file(row), name=str(self.annotations.path(position)))[0]
