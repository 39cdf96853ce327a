"""Data sets that are folders of images, whatever form their annotations have."""

import hashlib
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.forms.layouts import read_annotations, splits_of
from redetr.data.images import read_image, require_whole
from redetr.errors import InputError
from redetr.structures import StoredTarget


def open_folder(root: Path, split: Split, hints: Hints, val_fraction: float) -> "FolderDataset":
    """The split of the data set in `root`, a folder or a YAML file. Without a val split,
    `val_fraction` of the images are held out as one.

    Raises InputError if the split is missing or faulty.
    """
    annotations, note = read_split(root, split, val_fraction)
    folder = root.parent if root.is_file() else root
    return FolderDataset(annotations, folder.resolve().name, hints, note)


def read_split(root: Path, split: Split, val_fraction: float) -> tuple[Annotations, str]:
    """What `open_folder` takes, faults not yet judged, and a sentence on `val_fraction`. Raises
    InputError."""
    if not val_fraction or split == "test":
        return read_annotations(root, split), ""
    if "val" not in splits_of(root):
        return hold_out(read_annotations(root, "train"), split, val_fraction)
    return read_annotations(
        root, split
    ), f"{root}: has a val split of its own, --val-fraction is not used"


def hold_out(annotations: Annotations, split: Split, fraction: float) -> tuple[Annotations, str]:
    """A train or val split of the images of both, and a sentence about it.

    An image is held out for validation by the hash of its name: adding others does not move it.
    Raises InputError if one of the two would be empty.
    """
    draws = [hashlib.blake2b(name, digest_size=8).digest() for name in annotations.names.tolist()]
    chosen = np.array([int.from_bytes(draw, "big") < fraction * 2**64 for draw in draws], bool)
    share = f"{chosen.sum()} of {len(chosen)} images"
    if chosen.all() or not chosen.any():
        raise InputError(
            f"{annotations.source}: --val-fraction {fraction} holds out {share}; choose another one"
        )
    note = f"no val split: {share} are held out as one, chosen by a hash of their names"
    everything = np.ones(len(annotations.boxes), bool)
    return annotations.only(chosen if split == "val" else ~chosen, everything), note


class AnnotatedDataset(DetectionDataset):
    """Images with their annotations. All that a worker process is sent is a few arrays."""

    def __init__(self, annotations: Annotations, name: str, hints: Hints = Hints(), note: str = ""):
        """Raises InputError if the annotations have errors."""
        annotations.require_sound()
        self.name, self.hints = name, replace(hints, native_size=annotations.native_size())
        self.notes = (*map(str, annotations.faults), *filter(None, [note]))
        self.category_ids, self.class_names = annotations.category_ids, annotations.class_names
        self.annotations = replace(annotations, faults=[])

    @abstractmethod
    def _read(self, position: int) -> Tensor:
        """The decoded image. Raises InputError."""

    def __len__(self) -> int:
        return len(self.annotations)

    def image_id(self, index: int) -> int:
        return int(self.annotations.ids[self._position(index)])

    def max_objects(self) -> int:
        return int(self.annotations.object_counts().max(initial=0))

    def target(self, index: int) -> StoredTarget:
        position, source = self._position(index), self.annotations
        own = slice(source.first[position], source.first[position + 1])
        boxes, labels, iscrowd, area = (
            torch.from_numpy(array[own].copy())
            for array in (source.boxes, source.labels, source.iscrowd, source.area)
        )
        image_id, (height, width) = int(source.ids[position]), source.sizes[position].tolist()
        size = (height, width)
        return StoredTarget(
            boxes=boxes,
            labels=labels,
            image_id=image_id,
            orig_size=size,
            size=size,
            iscrowd=iscrowd,
            area=area,
        )

    def image(self, index: int) -> Tensor:
        """The pixels as stored, uint8 `[3, H, W]`: boxes count these, so EXIF orientation is not
        applied.

        Raises InputError if the file cannot be decoded or does not have the size that the
        annotations state.
        """
        position = self._position(index)
        image = self._read(position)
        (height, width), stated = image.shape[1:], self.annotations.sizes[position].tolist()
        if [height, width] == stated:
            return image
        remedy = "put back the file that was annotated, or export the annotations again"
        if [width, height] == stated:
            remedy = (
                "it was annotated as its EXIF tag turns it: save it turned that way, without "
                "the tag"
            )
        says = f"{self.annotations.source} says {stated[1]}x{stated[0]}"
        raise InputError(
            f"{self.annotations.path(position)}: is {width}x{height} px, but {says}; {remedy}"
        )


class FolderDataset(AnnotatedDataset):
    """Images in files."""

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.annotations.path(self._position(index))

    def require_whole_images(self) -> None:
        for index in range(len(self)):
            require_whole(self.path(index))

    def _read(self, position: int) -> Tensor:
        return read_image(self.path(position))
