"""What every data set looks like from inside: uint8 images, boxes in xyxy pixels, contiguous labels."""

import os
import posixpath
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from redetr.data.transforms import Augment
from redetr.errors import InputError
from redetr.structures import Target

Split = Literal["train", "val"]

_CROWNS = Path(__file__).parent / "crowns"


@dataclass(frozen=True)
class Hints:
    """What suits a data set when the user says nothing; None leaves the choice to the recipe."""

    image_size: int | None = None  # longer side in pixels
    augment: Augment | None = None
    num_queries: int | None = None  # enough for the most objects in what the model sees of an image


class DetectionDataset(ABC, Dataset[tuple[Tensor, Target]]):
    """Images with boxes. Label `i` is called `class_names[i]` and has the id `category_ids[i]` in the source.

    `notes` are sentences that a user should read once, such as how many boxes were left out.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    hints: Hints = Hints()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def target(self, index: int) -> Target:
        """The objects of one image, boxes xyxy in pixels of the stored image, which is not decoded for it."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image, uint8 `[3, H, W]` RGB. Raises InputError if its file cannot be decoded."""

    def sample(self, index: int) -> tuple[Tensor, Target]:
        """Image and target together; cheaper than asking for each where both come from one computation."""
        return self.image(index), self.target(index)

    def require_whole_images(self) -> None:
        """Raises InputError for an image file that is cut short, so that it is not met in the middle of a night."""

    def max_objects(self) -> int:
        """The most objects in one image, crowds not counted."""
        return max((int((~self.target(i)["iscrowd"]).sum()) for i in range(len(self))), default=0)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.sample(index)

    def _position(self, index: int) -> int:
        """`index` counted from the front. Raises IndexError outside of the data set."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.name}")
        return index % len(self)


def open_dataset(source: str | Path, split: Split) -> DetectionDataset:
    """The data set called `digits` or `crowns`, or that in a folder (`./digits` is a folder of that name).

    Folders are in COCO form: `annotations/instances_train*.json` and `instances_val*.json`, or
    `train/_annotations.coco.json` and `valid/_annotations.coco.json`.
    Raises InputError if there is no such folder, layout or split, or the annotations are faulty.
    """
    from redetr.data.coco import CocoDataset, is_coco_folder
    from redetr.data.digits import DigitsDataset

    if split not in ("train", "val"):
        raise ValueError(f"split is train or val, not {split!r}")
    if source == "digits":
        return DigitsDataset(split)
    if source == "crowns":
        return CocoDataset.open(_CROWNS, split, "crowns", Hints(image_size=128, augment="aerial", num_queries=25))
    folder = Path(source).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; give the folder of a data set, or digits or crowns")
    if not any(folder.iterdir()):
        raise InputError(f"{folder}: the folder is empty; put a data set in COCO form into it")
    if not is_coco_folder(folder):
        raise InputError(
            f"{folder}: no data set found: looked for COCO (annotations/instances_train*.json, or"
            " train/_annotations.coco.json); give the folder that holds these, or export your data as COCO"
        )
    return CocoDataset.open(folder, split)


def require_same_classes(train: DetectionDataset, val: DetectionDataset) -> None:
    """Raises InputError if the two number their classes differently: a label would mean two things."""
    if train.category_ids == val.category_ids and train.class_names == val.class_names:
        return
    classes = [set(zip(split.category_ids, split.class_names, strict=True)) for split in (train, val)]
    odd = min(classes[0] ^ classes[1])
    where = "train" if odd in classes[0] else "val"
    raise InputError(
        f"{train.name}: train and val list different categories: {odd[0]} ({odd[1]!r}) is only in {where};"
        " write the same categories into both annotation files"
    )


def path_inside(name: Any) -> str:
    """The relative path with forward slashes and no detours; empty if it is none or leads elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return ""
    path = posixpath.normpath(name.replace("\\", "/"))
    leads_out = path in (".", "..") or path.startswith(("/", "../")) or re.match("[A-Za-z]:", path)
    return "" if leads_out else path


def find_files(names: list[str], folders: list[Path]) -> tuple[Path, np.ndarray]:
    """The first of the folders that holds most of the files, and which files it lacks, bool `[N]`."""
    candidates = [folder for folder in folders if folder.is_dir()] or folders[:1]
    lacking = [_missing(folder, names) for folder in candidates]
    best = min(range(len(candidates)), key=lambda i: lacking[i].sum())
    return candidates[best], lacking[best]


def _missing(folder: Path, names: list[str]) -> np.ndarray:
    """Which files the folder lacks, bool `[N]`. Lists each folder once: asking file by file is slow."""

    @cache
    def files(parent: str) -> set[str]:
        try:
            return set(os.listdir(folder / parent))
        except OSError:
            return set()

    parts = [name.rpartition("/") for name in names]
    return np.array([file not in files(parent) for parent, _, file in parts])
