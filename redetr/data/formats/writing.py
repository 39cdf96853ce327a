"""The same data set in another format. Boxes only: outlines and whatever else annotations hold are
left out."""

import json
import os
import posixpath
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.cutting import Cut, cut_images
from redetr.data.formats.folder import read_split
from redetr.data.formats.holdout import hold_out
from redetr.data.formats.hub import Address, hub_splits, write_images
from redetr.data.formats.labels import label_name
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.open import folder_of
from redetr.errors import InputError
from redetr.wording import counted

_VOC_SIDES = ("xmin", "ymin", "xmax", "ymax")

Splits = dict[Split, Annotations]
Put = Callable[[Path, Path], object]  # makes an image (first) appear at another path (second)


def convert(
    source: str | Path,
    destination: Path,
    form: str,
    copy: bool = False,
    follow_links: bool = False,
    cut: Cut | None = None,
    val_fraction: float = 0.0,
) -> list[str]:
    """Writes the data set in the folder or YAML file `source` (or crowns, or `hf:NAME`) to
    `destination`; `form` is coco, yolo or voc.

    All splits are written, or nothing. Images are hard links to those of `source` where the disk
    allows it, unless they shall be a `copy`, or are `cut` into tiles. Without a val split,
    `val_fraction` of the images are written as one: before they are cut, as tiles of one image
    have pixels in common. Returns sentences on what was written and what the format cannot hold.
    Raises InputError for a faulty data set, for one that the format cannot hold, if `destination`
    already exists, and for images that are symbolic links out of the data folder, unless
    `follow_links`: in the data of a stranger they may stand for any file.
    """
    is_folder = not str(source).startswith("hf:")
    if is_folder:
        splits, notes = _read_folder(source, destination, follow_links, val_fraction)
        if cut is None:
            return [*_write(splits, destination, form, copy), *notes]
    else:
        _require_new(Path(Address.of(str(source)).name), destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".images-") as folder:
        if not is_folder:
            splits, notes = _read_hub(str(source), Path(folder) / "whole", val_fraction)
        if cut is not None:
            for split, annotations in splits.items():
                annotations.require_sound()
                tiles = Path(folder) / "tiles" / split
                splits[split], sentences = cut_images(annotations, split, cut, tiles, _link)
                notes += sentences
        return [*_write(splits, destination, form, copy), *notes]


def _read_folder(
    source: str | Path, destination: Path, follow_links: bool, val_fraction: float
) -> tuple[Splits, list[str]]:
    """The splits of a folder or a YAML file, and a sentence on `val_fraction`."""
    root = folder_of(source)
    if not root.exists():
        remedy = "give that of a data set, or crowns"
        raise InputError("no such folder", where=source, remedy=remedy)
    _require_new(root, destination)
    names = splits_of(root)
    if val_fraction and "val" not in names:
        names = ["train", "val", *(name for name in names if name == "test")]
    splits = {}
    notes: dict[str, None] = {}  # each once: both splits have it
    for split in names:
        splits[split], note = read_split(root, split, val_fraction)
        if note:
            notes[note] = None
    for annotations in splits.values():
        _require_apart(annotations.folder, destination)  # links may lead out of the root
        if not follow_links:
            _require_no_links_out(annotations, root.parent if root.is_file() else root)
    return splits, [*notes]


def _read_hub(address: str, folder: Path, val_fraction: float) -> tuple[Splits, list[str]]:
    """The splits of a data set of the hub, whose images are written to `folder`, and sentences on
    them."""
    splits = {}
    for split in hub_splits(address):
        splits[split] = write_images(address, split, folder / split)
    notes: dict[str, None] = {}  # each once: both splits may have it
    for annotations in splits.values():
        notes.update(dict.fromkeys(map(str, annotations.faults)))
    if val_fraction and "val" not in splits:
        everything = splits["train"]
        for split in ("train", "val"):
            splits[split], note = hold_out(everything, split, val_fraction)
            notes[note] = None
    return splits, [*notes]


def _write(splits: Splits, destination: Path, form: str, copy: bool) -> list[str]:
    """What `convert` does with the splits of any source."""
    for annotations in splits.values():
        annotations.require_sound()
    splits, notes = _fitted(splits, form)
    put = shutil.copyfile if copy else _link
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".unfinished-"))
    try:
        _WRITERS[form](splits, unfinished, put)
        for split, annotations in splits.items():
            _require_same(annotations, unfinished, split, form)
        unfinished.chmod(0o755)
        os.rename(unfinished, destination)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    counts = []
    for split, annotations in splits.items():
        images = counted(len(annotations), "image")
        objects = counted(len(annotations.boxes), "object")
        counts.append(f"{split} has {images}, {objects}")
    summary = f"{destination}: {', '.join(counts)}"
    return [summary, *notes]


def _require_no_links_out(annotations: Annotations, root: Path) -> None:
    """Raises InputError for an image that is, or lies behind, a symbolic link to what is not in the
    data folder."""
    real_root = os.path.realpath(root)
    real_folders: dict[str, str] = {}
    for name in _names(annotations):
        file = os.path.join(annotations.folder, name)
        folder = os.path.dirname(file)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        real_file = os.path.join(real_folders[folder], os.path.basename(file))
        if os.path.islink(real_file):
            real_file = os.path.realpath(real_file)
        if os.path.commonpath([real_root, real_file]) != real_root:
            text = f"a symbolic link leads to {real_file}, out of the data folder"
            remedy = "put the file there, or use --follow-links if the data is yours"
            raise InputError(text, where=file, remedy=remedy)


def _require_new(root: Path, destination: Path) -> None:
    """Raises InputError if there is no room for the result."""
    is_empty_folder = destination.is_dir() and not any(destination.iterdir())
    if destination.exists() and not is_empty_folder:
        remedy = "choose another place"
        raise InputError("already exists", where=destination, remedy=remedy)
    _require_apart(root.parent if root.is_file() else root, destination)


def _require_apart(folder: Path, destination: Path) -> None:
    """Raises InputError if the result would be written into a folder of the source."""
    if destination.resolve().is_relative_to(folder.resolve()):
        text = f"is inside of {folder}, which stays as it is"
        raise InputError(text, where=destination, remedy="choose another place")


def _fitted(splits: Splits, form: str) -> tuple[Splits, list[str]]:
    """What the format can hold of the splits, and sentences on the rest. Raises InputError if names
    would be lost."""
    if form == "coco":
        return splits, []
    notes = []
    if any(_has_outlines(annotations) for annotations in splits.values()):
        notes.append(
            f"{form} has no areas: objects count as small, medium and large by their boxes"
        )
    if form == "voc":
        _require_distinct_names(splits)
        _require_separate_labels(list(splits.values()))  # one folder for all splits
        return splits, notes + _unused_classes(splits)
    for annotations in splits.values():
        _require_separate_labels([annotations])
    _require_same_classes(splits)
    crowds = 0
    objects: Splits = {}
    for split, annotations in splits.items():
        crowds += int(annotations.iscrowd.sum())
        objects[split] = without_crowds(annotations)
    if crowds:
        notes.append(f"yolo has no crowds and no objects to ignore: {crowds} are left out")
    return objects, notes


def _require_distinct_names(splits: Splits) -> None:
    """Raises InputError if a format that knows classes by their names alone would make several
    one."""
    for annotations in splits.values():
        counts = Counter(annotations.class_names)
        for name, count in counts.items():
            if count > 1:
                text = f"voc has no ids of classes: {count} called {name!r} would become one"
                remedy = "give each its own name"
                raise InputError(text, where=annotations.source, remedy=remedy)


def _unused_classes(splits: Splits) -> list[str]:
    """A sentence on the classes that VOC cannot name, since no object has them."""
    listed: set[str] = set()
    used: set[str] = set()
    for a in splits.values():
        listed.update(a.class_names)
        used.update(_classes(a))
    unused = listed - used
    if not unused:
        return []
    example = min(unused)
    return [
        f"voc lists no classes: {len(unused)} without objects, such as {example!r}, are left out"
    ]


def _require_same_classes(splits: Splits) -> None:
    """Raises InputError if the splits list different classes."""
    first, *others = splits
    class_names = splits[first].class_names
    for split in others:
        annotations = splits[split]
        if annotations.class_names != class_names:
            text = f"{split} lists other classes than {first}, yolo has one list for all"
            raise InputError(text, where=annotations.source, remedy="make them the same")


def without_crowds(annotations: Annotations) -> Annotations:
    """All images, and the objects that are no crowds."""
    all_images = np.ones(len(annotations), bool)
    return annotations.only(all_images, ~annotations.iscrowd)


def _has_outlines(annotations: Annotations) -> bool:
    """Whether the areas are not those of the boxes."""
    boxes = annotations.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1)
    return not np.allclose(annotations.area, areas, rtol=0.01)


def _require_separate_labels(parts: list[Annotations]) -> None:
    """Raises InputError if two images would share a label file."""
    name_of: dict[str, str] = {}
    for annotations in parts:
        for name in _names(annotations):
            stem, _ = posixpath.splitext(name)
            if stem in name_of:
                text = f"{name_of[stem]!r} and {name!r} would share one label file"
                remedy = "rename one of them"
                raise InputError(text, where=annotations.source, remedy=remedy)
            name_of[stem] = name


def _require_same(meant: Annotations, root: Path, split: Split, form: str) -> None:
    """Raises InputError if what was written into `root` does not read as what was meant."""
    reason = ""
    try:
        written = read_annotations(root, split)
        written.require_sound()
        if not _are_same(meant, written):
            reason = "it reads differently"
    except InputError as error:  # it names a file that is deleted in a moment
        reason = error.text
    if reason:
        remedy = "are the names of its classes empty, or have they blanks at an end?"
        raise InputError(f"{form} cannot hold it ({reason})", where=meant.source, remedy=remedy)


def _are_same(meant: Annotations, written: Annotations) -> bool:
    if _names(meant) != _names(written):
        return False
    if not np.array_equal(meant.first, written.first):
        return False
    if not np.allclose(meant.boxes, written.boxes, rtol=0, atol=1e-3):
        return False
    return _classes(meant) == _classes(written)


def _names(annotations: Annotations) -> list[str]:
    return [os.fsdecode(name) for name in annotations.names]


def _classes(annotations: Annotations) -> list[str]:
    """The name of the class of each object."""
    names = np.array(annotations.class_names)
    return names[annotations.labels].tolist()


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, destination)


def _put_images(annotations: Annotations, folder: Path, put: Put) -> None:
    for name in dict.fromkeys(_names(annotations)):
        source = annotations.folder / name
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        put(source, file)


def _decimals(values: np.ndarray) -> np.ndarray:
    """float32 as float64 with the fewest digits that mean the same float32: 0.1 instead of
    0.10000000149."""
    return values.astype("S16").astype(np.float64)


class _Scene(NamedTuple):
    """An image, and which objects are on it."""

    name: str  # path below the folder
    height: int
    width: int
    objects: slice


def _scenes(annotations: Annotations) -> Iterator[_Scene]:
    for i, name in enumerate(_names(annotations)):
        height, width = annotations.sizes[i].tolist()
        objects = annotations.objects_of(i)
        yield _Scene(name, height, width, objects)


def _write_coco(splits: Splits, root: Path, put: Put) -> None:
    """annotations/instances_{split}.json, images in {split}/."""
    folder = root / "annotations"
    folder.mkdir()
    for split, a in splits.items():
        _put_images(a, root / split, put)
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
        for category_id, name in zip(a.category_ids, a.class_names, strict=True):
            categories.append({"id": category_id, "name": name})
        document = {
            "images": images,
            "annotations": _coco_annotations(a),
            "categories": categories,
        }
        file = folder / f"instances_{split}.json"
        file.write_text(json.dumps(document))


def _coco_annotations(a: Annotations) -> list[dict[str, Any]]:
    """The objects, under their ids if these are unique."""
    count = len(a.object_ids)
    ids = a.object_ids
    if len(np.unique(ids)) < count:
        ids = np.arange(1, count + 1)
    corners = _decimals(a.boxes)
    starts = corners[:, :2]
    sides = (corners[:, 2:] - starts).round(9)
    boxes = np.concatenate([starts, sides], axis=1).tolist()
    areas = _decimals(a.area).tolist()
    image_ids = a.ids[a.image_of()].tolist()
    annotations = []
    for i in range(count):
        label = a.labels[i]
        annotations.append(
            {
                "id": int(ids[i]),
                "image_id": image_ids[i],
                "category_id": a.category_ids[label],
                "bbox": boxes[i],
                "area": areas[i],
                "iscrowd": int(a.iscrowd[i]),
            }
        )
    return annotations


def _write_yolo(splits: Splits, root: Path, put: Put) -> None:
    """data.yaml, images in images/{split}/, labels in labels/{split}/; classes are numbered from
    0."""
    config: dict[str, Any] = {}
    class_names: tuple[str, ...] = ()
    for split, a in splits.items():
        config[split] = f"images/{split}"
        class_names = a.class_names  # the same in all splits
        _put_images(a, root / "images" / split, put)
        for scene in _scenes(a):
            image = f"images/{split}/{scene.name}"
            file = root / label_name(image)
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = _yolo_lines(a, scene)
            if lines:
                text = "".join(lines)
                file.write_text(text)
    config["names"] = dict(enumerate(class_names))
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    config_file = root / "data.yaml"
    config_file.write_text(settings, encoding="utf-8")


def _yolo_lines(a: Annotations, scene: _Scene) -> list[str]:
    """A line `class cx cy w h` for each object of an image."""
    size = [scene.width, scene.height, scene.width, scene.height]
    pixels = a.boxes[scene.objects].astype(np.float64)
    fractions = pixels / size
    starts = fractions[:, :2]
    ends = fractions[:, 2:]
    centers = (starts + ends) / 2
    sides = ends - starts
    boxes = np.concatenate([centers, sides], axis=1).tolist()
    labels = a.labels[scene.objects].tolist()
    lines = []
    for label, box in zip(labels, boxes, strict=True):
        numbers = " ".join(f"{value:.14g}" for value in box)
        lines.append(f"{label} {numbers}\n")
    return lines


def _write_voc(splits: Splits, root: Path, put: Put) -> None:
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
    """The annotation of an image; `boxes` are those of all objects, in VOC's pixels."""
    tree = ElementTree.Element("annotation")
    if scene.name.isprintable():  # XML holds no other bytes; images are found without it
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
        for side, value in zip(_VOC_SIDES, boxes[i].tolist(), strict=True):
            number = f"{value:.12g}"
            _add(box, **{side: number})
    ElementTree.indent(tree)
    return tree


def _add(element: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


_WRITERS = {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}
