"""Finds contradictions between the parts of an annotation: its box, its outline, its area, and the
size of its image. All readers use these checks, on arrays.

A objects: `boxes` and `outlines` are xyxy pixels, float64 `[A, 4]`; `outlines` are the boxes around
the outlines, NaN for objects without one. `area` is in square pixels, float `[A]`, negative if it
is not stated.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

BoxFormat = Literal["xywh", "cxcywh", "xyxy"]

FORMATS: tuple[BoxFormat, ...] = ("xywh", "cxcywh", "xyxy")
_SAME_IOU = 0.9
_OTHER_IOU = 0.5  # polygons, masks and boxes of one object differ a little
_SAME_AREA = 0.02  # relative
_EXACT_AREA = 1e-4  # also relative: coordinates may be rounded
# No mask is larger than its box, except for pixels on its border, and few masks fill so little of
# it.
_LARGER_THAN_BOX = 1.5
_SHARE_OF_BOX = 1 / 200
_THIN_ONES = 0.01  # this share of objects may fill less, such as kites with their string
_NEARLY_ALL = 0.9
_MOST = 0.5
FEWEST_FOR_CORNERS = 10  # boxes that are needed to recognise corners
_BLOCK = 2**16  # rows that are judged at a time


def to_corners(numbers: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """Boxes of this format as xyxy, float64 `[A, 4]`."""
    first = numbers[:, :2]
    second = numbers[:, 2:]
    if box_format == "xyxy":
        return numbers
    if box_format == "cxcywh":
        first = first - second / 2
    return np.concatenate([first, first + second], axis=1)


def from_corners(boxes: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """The numbers of xyxy boxes in this format, float64 `[A, 4]`."""
    starts = boxes[:, :2]
    ends = boxes[:, 2:]
    if box_format == "xyxy":
        return boxes
    sides = ends - starts
    if box_format == "cxcywh":
        starts = (starts + ends) / 2
    return np.concatenate([starts, sides], axis=1)


def other_format(
    boxes: np.ndarray,
    outlines: np.ndarray,
    area: np.ndarray,
    box_format: BoxFormat,
    counted: np.ndarray | None = None,
) -> tuple[BoxFormat, np.ndarray] | None:
    """The format in which boxes agree with their outlines and areas, and the rows that show it,
    bool `[A]`; None if they agree in `box_format`, or in no format.

    `boxes` were read as `box_format`. Outlines of objects that are not `counted`, bool `[A]`, are
    ignored.

    An area may be that of a mask, which differs from that of its box, and is about that of the box
    in another format by coincidence. So most rows must fit the other format, and areas of fewer
    than `FEWEST_FOR_CORNERS` of them must be exact.
    """
    if counted is None:
        counted = np.ones(len(boxes), bool)
    has_outline = counted & ~np.isnan(outlines).any(1)
    is_comparable = has_outline | (area > 0)
    columns = (boxes, outlines, area, counted)

    def agree_as(candidate: BoxFormat, tolerance: float) -> np.ndarray:
        return in_blocks(partial(_agree_as, candidate, box_format, tolerance), *columns)

    as_read = agree_as(box_format, _SAME_AREA)
    for candidate in FORMATS:
        if candidate == box_format:
            continue
        agree = agree_as(candidate, _SAME_AREA)
        decisive = agree ^ as_read
        others = agree & decisive
        count = others.sum()
        fits_both = agree & as_read
        num_telling = (is_comparable & ~fits_both).sum()
        are_most = count >= max(_NEARLY_ALL * decisive.sum(), _MOST * num_telling)
        if not are_most:
            continue
        is_exact = others & agree_as(candidate, _EXACT_AREA)
        if count >= FEWEST_FOR_CORNERS or is_exact.any():
            return candidate, others
    return None


def _agree_as(
    candidate: BoxFormat,
    box_format: BoxFormat,
    tolerance: float,
    boxes: np.ndarray,
    outlines: np.ndarray,
    area: np.ndarray,
    counted: np.ndarray,
) -> np.ndarray:
    """Which boxes, read as `box_format`, `_agree` if they are read as the candidate, bool `[A]`."""
    if candidate != box_format:
        boxes = to_corners(from_corners(boxes, box_format), candidate)
    known_outlines = np.where(counted[:, None], outlines, np.nan)
    return _agree(boxes, known_outlines, area, tolerance)


def _agree(
    boxes: np.ndarray, outlines: np.ndarray, area: np.ndarray, tolerance: float
) -> np.ndarray:
    """Which boxes are those around their outlines, or have the stated area, up to a relative
    tolerance, if there is no outline, bool `[A]`."""
    box_areas = _areas(boxes)
    has_area = (area > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    gap = np.abs(box_areas - area)
    same_area = has_area & (gap <= tolerance * area)
    has_outline = ~np.isnan(outlines).any(1)
    return np.where(has_outline, outline_agrees(boxes, outlines), same_area)


def outline_differs(boxes: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """Which boxes clearly differ from those around their outlines, bool `[A]`."""
    # False for NaN, which stands for no outline.
    return in_blocks(lambda *rows: _iou(*rows) < _OTHER_IOU, boxes, outlines)


def outline_agrees(boxes: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """Which boxes are those around their outlines, bool `[A]`."""
    # False for NaN, which stands for no outline.
    return in_blocks(lambda *rows: _iou(*rows) >= _SAME_IOU, boxes, outlines)


def area_differs(boxes: np.ndarray, area: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Which areas, of those that are `counted`, cannot belong to objects in these boxes, bool
    `[A]`.

    A few areas may be small: a rope may fill less than a tenth of its box.
    """
    box_areas = in_blocks(_areas, boxes)
    largest = in_blocks(_largest_areas, boxes)
    is_stated = counted & (area >= 0) & (box_areas > 0)
    too_large = is_stated & (area > largest)
    is_zero = is_stated & (area == 0)
    too_small = is_stated & (area < _SHARE_OF_BOX * box_areas)
    if too_small.sum() <= _THIN_ONES * is_stated.sum():
        too_small = is_zero
    return too_large | too_small


def _largest_areas(boxes: np.ndarray) -> np.ndarray:
    """The largest possible areas of masks in these boxes, which may cover parts of pixels."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    return _LARGER_THAN_BOX * (sides + 1).prod(1)


def in_blocks(judge: Callable[..., np.ndarray], *columns: np.ndarray) -> np.ndarray:
    """The results of `judge` for all rows of the columns. It is called for blocks, because its
    intermediate values for millions of rows would take most of the memory of reading."""
    no_rows = [column[:0] for column in columns]
    parts = [judge(*no_rows)]  # so that the result has the right type if there are no rows
    for start in range(0, len(columns[0]), _BLOCK):
        rows = slice(start, start + _BLOCK)
        parts.append(judge(*(column[rows] for column in columns)))
    return np.concatenate(parts)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    return sides.prod(1)


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The IoU of each box with the other box in its row, float64 `[A]`. A pixel is added on each
    side, so that thin outlines can be compared as well."""
    starts = np.maximum(boxes[:, :2], others[:, :2]) - 1
    ends = np.minimum(boxes[:, 2:], others[:, 2:]) + 1
    sides = (ends - starts).clip(0)
    shared = sides.prod(1)
    margin = np.array([-1, -1, 1, 1])
    areas = _areas(boxes + margin)
    other_areas = _areas(others + margin)
    union = areas + other_areas - shared
    return shared / np.maximum(union, 1e-9)


def look_like_corners(numbers: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether numbers that should be a corner or centre, and width and height, look like two
    corners, although nothing states it and no box exceeds its image.

    Both ends of an object are near each other, so they vary together, while its width does not
    depend on its position. `sizes` are width and height of the images, `[A, 2]`.
    """
    if len(numbers) < FEWEST_FOR_CORNERS:
        return False
    first = numbers[:, :2] / sizes
    second = numbers[:, 2:] / sizes
    if (second > first).all(1).mean() < 0.99:
        return False
    for axis in (0, 1):
        spread = min(np.ptp(first[:, axis]), np.ptp(second[:, axis]))
        if spread < 0.05:  # too little to decide
            return False
        if np.corrcoef(first[:, axis], second[:, axis])[0, 1] < 0.5:
            return False
    return True


def are_fractions(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes look like fractions of the image given as pixels, bool `[A]`; all False unless
    nearly all do. `boxes` are `[A, 4]`, `sizes` are width and height of their images, `[A, 2]`."""
    in_first_pixel = boxes.max(1) <= 1.5
    fractions = in_first_pixel & (sizes.min(1) > 15)
    if not len(boxes) or fractions.mean() <= 0.9:
        return np.zeros(len(boxes), bool)
    return fractions


def cross_themselves(points: np.ndarray) -> np.ndarray:
    """Which polygons `[S, P, 2]` have sides that cross, bool `[S]`. Outlines that are drawn around
    an object have none."""
    ends = np.roll(points, -1, axis=1)  # of the sides that begin there
    crossing = np.zeros(len(points), bool)
    for lag in range(2, points.shape[1] // 2 + 1):  # each side with those that do not touch it
        other_points = np.roll(points, -lag, axis=1)
        other_ends = np.roll(ends, -lag, axis=1)
        # Two sides cross if the ends of each lie on different sides of the other.
        from_this = _side(points, ends, other_points) * _side(points, ends, other_ends)
        from_other = _side(other_points, other_ends, points) * _side(other_points, other_ends, ends)
        sides_cross = (from_this < 0) & (from_other < 0)
        crossing |= sides_cross.any(1)
    return crossing


def _side(starts: np.ndarray, ends: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The side of a line on which each point is: negative, positive or 0, `[S, P]`."""
    line_x, line_y = np.moveaxis(ends - starts, -1, 0)
    point_x, point_y = np.moveaxis(points - starts, -1, 0)
    return line_x * point_y - line_y * point_x
