"""VOC has one folder for all splits: images of one name get the split as prefix, and no others."""

import json

import numpy as np
import pytest
from sound_data import scenes, write_coco

from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.errors import InputError


def renamed(root, names_of):
    """COCO, in which `names_of(split, number)` gives the names of images."""
    write_coco(root)
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}.json"
        document = json.loads(file.read_text())
        for number, image in enumerate(document["images"]):
            new = names_of(split, number)
            path = root / split / new
            path.parent.mkdir(exist_ok=True)
            (root / split / image["file_name"]).rename(path)
            image["file_name"] = new
        file.write_text(json.dumps(document))
    return root


def test_names_of_both_splits_get_the_split_as_prefix(tmp_path):
    source = renamed(tmp_path / "source", lambda _, number: f"{number:06}.jpg")
    notes = convert(source, tmp_path / "voc", "voc")
    (note,) = (line for line in notes if "prefix" in line)
    assert note == (
        "VOC has one folder for all splits: 20 images with names that are in several splits get "
        "the split as prefix, such as train_000000.jpg for 000000.jpg"
    )
    listed = (tmp_path / "voc/ImageSets/Main/train.txt").read_text().split()
    assert listed == sorted(
        [f"train_{number:06}" for number in range(10)]
        + [f"{number:06}" for number in range(10, 14)]
    )
    for split in ("train", "val"):
        before = read_annotations(source, split)
        after = read_annotations(tmp_path / "voc", split)
        new_of = {name: name.removeprefix(f"{split}_".encode()) for name in after.names.tolist()}
        assert sorted(new_of.values()) == before.names.tolist()
        for index, name in enumerate(after.names.tolist()):
            old = before.names.tolist().index(new_of[name])
            assert after.path(index).read_bytes() == before.path(old).read_bytes()
            np.testing.assert_array_equal(
                after.boxes[after.objects_of(index)], before.boxes[before.objects_of(old)]
            )
        assert len(scenes(split)) == len(after)


def test_names_with_other_suffixes_and_folders_too(tmp_path):
    def name(split, number):
        suffix = "jpg" if split == "train" else "jpeg"
        return f"b/{number:02}.{suffix}" if number % 2 else f"{split}{number}.jpg"

    source = renamed(tmp_path / "source", name)
    notes = convert(source, tmp_path / "voc", "voc")
    assert any(
        "10 images with names" in note and "train_01.jpg for 01.jpg" in note for note in notes
    )
    assert (tmp_path / "voc/JPEGImages/b/val_01.jpeg").is_file()
    assert (tmp_path / "voc/Annotations/b/train_01.xml").is_file()
    assert (tmp_path / "voc/JPEGImages/val0.jpg").is_file()


def test_nothing_is_renamed_without_need(tmp_path):
    source = write_coco(tmp_path / "source")
    for form in ("coco", "yolo", "voc"):
        notes = convert(source, tmp_path / form, form)
        assert not any("prefix" in note for note in notes)
    assert (tmp_path / "voc/JPEGImages/val-00.jpg").is_file()


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_other_formats_have_a_folder_for_each_split(tmp_path, form):
    source = renamed(tmp_path / "source", lambda _, number: f"{number:06}.jpg")
    notes = convert(source, tmp_path / "new", form)
    assert not any("prefix" in note for note in notes)
    assert read_annotations(tmp_path / "new", "val").names[0] == b"000000.jpg"


def test_a_new_name_that_is_taken_is_refused(tmp_path):
    taken = {("train", 0): "a.jpg", ("val", 0): "a.jpg", ("val", 1): "train_a.jpg"}
    source = renamed(
        tmp_path / "source", lambda split, i: taken.get((split, i), f"{split}-{i:02}.jpg")
    )
    with pytest.raises(InputError, match=r"'train_a\.jpg' of train and 'train_a\.jpg' of val"):
        convert(source, tmp_path / "voc", "voc")
    assert not (tmp_path / "voc").exists()
