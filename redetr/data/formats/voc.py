"""Data sets in Pascal VOC format: an XML file for each image, in the encoding that the file states.

The folders are either JPEGImages/, Annotations/ and ImageSets/Main/{train,val,trainval,test}.txt,
or train/, val/ (or valid/) and test/ with images and XML files side by side, at any depth. As in
the devkit, pixels count from 1, and `xmax, ymax` are the last pixels inside, so a box of the whole
image is `1 1 width height`. Boxes are converted to `xmin - 1, ymin - 1, xmax, ymax`. Objects marked
`difficult` are ignored in evaluation, as in the protocol of VOC: `iscrowd` is True. An object with
a `polygon` or a rotated `robndbox` but no `bndbox` gets the box around that; if there is a
`bndbox`, a polygon is compared with it. Masks are in `SegmentationObject/`, see `voc_masks`.
Classes are all names in the XML files of the folder, sorted, with ids from 1; image ids count the
sorted names.
"""

import os
import posixpath
import reprlib
from functools import partial
from pathlib import Path

import numpy as np

from redetr.data.annotations import SPLITS, Annotations, Images, Objects, Split, assemble
from redetr.data.faults import Fault, Rows, listed
from redetr.data.formats.flags import flag_of
from redetr.data.formats.foreign import is_foreign, listed_stem
from redetr.data.formats.listing import contents_of, repeats
from redetr.data.formats.paths import Listing, composed, read_lines, read_sizes
from redetr.data.formats.voc_masks import add_voc_masks
from redetr.data.formats.voc_places import XML, VocLocation, locate_voc, unread_lists, voc_sought
from redetr.data.formats.voc_xml import SIDES, Scene, read_scene
from redetr.data.images import IMAGE_SUFFIXES, cached_copies, problem_of
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError

_REMEDIES = {
    "annotation-missing": "add it, or remove the image from the list",
    "xml-encoding": "save it as UTF-8, or state its encoding in its first line",
    "xml-invalid": "export or copy the annotations again",
}


def read_voc(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them. Raises InputError if
    the split is missing or empty, or if no file contains an object."""
    location = locate_voc(root, split)
    if location is None:
        raise InputError(f"no {split} split: looked for {voc_sought(split)}", where=root)
    faults: list[Fault] = []
    if split == "train" and location.listed is None:
        faults += unread_lists(root)
    files, names, scenes = _read_files(location, faults)
    images = _read_images(location, files, names, scenes, faults)
    classes = _classes(root, set(files), scenes)
    objects = _read_objects(files, scenes, classes, faults)
    if masks is not None:
        _add_masks(location, scenes, images.sizes, objects, masks, faults)
    return assemble(
        location.annotations, dict(enumerate(classes, start=1)), images, objects, faults
    )


def _add_masks(
    location: VocLocation,
    scenes: list[Scene],
    sizes: np.ndarray,
    objects: Objects,
    masks: MaskBuilder,
    faults: list[Fault],
) -> None:
    """Adds masks to the objects, and the boxes around them as outlines."""
    stems = []
    for scene in scenes:
        below = scene.file.relative_to(location.annotations)
        stems.append(below.with_suffix("").as_posix())
    counts = [len(scene.names) for scene in scenes]
    around = add_voc_masks(location.annotations, stems, counts, sizes, masks, faults)
    objects.masks = masks
    assert objects.outlines is not None
    objects.outlines = np.where(np.isnan(around), objects.outlines, around)


def _read_images(
    location: VocLocation,
    files: list[Path],
    names: list[str],
    scenes: list[Scene],
    faults: list[Fault],
) -> Images:
    rows = Rows(len(files), faults, lambda i: (files[i], ""))
    for code, remedy in _REMEDIES.items():
        has_problem = [scene.code == code for scene in scenes]
        rows.fault(code, has_problem, lambda i: scenes[i].problem, remedy)
    rows.fault(
        "image-missing",
        [not name for name in names],
        lambda i: f"{location.images} has no such image",
        "add it, or delete this file",
    )
    sizes = np.array([scene.size for scene in scenes])
    unstated = np.flatnonzero((sizes <= 0).any(1) & rows.good)
    sizes[unstated] = read_sizes(location.images, [names[i] for i in unstated])
    unreadable = (sizes.min(1) <= 0) & rows.good

    def no_size(i: int) -> str:
        problem = problem_of(location.images / names[i])
        return f"states no size, and its image cannot be read: {problem}"

    rows.fault(
        "size-invalid",
        unreadable,
        no_size,
        "write width and height, or replace the image",
    )
    rows.fault(
        "image-twice",
        repeats(names),
        lambda i: f"its image {names[i]} has another file as well",
        "keep one of them",
    )
    return Images.numbered(rows, location.images, names, sizes, unreadable)


def _read_files(
    location: VocLocation, faults: list[Fault]
) -> tuple[list[Path], list[str], list[Scene]]:
    """The annotation files, the path of the image of each (empty if there is none), and its
    content, sorted by image. Raises InputError if there is no file."""
    scene_of: dict[str, Scene] = {}
    others = []
    for stem, file in _files(location, faults).items():
        scene = read_scene(file)
        if location.listed or scene.is_annotation:
            scene_of[stem] = scene
        else:
            others.append(file)
    if others:
        text = "is not an annotation, and is skipped"
        count = len(others)
        items = listed(map(str, others))
        faults.append(
            Fault("note", "xml-other", others[0], "", text, "nothing to do", count, items)
        )
    if not scene_of:
        remedy = "write one name per line, without suffix"
        where = location.listed or location.annotations
        raise InputError("lists no images", where=where, remedy=remedy)
    image_of = _images_of(location, scene_of, faults)
    stems = sorted(scene_of, key=lambda stem: os.fsencode(image_of[stem]))
    scenes = [scene_of[stem] for stem in stems]
    files = [scene.file for scene in scenes]
    names = [image_of[stem] for stem in stems]
    return files, names, scenes


def _images_of(
    location: VocLocation, scene_of: dict[str, Scene], faults: list[Fault]
) -> dict[str, str]:
    """The path of the image of each annotation file; empty if there is none. It is the image with
    the same stem. If there are several, it is the one that the file names, or else the first."""
    listing = Listing(location.images)
    candidates: dict[str, list[str]] = {composed(stem): [] for stem in scene_of}
    for parent in {posixpath.dirname(stem) for stem in scene_of}:
        stored = listing.files(parent)
        for file in sorted(stored - cached_copies(stored)):
            path = posixpath.join(parent, file)
            stem, suffix = posixpath.splitext(path)
            if suffix.lower() in IMAGE_SUFFIXES and composed(stem) in candidates:
                candidates[composed(stem)].append(path)
    image_of = {}
    shared = []
    names_another = []
    for stem, scene in scene_of.items():
        images = candidates[composed(stem)]
        named_image = posixpath.join(posixpath.dirname(stem), scene.image)
        named_image = listing.spelled(named_image) or named_image
        is_named = scene.image != "" and named_image in listing
        if named_image in images or (not images and is_named):
            images = [named_image]
        image_of[stem] = images[0] if images else ""
        shared.append(len(images) > 1)
        names_another.append(is_named and bool(images) and named_image != image_of[stem])
    files = [scene.file for scene in scene_of.values()]
    stems = list(scene_of)

    def names(i: int) -> str:
        listed = ", ".join(candidates[composed(stems[i])])
        return f"{listed} share this file; it is used for the first"

    rows = Rows(len(files), faults, lambda i: (files[i], ""))
    rows.fault(
        "annotation-shared",
        shared,
        names,
        "give each image its own name and XML file",
        "warning",
    )
    rows.fault(
        "filename-differs",
        names_another,
        lambda i: f"its filename names another image; {image_of[stems[i]]} is used",
        "correct filename, or name the file after its image",
        "warning",
    )
    return image_of


def _files(location: VocLocation, faults: list[Fault]) -> dict[str, Path]:
    """The annotation files, by their paths without suffix."""
    folder = location.annotations
    if location.listed:
        return {stem: folder / f"{stem}.xml" for stem in _listed(location.listed, folder, faults)}
    files: dict[str, Path] = {}
    repeated = []
    for path in contents_of(folder, XML).files:
        stem, _ = posixpath.splitext(path)
        if stem in files:
            repeated.append((files[stem], folder / path))
        files[stem] = folder / path
    if repeated:
        first, second = repeated[0]
        text = f"{first.name} beside it is the file of the same image"
        remedy = "keep one of them"
        items = listed(str(file) for _, file in repeated)
        count = len(repeated)
        faults.append(Fault("error", "image-twice", second, "", text, remedy, count, items))
    return files


def _listed(file: Path, folder: Path, faults: list[Fault]) -> list[str]:
    """The paths below the folder of annotations, without suffix, that a list of images names, each
    once."""
    listing = Listing(folder)
    lines = read_lines(file)
    stems: dict[str, None] = {}  # an ordered set
    outside = []
    repeated = []
    foreign = []
    for line in lines:
        stem = listed_stem(line, listing)
        outside.append(line != "" and stem == "")
        repeated.append(stem in stems)
        foreign.append(stem != "" and is_foreign(line))
        if stem:
            stems[stem] = None
    rows = Rows(len(lines), faults, lambda i: (file, f"line {i + 1}"))
    rows.fault(
        "line-twice",
        repeated,
        lambda i: f"{reprlib.repr(lines[i])} is listed twice, and read once",
        "delete the line",
        "note",
    )
    rows.fault(
        "path-outside",
        outside,
        lambda i: f"{reprlib.repr(lines[i])} is not a path inside the data folder",
        "write the name of an image without suffix",
    )
    rows.fault(
        "path-foreign",
        foreign,
        lambda i: f"{lines[i]!r} leads elsewhere, and {listed_stem(lines[i], listing)}.xml is used",
        "nothing to do, or write its name without suffix",
        "note",
    )
    return list(stems)


def _classes(root: Path, read: set[Path], scenes: list[Scene]) -> list[str]:
    """The names of all classes in all splits, sorted. Raises InputError if there are none, with the
    reason if there are files that cannot be read."""
    files: set[Path] = set()
    folders = set()
    for split in SPLITS:
        location = locate_voc(root, split)
        if location is not None:
            folders.add(location.annotations)
    for folder in folders:
        files.update(folder / path for path in contents_of(folder, XML).files)
    names: set[str] = set()
    for scene in scenes:
        names.update(scene.names)
    for file in files - read:
        other = read_scene(file, names_only=True)
        names.update(other.names)
    names.discard("")
    if not names:
        for scene in scenes:
            if scene.code:
                raise InputError(scene.problem, where=scene.file, remedy=_REMEDIES[scene.code])
        raise InputError("no XML file contains an object", where=root, remedy="annotate some")
    return sorted(names)


def _read_objects(
    files: list[Path], scenes: list[Scene], classes: list[str], faults: list[Fault]
) -> Objects:
    image_of: list[int] = []
    number_of: list[int] = []  # among the objects of its image, from 1
    names: list[str] = []
    all_boxes: list[list[float]] = []
    all_outlines: list[list[float]] = []
    has_box: list[bool] = []
    is_turned: list[bool] = []
    marks: list[str] = []  # the value of `difficult` of each object
    repeated: list[str] = []  # the element that an object has several times, or ""
    for index, scene in enumerate(scenes):
        count = len(scene.names)
        image_of += [index] * count
        number_of += range(1, count + 1)
        names += scene.names
        all_boxes += scene.boxes
        all_outlines += scene.outlines
        has_box += scene.has_box
        is_turned += scene.is_turned
        marks += scene.difficult
        repeated += scene.repeated
    boxes = np.array(all_boxes, np.float64).reshape(-1, 4)
    outlines = np.array(all_outlines, np.float64).reshape(-1, 4)

    def locate(i: int) -> tuple[Path, str]:
        return files[image_of[i]], f"object {number_of[i]} ({reprlib.repr(names[i])})"

    rows = Rows(len(names), faults, locate)
    _judge_elements(rows, names, repeated)
    _judge_boxes(rows, boxes, np.array(has_box, bool))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of.get(name, -1) for name in names]
    count = len(names)
    return Objects(
        rows=rows,
        image=np.array(image_of, np.int64),
        labels=np.array(labels, np.int64),
        corners=boxes - (1, 1, 0, 0),
        iscrowd=_read_marks(rows, marks),
        area=np.full(count, -1, np.float32),
        ids=np.array(number_of, np.int64),
        kind="object",
        quoted=partial(_quoted, boxes, has_box),
        remedy="write xmin ymin xmax ymax in pixels, counted from 1",
        box_format="xyxy",
        outlines=outlines - (1, 1, 0, 0),
        may_cross=np.array(is_turned, bool),
    )


def _quoted(boxes: np.ndarray, has_box: list[bool], i: int) -> str:
    box = boxes[i].round(2).tolist()
    return f"bndbox {box}" if has_box[i] else f"the box {box} around its outline"


def _read_marks(rows: Rows, marks: list[str]) -> np.ndarray:
    """Which objects are marked difficult, bool `[A]`. Reports marks that are not clear."""
    flags = [flag_of(mark) for mark in marks]
    rows.fault(
        "flag-invalid",
        [flag is None for flag in flags],
        lambda i: f"difficult {reprlib.repr(marks[i])} is neither 0 nor 1, and counts as 0",
        "write 1 for objects to ignore, 0 for others",
        "warning",
    )
    return np.array([flag is True for flag in flags], bool)


def _judge_elements(rows: Rows, names: list[str], repeated: list[str]) -> None:
    """Adds faults for objects without a name, or with several names or boxes."""
    rows.fault(
        "class-missing",
        [not name for name in names],
        lambda i: "has no name",
        "write the name of its class",
    )
    rows.fault(
        "object-several",
        [tag != "" for tag in repeated],
        lambda i: f"has several {repeated[i]} elements, as if it were several objects",
        "write an <object> for each",
    )


def _judge_boxes(rows: Rows, boxes: np.ndarray, has_box: np.ndarray) -> None:
    """Adds faults for boxes `[A, 4]` that are not numbers or begin at 0, and for objects whose
    outline replaces a box."""
    invalid = np.isnan(boxes).any(1)
    rows.fault(
        "box-invalid",
        invalid,
        lambda i: f"has no bndbox of 4 finite numbers {' '.join(SIDES)}",
        "write elements such as <xmin>12.5</xmin>",
    )
    boxes[invalid] = (1, 1, 1, 1)
    rows.fault(
        "pixels-from-0",
        has_box & (boxes[:, :2] == 0).any(1),
        lambda i: "begins at pixel 0, where VOC counts from 1: boxes are read shifted by a pixel",
        "add 1 to all numbers, or ignore this if a pixel does not matter",
        "note",
    )
    rows.fault(
        "outline",
        ~has_box,
        lambda i: "has an outline but no bndbox",
        "its bounding box is used",
        "note",
    )
