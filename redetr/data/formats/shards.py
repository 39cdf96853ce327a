"""Tar archives in WebDataset format: `a.jpg` and `a.json` are an image and its objects.

`a.json` has what a COCO file states about the image: `{"annotations": [{"bbox": [x, y, width,
height], "category_id": 1}, ...]}`. Objects may also have `area`, `iscrowd` and `segmentation`, and
the image may have `id`, `width` and `height`. `categories.json`, next to the archives, is COCO's
list of categories. Objects may name their category (`"category": "cat"`) instead of its id. The
name of an archive, or of its folder, begins with the split: `train-000.tar`, `val/0.tar`.

`data/formats/coco.py` reads archives of images that a COCO file annotates.
"""

import json
import os
import posixpath
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.archives import Archive, archives_in, open_archive
from redetr.data.formats.coco import XYWH_REMEDY, from_documents
from redetr.data.formats.coco_places import SPLIT_FOLDERS
from redetr.data.formats.columns import Row, are_rows
from redetr.data.formats.paths import read_file
from redetr.data.images import is_image_name
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError

_CATEGORIES = "categories.json"
_IMAGE_KEYS = ("id", "width", "height")
_EXAMPLE = '[{"id": 1, "name": "cat"}]'
_INVALID_JSON = (ValueError, RecursionError)  # the errors of `json.loads`


def shard_splits(root: Path) -> list[Split]:
    """The splits for which the folder has tar archives."""
    return [split for split in SPLITS if archives_of(root, split)]


def shards_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    return f"{split}-*.tar with .json files of its images"


def archives_of(root: Path, split: Split) -> list[Path]:
    """The archives of a split."""
    split_names = SPLIT_FOLDERS[split]
    pattern = re.compile(rf"({'|'.join(split_names)})([^a-z].*)?\.tar", re.IGNORECASE)
    archives = [archive for archive in archives_in(root) if pattern.fullmatch(archive.name)]
    for name in split_names:
        archives += archives_in(root / name)
    return archives


def read_shards(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them.

    Raises InputError if an archive is damaged, if an image has no JSON file or the reverse, if an
    object names an unknown category, or if the JSON is not as described above.
    """
    categories = _read_categories(root / _CATEGORIES)
    archives = archives_of(root, split)
    documents = _documents(root, archives, categories)
    return from_documents(root, documents, XYWH_REMEDY, masks, [root])


def _read_categories(file: Path) -> list[Row]:
    """COCO's list of categories. Raises InputError if the file is missing or is not such a list."""
    remedy = f"write COCO's list of them, {_EXAMPLE}"
    if not file.is_file():
        text = "is missing: it names the classes of the archives"
        raise InputError(text, where=file, remedy=remedy)
    try:
        categories = json.loads(read_file(file))
    except _INVALID_JSON as error:
        raise InputError(f"not JSON: {error}", where=file, remedy=remedy) from None
    if not are_rows(categories):
        raise InputError("is not a list of categories", where=file, remedy=remedy)
    return categories


def _documents(
    root: Path, archives: list[Path], categories: list[Row]
) -> Iterator[dict[str, list[Row]]]:
    """Documents with the rows of COCO's lists: first the categories, then the rows of each
    archive."""
    yield {"images": [], "annotations": [], "categories": categories}
    category_ids = {}
    for category in categories:
        if isinstance(category.get("name"), str):
            category_ids[category["name"]] = category.get("id")
    num_images = 0
    num_objects = 0
    for path in archives:
        images: list[Row] = []
        annotations: list[Row] = []
        archive = os.path.relpath(path, root).replace(os.sep, "/")
        for name, content in _scenes(path):
            image: Row = {key: content[key] for key in _IMAGE_KEYS if key in content}
            image.setdefault("id", num_images)
            image["file_name"] = f"{archive}/{name}"
            images.append(image)
            num_images += 1
            for annotation in content["annotations"]:
                row = {"id": num_objects, **annotation}
                row["image_id"] = image["id"]
                if "category" in row and row.get("category_id") is None:
                    item = posixpath.splitext(name)[0] + ".json"
                    row["category_id"] = _category_id(row["category"], category_ids, path, item)
                annotations.append(row)
                num_objects += 1
        yield {"images": images, "annotations": annotations}


def _category_id(name: Any, category_ids: dict[str, Any], path: Path, item: str) -> Any:
    """The id of the category with this name. Raises InputError if there is none; `item` is the JSON
    file in the archive that states it."""
    if isinstance(name, str) and name in category_ids:
        return category_ids[name]
    text = f"no category of {_CATEGORIES} has the name {reprlib.repr(name)}"
    raise InputError(text, where=path, item=repr(item), remedy="add it, or correct the name")


def _scenes(path: Path) -> Iterator[tuple[str, Row]]:
    """The name of each image in an archive and the content of its JSON file, in the order of the
    JSON files. Raises InputError like `read_shards`."""
    archive = open_archive(path)
    names = archive.names()
    image_of = _images_by_stem(path, names)
    _require_pairs(path, names, image_of)
    in_file_order = np.argsort(archive.rows["offset"])
    for i in in_file_order.tolist():
        stem, suffix = posixpath.splitext(names[i])
        if suffix.lower() == ".json" and stem in image_of:
            yield image_of[stem], _read_scene(archive, names[i], path)


def _images_by_stem(path: Path, names: list[str]) -> dict[str, str]:
    """The images among the names, by their paths without suffix. Raises InputError if two images
    would share a JSON file."""
    image_of: dict[str, str] = {}
    for name in names:
        if not is_image_name(name):
            continue
        stem, _ = posixpath.splitext(name)
        if stem in image_of:
            text = f"{image_of[stem]!r} has the same JSON file"
            raise InputError(text, where=path, item=repr(name), remedy="rename one")
        image_of[stem] = name
    return image_of


def _require_pairs(path: Path, names: list[str], image_of: dict[str, str]) -> None:
    """Raises InputError unless each image has a JSON file, and each JSON file has an image."""
    annotated = set()
    for name in names:
        is_hidden = posixpath.basename(name).startswith(".")
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == ".json" and not is_hidden:
            annotated.add(stem)
    without_json = sorted(image_of.keys() - annotated)
    if without_json:
        stem = without_json[0]
        image = image_of[stem]
        others = [name for name in names if name.startswith(f"{stem}.") and name != image]
        text = f"its objects are missing: no {stem}.json is beside it"
        if others:
            text += f", only {others[0]}, which holds no boxes that can be read"
        remedy = 'write it, {"annotations": []} if the image shows no object'
        raise InputError(text, where=path, item=repr(image), remedy=remedy)
    without_image = sorted(annotated - image_of.keys())
    if without_image:
        file = f"{without_image[0]}.json"
        text = "there is no image of this name"
        remedy = "add the image, or leave out the JSON file"
        raise InputError(text, where=path, item=repr(file), remedy=remedy)


def _read_scene(archive: Archive, name: str, path: Path) -> Row:
    """The content of the JSON file `name` in an archive. Raises InputError if it is not valid."""
    remedy = 'write {"annotations": [{"bbox": [x, y, width, height], "category_id": 1}]}'
    try:
        content = json.loads(archive.read(name))
    except _INVALID_JSON as error:
        text = f"not JSON: {error}"
        raise InputError(text, where=path, item=repr(name), remedy=remedy) from None
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=path, item=repr(name), remedy="copy it again") from None
    if isinstance(content, dict) and are_rows(content.get("annotations")):
        return content
    text = '"annotations" is missing or not a list of objects'
    raise InputError(text, where=path, item=repr(name), remedy=remedy)
