"""The data set doctor: what in a data set would spoil training or mislead, told before it does.

`essential_faults` is the part that training runs first: annotations and image headers. `check` adds
what takes longer, and the figures that `redetr check` shows.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from redetr.data.annotations import SPLITS, Annotations, Fault, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.forms.folder import AnnotatedDataset, FolderDataset, read_split
from redetr.data.forms.hub import hub_splits
from redetr.data.forms.layouts import splits_of
from redetr.data.headers import Header, read_headers
from redetr.data.images import read_image
from redetr.data.open import folder_of, open_dataset
from redetr.doctor.boxes import Plan, box_faults, class_counts, class_faults, is_sound, plan_faults
from redetr.doctor.images import copies, image_faults, unused_files
from redetr.errors import InputError

_MOST_CLASSES = 30  # in a printed table
_SCENES = 300  # of a split that is drawn on demand
COLORS = {"error": "bold red", "warning": "yellow", "note": "dim"}  # in order of weight


@dataclass(frozen=True)
class Report:
    """What a check found."""

    source: str
    splits: dict[Split, Annotations]
    headers: dict[Split, list[Header]]  # of the image files; none for data without files
    pixels: Callable[[Split, int], Tensor]  # image `i` of a split, uint8 [3, H, W]
    faults: list[Fault]  # errors first
    plan: Plan
    val_fraction: float = 0.0

    @property
    def errors(self) -> int:
        """How many kinds of faults would spoil training."""
        return sum(fault.severity == "error" for fault in self.faults)

    @property
    def verdict(self) -> str:
        """What to do, in plain words."""
        if self.errors:
            return (
                f"{self.errors} error{'s' * (self.errors > 1)}: training would be spoiled. Fix "
                "them, run again."
            )
        held_out = f"--val-fraction {self.val_fraction} " * bool(self.val_fraction)
        data = shlex.quote(self.source)
        return (
            f"ready to train: redetr train {self.plan.recipe} --data {data} {held_out}--output "
            "runs/mine"
        )

    def figures(self) -> dict[str, dict[str, Any]]:
        """What each split holds; "at most" is of the objects in an image, sizes are width x height
        in pixels."""
        return {split: _figures(annotations) for split, annotations in self.splits.items()}

    def classes(self) -> dict[str, dict[str, int]]:
        """Objects by class and split, crowds not counted."""
        counted: dict[str, dict[str, int]] = {}
        for split, annotations in self.splits.items():
            for name, count in zip(
                annotations.class_names, class_counts(annotations).tolist(), strict=True
            ):
                counts = counted.setdefault(name, dict.fromkeys(self.splits, 0))
                counts[split] += count
        return counted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        faults = [asdict(fault) | {"file": str(fault.file)} for fault in self.faults]
        return {
            "source": self.source,
            "verdict": self.verdict,
            "errors": self.errors,
            "splits": self.figures(),
            "classes": self.classes(),
            "faults": faults,
        }


def _figures(annotations: Annotations) -> dict[str, Any]:
    counts, sizes = annotations.object_counts(), annotations.sizes[:, ::-1]
    by_area = sizes[np.argsort(sizes.prod(1), kind="stable")]
    range_ = dict.fromkeys("{}x{}".format(*by_area[i]) for i in (0, -1) if len(by_area))
    return {
        "images": len(annotations),
        "empty": int((counts == 0).sum()),
        "objects": int(counts.sum()),
        "at most": int(counts.max(initial=0)),
        "classes": len(annotations.class_names),
        "sizes": " to ".join(range_),
    }


def check(
    source: str,
    recipe: str = "redetr_n",
    num_queries: int | None = None,
    thorough: bool = False,
    val_fraction: float = 0.0,
) -> Report:
    """Looks at every annotation and every image file of a data set: `digits`, `crowns`, or a
    folder.

    `num_queries` default to what training with the recipe would take. `thorough` decodes all
    images, which finds damage in the middle of files, and pictures that are nearly the same.
    `val_fraction` is as in `open_dataset`. Raises InputError if there is no data set.
    """
    if source == "digits" or source.startswith("hf:"):  # no files of images
        datasets, faults = _open(source, val_fraction)
        splits = {split: _annotations_of(dataset) for split, dataset in datasets.items()}
        plan = Plan.of(recipe, datasets["train"].hints, num_queries)
        faults += [*_faults(splits, {}), *plan_faults(splits, plan)]
        for split, data in datasets.items():
            if len(splits[split]) < len(data):
                text = (
                    f"{len(data):,} scenes, drawn on demand: these are the figures of the "
                    f"first {_SCENES}"
                )
                faults.append(Fault("note", "drawn", Path(source), split, text, "nothing to do"))
        return Report(
            source,
            splits,
            {},
            lambda split, i: datasets[split].image(i),
            _sorted(faults),
            plan,
            val_fraction,
        )
    splits, faults = _read(folder_of(source), val_fraction)
    complete = not faults
    seen = Hints(native_size=splits["train"].native_size()) if "train" in splits else Hints()
    plan = Plan.of(
        recipe, open_dataset(source, "train").hints if source == "crowns" else seen, num_queries
    )
    headers = {
        split: _headers(annotations, True, thorough) for split, annotations in splits.items()
    }
    faults += [*_faults(splits, headers), *plan_faults(splits, plan)]
    faults += copies(splits, headers)
    if complete and all(map(is_sound, splits.values())):  # nothing was left out
        faults += unused_files(splits.values())
    return Report(
        source,
        splits,
        headers,
        lambda split, i: read_image(splits[split].path(i)),
        _sorted(faults),
        plan,
        val_fraction,
    )


def essential_faults(train: DetectionDataset, val: DetectionDataset) -> list[Fault]:
    """What training has to know of open data sets before it starts, found in seconds: warnings,
    then notes.

    What `open_dataset` found is not told again. Raises InputError with the first error.
    """
    datasets: dict[Split, DetectionDataset] = {"train": train, "val": val}
    splits = {
        split: data.annotations
        for split, data in datasets.items()
        if isinstance(data, AnnotatedDataset)
    }
    files = {split for split, data in datasets.items() if isinstance(data, FolderDataset)}
    faults = _sorted(_faults(splits, {split: _headers(splits[split]) for split in files}))
    for annotations in splits.values():
        replace(annotations, faults=faults).require_sound()
    return faults


def _faults(
    splits: Mapping[Split, Annotations], headers: Mapping[Split, list[Header]]
) -> list[Fault]:
    """Of annotations and image headers."""
    faults = []
    for split, annotations in splits.items():
        own = [*annotations.faults, *box_faults(annotations)]
        if split in headers:
            own += image_faults(annotations, headers[split])
        faults += [fault.in_split(split) for fault in own]
    return faults + class_faults(splits)


def _headers(annotations: Annotations, content: bool = False, looks: bool = False) -> list[Header]:
    return read_headers(
        annotations.folder, [os.fsdecode(name) for name in annotations.names], content, looks
    )


def _sorted(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: list(COLORS).index(fault.severity))


def _read(root: Path, val_fraction: float) -> tuple[dict[Split, Annotations], list[Fault]]:
    """The splits that can be read, and why others cannot. Raises InputError if none can, for one
    reason."""
    splits: dict[Split, Annotations] = {}
    messages: dict[Split, str] = {}
    for split in SPLITS:
        try:
            if split != "test" or split in splits_of(root):
                splits[split], _ = read_split(root, split, val_fraction)
        except InputError as error:
            messages[split] = str(error)
    if not splits and len(set(messages.values())) == 1:
        raise InputError(messages["train"])
    return splits, [_unreadable(split, message) for split, message in messages.items()]


def _open(source: str, val_fraction: float) -> tuple[dict[Split, DetectionDataset], list[Fault]]:
    """The splits of a data set without files, and why its test split, if there is one, cannot be
    read.

    Raises InputError if train or val cannot be read.
    """
    datasets: dict[Split, DetectionDataset] = {}
    datasets["train"], datasets["val"] = (
        open_dataset(source, split, val_fraction) for split in ("train", "val")
    )
    try:
        if source != "digits" and "test" in hub_splits(source):
            datasets["test"] = open_dataset(source, "test")
    except InputError as error:
        return datasets, [_unreadable("test", str(error))]
    return datasets, []


def _unreadable(split: Split, error: str) -> Fault:
    file, _, message = error.partition(": ")
    text, _, remedy = message.partition("; ")
    return Fault("error", "split-unreadable", Path(file), "", text, remedy).in_split(split)


def _annotations_of(dataset: DetectionDataset) -> Annotations:
    """The annotations of a data set without files; of one that is drawn on demand, those of the
    first scenes."""
    if isinstance(dataset, AnnotatedDataset):
        return dataset.annotations
    targets = [dataset.target(i) for i in range(min(len(dataset), _SCENES))]
    boxes, labels, iscrowd, area = (
        torch.cat([target[key] for target in targets]).numpy()
        for key in ("boxes", "labels", "iscrowd", "area")
    )
    ids, sizes = (np.array([target[key] for target in targets]) for key in ("image_id", "size"))
    first = np.append(0, np.cumsum([len(target["labels"]) for target in targets]))
    return Annotations(
        Path(dataset.name),
        Path(dataset.name),
        ids.astype("S"),
        ids,
        sizes,
        dataset.category_ids,
        dataset.class_names,
        first,
        boxes,
        labels,
        iscrowd,
        area,
        np.arange(len(labels)),
    )


def print_report(report: Report, console: Console) -> None:
    """The figures of each split, the classes, the faults, and what to do."""
    figures = report.figures()
    splits = Table("split", *next(iter(figures.values()), ()), box=SIMPLE)
    for split, row in figures.items():
        splits.add_row(
            split, *(f"{value:,}" if isinstance(value, int) else value for value in row.values())
        )
    classes = Table("class", *report.splits, box=SIMPLE)
    common = sorted(report.classes().items(), key=lambda item: -sum(item[1].values()))
    for name, count in common[:_MOST_CLASSES]:
        classes.add_row(Text(name), *(f"{number:,}" for number in count.values()))
    if len(common) > _MOST_CLASSES:
        classes.add_row(f"and {len(common) - _MOST_CLASSES} more, rarer ones")
    faults = Table(
        "",
        Column("what is wrong, and what to do", overflow="fold"),
        "times",
        box=SIMPLE,
        show_lines=True,
    )
    for fault in report.faults:
        kind = Text.assemble((fault.severity, COLORS[fault.severity]), f"\n{fault.code}")
        faults.add_row(kind, Text(f"{fault}"), f"{fault.count:,}")
    for table in (splits, classes, faults):
        if table.rows:
            console.print(table)
    console.print(report.verdict, markup=False, soft_wrap=True)
