"""Data sets in another form: the same images and boxes, whole or not at all, the source as it
was."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_coco import DOCUMENT, damaged, save_image, write
from test_yolo import write as write_yolo

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.annotations import Annotations
from redetr.data.formats import writing as module
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.errors import InputError

FORMS = ("coco", "yolo", "voc")


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def columns(annotations: Annotations) -> list[np.ndarray]:
    return [
        annotations.names,
        annotations.sizes,
        annotations.first,
        annotations.labels,
        annotations.boxes,
    ]


def equal(first: Annotations, second: Annotations) -> bool:
    """To the last bit of each box; ids differ between forms."""
    pairs = zip(columns(first), columns(second), strict=True)
    return first.class_names == second.class_names and all(np.array_equal(*pair) for pair in pairs)


def fractional(root: Path, seed: int = 0) -> Path:
    """COCO with boxes of many digits, of which some are crowds."""
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(0, 1, (2, 400, 2)), axis=0)
    boxes = np.concatenate([low, high - low], axis=1) * np.tile([1919, 1081], 2)
    boxes = boxes[(boxes[:, 2:] > 0.01).all(1)]
    names = [f"{number:02}.png" for number in range(10)]
    document = {
        "images": [
            {"id": i, "file_name": n, "width": 1919, "height": 1081} for i, n in enumerate(names)
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i % 10,
                "category_id": 5 + i % 3,
                "bbox": box,
                "iscrowd": int(i % 7 == 0),
            }
            for i, box in enumerate(boxes.tolist())
        ],
        "categories": [{"id": 5, "name": "ant"}, {"id": 6, "name": "bée"}, {"id": 7, "name": "no"}],
    }
    (root / "train").mkdir(parents=True)
    for name in names:
        Image.new("L", (1919, 1081)).save(root / "train" / name)
    return write(root, document).parent.parent


def test_round_trips_change_nothing(shared_coco, tmp_path):
    """Every form from every other one."""
    source = shared_coco
    for number, form in enumerate(["yolo", "voc", "coco", "voc", "yolo", "coco", "coco"]):
        new = tmp_path / f"{number}-{form}"
        convert(source, new, form)
        assert splits_of(new) == ["train", "val"]
        for split in ("train", "val"):
            first, second = (read_annotations(folder, split) for folder in (shared_coco, new))
            assert equal(first, second)
            assert not second.faults
            assert torch.equal(
                *(open_dataset(folder, split).image(0) for folder in (shared_coco, new))
            )
        source = new


@pytest.mark.parametrize("form", FORMS)
def test_boxes_come_back_to_the_last_bit(tmp_path, form):
    source = fractional(tmp_path / "source")
    convert(source, tmp_path / "there", form)
    convert(tmp_path / "there", tmp_path / "back", "coco")
    first, there, back = (
        read_annotations(tmp_path / name, "train") for name in ("source", "there", "back")
    )
    if form == "yolo":
        first = module.without_crowds(first)
    assert np.abs(first.boxes - there.boxes).max() < 1e-4
    assert equal(first, there)
    assert equal(first, back)
    assert np.array_equal(first.iscrowd, back.iscrowd)


def test_what_coco_says_survives_in_coco(tmp_path):
    write(tmp_path / "source", DOCUMENT)
    summary, warning = convert(tmp_path / "source", tmp_path / "new", "coco")
    assert summary == f"{tmp_path}/new: train has 3 images, 4 objects"
    assert warning.startswith("warning: ")
    assert "annotation 902: its polygon has 3 numbers" in warning
    first, new = (read_annotations(tmp_path / name, "train") for name in ("source", "new"))
    assert equal(first, new)
    for name in ("ids", "object_ids", "iscrowd", "area"):
        assert np.array_equal(getattr(first, name), getattr(new, name))
    assert first.category_ids == new.category_ids
    boxes = [
        row["bbox"]
        for row in json.loads((tmp_path / "new/annotations/instances_train.json").read_text())[
            "annotations"
        ]
    ]
    assert [0.5, 1.5, 2.0, 3.0] in boxes


def test_only_the_id_0_is_replaced(tmp_path):
    def change(document):
        for row, id_ in zip(document["annotations"], (0, 70, 80, 90), strict=True):
            row["id"] = id_

    write(tmp_path / "source", damaged(change))
    convert(tmp_path / "source", tmp_path / "new", "coco")
    file = tmp_path / "new/annotations/instances_train.json"
    rows = json.loads(file.read_text())["annotations"]
    assert sorted(row["id"] for row in rows) == [70, 80, 90, 91]


@pytest.mark.parametrize("first", [None, 0])
def test_no_annotation_has_the_id_0(tmp_path, first):
    """With that id, pycocotools never counts an object as detected. `first` is that of the source,
    None if it has no ids."""

    def change(document):
        for number, row in enumerate(document["annotations"]):
            row["id"] = number
            if first is None:
                del row["id"]

    write(tmp_path / "source", damaged(change))
    convert(tmp_path / "source", tmp_path / "new", "coco")
    file = tmp_path / "new/annotations/instances_train.json"
    rows = json.loads(file.read_text())["annotations"]
    assert sorted(row["id"] for row in rows) == [1, 2, 3, 4]


def test_files_of_the_other_forms(tmp_path):
    """Worked by hand: the first box is 10 20 30 40 in an image of 100 x 80."""
    write(tmp_path / "source", DOCUMENT)
    notes = convert(tmp_path / "source", tmp_path / "yolo", "yolo")
    assert notes[1:3] == [
        "YOLO has no areas: boxes decide which objects count as small, medium and large",
        "YOLO has no crowds and no objects to ignore: 2 objects are left out",
    ]
    assert (tmp_path / "yolo/labels/train/c.txt").read_text() == "2 0.25 0.5 0.3 0.5\n"
    config = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert config == {"train": "images/train", "names": {0: "ant", 1: "bee", 2: "tooth"}}
    assert not (tmp_path / "yolo/labels/train/b.txt").exists()
    (_, note, _) = convert(tmp_path / "source", tmp_path / "voc", "voc")
    assert "areas" in note
    text = (tmp_path / "voc/Annotations/c.xml").read_text()
    assert "<xmin>11</xmin>" in text
    assert "<ymax>60</ymax>" in text
    assert text.count("<difficult>1</difficult>") == 2
    assert (tmp_path / "voc/ImageSets/Main/train.txt").read_text() == "a\nb\nc\n"


def test_voc_tells_of_classes_without_objects(tmp_path):
    write(tmp_path / "source", damaged(lambda d: d["categories"].append({"id": 1, "name": "wasp"})))
    notes = convert(tmp_path / "source", tmp_path / "voc", "voc")
    assert "VOC has no class list: 1 class without objects is left out, such as 'wasp'" in notes


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_links_or_copies_and_the_source_stays(tmp_path, copy):
    write(tmp_path / "source", DOCUMENT)
    before = contents(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "deep/new", "yolo", copy)
    image = tmp_path / "deep/new/images/train/a.png"
    assert image.samefile(tmp_path / "source/train/a.png") is not copy
    assert contents(tmp_path / "source") == before
    assert (image.read_bytes(), oct(image.parents[2].stat().st_mode & 0o777)) == (
        before["train/a.png"],
        "0o755",
    )


def test_links_are_followed_and_refused_links_are_copies(tmp_path, monkeypatch):
    write(tmp_path / "source", DOCUMENT)
    (tmp_path / "source/train/a.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "source/train/a.png").symlink_to(tmp_path / "elsewhere.png")
    convert(tmp_path / "source", tmp_path / "linked", "coco", follow_links=True)
    assert not (tmp_path / "linked/train/a.png").is_symlink()

    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    convert(tmp_path / "source", tmp_path / "copied", "coco", follow_links=True)
    assert contents(tmp_path / "linked") == contents(tmp_path / "copied")


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    write(tmp_path / "source", DOCUMENT)
    (tmp_path / "there").mkdir()
    convert(tmp_path / "source", tmp_path / "there", "yolo")  # an empty folder is none
    before = contents(tmp_path)
    for place, words in (
        ("there", "already exists"),
        ("source/new", "is inside"),
        ("source", "already exists"),
    ):
        with pytest.raises(InputError, match=words):
            convert(tmp_path / "source", tmp_path / place, "coco")
    with pytest.raises(
        InputError,
        match="digits: is drawn on demand, so it has no images to write; give that of a data ",
    ):
        convert("digits", tmp_path / "new", "coco")
    monkeypatch.setattr(module, "require_same", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(tmp_path / "source", tmp_path / "new", "voc")
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "there"]


def test_what_a_form_cannot_hold_is_refused(tmp_path):
    save_image(tmp_path / "two/train/a.jpg")
    write(tmp_path / "two", damaged(lambda d: d["images"][0].update(file_name="a.jpg")))
    for form in ("yolo", "voc"):
        with pytest.raises(InputError, match=r"'a\.jpg' and 'a\.png' would share one label file"):
            convert(tmp_path / "two", tmp_path / "new", form)
    with_objects = {row["image_id"] for row in DOCUMENT["annotations"]}
    (empty, *_) = (row for row in DOCUMENT["images"] if row["id"] not in with_objects)
    write(tmp_path / "twice", damaged(lambda d: d["images"].append(empty | {"id": 999})))
    for form in ("yolo", "voc"):
        with pytest.raises(InputError, match=r"two entries of image .* merge them into one"):
            convert(tmp_path / "twice", tmp_path / "new", form)
    write(tmp_path / "unequal", DOCUMENT)
    fewer = damaged(lambda d: (d["categories"].pop(0), d["annotations"].pop(0)))
    write(tmp_path / "unequal", fewer, "annotations/instances_val.json", "val")
    with pytest.raises(InputError, match="val lists other classes"):
        convert(tmp_path / "unequal", tmp_path / "new", "yolo")
    write(tmp_path / "odd", damaged(lambda d: d["categories"][0].update(name="to\0oth")))
    with pytest.raises(InputError, match="control characters"):
        convert(tmp_path / "odd", tmp_path / "new", "voc")
    write(tmp_path / "blank", damaged(lambda d: d["categories"][0].update(name=" tooth")))
    words = r"class of object 1 of image .* is 'tooth' instead of ' tooth'; write a name"
    with pytest.raises(InputError, match=words):
        convert(tmp_path / "blank", tmp_path / "new", "voc")
    write(tmp_path / "faulty", damaged(lambda d: d["annotations"][0].update(category_id=1)))
    with pytest.raises(InputError, match="annotation 901"):
        convert(tmp_path / "faulty", tmp_path / "new", "coco")
    assert not (tmp_path / "new").exists()


def test_images_in_folders_stay_in_them(tmp_path):
    write_yolo(tmp_path / "source")
    save_image(tmp_path / "source/images/train/images/deep/d.png")
    (tmp_path / "source/images/train/labels/deep").mkdir(parents=True)
    (tmp_path / "source/images/train/labels/deep/d.txt").write_text("0 .5 .5 .1 .1")
    (tmp_path / "source/data.yaml").write_text("train: images/train\nnames: [ant, bee, tooth]\n")
    for form in FORMS:
        convert(tmp_path / "source", tmp_path / form, form)
        annotations = read_annotations(tmp_path / form, "train")
        assert annotations.names.tolist() == [b"a.png", b"b.png", b"c.png", b"images/deep/d.png"]
        assert equal(annotations, read_annotations(tmp_path / "source", "train"))


def test_command(tmp_path, capsys):
    main(["convert", "crowns", str(tmp_path / "crowns"), "--to", "voc"])
    told = f"{tmp_path}/crowns: train has 21 images, 855 objects, val has 65 images, 307 objects"
    assert capsys.readouterr().out.splitlines() == [told]
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "crowns"), str(tmp_path / "crowns"), "--to", "coco"])
    assert ended.value.code == 1
    assert "already exists; choose another folder" in capsys.readouterr().err


def test_json_for_machines(tmp_path, capsys):
    write(tmp_path / "source", DOCUMENT)
    main(["convert", str(tmp_path / "source"), str(tmp_path / "new"), "--to", "coco", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["destination"] == f"{tmp_path}/new"
    assert content["notes"][0] == f"{tmp_path}/new: train has 3 images, 4 objects"


@pytest.mark.parametrize("linked", ["train/train-1.jpg", "train"])
def test_links_out_of_the_data(tiny_coco, tmp_path, linked):
    """A stranger's link may stand for any file; one's own are followed on request. Links inside of
    the data are no matter."""
    elsewhere = tmp_path / "elsewhere"
    (tiny_coco / linked).rename(elsewhere)
    (tiny_coco / linked).symlink_to(elsewhere)
    image = tiny_coco / "val" / "val-1.jpg"
    image.rename(tiny_coco / "other.jpg")
    image.symlink_to("../other.jpg")
    with pytest.raises(InputError, match=r"train-.\.jpg: a symbolic link leads to .*elsewhere"):
        convert(tiny_coco, tmp_path / "new", "yolo")
    assert not (tmp_path / "new").exists()
    convert(tiny_coco, tmp_path / "new", "yolo", follow_links=True)
    written = tmp_path / "new" / "images"
    assert (written / "train" / "train-1.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert not (written / "val" / "val-1.jpg").is_symlink()


def test_an_empty_folder_is_filled_and_not_replaced(tmp_path, monkeypatch):
    """It may be a mounted disk, a link to one, or the current folder of a shell."""
    write(tmp_path / "source", DOCUMENT)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    convert(tmp_path / "source", tmp_path / "link", "coco")
    assert (tmp_path / "link").is_symlink()
    names = sorted(path.name for path in (tmp_path / "disk").iterdir())
    assert names == ["annotations", "train"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert("../source", Path("."), "yolo")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == ["data.yaml", "images", "labels"]


def test_an_empty_folder_stays_empty_if_not_all_can_be_moved_there(tmp_path, monkeypatch):
    write(tmp_path / "source", DOCUMENT)
    (tmp_path / "new").mkdir()
    rename = os.rename
    moved = []

    def fail_once(source, destination):
        if Path(destination).parent == tmp_path / "new":
            moved.append(source)
            if len(moved) == 2:
                raise OSError("no more")
        rename(source, destination)

    monkeypatch.setattr(module.os, "rename", fail_once)
    with pytest.raises(OSError, match="no more"):
        convert(tmp_path / "source", tmp_path / "new", "coco")
    assert list((tmp_path / "new").iterdir()) == []
