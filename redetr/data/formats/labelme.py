"""Data sets in LabelMe format: a JSON file next to each image.

The splits are such files in `train/`, `val/` (or `valid/`) and `test/`, or in folders with these
names in `images/`. Files in the folder itself or in `images/` are the train split, and so are JSON
files in `annotations/`, `labels/` or `json/` with images in `images/`. The box of an object is
tight around its polygon, rectangle, circle or mask. If masks are read, polygons, circles (as
polygons with 64 corners) and masks have one, and rectangles have none. Shapes with the same label
and `group_id` are one object. Objects with a shape that is marked `difficult` are ignored in
evaluation (`iscrowd` is True). Points and lines are not objects, nor are shapes with the label
`__ignore__` or `_background_`. Classes are the labels in all files, sorted, with ids from 1; image
ids count the sorted names.
"""

import json
import posixpath
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Images, Objects, Split, assemble
from redetr.data.faults import Fault, Rows, listed
from redetr.data.formats.flags import flag_of
from redetr.data.formats.labelme_shapes import (
    MAY_CROSS,
    NO_OBJECTS,
    Extent,
    Polygons,
    around,
    extent_of,
    polygons_of,
    shape_problem,
)
from redetr.data.formats.listing import (
    USUAL_FOLDERS,
    contents_of,
    files_below,
    files_in,
    repeats,
)
from redetr.data.formats.paths import Listing, composed, read_file, read_sizes
from redetr.data.formats.segmentations import parse_segmentation
from redetr.data.images import IMAGE_SUFFIXES, cached_copies, problem_of
from redetr.data.mask_columns import MaskBuilder
from redetr.data.relative_paths import path_inside
from redetr.errors import InputError

_JSON = (".json",)
_JSON_FOLDERS = ("annotations", "labels", "json")  # apart from images/
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')  # a key, and not a class of that name in other JSON
_LARGEST = 1e9  # px
_TRIED = 5  # files that are read to recognise a folder in LabelMe format
# What LabelMe's own converters do not take for classes.
_NO_CLASSES = ("__ignore__", "_background_")


def labelme_splits(root: Path) -> list[Split]:
    """The splits of the folder that are in LabelMe format."""
    return [split for split in SPLITS if _locate(root, split) is not None]


def labelme_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    return f"{USUAL_FOLDERS[split][0]}/*.json beside images"


def read_labelme(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them. Raises InputError if
    the split is missing, or if no file contains an object."""
    folder = _locate(root, split)
    if folder is None:
        raise InputError(f"no {split} split: looked for {labelme_sought(split)}", where=root)
    faults: list[Fault] = []
    files = _files(root, folder)
    scenes = [_read_scene(root, file, masks is not None) for file in files]
    _report_other_files(root, scenes, faults)
    scenes = [scene for scene in scenes if scene.problem != _OTHER_FILE]
    listing = Listing(root)
    for scene in scenes:
        scene.image = _find_image(listing, scene)
    scenes.sort(key=lambda scene: (scene.image, scene.file))
    images = _read_images(root, scenes, faults)
    classes = _classes(root, split, scenes)
    if masks is not None:
        for scene in scenes:
            for polygons in scene.masks:
                masks.add(parse_segmentation(polygons))
    objects = _read_objects(root, scenes, classes, faults)
    objects.masks = masks
    return assemble(folder, dict(enumerate(classes, start=1)), images, objects, faults)


def _locate(root: Path, split: Split) -> Path | None:
    """The folder of the split; None if there is none."""
    for parent in (root, root / "images"):
        for name in USUAL_FOLDERS[split]:
            if _have_shapes(files_below(parent / name, _JSON)):
                return parent / name
    if split != "train" or _locate(root, "val") is not None:
        return None
    for name in ("", "images", *_JSON_FOLDERS):
        if _have_shapes(files_in(root / name, _JSON)):
            return root / name
    return None


def _have_shapes(files: Iterable[str]) -> bool:
    """Whether one of the first files has a list of shapes."""
    return any(_SHAPES.search(read_file(Path(file))) for file in islice(files, _TRIED))


def _files(root: Path, folder: Path) -> list[str]:
    """The JSON files below the folder, relative to the root, without those of a split that has a
    folder inside it."""
    below = folder.relative_to(root).as_posix()
    contents = contents_of(folder, _JSON)
    files = [posixpath.normpath(posixpath.join(below, name)) for name in contents.files]
    inner_folders = []
    for split in SPLITS:
        other = _locate(root, split)
        if other is not None and other != folder and other.is_relative_to(folder):
            inner_folders.append(f"{other.relative_to(root).as_posix()}/")
    return [file for file in files if not file.startswith(tuple(inner_folders))]


@dataclass
class _Scene:
    """The content of a file; `problem` says why it cannot be read."""

    file: str  # relative to the root
    image_path: str = ""  # as the file states it
    size: tuple[int, int] = (0, 0)  # height, width; 0 = not stated
    labels: list[str] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # why a shape has no box, or ""
    numbers: list[int] = field(default_factory=list)  # of the shape, from 1
    difficult: list[bool] = field(default_factory=list)
    may_cross: list[bool] = field(default_factory=list)  # round and rotated shapes
    unclear: list[Any] = field(default_factory=list)  # a mark that is neither yes nor no, or None
    masks: list[Polygons | None] = field(default_factory=list)  # None for boxes
    left_out: list[str] = field(default_factory=list)  # kinds of shapes that are not objects
    without_class: list[str] = field(default_factory=list)  # labels of shapes that are no objects
    grouped: int = 0  # shapes that are parts of another object
    with_masks: bool = False  # whether masks are read
    is_embedded: bool = False  # whether the image is in the file itself
    problem: str = ""
    image: str = ""  # relative to the root; empty if it is not there


_OTHER_FILE = "lists no shapes"


def _read_scene(root: Path, file: str, with_masks: bool = False) -> _Scene:
    scene = _Scene(file, with_masks=with_masks)
    try:
        content = json.loads(read_file(root / file))
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        scene.problem = f"not JSON: {error}"
        return scene
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        scene.problem = _OTHER_FILE
        return scene
    image_path = content.get("imagePath")
    scene.image_path = image_path if isinstance(image_path, str) else ""
    scene.is_embedded = bool(content.get("imageData"))
    height = content.get("imageHeight")
    width = content.get("imageWidth")
    if _is_size(height) and _is_size(width):
        scene.size = (height, width)
    group_of: dict[tuple[str, Any], int] = {}
    for number, shape in enumerate(shapes, start=1):
        _add_shape(scene, shape if isinstance(shape, dict) else {}, number, group_of)
    return scene


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < _LARGEST


def _add_shape(
    scene: _Scene, shape: dict[str, Any], number: int, group_of: dict[tuple[str, Any], int]
) -> None:
    """Adds an object, or extends the object with the same group."""
    kind = shape.get("shape_type") or "polygon"  # LabelMe 3 may not state it
    if kind in NO_OBJECTS:
        scene.left_out.append(kind)
        return
    name = _label_of(shape)
    if name in _NO_CLASSES:
        scene.without_class.append(name)
        return
    problem = shape_problem(kind, shape.get("points"))
    extent = extent_of(kind, shape.get("points"))
    polygons = polygons_of(kind, shape) if scene.with_masks else None
    mark = shape.get("difficult")
    is_difficult = flag_of(mark)
    unclear = mark if is_difficult is None else None
    group = shape.get("group_id")
    has_group = isinstance(group, int | str) and group != ""
    if has_group and (name, group) in group_of:
        index = group_of[name, group]
        if problem:
            scene.numbers[index] = number  # for the message
            scene.problems[index] = problem
        scene.extents[index] = around(scene.extents[index], extent)
        scene.difficult[index] |= is_difficult is True
        scene.may_cross[index] |= kind in MAY_CROSS
        if scene.unclear[index] is None:
            scene.unclear[index] = unclear
        earlier = scene.masks[index]
        scene.masks[index] = None
        if earlier is not None and polygons is not None:
            scene.masks[index] = earlier + polygons
        scene.grouped += 1
        return
    if has_group:
        group_of[name, group] = len(scene.labels)
    scene.labels.append(name)
    scene.extents.append(extent)
    scene.problems.append(problem)
    scene.numbers.append(number)
    scene.difficult.append(is_difficult is True)
    scene.may_cross.append(kind in MAY_CROSS)
    scene.unclear.append(unclear)
    scene.masks.append(polygons)


def _label_of(shape: dict[str, Any]) -> str:
    """The label of a shape, which may be a whole number; empty if it has none."""
    label = shape.get("label")
    if type(label) is int:
        return str(label)
    return label.strip() if isinstance(label, str) else ""


def _report_other_files(root: Path, scenes: list[_Scene], faults: list[Fault]) -> None:
    rows = Rows(len(scenes), faults, lambda i: (root / scenes[i].file, ""))
    rows.fault(
        "file-other",
        [scene.problem == _OTHER_FILE for scene in scenes],
        lambda i: "lists no shapes, as LabelMe's files do, and is skipped",
        "move it elsewhere",
        "warning",
    )


def _find_image(listing: Listing, scene: _Scene) -> str:
    """The image of a file, relative to the root. It is found by the path in the file, by the name
    in that path, or by the name of the file; empty if there is none."""
    parent, name = posixpath.split(scene.file)
    stated = scene.image_path.replace("\\", "/")
    candidates = []
    if stated:
        candidates.append(posixpath.join(parent, stated))
        candidates.append(posixpath.join(parent, posixpath.basename(stated)))
    stem, _ = posixpath.splitext(name)
    folders = [parent]
    if parent in _JSON_FOLDERS:
        folders += ["images", "."]
        stated_name = posixpath.basename(stated)
        candidates += [posixpath.join(folder, stated_name) for folder in folders if stated_name]
    for folder in folders:
        stored = listing.files(folder)
        for file in sorted(stored - cached_copies(stored)):
            other_stem, suffix = posixpath.splitext(file)
            if composed(other_stem) == composed(stem) and suffix.lower() in IMAGE_SUFFIXES:
                candidates.append(posixpath.join(folder, file))
    for candidate in candidates:
        inside = path_inside(candidate)
        spelled = listing.spelled(inside) if inside else ""
        if spelled:
            return spelled
    return ""


def _read_images(root: Path, scenes: list[_Scene], faults: list[Fault]) -> Images:
    rows = Rows(len(scenes), faults, lambda i: (root / scenes[i].file, ""))
    rows.fault(
        "json-invalid",
        [scene.problem != "" for scene in scenes],
        lambda i: scenes[i].problem,
        "save it in LabelMe again",
    )
    _judge_missing(rows, scenes)
    rows.fault(
        "image-twice",
        repeats(scene.image for scene in scenes),
        lambda i: f"its image {scenes[i].image} has another file as well",
        "keep one of them",
    )
    names = [scene.image for scene in scenes]
    sizes = np.array([scene.size for scene in scenes], np.int64).reshape(-1, 2)
    unstated = np.flatnonzero((sizes[:, 0] == 0) & rows.good)
    sizes[unstated] = read_sizes(root, [names[i] for i in unstated])
    unreadable = (sizes[:, 0] == 0) & rows.good
    rows.fault(
        "size-invalid",
        unreadable,
        lambda i: f"states no size, and its image cannot be read: {problem_of(root / names[i])}",
        "write imageHeight and imageWidth, or replace the image",
    )
    return Images.numbered(rows, root, names, sizes, unreadable)


def _judge_missing(rows: Rows, scenes: list[_Scene]) -> None:
    """Adds faults for images that are not there."""

    def text(i: int) -> str:
        missing = f"its image {reprlib.repr(scenes[i].image_path)} is missing"
        return f"{missing}, but for the copy in imageData" if scenes[i].is_embedded else missing

    is_missing = [not scene.image for scene in scenes]
    rows.fault("image-missing", is_missing, text, "put it beside this file")


def _classes(root: Path, split: Split, scenes: list[_Scene]) -> list[str]:
    """The labels in all splits, sorted."""
    names: set[str] = set()
    for scene in scenes:
        names.update(scene.labels)
    for other in SPLITS:
        folder = _locate(root, other) if other != split else None
        if folder is not None:
            for file in _files(root, folder):
                names.update(_read_scene(root, file).labels)
    names.discard("")
    if not names:
        raise InputError("no file contains an object", where=root, remedy="annotate some")
    return sorted(names)


def _read_objects(
    root: Path, scenes: list[_Scene], classes: list[str], faults: list[Fault]
) -> Objects:
    counts = np.array([len(scene.labels) for scene in scenes], np.int64)
    image_of = np.repeat(np.arange(len(scenes)), counts)
    numbers = _of_all(scenes, "numbers")
    labels = _of_all(scenes, "labels")

    def locate(i: int) -> tuple[Path, str]:
        scene = scenes[image_of[i]]
        return root / scene.file, f"shape {numbers[i]} ({reprlib.repr(labels[i])})"

    count = len(labels)
    rows = Rows(count, faults, locate)
    rows.fault(
        "class-missing",
        [not label for label in labels],
        lambda i: "has no label",
        "write the name of its class",
    )
    corners = _read_corners(rows, _of_all(scenes, "extents"), _of_all(scenes, "problems"))
    _report_marks(rows, _of_all(scenes, "unclear"))
    _note_shapes(root, scenes, faults)
    label_of = {name: label for label, name in enumerate(classes)}
    return Objects(
        rows=rows,
        image=image_of,
        labels=np.array([label_of.get(label, -1) for label in labels], np.int64),
        corners=corners,
        iscrowd=np.array(_of_all(scenes, "difficult"), bool),
        area=np.full(count, -1, np.float32),
        ids=np.array(numbers, np.int64),
        kind="shape",
        quoted=lambda i: f"the box {corners[i].round(2).tolist()} around it",
        remedy="was the image resized? restore the one that was annotated",
        box_format="xyxy",
        may_cross=np.array(_of_all(scenes, "may_cross"), bool),
    )


def _of_all(scenes: list[_Scene], name: str) -> list[Any]:
    """What the lists with this name hold of the objects of all scenes."""
    values: list[Any] = []
    for scene in scenes:
        values += getattr(scene, name)
    return values


def _report_marks(rows: Rows, unclear: list[Any]) -> None:
    """Adds a warning for each mark that is neither yes nor no; None for objects without one."""
    rows.fault(
        "flag-invalid",
        [mark is not None for mark in unclear],
        lambda i: f"difficult {reprlib.repr(unclear[i])} is neither 0 nor 1, and counts as 0",
        "write 1 for objects to ignore, 0 for others",
        "warning",
    )


def _read_corners(rows: Rows, extents: list[Extent], problems: list[str]) -> np.ndarray:
    """The boxes of all shapes, xyxy in pixels `[A, 4]`; a fault for each that has a problem."""
    corners = np.array(extents, np.float64).reshape(-1, 4)
    invalid = np.isnan(corners).any(1)
    rows.fault(
        "box-invalid",
        invalid,
        lambda i: problems[i],
        "draw it again, or delete it",
    )
    corners[invalid] = (0, 0, 1, 1)
    return corners


def _note_shapes(root: Path, scenes: list[_Scene], faults: list[Fault]) -> None:
    """Adds notes on shapes that are not objects of their own."""
    lines = [(scene, kind) for scene in scenes for kind in scene.left_out]
    if lines:
        scene, kind = lines[0]
        text = f"a {kind} is not an object and is left out"
        faults.append(
            Fault(
                "warning",
                "shape-left-out",
                root / scene.file,
                "",
                text,
                "draw a rectangle or a polygon",
                len(lines),
                listed(str(root / scene.file) for scene, _ in lines),
            )
        )
    _note_labels(root, scenes, faults)
    groups = [scene for scene in scenes if scene.grouped]
    if groups:
        count = sum(scene.grouped for scene in groups)
        text = "shapes of one label and one group_id are parts of one object"
        remedy = "the box around all of them is used"
        file = root / groups[0].file
        items = listed(str(root / scene.file) for scene in groups)
        faults.append(Fault("note", "shape-grouped", file, "", text, remedy, count, items))


def _note_labels(root: Path, scenes: list[_Scene], faults: list[Fault]) -> None:
    """Adds a note on shapes with a label that is no class."""
    files = []
    for scene in scenes:
        files += [root / scene.file] * len(scene.without_class)
    if not files:
        return
    labels = sorted({label for scene in scenes for label in scene.without_class})
    text = f"shapes with the label {' or '.join(labels)} are not objects and are left out"
    remedy = "nothing to do, or give them the name of a class"
    items = listed(map(str, files))
    faults.append(Fault("note", "label-left-out", files[0], "", text, remedy, len(files), items))
