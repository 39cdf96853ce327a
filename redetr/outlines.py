"""Outlines of masks: polygons along the edges of pixels, which enclose exactly the pixels of the
mask.

A polygon is int64 `[P, 2]`: x, y of its corners in pixels, without the first one again at the end.
"""

from bisect import bisect_left
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.int64]

# Steps along the edges, with the mask at the right hand: a turn to the right is the next one.
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def outlines(mask: NDArray[np.bool_]) -> list[Polygon]:
    """The outlines of a mask `[H, W]`: clockwise around what belongs to it, counter-clockwise
    around holes. Pixels that touch at a corner have outlines of their own.
    """
    edges = _edges(mask)
    polygons = []
    while edges:
        (x, y, step), end = edges.popitem()
        corners = [(x, y)]
        while end != corners[0]:
            corners.append(end)
            step = _turn(edges, end, step)
            end = edges.pop((*end, step))
        polygons.append(np.array(corners))
    return polygons


def polygons_without_holes(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Polygons that add up to a mask `[H, W]`, for formats that know no holes: a mask with holes is
    cut into parts without any.
    """
    polygons = outlines(mask)
    cuts = _cuts([polygon for polygon in polygons if _is_hole(polygon)])
    if not cuts:
        return polygons
    parts = []
    for top, bottom in pairwise([0, *cuts, len(mask)]):
        shift = np.array([0, top])
        for polygon in outlines(mask[top:bottom]):
            parts.append(polygon + shift)
    return parts


def _cuts(holes: list[Polygon]) -> list[int]:
    """The rows where cuts open all holes, in order.

    Where a hole begins, a cut opens it: it is at the edge of the lower part. A cut also opens the
    other holes that it meets, which need none of their own.
    """
    cuts: list[int] = []
    for hole in holes:
        first, last = int(hole[:, 1].min()), int(hole[:, 1].max())
        position = bisect_left(cuts, first)
        if position == len(cuts) or cuts[position] > last:
            cuts.insert(position, first)
    return cuts


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[int, int, int], tuple[int, int]]:
    """The straight edges between pixels inside and outside: where each ends, by where it starts and
    its direction."""
    pixels = mask.astype(np.int8)
    across = np.diff(pixels, axis=0, prepend=0, append=0)  # [H + 1, W]
    down = np.diff(pixels, axis=1, prepend=0, append=0)  # [H, W + 1]
    edges = {}
    for y, start, stop, change in _runs(across):
        if change > 0:  # inside is below
            edges[start, y, _RIGHT] = (stop, y)
        else:
            edges[stop, y, _LEFT] = (start, y)
    for x, start, stop, change in _runs(down.T):
        if change > 0:  # inside is at the right
            edges[x, stop, _UP] = (x, start)
        else:
            edges[x, start, _DOWN] = (x, stop)
    return edges


def _runs(changes: NDArray[np.int8]) -> list[list[int]]:
    """Line, start, stop and value of every run of equal values in `[L, n]`, without those of 0."""
    padded = np.pad(changes, ((0, 0), (1, 1)))
    line, start = np.nonzero(padded[:, 1:] != padded[:, :-1])  # where the value changes
    value = padded[line, start + 1]
    runs = np.flatnonzero(value)
    following = np.minimum(runs + 1, len(start) - 1)  # a run ends where the next value begins
    columns = (line[runs], start[runs], start[following], value[runs])
    return np.stack(columns, axis=1).tolist()


def _turn(
    edges: dict[tuple[int, int, int], tuple[int, int]], corner: tuple[int, int], step: int
) -> int:
    """The direction after a corner: to the right, or where there is no such edge, to the left."""
    to_the_right = (step + 1) % 4
    if (*corner, to_the_right) in edges:
        return to_the_right
    return (step - 1) % 4


def _is_hole(polygon: Polygon) -> bool:
    """Whether the polygon runs counter-clockwise when the image is displayed."""
    x, y = polygon.T
    next_x, next_y = np.roll(polygon, -1, axis=0).T
    return (x * next_y - next_x * y).sum() < 0
