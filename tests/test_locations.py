"""Faults of objects name the file and the place in it that a reader of the format would name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sound_data import WRITERS

from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.doctor.boxes import box_faults


def fault_of(root: Path, code: str) -> tuple[Path, str, str]:
    (fault,) = [f for f in box_faults(read_annotations(root, "train")) if f.code == code]
    return fault.file, fault.where, fault.text


def test_lines_of_label_files(tmp_path):
    root = WRITERS["yolo"](tmp_path / "data")
    file = root / "labels/train/train-05.txt"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join(["", first, *rest, "", "", first]))
    said = fault_of(root, "box-twice")
    assert said == (file, "line 7", "is the same box as line 2")
    (root / "data.yaml").write_text("path: .\n" + (root / "data.yaml").read_text())
    assert fault_of(root, "box-twice") == said


def test_lines_of_images_without_a_yaml_file(tmp_path):
    root = WRITERS["yolo"](tmp_path / "data")
    (root / "data.yaml").unlink()
    (root / "labels/classes.txt").write_text("cup\nplate\nspoon\n")
    file = root / "labels/train/train-05.txt"
    file.write_text(2 * file.read_text())
    assert fault_of(root, "box-twice") == (file, "line 4", "is the same box as line 1")


def test_objects_of_xml_files(tmp_path):
    root = WRITERS["voc"](tmp_path / "data")
    (file,) = root.rglob("train-05.xml")
    text = file.read_text()
    start = text.index("<object>")
    end = text.index("</object>") + len("</object>")
    file.write_text(text.replace("</annotation>", text[start:end] + "</annotation>"))
    where, item, said = fault_of(root, "box-twice")
    assert where == file
    assert item.startswith("object 4 ('")
    assert said == "is the same box as object 1"


def test_objects_that_are_ignored_in_xml_files(tmp_path):
    root = WRITERS["voc"](tmp_path / "data")
    (file,) = root.rglob("train-05.xml")
    difficult = "<difficult>1</difficult></object>"
    file.write_text(file.read_text().replace("</object>", difficult, 1))
    where, item, _ = fault_of(root, "object-ignored")
    assert (where, item.split(" (")[0]) == (file, "object 1")


def test_shapes_of_labelme(tmp_path):
    (tmp_path / "train").mkdir()
    shape = {"label": "cup", "shape_type": "rectangle", "points": [[2, 2], [20, 20]]}
    shapes = [{"label": "x", "shape_type": "point", "points": [[1, 1]]}, shape, shape]
    for name in ("a", "b"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"train/{name}.png")
        content = {"shapes": shapes[:2], "imagePath": f"{name}.png"}
        (tmp_path / f"train/{name}.json").write_text(json.dumps(content))
    content = {"shapes": shapes, "imagePath": "b.png"}
    (tmp_path / "train/b.json").write_text(json.dumps(content))
    file, where, text = fault_of(tmp_path, "box-twice")
    assert file == tmp_path / "train/b.json"
    assert (where, text) == ("shape 3 ('cup')", "is the same box as shape 2")


def test_annotations_of_coco_keep_their_ids(tmp_path):
    root = WRITERS["coco"](tmp_path / "data")
    file = root / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"].append(document["annotations"][4] | {"id": 5000})
    file.write_text(json.dumps(document))
    where, item, text = fault_of(root, "box-twice")
    assert where == file
    assert item == "annotation 5000 in image 101 ('train-01.jpg')"
    assert text == "is the same box as annotation 1004"


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_ids_are_distinct_in_coco(tmp_path, form):
    """Lines and objects are counted in each file, and COCO's ids over all of them."""
    root = WRITERS[form](tmp_path / "data")
    convert(root, tmp_path / "coco", "coco")
    ids = read_annotations(tmp_path / "coco", "train").object_ids
    assert len(np.unique(ids)) == len(ids) == 42
