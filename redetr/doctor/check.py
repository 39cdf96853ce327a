"""The data set doctor: finds faults in a data set before they spoil or mislead training.

`essential_faults` is the part that training runs first, on annotations and image headers. `check`
adds checks that take longer, and the figures that `redetr check` shows.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redetr.bounds import require_in_bounds
from redetr.choices import ImageSize
from redetr.config import MOST_QUERIES
from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.faults import Fault
from redetr.data.formats.folder import (
    AnnotatedDataset,
    FolderDataset,
    read_split,
)
from redetr.data.formats.holdout import for_a_single_image, fraction_fault, fraction_unused
from redetr.data.formats.hub import HubDataset, hub_splits
from redetr.data.formats.layouts import splits_of
from redetr.data.header_cache import Headers
from redetr.data.headers import headers_of_contents, read_headers
from redetr.data.images import ROW_REMEDY, channels_to_look_at, read_image
from redetr.data.mask_columns import MaskUse
from redetr.data.open import folder_of, open_dataset
from redetr.data.store import remembered
from redetr.data.unclaimed import unclaimed_files
from redetr.doctor.boxes import box_faults, is_sound, plan_faults
from redetr.doctor.classes import class_counts, class_faults
from redetr.doctor.images import copies, image_faults
from redetr.doctor.plan import Plan
from redetr.doctor.samples import Pixels, Sample, decode_samples, samples_of
from redetr.doctor.splits import mask_faults, of_split
from redetr.errors import InputError, NoMasksError, explained
from redetr.metrics import distinct_names
from redetr.recipes import get_recipe

_ONE_ERROR = "1 error would spoil training. Fix it and run again."
_SCENES = 300  # of a split that is drawn on demand
COLORS = {"error": "bold red", "warning": "yellow", "note": "dim"}  # in order of weight


@dataclass(frozen=True)
class Report:
    """The result of a check."""

    source: str
    splits: dict[Split, Annotations]
    pixels: Pixels
    faults: list[Fault]  # errors first
    plan: Plan
    samples: list[Sample]  # images that its page shows
    val_fraction: float = 0.0

    @property
    def errors(self) -> int:
        """The number of kinds of faults that would spoil training."""
        return sum(fault.severity == "error" for fault in self.faults)

    @property
    def verdict(self) -> str:
        """The conclusion, in plain words."""
        if self.errors == 1:
            return _ONE_ERROR
        if self.errors:
            return f"{self.errors} errors would spoil training. Fix them and run again."
        command = f"redetr train {self.plan.recipe} --data {shlex.quote(self.source)}"
        command += self.plan.flags
        if self.val_fraction:
            command += f" --val-fraction {self.val_fraction}"
        return f"ready to train: {command} --output runs/mine"

    def figures(self) -> dict[str, dict[str, Any]]:
        """The contents of each split. "ignored" are crowds and difficult objects, sizes are width x
        height in pixels, and "masks" are objects with a mask, if any has one."""
        figures: dict[str, dict[str, Any]] = {}
        for split, annotations in self.splits.items():
            figures[split] = _figures(annotations)
        counts = {split: _count_masks(annotations) for split, annotations in self.splits.items()}
        if any(counts.values()):
            for split, count in counts.items():
                figures[split]["masks"] = count
        return figures

    def classes(self) -> dict[str, dict[str, int]]:
        """The number of objects by class and split, without crowds. Classes with the same name are
        distinguished by their labels."""
        return self._by_class(class_counts)

    def classes_with_masks(self) -> dict[str, dict[str, int]]:
        """The number of objects with a mask by class and split, without crowds; empty if all
        objects have one, or none has."""
        with_masks = self._by_class(_masked_class_counts)
        counts = sum(sum(row.values()) for row in with_masks.values())
        return with_masks if counts and with_masks != self.classes() else {}

    def class_columns(self) -> dict[str, dict[str, int]]:
        """The columns of a table of the classes: the number of objects in each split and, if some
        have no mask, of those with one. The most common class comes first."""
        classes = self.classes()
        with_masks = self.classes_with_masks()
        most_common = sorted(classes, key=lambda name: sum(classes[name].values()), reverse=True)
        table = {}
        for name in most_common:
            table[name] = dict(classes[name])
            for split, count in with_masks.get(name, {}).items():
                table[name][f"{split}, with masks"] = count
        return table

    def _by_class(self, count: Callable[[Annotations], np.ndarray]) -> dict[str, dict[str, int]]:
        """A number for each class and split; `count` gives those of the classes of a split."""
        table: dict[str, dict[str, int]] = {}
        for split, annotations in self.splits.items():
            names = distinct_names(annotations.class_names)
            for name, number in zip(names, count(annotations).tolist(), strict=True):
                if name not in table:
                    table[name] = dict.fromkeys(self.splits, 0)
                table[name][split] += number
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        faults = [fault.to_json() for fault in self.faults]
        return {
            "source": self.source,
            "verdict": self.verdict,
            "errors": self.errors,
            "splits": self.figures(),
            "classes": self.classes(),
            "classes_with_masks": self.classes_with_masks(),
            "faults": faults,
        }


def unopened(source: str, error: InputError | OSError) -> dict[str, Any]:
    """What `Report.to_dict` says of a data set that cannot be opened, because of this error."""
    if isinstance(error, OSError):
        error = explained(error)
    fault = Fault.from_error("data-unreadable", error, source)
    return {
        "source": source,
        "verdict": _ONE_ERROR,
        "errors": 1,
        "splits": {},
        "classes": {},
        "classes_with_masks": {},
        "faults": [fault.to_json()],
    }


def _figures(annotations: Annotations) -> dict[str, Any]:
    counts = annotations.object_counts()
    return {
        "images": len(annotations),
        "empty": int((counts == 0).sum()),
        "objects": int(counts.sum()),
        "ignored": int(annotations.iscrowd.sum()),
        "most per image": int(counts.max(initial=0)),
        "classes": len(annotations.class_names),
        "sizes": _size_range(annotations.sizes),
    }


def _count_masks(annotations: Annotations) -> int:
    """How many objects have a mask, without crowds."""
    return int(_masked_class_counts(annotations).sum())


def _masked_class_counts(annotations: Annotations) -> np.ndarray:
    """The number of objects of each class with a mask, without crowds, int64 `[C]`."""
    counted = np.zeros(len(annotations.labels), bool)
    if annotations.masks is not None:
        counted = annotations.masks.has_mask & ~annotations.iscrowd
    return np.bincount(annotations.labels[counted], minlength=len(annotations.class_names))


def _size_range(sizes: np.ndarray) -> str:
    """A text such as "64x48 to 800x600", from the smallest area to the largest; a single size if
    all are equal."""
    if not len(sizes):
        return ""
    areas = sizes.prod(1)
    by_area = sizes[np.argsort(areas, kind="stable")]
    words = []
    for height, width in (by_area[0], by_area[-1]):
        words.append(f"{width}x{height}")
    smallest, largest = words
    return smallest if smallest == largest else f"{smallest} to {largest}"


def check(
    source: str,
    recipe: str = "redetr_n",
    num_queries: int | None = None,
    thorough: bool = False,
    val_fraction: float = 0.0,
    image_size: ImageSize = 0,
    masks: bool = False,
    samples: bool = False,
) -> Report:
    """Checks all annotations and images of a data set, which is given as for `open_dataset`.

    `num_queries` defaults to the choice of training with this recipe. `thorough` decodes all
    images, which finds damage in the middle of files, and near-duplicates; `samples` decodes those
    that the page shows. `val_fraction` is described in `open_dataset`, and `image_size` in
    `TrainConfig`. Faults of masks are errors with `masks` or a recipe that trains them, and
    warnings otherwise. Raises InputError if there is no data set, if training would refuse the
    settings, or for `thorough` where images are not files.
    """
    require_in_bounds("val_fraction", val_fraction)
    masks = masks or get_recipe(recipe).masks
    if source == "digits" or source.startswith("hf:"):
        if thorough:
            text = "--thorough looks at image files, but the images of this data set are not files"
            remedy = "leave it out, or write the images to a folder with redetr convert"
            raise InputError(text, where=source, remedy=remedy)
        return _check_without_files(
            source, recipe, num_queries, val_fraction, image_size, masks, samples
        )
    return _check_folder(
        source, recipe, num_queries, thorough, val_fraction, image_size, masks, samples
    )


def _check_without_files(
    source: str,
    recipe: str,
    num_queries: int | None,
    val_fraction: float,
    image_size: ImageSize,
    masks: bool,
    decode: bool,
) -> Report:
    """The report on a data set whose images are not files, but drawn, or rows of Hugging Face
    `datasets`."""
    datasets, faults = _open(source, val_fraction, masks)
    splits: dict[Split, Annotations] = {}
    for split, dataset in datasets.items():
        splits[split] = _annotations_of(dataset)
    train = datasets["train"]
    if val_fraction and fraction_unused(source) in train.notes:
        faults.append(fraction_fault(Path(source)))
        val_fraction = 0.0  # the verdict would suggest it
    most = int(train.max_objects())
    plan = Plan.of(recipe, train.hints, num_queries, image_size, masks, most)
    headers = {}
    for split, dataset in datasets.items():
        if isinstance(dataset, HubDataset):
            headers[split] = headers_of_contents(len(dataset), dataset.content)

    def pixels(split: Split, index: int) -> Tensor:
        return datasets[split].image(index)

    samples = samples_of(splits, headers)
    if decode:
        samples = decode_samples(samples, splits, headers, pixels)
    faults += _faults(splits, headers)
    faults += plan_faults(splits, plan)
    stored_splits = {split: splits[split] for split in headers}
    faults += copies(stored_splits, headers)
    if masks:
        faults += mask_faults(stored_splits)
    for split, dataset in datasets.items():
        scenes = len(dataset)
        if scenes > len(splits[split]):
            text = (
                f"{scenes:,} scenes, drawn on demand: the figures are those of the first {_SCENES}"
            )
            faults.append(Fault("note", "drawn", Path(source), split, text, "nothing to do"))
    return Report(source, splits, pixels, _sorted(faults), plan, samples, val_fraction)


def _check_folder(
    source: str,
    recipe: str,
    num_queries: int | None,
    thorough: bool,
    val_fraction: float,
    image_size: ImageSize,
    masks: bool,
    decode: bool,
) -> Report:
    """The report on a data set with image files."""
    folder = folder_of(source)
    splits, faults = _read(folder, val_fraction, "train" if masks else "check")
    is_complete = not faults
    if val_fraction and "val" in splits_of(folder):
        faults.append(fraction_fault(folder))
        val_fraction = 0.0  # the verdict would suggest it
    if masks:
        faults += mask_faults(splits)
    train = splits.get("train")
    hints = _hints(source, train)
    plan = Plan.of(recipe, hints, num_queries, image_size, masks, _max_objects(train))
    headers = {}
    for split, annotations in splits.items():
        headers[split] = _headers(annotations, content=True, looks=thorough)

    def pixels(split: Split, index: int) -> Tensor:
        path = splits[split].path(index)
        return read_image(path, channels_to_look_at(path))

    samples = samples_of(splits, headers)
    if decode:
        samples = decode_samples(samples, splits, headers, pixels)
    faults += _faults(splits, headers)
    faults += plan_faults(splits, plan)
    faults += copies(splits, headers)
    everything_is_read = is_complete and all(is_sound(split) for split in splits.values())
    if everything_is_read:  # otherwise, a file may belong to a part that was left out
        faults += unclaimed_files(splits)
    return Report(source, splits, pixels, _sorted(faults), plan, samples, val_fraction)


def _hints(source: str, train: Annotations | None) -> Hints:
    if source == "crowns":
        return open_dataset(source, "train").hints
    if train is None:
        return Hints()
    return Hints(native_size=train.native_size())


def _max_objects(train: Annotations | None) -> int:
    """The most objects in an image of train; `MOST_QUERIES` if that is not known."""
    if train is None or not is_sound(train):
        return MOST_QUERIES
    return int(train.object_counts().max(initial=0))


def essential_faults(train: DetectionDataset, val: DetectionDataset) -> list[Fault]:
    """The warnings and notes on open data sets that matter before training, found in seconds.

    Faults that `open_dataset` reported are not repeated. The faults of stored data sets are cached.
    Raises InputError with the first error.
    """
    annotated = [data.annotations for data in (train, val) if isinstance(data, AnnotatedDataset)]

    def compute() -> list[dict[str, Any]]:
        return [fault.to_json() for fault in _essential_faults(train, val)]

    rows = remembered(annotated, "faults", compute)
    return [Fault.from_json(row) for row in rows]


def _essential_faults(train: DetectionDataset, val: DetectionDataset) -> list[Fault]:
    datasets: dict[Split, DetectionDataset] = {"train": train, "val": val}
    splits: dict[Split, Annotations] = {}
    headers: dict[Split, Headers] = {}
    for split, dataset in datasets.items():
        if isinstance(dataset, AnnotatedDataset):
            splits[split] = dataset.annotations
        if isinstance(dataset, FolderDataset):
            headers[split] = _headers(dataset.annotations)
    faults = _sorted(_faults(splits, headers))
    for annotations in splits.values():
        replace(annotations, faults=faults).require_sound()
    return _sorted(faults + unclaimed_files(splits))


def _faults(splits: Mapping[Split, Annotations], headers: Mapping[Split, Headers]) -> list[Fault]:
    """The faults of annotations and image headers. One that a reader found in several splits, such
    as that of a file with the annotations of all, is reported once."""
    faults: dict[Fault, None] = {}  # an ordered set
    reader_faults: set[Fault] = set()
    for split, annotations in splits.items():
        for fault in annotations.faults:
            if fault not in reader_faults:
                reader_faults.add(fault)
                faults[fault.in_split(split)] = None
        split_faults = box_faults(annotations)
        if split in headers:
            file_faults = image_faults(annotations, headers[split])
            if str(annotations.source).startswith("hf:"):
                file_faults = [_of_row(fault) for fault in file_faults]
            split_faults += file_faults
        faults |= dict.fromkeys(of_split(split_faults, split, splits))
    return [*faults, *class_faults(splits)]


def _of_row(fault: Fault) -> Fault:
    """The fault of an image file with a remedy for images in rows, which --skip-unreadable does not
    leave out."""
    if fault.code != "image-unreadable":
        return fault
    return replace(fault, remedy=ROW_REMEDY)


def _headers(annotations: Annotations, content: bool = False, looks: bool = False) -> Headers:
    names = [os.fsdecode(name) for name in annotations.names]
    return read_headers(annotations.folder, names, content, looks)


def _sorted(faults: list[Fault]) -> list[Fault]:
    severities = list(COLORS)
    return sorted(faults, key=lambda fault: severities.index(fault.severity))


def _read(
    root: Path, val_fraction: float, masks: MaskUse
) -> tuple[dict[Split, Annotations], list[Fault]]:
    """The splits that can be read, with masks for this use, and faults for those that cannot.
    Raises InputError if none can be read."""
    splits: dict[Split, Annotations] = {}
    errors: dict[Split, InputError] = {}
    for split in SPLITS:
        try:
            if split != "test" or split in splits_of(root):
                splits[split], _ = read_split(root, split, val_fraction, masks)
        except InputError as error:
            if split == "val" and _is_single_image(root, splits.get("train")):
                error.remedy = for_a_single_image(root)
            errors[split] = error
    reasons = {str(error) for error in errors.values()}
    if not splits and len(reasons) == 1:
        raise errors["train"]
    return splits, [_unreadable(split, reason, root) for split, reason in errors.items()]


def _is_single_image(root: Path, train: Annotations | None) -> bool:
    """Whether the data set in `root` has a train split of one image, and no val split. Errors may
    have left out other images."""
    if train is None or len(train) != 1 or not is_sound(train):
        return False
    return "val" not in splits_of(root)


def _open(
    source: str, val_fraction: float, masks: bool
) -> tuple[dict[Split, DetectionDataset], list[Fault]]:
    """The splits of a data set without files, and a fault if it has a test split that cannot be
    read. A test split that lacks the `masks` that are asked for is read without.

    Raises InputError if train or val cannot be read, or lacks them.
    """
    datasets: dict[Split, DetectionDataset] = {
        "train": open_dataset(source, "train", val_fraction, masks=masks),
        "val": open_dataset(source, "val", val_fraction, masks=masks),
    }
    try:
        if source != "digits" and "test" in hub_splits(source):
            datasets["test"] = open_dataset(source, "test", masks=masks)
    except NoMasksError:
        datasets["test"] = open_dataset(source, "test")
    except InputError as error:
        return datasets, [_unreadable("test", error, Path(source))]
    return datasets, []


def _unreadable(split: Split, error: InputError, source: Path) -> Fault:
    return Fault.from_error("split-unreadable", error, source).in_split(split)


def _annotations_of(dataset: DetectionDataset) -> Annotations:
    """The annotations of a data set without files. If it is drawn on demand, those of the first
    scenes."""
    if isinstance(dataset, HubDataset):
        return replace(dataset.annotations, faults=list(dataset.faults))
    if isinstance(dataset, AnnotatedDataset):
        return dataset.annotations
    image_ids = []
    sizes = []
    object_counts = []
    columns: dict[str, list[Tensor]] = {"boxes": [], "labels": [], "iscrowd": [], "area": []}
    for i in range(min(len(dataset), _SCENES)):
        target = dataset.target(i)
        image_ids.append(target["image_id"])
        sizes.append(target["size"])
        object_counts.append(len(target["labels"]))
        columns["boxes"].append(target["boxes"])
        columns["labels"].append(target["labels"])
        columns["iscrowd"].append(target["iscrowd"])
        columns["area"].append(target["area"])
    ids = np.array(image_ids)
    labels = torch.cat(columns["labels"]).numpy()
    return Annotations(
        source=Path(dataset.name),
        folder=Path(dataset.name),
        names=ids.astype("S"),
        ids=ids,
        sizes=np.array(sizes),
        category_ids=dataset.category_ids,
        class_names=dataset.class_names,
        first=np.append(0, np.cumsum(object_counts)),
        boxes=torch.cat(columns["boxes"]).numpy(),
        labels=labels,
        iscrowd=torch.cat(columns["iscrowd"]).numpy(),
        area=torch.cat(columns["area"]).numpy(),
        object_ids=np.arange(len(labels)),
    )
