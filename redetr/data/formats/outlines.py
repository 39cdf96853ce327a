"""The boxes around COCO's polygons, masks and rotated rectangles."""

import math
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
from hotcoco import mask

LARGEST = 2**63


def quick_extent(polygons: list[Any]) -> tuple[Any, ...] | None:
    """The xyxy around polygons; None if they are not valid polygons. A tuple, which is a type that
    JSON does not have.

    Passes over the numbers at most twice, because they take most of a large file.
    """
    try:
        points = polygons[0] if len(polygons) == 1 else list(chain.from_iterable(polygons))
        x = points[::2]
        y = points[1::2]
        if len(x) < 3 or len(x) != len(y):
            return None
        return min(x), min(y), max(x), max(y)
    except (TypeError, IndexError, KeyError):
        return None


def extent_of(outline: Any) -> tuple[float, float, float, float] | None:
    """The xyxy around polygons or an RLE mask in COCO's format; None if it is neither."""
    if isinstance(outline, dict):
        try:
            x, y, width, height = mask.to_bbox(outline).tolist()
        except (TypeError, ValueError, OverflowError):
            return None
        return x, y, x + width, y + height
    polygons = outline if isinstance(outline, list) else [outline]
    if not all(_is_polygon(polygon) for polygon in polygons):
        return None
    points = to_floats(list(chain.from_iterable(polygons))).reshape(-1, 2)
    x1, y1 = points.min(0).tolist()
    x2, y2 = points.max(0).tolist()
    if math.isnan(x1 + y1):
        return None
    return x1, y1, x2, y2


def _is_polygon(value: Any) -> bool:
    """Whether the value is a list of x and y for at least three points."""
    return isinstance(value, list) and len(value) > 5 and len(value) % 2 == 0


def to_floats(values: list[Any]) -> np.ndarray:
    """The values as float64; NaN for values that are not numbers."""
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        with suppress(OverflowError):
            numbers = np.array(values, np.float64)
            is_small = np.abs(numbers) < LARGEST
            return np.where(is_small, numbers, np.nan)
    numbers = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if is_number(value):
            numbers[i] = value
    return numbers


def is_number(value: Any) -> bool:
    """Whether the value is a number that fits in int64 and whose square fits in float32. NaN and
    infinity are not numbers here."""
    return type(value) in (int, float) and abs(value) < LARGEST


def around_turned(corners: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """The xyxy around rectangles that are rotated about their centres, float64 `[A, 4]`. `corners`
    are xyxy before the rotation."""
    angles = np.radians(degrees)[:, None]
    cosine = np.abs(np.cos(angles))
    sine = np.abs(np.sin(angles))
    starts = corners[:, :2]
    ends = corners[:, 2:]
    centers = (starts + ends) / 2
    half_sides = (ends - starts) / 2
    other_half_sides = half_sides[:, ::-1]  # height beside width
    half_spans = half_sides * cosine + other_half_sides * sine
    return np.concatenate([centers - half_spans, centers + half_spans], axis=1)
