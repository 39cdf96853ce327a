"""Faults of the classes of a data set: their names, and how often they occur."""

from collections.abc import Callable, Mapping

import numpy as np

from redetr.data.annotations import Annotations, Split
from redetr.data.faults import Fault, Severity, listed
from redetr.data.formats.coco_places import ROBOFLOW_FILE
from redetr.doctor.boxes import is_sound
from redetr.doctor.images import faults_of
from redetr.wording import counted

# A class is hardly learned with fewer boxes, or with fewer than the most common by this factor.
_FEW_BOXES = 10
_TIMES_RARER = 100


def class_counts(annotations: Annotations) -> np.ndarray:
    """The number of objects of each class without crowds, int64 `[C]`."""
    labels = annotations.labels[~annotations.iscrowd]
    return np.bincount(labels, minlength=len(annotations.class_names))


def class_faults(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """Classes that the splits list differently, or that are hard to learn or to measure."""
    train = splits.get("train")
    val = splits.get("val")
    if train is None:
        return []
    faults = []
    val_differs = False
    for split, annotations in splits.items():
        same_ids = annotations.category_ids == train.category_ids
        if not same_ids or annotations.class_names != train.class_names:
            faults.append(_different_classes(train, annotations, split))
            val_differs |= split == "val"
    if val is None or val_differs:
        return faults
    faults += _odd_names(train)
    if is_sound(train) and is_sound(val):  # otherwise, counts are incomplete
        faults += _badly_counted_classes(train, val)
    return faults


# The bad classes (bool `[C]`), the severity, the code, the text for class `i`, and the remedy.
_Check = tuple[np.ndarray, Severity, str, Callable[[int], str], str]


def _odd_names(train: Annotations) -> list[Fault]:
    """Classes with nearly the same name, and one for the background."""
    names = train.class_names
    folded = []
    for name in names:
        words = name.replace("_", " ").split()
        folded.append(" ".join(words).casefold())
    twins = [names[folded.index(name)] for name in folded]  # the first with nearly the same name
    alike = [twin != name for twin, name in zip(twins, names, strict=True)]
    background = [name == "background" for name in folded]
    return _faults_of_classes(
        train,
        [
            (
                np.array(alike, bool),
                "warning",
                "class-alike",
                lambda i: f"has nearly the same name as {twins[i]!r}",
                "merge them if they mean the same",
            ),
            (
                np.array(background, bool),
                "warning",
                "class-background",
                lambda i: "is treated as an ordinary class",
                "remove it: everything outside boxes is background",
            ),
        ],
    )


def _badly_counted_classes(train: Annotations, val: Annotations) -> list[Fault]:
    """Classes without boxes in one split or both, or with few to learn from."""
    learned = class_counts(train)
    measured = class_counts(val)
    most = f"the most common class has {learned.max():,}"
    in_train = learned > 0
    in_val = measured > 0
    few = (learned < _FEW_BOXES) | (learned * _TIMES_RARER < learned.max())

    def boxes(number: int) -> str:
        return counted(number, "box", "boxes")

    return _faults_of_classes(
        train,
        [
            (
                ~in_train & ~in_val & ~_is_root(train),
                "note",
                "class-unused",
                lambda i: "has no boxes in train or val",
                "remove it, or annotate objects of it",
            ),
            (
                ~in_train & in_val,
                "warning",
                "class-only-val",
                lambda i: f"has {boxes(measured[i])}, only in val",
                "move some of its images to train, or its AP will be 0",
            ),
            (
                in_train & ~in_val,
                "warning",
                "class-only-train",
                lambda i: f"has {boxes(learned[i])}, only in train",
                "move some of its images to val, or its AP cannot be measured",
            ),
            (
                in_train & few,
                "warning",
                "class-rare",
                lambda i: f"has {boxes(learned[i])} in train; {most}",
                "collect more objects of this class, or its AP will be low",
            ),
        ],
    )


def _is_root(annotations: Annotations) -> np.ndarray:
    """Which class is the parent of all others, bool `[C]`: Roboflow's exports list it as category
    0, and no object has it."""
    ids = np.array(annotations.category_ids)
    return (ids == 0) & (annotations.source.name == ROBOFLOW_FILE)


def _faults_of_classes(train: Annotations, checks: list[_Check]) -> list[Fault]:
    """A fault for each check that some classes fail."""
    faults = []
    for bad, severity, code, text_of, remedy in checks:

        def describe(i: int, text_of: Callable[[int], str] = text_of) -> tuple[str, str]:
            where = f"category {train.category_ids[i]} ({train.class_names[i]!r})"
            return where, text_of(i)

        faults += faults_of(bad, severity, code, train.source, describe, remedy)
    return faults


def _different_classes(train: Annotations, other: Annotations, split: Split) -> Fault:
    in_train = set(zip(train.category_ids, train.class_names, strict=True))
    in_other = set(zip(other.category_ids, other.class_names, strict=True))
    differing = in_train ^ in_other
    first = min(differing)
    only_in = "train" if first in in_train else split
    id_, name = first
    text = f"train and {split} list different categories: {id_} ({name!r}) is only in {only_in}"
    remedy = "list the same categories in both annotation files"
    count = len(differing)
    items = listed(f"category {id_} ({name!r})" for id_, name in sorted(differing))
    fault = Fault("error", "category-differs", other.source, "", text, remedy, count, items)
    return fault.in_split(split)
