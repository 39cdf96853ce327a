"""The windows of overlapping tiles in a large image."""

import math

from redetr.errors import InputError

Window = tuple[int, int, int, int]  # left, top, right, bottom in px of the whole image


def tile_windows(height: int, width: int, tile: int, overlap: float) -> list[Window]:
    """Windows of one size that cover an image, `tile` px wide and high, or less in a small image.

    Neighbours share at least `overlap` of their side, all about the same. Raises InputError for an
    impossible tile or overlap.
    """
    if tile < 1 or not 0 <= overlap < 1:
        raise InputError(
            f"tiles of {tile} px that overlap by {overlap}: give at least 1 px, and 0 <= overlap < "
            "1"
        )
    windows = []
    for top, bottom in _spans(height, tile, overlap):
        for left, right in _spans(width, tile, overlap):
            windows.append((left, top, right, bottom))
    return windows


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
