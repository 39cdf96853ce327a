"""The same data set in another form. Boxes only: outlines and whatever else annotations hold stay
behind."""

import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from redetr.data.annotations import Annotations, Split
from redetr.data.forms.layouts import read_annotations, splits_of
from redetr.data.forms.yolo import label_name
from redetr.data.open import folder_of
from redetr.errors import InputError

Splits = dict[Split, Annotations]
Put = Callable[[Path, Path], object]  # makes an image (first) appear in another place (second)


def convert(source: str | Path, destination: Path, form: str, copy: bool = False) -> list[str]:
    """Writes the data set in the folder or YAML file `source` (or crowns) to `destination`; `form`
    is coco, yolo or voc.

    All splits are written, or nothing. Images are hard links to those of `source` where the disk
    allows it, unless they shall be a `copy`. Returns sentences on what was written and what the
    form cannot say. Raises InputError for a faulty data set, for one that the form cannot hold, and
    if `destination` is there already.
    """
    root = folder_of(source)
    if not root.exists():
        raise InputError(f"{source}: no such folder; give that of a data set, or crowns")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: is there already; choose another place")
    folder = root.parent if root.is_file() else root
    if destination.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{destination}: is inside of {folder}, which stays as it is; choose another place"
        )
    splits: Splits = {split: read_annotations(root, split) for split in splits_of(root)}
    for annotations in splits.values():
        annotations.require_sound()
    splits, notes = _sayable(splits, form)
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".unfinished-"))
    try:
        _WRITERS[form](splits, unfinished, shutil.copyfile if copy else _link)
        for split, annotations in splits.items():
            _require_same(annotations, read_annotations(unfinished, split), form)
        unfinished.chmod(0o755)
        os.rename(unfinished, destination)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    counts = ", ".join(
        f"{split} has {len(a)} images, {len(a.boxes)} objects" for split, a in splits.items()
    )
    return [f"{destination}: {counts}", *notes]


def _sayable(splits: Splits, form: str) -> tuple[Splits, list[str]]:
    """What the form can say of the splits, and sentences on the rest. Raises InputError if names
    would be lost."""
    notes: list[str] = []
    if form == "coco":
        return splits, notes
    outlines = [not np.allclose(a.area, _box_areas(a), rtol=0.01) for a in splits.values()]
    if any(outlines):
        notes.append(
            f"{form} has no areas: objects count as small, medium and large by their boxes"
        )
    groups = (
        [splits] if form == "voc" else [{split: a} for split, a in splits.items()]
    )  # one folder for all in VOC
    for group in groups:
        _require_own_labels([(a.source, name) for a in group.values() for name in _names(a)])
    if form == "voc":
        used = {
            name
            for a in splits.values()
            for name in np.array(a.class_names)[np.unique(a.labels)].tolist()
        }
        unused = {name for a in splits.values() for name in a.class_names} - used
        if unused:
            notes.append(
                f"voc lists no classes: {len(unused)} without objects, such as {min(unused)!r}, "
                "are left out"
            )
        return splits, notes
    first, *others = splits
    odd = [split for split in others if splits[split].class_names != splits[first].class_names]
    if odd:
        lists = f"{odd[0]} lists other classes than {first}"
        raise InputError(f"{splits[odd[0]].source}: {lists}, yolo has one list for all; equal them")
    crowds = sum(int(a.iscrowd.sum()) for a in splits.values())
    if crowds:
        notes.append(f"yolo has no crowds and no objects to ignore: {crowds} are left out")
    return {split: without_crowds(a) for split, a in splits.items()}, notes


def without_crowds(annotations: Annotations) -> Annotations:
    return annotations.only(np.ones(len(annotations), bool), ~annotations.iscrowd)


def _require_own_labels(images: list[tuple[Path, str]]) -> None:
    """Raises InputError if two images would share a label file."""
    taken: dict[str, str] = {}
    for source, name in images:
        stem = posixpath.splitext(name)[0]
        if stem in taken:
            raise InputError(
                f"{source}: {taken[stem]!r} and {name!r} would share one label file; rename one of "
                "them"
            )
        taken[stem] = name


def _require_same(meant: Annotations, written: Annotations, form: str) -> None:
    """Raises InputError if what was written does not read as what was meant."""
    written.require_sound()
    same = _names(meant) == _names(written) and np.array_equal(meant.first, written.first)
    same = same and np.allclose(meant.boxes, written.boxes, rtol=0, atol=1e-3)
    same = same and _classes(meant) == _classes(written)
    if not same:
        raise InputError(
            f"{meant.source}: {form} cannot hold it; are there odd characters in the names of its "
            "classes?"
        )


def _names(annotations: Annotations) -> list[str]:
    return list(map(os.fsdecode, annotations.names))


def _classes(annotations: Annotations) -> list[str]:
    """The name of the class of each object."""
    return np.array(annotations.class_names)[annotations.labels].tolist()


def _box_areas(annotations: Annotations) -> np.ndarray:
    return (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).prod(1)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, destination)


def _put_images(annotations: Annotations, folder: Path, put: Put) -> None:
    for name in dict.fromkeys(_names(annotations)):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        put(annotations.folder / name, place)


def _decimals(values: np.ndarray) -> np.ndarray:
    """float32 as float64 with the fewest digits that mean the same float32: 0.1 instead of
    0.10000000149."""
    return values.astype("S16").astype(np.float64)


def _scenes(annotations: Annotations) -> Iterator[tuple[str, int, int, slice]]:
    """Path, height and width of each image, and where its objects are."""
    for i, name in enumerate(_names(annotations)):
        yield (
            name,
            *annotations.sizes[i].tolist(),
            slice(annotations.first[i], annotations.first[i + 1]),
        )


def _write_coco(splits: Splits, root: Path, put: Put) -> None:
    """annotations/instances_{split}.json, images in {split}/."""
    (root / "annotations").mkdir()
    for split, a in splits.items():
        _put_images(a, root / split, put)
        corners, area = _decimals(a.boxes), _decimals(a.area)
        boxes = np.concatenate(
            [corners[:, :2], (corners[:, 2:] - corners[:, :2]).round(9)], axis=1
        ).tolist()
        unique = len(np.unique(a.object_ids)) == len(a.object_ids)
        ids = (a.object_ids if unique else np.arange(1, len(boxes) + 1)).tolist()
        images, annotations = [], []
        for image_id, (name, height, width, own) in zip(a.ids.tolist(), _scenes(a), strict=True):
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for i in range(own.start, own.stop):
                category_id, iscrowd = a.category_ids[a.labels[i]], int(a.iscrowd[i])
                annotations.append(
                    {
                        "id": ids[i],
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": boxes[i],
                        "area": float(area[i]),
                        "iscrowd": iscrowd,
                    }
                )
        categories = [
            {"id": id_, "name": name}
            for id_, name in zip(a.category_ids, a.class_names, strict=True)
        ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _write_yolo(splits: Splits, root: Path, put: Put) -> None:
    """data.yaml, images in images/{split}/, labels in labels/{split}/; classes are numbered from
    0."""
    for split, a in splits.items():
        _put_images(a, root / "images" / split, put)
        for name, height, width, own in _scenes(a):
            file = root / label_name(f"images/{split}/{name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            corners = a.boxes[own].astype(np.float64) / [width, height, width, height]
            boxes = np.concatenate(
                [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
            )
            rows = zip(a.labels[own].tolist(), boxes.tolist(), strict=True)
            lines = [
                f"{label} {' '.join(f'{value:.14g}' for value in box)}\n" for label, box in rows
            ]
            if lines:
                file.write_text("".join(lines))
    config: dict[str, Any] = {split: f"images/{split}" for split in splits}
    config["names"] = dict(enumerate(next(iter(splits.values())).class_names))
    (root / "data.yaml").write_text(
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _write_voc(splits: Splits, root: Path, put: Put) -> None:
    """JPEGImages/, Annotations/ and ImageSets/Main/{split}.txt; crowds are marked difficult."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, a in splits.items():
        _put_images(a, root / "JPEGImages", put)
        stems = [posixpath.splitext(name)[0] for name in _names(a)]
        (lists / f"{split}.txt").write_bytes(os.fsencode("".join(f"{stem}\n" for stem in stems)))
        boxes = _decimals(a.boxes) + (1, 1, 0, 0)
        for stem, (name, height, width, own) in zip(stems, _scenes(a), strict=True):
            scene = ElementTree.Element("annotation")
            _add(scene, filename=name)
            _add(ElementTree.SubElement(scene, "size"), width=width, height=height, depth=3)
            for i in range(own.start, own.stop):
                element = ElementTree.SubElement(scene, "object")
                _add(element, name=a.class_names[a.labels[i]], difficult=int(a.iscrowd[i]))
                sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[i].tolist(), strict=True))
                _add(
                    ElementTree.SubElement(element, "bndbox"),
                    **{side: f"{v:.12g}" for side, v in sides.items()},
                )
            ElementTree.indent(scene)
            file = root / "Annotations" / f"{stem}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(ElementTree.tostring(scene, encoding="utf-8"))


def _add(element: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


_WRITERS = {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}
