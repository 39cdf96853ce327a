"""Names are text, not identity, and may be anything: read right, or refused in one line at the
start."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_server import serving, write_checkpoint
from forked import Fork
from sound_data import CLASSES, write_coco, write_yolo

from redetr.cli import main
from redetr.data import open_dataset
from redetr.doctor.check import check
from redetr.errors import InputError
from redetr.metrics import GroundTruth, coco_metrics
from redetr.structures import DatasetDetections

FOREIGN = os.fsdecode(b"caf\xe9 %d")  # of an archive from an old Windows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A data set none of whose files in train has a name in UTF-8."""
    root = write_yolo(tmp_path / "foreign")
    for kind in ("images", "labels"):
        for number, path in enumerate(sorted((root / kind / "train").iterdir())):
            path.rename(path.with_name(FOREIGN % number + path.suffix))
    return root


def rewritten(root: Path, change: Any) -> None:
    """Both annotation files after `change` of what they hold."""
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}.json"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))


def test_file_names_that_are_not_utf_8(foreign, tmp_path):
    report = check(str(foreign))
    assert report.faults == []
    assert report.figures()["train"]["objects"] == 42
    main(["check", str(foreign), "--report", str(tmp_path / "page")])
    assert (tmp_path / "page" / "index.html").is_file()


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_conversion_of_such_names(form, foreign, tmp_path):
    main(["convert", str(foreign), str(tmp_path / form), "--to", form])
    names = open_dataset(tmp_path / form, "train").annotations.names.tolist()
    assert b"caf\xe9 0.png" in names and len(names) == 14
    assert check(str(tmp_path / form)).errors == 0


def test_they_are_printed_in_a_terminal_of_utf_8(foreign):
    shutil.copy(foreign / "images/train" / (FOREIGN % 1 + ".png"), foreign / "images/train/a.png")
    process = Fork(["check", foreign])
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in errors) == (0, False)
    assert "\\udce9" in output


def test_they_are_shown_by_the_app(foreign, tmp_path):
    """Also that of an image that cannot be read, in the error."""
    first, *_ = sorted((foreign / "images" / "train").iterdir())
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", foreign)
    with serving(checkpoint) as server:
        _, examples = server.ask("GET", "/examples")
        _, judged = server.ask("POST", "/judge?image_id=1")
        first.write_bytes(b"no image")
        status, refused = server.ask("POST", "/judge?image_id=0")
    names = [example["name"] for example in json.loads(examples)["examples"]]
    assert names[:2] == ["caf\\udce9 0.png", "caf\\udce9 1.png"]
    assert json.loads(judged)["name"] == "caf\\udce9 1.png"
    assert status == 400
    assert "caf\\udce9 0.png: not an image" in json.loads(refused)["error"]


def test_classes_that_share_a_name(tmp_path):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["categories"][1].update(name="cup"))
    assert check(str(root)).classes() == {
        "cup (0)": {"train": 14, "val": 10},
        "cup (1)": {"train": 14, "val": 10},
        "spoon": {"train": 14, "val": 10},
    }
    main(["convert", str(root), str(tmp_path / "yolo"), "--to", "yolo"])
    assert open_dataset(tmp_path / "yolo", "train").class_names == ("cup", "cup", "spoon")
    with pytest.raises(SystemExit):
        main(["convert", str(root), str(tmp_path / "voc"), "--to", "voc"])
    assert not (tmp_path / "voc").exists()


def test_voc_would_make_one_class_of_two(tmp_path, capsys):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["categories"][1].update(name="cup"))
    with pytest.raises(SystemExit):
        main(["convert", str(root), str(tmp_path / "voc"), "--to", "voc"])
    assert "2 called 'cup' would become one; give each its own name" in capsys.readouterr().err


def test_what_a_format_cannot_hold_is_said_of_the_source(tmp_path, capsys):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["categories"][0].update(name=" cup"))
    with pytest.raises(SystemExit):
        main(["convert", str(root), str(tmp_path / "voc"), "--to", "voc"])
    said = capsys.readouterr().err
    assert f"{root}/annotations/instances_train.json: cannot be written as VOC" in said
    assert "unfinished" not in said


@pytest.mark.parametrize("name", ["", "\t", "\ud83d", "\x1b[31mcup", "cup\x00"])
def test_names_that_cannot_be_written_are_refused_at_the_start(name, tmp_path):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["categories"][1].update(name=name))
    with pytest.raises(InputError, match=r"category 12: its name .* holds control characters"):
        open_dataset(root, "train")


@pytest.mark.parametrize("name", ["no", ": - {x}", "[red]x[/red]", "日本語 🐱", "a\nb", "x" * 300])
def test_odd_names_are_names(name, tmp_path):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["categories"][1].update(name=name))
    assert check(str(root)).faults == []
    main(["convert", str(root), str(tmp_path / "yolo"), "--to", "yolo"])
    assert open_dataset(tmp_path / "yolo", "val").class_names == ("cup", name, "spoon")


def as_text(document: dict[str, Any]) -> None:
    for part in ("images", "categories"):
        for row in document[part]:
            row["id"] = str(row["id"])
    for row in document["annotations"]:
        row.update(image_id=str(row["image_id"]), category_id=str(row["category_id"]))


def as_names(document: dict[str, Any]) -> None:
    for row in document["images"]:
        row["id"] = f"image-{row['id']}"
    for row in document["categories"]:
        row["id"] = f"class-{row['name']}"
    for row in document["annotations"]:
        row["image_id"] = f"image-{row['image_id']}"
        row["category_id"] = f"class-{CLASSES[row['category_id']]}"


def as_floats(document: dict[str, Any]) -> None:
    for row in document["images"]:
        row["id"] = float(row["id"])
    for row in document["annotations"]:
        row.update(image_id=float(row["image_id"]), category_id=float(row["category_id"]))


IDS = {
    "text": (as_text, 4),
    "names": (as_names, 4),
    "category_id is text": (
        lambda d: [row.update(category_id=str(row["category_id"])) for row in d["annotations"]],
        2,
    ),
    "floats": (as_floats, 0),
    "annotations from 0": (
        lambda d: [row.update(id=number) for number, row in enumerate(d["annotations"])],
        0,
    ),
    "all annotations 1": (lambda d: [row.update(id=1) for row in d["annotations"]], 0),
    "area NaN": (
        lambda d: [row.update(area=float("nan"), iscrowd=None) for row in d["annotations"]],
        0,
    ),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_kind(kind, tmp_path):
    """All objects are there, and perfect detections have an AP of 1."""
    change, notes = IDS[kind]
    root = write_coco(tmp_path / "data")
    rewritten(root, change)
    report = check(str(root))
    assert [(fault.severity, fault.code) for fault in report.faults] == [
        ("note", "id-text")
    ] * notes
    dataset = open_dataset(root, "val")
    assert dataset.class_names == tuple(CLASSES.values())
    annotations = dataset.annotations
    perfect = DatasetDetections(
        image_index=annotations.image_of(),
        labels=annotations.labels,
        scores=np.ones(30, np.float32),
        boxes=annotations.boxes,
    )
    assert coco_metrics(GroundTruth.from_dataset(dataset), perfect).ap == pytest.approx(1)


def test_text_ids_that_cannot_be_numbered(tmp_path):
    root = write_coco(tmp_path / "data")
    rewritten(root, lambda d: d["images"][3].update(id="one of them"))
    with pytest.raises(InputError, match="its id 'one of them' is not a whole number"):
        open_dataset(root, "train")
