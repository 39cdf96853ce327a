"""The windows of overlapping tiles in a large image."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from numbers import Integral, Real

from redetr.errors import InputError

Window = tuple[int, int, int, int]  # left, top, right, bottom in px of the whole image


def tile_windows(height: int, width: int, tile: int, overlap: float) -> list[Window]:
    """Windows of one size that cover an image, `tile` px wide and high, or less in a small image.

    Neighbours share at least `overlap` of their side, all about the same. Raises InputError for an
    impossible tile or overlap.
    """
    if not isinstance(tile, Integral) or not isinstance(overlap, Real):
        text = f"tile={tile!r} with overlap={overlap!r}: tile must be a whole number of px"
        raise InputError(f"{text}, overlap a number")
    if tile < 1 or not 0 <= overlap < 1:
        text = f"tiles of {tile} px that overlap by {overlap}"
        raise InputError(f"{text}: give at least 1 px, and 0 <= overlap < 1")
    windows = []
    for top, bottom in _spans(height, tile, overlap):
        for left, right in _spans(width, tile, overlap):
            windows.append((left, top, right, bottom))
    return windows


def overlapping(windows: Sequence[Window], indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pairs of windows, of those at `indices`, that share pixels: first index below second, in
    order.

    Needs memory for each window, not for each pair: windows are looked up in the cells of a grid.
    """
    # No window is larger than a cell, so it lies in at most four.
    cell_width = max((windows[i][2] - windows[i][0] for i in indices), default=1)
    cell_height = max((windows[i][3] - windows[i][1] for i in indices), default=1)

    def cells(index: int) -> list[tuple[int, int]]:
        left, top, right, bottom = windows[index]
        columns = range(left // cell_width, (right - 1) // cell_width + 1)
        rows = range(top // cell_height, (bottom - 1) // cell_height + 1)
        return [(row, column) for row in rows for column in columns]

    in_cell: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in indices:
        for cell in cells(index):
            in_cell[cell].append(index)
    for first in sorted(indices):
        near: set[int] = set()
        for cell in cells(first):
            near.update(in_cell[cell])
        for second in sorted(near):
            if second > first and _share_pixels(windows[first], windows[second]):
                yield first, second


def _share_pixels(first: Window, second: Window) -> bool:
    shared_width = min(first[2], second[2]) - max(first[0], second[0])
    shared_height = min(first[3], second[3]) - max(first[1], second[1])
    return shared_width > 0 and shared_height > 0


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Start and end of the tiles along one side."""
    side = min(tile, length)
    rest = length - side
    largest_step = max(1, round(side * (1 - overlap)))
    count = 1 + math.ceil(rest / largest_step)
    spans = []
    for i in range(count):
        start = round(i * rest / max(1, count - 1))
        spans.append((start, start + side))
    return spans
