"""Converts masks to the formats of other programs: COCO's polygons and RLE, and YOLO's single
polygon for each object."""

from dataclasses import replace
from typing import Any

import numpy as np

from redetr.data.annotations import Annotations, Masks
from redetr.data.mask_columns import MaskBuilder, MaskColumns
from redetr.masks import decode
from redetr.outlines import outlines
from redetr.structures import Size
from redetr.wording import counted

_MOVED_PX = 1.0  # boxes that change by more are reported


def coco_segmentations(annotations: Annotations) -> list[Any]:
    """The `segmentation` of each object: polygons as stored, other masks as RLE, and None for
    objects without a mask. Raises InputError if a mask cannot be read."""
    masks = annotations.masks
    if masks is None:
        return [None] * len(annotations.boxes)
    values: list[Any] = []
    for index in range(len(annotations)):
        height, width = annotations.sizes[index].tolist()
        objects = annotations.objects_of(index)
        all_counts = masks.rles(objects, (height, width))
        for i, counts in zip(range(objects.start, objects.stop), all_counts, strict=True):
            polygons = masks.polygons(i) if isinstance(masks, MaskColumns) else []
            if polygons:
                values.append([polygon.ravel().tolist() for polygon in polygons])
            elif counts:
                values.append({"size": [height, width], "counts": counts.decode()})
            else:
                values.append(None)
    return values


def as_single_polygons(annotations: Annotations) -> tuple[Annotations, list[str]]:
    """The same objects for YOLO's lines, with masks of one polygon and the boxes around them; and
    sentences on what changes. Raises InputError if a mask cannot be read."""
    masks = annotations.masks
    if masks is None:
        return annotations, []
    builder = MaskBuilder(for_training=False)
    for index in range(len(annotations)):
        height, width = annotations.sizes[index].tolist()
        size = (height, width)
        objects = annotations.objects_of(index)
        all_counts = masks.rles(objects, size)
        for i, counts in zip(range(objects.start, objects.stop), all_counts, strict=True):
            polygon = _single_polygon(masks, i, counts, size) if counts else None
            builder.add(None if polygon is None else [polygon.ravel().tolist()])
    columns = builder.columns()
    boxes = _boxes_around(annotations, columns)
    moves = np.abs(boxes - annotations.boxes).max(1, initial=0)
    moved = np.count_nonzero(moves > _MOVED_PX)
    notes = []
    if moved:
        change = f"{counted(moved, 'box', 'boxes')} by more than a pixel"
        notes.append(f"YOLO's boxes are those around the outlines, which changes {change}")
    missing = int((~columns.has_mask).sum())
    if missing and columns.has_mask.any():
        without = counted(missing, "object has", "objects have")
        notes.append(f"{without} no mask, and a line of a box among outlines")
    return replace(annotations, boxes=boxes, masks=columns), notes


def _boxes_around(annotations: Annotations, masks: MaskColumns) -> np.ndarray:
    """The boxes around polygons, clipped to their images, float32 xyxy `[A, 4]`. Objects without
    polygons keep their box."""
    boxes = annotations.boxes.copy()
    rows = np.flatnonzero(masks.has_polygons)
    if len(rows):
        starts = masks.first_point[rows]
        low = np.minimum.reduceat(masks.points, starts)
        high = np.maximum.reduceat(masks.points, starts)
        limits = annotations.sizes[annotations.image_of()[rows], ::-1]
        around = np.concatenate([low.clip(0, limits), high.clip(0, limits)], axis=1)
        boxes[rows] = around
    return boxes


def _single_polygon(masks: Masks, i: int, counts: bytes, size: Size) -> np.ndarray:
    """A polygon `[P, 2]` that covers the pixels of a mask."""
    polygons = masks.polygons(i) if isinstance(masks, MaskColumns) else []
    if len(polygons) == 1:
        return polygons[0]
    if polygons:
        joined = as_one(polygons)
        single = MaskBuilder(for_training=False)
        single.add([joined.ravel().tolist()])
        if single.columns().rle(0, size) == counts:  # differs if parts overlap
            return joined
    mask = decode([counts], size)[0].numpy()
    return as_one([ring.astype(np.float64) for ring in outlines(mask)])


def as_one(rings: list[np.ndarray]) -> np.ndarray:
    """Joins several polygons to one, `[P, 2]`, by lines there and back, which enclose no area."""
    first, *others = sorted(rings, key=len, reverse=True)
    joined = first
    for ring in others:
        offsets = joined[:, None] - ring[None]  # [P, points of the ring, 2]
        gaps = (offsets**2).sum(2)
        exit_point, entry_point = np.unravel_index(int(gaps.argmin()), gaps.shape)
        before = joined[: exit_point + 1]
        after = joined[exit_point + 1 :]
        turned = np.roll(ring, -int(entry_point), axis=0)
        detour = np.concatenate([turned, turned[:1], before[-1:]])  # around the ring, and back
        joined = np.concatenate([before, detour, after])
    return joined
