"""Tar archives in WebDataset format: `a.jpg` and `a.json` are an image and its objects.

`a.json` holds what COCO has of one image: `{"annotations": [{"bbox": [x, y, width, height],
"category_id": 1}, ...]}`, and if there are any, `area`, `iscrowd` and `segmentation` of objects and
`id`, `width` and `height` of the image. `categories.json` beside the archives has COCO's list of
categories; with it, objects may state `"category": "cat"` as well. The splits are the archives
whose names, or the names of whose folders, begin with theirs: `train-000.tar`, `val/0.tar`.

Archives of images whose annotations are in COCO's own file are read by `data/formats/coco.py`.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.archives import Archive, archives_in, open_archive
from redetr.data.formats.coco import from_documents
from redetr.data.formats.coco_places import SPLIT_FOLDERS
from redetr.data.formats.columns import Row
from redetr.data.formats.paths import read_file
from redetr.data.images import is_image_name
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError

_CATEGORIES = "categories.json"
_IMAGE_KEYS = ("id", "width", "height")
_EXAMPLE = '[{"id": 1, "name": "cat"}]'
_REMEDY = "is it xyxy given as xywh? write [x, y, width, height] in pixels"
_NOT_AS_WRITTEN = (ValueError, RecursionError)  # what JSON that is none leads to


def shard_splits(root: Path) -> list[Split]:
    """The splits of a folder that are in tar archives."""
    return [split for split in SPLITS if archives_of(root, split)]


def shards_sought(split: Split) -> str:
    """Where the split is looked for, in words."""
    return f"{split}-*.tar with .json files of its images"


def archives_of(root: Path, split: Split) -> list[Path]:
    """The archives of a split."""
    alike = "|".join(SPLIT_FOLDERS[split])
    begins = re.compile(rf"({alike})([^a-z].*)?\.tar", re.IGNORECASE)
    archives = [archive for archive in archives_in(root) if begins.fullmatch(archive.name)]
    for name in SPLIT_FOLDERS[split]:
        archives += archives_in(root / name)
    return archives


def read_shards(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The split, which has to be there, with masks if there is a builder for them.

    Raises InputError for a damaged archive, for an image without a JSON file or the reverse, and
    for JSON that is not as described above.
    """
    categories = _read_categories(root / _CATEGORIES)
    documents = _documents(root, archives_of(root, split), categories)
    return from_documents(root, documents, _REMEDY, masks, [root])


def _read_categories(file: Path) -> list[Row]:
    """COCO's list of categories. Raises InputError if the file is not there, or no such list."""
    remedy = f"write COCO's list of them, {_EXAMPLE}"
    if not file.is_file():
        text = "is missing, which names the classes of the archives"
        raise InputError(text, where=file, remedy=remedy)
    try:
        categories = json.loads(read_file(file))
    except _NOT_AS_WRITTEN as error:
        raise InputError(f"not JSON: {error}", where=file, remedy=remedy) from None
    is_list = isinstance(categories, list)
    if not is_list or not all(isinstance(row, dict) for row in categories):
        raise InputError("is no list of categories", where=file, remedy=remedy)
    return categories


def _documents(
    root: Path, archives: list[Path], categories: list[Row]
) -> Iterator[dict[str, list[Row]]]:
    """The rows of COCO's lists: the categories, then those of each archive."""
    yield {"images": [], "annotations": [], "categories": categories}
    ids = {row.get("name"): row.get("id") for row in categories if _is_text(row.get("name"))}
    num_images = 0
    num_objects = 0
    for path in archives:
        images: list[Row] = []
        annotations: list[Row] = []
        below = os.path.relpath(path, root).replace(os.sep, "/")
        for name, content in _scenes(path):
            image: Row = {key: content[key] for key in _IMAGE_KEYS if key in content}
            image.setdefault("id", num_images + len(images))
            image["file_name"] = f"{below}/{name}"
            images.append(image)
            for annotation in content["annotations"]:
                row = {"id": num_objects + len(annotations), **annotation}
                row["image_id"] = image["id"]
                if "category_id" not in row:
                    row["category_id"] = ids.get(row.get("category"))
                annotations.append(row)
        num_images += len(images)
        num_objects += len(annotations)
        yield {"images": images, "annotations": annotations}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _scenes(path: Path) -> Iterator[tuple[str, Row]]:
    """The images of an archive by name, and what their JSON files hold, in the order in which these
    lie there. Raises InputError."""
    archive = open_archive(path)
    all_names = archive.names()
    image_of: dict[str, str] = {}
    for name in all_names:
        if is_image_name(name):
            stem, _ = posixpath.splitext(name)
            if stem in image_of:
                text = f"there is {image_of[stem]!r} as well, with one JSON file for both"
                raise InputError(text, where=path, item=repr(name), remedy="rename one")
            image_of[stem] = name
    _require_pairs(path, all_names, image_of)
    for i in np.argsort(archive.rows["offset"]).tolist():
        stem, suffix = posixpath.splitext(all_names[i])
        if suffix == ".json" and stem in image_of:
            yield image_of[stem], _read_scene(archive, all_names[i], path)


def _require_pairs(path: Path, names: list[str], image_of: dict[str, str]) -> None:
    """Raises InputError unless each image has a JSON file and each JSON file an image."""
    annotated = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    annotated = {stem for stem in annotated if not posixpath.basename(stem).startswith(".")}
    without = sorted(image_of.keys() - annotated)
    if without:
        stem = without[0]
        others = [name for name in names if name.startswith(f"{stem}.") and name != image_of[stem]]
        text = f"its objects are missing: no {stem}.json is beside it"
        if others:
            text += f", only {others[0]}, which holds no boxes that are read here"
        remedy = 'write it, {"annotations": []} if nothing is on the image'
        raise InputError(text, where=path, item=repr(image_of[stem]), remedy=remedy)
    alone = sorted(annotated - image_of.keys())
    if alone:
        text = "no image of this name is beside it"
        remedy = "put it there, or leave out the JSON file"
        raise InputError(text, where=path, item=repr(f"{alone[0]}.json"), remedy=remedy)


def _read_scene(archive: Archive, name: str, path: Path) -> Row:
    """What a JSON file in an archive holds. Raises InputError."""
    remedy = 'write {"annotations": [{"bbox": [x, y, width, height], "category_id": 1}]}'
    try:
        content = json.loads(archive.read(name))
    except _NOT_AS_WRITTEN as error:
        text = f"not JSON: {error}"
        raise InputError(text, where=path, item=repr(name), remedy=remedy) from None
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError(text, where=path, item=repr(name), remedy="copy it again") from None
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(annotations, list) and all(isinstance(row, dict) for row in annotations):
        return content
    text = '"annotations" is missing or not a list of objects'
    raise InputError(text, where=path, item=repr(name), remedy=remedy)
