"""The photographs of tree crowns that the package ships: whole, valid, attributed."""

import json
from pathlib import Path

import pytest

import redetr.data
from redetr.data import Hints, open_dataset

FOLDER = Path(redetr.data.__file__).parent / "formats" / "crowns"
STRIP_LEFT_PX = 1724  # where the validation part of the large photograph begins


def place(name: str) -> tuple[str, int, int]:
    """Photograph, left and top of a tile, from its name."""
    photograph, x, y = name.removesuffix(".jpg").rsplit("_", 2)
    return photograph, int(x[1:]), int(y[1:])


def test_counts():
    train, val = (open_dataset("crowns", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (21, 65)
    for dataset, boxes, side in ((train, 743, 618), (val, 153, 128)):
        assert sum(int((~dataset.target(i)["iscrowd"]).sum()) for i in range(len(dataset))) == boxes
        assert (dataset.name, dataset.class_names, dataset.category_ids) == (
            "crowns",
            ("tree crown",),
            (1,),
        )
        assert dataset.hints == Hints(
            image_size=128, native_size=side, augment="aerial", num_queries=25
        )
    assert all((~val.target(i)["iscrowd"]).any() for i in range(len(val)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_tile_decodes_and_every_box_is_in_it(split):
    dataset = open_dataset("crowns", split)
    assert dataset.notes == ()
    for index in range(len(dataset)):
        image, target = dataset[index]
        height, width = image.shape[1:]
        assert split == "train" or (height, width) == (128, 128)
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 > x1).all()
        assert (y2 > y1).all()
        assert (x2 <= width).all()
        assert (y2 <= height).all()


def test_no_pixel_is_in_both_splits():
    train = json.loads((FOLDER / "annotations/instances_train.json").read_text())["images"]
    val = json.loads((FOLDER / "annotations/instances_val.json").read_text())["images"]
    (strip,) = {place(image["file_name"])[0] for image in val}
    assert min(place(image["file_name"])[1] for image in val) == STRIP_LEFT_PX
    for image in train:
        photograph, left, _ = place(image["file_name"])
        assert photograph != strip or left + image["width"] <= STRIP_LEFT_PX
    corners = [place(image["file_name"])[1:] for image in val]
    assert len(set(corners)) == len(corners)
    assert all((x - STRIP_LEFT_PX) % 128 == 0 and y % 128 == 0 for x, y in corners)


def test_attributed_and_small():
    text = (FOLDER / "ATTRIBUTION.md").read_text()
    for part in (
        "NEON",
        "CC0",
        "deepforest",
        "2.1.0",
        "MIT License",
        "Copyright (c) 2019, Ben Weinstein",
    ):
        assert part in text
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) < 1e6
    assert sum(sizes) < 4e6
