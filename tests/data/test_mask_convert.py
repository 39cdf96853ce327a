"""Masks keep their pixels in another format, or a sentence says that they do not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_mask_formats import (
    HEIGHT,
    SEGMENTATIONS,
    TRIANGLE,
    TWO_PARTS,
    WIDTH,
    disc,
    line_of,
    pixels_of,
    rle_of,
    write_coco,
    write_panoptic,
    write_yolo,
)

from redetr.data import open_dataset
from redetr.data.formats.mask_writing import as_one
from redetr.data.formats.writing import convert
from redetr.outlines import outlines

RING = disc(20, 30, 15) & ~disc(20, 28, 6)
OVERLAPPING = [[2.0, 2.0, 20.0, 2.0, 20.0, 20.0], [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


@given(st.integers(0, 10**6))
def test_one_polygon_encloses_what_all_rings_do(seed):
    random = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    shape = random.integers(1, 12, 2)
    mask[5 : 5 + shape[0], 8 : 8 + shape[1]] = random.random(shape) < random.choice([0.4, 0.9, 1])
    mask[5, 8] = True
    polygon = as_one([ring.astype(np.float64) for ring in outlines(mask)])
    np.testing.assert_array_equal(pixels_of([polygon.ravel().tolist()]), mask)


def masks_of(root: Path, split: str = "train") -> list[torch.Tensor]:
    dataset = open_dataset(root, split, masks=True)
    return [dataset.target(index)["masks"] for index in range(len(dataset))]


def assert_same_masks(first: Path, second: Path) -> None:
    for split in ("train", "val"):
        pairs = zip(masks_of(first, split), masks_of(second, split), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_coco_keeps_polygons_and_rle_as_they_are(tmp_path):
    root = write_coco(tmp_path / "data", SEGMENTATIONS)
    notes = convert(root, tmp_path / "again", "coco")
    assert len(notes) == 1
    document = json.loads((tmp_path / "again" / "annotations/instances_train.json").read_text())
    written = [row["segmentation"] for row in document["annotations"]]
    assert written[:3] == SEGMENTATIONS[:3]
    assert written[3] == rle_of(disc(10, 12, 7))  # numbers became text
    assert_same_masks(tmp_path / "again", root)


@pytest.mark.parametrize(
    "segmentation", [[TRIANGLE], TWO_PARTS, OVERLAPPING, rle_of(RING), rle_of(disc(8, 9, 4))]
)
def test_yolo_holds_one_polygon_with_the_same_pixels(tmp_path, segmentation):
    root = write_coco(tmp_path / "data", [segmentation, [TRIANGLE]])
    convert(root, tmp_path / "yolo", "yolo")
    assert "task: segment" in (tmp_path / "yolo" / "data.yaml").read_text()
    assert_same_masks(tmp_path / "yolo", root)
    convert(tmp_path / "yolo", tmp_path / "coco", "coco")
    assert_same_masks(tmp_path / "coco", root)


def test_outlines_of_yolo_become_polygons_of_coco(tmp_path):
    root = write_yolo(tmp_path / "data", [line_of(TRIANGLE), line_of(TWO_PARTS[1])])
    convert(root, tmp_path / "coco", "coco")
    assert_same_masks(tmp_path / "coco", root)
    document = json.loads((tmp_path / "coco" / "annotations/instances_train.json").read_text())
    polygons = [row["segmentation"][0] for row in document["annotations"]]
    np.testing.assert_allclose(polygons[0], TRIANGLE)
    np.testing.assert_allclose(polygons[1], TWO_PARTS[1])


def test_panoptic_segments_become_masks_of_coco(tmp_path):
    root = write_panoptic(tmp_path / "data")
    convert(root, tmp_path / "coco", "coco")
    assert_same_masks(tmp_path / "coco", root)
    assert open_dataset(tmp_path / "coco", "train").is_thing == (True, False, False)


def test_what_a_format_cannot_hold_is_said(tmp_path):
    root = write_coco(tmp_path / "data", [[TRIANGLE], []], bbox=[5.5, 4, 24.75, 29])
    (root / "annotations" / "instances_val.json").unlink()
    notes = convert(root, tmp_path / "v", "voc")
    assert "VOC has no masks: 2 masks are left out" in notes
    notes = convert(root, tmp_path / "y", "yolo")
    assert "train: 2 objects have no mask, and a line of a box among outlines" in notes
    broken = write_coco(tmp_path / "broken", [[TRIANGLE], [[1, 2, 3]]], bbox=[5.5, 4, 24.75, 29])
    notes = convert(broken, tmp_path / "b", "coco")
    assert any("has 3 numbers, not x and y of each point" in note for note in notes)
    moved = write_coco(tmp_path / "moved", [[TRIANGLE]], bbox=[3, 4, 30, 29])
    notes = convert(moved, tmp_path / "m", "yolo")
    assert any("which changes 2 boxes by more than" in n for n in notes)
