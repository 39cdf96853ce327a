"""`convert` reads what it wrote: any splits, in each form, and the difference that it found in
words."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sound_data import write_coco

from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.read_back import require_same
from redetr.data.formats.writing import convert
from redetr.errors import InputError

FORMS = ("coco", "yolo", "voc")
SUBSETS = [list(names) for count in (1, 2, 3) for names in combinations(SPLITS, count)]


def only(root, splits: list[Split], name: str = "cup"):
    """A COCO data set with these splits only, each with 10 to 14 images; `name` is a class."""
    write_coco(root)
    listed = root / "annotations"
    (listed / "instances_test.json").write_bytes((listed / "instances_val.json").read_bytes())
    (root / "test").mkdir()
    for image in (root / "val").iterdir():
        (root / "test" / image.name).write_bytes(image.read_bytes())
    for split in SPLITS:
        file = listed / f"instances_{split}.json"
        if split not in splits:
            file.unlink()
            continue
        document = json.loads(file.read_text())
        document["categories"][0]["name"] = name
        for image in document["images"]:  # VOC has one folder for all splits
            new = f"{split}-{image['file_name']}"
            (root / split / image["file_name"]).rename(root / split / new)
            image["file_name"] = new
        file.write_text(json.dumps(document))
    return root


@pytest.mark.parametrize("splits", SUBSETS, ids="-".join)
@pytest.mark.parametrize("form", FORMS)
def test_any_splits_can_be_converted_and_back(tmp_path, form, splits):
    source = only(tmp_path / "source", splits)
    convert(source, tmp_path / "new", form)
    assert splits_of(tmp_path / "new") == splits
    convert(tmp_path / "new", tmp_path / "coco", "coco")
    assert splits_of(tmp_path / "coco") == splits
    for split in splits:
        before = read_annotations(source, split)
        after = read_annotations(tmp_path / "coco", split)
        np.testing.assert_allclose(before.boxes, after.boxes, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["shapes", "images", "imageData", "_via_settings", "image_id"])
def test_a_class_may_be_called_like_a_key_of_another_format(tmp_path, form, name):
    """The tools of other formats are recognised by the keys of their JSON files."""
    source = only(tmp_path / "source", ["test"], name)
    convert(source, tmp_path / "new", form)
    assert splits_of(tmp_path / "new") == ["test"]


def changed(annotations: Annotations, **columns) -> Annotations:
    return replace(annotations, **columns)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: {"names": np.char.replace(a.names, b"-03", b"-99")},
            "when val is read back, image 'val-99.jpg' is missing; rename it",
        ),
        (
            lambda a: {"first": np.append(a.first[:-1], a.first[-1] - 1)},
            "image 'val-09.jpg' has 3 objects instead of 2",
        ),
        (
            lambda a: {"boxes": a.boxes + np.eye(len(a.boxes), 4, k=-4, dtype=np.float32)},
            "the box of object 2 of image 'val-01.jpg' is [",
        ),
        (
            lambda a: {"class_names": ("cup", " plate", "spoon")},
            "the class of object 2 of image 'val-00.jpg' is 'plate' instead of ' plate'; write a "
            "name without blanks at its ends",
        ),
    ],
)
def test_the_first_difference_is_said(tmp_path, change, words):
    root = write_coco(tmp_path)
    meant = read_annotations(root, "val")
    require_same(meant, root, "val", "coco")
    with pytest.raises(InputError) as raised:
        require_same(changed(meant, **change(meant)), root, "val", "coco")
    said = str(raised.value)
    assert words in said
    assert "is a class name empty" not in said


def test_what_cannot_be_read_again_is_said_without_the_folder_that_is_deleted(tmp_path):
    source = only(tmp_path / "source", ["val"])
    file = source / "annotations/instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(InputError) as raised:
        convert(source, tmp_path / "voc", "voc")
    said = str(raised.value)
    assert "cannot be read again (no XML file contains an object); annotate some" in said
    assert "unfinished" not in said
