"""Data sets of images in a folder, with annotations in any format."""

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redetr.data.annotations import Annotations, Split, data_folder
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.formats.holdout import fraction_unused, hold_out
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.images import SIZE_REMEDY, count_bands, read_image
from redetr.data.mask_columns import MaskUse
from redetr.data.store import read_stored
from redetr.data.unreadable import LeaveOut, without
from redetr.errors import InputError, NoMasksError
from redetr.masks import box_rle, decode, empty_rle
from redetr.structures import Size, StoredTarget


def open_folder(
    root: Path,
    split: Split,
    hints: Hints,
    val_fraction: float,
    stamp: str | None = None,
    masks: bool = False,
    leave_out: LeaveOut = None,
) -> "FolderDataset":
    """A split of the data set in `root`, a folder or a YAML file.

    If there is no val split, `val_fraction` of the images are held out for validation. `stamp` is
    the stamp of the folder, if it is known; `leave_out` is described in `unreadable.without`.
    Raises InputError if the split is missing or has errors.
    """
    if stamp is None:
        splits_of(root)  # raises first: a folder without a data set may be far too large to search
    use: MaskUse = "train" if masks else "none"
    annotations, note = read_stored(root, split, val_fraction, stamp, read_split, use)
    annotations = without(annotations, leave_out)
    if masks:
        annotations.require_sound()
        require_masks(annotations)
    folder = data_folder(root)
    name = folder.resolve().name
    return FolderDataset(annotations, name, hints, note)


def read_split(
    root: Path, split: Split, val_fraction: float, masks: MaskUse = "none"
) -> tuple[Annotations, str]:
    """The annotations for `open_folder`, whose faults were not yet judged, and a sentence on
    `val_fraction`. Raises InputError if the split cannot be read."""
    if not val_fraction or split == "test":
        return read_annotations(root, split, masks), ""
    if "val" not in splits_of(root):
        everything = read_annotations(root, "train", masks)
        return hold_out(everything, split, val_fraction, root)
    annotations = read_annotations(root, split, masks)
    return annotations, fraction_unused(root)


def require_masks(annotations: Annotations) -> None:
    """Raises NoMasksError if there are objects, but none of them has a mask."""
    masks = annotations.masks
    has_masks = masks is not None and masks.has_mask.any()
    if has_masks or annotations.iscrowd.all():
        return
    remedy = "draw outlines, or train without --masks"
    raise NoMasksError("has only boxes, no masks", where=annotations.source, remedy=remedy)


def unreadable_of(dataset: DetectionDataset) -> dict[str, str]:
    """The names of the images that were left out of a data set, with the reasons why they cannot be
    read."""
    return dataset.annotations.unreadable if isinstance(dataset, AnnotatedDataset) else {}


class AnnotatedDataset(DetectionDataset):
    """Images with their annotations. Sent to worker processes as a few arrays.

    Targets have masks if masks were read. The mask of a crowd without one is its box; that of any
    other object without one is empty, which means that it is not known.
    """

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
        self.has_masks = annotations.masks is not None
        self.is_thing = annotations.is_thing

    @abstractmethod
    def _read(self, position: int) -> Tensor:
        """The decoded image, uint8 `[channels, H, W]`. Raises InputError if it cannot be
        decoded."""

    def __len__(self) -> int:
        return len(self.annotations)

    def image_id(self, index: int) -> int:
        return int(self.annotations.ids[self._position(index)])

    def stored_size(self, index: int) -> Size:
        height, width = self.annotations.sizes[self._position(index)].tolist()
        return height, width

    def max_objects(self) -> int:
        return int(self.annotations.object_counts().max(initial=0))

    def without_mask(self) -> np.ndarray:
        """Which objects have no mask, bool `[A]`. A crowd needs none."""
        masks = self.annotations.masks
        if masks is None:
            return ~self.annotations.iscrowd
        return ~(masks.has_mask | self.annotations.iscrowd)

    def target(self, index: int) -> StoredTarget:
        target = self.compact_target(index)
        if "mask_counts" in target:
            target["masks"] = decode(target.pop("mask_counts"), target["size"])
        return target

    def compact_target(self, index: int) -> StoredTarget:
        target = self.objects(index)
        masks = self.annotations.masks
        if masks is not None:
            size = target["size"]
            objects = self.annotations.objects_of(self._position(index))
            columns = (masks.rles(objects, size), target["boxes"], target["iscrowd"])
            target["mask_counts"] = []
            for counts, box, is_crowd in zip(*columns, strict=True):
                if not counts:
                    counts = box_rle(box.tolist(), size) if is_crowd else empty_rle(size)
                target["mask_counts"].append(counts)
        return target

    def objects(self, index: int) -> StoredTarget:
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
        """The pixels as stored, uint8 `[channels, H, W]`. Boxes refer to these, so EXIF orientation
        is not applied.

        Raises InputError if the file cannot be decoded, or if it does not have the size that the
        annotations state.
        """
        position = self._position(index)
        image = self._read(position)
        _, height, width = image.shape
        stated_height, stated_width = self.annotations.sizes[position].tolist()
        if (height, width) == (stated_height, stated_width):
            return image
        remedy = SIZE_REMEDY
        if (width, height) == (stated_height, stated_width):
            remedy = (
                "was it rotated later, or annotated as its EXIF tag rotates it? save it as it was "
                "annotated, without the tag"
            )
        statement = f"{self.annotations.source} says {stated_width}x{stated_height}"
        raise InputError(
            f"is {width}x{height} px, but {statement}",
            where=self.annotations.path(position),
            remedy=remedy,
        )


class FolderDataset(AnnotatedDataset):
    """Images in files. They are read as RGB, or with all bands if Pillow cannot read any of
    them."""

    def __init__(self, annotations: Annotations, name: str, hints: Hints = Hints(), note: str = ""):
        super().__init__(annotations, name, hints, note)
        self._note_on_bands = ""
        if not len(self):
            return
        first = self.path(0)
        bands, is_pillows = count_bands(first)
        if not is_pillows and bands > 1:
            self.channels = bands
        elif bands > self.channels:
            text = f"note: {first} has {bands} bands, of which {self.channels} are read; "
            self._note_on_bands = text + f"--channels {bands} takes all"
            self.notes += (self._note_on_bands,)

    def with_channels(self, channels: int) -> "FolderDataset":
        """The same images, read with `channels` bands. Whether they have as many is checked when
        they are read."""
        dataset = copy.copy(self)
        dataset.channels = channels
        if channels != self.channels:
            dataset.notes = tuple(note for note in self.notes if note != self._note_on_bands)
        return dataset

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.annotations.path(self._position(index))

    def file_to_decode(self, index: int) -> Path:
        return self.path(index)

    def image_name(self, index: int) -> str:
        return self.path(index).name

    def _read(self, position: int) -> Tensor:
        return read_image(self.path(position), self.channels)
