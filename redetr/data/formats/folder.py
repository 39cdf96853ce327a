"""Data sets that are folders of images, whatever format their annotations have."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.formats.holdout import hold_out
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.images import read_image
from redetr.data.store import read_stored
from redetr.errors import InputError
from redetr.structures import Size, StoredTarget


def open_folder(
    root: Path, split: Split, hints: Hints, val_fraction: float, stamp: str | None = None
) -> "FolderDataset":
    """The split of the data set in `root`, a folder or a YAML file. Without a val split,
    `val_fraction` of the images are held out as one. `stamp` is that of the folder, if it is known.

    Raises InputError if the split is missing or faulty.
    """
    annotations, note = read_stored(root, split, val_fraction, stamp, read_split)
    folder = root.parent if root.is_file() else root
    name = folder.resolve().name
    return FolderDataset(annotations, name, hints, note)


def read_split(root: Path, split: Split, val_fraction: float) -> tuple[Annotations, str]:
    """What `open_folder` takes, faults not yet judged, and a sentence on `val_fraction`. Raises
    InputError."""
    if not val_fraction or split == "test":
        return read_annotations(root, split), ""
    if "val" not in splits_of(root):
        everything = read_annotations(root, "train")
        return hold_out(everything, split, val_fraction)
    annotations = read_annotations(root, split)
    return annotations, f"{root}: has its own val split, --val-fraction is not used"


class AnnotatedDataset(DetectionDataset):
    """Images with their annotations. A worker process is sent no more than a few arrays."""

    def __init__(self, annotations: Annotations, name: str, hints: Hints = Hints(), note: str = ""):
        """Raises InputError if the annotations have errors."""
        annotations.require_sound()
        notes = [str(fault) for fault in annotations.faults]
        if note:
            notes.append(note)
        self.name = name
        self.hints = replace(hints, native_size=annotations.native_size())
        self.notes = tuple(notes)
        self.category_ids = annotations.category_ids
        self.class_names = annotations.class_names
        self.annotations = replace(annotations, faults=[])

    @abstractmethod
    def _read(self, position: int) -> Tensor:
        """The decoded image. Raises InputError."""

    def __len__(self) -> int:
        return len(self.annotations)

    def image_id(self, index: int) -> int:
        return int(self.annotations.ids[self._position(index)])

    def stored_size(self, index: int) -> Size:
        height, width = self.annotations.sizes[self._position(index)].tolist()
        return height, width

    def max_objects(self) -> int:
        return int(self.annotations.object_counts().max(initial=0))

    def target(self, index: int) -> StoredTarget:
        position = self._position(index)
        source = self.annotations
        objects = source.objects_of(position)
        height, width = source.sizes[position].tolist()

        def column(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[objects].copy())

        return StoredTarget(
            boxes=column(source.boxes),
            labels=column(source.labels),
            image_id=int(source.ids[position]),
            orig_size=(height, width),
            size=(height, width),
            iscrowd=column(source.iscrowd),
            area=column(source.area),
        )

    def image(self, index: int) -> Tensor:
        """The pixels as stored, uint8 `[3, H, W]`: boxes count these, so EXIF orientation is not
        applied.

        Raises InputError if the file cannot be decoded or does not have the size that the
        annotations state.
        """
        position = self._position(index)
        image = self._read(position)
        _, height, width = image.shape
        stated_height, stated_width = self.annotations.sizes[position].tolist()
        if (height, width) == (stated_height, stated_width):
            return image
        remedy = "put back the file that was annotated, or export the annotations again"
        if (width, height) == (stated_height, stated_width):
            remedy = (
                "it was annotated as its EXIF tag turns it: save it turned that way, without "
                "the tag"
            )
        statement = f"{self.annotations.source} says {stated_width}x{stated_height}"
        raise InputError(
            f"is {width}x{height} px, but {statement}",
            where=self.annotations.path(position),
            remedy=remedy,
        )


class FolderDataset(AnnotatedDataset):
    """Images in files."""

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.annotations.path(self._position(index))

    def _read(self, position: int) -> Tensor:
        return read_image(self.path(position))
