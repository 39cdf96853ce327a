"""Polygons hold exactly the pixels of a mask, also in the eyes of COCO's own rasterizer."""

import sys

import hotcoco.mask
import numpy as np
import pycocotools.mask
import pytest

from redetr.outlines import outlines, polygons_without_holes


def rows(text):
    return np.array([[letter == "#" for letter in row] for row in text.split()])


def random_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    if seed % 3 == 0:
        return rng.random((height, width)) < 0.5
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / rng.uniform(1, 6)) + np.cos(y / rng.uniform(1, 6))
    return waves > rng.uniform(-1.5, 1.5)


def inside(polygons, shape):
    """The pixels whose middles lie in an odd number of polygons."""
    height, width = shape
    y, x = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros(shape, int)
    for polygon in polygons:
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if x1 == x2:  # a ray to the left crosses vertical edges
                crossings += (x1 < x) & (min(y1, y2) < y) & (y < max(y1, y2))
    return crossings % 2 == 1


def test_a_rectangle_has_four_corners():
    (polygon,) = outlines(rows(".... .##. .##. .##. ...."))
    start = next(i for i, corner in enumerate(polygon.tolist()) if corner == [1, 1])
    assert np.roll(polygon, -start, axis=0).tolist() == [[1, 1], [3, 1], [3, 4], [1, 4]]


def test_holes_run_the_other_way_round():
    ring = rows("##### #...# #####")
    areas = []
    for polygon in outlines(ring):
        x, y = polygon.T
        areas.append((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
    assert sorted(areas) == [-3, 15]
    parts = polygons_without_holes(ring)
    assert len(parts) > 1 and (inside(parts, ring.shape) == ring).all()


def test_pixels_that_touch_at_a_corner_stay_apart():
    assert [len(polygon) for polygon in outlines(rows("#. .#"))] == [4, 4]
    assert [len(polygon) for polygon in outlines(rows(".# #."))] == [4, 4]
    assert outlines(rows("... ...")) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("seed", range(24))
def test_any_mask(seed):
    mask = random_mask(seed)
    assert (inside(outlines(mask), mask.shape) == mask).all()
    parts = polygons_without_holes(mask)
    assert (inside(parts, mask.shape) == mask).all()
    if not mask.any():
        assert not parts
        return
    flat = [polygon.ravel().astype(float).tolist() for polygon in parts]
    for library in (pycocotools.mask, hotcoco.mask):
        drawn = library.decode(library.merge(library.frPyObjects(flat, *mask.shape)))
        assert (drawn == mask).all()


def cut_one_by_one(mask):
    """The polygons of `polygons_without_holes`, which are found anew after each cut."""
    polygons = outlines(mask)
    for polygon in polygons:
        x, y = polygon.T
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0:
            row = y.min()
            lower = [part + [0, row] for part in cut_one_by_one(mask[row:])]
            return cut_one_by_one(mask[:row]) + lower
    return polygons


@pytest.mark.parametrize("seed", range(40))
def test_no_more_cuts_than_one_by_one(seed):
    """Also with many holes beside, inside and above each other."""
    mask = random_mask(seed)
    if seed % 2:
        mask = np.random.default_rng(seed).random(mask.shape) < 0.8
    found = [polygon.tolist() for polygon in polygons_without_holes(mask)]
    assert found == [polygon.tolist() for polygon in cut_one_by_one(mask)]


def test_a_column_of_more_holes_than_calls_can_be_nested():
    count = sys.getrecursionlimit() + 100
    mask = np.ones((2 * count + 1, 3), dtype=bool)
    mask[1::2, 1] = False
    parts = polygons_without_holes(mask)
    assert len(parts) == count + 1
    assert (inside(parts, mask.shape) == mask).all()
