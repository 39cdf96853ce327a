"""The labels of a model and those of a data set: which of them are the same class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from redetr.class_names import same_classes
from redetr.data import DetectionDataset
from redetr.errors import InputError
from redetr.structures import DatasetDetections, Target
from redetr.wording import counted

_CLASSES_NAMED = 3  # in an error


def labels_in(
    dataset: DetectionDataset, num_classes: int, classes: Sequence[tuple[int, str]] | None = None
) -> np.ndarray:
    """For each label of a model, the label of the same class in `dataset`, int `[num_classes]`; -1
    if the data set lacks the class.

    `classes` and errors are described at `evaluation.detect_classes`.
    """
    dataset_classes = list(zip(dataset.category_ids, dataset.class_names, strict=True))
    model_classes = dataset_classes if classes is None else list(classes)
    unknown = [wanted for wanted in dataset_classes if wanted not in model_classes]
    model_labels = {}  # by the label in the data set
    if unknown:
        model_names = [name for _, name in model_classes]
        model_labels = _matched_by_name(dataset.class_names, model_names)
    else:
        for label, wanted in enumerate(dataset_classes):
            model_labels[label] = model_classes.index(wanted)
    knows_all = len(model_labels) == len(dataset_classes)
    if len(model_classes) != num_classes or not knows_all:
        if model_labels:  # the others are known by their names
            unknown = []
            for label, wanted in enumerate(dataset_classes):
                if label not in model_labels:
                    unknown.append(wanted)
        raise _other_classes(dataset.name, dataset_classes, unknown, num_classes, classes)
    labels = np.full(num_classes, -1)
    for label, model_label in model_labels.items():
        labels[model_label] = label
    return labels


def with_labels(detections: DatasetDetections, label_of: np.ndarray) -> DatasetDetections:
    """The detections with label `label_of[label]` instead of `label`, a label of the model; those
    that this makes -1 are dropped. `label_of` is int `[C]`."""
    labels = label_of[detections.labels]
    return replace(detections, labels=labels).keep(labels >= 0)


def model_labels_of(label_of: np.ndarray) -> Tensor:
    """For each label of a data set, that of the same class in a model: the inverse of what
    `labels_in` gives."""
    is_known = label_of >= 0
    model_labels = np.zeros(is_known.sum(), np.int64)
    model_labels[label_of[is_known]] = np.flatnonzero(is_known)
    return torch.from_numpy(model_labels)


def with_model_labels(target: Target, model_labels: Tensor) -> Target:
    """The target with label `model_labels[label]` instead of `label`."""
    labels = target["labels"]
    return {**target, "labels": model_labels.to(labels.device)[labels]}


def things_of(dataset: DetectionDataset, label_of: np.ndarray) -> tuple[bool, ...]:
    """Which classes of a model are things, according to the data set; classes that it lacks count
    as things. Empty if it does not state it."""
    if not dataset.is_thing:
        return ()
    return tuple(label < 0 or dataset.is_thing[label] for label in label_of.tolist())


def _matched_by_name(names: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """`same_classes`, whatever the ids; empty if a name belongs to several classes of the data, or
    of the model."""
    if len(set(names)) < len(names):
        return {}
    matches = same_classes(names, known)
    counts = Counter(known)
    if any(counts[known[match]] > 1 for match in matches.values()):
        return {}
    return matches


def _other_classes(
    name: str,
    dataset_classes: Sequence[tuple[int, str]],
    unknown: Sequence[tuple[int, str]],
    num_classes: int,
    classes: Sequence[tuple[int, str]] | None,
) -> InputError:
    """The error of a data set, called `name`, whose classes are not those of the model.

    `unknown` are those that the model lacks, and `classes` those that it has, if they are known.
    """
    known = counted(num_classes, "class", "classes")
    if classes:
        known += f", such as {_first(classes)}"
    theirs = f"such as {_first(dataset_classes)}"
    if unknown:
        theirs = f"of which the model does not know {_first(unknown)}"
    return InputError(
        f"the model knows {known}; {name} has {len(dataset_classes)}, {theirs}: "
        "give data with the categories it was trained on"
    )


def _first(classes: Sequence[tuple[int, str]]) -> str:
    """Describes the first classes."""
    described = [f"{name} ({category_id})" for category_id, name in classes[:_CLASSES_NAMED]]
    if len(classes) > _CLASSES_NAMED:
        described.append("...")
    return ", ".join(described)
