"""Data sets with label images: a PNG or TIFF of the size of each image, in which every pixel of an
object has the number of that object, and 0 is background.

Images are in `images/{train,val,test}/` and label images in `masks/{train,val,test}/`, or in
`train/images/` and `train/masks/` and so on; without these folders, `images/` and `masks/` are
train. A label image has the name of its image, with any image suffix, and optionally `_mask` or
`_masks` before that. A colour stands for the number red + 256 green + 65536 blue. The box of an
object is tight around its pixels, and its area is their number. All objects have one class, called
`object`.
"""

import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redetr.data.annotations import SPLITS, Annotations, Images, Objects, Split, assemble
from redetr.data.faults import Fault, Rows, Severity, listed
from redetr.data.formats.listing import USUAL_FOLDERS, contents_of, first_below
from redetr.data.formats.paths import composed, read_sizes
from redetr.data.images import IMAGE_SUFFIXES, open_image, problem_of
from redetr.data.mask_columns import MaskBuilder
from redetr.data.segment_images import encode_numbers, object_numbers
from redetr.errors import InputError
from redetr.launch import rank_cores
from redetr.wording import counted

Bools = NDArray[np.bool_]

CLASS_NAME = "object"
_IMAGES, _LABELS = "images", "masks"  # names of folders
_ENDS = ("", "_mask", "_masks")  # of the name of a label image
_MOST_OF_OBJECT = 0.5  # share of its pixels
_SIZEABLE = 0.1  # share of the pixels of the largest part of an object
_FEW = 0.25  # share of objects; occlusion divides fewer than these
_MOST_CLASSES = 256  # more numbers than these are unlikely to be classes
_MOST_COUNTED = 2**16  # up to this number, a table is faster than sorting all pixels


def label_image_splits(root: Path) -> list[Split]:
    """The splits of the folder whose objects are label images."""
    return [split for split in SPLITS if _locate(root, split) is not None]


def label_images_sought(split: Split) -> str:
    """What a folder needs for a split in this format, in words."""
    return f"{_IMAGES}/{split}/ beside {_LABELS}/{split}/ with label images"


def read_label_images(root: Path, split: Split, masks: MaskBuilder | None = None) -> Annotations:
    """The annotations of a split, with masks if there is a builder for them. Decodes every label
    image. Raises InputError if the split is missing."""
    location = _locate(root, split)
    if location is None:
        raise InputError(f"no {split} split: looked for {label_images_sought(split)}", where=root)
    folder, labels_folder = location
    faults: list[Fault] = []
    names = contents_of(folder).files
    matches = _matched(names, contents_of(labels_folder).files)
    _report_matches(labels_folder, names, matches, faults)
    read = partial(_read, labels_folder, masks is not None)
    with ThreadPoolExecutor(rank_cores()) as pool:
        scenes = list(pool.map(read, matches.of_image))
    images = _read_images(folder, labels_folder, names, scenes, faults)
    objects = _read_objects(labels_folder, scenes, faults)
    if masks is not None:
        for scene in scenes:
            for counts in scene.masks:
                masks.add(counts)
        objects.masks = masks
    return assemble(labels_folder, {1: CLASS_NAME}, images, objects, faults)


def is_label_folder(source: Path) -> bool:
    """Whether annotations with this source come from label images."""
    return source.is_dir() and _LABELS in (source.name, source.parent.name)


def _locate(root: Path, split: Split) -> tuple[Path, Path] | None:
    """The folders of the images and label images of a split; None if there are none."""
    for name in USUAL_FOLDERS[split]:
        for images, labels in (
            (root / _IMAGES / name, root / _LABELS / name),
            (root / name / _IMAGES, root / name / _LABELS),
        ):
            if _are_there(images, labels):
                return images, labels
    images, labels = root / _IMAGES, root / _LABELS
    split_names = chain.from_iterable(USUAL_FOLDERS.values())
    has_splits = any((labels / name).is_dir() for name in split_names)
    if split == "train" and not has_splits and _are_there(images, labels):
        return images, labels
    return None


def _are_there(images: Path, labels: Path) -> bool:
    return bool(first_below(images, IMAGE_SUFFIXES) and first_below(labels, IMAGE_SUFFIXES))


@dataclass
class _Matches:
    """The label images that belong to images, and those that are not used."""

    of_image: list[str]  # the label image of each image, empty if there is none
    unclaimed: list[str]  # without an image
    rivals: list[tuple[str, str]]  # label images, each after the one that its image has


def _matched(names: list[str], label_names: list[str]) -> _Matches:
    by_stem: dict[str, list[str]] = {}
    for label_name in label_names:
        stem, _ = posixpath.splitext(composed(label_name))
        by_stem.setdefault(stem, []).append(label_name)
    of_image = []
    others = []
    for name in names:
        stem, _ = posixpath.splitext(composed(name))
        candidates = []
        for end in _ENDS:
            candidates += by_stem.get(stem + end, [])
        of_image.append(candidates[0] if candidates else "")
        others += [(candidates[0], other) for other in candidates[1:]]
    used = set(of_image)
    rivals = [pair for pair in dict.fromkeys(others) if pair[1] not in used]
    unclaimed = set(label_names) - used - {other for _, other in rivals}
    return _Matches(of_image, sorted(unclaimed), rivals)


def _report_matches(folder: Path, names: list[str], matches: _Matches, faults: list[Fault]) -> None:
    """Adds faults for label images without an image or beside another one, and for images that
    share one."""
    unclaimed = matches.unclaimed
    rows = Rows(len(unclaimed), faults, lambda i: (folder / unclaimed[i], ""))
    all_of_them = np.ones(len(unclaimed), bool)
    remedy = "add its image, or delete it"
    rows.fault("label-unclaimed", all_of_them, lambda i: "has no image", remedy, "warning")
    if matches.rivals:
        used, other = matches.rivals[0]
        text = f"{used} is a label image of the same image"
        remedy = "keep one of them"
        count = len(matches.rivals)
        items = listed(str(folder / other) for _, other in matches.rivals)
        faults.append(Fault("error", "image-twice", folder / other, "", text, remedy, count, items))
    first_with: dict[str, str] = {}
    shared = []
    for name, label_name in zip(names, matches.of_image, strict=True):
        first = first_with.setdefault(label_name, name)
        if label_name and first != name:
            shared.append((label_name, first, name))
    if shared:
        label_name, first, name = shared[0]
        text = f"{first} and {name} share this file: both have its objects"
        remedy = "give each image its own name and label image"
        faults.append(
            Fault(
                "warning",
                "annotation-shared",
                folder / label_name,
                "",
                text,
                remedy,
                len(shared),
                listed(str(folder / label_name) for label_name, _, _ in shared),
            )
        )


@dataclass
class _Scene:
    """The content of a label image; `problem` says why it cannot be read."""

    name: str  # below the folder of label images; empty if there is none
    size: tuple[int, int] = (0, 0)  # height, width
    numbers: list[int] = field(default_factory=list)  # of the objects
    boxes: list[list[int]] = field(default_factory=list)  # xyxy px
    areas: list[int] = field(default_factory=list)  # pixels
    masks: list[bytes] = field(default_factory=list)  # compressed, if they are asked for
    num_parts: list[int] = field(default_factory=list)  # of each object, those that do not touch
    num_large_parts: list[int] = field(default_factory=list)  # without stray pixels
    num_edges: int = 0  # objects that are only steps between a lower and a higher number
    problem: str = ""


def _read(folder: Path, with_masks: bool, name: str) -> _Scene:
    scene = _Scene(name)
    if not name:
        return scene
    try:
        with open_image(folder / name) as image:
            numbers = object_numbers(image)
    except InputError as error:
        scene.problem = error.text
        return scene
    from scipy import ndimage  # slow to import, and not needed for most formats

    height, width = numbers.shape
    scene.size = (height, width)
    values, labels = _counted_from_0(numbers)
    areas = np.bincount(labels.ravel(), minlength=len(values))
    scene.num_edges = _count_edges(labels, areas)
    for label, location in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = location
        scene.numbers.append(int(values[label]))
        scene.boxes.append([columns.start, rows.start, columns.stop, rows.stop])
        scene.areas.append(int(areas[label]))
        num_parts, num_large_parts = _count_parts(labels[location] == label)
        scene.num_parts.append(num_parts)
        scene.num_large_parts.append(num_large_parts)
    if with_masks:
        scene.masks = encode_numbers(labels, range(1, len(values)))
    return scene


def _count_parts(mask: Bools) -> tuple[int, int]:
    """The number of parts of an object that do not touch: all of them, and those that are not much
    smaller than the largest, as stray pixels are."""
    from scipy import ndimage  # see above

    if mask.all():
        return 1, 1
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count == 1:
        return 1, 1
    areas = np.bincount(parts.ravel())[1:]
    return count, int((areas >= _SIZEABLE * areas.max()).sum())


def _count_edges(labels: NDArray[Any], areas: NDArray[np.int64]) -> int:
    """The number of objects with most of their pixels between a neighbour with a lower number and
    one with a higher number.

    Label images that were resized with interpolation or saved with lossy compression have many such
    numbers along edges; drawn objects have hardly any.
    """
    labels = labels.astype(np.min_scalar_type(len(areas)))  # a third of the time
    padded = np.pad(labels, 1, mode="edge")
    has_lower = np.zeros(labels.shape, bool)
    has_higher = np.zeros(labels.shape, bool)
    for neighbours in (
        padded[:-2, 1:-1],
        padded[2:, 1:-1],
        padded[1:-1, :-2],
        padded[1:-1, 2:],
    ):
        has_lower |= neighbours < labels
        has_higher |= neighbours > labels
    between = labels[has_lower & has_higher]
    counts = np.bincount(between, minlength=len(areas))
    is_edge = counts > _MOST_OF_OBJECT * areas
    return int(is_edge[1:].sum())


def _counted_from_0(numbers: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The numbers that occur and 0, sorted, and for each pixel, `[H, W]`, the index of its
    number."""
    highest = int(numbers.max())
    if highest < _MOST_COUNTED:
        occurs = np.bincount(numbers.ravel(), minlength=highest + 1) > 0
        occurs[0] = True
        labels_of = np.cumsum(occurs) - 1
        return np.flatnonzero(occurs), labels_of[numbers]
    with_0 = np.append(numbers.ravel(), 0)
    values, labels = np.unique(with_0, return_inverse=True)
    return values, labels[:-1].reshape(numbers.shape)


def _read_images(
    folder: Path, labels_folder: Path, names: list[str], scenes: list[_Scene], faults: list[Fault]
) -> Images:
    rows = Rows(len(names), faults, lambda i: (labels_folder / scenes[i].name, ""))
    rows.fault(
        "annotation-missing",
        [not scene.name for scene in scenes],
        lambda i: f"has no label image for {names[i]}",
        "add it; if the image shows no object, add one that is 0 everywhere",
    )
    rows.fault(
        "label-image-invalid",
        [scene.problem != "" for scene in scenes],
        lambda i: scenes[i].problem,
        "export the label image again",
    )
    sizes = read_sizes(folder, names)
    unreadable = (sizes[:, 0] == 0) & rows.good
    rows.fault(
        "size-invalid",
        unreadable,
        lambda i: f"its image {names[i]} cannot be read: {problem_of(folder / names[i])}",
        "replace the image",
    )
    label_sizes = np.array([scene.size for scene in scenes], np.int64).reshape(-1, 2)

    def size(i: int) -> str:
        height, width = label_sizes[i]
        image_height, image_width = sizes[i]
        return f"is {width}x{height} px, its image {names[i]} {image_width}x{image_height} px"

    differs = (label_sizes != sizes).any(1)
    rows.fault("mask-size", differs, size, "export the label image again")
    _judge_meaning(scenes, rows)
    return Images.numbered(rows, folder, names, sizes, unreadable)


def _judge_meaning(scenes: list[_Scene], rows: Rows) -> None:
    """Adds an error if label images show where objects are, but do not separate them; or a warning
    if that is not certain, as an object may have several parts.

    Numbers are taken for classes if most of them are in parts. Occlusion divides a few objects.
    """
    _judge_edges(scenes, rows)
    numbers: set[int] = set()
    for scene in scenes:
        numbers.update(scene.numbers)
    parts_of = [scene.num_large_parts for scene in scenes]
    if len(numbers) == 1:  # which is likely to be the value of all objects, also of small ones
        parts_of = [scene.num_parts for scene in scenes]
    in_parts = np.array([sum(count > 1 for count in counts) for counts in parts_of])
    num_objects = sum(len(scene.numbers) for scene in scenes)
    num_in_parts = int(in_parts.sum())
    if len(numbers) > 1 and num_in_parts <= _FEW * num_objects:
        return
    are_most = 2 * num_in_parts > num_objects

    def text(i: int) -> str:
        scene = scenes[i]
        count, number = max(zip(parts_of[i], scene.numbers, strict=True))
        if len(numbers) == 1:
            return f"has {number} in {count} parts, and no label image has another number"
        return (
            f"has {in_parts[i]} of its {counted(len(scene.numbers), 'number')} in parts that do "
            f"not touch ({number} in {count} parts), as if numbers were classes"
        )

    remedy = "give each object its own number (scipy.ndimage.label does where they do not touch)"
    if len(numbers) > 1:
        remedy += "; to keep several classes, write COCO's format"
    is_certain = are_most and len(numbers) <= _MOST_CLASSES
    severity: Severity = "error" if is_certain else "warning"
    rows.fault("label-image-semantic", in_parts > 0, text, remedy, severity)


def _judge_edges(scenes: list[_Scene], rows: Rows) -> None:
    """Adds an error if most numbers in the label images are steps along edges instead of
    objects."""
    edges = np.array([scene.num_edges for scene in scenes])
    counts = np.array([len(scene.numbers) for scene in scenes])
    if 2 * edges.sum() <= counts.sum():
        return
    rows.fault(
        "label-image-smooth",
        2 * edges > counts,
        lambda i: f"{edges[i]} of its {counts[i]} numbers are only steps between two others",
        "was it resized with interpolation, or compressed with losses? resize it to the nearest "
        "pixel and save it as PNG",
    )


def _read_objects(folder: Path, scenes: list[_Scene], faults: list[Fault]) -> Objects:
    image_of: list[int] = []
    numbers: list[int] = []
    boxes: list[list[int]] = []
    areas: list[int] = []
    for index, scene in enumerate(scenes):
        image_of += [index] * len(scene.boxes)
        numbers += scene.numbers
        boxes += scene.boxes
        areas += scene.areas

    def locate(i: int) -> tuple[Path, str]:
        return folder / scenes[image_of[i]].name, f"object {numbers[i]}"

    count = len(boxes)
    return Objects(
        rows=Rows(count, faults, locate),
        image=np.array(image_of, np.int64),
        labels=np.zeros(count, np.int64),
        corners=np.array(boxes, np.float64).reshape(-1, 4),
        iscrowd=np.zeros(count, bool),
        area=np.array(areas, np.float32),
        ids=np.array(numbers, np.int64),
        kind="object",
        quoted=lambda i: f"the box {boxes[i]} around it",
        remedy="export the label image again",
        box_format="xyxy",
    )
