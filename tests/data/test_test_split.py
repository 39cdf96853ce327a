"""The test split: never needed, read in every form where it is, and no reason not to train."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sound_data
from sound_data import WRITERS

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.doctor.check import Report, check
from redetr.doctor.sheet import write_report
from redetr.errors import InputError

FORMS = ("coco", "yolo", "voc")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes sound data with a test split of 5 images in a form."""
    monkeypatch.setitem(sound_data.IMAGES, "test", 5)

    def written(form: str) -> Path:
        root = WRITERS[form](tmp_path / form)
        if form == "yolo":
            (root / "data.yaml").write_text(
                "test: images/test\n" + (root / "data.yaml").read_text()
            )
        return root

    return written


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def found(report: Report) -> dict[str, tuple[str, int]]:
    """Severity and count by code."""
    return {fault.code: (fault.severity, fault.count) for fault in report.faults}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_read_and_looked_at(write, form, tmp_path):
    root = write(form)
    assert splits_of(root) == ["train", "val", "test"]
    assert [len(open_dataset(root, split)) for split in ("train", "val", "test")] == [14, 10, 5]
    assert len(open_dataset(root, "test", 0.3)) == 5
    report = check(str(root))
    assert report.faults == []
    assert report.figures()["test"]["images"] == 5
    assert report.classes()["cup"] == {"train": 14, "val": 10, "test": 5}
    write_report(report, tmp_path / "page")
    assert (tmp_path / "page" / "sheet.png").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", FORMS)
def test_it_is_converted(write, form, to, tmp_path):
    root = write(form)
    (line, *_) = convert(root, tmp_path / "new", to)
    assert line.endswith("test has 5 images, 15 objects")
    first, second = (read_annotations(folder, "test") for folder in (root, tmp_path / "new"))
    np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-3)


def test_yolo_has_one_list_of_classes_for_it_too(write, tmp_path):
    root = write("coco")
    change(
        root / "annotations/instances_test.json",
        categories=[{"id": i, "name": f"{i}"} for i in (7, 12, 90)],
    )
    with pytest.raises(
        InputError, match=r"instances_test\.json: test lists other classes than train"
    ):
        convert(root, tmp_path / "new", "yolo")


def test_folders_called_test(write):
    root = write("coco")
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        file = shutil.move(root / f"annotations/instances_{split}.json", root / "file")
        (root / split).rename(root / folder)
        shutil.move(file, root / folder / "_annotations.coco.json")
    assert len(open_dataset(root, "test")) == 5
    root = write("voc")
    for stem in (root / "ImageSets/Main/test.txt").read_text().split():
        for file in (root / f"JPEGImages/{stem}.jpg", root / f"Annotations/{stem}.xml"):
            (root / "side/test").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / "side/test")
    assert splits_of(root / "side") == ["test"]
    assert len(open_dataset(root / "side", "test")) == 5


def test_its_faults_are_warnings(write):
    root = write("coco")
    shutil.copy(root / "train/train-03.jpg", root / "test/test-00.jpg")
    shutil.copy(root / "test/test-01.jpg", root / "val/val-02.jpg")
    (root / "test/test-04.jpg").write_bytes(b"")
    file = root / "annotations/instances_test.json"
    document = json.loads(file.read_text())
    document["annotations"][6]["bbox"] = [0, 0, 500, 500]
    change(
        file,
        annotations=document["annotations"],
        categories=[*document["categories"], {"id": 5, "name": "fork"}],
    )
    report = check(str(root))
    assert found(report) == {
        "category-differs": ("warning", 1),
        "box-outside": ("warning", 1),
        "image-unreadable": ("warning", 1),
        "image-leak": ("warning", 2),
    }
    assert any(
        "train and test list different categories: 5 ('fork') is only in test" in str(f)
        for f in report.faults
    )
    assert report.verdict.startswith("ready to train")
    for content, code in (
        ("{", "split-unreadable"),
        (json.dumps({**document, "annotations": []}), "no-objects"),
    ):
        file.write_text(content)
        assert found(check(str(root)))[code] == ("warning", 1)


def test_a_sample_of_it_that_cannot_be_decoded_is_a_warning(write, tmp_path):
    root = write("coco")
    file = root / "test/test-00.jpg"
    content = file.read_bytes()
    file.write_bytes(content[:700] + b"\xff\xc4\x00\x03\x00" * 8 + content[740:])
    report = check(str(root), samples=True)
    assert found(report) == {"image-unreadable": ("warning", 1)}
    assert ("test", 0) not in report.samples and ("test", 1) in report.samples
    write_report(report, tmp_path / "page", augmented=True)
    assert "image-unreadable" in (tmp_path / "page" / "index.html").read_text()


def outline(root: Path, *splits: str) -> None:
    """Draws an outline around each object of these splits."""
    for split in splits:
        file = root / f"annotations/instances_{split}.json"
        rows = json.loads(file.read_text())["annotations"]
        for row in rows:
            x, y, width, height = row["bbox"]
            right, lower = x + width, y + height
            row["segmentation"] = [[x, y, right, y, right, lower, x, lower]]
        change(file, annotations=rows)


def test_boxes_alone_in_it_are_a_warning(write):
    """It is not trained on, so its missing masks stop no training, and hide nothing."""
    root = write("coco")
    outline(root, "train", "val")
    shutil.copy(root / "test/test-00.jpg", root / "test/spare.jpg")
    report = check(str(root), masks=True)
    assert found(report) == {"mask-missing": ("warning", 1), "image-unused": ("warning", 1)}
    (fault,) = [fault for fault in report.faults if fault.code == "mask-missing"]
    assert fault.file == root / "annotations/instances_test.json"
    assert report.verdict.startswith("ready to train") and "--masks" in report.verdict


def test_boxes_alone_in_every_split_are_reported_for_each(write):
    root = write("coco")
    faults = check(str(root), masks=True).faults
    assert [(fault.severity, fault.file.name) for fault in faults] == [
        ("error", "instances_train.json"),
        ("error", "instances_val.json"),
        ("warning", "instances_test.json"),
    ]
    assert {fault.code for fault in faults} == {"mask-missing"}


def test_classes_of_train_and_val_are_looked_at_whatever_test_has(write):
    root = write("coco")
    change(
        root / "annotations/instances_test.json",
        categories=[{"id": i, "name": f"{i}"} for i in (7, 12, 90)],
    )
    (root / "annotations/instances_val.json").unlink()
    assert found(check(str(root)))["category-differs"] == ("warning", 6)
    shutil.copy(root / "annotations/instances_train.json", root / "annotations/instances_val.json")
    shutil.copytree(root / "train", root / "val", dirs_exist_ok=True)
    document = json.loads((root / "annotations/instances_val.json").read_text())
    change(
        root / "annotations/instances_val.json",
        annotations=[a for a in document["annotations"] if a["id"] % 3],
    )
    assert {"category-differs", "class-only-train"} <= found(check(str(root))).keys()


def test_a_name_in_data_yaml_is_no_split(tmp_path):
    root = WRITERS["yolo"](tmp_path / "yolo")
    for value in ("../test/images", "", "/elsewhere/test", "[]"):
        (root / "data.yaml").write_text(
            f"test: {value}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n"
        )
        assert splits_of(root) == ["train", "val"]
        assert check(str(root)).faults == []
    convert(root, tmp_path / "new", "coco")


def test_several_files_of_it_do_not_matter_to_training(write):
    root = write("coco")
    for name in ("instances_test_a.json", "instances_test_b.json"):
        shutil.copy(root / "annotations/instances_test.json", root / "annotations" / name)
    assert len(open_dataset(root, "test")) == 5
    (root / "annotations/instances_test.json").unlink()
    assert len(open_dataset(root, "train")) == 14
    assert found(check(str(root))) == {"split-unreadable": ("warning", 1)}
    with pytest.raises(InputError, match=r"several files for the test split \(instances_test_a"):
        open_dataset(root, "test")


def test_images_that_it_names_are_used(write):
    """In one folder with those of the other splits."""
    root = write("voc")
    (root / "ImageSets/Main/test.txt").write_text("test-00\n")
    assert found(check(str(root))) == {"image-unused": ("warning", 4)}


@pytest.mark.parametrize("source", ["digits", "crowns"])
def test_embedded_data_has_none(source):
    with pytest.raises(InputError, match=f"{source}: has no test split; use val"):
        open_dataset(source, "test")


def test_folders_may_have_none(tmp_path):
    root = WRITERS["coco"](tmp_path / "coco")
    with pytest.raises(
        InputError, match=r"no test split \(looked for annotations/instances_test.*use val$"
    ):
        open_dataset(root, "test")
    (root / "annotations/instances_val.json").unlink()
    with pytest.raises(InputError, match=r"or use val \(--val-fraction 0\.1 makes one\)"):
        open_dataset(root, "test")


def test_no_images_are_held_out_of_it(write, tmp_path):
    root = write("coco")
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}.json").unlink()
    with pytest.raises(InputError, match=r"no val split .*; add it, or use test \(--split test"):
        open_dataset(root, "val")
    words = "has only a test split, and --val-fraction holds out images of train; leave it out"
    with pytest.raises(InputError, match=words):
        convert(root, tmp_path / "new", "coco", val_fraction=0.5)
