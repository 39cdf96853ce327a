"""Masks of objects: compressed as COCO does it, and what is around them.

A mask has as many pixels as its image and is True where the object is visible. Compressed, it is a
run-length encoding (RLE): `counts` as pycocotools writes them, down the columns, as bytes.
"""

from collections.abc import Sequence

import hotcoco.mask
import numpy as np
import torch
from torch import Tensor

from redetr.structures import Size


def encode(masks: Tensor) -> list[bytes]:
    """The compressed RLE of each of `masks`, bool `[N, H, W]`. Copies them to the host."""
    stacked = masks.permute(1, 2, 0).cpu().numpy()
    return [rle["counts"] for rle in hotcoco.mask.encode(stacked)]


def decode(counts: Sequence[bytes], size: Size) -> Tensor:
    """The masks of images of this height and width, bool `[N, H, W]`.

    Raises ValueError for what is no RLE, or one of a larger image.
    """
    if not counts:
        return torch.zeros((0, *size), dtype=torch.bool)
    rles = [{"size": list(size), "counts": text} for text in counts]
    stacked = hotcoco.mask.decode(rles)  # uint8 [H, W, N], of which each mask is one block
    return torch.from_numpy(stacked.view(np.bool_)).permute(2, 0, 1)


def box_rle(box: Sequence[float], size: Size) -> bytes:
    """The compressed RLE of the pixels in a box, xyxy in px of an image of this height and
    width."""
    x1, y1, x2, y2 = box
    return hotcoco.mask.fr_bbox([x1, y1, x2 - x1, y2 - y1], *size)["counts"]


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The box around each of `masks`, bool `[N, H, W]`: float32 xyxy `[N, 4]` in pixels, to the
    outer edges of the outermost pixels; zeros around an empty mask.

    Deviation: the original (and torchvision) ends a box where its last pixel begins.
    """
    across = _extent(masks.any(1))
    down = _extent(masks.any(2))
    return torch.stack([across[0], down[0], across[1], down[1]], dim=1)


def _extent(is_set: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first True of each row of `[N, L]` begins and the last ends, float32 `[N]`."""
    length = is_set.shape[1]
    starts = torch.arange(length, device=is_set.device)
    first = torch.where(is_set, starts, length).amin(1)
    stop = torch.where(is_set, starts + 1, 0).amax(1)
    first = torch.minimum(first, stop)  # of an empty row: both 0
    return first.float(), stop.float()
