"""Checks of a data set that a program gives instead of a name: that it is as the interface says,
and that its objects make sense."""

import math
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from redetr.data.contradictions import are_fractions
from redetr.data.crossing import OVERSHOOT_PX, OVERSHOOT_SHARE
from redetr.data.dataset import DetectionDataset
from redetr.data.mask_faults import FEW
from redetr.errors import InputError, NoMasksError
from redetr.structures import Size, StoredTarget
from redetr.wording import counted

_CHECKED = 1000  # targets of a data set of a user's own
_DTYPES = {  # of the columns of a `StoredTarget`
    "boxes": torch.float32,
    "labels": torch.int64,
    "iscrowd": torch.bool,
    "area": torch.float32,
    "masks": torch.bool,
}


def require_valid(dataset: DetectionDataset, masks: bool = False, is_val: bool = False) -> None:
    """Raises InputError unless a data set of a user's own is as the interface says and, unless it
    `is_val`, holds objects; with `masks`, NoMasksError if there are objects, but none has a mask.
    Looks at the first image and at up to 1,000 targets."""
    if not isinstance(dataset, DetectionDataset):
        remedy = "derive it from redetr.data.DetectionDataset"
        raise InputError(f"a {type(dataset).__name__} is not a data set", remedy=remedy)
    _require_valid_classes(dataset)
    if not len(dataset):
        text = f"the {'val' if is_val else 'train'} split holds no images"
        raise InputError(text, where=dataset.name, remedy="give at least one")
    boxes = []
    sizes = []
    has_objects = has_masks = False
    for index in sampled_indices(dataset):
        target = dataset.target(index)
        _require_valid_target(dataset, target, f"target({index})")
        height, width = target["orig_size"]
        boxes.append(target["boxes"].numpy())
        sizes += [(width, height)] * len(target["boxes"])
        has_objects |= bool((~target["iscrowd"]).any())
        has_masks |= _has_mask(target)
    _require_pixels(dataset, np.concatenate(boxes), np.array(sizes).reshape(-1, 2))
    _require_valid_target(dataset, dataset.objects(0), "objects(0)")
    _require_valid_image(dataset)
    if not has_objects and not is_val:  # without objects in val, AP is undefined, as a run says
        _require_objects(dataset)
    if masks and not has_masks:
        _require_masks(dataset)


def sampled_indices(dataset: DetectionDataset) -> range:
    """The indices of up to 1,000 targets that are spread over a data set."""
    stride = math.ceil(len(dataset) / _CHECKED)
    return range(0, len(dataset), max(1, stride))


def _require_objects(dataset: DetectionDataset) -> None:
    """Raises InputError if nothing can be learned from a data set. Looks at all targets."""
    if dataset.max_objects():
        return
    num_crowds = sum(len(dataset.objects(index)["labels"]) for index in range(len(dataset)))
    if not num_crowds:
        text = f"the train split has no object in {counted(len(dataset), 'image')}"
        remedy = "give its targets boxes and labels"
        raise InputError(text, where=dataset.name, remedy=remedy)
    objects = counted(num_crowds, "object")
    text = f"the train split has {objects}, all of them crowds, which training ignores"
    raise InputError(text, where=dataset.name, remedy="give iscrowd False for single objects")


def _require_masks(dataset: DetectionDataset) -> None:
    """Raises NoMasksError if there are objects, but none has a mask. Looks at all targets until one
    has."""
    if any(_has_mask(dataset.target(index)) for index in range(len(dataset))):
        return
    if not dataset.max_objects():
        return
    remedy = "give its targets masks, or train without masks"
    raise NoMasksError("has only boxes, no masks", where=dataset.name, remedy=remedy)


def _has_mask(target: StoredTarget) -> bool:
    """Whether the mask of any object is known, that is, not empty."""
    return "masks" in target and bool(target["masks"].any())


def _require_pixels(dataset: DetectionDataset, boxes: np.ndarray, sizes: np.ndarray) -> None:
    """Raises InputError if boxes `[A, 4]` are fractions of images of these `sizes` `[A, 2]`, or if
    more of them than in files have no area."""
    fractions = are_fractions(boxes, sizes)
    if not fractions.any():
        _require_area(dataset, boxes, sizes)
        return
    boxes_in_all = counted(len(boxes), "box", "boxes")
    share = f"{fractions.sum():,} of {boxes_in_all} in the first pixel"
    text = f"boxes look like fractions of the image: {share}"
    remedy = "multiply x by the width of the image, y by its height"
    raise InputError(text, where=dataset.name, remedy=remedy)


def _require_area(dataset: DetectionDataset, boxes: np.ndarray, sizes: np.ndarray) -> None:
    """Raises InputError if too many boxes have no area in their images, which train nothing."""
    inside = boxes.clip(0, np.tile(sizes, 2))
    empty = (inside[:, 2:] <= inside[:, :2]).any(1)
    if empty.sum() <= FEW * len(boxes):
        return
    first = int(empty.argmax())
    num_empty = int(empty.sum())
    boxes_in_all = counted(len(boxes), "box", "boxes")
    text = f"box {boxes[first].tolist()} has no area in its image, "
    text += f"as {num_empty:,} of {boxes_in_all}"
    raise InputError(text, where=dataset.name, remedy="correct or delete it")


def _require_valid_classes(dataset: DetectionDataset) -> None:
    num_classes = len(dataset.class_names)
    lengths = {"category_ids": len(dataset.category_ids)}
    if len(dataset.is_thing):  # empty: unknown
        lengths["is_thing"] = len(dataset.is_thing)
    for name, length in lengths.items():
        if length != num_classes:
            text = f"has {counted(num_classes, 'class name')}, but {name} of {length}"
            raise InputError(text, where=dataset.name, remedy="give one for each class")


def require_alike(train: DetectionDataset, val: DetectionDataset) -> None:
    """Raises InputError unless the splits of a user's own list the same categories in one order.

    Otherwise, a label would be another class in evaluation. Whether classes are things is compared
    if both splits state it.
    """
    with_kind = len(train.is_thing) > 0 and len(val.is_thing) > 0
    train_categories = _categories(train, with_kind)
    val_categories = _categories(val, with_kind)
    pairs = zip_longest(train_categories, val_categories, fillvalue="missing")
    for label, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            text = f"train and val list different categories: label {label} is {ours} in train"
            remedy = "give both the same class_names and category_ids, in the same order"
            raise InputError(f"{text}, {theirs} in val", where=val.name, remedy=remedy)


def _categories(dataset: DetectionDataset, with_kind: bool) -> list[str]:
    """Id and name of each class, and what kind it is."""
    categories = []
    for label, name in enumerate(dataset.class_names):
        category = f"{dataset.category_ids[label]} ({str(name)!r})"
        if with_kind and not dataset.is_thing[label]:
            category += ", stuff"
        categories.append(category)
    return categories


def _require_valid_image(dataset: DetectionDataset) -> None:
    image, target = dataset.sample(0)
    expected = [dataset.channels, *target["size"]]
    if not isinstance(image, Tensor):
        fault = f"is a {type(image).__name__}"
    elif image.dtype != torch.uint8 or list(image.shape) != expected:
        fault = f"is {image.dtype} {list(image.shape)}"
    else:
        return
    text = f"{fault}, expected a uint8 tensor {expected}, the size that its target states"
    raise InputError(text, where=dataset.name, item="image(0)")


def _require_valid_target(dataset: DetectionDataset, target: StoredTarget, item: str) -> None:
    text, remedy = _fault_of(target, len(dataset.class_names))
    if text:
        raise InputError(text, where=dataset.name, item=item, remedy=remedy)


def _fault_of(target: StoredTarget, num_classes: int) -> tuple[str, str]:
    """What is wrong with a target, and what to do; two empty texts if nothing is."""
    missing = StoredTarget.__required_keys__ - target.keys()
    if missing:
        return f"has no {min(missing)!r}", ""
    fault = _fault_of_image(target) or _fault_of_columns(target)
    labels, boxes = target["labels"], target["boxes"]
    if any(fault) or not len(labels):
        return fault
    if labels.min() < 0 or labels.max() >= num_classes:
        classes = counted(num_classes, "class", "classes")
        text = f"labels from {int(labels.min())} to {int(labels.max())}, but {classes} from 0"
        return text, ""
    if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any():
        return "a box is not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, in pixels", ""
    return _fault_of_position(boxes, target["orig_size"])


def _fault_of_position(boxes: Tensor, size: Size) -> tuple[str, str]:
    """What is wrong if a box `[T, 4]` leaves its image by more than annotators overshoot, as in
    files."""
    height, width = size
    sides = torch.tensor([width, height])
    slip = (OVERSHOOT_SHARE * sides).clamp(min=OVERSHOOT_PX)
    leaves_start = (boxes[:, :2] < -slip).any(1)
    leaves_end = (boxes[:, 2:] > sides + slip).any(1)
    leaves = leaves_start | leaves_end
    if not leaves.any():
        return "", ""
    box = boxes[int(leaves.int().argmax())].tolist()
    text = f"box {box} leaves its image of {width}x{height} px"
    return text, "give x1, y1, x2, y2 in pixels of the stored image"


def _fault_of_image(target: StoredTarget) -> tuple[str, str] | None:
    """What is wrong with what a target says of its image."""
    if not _is_integer(target["image_id"]):
        remedy = "give a number of each image, such as its index"
        return f"image_id is {target['image_id']!r}, not an integer", remedy
    for size in (target["orig_size"], target["size"]):
        is_pair = isinstance(size, tuple | list) and len(size) == 2
        if not is_pair or not all(map(_is_integer, size)):
            remedy = "give orig_size and size as (height, width) of the stored image, integers"
            return f"a size is {size!r}", remedy
    if tuple(target["size"]) != tuple(target["orig_size"]):
        remedy = "give the size of the stored image twice: training resizes it"
        return f"size {target['size']} is not orig_size {target['orig_size']}", remedy
    return None


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _fault_of_columns(target: StoredTarget) -> tuple[str, str]:
    """What is wrong with the shapes and types of the columns of a target.

    The types matter: `~iscrowd` of integers are indices, not a mask.
    """
    count = len(target["labels"])
    columns = {"boxes": (count, 4), "labels": (count,), "iscrowd": (count,), "area": (count,)}
    if "masks" in target:
        columns["masks"] = (count, *target["orig_size"])
    for name, shape in columns.items():
        column = target[name]  # type: ignore[literal-required]
        is_tensor = isinstance(column, Tensor)
        if not is_tensor or column.shape != shape:
            return f"{name!r} is not a tensor {list(shape)}, for {counted(count, 'label')}", ""
        expected = _DTYPES[name]
        if expected == torch.float32 and column.is_floating_point():  # others are as good
            continue
        if column.dtype != expected:
            return f"{name!r} is {column.dtype}", f"give {expected}: {name}.to({expected})"
    return "", ""
