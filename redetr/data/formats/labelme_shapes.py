"""The shapes in LabelMe's files: the box around each, its polygons, or why it has none."""

import base64
import io
import math
import reprlib
from typing import Any

import numpy as np

from redetr.data.images import open_image
from redetr.data.segment_images import object_numbers
from redetr.errors import InputError
from redetr.outlines import polygons_without_holes
from redetr.wording import counted

# `rotation` is a rotated rectangle of X-AnyLabeling, which otherwise writes LabelMe's format.
OBJECTS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")
MAY_CROSS = ("oriented_rectangle", "rotation", "circle")  # the border: see `data/crossing.py`
NO_OBJECTS = ("point", "points", "line", "linestrip")
_LARGEST = 1e9  # px

Extent = tuple[float, float, float, float]  # x1, y1, x2, y2
Polygons = list[list[float]]  # each x, y, x, y, ...
_CORNERS = 64  # of the polygon that stands for a circle
NO_EXTENT = (math.nan, math.nan, math.nan, math.nan)


def extent_of(kind: Any, points: Any) -> Extent:
    """The box around a shape; NaN if the shape has none."""
    if shape_problem(kind, points):
        return NO_EXTENT
    if kind == "circle":  # its centre, and a point on it
        center_x, center_y = map(float, points[0])
        edge_x, edge_y = map(float, points[1])
        radius = math.hypot(edge_x - center_x, edge_y - center_y)
        return center_x - radius, center_y - radius, center_x + radius, center_y + radius
    x = [float(point[0]) for point in points]
    y = [float(point[1]) for point in points]
    left, right = min(x), max(x)
    top, bottom = min(y), max(y)
    if kind == "mask":  # its first and its last pixel
        return left, top, right + 1, bottom + 1
    return left, top, right, bottom


def around(first: Extent, second: Extent) -> Extent:
    """The box around two boxes; NaN if one of them is NaN, which `min` would drop."""
    if math.isnan(first[0] + second[0]):
        return NO_EXTENT
    x1, y1, x2, y2 = first
    left, top, right, bottom = second
    return min(x1, left), min(y1, top), max(x2, right), max(y2, bottom)


def shape_problem(kind: Any, points: Any) -> str:
    """Why a shape has no box; empty if it has one."""
    if kind not in OBJECTS:
        return f"{reprlib.repr(kind)} is not a supported shape ({', '.join(OBJECTS)})"
    if not isinstance(points, list):
        return f"has the points {reprlib.repr(points)}, which are not a list"
    for point in points:
        if not _is_point(point):
            return f"has the point {reprlib.repr(point)}, which is not x and y as finite numbers"
    if len(points) < 2:
        return f"has {counted(len(points), 'point')}, but a {kind} needs at least two"
    return ""


def polygons_of(kind: Any, shape: dict[str, Any]) -> Polygons | None:
    """The polygons of a shape that is not a box; None for boxes and for invalid shapes."""
    points: Any = shape.get("points")
    if math.isnan(extent_of(kind, points)[0]):
        return None
    if kind == "polygon":
        return [[float(number) for point in points for number in point]]
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points[:2]
        radius = math.hypot(edge_x - x, edge_y - y)
        circle = []
        for corner in range(_CORNERS):
            angle = 2 * math.pi * corner / _CORNERS
            circle += [x + radius * math.cos(angle), y + radius * math.sin(angle)]
        return [circle]
    if kind == "mask":
        return _polygons_of_image(shape.get("mask"), points[0])
    return None


def _polygons_of_image(text: Any, start: list[float]) -> Polygons | None:
    """The polygons around a mask that is stored as an image in base64, whose first pixel is at
    `start`; None if it is not a valid image."""
    try:
        file = io.BytesIO(base64.b64decode(text, validate=True))
        with open_image(file, "mask") as image:
            pixels = object_numbers(image)
    except (TypeError, ValueError, InputError):
        return None
    polygons = []
    for polygon in polygons_without_holes(pixels != 0):
        shifted = polygon + np.round(start).astype(np.int64)
        polygons.append(shifted.ravel().astype(np.float64).tolist())
    return polygons or None


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(number) in (int, float) and abs(number) < _LARGEST for number in value)
