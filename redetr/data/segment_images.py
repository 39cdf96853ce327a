"""Masks that are stored in one image of ids: COCO's panoptic PNG files.

They are read when they are needed, because a file of ids is small and is decoded in a few ms.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

from redetr.data.images import frame_count, open_image
from redetr.data.orientation import pillow_turns, turned_back
from redetr.errors import InputError
from redetr.masks import empty_rle, encode
from redetr.structures import Size

_LOSSY = ("JPEG", "MPO", "AVIF")
_WEBP_WITHOUT_LOSSES = b"VP8L"  # the name of a part of the file
_COLOURS = np.array([1, 256, 65536])
_WITH_OPACITY = {"RGBA": "RGB", "LA": "L"}
_OPAQUE = 255
_REMEDY = "export the panoptic annotations again, JSON and PNG together"


def object_numbers(image: Image.Image) -> NDArray[np.int64]:
    """The number of the object at each stored pixel `[H, W]` of an opened label image; colours
    count as red + 256 green + 65536 blue.

    Raises InputError for a file that was compressed with losses, for several images in one file,
    and for pixels that are not opaque; ValueError for values that are not whole numbers from 0.
    """
    if has_losses(image):
        text = f"is a label image in lossy {image.format}, which changes the numbers of pixels"
        raise InputError(text, remedy="save it as PNG from the original")
    pages = frame_count(image)
    if pages > 1:
        text = f"holds {pages} images, and a label image is a single one"
        raise InputError(text, remedy="write one image, in which each object has its own number")
    image.seek(0)
    orientation = pillow_turns(image)
    values = turned_back(np.asarray(_without_opacity(image)), orientation)
    if values.ndim == 3 and values.shape[2] == len(_COLOURS):
        return values.astype(np.int64) @ _COLOURS
    if values.ndim != 2:
        raise ValueError(f"a label image has one band, or red, green and blue, not {image.mode}")
    numbers = values.astype(np.int64)
    if numbers.min() < 0 or not np.array_equal(numbers, values):
        raise ValueError("the values of a label image must be whole numbers from 0")
    return numbers


def has_losses(image: Image.Image) -> bool:
    """Whether the file of an opened image, which must not be decoded yet, has lossy compression."""
    if image.format == "WEBP" and isinstance(image, ImageFile.ImageFile) and image.fp is not None:
        image.fp.seek(0)
        return _WEBP_WITHOUT_LOSSES not in image.fp.read()
    return image.format in _LOSSY


def _without_opacity(image: Image.Image) -> Image.Image:
    """The image without its alpha channel, which matplotlib writes. Raises InputError if some
    pixels are not opaque."""
    if image.mode not in _WITH_OPACITY:
        return image
    lowest, _ = image.getchannel("A").getextrema()
    if lowest != _OPAQUE:
        text = "is a label image with transparent pixels, whose numbers are not certain"
        raise InputError(text, remedy="save it without transparency")
    return image.convert(_WITH_OPACITY[image.mode])


def read_numbers(file: Path) -> NDArray[np.int64]:
    """The `object_numbers` of a file. Raises InputError if it is not a label image."""
    if not file.is_file():
        raise InputError("is missing", where=file, remedy=_REMEDY)
    with open_image(file) as image:
        return object_numbers(image)


def encode_numbers(numbers: NDArray[np.integer], wanted: Iterable[int]) -> list[bytes]:
    """The compressed RLE of the pixels of each number that is `wanted`, in an image of numbers from
    0, `[H, W]`.

    One mask is made at a time, because many of a large image would not fit into memory.
    """
    smallest_type = np.min_scalar_type(numbers.max())
    # The pixels of a column are adjacent, as in an RLE, so encoding takes a hundredth of the time.
    by_column = numbers.astype(smallest_type, order="F")
    encoded = []
    for number in wanted:
        mask = torch.from_numpy(by_column == number)
        encoded += encode(mask[None])
    return encoded


@dataclass(frozen=True, eq=False)
class SegmentImages:
    """The masks of A objects, each stored in a file as the pixels with its id."""

    folder: Path
    segment_files: np.ndarray  # [F] bytes, paths below the folder
    segment_file: np.ndarray  # [A] int64, index of the file; -1 = no mask
    segment_ids: np.ndarray  # [A] int64

    def __len__(self) -> int:
        return len(self.segment_ids)

    @property
    def has_mask(self) -> np.ndarray:
        """Which objects have a mask, bool `[A]`."""
        return self.segment_file >= 0

    def take(self, rows: np.ndarray) -> "SegmentImages":
        """The masks of the objects at these indices."""
        return replace(
            self,
            segment_file=self.segment_file[rows],
            segment_ids=self.segment_ids[rows],
        )

    def is_whole(self, count: int) -> bool:
        """Whether these are the masks of so many objects."""
        return len(self.segment_file) == len(self.segment_ids) == count

    def path(self, index: int) -> Path:
        """The file of an object."""
        return self.folder / os.fsdecode(self.segment_files[self.segment_file[index]])

    def rles(self, objects: slice, size: Size) -> list[bytes]:
        """The compressed RLE of each of the objects, which must belong to one image of this height
        and width. Raises InputError if the file cannot be read, has another size, or has no pixels
        of an object."""
        rows = range(objects.start, objects.stop)
        if not len(rows):
            return []
        file = self.path(rows[0])
        numbers = read_numbers(file)
        if numbers.shape != size:
            height, width = numbers.shape
            text = f"is {width}x{height} px, its image {size[1]}x{size[0]} px"
            raise InputError(text, where=file, remedy=_REMEDY)
        segment_ids = self.segment_ids[objects].tolist()
        encoded = encode_numbers(numbers, segment_ids)
        nothing = empty_rle(size)
        if nothing in encoded:
            absent = segment_ids[encoded.index(nothing)]
            raise InputError("has no pixels", where=file, item=f"segment {absent}", remedy=_REMEDY)
        return encoded
