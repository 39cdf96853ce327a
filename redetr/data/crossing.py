"""Round and rotated shapes that cross the border of their image.

Annotation tools keep a box or polygon inside the image, but of a circle, an ellipse or a rotated
rectangle only the centre or the control points. So the part inside the image is used.
"""

from typing import TYPE_CHECKING

import numpy as np

from redetr.data.mask_columns import MaskColumns

if TYPE_CHECKING:
    from redetr.data.annotations import Images, Objects

# Annotators overshoot the border a little. Up to this many pixels, or this share of the side, boxes
# and polygons of all kinds are clipped.
OVERSHOOT_PX = 2.0
OVERSHOOT_SHARE = 0.01


def leaves_image(starts: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes exceed their images by more than annotators overshoot, bool `[A]`.

    `starts` and `ends` are the least and greatest x and y in pixels, `sizes` width and height of
    the images, all `[A, 2]`.
    """
    slip = np.maximum(OVERSHOOT_PX, OVERSHOOT_SHARE * sizes)
    exceeds = (starts < -slip) | (ends > sizes + slip)
    return np.any(exceeds, axis=1)


def clip_crossing(objects: "Objects", images: "Images") -> None:
    """Clips the boxes and outlines of shapes that `may_cross` the border and have their centre
    inside the image, with a note; `objects.crossing` are then these objects."""
    if objects.may_cross is None:
        return
    rows = np.flatnonzero(objects.may_cross & objects.rows.good)
    if not len(rows):
        return
    corners = objects.corners[rows]
    starts = corners[:, :2]
    ends = corners[:, 2:]
    sizes = images.sizes[objects.image[rows], ::-1]
    centers = (starts + ends) / 2
    has_center = ((centers >= 0) & (centers <= sizes)).all(1)
    limits = np.tile(sizes, 2)
    if objects.outlines is not None:  # also where a box is stated that was clipped
        inside = rows[has_center]
        objects.outlines[inside] = objects.outlines[inside].clip(0, limits[has_center])

    is_crossing = has_center & leaves_image(starts, ends, sizes)
    objects.crossing = rows[is_crossing]
    bad = np.zeros(len(objects.rows.good), bool)
    bad[objects.crossing] = True

    def crosses(i: int) -> str:
        span = objects.corners[i].round(2).tolist()
        height, width = images.sizes[objects.image[i]]
        image = images.called(objects.image[i])
        size = f"{width}x{height} px"
        return f"its round or rotated shape spans {span} as xyxy, in image {image} of {size}"

    objects.rows.fault("shape-clipped", bad, crosses, "the part inside the image is used", "note")
    objects.corners[objects.crossing] = corners[is_crossing].clip(0, limits[is_crossing])
    objects.area[objects.crossing] = -1  # a stated one is that of the whole shape


def clip_masks(masks: MaskColumns, objects: "Objects", images: "Images") -> MaskColumns:
    """The masks, with the polygons of the objects that are `crossing` clipped to their images."""
    if not len(objects.crossing):
        return masks
    clipped: dict[int, list[np.ndarray]] = {}
    for row in objects.crossing.tolist():
        height, width = images.sizes[objects.image[row]].tolist()
        parts = [_clipped_polygon(polygon, width, height) for polygon in masks.polygons(row)]
        clipped[row] = [part for part in parts if len(part)]
    return masks.with_polygons(clipped)


def _clipped_polygon(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of a polygon `[P, 2]` inside an image; no points if all of it is outside."""
    for axis, limit in ((0, width), (1, height)):
        points = _positive_part(points, points[:, axis])
        points = _positive_part(points, limit - points[:, axis])
    return points.clip(0, (width, height))  # against rounding


def _positive_part(points: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The part of a polygon `[P, 2]` at one side of a line, by the algorithm of Sutherland and
    Hodgman. `distances` `[P]` are those of its corners from the line, negative on the other
    side."""
    kept = []
    for i in range(len(points)):
        previous = points[i - 1]  # of the first corner, the last one: the polygon is closed
        before = distances[i - 1]
        after = distances[i]
        if (before >= 0) != (after >= 0):  # this side of the polygon crosses the line
            share = before / (before - after)
            kept.append(previous + share * (points[i] - previous))
        if after >= 0:
            kept.append(points[i])
    return np.array(kept, np.float64).reshape(-1, 2)
