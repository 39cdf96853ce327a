"""LabelMe's JSON files beside images, and CVAT's `instances_default.json`, read as they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_coco import refused, save_image

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.doctor.check import check
from redetr.errors import InputError

WIDTH, HEIGHT = 100, 80


def shape(points: Any, label: Any = "cat", kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


def write(folder: Path, stem: str, *shapes: dict[str, Any], **values: Any) -> None:
    """An image and its file."""
    save_image(folder / f"{stem}.png", len(stem), size=(WIDTH, HEIGHT))
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{stem}.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (folder / f"{stem}.json").write_text(json.dumps(content | values))


TRIANGLE = shape([[10, 20], [40, 20], [40, 60]])
SHAPES = {
    "polygon": (TRIANGLE, [10, 20, 40, 60]),
    "rectangle": (shape([[40, 60], [10, 20]], kind="rectangle"), [10, 20, 40, 60]),
    "circle": (shape([[50, 40], [53, 44]], kind="circle"), [45, 35, 55, 45]),
    "mask": (shape([[10, 20], [39, 59]], kind="mask", mask="iVBO"), [10, 20, 40, 60]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path, name):
    drawn, box = SHAPES[name]
    write(tmp_path, "a", drawn)
    assert splits_of(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(0)["boxes"].tolist() == [box]
    assert (dataset.class_names, dataset.category_ids) == (("cat",), (1,))
    assert dataset.image(0).shape == (3, HEIGHT, WIDTH)
    assert dataset.notes == ()


def test_splits_and_classes(tmp_path):
    """Classes are those of all splits; images are sorted by name; one without object counts."""
    write(tmp_path / "train", "b", TRIANGLE, shape([[0, 0], [9, 9]], "ant", "rectangle"))
    write(tmp_path / "train", "a")
    write(tmp_path / "valid/deep", "c", shape([[0, 0], [9, 9]], "bee", "rectangle"))
    assert splits_of(tmp_path) == ["train", "val"]
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("ant", "bee", "cat")
    assert [len(train.target(i)["boxes"]) for i in range(len(train))] == [0, 2]
    assert train.target(1)["labels"].tolist() == [2, 0]
    assert val.path(0) == tmp_path / "valid/deep/c.png"
    report = check(str(tmp_path))
    assert not [
        fault for fault in report.faults if "unused" in fault.code or "passed" in fault.code
    ]
    notes = convert(tmp_path, tmp_path.parent / f"{tmp_path.name}-new", "coco")
    assert notes[0].endswith("train has 2 images, 2 objects, val has 1 image, 1 object")


def test_groups_are_one_object(tmp_path):
    parts = [
        shape([[10, 10], [20, 20]], kind="rectangle", group_id=1),
        shape([[30, 10], [50, 40]], kind="rectangle", group_id=1),
        shape([[0, 0], [5, 5]], "dog", "rectangle", group_id=1),
        shape([[60, 60], [70, 70]], kind="rectangle"),
    ]
    write(tmp_path, "a", *parts)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(0)["boxes"].tolist() == [
        [10, 10, 50, 40],
        [0, 0, 5, 5],
        [60, 60, 70, 70],
    ]
    (note,) = dataset.notes
    assert "are parts of one object; the box around all of them is used" in note


@pytest.mark.parametrize("group", ["", None])
def test_an_empty_group_is_none(tmp_path, group):
    write(tmp_path, "a", *[TRIANGLE | {"group_id": group}] * 2, TRIANGLE | {"group_id": 0})
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.target(0)["boxes"]) == 3
    assert dataset.notes == ()


def test_labels_may_be_whole_numbers(tmp_path):
    write(tmp_path, "a", TRIANGLE | {"label": 10}, TRIANGLE | {"label": 2})
    dataset = open_dataset(tmp_path, "train")
    assert dataset.class_names == ("10", "2")
    assert dataset.target(0)["labels"].tolist() == [0, 1]


def test_labels_that_are_no_classes_are_left_out(tmp_path):
    """As LabelMe's own converters do."""
    labels = ["__ignore__", "_background_", "cat", "__ignore__"]
    write(tmp_path, "a", *[TRIANGLE | {"label": label} for label in labels])
    annotations = read_annotations(tmp_path, "train")
    assert annotations.class_names == ("cat",)
    assert annotations.object_ids.tolist() == [3]
    (note,) = annotations.faults
    assert (note.severity, note.code, note.count) == ("note", "label-left-out", 3)
    assert "__ignore__ or _background_ are not objects" in note.text


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (shape([[1, 2]]), "has 1 point, but a polygon needs at least two"),
        (shape([[1, 2], [3, 4]], kind="cuboid"), "'cuboid' is not a supported shape"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_invalid_part_of_an_object_is_named(tmp_path, broken, says, place):
    """Wherever it is among the valid ones."""
    parts = [shape([[10, 10], [20, 20]], kind="rectangle") for _ in range(2)]
    parts.insert(place, broken)
    write(tmp_path, "a", *[part | {"group_id": 1} for part in parts])
    refused(tmp_path, f"a.json: shape {place + 1} ('cat'): {says}")


def test_difficult_objects(tmp_path):
    """In any spelling, and if only one of the parts is marked."""
    box = shape([[10, 10], [20, 20]], kind="rectangle")
    marks = [None, False, 0, "", 1, True, "true"]
    shapes = [box | {"difficult": mark} for mark in marks]
    shapes += [box | {"group_id": 1}, box | {"group_id": 1, "difficult": 1}]
    write(tmp_path, "a", box, *shapes)
    annotations = read_annotations(tmp_path, "train")
    assert annotations.iscrowd.tolist() == 5 * [False] + 4 * [True]
    assert [fault.code for fault in annotations.faults] == ["shape-grouped"]
    parts = [box | {"group_id": 1}, box | {"group_id": 1, "difficult": "maybe"}]
    write(tmp_path, "a", box | {"difficult": 2}, *parts)
    annotations = read_annotations(tmp_path, "train")
    assert not annotations.iscrowd.any()
    fault, _ = annotations.faults
    assert (fault.severity, fault.code, fault.count) == ("warning", "flag-invalid", 2)
    assert fault.text == "difficult 2 is neither 0 nor 1, and counts as 0"


def test_a_polygon_of_two_points_is_no_mask(tmp_path):
    """Which pycocotools would take for x, y, width and height."""
    line = shape([[10, 20], [40, 60]])
    write(tmp_path, "a", TRIANGLE, line)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, "train", masks=True)
    says = "a.json: shape 2 ('cat'): its polygon has 2 points, but an area needs three"
    assert says in str(caught.value)
    write(tmp_path, "a", TRIANGLE | {"group_id": 1}, line | {"group_id": 1})
    with pytest.raises(InputError, match="polygon 2 of its 2 has 2 points"):
        open_dataset(tmp_path, "train", masks=True)


def test_points_and_lines_are_told(tmp_path):
    point = shape([[5, 5]], kind="point")
    write(tmp_path, "a", TRIANGLE, point, shape([[5, 5], [9, 9]], kind="linestrip"))
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.severity, fault.code, fault.count) == ("warning", "shape-left-out", 2)
    assert fault.text == "a point is not an object and is left out"


@pytest.mark.parametrize(
    "stated", ["../images/a.png", "C:\\photos\\a.png", "/home/someone/a.png", "a.png", "", None, 5]
)
def test_the_image_is_found(tmp_path, stated):
    """By its path, by the last part of that, or by the name of the file."""
    write(tmp_path / "images", "a")
    write(tmp_path / "train", "a", TRIANGLE, imagePath=stated)
    if stated == "../images/a.png":
        (tmp_path / "train/a.png").unlink()
    dataset = open_dataset(tmp_path, "train")
    folder = "images" if stated == "../images/a.png" else "train"
    assert dataset.path(0) == tmp_path / folder / "a.png"


def test_an_image_elsewhere_is_found_by_the_name_of_its_file(tmp_path):
    write(tmp_path / "annotations", "a", TRIANGLE, imagePath=None)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/a.png").rename(tmp_path / "images/a.png")
    assert open_dataset(tmp_path, "train").path(0) == tmp_path / "images/a.png"


def test_a_size_that_is_not_stated(tmp_path):
    write(tmp_path, "a", TRIANGLE, imageHeight=None, imageWidth=None)
    assert open_dataset(tmp_path, "train").target(0)["size"] == (HEIGHT, WIDTH)


FAULTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "outside": (shape([[10, 20], [140, 20], [40, 60]]), ("shape 2", "leaves its image", "resized")),
    "no label": (shape([[1, 2], [3, 4], [5, 6]], None), ("shape 2 ('')", "has no label")),
    "blank label": (shape([[1, 2], [3, 4], [5, 6]], "  "), ("has no label",)),
    "no points": (shape(None), ("shape 2 ('cat')", "points None, which are not a list")),
    "text": (shape([["1", "2"], ["3", "4"]]), ("the point ['1', '2'], which is not x and y",)),
    "a number": (shape([1, 2]), ("the point 1, which is not x and y as finite numbers",)),
    "NaN": (shape([[float("nan"), 2], [3, 4]]), ("the point [nan, 2], which is not x and y",)),
    "one point": (
        shape([[1, 2]], kind="rectangle"),
        ("has 1 point, but a rectangle needs at least two", "draw it again"),
    ),
    "unknown kind": (
        shape([[1, 2], [3, 4]], kind="cuboid"),
        ("'cuboid' is not a supported shape", "circle"),
    ),
    "no shape": ("text", ("shape 2 ('')", "has no label")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(tmp_path, name):
    drawn, says = FAULTS[name]
    write(tmp_path, "a", TRIANGLE, drawn)
    refused(tmp_path, f"{tmp_path}/a.json: ", *says)


def test_files_that_are_no_annotation(tmp_path):
    write(tmp_path, "a", TRIANGLE)
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.severity, fault.file) == ("warning", tmp_path / "settings.json")
    (tmp_path / "b.json").write_text('{"shapes": [')
    refused(tmp_path, "b.json: not JSON")
    write(tmp_path, "b", TRIANGLE, imagePath="a.png")
    refused(tmp_path, "b.json: its image a.png has another file as well; keep one")
    write(tmp_path, "b", TRIANGLE)
    (tmp_path / "b.png").unlink()
    refused(tmp_path, "b.json: its image 'b.png' is missing; put it beside this file")
    write(tmp_path, "b", TRIANGLE, imageData="aGk=")
    (tmp_path / "b.png").unlink()
    refused(tmp_path, "'b.png' is missing, but for the copy in imageData")
    write(tmp_path / "empty", "a")
    refused(tmp_path / "empty", "no file contains an object")


def test_no_path_leads_out_of_the_folder(tmp_path):
    save_image(tmp_path / "secret.png")
    write(tmp_path / "data", "a", TRIANGLE, imagePath="../secret.png")
    (tmp_path / "data/a.png").unlink()
    refused(tmp_path / "data", "its image '../secret.png' is missing")


@pytest.mark.parametrize("folder", ["images/default", "images", "."])
def test_cvat(tmp_path, folder):
    """A rectangle turned by a quarter stands upright; the other is as it was drawn."""
    save_image(tmp_path / folder / "a.png", size=(WIDTH, HEIGHT))
    rows = []
    for number, rotation in enumerate((0.0, 90.0)):
        attributes = {"occluded": False, "rotation": rotation}
        row = {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 40, 20]}
        more = {"segmentation": [], "area": 800.0, "iscrowd": 0, "attributes": attributes}
        rows.append(row | more)
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "license": 0}
    document = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": ""},
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
        "images": [image],
        "annotations": rows,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(document))
    assert splits_of(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    expected = [[10, 20, 50, 40], [20, 10, 40, 50]]
    np.testing.assert_allclose(dataset.target(0)["boxes"], expected, rtol=1e-6)
    (note,) = dataset.notes
    assert "annotation 2: its rectangle is rotated by 90 degrees; the box around it is" in note
    with pytest.raises(InputError, match="no val split"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("folder", ["", "images"])
def test_a_test_split_below_the_training_files_is_not_trained_on(tmp_path, folder):
    write(tmp_path / folder, "a", TRIANGLE)
    write(tmp_path / folder / "test", "bb", TRIANGLE)
    assert splits_of(tmp_path) == ["train", "test"]
    train = open_dataset(tmp_path, "train")
    test = open_dataset(tmp_path, "test")
    assert [train.path(i).name for i in range(len(train))] == ["a.png"]
    assert [test.path(i).name for i in range(len(test))] == ["bb.png"]
