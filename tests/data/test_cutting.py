"""Large images cut into tiles with their boxes, as a user of aerial or microscopy images does
it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco import write

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.annotations import Annotations
from redetr.data.formats.cutting import Cut, _tiles_of
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.data.images import read_image
from redetr.data.mask_columns import MaskBuilder
from redetr.errors import InputError
from redetr.masks import boxes_of_masks, decode, encode

SIZE = (100, 180)  # height, width of the image that is cut by hand


def data(root: Path, boxes: list[list[float]], name: str = "a.png", **fields: list) -> Path:
    """COCO with one image of noise, and a small one without objects; `boxes` are xywh."""
    height, width = SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    annotations = []
    for i, box in enumerate(boxes):
        annotation = {"id": i + 1, "image_id": 1, "category_id": 5, "bbox": box}
        annotations.append(annotation | {key: values[i] for key, values in fields.items()})
    document = {
        "images": [
            {"id": 1, "file_name": name, "width": width, "height": height},
            {"id": 2, "file_name": "small.png", "width": 30, "height": 20},
        ],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "ant"}],
    }
    write(root, document)
    Image.fromarray(pixels).save(root / "train" / name)
    Image.fromarray(pixels[:20, :30]).save(root / "train" / "small.png")
    return root


def boxes_of(annotations: Annotations) -> dict[str, list[list[float]]]:
    names = [name.decode() for name in annotations.names.tolist()]
    return {n: annotations.boxes[annotations.objects_of(i)].tolist() for i, n in enumerate(names)}


def test_tiles_by_hand(tmp_path):
    """Tiles of 100 px at 0 and 80. The first object is whole in the first tile and 10 of its 40 px
    are in the second; the second is whole in both; the third is half in each."""
    source = data(tmp_path / "source", [[50, 10, 40, 40], [82, 0, 10, 10], [70, 60, 40, 20]])
    notes = convert(source, tmp_path / "new", "coco", cut=Cut(100, 0.2))
    new = read_annotations(tmp_path / "new", "train")
    assert boxes_of(new) == {
        "a_x00000_y00000.png": [[50, 10, 90, 50], [82, 0, 92, 10], [70, 60, 100, 80]],
        "a_x00080_y00000.png": [[2, 0, 12, 10], [0, 60, 30, 80]],
        "small.png": [],
    }
    assert new.area.tolist() == [1600, 100, 600, 100, 600]
    assert new.sizes.tolist() == [[100, 100], [100, 100], [20, 30]]
    whole = read_image(source / "train" / "a.png")
    second = read_image(tmp_path / "new/train/a_x00080_y00000.png")
    assert (second == whole[:, :, 80:180]).all()
    assert (tmp_path / "new/train/small.png").samefile(source / "train/small.png")
    unclaimed = [note for note in notes if "no annotation names this image" in note]
    assert len(unclaimed) == 1  # the images of the annotations that were replaced
    assert [note for note in notes if note not in unclaimed] == [
        f"{tmp_path}/new: train has 3 images, 5 objects",
        "train: 1 image cut into tiles of 100 px; 1 image is no larger than that, and not cut",
        "train: 2 objects in several tiles, 2 boxes cut at an edge; a tile gets an object if it "
        "shows 40% of its area, or more than any other tile",
    ]


# An L whose upright is in the first tile alone, and whose foot reaches into the second.
L_SHAPE = [[60, 10, 70, 10, 70, 70, 120, 70, 120, 80, 60, 80]]


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_masks_are_cut_with_their_images(form, tmp_path):
    """Tiles of 100 px at 0 and 80. Of the L, 200 of 1,200 px are beyond the first tile, 400 in the
    second, which is a third: its box is no measure. The square is whole in the first."""
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    boxes = [[60, 10, 60, 70], [5, 5, 20, 20]]
    source = data(tmp_path / "source", boxes, segmentation=[L_SHAPE, square])
    notes = convert(source, tmp_path / "new", form, cut=Cut(100, 0.2, min_visible=0.3))
    assert any("2 boxes cut at an edge" in note for note in notes)
    first, second, small = (
        open_dataset(tmp_path / "new", "train", masks=True).target(i) for i in range(3)
    )
    assert first["boxes"].tolist() == [[60, 10, 100, 80], [5, 5, 25, 25]]
    assert second["boxes"].tolist() == [[0, 70, 40, 80]]
    whole = torch.zeros(2, 100, 180, dtype=torch.bool)
    whole[0, 10:80, 60:70] = True
    whole[0, 70:80, 60:120] = True
    whole[1, 5:25, 5:25] = True
    assert torch.equal(first["masks"], whole[:, :, :100])
    assert torch.equal(second["masks"], whole[:1, :, 80:])
    assert small["masks"].shape == (0, 20, 30)
    assert first["area"].tolist() == [1000, 400]
    assert second["area"].tolist() == [400]


def test_a_tile_without_a_pixel_of_an_object_does_not_have_it(tmp_path):
    """Its box reaches into the second tile, by more than the least share."""
    corner = [[0, 0, 20, 0, 20, 10, 0, 10], [168, 90, 170, 90, 170, 92, 168, 92]]
    source = data(tmp_path / "source", [[0, 0, 170, 92]], segmentation=[corner])
    convert(source, tmp_path / "new", "coco", cut=Cut(100, 0.0, min_visible=0.01))
    new = open_dataset(tmp_path / "new", "train", masks=True)
    shown = {new.image_name(i): new.target(i)["boxes"].tolist() for i in range(len(new))}
    assert shown["a_x00000_y00000.png"] == [[0, 0, 20, 10]]
    assert shown["a_x00080_y00000.png"] == [[88, 90, 90, 92]]
    alone = data(tmp_path / "alone", [[0, 0, 170, 92]], segmentation=[corner[:1]])
    convert(alone, tmp_path / "cut", "coco", cut=Cut(100, 0.0, min_visible=0.01))
    new = open_dataset(tmp_path / "cut", "train", masks=True)
    assert [len(new.target(i)["boxes"]) for i in range(3)] == [1, 0, 0]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tile=st.integers(8, 60),
    overlap=st.floats(0, 0.6),
    min_visible=st.floats(0.01, 1),
)
def test_the_masks_of_all_tiles_are_those_of_the_image(seed, tile, overlap, min_visible):
    random = np.random.default_rng(seed)
    whole = np.zeros((3, 50, 70), bool)
    for mask in whole:
        top, left = random.integers(0, 35), random.integers(0, 55)
        mask[top : top + 15, left : left + 15] = random.random((15, 15)) < 0.5
        mask[top, left] = True
    builder = MaskBuilder(for_training=True)
    for counts in encode(torch.from_numpy(whole)):
        builder.add(counts)
    annotations = Annotations(
        source=Path(),
        folder=Path(),
        names=np.array([b"a.png"]),
        ids=np.array([1]),
        sizes=np.array([(50, 70)]),
        category_ids=(5,),
        class_names=("ant",),
        first=np.array([0, 3]),
        boxes=boxes_of_masks(torch.from_numpy(whole)).numpy(),
        labels=np.zeros(3, np.int64),
        iscrowd=np.zeros(3, bool),
        area=whole.sum((1, 2)).astype(np.float32),
        object_ids=np.arange(3),
        masks=builder.columns(),
    )
    seen = set()
    for cut_tile in _tiles_of(annotations, 0, Cut(tile, overlap, min_visible)):
        left, top, right, bottom = cut_tile.window
        size = (bottom - top, right - left)
        part = whole[:, top:bottom, left:right]
        for row, counts, box in zip(cut_tile.objects, cut_tile.masks, cut_tile.boxes, strict=True):
            seen.add(int(row))
            mask = decode([counts], size)
            assert np.array_equal(mask[0].numpy(), part[row])
            assert boxes_of_masks(mask)[0].tolist() == box.tolist()
        enough = part.sum((1, 2)) >= (min_visible + 1e-6) * whole.sum((1, 2))
        assert set(np.flatnonzero(enough)) <= set(cut_tile.objects.tolist())
    assert seen == {0, 1, 2}


def test_an_object_larger_than_a_tile_is_in_the_tile_that_shows_the_most(tmp_path):
    source = data(tmp_path / "source", [[5, 0, 170, 100]])
    convert(source, tmp_path / "new", "coco", cut=Cut(60, 0.0, min_visible=0.9))
    new = read_annotations(tmp_path / "new", "train")
    assert [box for boxes in boxes_of(new).values() for box in boxes] == [[0, 0, 60, 60]]


def test_crowds_are_kept_wherever_they_are_visible(tmp_path):
    source = data(tmp_path / "source", [[50, 10, 40, 40]], iscrowd=[1])
    convert(source, tmp_path / "new", "coco", cut=Cut(100, 0.2))
    new = read_annotations(tmp_path / "new", "train")
    assert boxes_of(new)["a_x00080_y00000.png"] == [[0, 10, 10, 50]]
    assert new.iscrowd.all()


def test_an_image_that_is_not_cut_keeps_its_objects_and_their_masks(tmp_path):
    """Also a crowd that is thinner than a pixel, without which later masks would belong to the
    wrong objects."""
    stripe = [[10, 10, 12, 10, 12, 50, 10, 50]]
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    boxes = [[10, 10, 0.5, 40], [5, 5, 20, 20]]
    source = data(tmp_path / "source", boxes, iscrowd=[1, 0], segmentation=[stripe, square])
    convert(source, tmp_path / "new", "coco", cut=Cut(200))
    old, new = (
        open_dataset(root, "train", masks=True).target(0) for root in (source, tmp_path / "new")
    )
    assert len(old["masks"]) == 2
    for key in ("boxes", "labels", "iscrowd", "masks"):
        assert torch.equal(new[key], old[key])


def test_a_crowd_that_is_thinner_than_a_pixel_is_not_lost(tmp_path):
    source = data(tmp_path / "source", [[50, 10, 0.5, 40]], iscrowd=[1])
    convert(source, tmp_path / "new", "coco", cut=Cut(100, 0.2))
    new = read_annotations(tmp_path / "new", "train")
    assert boxes_of(new)["a_x00000_y00000.png"] == [[50, 10, 50.5, 50]]
    assert new.iscrowd.tolist() == [True]


@settings(max_examples=50, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(*[st.floats(0, 90)] * 2, *[st.floats(0.5, 80)] * 2), min_size=1, max_size=8
    ),
    tile=st.integers(8, 120),
    overlap=st.floats(0, 0.8),
    min_visible=st.floats(0.01, 1),
)
def test_no_object_is_lost_and_each_tile_has_what_the_rule_says(boxes, tile, overlap, min_visible):
    corners = np.array([(x, y, min(x + w, 180), min(y + h, 100)) for x, y, w, h in boxes])
    count = len(boxes)
    annotations = Annotations(
        source=Path(),
        folder=Path(),
        names=np.array([b"a.png"]),
        ids=np.array([1]),
        sizes=np.array([SIZE]),
        category_ids=(5,),
        class_names=("ant",),
        first=np.array([0, count]),
        boxes=corners.astype(np.float32),
        labels=np.zeros(count, np.int64),
        iscrowd=np.zeros(count, bool),
        area=np.ones(count, np.float32),
        object_ids=np.arange(count),
    )
    best = np.zeros(count)
    for cut_tile in _tiles_of(annotations, 0, Cut(tile, overlap, min_visible)):
        left, top, right, bottom = cut_tile.window
        inside = corners.clip((left, top, left, top), (right, bottom, right, bottom))
        share = np.prod(inside[:, 2:] - inside[:, :2], 1) / np.prod(
            corners[:, 2:] - corners[:, :2], 1
        )
        assert set(np.flatnonzero(share >= min_visible + 1e-3)) <= set(cut_tile.objects.tolist())
        moved = cut_tile.boxes + np.array([left, top, left, top])
        assert np.allclose(moved, inside[cut_tile.objects], atol=1e-3)
        best[cut_tile.objects] = np.maximum(best[cut_tile.objects], cut_tile.shares)
    assert (best > 0).all()


def test_empty_training_tiles_on_request(tmp_path):
    """Only those of train; which ones depends on their names alone."""
    source = data(tmp_path / "source", [[0, 0, 10, 10]])
    document = json.loads((source / "annotations/instances_train.json").read_text())
    write(source, document, "annotations/instances_val.json", "val")
    for name in ("a.png", "small.png"):
        (source / "val" / name).write_bytes((source / "train" / name).read_bytes())
    notes = convert(source, tmp_path / "none", "coco", cut=Cut(20, 0.0, empty_tiles=0))
    assert "train: 46 empty tiles left out" in notes
    assert len(read_annotations(tmp_path / "none", "train")) == 1
    assert len(read_annotations(tmp_path / "none", "val")) == 47
    convert(source, tmp_path / "half", "coco", cut=Cut(20, 0.0, empty_tiles=0.5))
    assert 10 < len(read_annotations(tmp_path / "half", "train")) < 37


def test_a_val_split_is_held_out_before_cutting(tmp_path):
    """No pixel of an image is in both splits."""
    source = tmp_path / "source"
    names = [f"{number}.png" for number in range(6)]
    images = [
        {"id": i, "file_name": name, "width": 180, "height": 100} for i, name in enumerate(names)
    ]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 5, "bbox": [1, 1, 9, 9]} for i in range(6)]
    document = {
        "images": images, "annotations": boxes, "categories": [{"id": 5, "name": "ant"}]
    }  # fmt: skip
    write(source, document)
    for name in names:
        Image.new("RGB", (180, 100)).save(source / "train" / name)
    notes = convert(source, tmp_path / "new", "yolo", cut=Cut(100), val_fraction=0.5)
    stems = []
    for split in ("train", "val"):
        tiles = read_annotations(tmp_path / "new", split).names.tolist()
        stems.append({name.split(b"_x")[0] for name in tiles})
    assert stems[0] and stems[1] and not stems[0] & stems[1]
    assert len(stems[0] | stems[1]) == 6
    assert any("are held out for validation" in note for note in notes)


def test_jpeg_stays_jpeg_and_deep_images_have_8_bits_by_the_rule_of_the_whole(tmp_path):
    source = data(tmp_path / "source", [[0, 0, 10, 10]], "a.jpg")
    deep = np.linspace(28_000, 32_000, 180 * 100).reshape(100, 180).astype(np.uint16)
    Image.fromarray(deep).save(source / "train" / "small.png")
    file = source / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["images"][1].update(width=180, height=100)
    file.write_text(json.dumps(document))
    notes = convert(source, tmp_path / "new", "coco", cut=Cut(100))
    assert "train: 1 image of more than 8 bits; tiles have 8" in notes
    folder = tmp_path / "new/train"
    with Image.open(folder / "a_x00080_y00000.jpg") as image:
        assert image.format == "JPEG"
    whole = read_image(source / "train" / "small.png")
    assert whole.min() == 0 and whole.max() == 255
    assert (read_image(folder / "small_x00080_y00000.png") == whole[:, :, 80:]).all()


def test_what_cannot_be_cut_is_refused(tmp_path, capsys):
    source = data(tmp_path / "source", [[0, 0, 10, 10]])
    for options, words in {
        "--tile 0": "give at least 1 px",
        "--tile 9 --overlap 1": "0 <= overlap < 1",
        "--tile 9 --min-visible 0": "--min-visible 0.0 must be above 0",
        "--tile 9 --empty-tiles 2": "--empty-tiles 2.0 must be from 0 to 1",
        "--val-fraction 1": "--val-fraction 1.0 must be at least 0 and below 1",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(source), str(tmp_path / "new"), *options.split()])
        assert ended.value.code == 1
        assert words in capsys.readouterr().err
    Image.new("RGB", SIZE).save(source / "train" / "a.png")
    with pytest.raises(InputError, match=r"a\.png: is 100x180 px, but .* says 180x100"):
        convert(source, tmp_path / "new", "coco", cut=Cut(50))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_command(tmp_path, capsys):
    """COCO is written unless another format is asked for."""
    source = data(tmp_path / "source", [[0, 0, 10, 10]])
    arguments = ["convert", str(source), str(tmp_path / "new"), "--tile", "100", "--overlap", "0.2"]
    main(arguments)
    said = capsys.readouterr().out
    assert "train has 3 images, 1 object" in said
    assert "redetr predict CHECKPOINT IMAGE --tile 100" in said
    assert (tmp_path / "new/annotations/instances_train.json").is_file()
