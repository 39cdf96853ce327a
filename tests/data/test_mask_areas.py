"""The area of an object whose source states none is that of its mask where masks are read, so AP by
size is the same in redetr and with COCO's file that `convert` writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from test_cutting import L_SHAPE
from test_cutting import data as coco_to_cut
from test_mask_formats import (
    HEIGHT,
    SEGMENTATIONS,
    TRIANGLE,
    TWO_PARTS,
    WIDTH,
    line_of,
    write_coco,
    write_panoptic,
    write_yolo,
)
from test_voc import with_masks

from redetr.data import open_dataset
from redetr.data.formats.cutting import Cut
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert


def yolo(root: Path) -> Path:
    return write_yolo(root, [line_of(TRIANGLE), line_of(TWO_PARTS[1])])


def labelme(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / "a.png")
        points = np.reshape(TRIANGLE, (-1, 2)).tolist()
        shapes = [
            {"label": "thing", "shape_type": "polygon", "points": points},
            {"label": "thing", "shape_type": "circle", "points": [[30, 20], [40, 20]]},
        ]
        document = {"imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / split / "a.json").write_text(json.dumps(document | {"shapes": shapes}))
    return root


def coco(root: Path) -> Path:
    return write_coco(root, SEGMENTATIONS)


def without_areas(root: Path, keys: tuple[str, ...]) -> Path:
    """Panoptic data whose segments lack these keys."""
    write_panoptic(root)
    for file in (root / "annotations").glob("*.json"):
        document = json.loads(file.read_text())
        for annotation in document["annotations"]:
            for segment in annotation["segments_info"]:
                for key in keys:
                    del segment[key]
        file.write_text(json.dumps(document))
    return root


def panoptic(root: Path) -> Path:
    return without_areas(root, ("area",))


def panoptic_without_boxes(root: Path) -> Path:
    return without_areas(root, ("area", "bbox"))


def rows_of(root: Path) -> list[dict[str, Any]]:
    """The objects of the training split of COCO."""
    document = json.loads((root / "annotations" / "instances_train.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for row in document["annotations"]:
        row["size"] = sizes[row["image_id"]]
    return document["annotations"]


def pixels_in(row: dict[str, Any]) -> int:
    """The number of pixels of an object of COCO, as pycocotools counts them."""
    segmentation = row["segmentation"]
    if isinstance(segmentation, list):
        parts = pycocotools.mask.frPyObjects(segmentation, *row["size"])
        segmentation = pycocotools.mask.merge(parts)
    return int(pycocotools.mask.area(segmentation))


SOURCES = [yolo, labelme, with_masks, coco, panoptic, panoptic_without_boxes]


@pytest.mark.parametrize("write", SOURCES)
def test_areas_in_coco_are_those_of_the_masks(tmp_path, write):
    source = write(tmp_path / "source")
    convert(source, tmp_path / "coco", "coco")
    rows = rows_of(tmp_path / "coco")
    assert [row["area"] for row in rows] == [pixels_in(row) for row in rows]
    assert any(row["area"] < 0.9 * row["bbox"][2] * row["bbox"][3] for row in rows)


@pytest.mark.parametrize("write", SOURCES)
def test_areas_in_redetr_are_those_in_coco(tmp_path, write):
    """With masks; without them, those of boxes, which take no time."""
    source = write(tmp_path / "source")
    convert(source, tmp_path / "coco", "coco")
    meant = [row["area"] for row in rows_of(tmp_path / "coco")]
    for root, use_masks in ((source, True), (tmp_path / "coco", True), (tmp_path / "coco", False)):
        dataset = open_dataset(root, "train", masks=use_masks)
        areas = [area for i in range(len(dataset)) for area in dataset.target(i)["area"].tolist()]
        assert areas == meant
    if write is not panoptic_without_boxes:  # whose pixels are read anyway
        plain = read_annotations(source, "train")
        sides = plain.boxes[:, 2:] - plain.boxes[:, :2]
        np.testing.assert_allclose(plain.area, sides.prod(1))


def test_an_object_without_a_mask_has_the_area_of_its_box(tmp_path):
    source = write_coco(tmp_path / "source", [[TRIANGLE], []], bbox=[5.5, 4, 24.75, 29])
    convert(source, tmp_path / "coco", "coco")
    outlined, plain, *_ = rows_of(tmp_path / "coco")
    assert outlined["area"] == pixels_in(outlined)
    assert plain["area"] == pytest.approx(24.75 * 29)


def test_a_stated_area_stays(tmp_path):
    source = write_coco(tmp_path / "source", SEGMENTATIONS, area=123.25)
    convert(source, tmp_path / "coco", "coco")
    assert {row["area"] for row in rows_of(tmp_path / "coco")} == {123.25}
    assert set(open_dataset(source, "train", masks=True).annotations.area) == {123.25}


def test_areas_of_tiles_are_those_of_the_visible_pixels(tmp_path):
    boxes = [[60, 10, 60, 70], [5, 5, 20, 20]]
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    source = coco_to_cut(tmp_path / "source", boxes, segmentation=[L_SHAPE, square])
    convert(source, tmp_path / "coco", "coco", cut=Cut(70, 0.2, min_visible=0.1))
    rows = rows_of(tmp_path / "coco")
    assert [row["area"] for row in rows] == [pixels_in(row) for row in rows]
    assert len(rows) > 3


def test_a_note_on_areas_says_what_decides(tmp_path):
    source = yolo(tmp_path / "source")
    notes = convert(source, tmp_path / "yolo", "yolo")
    assert (
        "YOLO has no areas: boxes decide which objects count as small, medium and large, or masks "
        "where they are read" in notes
    )
    notes = convert(source, tmp_path / "voc", "voc")
    assert "VOC has no areas: boxes decide which objects count as small, medium and large" in notes
