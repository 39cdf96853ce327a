"""Merges the boxes and masks that were detected in overlapping tiles of a large image.

Windows are (left, top, right, bottom) in pixels of the whole image, boxes are xyxy. Shapes: W
windows, N boxes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from redetr.boxes import box_area, box_iou, intersection_areas
from redetr.data.windows import Window, overlapping
from redetr.detector.detections import Detections
from redetr.masks import CroppedMasks, MaskCrop, crops_of

_SAME_IOU = 0.5  # boxes of one object overlap at least so much
_INSIDE = 0.7  # a cut box is a part of another's object if this share of it lies inside the other
_EDGE_SHARE = 0.02  # a box that ends within this share of its tile's side from the edge is cut


def merge_tiles(
    tiles: Sequence[Detections], windows: Sequence[Window], image_size: tuple[int, int]
) -> Detections:
    """The detections of the whole image of `image_size` (height, width), merged from those of its
    tiles, so that each object appears once.

    A box that ends at an inner edge of its tile is cut. Boxes of one class from two tiles are one
    object if their IoU is at least 0.5, if one is cut and lies in the other, or if both are cut and
    agree in the part of the image that both tiles show. Of these boxes, the best one that is not
    cut is kept. Its score is the best of all of them, also if that box is cut. If all are cut, the
    object is larger than the overlap, and the hull of its parts is kept. Boxes of one tile are
    not compared, because the model distinguished them; only a box of another tile that is the
    same as both makes them one object.

    Masks become `CroppedMasks`: an object has the mask of the box that is kept, or the union of
    the masks of its parts.
    """
    boxes = _in_whole_image(tiles, windows)
    labels = torch.cat([detections.labels for detections in tiles])
    scores = torch.cat([detections.scores for detections in tiles])
    counts = torch.tensor([len(detections) for detections in tiles])
    tile_of_box = torch.arange(len(windows)).repeat_interleave(counts)
    frames = torch.tensor(windows, dtype=torch.float32)
    cut = _is_cut(boxes, frames[tile_of_box], image_size)
    same = _same_objects(boxes, labels, cut, tile_of_box, windows)

    best_first = scores.argsort(descending=True, stable=True).tolist()
    kept = []
    parts_of = []
    merged = boxes.clone()
    for box, members in _objects(best_first, same, cut.tolist()):
        parts_of.append(members)
        parts = boxes[members]
        left_top = parts[:, :2].amin(0)
        right_bottom = parts[:, 2:].amax(0)
        merged[box] = torch.cat([left_top, right_bottom])
        kept.append(box)
    return replace(
        tiles[0],
        image_size=image_size,
        scores=scores[kept],
        labels=labels[kept],
        boxes=merged[kept],
        masks=_merged_masks(tiles, windows, parts_of, image_size),
    )


def _merged_masks(
    tiles: Sequence[Detections],
    windows: Sequence[Window],
    parts_of: list[list[int]],
    image_size: tuple[int, int],
) -> CroppedMasks | None:
    """The mask of each object from those of its parts; None if the tiles have no masks."""
    crops = []
    for detections, (left, top, _, _) in zip(tiles, windows, strict=True):
        if detections.masks is None:
            return None
        for crop in crops_of(detections.masks):
            crops.append(crop.moved(top, left))
    merged = []
    for members in parts_of:
        parts = [crops[member] for member in members]
        merged.append(MaskCrop.union(parts))
    return CroppedMasks(tuple(merged), image_size)


def _in_whole_image(tiles: Sequence[Detections], windows: Sequence[Window]) -> Tensor:
    """The boxes of all tiles, `[N, 4]` in pixels of the whole image."""
    boxes = []
    for detections, (left, top, _, _) in zip(tiles, windows, strict=True):
        offset = torch.tensor([left, top, left, top], dtype=torch.float32)
        boxes.append(detections.boxes + offset)
    return torch.cat(boxes)


def _objects(
    best_first: list[int], same: list[list[int]], is_cut: list[bool]
) -> list[tuple[int, list[int]]]:
    """For each object, its box with the best score, and the boxes whose hull is its final box."""
    rank = {box: number for number, box in enumerate(best_first)}
    remaining = set(best_first)
    objects = []
    for box in best_first:
        if box not in remaining:
            continue
        members = [box]
        members += [other for other in same[box] if other in remaining]
        uncut = [member for member in members if not is_cut[member]]
        if uncut:
            best = min(uncut, key=rank.__getitem__)
            objects.append((box, [best]))
            if best != box:
                members += same[best]
        else:
            members = _followed(members, same, is_cut, remaining)
            objects.append((box, members))
        remaining -= set(members)
    return objects


def _followed(
    parts: list[int], same: list[list[int]], is_cut: list[bool], remaining: set[int]
) -> list[int]:
    """The parts of an object that is larger than the overlap, collected from tile to tile."""
    parts = list(parts)
    for part in parts:  # the list grows during the loop
        for other in same[part]:
            if other in remaining and is_cut[other] and other not in parts:
                parts.append(other)
    return parts


def _is_cut(boxes: Tensor, frames: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Which boxes `[N, 4]` end at an edge of their window `[N, 4]` that is not an edge of the
    image, bool `[N]`."""
    height, width = image_size
    left_top = frames[:, :2]
    right_bottom = frames[:, 2:]
    slack = (right_bottom - left_top) * _EDGE_SHARE  # [N, 2]
    near_start = boxes[:, :2] - left_top <= slack
    near_end = right_bottom - boxes[:, 2:] <= slack
    starts_inside = left_top > 0
    ends_inside = right_bottom < torch.tensor([width, height])
    cut_at_start = near_start & starts_inside
    cut_at_end = near_end & ends_inside
    return (cut_at_start | cut_at_end).any(1)


def _same_objects(
    boxes: Tensor,
    labels: Tensor,
    cut: Tensor,
    tile_of_box: Tensor,
    windows: Sequence[Window],
) -> list[list[int]]:
    """For each box, the boxes of other tiles that show the same object."""
    same: list[list[int]] = [[] for _ in boxes]
    counts = tile_of_box.bincount(minlength=len(windows)).tolist()
    rows_of_tile = torch.arange(len(boxes)).split(counts)
    frames = torch.tensor(windows, dtype=torch.float32)
    with_boxes = [tile for tile, count in enumerate(counts) if count]
    for a, b in overlapping(windows, with_boxes):
        rows_a = rows_of_tile[a]
        rows_b = rows_of_tile[b]
        seen_twice = _clipped(frames[a], frames[b])  # [4]
        alike = _alike(boxes[rows_a], boxes[rows_b], cut[rows_a], cut[rows_b], seen_twice)
        alike &= labels[rows_a][:, None] == labels[rows_b]
        for i, j in torch.nonzero(alike).tolist():
            box_a = int(rows_a[i])
            box_b = int(rows_b[j])
            same[box_a].append(box_b)
            same[box_b].append(box_a)
    return same


def _alike(
    boxes1: Tensor, boxes2: Tensor, cut1: Tensor, cut2: Tensor, seen_twice: Tensor
) -> Tensor:
    """Which pairs of boxes `[N, 4]`, `[M, 4]` of two tiles show the same object, bool `[N, M]`.

    `cut1` `[N]` and `cut2` `[M]` state which boxes are cut. Both tiles show the region `seen_twice`
    `[4]`.
    """
    iou = box_iou(boxes1, boxes2)
    shared = intersection_areas(boxes1, boxes2, iou)
    cut1 = cut1[:, None]
    first_inside = cut1 & (shared >= _INSIDE * box_area(boxes1)[:, None])
    second_inside = cut2 & (shared >= _INSIDE * box_area(boxes2))
    parts1 = _clipped(boxes1, seen_twice)
    parts2 = _clipped(boxes2, seen_twice)
    parts_agree = box_iou(parts1, parts2) >= _SAME_IOU
    both_cut = cut1 & cut2
    return (iou >= _SAME_IOU) | first_inside | second_inside | (both_cut & parts_agree)


def _clipped(boxes: Tensor, frame: Tensor) -> Tensor:
    """The parts of boxes `[..., 4]` inside a frame `[4]`."""
    left_top = torch.maximum(boxes[..., :2], frame[:2])
    right_bottom = torch.minimum(boxes[..., 2:], frame[2:])
    return torch.cat([left_top, right_bottom], -1)
