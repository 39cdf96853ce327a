"""Compares a data set that was written with what its files are read as."""

from collections import Counter
from pathlib import Path

import numpy as np

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writers import names_of
from redetr.errors import InputError
from redetr.wording import counted

_TOLERANCE_PX = 1e-3
_WRITE_COCO = "write coco, which holds it"
_CORRECT = "correct it, or leave it out"


def require_same(meant: Annotations, root: Path, split: Split, form: str) -> None:
    """Raises InputError if the files in `root` are not read as the annotations `meant`, with the
    first difference."""
    try:
        written = read_annotations(root, split, "none" if meant.masks is None else "check")
        written.require_sound()
    except InputError as error:
        reason = _without_folder(error, root)
        text = (
            f"cannot be written as {form.upper()}: what was written cannot be read again ({reason})"
        )
        raise InputError(text, where=meant.source, remedy=error.remedy) from None
    difference, remedy = _difference(meant, written)
    if difference:
        text = f"cannot be written as {form.upper()}: when {split} is read back, {difference}"
        raise InputError(text, where=meant.source, remedy=remedy)


def _without_folder(error: InputError, root: Path) -> str:
    """The error, in whose paths the folder that is about to be deleted is left out."""
    parts = [error.item, error.text]
    if error.where is not None and Path(error.where) != root:
        parts.insert(0, str(error.where))
    line = ": ".join(part for part in parts if part)
    return line.replace(f"{root}/", "")


def _difference(meant: Annotations, written: Annotations) -> tuple[str, str]:
    """The first difference, and a remedy; two empty texts if there is none."""
    for differ in (_images, _counts, _classes, _boxes, _masks):
        text, remedy = differ(meant, written)
        if text:
            return text, remedy
    return "", ""


def _images(meant: Annotations, written: Annotations) -> tuple[str, str]:
    names = names_of(meant)
    others = names_of(written)
    if names == others:
        return "", ""
    missing = sorted(set(names) - set(others))
    if missing:
        return f"image {missing[0]!r} is missing", "rename it"
    added = sorted(set(others) - set(names))
    if added:
        return f"image {added[0]!r} is added", "rename it"
    counts = Counter(names)
    counts.subtract(Counter(others))
    for name, count in counts.items():
        if count:
            return f"image {name!r} has another number of entries", "merge them into one"
    return "its images are in another order", _WRITE_COCO


def _counts(meant: Annotations, written: Annotations) -> tuple[str, str]:
    counts = np.diff(meant.first)
    others = np.diff(written.first)
    differs = counts != others
    if not differs.any():
        return "", ""
    i = int(differs.argmax())
    objects = counted(others[i], "object")
    text = f"image {names_of(meant)[i]!r} has {objects} instead of {counts[i]:,}"
    return text, _CORRECT


def _classes(meant: Annotations, written: Annotations) -> tuple[str, str]:
    names = _class_of_each(meant)
    others = _class_of_each(written)
    differs = names != others
    if not differs.any():
        return "", ""
    i = int(differs.argmax())
    text = f"the class of {_called(meant, i)} is {others[i]!r} instead of {names[i]!r}"
    return text, "write a name without blanks at its ends"


def _boxes(meant: Annotations, written: Annotations) -> tuple[str, str]:
    moves = np.abs(meant.boxes - written.boxes).max(1, initial=0)
    differs = ~(moves <= _TOLERANCE_PX)  # also true for NaN
    if not differs.any():
        return "", ""
    i = int(differs.argmax())
    box = meant.boxes[i].tolist()
    other = written.boxes[i].tolist()
    return f"the box of {_called(meant, i)} is {other} instead of {box}", _CORRECT


def _masks(meant: Annotations, written: Annotations) -> tuple[str, str]:
    for index in range(len(meant)):
        masks = _masks_of(meant, index)
        others = _masks_of(written, index)
        for number, (mask, other) in enumerate(zip(masks, others, strict=True)):
            if mask != other:
                i = int(meant.first[index]) + number
                return f"the mask of {_called(meant, i)} is another one", _CORRECT
    return "", ""


def _masks_of(annotations: Annotations, index: int) -> list[bytes]:
    """The masks of the objects of an image, compressed; empty bytes for those without."""
    objects = annotations.objects_of(index)
    if annotations.masks is None:
        return [b""] * (objects.stop - objects.start)
    height, width = annotations.sizes[index].tolist()
    return annotations.masks.rles(objects, (height, width))


def _class_of_each(annotations: Annotations) -> np.ndarray:
    """The name of the class of each object."""
    names = np.array(annotations.class_names, object)
    return names[annotations.labels]


def _called(annotations: Annotations, i: int) -> str:
    """The name of object `i` in messages."""
    image = int(annotations.image_of()[i])
    number = i - int(annotations.first[image]) + 1
    return f"object {number} of image {names_of(annotations)[image]!r}"
