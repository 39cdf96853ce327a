"""Large images in overlapping tiles: where the tiles are, and one set of boxes out of those of all
tiles.

Windows are (left, top, right, bottom) in pixels of the whole image, boxes are xyxy. Shapes: W
windows, N boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from redetr.boxes import box_area, box_iou
from redetr.detector.detections import Detections
from redetr.errors import InputError

Window = tuple[int, int, int, int]

_SAME_IOU = 0.5  # two boxes are of one object if they agree so far, where both of their tiles look
_INSIDE = 0.7  # a cut box that is so far inside of another is a part of its object
_EDGE_SHARE = 0.02  # of a tile's side: a box that ends so near to its edge was cut there


def tile_windows(height: int, width: int, tile: int, overlap: float) -> list[Window]:
    """Windows of one size that cover an image, `tile` px wide and high, or as the image if that is
    smaller.

    Neighbours share at least `overlap` of their side, all about the same. Raises InputError for a
    tile or overlap that cannot be.
    """
    if tile < 1 or not 0 <= overlap < 1:
        raise InputError(
            f"tiles of {tile} px that overlap by {overlap}: give at least 1 px, and 0 <= overlap < "
            "1"
        )
    rows, columns = (_spans(length, tile, overlap) for length in (height, width))
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    side = min(tile, length)
    count = 1 + math.ceil((length - side) / max(1, round(side * (1 - overlap))))
    starts = [round(i * (length - side) / max(1, count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def merge_tiles(
    found: Sequence[Detections], windows: Sequence[Window], image_size: tuple[int, int]
) -> Detections:
    """The detections of the whole image (height, width) from those of its tiles, each object once.

    A box that ends at an inner edge of its tile is cut. Boxes of one class from two tiles are one
    object if they overlap by half (IoU), if one is cut and lies in the other, or if both are cut
    and agree in the part of the image that both tiles see. Kept is the box with the best score that
    is not cut; if all are, the object is larger than the overlap, and the hull of its parts is
    kept. Boxes of one tile are never merged: the model has told them apart.
    """
    offsets = torch.tensor([window[:2] * 2 for window in windows], dtype=torch.float32)
    boxes = torch.cat([each.boxes + offset for each, offset in zip(found, offsets, strict=True)])
    labels, scores = (
        torch.cat([getattr(each, name) for each in found]) for name in ("labels", "scores")
    )
    owner = torch.arange(len(windows)).repeat_interleave(
        torch.tensor([len(each) for each in found])
    )
    frames = torch.tensor(windows, dtype=torch.float32)
    cut = _is_cut(boxes, frames[owner], image_size)
    same = _same_objects(boxes, labels, cut, owner, frames)
    order = scores.argsort(descending=True, stable=True).tolist()
    rank = {i: place for place, i in enumerate(order)}
    left, is_cut, kept, merged = set(order), cut.tolist(), [], boxes.clone()
    for i in order:
        if i in left:
            members = [i, *(j for j in same[i] if j in left)]
            whole = min((j for j in members if not is_cut[j]), key=rank.__getitem__, default=None)
            if (
                whole is None
            ):  # the object is larger than the overlap: its parts are followed from tile to tile
                for part in members:
                    members += [
                        j for j in same[part] if j in left and is_cut[j] and j not in members
                    ]
            elif whole != i:
                members += same[whole]
            parts = boxes[members if whole is None else [whole]]
            merged[i] = torch.cat([parts[:, :2].amin(0), parts[:, 2:].amax(0)])
            left -= set(members)
            kept.append(i)
    about = replace(found[0], image_size=image_size)
    return replace(about, scores=scores[kept], labels=labels[kept], boxes=merged[kept])


def _is_cut(boxes: Tensor, frames: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Which boxes `[N, 4]` end at an edge of their window `[N, 4]` that is inside of the image,
    bool `[N]`."""
    height, width = image_size
    slack = (frames[:, 2:] - frames[:, :2]) * _EDGE_SHARE
    low = (boxes[:, :2] - frames[:, :2] <= slack) & (frames[:, :2] > 0)
    high = (frames[:, 2:] - boxes[:, 2:] <= slack) & (frames[:, 2:] < torch.tensor([width, height]))
    return (low | high).any(1)


def _same_objects(
    boxes: Tensor, labels: Tensor, cut: Tensor, owner: Tensor, frames: Tensor
) -> list[list[int]]:
    """For each box those of other tiles that show the same object."""
    same: list[list[int]] = [[] for _ in boxes]
    rows = torch.arange(len(boxes)).split(owner.bincount(minlength=len(frames)).tolist())
    for a, b in torch.nonzero(torch.triu(box_iou(frames, frames), diagonal=1)).tolist():
        i, j = rows[a], rows[b]
        if not len(i) or not len(j):
            continue
        seen_twice = torch.cat(
            [torch.maximum(frames[a], frames[b])[:2], torch.minimum(frames[a], frames[b])[2:]]
        )
        alike = _alike(boxes[i], boxes[j], cut[i], cut[j], seen_twice) & (
            labels[i][:, None] == labels[j]
        )
        for one, other in (torch.nonzero(alike) + torch.stack([i[:1], j[:1]], 1)).tolist():
            same[one].append(other)
            same[other].append(one)
    return same


def _alike(
    boxes1: Tensor, boxes2: Tensor, cut1: Tensor, cut2: Tensor, seen_twice: Tensor
) -> Tensor:
    """Which pairs of boxes `[N, 4]`, `[M, 4]` of two tiles are of one object, bool `[N, M]`."""
    iou = box_iou(boxes1, boxes2)
    area1, area2 = box_area(boxes1)[:, None], box_area(boxes2)
    common = (area1 + area2) * iou / (1 + iou)
    inside = (cut1[:, None] & (common >= _INSIDE * area1)) | (cut2 & (common >= _INSIDE * area2))
    parts = box_iou(_clipped(boxes1, seen_twice), _clipped(boxes2, seen_twice))
    return (iou >= _SAME_IOU) | inside | (cut1[:, None] & cut2 & (parts >= _SAME_IOU))


def _clipped(boxes: Tensor, frame: Tensor) -> Tensor:
    return torch.cat(
        [torch.maximum(boxes[:, :2], frame[:2]), torch.minimum(boxes[:, 2:], frame[2:])], 1
    )
