"""Writes data sets as COCO's lists, YOLO's lines or VOC's XML."""

import json
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.labels import label_name
from redetr.data.formats.mask_writing import coco_segmentations
from redetr.data.formats.voc_xml import SIDES
from redetr.data.mask_columns import MaskColumns
from redetr.data.orientation import stored_sides, upright_points

Splits = dict[Split, Annotations]
Orientations = dict[Split, np.ndarray]  # of the image files of each split, int64 [N]
Put = Callable[[Path, Path], object]  # makes an image (first) appear at another path (second)


def names_of(annotations: Annotations) -> list[str]:
    """The path of each image, relative to the folder."""
    return [os.fsdecode(name) for name in annotations.names]


def count_masks(splits: Splits) -> int:
    """How many objects have a mask."""
    count = 0
    for annotations in splits.values():
        if annotations.masks is not None:
            count += int(annotations.masks.has_mask.sum())
    return count


def _put_images(annotations: Annotations, folder: Path, put: Put) -> None:
    for name in dict.fromkeys(names_of(annotations)):
        source = annotations.folder / name
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        put(source, file)


def _decimals(values: np.ndarray) -> np.ndarray:
    """float32 values as float64 with the fewest digits that identify them: 0.1 instead of
    0.10000000149."""
    return values.astype("S16").astype(np.float64)


class _Scene(NamedTuple):
    """An image and its objects."""

    name: str  # path below the folder
    height: int
    width: int
    objects: slice


def _scenes(annotations: Annotations) -> Iterator[_Scene]:
    for i, name in enumerate(names_of(annotations)):
        height, width = annotations.sizes[i].tolist()
        objects = annotations.objects_of(i)
        yield _Scene(name, height, width, objects)


def _write_coco(splits: Splits, root: Path, put: Put, orientations: Orientations) -> None:
    """annotations/instances_{split}.json, images in {split}/."""
    for split, a in splits.items():
        _put_images(a, root / split, put)
    write_coco_lists(splits, root)


def write_coco_lists(splits: Splits, root: Path) -> None:
    """annotations/instances_{split}.json, without images."""
    folder = root / "annotations"
    folder.mkdir()
    for split, a in splits.items():
        images = []
        for image_id, scene in zip(a.ids.tolist(), _scenes(a), strict=True):
            images.append(
                {
                    "id": image_id,
                    "file_name": scene.name,
                    "width": scene.width,
                    "height": scene.height,
                }
            )
        categories = []
        for label, name in enumerate(a.class_names):
            category: dict[str, Any] = {"id": a.category_ids[label], "name": name}
            if a.is_thing:
                category["isthing"] = int(a.is_thing[label])
            categories.append(category)
        document = {
            "images": images,
            "annotations": _coco_annotations(a),
            "categories": categories,
        }
        file = folder / f"instances_{split}.json"
        file.write_text(json.dumps(document))


def _coco_annotations(a: Annotations) -> list[dict[str, Any]]:
    """The objects, with their ids, or numbered from 1 if these are not unique. An id of 0 becomes
    the next free number: pycocotools never counts an object with the id 0 as detected."""
    count = len(a.object_ids)
    ids = a.object_ids
    if len(np.unique(ids)) < count:
        ids = np.arange(1, count + 1)
    ids = np.where(ids == 0, ids.max(initial=0) + 1, ids)
    corners = _decimals(a.boxes)
    starts = corners[:, :2]
    sides = (corners[:, 2:] - starts).round(9)
    boxes = np.concatenate([starts, sides], axis=1).tolist()
    areas = _decimals(a.area).tolist()
    image_ids = a.ids[a.image_of()].tolist()
    segmentations = coco_segmentations(a)
    annotations = []
    for i in range(count):
        label = a.labels[i]
        annotation = {
            "id": int(ids[i]),
            "image_id": image_ids[i],
            "category_id": a.category_ids[label],
            "bbox": boxes[i],
            "area": areas[i],
            "iscrowd": int(a.iscrowd[i]),
        }
        if segmentations[i] is not None:
            annotation["segmentation"] = segmentations[i]
        annotations.append(annotation)
    return annotations


def _write_yolo(splits: Splits, root: Path, put: Put, orientations: Orientations) -> None:
    """data.yaml, images in images/{split}/, labels in labels/{split}/; classes are numbered from
    0. Labels are fractions of the images as viewers show them: see `yolo`."""
    config: dict[str, Any] = {}
    class_names: tuple[str, ...] = ()
    for split, a in splits.items():
        config[split] = f"images/{split}"
        class_names = a.class_names  # the same in all splits
        _put_images(a, root / "images" / split, put)
        for scene, orientation in zip(_scenes(a), orientations[split].tolist(), strict=True):
            image = f"images/{split}/{scene.name}"
            file = root / label_name(image)
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = _yolo_lines(a, scene, orientation)
            if lines:
                text = "".join(lines)
                file.write_text(text)
    config["names"] = dict(enumerate(class_names))
    if count_masks(splits):
        config["task"] = "segment"
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    config_file = root / "data.yaml"
    config_file.write_text(settings, encoding="utf-8")


def _yolo_lines(a: Annotations, scene: _Scene, orientation: int) -> list[str]:
    """A line for each object of an image: `class x y x y x y ...` for an object with a mask,
    otherwise `class cx cy w h`."""

    def turned(points: np.ndarray) -> np.ndarray:
        return upright_points(points, np.full(len(points), orientation))

    size = [scene.width, scene.height, scene.width, scene.height]
    pixels = a.boxes[scene.objects].astype(np.float64)
    fractions = pixels / size
    starts = fractions[:, :2]
    ends = fractions[:, 2:]
    centers = turned((starts + ends) / 2)
    sides = stored_sides(ends - starts, np.full(len(pixels), orientation))
    rows = list(np.concatenate([centers, sides], axis=1))
    if isinstance(a.masks, MaskColumns):
        for number, i in enumerate(range(scene.objects.start, scene.objects.stop)):
            for polygon in a.masks.polygons(i):
                rows[number] = turned(polygon / size[:2]).ravel()
    labels = a.labels[scene.objects].tolist()
    lines = []
    for label, row in zip(labels, rows, strict=True):
        numbers = " ".join(f"{value:.14g}" for value in row.tolist())
        lines.append(f"{label} {numbers}\n")
    return lines


def _write_voc(splits: Splits, root: Path, put: Put, orientations: Orientations) -> None:
    """JPEGImages/, Annotations/ and ImageSets/Main/{split}.txt; crowds are marked difficult."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    annotations_folder = root / "Annotations"
    for split, a in splits.items():
        _put_images(a, root / "JPEGImages", put)
        boxes = _decimals(a.boxes) + (1, 1, 0, 0)
        lines = []
        for scene in _scenes(a):
            stem, _ = posixpath.splitext(scene.name)
            lines.append(f"{stem}\n")
            tree = _voc_tree(a, scene, boxes)
            content = ElementTree.tostring(tree, encoding="utf-8")
            file = annotations_folder / f"{stem}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        listed = os.fsencode("".join(lines))
        list_file = lists / f"{split}.txt"
        list_file.write_bytes(listed)


def _voc_tree(a: Annotations, scene: _Scene, boxes: np.ndarray) -> ElementTree.Element:
    """The annotation of an image; `boxes` are the boxes of all objects, with VOC's pixels from
    1."""
    tree = ElementTree.Element("annotation")
    if scene.name.isprintable():  # XML cannot hold other characters, and the name is not needed
        _add(tree, filename=scene.name)
    size = ElementTree.SubElement(tree, "size")
    _add(size, width=scene.width, height=scene.height, depth=3)
    objects = scene.objects
    for i in range(objects.start, objects.stop):
        element = ElementTree.SubElement(tree, "object")
        label = a.labels[i]
        is_crowd = int(a.iscrowd[i])
        _add(element, name=a.class_names[label], difficult=is_crowd)
        box = ElementTree.SubElement(element, "bndbox")
        for side, value in zip(SIDES, boxes[i].tolist(), strict=True):
            number = f"{value:.12g}"
            _add(box, **{side: number})
    ElementTree.indent(tree)
    return tree


def _add(element: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


WRITERS = {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}
