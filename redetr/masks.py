"""Masks of objects: compressed as in COCO, cropped, and the boxes around them.

A mask has as many pixels as its image and is True where the object is visible. Compressed, it is a
run-length encoding (RLE): `counts` as pycocotools writes them, down the columns, as bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import hotcoco.mask
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redetr.structures import Size


class MaskCrop(NamedTuple):
    """The smallest part of a mask that holds all its pixels."""

    pixels: Tensor  # [h, w] bool; [0, 0] of an empty mask
    top: int
    left: int

    @classmethod
    def of(cls, mask: Tensor) -> "MaskCrop":
        """The crop of a mask, bool `[H, W]`."""
        (rows,) = torch.nonzero(mask.any(1), as_tuple=True)
        if not len(rows):
            return cls(mask[:0, :0], 0, 0)
        (columns,) = torch.nonzero(mask.any(0), as_tuple=True)
        top = int(rows[0])
        bottom = int(rows[-1]) + 1
        left = int(columns[0])
        right = int(columns[-1]) + 1
        pixels = mask[top:bottom, left:right].clone()  # a view would keep the whole mask
        return cls(pixels, top, left)

    @classmethod
    def union(cls, crops: Sequence["MaskCrop"]) -> "MaskCrop":
        """The union of one or more crops."""
        filled = [crop for crop in crops if crop.pixels.numel()]
        if len(filled) < 2:
            return filled[0] if filled else crops[0]
        top = min(crop.top for crop in filled)
        left = min(crop.left for crop in filled)
        bottom = max(crop.top + crop.pixels.shape[0] for crop in filled)
        right = max(crop.left + crop.pixels.shape[1] for crop in filled)
        pixels = torch.zeros(bottom - top, right - left, dtype=torch.bool)
        for crop in filled:
            crop.moved(-top, -left).paint(pixels, True)
        return cls(pixels, top, left)

    def moved(self, down: int, right: int) -> "MaskCrop":
        """The same pixels at another position."""
        return self._replace(top=self.top + down, left=self.left + right)

    def reduced(self, size: Size, new_size: Size) -> "MaskCrop":
        """The crop in an image of `new_size` instead of `size`, (height, width) in px: each pixel
        has the value of the nearest one."""
        indices = []
        starts = []
        for first, length, old, new in zip(
            (self.top, self.left), self.pixels.shape, size, new_size, strict=True
        ):
            nearest = ((torch.arange(new) + 0.5) * (old / new)).long()
            is_inside = (nearest >= first) & (nearest < first + length)
            (inside,) = torch.nonzero(is_inside, as_tuple=True)
            indices.append(nearest[inside] - first)
            starts.append(int(inside[0]) if len(inside) else 0)
        rows, columns = indices
        return MaskCrop(self.pixels[rows][:, columns], *starts)

    def paint(self, canvas: Tensor, value: int) -> None:
        """Sets the pixels of a canvas `[H, W]`, of any type, that are in the mask to `value`."""
        height, width = self.pixels.shape
        bottom = self.top + height
        right = self.left + width
        part = canvas[self.top : bottom, self.left : right]
        part[self.pixels] = value


@dataclass(frozen=True)
class CroppedMasks:
    """Masks of N objects in a large image, each as its crop: 300 full masks of 6,000 x 4,000 px
    would take 7 GB.

    An integer index gives one mask, bool `[H, W]`; a tensor of indices gives the `CroppedMasks` of
    these. Iteration gives the masks one after the other.
    """

    crops: tuple[MaskCrop, ...]
    size: Size  # of the image

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H, W, the shape of the dense masks."""
        return (len(self), *self.size)

    @overload
    def __getitem__(self, which: int) -> Tensor: ...
    @overload
    def __getitem__(self, which: Tensor) -> "CroppedMasks": ...
    def __getitem__(self, which: int | Tensor) -> "Tensor | CroppedMasks":
        """Raises IndexError for an index that no mask has."""
        if isinstance(which, Tensor):
            chosen = [self.crops[index] for index in which.tolist()]
            return CroppedMasks(tuple(chosen), self.size)
        mask = torch.zeros(self.size, dtype=torch.bool)
        self.crops[which].paint(mask, True)
        return mask

    def __iter__(self) -> Iterator[Tensor]:
        for row in range(len(self)):
            yield self[row]

    def dense(self) -> Tensor:
        """All masks, bool `[N, H, W]`."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, crop in zip(masks, self.crops, strict=True):
            crop.paint(mask, True)
        return masks


def crops_of(masks: Iterable[Tensor] | CroppedMasks) -> Iterator[MaskCrop]:
    """The crop of each mask, from a tensor, bool `[N, H, W]`, or an iterable of bool `[H, W]`."""
    if isinstance(masks, CroppedMasks):
        yield from masks.crops
        return
    for mask in masks:
        yield MaskCrop.of(mask)


def encode(masks: Tensor | CroppedMasks) -> list[bytes]:
    """The compressed RLE of each of `masks`, bool `[N, H, W]`. Copies them to the host."""
    if isinstance(masks, CroppedMasks):
        counts: list[bytes] = []
        for mask in masks:  # one after the other: dense, all of them would take gigabytes
            counts += encode(mask[None])
        return counts
    stacked = masks.permute(1, 2, 0).cpu().numpy()
    return [rle["counts"] for rle in hotcoco.mask.encode(stacked)]


def decode(counts: Sequence[bytes], size: Size) -> Tensor:
    """The masks of images of this height and width, bool `[N, H, W]`.

    Raises ValueError for an invalid RLE, and for that of a larger image.
    """
    if not counts:
        return torch.zeros((0, *size), dtype=torch.bool)
    rles = [{"size": list(size), "counts": text} for text in counts]
    stacked = hotcoco.mask.decode(rles)  # uint8 [H, W, N], of which each mask is one block
    return torch.from_numpy(stacked.view(np.bool_)).permute(2, 0, 1)


def areas(counts: Sequence[bytes], size: Size) -> NDArray[np.int64]:
    """The number of pixels of each compressed mask of an image of this height and width, `[N]`."""
    if not counts:
        return np.zeros(0, np.int64)
    rles = [{"size": list(size), "counts": text} for text in counts]
    return np.asarray(hotcoco.mask.area(rles), np.int64)


def box_rle(box: Sequence[float], size: Size) -> bytes:
    """The compressed RLE of the pixels in a box, xyxy in px of an image of this height and
    width."""
    x1, y1, x2, y2 = box
    return hotcoco.mask.fr_bbox([x1, y1, x2 - x1, y2 - y1], *size)["counts"]


def empty_rle(size: Size) -> bytes:
    """The compressed RLE of no pixel of an image of this height and width."""
    height, width = size
    counts = {"size": [height, width], "counts": [height * width]}
    return hotcoco.mask.frPyObjects(counts, height, width)["counts"]


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The box around each of `masks`, bool `[N, H, W]`: float32 xyxy `[N, 4]` in pixels, to the
    outer edges of the outermost pixels; zeros around an empty mask.

    Deviation: the original (and torchvision) ends a box where its last pixel begins.
    """
    left, right = _extent(masks.any(1))
    top, bottom = _extent(masks.any(2))
    return torch.stack([left, top, right, bottom], dim=1)


def _extent(is_set: Tensor) -> tuple[Tensor, Tensor]:
    """The start of the first True and the end of the last one in each row, float32 `[N]`."""
    length = is_set.shape[1]
    starts = torch.arange(length, device=is_set.device)
    first = torch.where(is_set, starts, length).amin(1)
    stop = torch.where(is_set, starts + 1, 0).amax(1)
    first = torch.minimum(first, stop)  # of an empty row: both 0
    return first.float(), stop.float()
