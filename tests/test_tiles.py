"""Tiles cover an image, and each object in it is found once, wherever the seams are."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redetr.boxes import box_iou
from redetr.data.windows import overlapping, tile_windows
from redetr.detector.detections import Detections
from redetr.detector.tiles import merge_tiles
from redetr.errors import InputError
from redetr.masks import CroppedMasks, crops_of


@settings(max_examples=40)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300), st.floats(0, 0.9))
def test_windows_cover_the_image_with_enough_overlap(height, width, tile, overlap):
    windows = tile_windows(height, width, tile, overlap)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in windows[:500]:
        assert min(left, top) >= 0 and right <= width and bottom <= height
        assert (right - left, bottom - top) == (min(tile, width), min(tile, height))
        seen[top:bottom, left:right] = True
    if len(windows) <= 500:
        assert seen.all()
    assert len(set(windows)) == len(windows)
    columns = sorted({window[0] for window in windows})
    side = min(tile, width)
    assert all(b - a <= max(1, round(side * (1 - overlap))) + 1 for a, b in pairwise(columns))


def test_windows_by_hand():
    assert tile_windows(100, 100, 128, 0.2) == [(0, 0, 100, 100)]
    assert tile_windows(100, 180, 100, 0.2) == [(0, 0, 100, 100), (80, 0, 180, 100)]
    # Three are needed for 200: they share more than they must, and all as much.
    assert tile_windows(50, 200, 100, 0.2) == [(0, 0, 100, 50), (50, 0, 150, 50), (100, 0, 200, 50)]


@pytest.mark.parametrize(
    ("tile", "overlap"), [(0, 0.2), (-3, 0.2), (10, 1.0), (10, -0.1), (10, float("nan"))]
)
def test_tiles_that_cannot_be(tile, overlap):
    with pytest.raises(InputError, match="tiles of"):
        tile_windows(50, 50, tile, overlap)


SIZE = (100, 180)  # height, width; two tiles, which share x from 80 to 100
WINDOWS = tile_windows(*SIZE, 100, 0.2)


def in_tile(rows: list[tuple[float, int, list[float]]]) -> Detections:
    """Of (score, label, box in pixels of the tile)."""
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(scores),
        torch.tensor(labels).long(),
        torch.tensor(boxes).reshape(-1, 4),
        ("cat", "dog"),
        (1, 2),
        (100, 100),
    )


def merged(left, right):
    found = merge_tiles([in_tile(left), in_tile(right)], WINDOWS, SIZE)
    assert found.image_size == SIZE
    return [
        (round(score, 2), label, box)
        for score, label, box in zip(
            found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
        )
    ]


def test_boxes_far_from_the_seam_are_moved_and_sorted():
    rows = merged([(0.5, 0, [5, 5, 20, 20])], [(0.9, 1, [50, 60, 70, 80])])
    assert rows == [(0.9, 1, [130, 60, 150, 80]), (0.5, 0, [5, 5, 20, 20])]
    assert merged([], []) == []


def test_an_object_that_both_tiles_see_whole_is_found_once():
    """It is at x from 84 to 94 of the image."""
    assert merged([(0.6, 0, [84, 10, 94, 30])], [(0.8, 0, [4, 10, 14, 31])]) == [
        (0.8, 0, [84, 10, 94, 31])
    ]


def test_a_cut_box_gives_way_to_the_neighbour_that_sees_more():
    """The object is at x from 85 to 130: the left tile sees 15 px of it, and is surer."""
    assert merged([(0.9, 0, [85, 10, 100, 30])], [(0.6, 0, [5, 10, 50, 30])]) == [
        (0.9, 0, [85, 10, 130, 30])
    ]
    assert merged([(0.5, 0, [85, 10, 99, 30])], [(0.6, 0, [5, 10, 50, 30])]) == [
        (0.6, 0, [85, 10, 130, 30])
    ]


def test_an_object_larger_than_the_overlap_is_put_together():
    """It is at x from 40 to 160: both tiles cut it."""
    assert merged([(0.7, 0, [40, 10, 100, 30])], [(0.9, 0, [0, 11, 80, 30])]) == [
        (0.9, 0, [40, 10, 160, 30])
    ]


def test_masks_of_parts_are_one_mask():
    """The object at 50 to 130 is cut by both tiles; that at 160 is seen by the second one only."""
    left = in_tile([(0.9, 0, [50, 10, 100, 30])])
    right = in_tile([(0.8, 0, [0, 10, 50, 30]), (0.7, 0, [80, 50, 90, 60])])
    tiles = []
    for detections in (left, right):
        masks = torch.zeros(len(detections), 100, 100, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, detections.boxes.int().tolist(), strict=True):
            mask[y1 + 1 : y2, x1:x2] = True
        crops = CroppedMasks(tuple(crops_of(masks)), (100, 100))
        tiles.append(replace(detections, masks=crops))
    whole = merge_tiles(tiles, WINDOWS, SIZE)
    expected = torch.zeros(2, *SIZE, dtype=torch.bool)
    expected[0, 11:30, 50:130] = True
    expected[1, 51:60, 160:170] = True
    assert torch.equal(whole.masks.dense(), expected)


def test_an_object_over_four_tiles():
    windows = tile_windows(180, 180, 100, 0.2)
    parts = [[40, 40, 100, 100], [0, 40, 70, 100], [40, 0, 100, 60], [0, 0, 70, 60]]
    found = merge_tiles([in_tile([(0.5, 0, box)]) for box in parts], windows, (180, 180))
    assert found.boxes.tolist() == [[40, 40, 150, 140]]


def test_what_is_not_merged():
    other_class = [(0.9, 0, [84, 10, 94, 30])], [(0.8, 1, [4, 10, 14, 30])]
    neighbours = [(0.9, 0, [80, 10, 89, 30])], [(0.8, 0, [11, 10, 20, 30])]
    one_tile = [(0.9, 0, [10, 10, 30, 30]), (0.8, 0, [10, 10, 30, 31])], []
    whole_in_whole = [(0.9, 0, [30, 10, 95, 60])], [(0.8, 0, [3, 20, 13, 30])]
    for left, right in (other_class, neighbours, one_tile, whole_in_whole):
        assert len(merged(left, right)) == 2


def test_boxes_at_the_border_of_the_image_are_not_cut():
    """The one on the left touches the image's own edge; the other tile's smaller box does not
    become a part of it."""
    windows = tile_windows(100, 180, 100, 0.8)
    found = [
        in_tile(
            [(0.6, 0, [0, 10, 60, 50])]
            if window[0] == 0
            else [(0.9, 0, [5, 20, 25, 40])]
            if window[0] == 20
            else []
        )
        for window in windows
    ]
    assert len(merge_tiles(found, windows, SIZE)) == 2


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.35, 0.5]))
def test_a_perfect_detector_finds_each_object_once(seed, overlap):
    """Objects smaller than the overlap and apart from each other, and what each tile sees of
    them."""
    random = torch.Generator().manual_seed(seed)
    height, width, tile = 230, 310, 100
    cells = [(x, y) for x in range(0, width - 30, 30) for y in range(0, height - 30, 30)]
    chosen = [cell for cell in cells if torch.rand((), generator=random) < 0.5]
    truth = []
    for x, y in chosen:
        w, h = torch.randint(8, 19, (2,), generator=random).tolist()
        truth.append([x + 2, y + 2, x + 2 + w, y + 2 + h])
    windows = tile_windows(height, width, tile, overlap)
    found = []
    for left, top, right, bottom in windows:
        rows = []
        for x1, y1, x2, y2 in truth:
            seen = [
                max(x1, left) - left,
                max(y1, top) - top,
                min(x2, right) - left,
                min(y2, bottom) - top,
            ]
            if seen[2] - seen[0] >= 3 and seen[3] - seen[1] >= 3:
                rows.append((float(torch.rand((), generator=random)), 0, seen))
        found.append(in_tile(rows))
    boxes = merge_tiles(found, windows, (height, width)).boxes.tolist()
    assert sorted(boxes) == sorted([float(side) for side in box] for box in truth)


def pairs_by_iou(windows, indices):
    """The pairs of `overlapping`, from the IoU of all windows with all others."""
    frames = torch.tensor(windows, dtype=torch.float32)
    overlap = torch.triu(box_iou(frames, frames), diagonal=1)
    for a, b in torch.nonzero(overlap).tolist():
        if a in indices and b in indices:
            yield a, b


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_pairs_of_windows_are_those_with_an_iou(seed, is_grid):
    """Also of windows in no order and of several sizes; and so are the detections."""
    random = torch.Generator().manual_seed(seed)
    height, width = (60, 90)
    windows = tile_windows(height, width, 25, 0.3 * float(torch.rand((), generator=random)))
    if not is_grid:
        sides = torch.randint(1, 40, (12, 2), generator=random)
        corners = torch.randint(0, 50, (12, 2), generator=random)
        windows = torch.cat([corners, corners + sides], 1).tolist()
    tiles = []
    for left, top, right, bottom in windows:
        rows = []
        for _ in range(int(torch.randint(0, 4, (), generator=random))):
            x1, y1, w, h = (torch.rand(4, generator=random) * 0.9 + 0.05).tolist()
            side_x, side_y = right - left, bottom - top
            box = [x1 * side_x, y1 * side_y, min(x1 + w, 1) * side_x, min(y1 + h, 1) * side_y]
            label = int(torch.randint(0, 2, (), generator=random))
            rows.append((float(torch.rand((), generator=random)), label, box))
        tiles.append(in_tile(rows))
    indices = [index for index, tile in enumerate(tiles) if len(tile)]
    assert list(overlapping(windows, indices)) == list(pairs_by_iou(windows, indices))
    found = merge_tiles(tiles, windows, (height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redetr.detector.tiles.overlapping", pairs_by_iou)
        expected = merge_tiles(tiles, windows, (height, width))
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.boxes, expected.boxes)


def test_memory_does_not_grow_with_pairs_of_tiles(monkeypatch):
    """Of 24,336 tiles, no table of all with all is made."""
    windows = tile_windows(10_000, 10_000, 128, 0.5)
    empty = in_tile([])
    tiles = [empty] * len(windows)
    tiles[0] = in_tile([(0.9, 0, [70, 70, 90, 90])])
    tiles[1] = in_tile([(0.8, 0, [6, 70, 26, 90])])
    tiles[-1] = in_tile([(0.7, 0, [70, 70, 90, 90])])
    sizes = []

    def watched(boxes1, boxes2):
        sizes.append(len(boxes1) * len(boxes2))
        return box_iou(boxes1[:10], boxes2[:10])

    monkeypatch.setattr("redetr.detector.tiles.box_iou", watched)
    found = merge_tiles(tiles, windows, (10_000, 10_000))
    assert sizes and max(sizes) == 1
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_measured_ap_of_a_whole_photograph_is_not_below_that_of_its_tiles():
    """In the last run of benchmarks/tiles.py, as docs/predict.md says it."""
    root = Path(__file__).parent.parent
    rows = json.loads(max((root / "benchmarks/results").glob("*-tiles.json")).read_text())["rows"]
    merged, alone, doubled = (
        rows[name] for name in ("overlap 0.2", "tiles one by one", "overlap 0.2, not merged")
    )
    for name in ("AP", "AP50", "tiles_AP", "tiles_AP50"):
        assert rows["overlap 0.5"][name] > alone[name]  # as large as most objects
        assert merged[name] > doubled[name]
    assert merged["AP"] > alone["AP"]
    page = (root / "docs/predict.md").read_text()
    for row in rows.values():
        numbers = " | ".join(
            f"{100 * row[name]:.1f}" for name in ("AP", "AP50", "tiles_AP", "tiles_AP50")
        )
        assert f" | {numbers} |" in page
