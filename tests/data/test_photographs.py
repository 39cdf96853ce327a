"""Images that show the same photograph are on the same side of a split."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_coco import save_image

from redetr.data import open_dataset
from redetr.data.annotations import Annotations
from redetr.data.formats.cutting import Cut
from redetr.data.formats.holdout import held_out
from redetr.data.formats.photographs import photographs
from redetr.data.formats.writing import convert

HASHES = ["0" * 32, "1f" * 16, "aB3" * 7]


def coco(root: Path, names: list[str], size: tuple[int, int] = (96, 64)) -> Path:
    """A data set of these images, each with an object, in train. Names may occur twice."""
    images = []
    boxes = []
    for number, name in enumerate(names):
        save_image(root / "train" / name, number, size=size)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        boxes.append(
            {"id": number + 1, "image_id": number, "category_id": 0, "bbox": [10, 10, 20, 20]}
        )
    categories = [{"id": 0, "name": "a"}]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_train.json").write_text(json.dumps(document))
    return root


def sides(root: Path, fraction: float) -> tuple[list[str], list[str], str]:
    """The names of both sides, and the sentence on them."""
    train = open_dataset(root, "train", fraction)
    val = open_dataset(root, "val", fraction)
    names = [[part.path(i).name for i in range(len(part))] for part in (train, val)]
    return names[0], names[1], train.notes[0]


def test_tiles_of_a_photograph_are_on_one_side(tmp_path):
    coco(tmp_path / "large", [f"{number}.png" for number in range(6)], size=(300, 200))
    convert(tmp_path / "large", tmp_path / "tiles", "coco", cut=Cut(128, 0.3))
    train, val, note = sides(tmp_path / "tiles", 0.3)
    assert val and not {name[0] for name in train} & {name[0] for name in val}
    assert abs(len(val) - 0.3 * (len(train) + len(val))) < 6
    assert "are tiles, versions or copies of the same photographs, each of which is on one" in note


def test_versions_of_a_photograph_are_on_one_side(tmp_path):
    names = [f"{number}_jpg.rf.{hash_}.jpg" for number in range(10) for hash_ in HASHES]
    train, val, _ = sides(coco(tmp_path, names), 0.2)
    assert (len(train), len(val)) == (24, 6)
    assert not {name[0] for name in train} & {name[0] for name in val}


def test_an_image_that_is_listed_twice_is_on_one_side(tmp_path):
    names = [f"{number}.png" for number in range(10)] * 2
    train, val, _ = sides(coco(tmp_path, names), 0.25)
    assert len(train) + len(val) == 20 and len(val) in (4, 6)
    assert not set(train) & set(val)


def test_tiles_of_a_single_photograph_are_divided(tmp_path):
    names = [f"a_x{128 * number:05}_y00000.png" for number in range(10)]
    train, val, note = sides(coco(tmp_path, names), 0.2)
    assert (len(train), len(val)) == (8, 2)
    assert note.endswith("; all come from one photograph, so both splits show parts of it")


SAME = [
    ["a_x00000_y00000.jpg", "a_x00512_y100000.jpg", "a.jpg"],
    ["in/a_x00000_y00000.npy", "in/a.tif"],
    [f"a_jpg.rf.{HASHES[0]}.jpg", f"a_jpg.rf.{HASHES[1]}.jpg", "a.jpg"],
    [f"a_jpg.rf.{HASHES[0]}_x00000_y00000.jpg", f"a_jpg.rf.{HASHES[2]}.jpg", "a.jpg"],
    [f"a_x00000_y00000_png.rf.{HASHES[0]}.jpg", "a_x00640_y00000.png", "a.png"],
    [f"a.rf.{HASHES[0]}.jpg", f"a.rf.{HASHES[1]}.jpg"],
]
DIFFERENT = [
    ["a.jpg", "a.png", "in/a.jpg", "A.jpg"],
    [f"a_jpg.rf.{HASHES[0]}.jpg", f"a_png.rf.{HASHES[0]}.jpg", f"b_jpg.rf.{HASHES[0]}.jpg"],
    ["a_x0_y0.jpg", "a_x1_y0.jpg", "_x00000_y00000.jpg", "b_x00000_y00000_mask.jpg"],
    ["in/a_x00000_y00000.jpg", "on/a_x00000_y00000.jpg"],
    ["a.rf.1.jpg", "a.rf.2.jpg"],
]


@pytest.mark.parametrize("names", SAME)
def test_names_of_the_same_photograph(names):
    assert photographs([name.encode() for name in names]).tolist() == [0] * len(names)


@pytest.mark.parametrize("names", DIFFERENT)
def test_names_of_different_photographs(names):
    assert photographs([name.encode() for name in names]).tolist() == list(range(len(names)))


def annotations_of(names: list[str], labels: list[int]) -> Annotations:
    """The annotations of images, each with an object of this class, or none (-1)."""
    count = len(names)
    of_class = np.array(labels)
    has_object = of_class >= 0
    total = int(has_object.sum())
    return Annotations(
        source=Path("data"),
        folder=Path("data"),
        names=np.array([name.encode() for name in names]),
        ids=np.arange(count),
        sizes=np.full((count, 2), 64),
        category_ids=(0, 1, 2),
        class_names=("a", "b", "c"),
        first=np.append(0, has_object.cumsum()),
        boxes=np.zeros((total, 4), np.float32),
        labels=of_class[has_object],
        iscrowd=np.zeros(total, bool),
        area=np.zeros(total, np.float32),
        object_ids=np.arange(total),
    )


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(-1, 2)), min_size=2, max_size=60),
    st.floats(0.05, 0.95),
)
def test_any_photographs_are_divided(images, fraction):
    """Both sides have images, none of them of the same photograph; the number is near."""
    names = []
    for number, (photograph, _) in enumerate(images):
        names.append(f"{photograph}_x{number:05}_y00000.png")
    wanted = int(fraction * len(images) + 0.5)
    if wanted in (0, len(images)):
        return
    is_val = held_out(annotations_of(names, [label for _, label in images]), fraction)
    assert 0 < is_val.sum() < len(images)
    sizes = np.bincount([photograph for photograph, _ in images])
    if np.count_nonzero(sizes) == 1:
        assert is_val.sum() == wanted
        return
    val = {photograph for (photograph, _), side in zip(images, is_val, strict=True) if side}
    train = {photograph for (photograph, _), side in zip(images, is_val, strict=True) if not side}
    assert not val & train
    assert abs(is_val.sum() - wanted) <= sizes.max()
