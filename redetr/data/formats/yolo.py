"""Data sets in YOLO format: `data.yaml` names classes and splits, and `labels/`, next to `images/`,
has a text file for each image.

A line is `class cx cy w h`, a box in fractions of the image as viewers show it, rotated according
to its EXIF tag: so do Ultralytics and the tools that draw labels. A longer line, `class x y x y x y
...`, is an outline or an oriented box, whose bounding box is used. Boxes and outlines are turned to
the stored pixels.
With `kpt_shape: [K, 2]` or `[K, 3]` in the YAML file, it is a box with keypoints, and the box is
used. If lines look like keypoints but there is no `kpt_shape`, they are refused, unless the file
states `task: segment` or `task: obb`. An image without a label file has no objects. Category ids
are the class numbers, and image ids count the sorted names. If there is no YAML file, `obj.data` or
`classes.txt` is read instead: see `darknet`.
"""

import os
import posixpath
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from redetr.data.annotations import SPLITS, Annotations, Images, Objects, Split, assemble
from redetr.data.faults import Fault, Rows, Severity
from redetr.data.formats.darknet import (
    darknet_config,
    darknet_file,
    data_root,
    is_darknet,
    other_names,
)
from redetr.data.formats.labels import label_elsewhere, label_faults, label_names
from redetr.data.formats.listing import contents_of
from redetr.data.formats.paths import read_file, read_frames
from redetr.data.formats.yolo_lines import BAD, KEY_POINTS, OUTLINE, KeyPoints, Lines
from redetr.data.formats.yolo_places import KEYS, ImagePaths, entries_of
from redetr.data.images import problem_of
from redetr.data.mask_columns import MaskBuilder
from redetr.data.orientation import stored_points, stored_sides
from redetr.errors import InputError
from redetr.wording import counted

_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NULLS = ("", "~", "null", "Null", "NULL")
_LISTED = 10  # numbers of classes in an error
_OUTLINE_TASKS = ("segment", "obb")  # values of `task` with which long lines are outlines


def yolo_splits(root: Path) -> list[Split]:
    """The splits that `data.yaml` in the folder `root` names, or `root` itself, if it is a file.
    The test split is included only if it exists, since tools always name it.

    Raises InputError if the file cannot be read.
    """
    file = root if root.is_file() else _yaml_file(root)
    return [] if file is None else _splits(file)


def darknet_splits(root: Path) -> list[Split]:
    """The splits of a folder in YOLO format without a YAML file. Raises InputError like
    `yolo_splits`."""
    file = darknet_file(root)
    return [] if file is None else _splits(file)


def _splits(file: Path) -> list[Split]:
    config = _parse_config(file)
    splits: list[Split] = []
    for split in SPLITS:
        entries = entries_of(file, config, split)
        is_there = bool(entries)
        if split == "test":
            is_there = any(entry.inside for entry in ImagePaths(file, config, []).of(split))
        if is_there:
            splits.append(split)
    return splits


def yolo_files(root: Path) -> list[str]:
    """The names of the YAML files in the folder that may describe it. The first one is used."""
    return [name for name in _FILES if (root / name).is_file()]


def yolo_sought(split: Split, file: str = _FILES[0]) -> str:
    """What a folder needs for a split in this format, in words."""
    return f"{' or '.join(KEYS[split])} in {file}"


def read_yolo(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split of the folder or YAML file `root`, with masks if there is a
    builder for them.

    Outlines are masks, unless the file states `task: obb`. Raises InputError if the split is
    missing, or if `data.yaml` does not name classes and images.
    """
    file = _locate(root)
    if file is None:
        raise InputError(f"no {split} split: looked for {yolo_sought(split)}", where=root)
    config = _parse_config(file)
    classes = _classes(file, config)
    faults: list[Fault] = []
    below, names = _find_images(file, config, split, faults)
    root = data_root(file)
    folder = root / below
    images, orientations = _read_images(folder, names, faults)
    prefix = "" if below == "." else f"{below}/"
    image_paths = [prefix + name for name in names]
    labels = label_names(root, image_paths)
    faults += label_faults(root, below, image_paths, labels)
    label_files = [f"{root}/{label}" for label in labels]
    has_outlines = config.get("task") in _OUTLINE_TASKS
    key_points = None if has_outlines else _key_points(file, config)
    if config.get("task") == "obb":
        masks = None
    faults += _class_faults(file, config, classes)
    lines = Lines(label_files, key_points, masks)
    if not lines.any_file:
        text = f"no image of {split} has a label file"
        remedy = "add them: otherwise all images count as empty"
        elsewhere = label_elsewhere(root, labels[0])
        severity: Severity = "warning"
        if elsewhere:
            severity = "error"
            remedy = f"{elsewhere} may be one: move its folder there"
        faults.append(Fault(severity, "labels-missing", Path(label_files[0]), "", text, remedy))
    rows = Rows(len(lines.image), faults, lines.locate)
    _judge_lines(rows, lines, classes, has_outlines)
    has_masks = masks is not None and masks.for_training
    objects = _read_objects(rows, lines, images.sizes, orientations, list(classes), file, has_masks)
    if masks is not None:
        masks.scale(images.sizes[objects.image, ::-1], orientations[objects.image])
        objects.masks = masks
    return replace(assemble(file, classes, images, objects, faults), is_upright=True)


def _read_images(folder: Path, names: list[str], faults: list[Fault]) -> tuple[Images, np.ndarray]:
    """The images, and their orientations, int64 `[N]`."""
    rows = Rows(len(names), faults, lambda i: (folder / names[i], ""))
    sizes, orientations = read_frames(folder, names)
    unreadable = sizes[:, 0] == 0
    rows.fault(
        "image-unreadable",
        unreadable,
        lambda i: problem_of(folder / names[i]),
        "replace the file, or delete it with its labels (train --skip-unreadable leaves it out)",
    )
    rows.fault(
        "image-upright",
        orientations != 1,
        lambda i: (
            f"has the EXIF orientation {orientations[i]}: its labels are read in the upright image,"
            " as YOLO tools show it; training and evaluation use the stored pixels, with these"
            " boxes turned to them"
        ),
        "see the sheet of --report; to train on upright images, save them rotated, without the tag",
        "note",
    )
    return Images.numbered(rows, folder, names, sizes, unreadable), orientations


def _locate(root: Path) -> Path | None:
    if root.is_file():
        return root
    return _yaml_file(root) or darknet_file(root)


def _yaml_file(root: Path) -> Path | None:
    files = yolo_files(root)
    return root / files[0] if files else None


class _Loader(yaml.BaseLoader):
    """Keeps numbers as text, drops settings without a value, and refuses a key that occurs twice,
    of which YAML would silently use the last value."""

    settings: Any = None  # the node of the mapping that is not inside another value

    def construct_document(self, node: yaml.Node) -> Any:
        self.settings = node
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.value in seen:
                text = f"{key.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        mapping = super().construct_mapping(node, deep)
        if node is self.settings:
            # Only here: a class in `names` may be called null, as it may be called 1.
            for name, value in node.value:
                if _is_null(value):
                    del mapping[name.value]
        return mapping


def _is_null(node: yaml.Node) -> bool:
    """Whether a value is YAML's null: one of its words without quotes, or nothing."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _parse_config(file: Path) -> dict[str, Any]:
    """The content of the file. Numbers are kept as text, so that a class may be called 1 or no."""
    if is_darknet(file):
        return darknet_config(file)
    try:
        config = yaml.load(read_file(file), Loader=_Loader)
    # ValueError: not UTF-8. RecursionError: nested too deeply.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.reader.ReaderError | UnicodeDecodeError):
            remedy = "save it in UTF-8, without control characters"
            raise InputError(f"not a text: {reason}", where=file, remedy=remedy) from None
        raise InputError(f"not YAML: {reason}", where=file, remedy="fix its YAML syntax") from None
    if not isinstance(config, dict):
        remedy = "write names, train and val into it"
        raise InputError("holds no settings", where=file, remedy=remedy)
    return config


def _classes(file: Path, config: dict[str, Any]) -> dict[int, str]:
    """The class names by number, sorted."""
    names = config.get("names")
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict):
        names = {}
    if not names or not all(isinstance(name, str) for name in names.values()):
        text = "names is missing or not a list of strings"
        if isinstance(config.get("names"), str) and config["names"]:
            text = f"names is {reprlib.repr(config['names'])}, not a list"
        remedy = "write the names of the classes, as in names: [cat, dog]"
        raise InputError(text, where=file, remedy=remedy)
    classes = []
    for text, name in names.items():
        is_number = isinstance(text, str) and text.isdecimal() and len(text) < 10
        if not is_number:
            problem = f"{reprlib.repr(text)} in names is not a class number"
            raise InputError(problem, where=file, remedy="number them from 0")
        number = int(text)
        classes.append((number, name))
    return dict(sorted(classes))


def _class_faults(file: Path, config: dict[str, Any], classes: dict[int, str]) -> list[Fault]:
    """Warnings if `nc` is not the number of names, or if a list of class names next to the file
    differs."""
    faults = []
    stated = config.get("nc")
    if not isinstance(stated, str) or not stated.isdecimal():
        stated = ""
    if stated and int(stated[:9]) != len(classes):
        text = f"nc: {stated[:9]}, but names has {counted(len(classes), 'class', 'classes')}"
        remedy = "the names are used: check whether one is missing or was split"
        faults.append(Fault("warning", "classes-differ", file, "", text, remedy))
    is_numbered_from_0 = list(classes) == list(range(len(classes)))
    if is_numbered_from_0 and not is_darknet(file):
        other = other_names(data_root(file), list(classes.values()))
        if other is not None:
            faults.append(other)
    return faults


def _key_points(file: Path, config: dict[str, Any]) -> KeyPoints | None:
    """The value of `kpt_shape`; None if it is missing. Raises InputError if it is not valid."""
    shape = config.get("kpt_shape")
    if shape is None:
        return None
    numbers = []
    for text in shape:
        if isinstance(text, str) and text.isdecimal() and len(text) < 5:
            numbers.append(int(text))
    is_pair = isinstance(shape, list) and len(shape) == len(numbers) == 2
    if not is_pair or numbers[0] == 0 or numbers[1] not in (2, 3):
        text = f"kpt_shape {reprlib.repr(shape)} is not [keypoints, 2] or [keypoints, 3]"
        raise InputError(text, where=file, remedy="correct it, or delete it")
    return KeyPoints(*numbers)


def _find_images(
    file: Path, config: dict[str, Any], split: Split, faults: list[Fault]
) -> tuple[str, list[str]]:
    """The folder of the images of a split, relative to the data folder, and their sorted paths
    below it."""
    root = data_root(file)
    image_paths = ImagePaths(file, config, faults)
    entries = entries_of(file, config, split)
    locations = image_paths.require(split)
    folder = "."
    if len(locations) == 1 and (root / locations[0]).is_dir():
        folder = locations[0]
    names: set[str] = set()
    for location in locations:
        if (root / location).is_file():
            names.update(image_paths.listed(location))
            continue
        below = posixpath.relpath(location, folder)
        for name in contents_of(root / location).files:
            names.add(posixpath.normpath(f"{below}/{name}"))
    if not names:
        for fault in faults:
            if fault.severity == "error":  # such as listed images outside the folder
                raise fault.to_error()
        text = f"{split} holds no images ({reprlib.repr(entries)})"
        raise InputError(text, where=file, remedy="put them there")
    return folder, sorted(names, key=os.fsencode)


def _judge_lines(rows: Rows, lines: Lines, classes: dict[int, str], has_outlines: bool) -> None:
    """Adds faults for lines that cannot be read, or whose columns are ambiguous. `has_outlines`:
    the YAML file states that long lines are outlines."""
    kind = np.array(lines.kind, np.int8)
    is_bad = kind == BAD
    if is_bad.any():
        numbers_of = {name: number for number, name in classes.items()}
        problem, remedy = lines.problem(int(is_bad.argmax()), numbers_of)

        def neither(i: int) -> str:
            return f"{lines.quoted(i)} is neither a box nor an outline: {problem}"

        rows.fault("line-invalid", is_bad, neither, remedy)
    doubt = None if has_outlines else lines.doubt()
    if doubt is not None:
        is_doubtful = (kind == OUTLINE) & (np.array(lines.columns) == doubt.columns)
        rows.fault("line-ambiguous", is_doubtful, lambda i: doubt.text, doubt.remedy)
    strays = lines.stray_key_points()
    if strays is not None:
        first, count, sample = strays
        is_stray = np.zeros(len(kind), bool)
        is_stray[first] = True
        text = f"its keypoints lie outside its box, as in {count:,} of {counted(sample, 'line')}"
        remedy = "is the box given as corners? write class cx cy w h before the keypoints"
        rows.fault("key-points-outside", is_stray, lambda i: text, remedy, "warning")


def _listed(numbers: list[int]) -> str:
    """The numbers of classes, in ascending order: all of them, or if there are many, the first and
    the last."""
    if len(numbers) > _LISTED:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _read_objects(
    rows: Rows,
    lines: Lines,
    sizes: np.ndarray,
    orientations: np.ndarray,
    classes: list[int],
    file: Path,
    has_masks: bool,
) -> Objects:
    count = len(lines.image)
    kind = np.array(lines.kind, np.int8)
    image = np.array(lines.image, np.int64)
    values = np.array(lines.values, np.float64).reshape(-1, 5)
    numbers = values[:, 0]
    labels = np.searchsorted(classes, numbers).clip(max=len(classes) - 1)
    unknown = np.array(classes)[labels] != numbers
    rows.fault(
        "class-unknown",
        unknown,
        lambda i: f"{lines.quoted(i)} does not begin with a class of {file}",
        f"write one of its numbers ({_listed(classes)}), or add a name",
    )
    if not has_masks:
        remedy = "its bounding box is used"
        rows.fault("outline", kind == OUTLINE, lambda i: "is an outline", remedy, "note")
    rows.fault(
        "key-points", kind == KEY_POINTS, lambda i: "has keypoints", "its box is used", "note"
    )
    return Objects(
        rows=rows,
        image=image,
        labels=labels,
        corners=_corners(values[:, 1:], sizes[image, ::-1], orientations[image]),
        iscrowd=np.zeros(count, bool),
        area=np.full(count, -1, np.float32),
        ids=np.array(lines.line, np.int64),
        kind="line",
        quoted=lines.quoted,
        remedy="write class cx cy w h as fractions of the image",
        box_format="cxcywh",
    )


def _corners(boxes: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Boxes as xyxy in stored pixels, float64 `[A, 4]`, from cxcywh fractions of upright images.
    `sizes` `[A, 2]` are width and height of their images as stored, `orientations` `[A]` theirs."""
    centers = boxes[:, :2]
    half_sides = boxes[:, 2:] / 2
    if (orientations != 1).any():
        centers = stored_points(centers, orientations)
        half_sides = stored_sides(half_sides, orientations)
    starts = centers - half_sides
    ends = centers + half_sides
    fractions = np.concatenate([starts, ends], axis=1)
    corners = fractions * np.tile(sizes, 2)
    return corners.round(9)  # px; whole numbers that were stored as fractions are whole again
