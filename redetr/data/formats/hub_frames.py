"""The images of Hugging Face rows, and how their boxes and masks are turned to stored pixels.

`datasets` rotates an image by its EXIF tag when it decodes it, so boxes refer to the rotated image.
Training uses stored pixels. A row may state the size of the stored image in its columns `width` and
`height`; its boxes then refer to that one. If these columns are two numbers of a box, they state no
size.
"""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from redetr.data.formats.hub_rows import Columns, Row, four_numbers
from redetr.data.formats.outlines import is_number
from redetr.data.formats.segmentations import parse_segmentation
from redetr.data.images import image_frame, problem_of
from redetr.data.orientation import stored_points, stored_sides, turned_back
from redetr.masks import decode, encode


@dataclass(frozen=True)
class Frame:
    """The image that the boxes of a row refer to."""

    stored: tuple[int, int]  # width and height of its file in px; 0 if it cannot be read
    orientation: int = 1  # of EXIF: how the file is rotated to become the image of the boxes

    @classmethod
    def of(cls, image: Row | None) -> "Frame":
        """The image as `datasets` decodes it."""
        width, height, orientation = image_frame(image_file(image))
        return cls((width, height), orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the image of the boxes."""
        width, height = self._turned_sides(self.stored)
        return int(width), int(height)

    def as_stated(self, row: Row, columns: Columns) -> "Frame":
        """The stored image, if the row states its size, and not that of the rotated image."""
        stated = stated_size(row, columns)
        if stated == self.stored and stated != self.size:
            return replace(self, orientation=1)
        return self

    def stored_box(self, box: Any) -> Any:
        """A box (x, y, width, height in px) in the stored image. Values that are not boxes are
        returned unchanged."""
        numbers = four_numbers(box)
        if self.orientation == 1 or numbers is None:
            return box
        x, y, width, height = numbers
        center_x, center_y = self._stored_points([x + width / 2, y + height / 2])
        stored_width, stored_height = self._turned_sides((width, height))
        start_x = center_x - stored_width / 2
        start_y = center_y - stored_height / 2
        return np.round([start_x, start_y, stored_width, stored_height], 9).tolist()

    def stored_segmentation(self, value: Any) -> Any:
        """A mask in COCO's format in the stored image. Invalid values are returned unchanged."""
        if self.orientation == 1:
            return value
        if isinstance(value, list):
            return [self._stored_polygon(polygon) for polygon in value]
        counts = parse_segmentation(value)
        if not isinstance(counts, bytes):
            return value
        height, width = value["size"]
        mask = decode([counts], (height, width))[0].numpy()
        stored = np.ascontiguousarray(turned_back(mask, self.orientation))
        (stored_counts,) = encode(torch.from_numpy(stored)[None])
        return {"size": list(stored.shape), "counts": stored_counts}

    def _stored_polygon(self, polygon: Any) -> Any:
        is_valid = isinstance(polygon, list) and all(map(is_number, polygon))
        if not is_valid or len(polygon) % 2:
            return polygon
        return self._stored_points(polygon).round(9).tolist()

    def _stored_points(self, points: list[float]) -> NDArray[np.float64]:
        """Points `[x, y, x, y, ...]` in px of the stored image."""
        fractions = np.array(points, np.float64).reshape(-1, 2) / self.size
        orientations = np.full(len(fractions), self.orientation)
        return (stored_points(fractions, orientations) * self.stored).ravel()

    def _turned_sides(self, sides: tuple[float, float]) -> NDArray[np.float64]:
        """Width and height in the other image: the stored one, or that of the boxes."""
        return stored_sides(np.array([sides]), np.array([self.orientation]))[0]


def image_file(image: Row | None) -> Any:
    """A file that PIL can open; an empty file for a row without an image."""
    if image is None or _is_empty(image):
        return io.BytesIO()
    if image["bytes"] is None:
        return image["path"]
    return io.BytesIO(image["bytes"])


def image_problem(image: Row | None) -> str:
    """Why the image of a row cannot be read. For images whose `Frame` has no size."""
    if image is None or _is_empty(image):
        return "it has no image"
    return problem_of(image_file(image))


def _is_empty(image: Row) -> bool:
    return image["bytes"] is None and image["path"] is None


def stated_size(row: Row, columns: Columns) -> tuple[float, float] | None:
    """The width and height of the image that the row states, as numbers or texts; None if it does
    not, or if these are columns of its boxes."""
    if {"width", "height"} & {*columns.used()}:
        return None
    width = _number(row.get("width"))
    height = _number(row.get("height"))
    if width is None or height is None:
        return None
    return width, height


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None
