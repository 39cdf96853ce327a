"""Shapes that annotation tools export, as rows of COCO's lists."""

import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redetr.data.formats.columns import Row
from redetr.data.formats.outlines import is_number
from redetr.data.formats.paths import read_file
from redetr.errors import InputError

_CORNERS = 64  # of the polygon that stands for an ellipse


@dataclass
class Document:
    """The lists of a data set, and the shapes in it that are no objects."""

    images: list[Row] = field(default_factory=list)
    annotations: list[Row] = field(default_factory=list)
    categories: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # the kind, and where
    without_class: list[str] = field(default_factory=list)  # where objects are that have none

    def add_categories(self, names: Iterable[str]) -> dict[str, int]:
        """Adds the categories of these names, with ids from 1, and returns the ids."""
        id_of = {}
        for id_, name in enumerate(names, start=1):
            self.categories.append({"id": id_, "name": name})
            id_of[name] = id_
        return id_of

    def add_image(self, name: Any, height: Any, width: Any) -> None:
        """Adds an image; its size may be None."""
        row = {"id": len(self.images), "file_name": name, "height": height, "width": width}
        self.images.append(row)

    def add_object(self, category: Any, shape: Row) -> None:
        """Adds an object on the last image: the id of its category, and `bbox` or
        `segmentation`. Without a category, only where it is is kept."""
        if category is None:
            self.without_class.append(f"a shape on {self._last_image()}")
            return
        row = {"id": len(self.annotations) + 1, "image_id": len(self.images) - 1}
        self.annotations.append(row | {"category_id": category} | shape)

    def leave_out(self, kind: str) -> None:
        """Notes a shape on the last image that is no object."""
        plain = kind if kind.isidentifier() else reprlib.repr(kind)
        self.left_out.append((plain, self._last_image()))

    def _last_image(self) -> str:
        name = reprlib.repr(self.images[-1]["file_name"])
        return f"image {len(self.images) - 1} ({name})"

    def lists(self) -> dict[str, list[Row]]:
        """The lists by their names in COCO's format."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }


def parse_json(file: Path) -> Any:
    """What a JSON file holds. Raises InputError if it is none."""
    try:
        return json.loads(read_file(file))
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested beyond reason
        remedy = "export the annotations again"
        raise InputError(f"not JSON: {error}", where=file, remedy=remedy) from None


def as_dict(value: Any) -> Row:
    """A value of JSON that should be an object; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A value of JSON that should be a list; an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def polygon(points: list[Any]) -> Row:
    """The outline x, y, x, y, ...; a message quotes what is none."""
    return {"segmentation": [points]}


def ellipse(cx: Any, cy: Any, rx: Any, ry: Any, degrees: Any = 0.0) -> Row:
    """The outline of an ellipse that is turned clockwise about its centre, by its radii; a message
    quotes what is none."""
    numbers = [cx, cy, rx, ry, degrees]
    if not all(map(is_number, numbers)):
        return polygon(numbers)
    turn = math.radians(degrees)
    cosine = math.cos(turn)
    sine = math.sin(turn)
    points = []
    for corner in range(_CORNERS):
        angle = 2 * math.pi * corner / _CORNERS
        along = rx * math.cos(angle)
        across = ry * math.sin(angle)
        x = cx + along * cosine - across * sine
        y = cy + along * sine + across * cosine
        points += [x, y]
    return polygon(points)
