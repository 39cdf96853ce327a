"""Boxes of Hugging Face rows whose four numbers have names, such as `xmin ymin xmax ymax`."""

from collections.abc import Collection
from typing import Any, NamedTuple

from redetr.data.contradictions import BoxFormat

# The first entry whose names are all columns is used. Entries with w and h come before those with
# width and height, which may be the size of the image.
_FORMATS: tuple[tuple[BoxFormat, tuple[str, ...]], ...] = (
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")),
    ("xyxy", ("x_min", "y_min", "x_max", "y_max")),
    ("xyxy", ("x1", "y1", "x2", "y2")),
    ("xyxy", ("left", "top", "right", "bottom")),
    ("cxcywh", ("cx", "cy", "w", "h")),
    ("cxcywh", ("x_center", "y_center", "w", "h")),
    ("cxcywh", ("center_x", "center_y", "w", "h")),
    ("xywh", ("left", "top", "w", "h")),
    ("xywh", ("x", "y", "w", "h")),
    ("cxcywh", ("cx", "cy", "width", "height")),
    ("cxcywh", ("x_center", "y_center", "width", "height")),
    ("cxcywh", ("center_x", "center_y", "width", "height")),
    ("xywh", ("left", "top", "width", "height")),
    ("xywh", ("x", "y", "width", "height")),
)


class NamedNumbers(NamedTuple):
    """The names of the four numbers of a box in the rows, and the box format that they imply."""

    names: tuple[str, ...]
    box_format: BoxFormat

    @property
    def is_certain(self) -> bool:
        """Whether the names are unambiguous: x and y may be those of a corner or of the centre."""
        return self.names[0] != "x"

    def boxes(self, value: Any) -> list[Any]:
        """The boxes of the objects of a row, from a list of dicts, a dict of lists, or the dict of
        a single box. Values that are not boxes are returned unchanged."""
        if isinstance(value, list):
            return [self._box(item) for item in value]
        if not isinstance(value, dict):
            return []
        columns = [value.get(name) for name in self.names]
        lists = [column for column in columns if isinstance(column, list)]
        if not lists:
            return [columns]
        if len(lists) < len(columns) or len(set(map(len, lists))) > 1:
            return []
        return [list(box) for box in zip(*lists, strict=True)]

    def _box(self, item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        return [item.get(name) for name in self.names]


def named_numbers(columns: Collection[str]) -> NamedNumbers | None:
    """The four columns that hold the numbers of a box; None if there are none."""
    by_lower = {name.lower(): name for name in columns}
    for box_format, names in _FORMATS:
        if all(name in by_lower for name in names):
            return NamedNumbers(tuple(by_lower[name] for name in names), box_format)
    return None
