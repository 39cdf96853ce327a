"""Converts shapes that annotation tools export to rows of COCO's lists."""

import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from redetr.data.formats.columns import Row
from redetr.data.formats.outlines import is_number
from redetr.data.formats.paths import read_file
from redetr.errors import InputError

# A key of annotations that occurs in no file: whether the shape is round or rotated, so that tools
# may keep only its centre inside the image.
MAY_CROSS = "\0may cross"
_NO_GROUP = (0, "0", "")
_CORNERS = 64  # of the polygon that stands for an ellipse


@dataclass
class Document:
    """The lists of a data set in COCO's format, and its shapes that are not objects."""

    images: list[Row] = field(default_factory=list)
    annotations: list[Row] = field(default_factory=list)
    categories: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # kind and image of each shape
    without_class: list[str] = field(default_factory=list)  # locations of such objects
    groups: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)  # see `add_object`
    other_subsets: list[str] = field(default_factory=list)  # of images that are in no split
    grouped_in: list[str] = field(default_factory=list)  # images of shapes that joined an object

    def add_categories(self, names: Iterable[str]) -> dict[str, int]:
        """Adds categories with these names and ids from 1; returns the ids by name."""
        id_of = {}
        for id_, name in enumerate(names, start=1):
            self.categories.append({"id": id_, "name": name})
            id_of[name] = id_
        return id_of

    def add_image(self, name: Any, height: Any, width: Any) -> None:
        """Adds an image; its size may be None."""
        row = {"id": len(self.images), "file_name": name, "height": height, "width": width}
        self.images.append(row)

    def add_object(self, category: Any, shape: Row, group: Any = None) -> None:
        """Adds an object to the last image.

        `shape` has `bbox` or `segmentation`. An object whose `category`, an id, is None is only
        noted. Shapes with the same category and `group`, a number other than 0 or its text, may be
        one object: see `join_groups`.
        """
        if category is None:
            self.without_class.append(f"a shape on {self._last_image()}")
            return
        has_group = isinstance(group, int | str) and group not in _NO_GROUP
        if has_group and isinstance(category, int | float | str):  # others are no ids
            key = (len(self.images), category, group)
            self.groups.setdefault(key, []).append(len(self.annotations))
        row = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.images) - 1,
            "category_id": category,
            **shape,
        }
        self.annotations.append(row)

    def join_groups(self) -> None:
        """Joins the polygons of each group to one object, and drops its boxes, as the tools do when
        they export COCO. Groups of boxes only are not joined, because they may be several
        objects."""
        joined = set()
        for rows in self.groups.values():
            outlined = [row for row in rows if self.annotations[row].get("segmentation")]
            outlines = [self.annotations[row]["segmentation"] for row in outlined]
            are_polygons = all(isinstance(outline, list) for outline in outlines)
            if not outlined or not (are_polygons or len(outlined) == 1):
                continue
            first, *_ = outlined
            if are_polygons:
                self.annotations[first]["segmentation"] = list(chain.from_iterable(outlines))
                if any(self.annotations[row].get(MAY_CROSS) for row in outlined):
                    self.annotations[first][MAY_CROSS] = 1
            others = [row for row in rows if row != first]
            joined.update(others)
            image = self.images[self.annotations[first]["image_id"]]
            self.grouped_in += [_image_reference(image)] * len(others)
        kept = [row for i, row in enumerate(self.annotations) if i not in joined]
        self.annotations = kept

    def leave_out(self, kind: str) -> None:
        """Notes a shape of the last image that is not an object."""
        shown = kind if kind.isidentifier() else reprlib.repr(kind)
        self.left_out.append((shown, self._last_image()))

    def _last_image(self) -> str:
        return _image_reference(self.images[-1])

    def lists(self) -> dict[str, list[Row]]:
        """The lists by their names in COCO's format."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }


def _image_reference(image: Row) -> str:
    name = reprlib.repr(image["file_name"])
    return f"image {image['id']} ({name})"


def parse_json(file: Path) -> Any:
    """The content of a JSON file. Raises InputError if it is not JSON."""
    try:
        return json.loads(read_file(file))
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        remedy = "export the annotations again"
        raise InputError(f"not JSON: {error}", where=file, remedy=remedy) from None


def as_dict(value: Any) -> Row:
    """A JSON value that should be an object; any other value is replaced by an empty object."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A JSON value that should be a list; any other value is replaced by an empty list."""
    return value if isinstance(value, list) else []


def polygon(points: list[Any]) -> Row:
    """An outline x, y, x, y, ... in pixels. Values are not checked here; the reader of the rows
    does that, and quotes invalid ones."""
    return {"segmentation": [points]}


def ellipse(cx: Any, cy: Any, rx: Any, ry: Any, degrees: Any = 0.0) -> Row:
    """The outline of an ellipse with these radii, rotated clockwise about its centre. Values that
    are not numbers are returned as the outline, so that a message quotes them."""
    numbers = [cx, cy, rx, ry, degrees]
    if not all(map(is_number, numbers)):
        return polygon(numbers)
    offsets = []
    for corner in range(_CORNERS):
        angle = 2 * math.pi * corner / _CORNERS
        offsets.append((rx * math.cos(angle), ry * math.sin(angle)))
    return polygon(turned(offsets, (cx, cy), degrees)) | {MAY_CROSS: 1}


def turned(
    offsets: Iterable[tuple[float, float]], center: tuple[float, float], degrees: float
) -> list[float]:
    """The points x, y, x, y, ... at these offsets from the centre, rotated clockwise about it."""
    center_x, center_y = center
    angle = math.radians(degrees)
    cosine = math.cos(angle)
    sine = math.sin(angle)
    points = []
    for right, down in offsets:
        x = center_x + right * cosine - down * sine
        y = center_y + right * sine + down * cosine
        points += [x, y]
    return points
