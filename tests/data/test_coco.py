"""Reading data sets in COCO form, and the message for each way in which they can be damaged."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import encode

from redetr.data import open_dataset
from redetr.data.formats.folder import FolderDataset
from redetr.data.formats.layouts import read_annotations
from redetr.data.images import read_image
from redetr.doctor.check import essential_faults
from redetr.errors import InputError

WIDTH, HEIGHT = 100, 80

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        {"id": 10, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 20, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {
            "id": 901,
            "image_id": 30,
            "category_id": 90,
            "bbox": [10, 20, 30, 40],
            "area": 700.5,
            "iscrowd": 0,
        },
        {
            "id": 902,
            "image_id": 10,
            "category_id": 7,
            "bbox": [0.5, 1.5, 2.0, 3.0],
            "segmentation": [[1, 2, 3]],
        },
        {"id": 903, "image_id": 30, "category_id": 7, "bbox": [0, 0, 100, 80], "iscrowd": 1},
        {"id": 904, "image_id": 30, "category_id": -4, "bbox": [50, 50, 10, 10], "ignore": 1},
    ],
    "categories": [
        {"id": 90, "name": "tooth"},
        {"id": -4, "name": "ant"},
        {"id": 7, "name": "bee"},
    ],
}


def save_image(
    path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any
) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image.save(path, **options)
    return np.asarray(image)


def write(
    root: Path,
    document: Any,
    annotation: str = "annotations/instances_train.json",
    folder: str = "train",
) -> Path:
    """A data set of the document and its three images; returns the annotation file."""
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        save_image(root / folder / name, seed)
    file = root / annotation
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def refused(root: Path, *fragments: str) -> str:
    """The one line with which the data set is refused."""
    with pytest.raises(InputError) as caught:
        open_dataset(str(root), "train")
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def damaged(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


def test_reads_boxes_labels_and_images(tmp_path):
    write(tmp_path, DOCUMENT)
    dataset = open_dataset(str(tmp_path), "train")
    assert (len(dataset), dataset.name, dataset.notes) == (3, tmp_path.name, ())
    assert dataset.category_ids == (-4, 7, 90)
    assert dataset.class_names == ("ant", "bee", "tooth")
    assert [dataset.target(i)["image_id"] for i in range(3)] == [10, 20, 30]
    image, target = dataset[2]
    assert target["boxes"].tolist() == [[10, 20, 40, 60], [0, 0, 100, 80], [50, 50, 60, 60]]
    assert target["labels"].tolist() == [2, 1, 0]
    assert target["iscrowd"].tolist() == [False, True, True]
    assert target["area"].tolist() == [700.5, 8000, 100]
    assert target["orig_size"] == target["size"] == (HEIGHT, WIDTH)
    assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
    expected = save_image(tmp_path / "again.png", seed=2)
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert dataset[-1][1]["image_id"] == 30
    with pytest.raises(IndexError):
        dataset.target(3)


def test_what_is_in_the_file_and_not_read_is_said(tmp_path):
    def change(document: dict[str, Any]) -> None:
        document["images"][0]["neg_category_ids"] = [7]
        document["annotations"][0] |= {"keypoints": [1, 2, 2], "num_keypoints": 1}
        document["annotations"][1] |= {"keypoints": []}

    write(tmp_path, damaged(change))
    faults = read_annotations(tmp_path, "train").faults
    found = {(fault.code, fault.severity, fault.count) for fault in faults}
    assert found == {("key-points", "note", 1), ("classes-partial", "warning", 1)}


def test_images_without_annotations_are_kept(tmp_path):
    write(tmp_path, DOCUMENT)
    target = open_dataset(str(tmp_path), "train").target(1)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["iscrowd"].shape == target["area"].shape == (0,)


def test_no_annotations_at_all(tmp_path):
    write(tmp_path, {**DOCUMENT, "annotations": []})
    dataset = open_dataset(str(tmp_path), "train")
    assert [len(dataset.target(i)["boxes"]) for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("annotation", "folder", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_val.json", "images/val", "val"),
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/instances_train.json", "images", "train"),
        ("annotations/instances_train.json", ".", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
    ],
)
def test_layouts(tmp_path, annotation, folder, split):
    write(tmp_path, DOCUMENT, annotation, folder)
    dataset = open_dataset(tmp_path, split)
    assert isinstance(dataset, FolderDataset)
    assert dataset.path(0) == tmp_path / folder / "a.png"
    assert dataset.image(0).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("prefix", ["train/", "./train/", "train\\", "images/../train/"])
def test_file_names_may_hold_folders(tmp_path, prefix):
    write(
        tmp_path,
        damaged(lambda d: [row.update(file_name=prefix + row["file_name"]) for row in d["images"]]),
    )
    assert open_dataset(tmp_path, "train").image(0).shape == (3, HEIGHT, WIDTH)


def test_small_overshoot_is_clipped(tmp_path):
    write(tmp_path, damaged(lambda d: d["annotations"][1].update(bbox=[-1.5, -0.25, 103, 82])))
    assert open_dataset(tmp_path, "train").target(0)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[20:60, 10:40] = 1
# The mask as RLE counts, which go down the columns.
RUNS = [
    10 * HEIGHT + 20,
    *[40, HEIGHT - 40] * 29,
    40,
    60 * HEIGHT + 20,
]


@pytest.mark.parametrize(
    "outline",
    [
        [[10, 20, 40, 20.0, 40, 60, 12.5, 60]],
        [[10, 20, 30, 20, 30, 30], [40, 60, 20, 60, 20, 40, 25, 40]],  # in two parts
        {"size": [HEIGHT, WIDTH], "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": encode(np.asfortranarray(MASK))["counts"].decode()},
    ],
    ids=["polygon", "polygons", "runs", "compressed runs"],
)
@pytest.mark.parametrize("empty", [{}, {"bbox": None}, {"bbox": []}], ids=str)
def test_an_outline_stands_for_a_missing_box(tmp_path, outline, empty):
    write(tmp_path, damaged(lambda d: outlined(d, outline)))
    document = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    document["annotations"][0].update(empty)
    document["annotations"].append({**document["annotations"][0], "id": 905})
    file = write(tmp_path, document)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(2)["boxes"][[0, -1]].tolist() == [[10, 20, 40, 60]] * 2
    assert dataset.notes == (
        f"{file}: annotation 901: has a segmentation but no bbox; its bounding box is used (and 1 "
        "more like it)",
    )


def test_survives_the_way_to_a_worker_in_few_bytes(tmp_path):
    write(tmp_path, DOCUMENT)
    dataset = open_dataset(tmp_path, "train")
    sent = pickle.dumps(dataset)
    assert torch.equal(pickle.loads(sent).target(2)["boxes"], dataset.target(2)["boxes"])
    many = damaged(lambda d: d.update(annotations=d["annotations"] * 500))
    write(tmp_path, many)
    per_box = (len(pickle.dumps(open_dataset(tmp_path, "train"))) - len(sent)) / (499 * 4)
    assert per_box < 40


def test_targets_do_not_share_memory_with_the_data_set(tmp_path):
    write(tmp_path, DOCUMENT)
    dataset = open_dataset(tmp_path, "train")
    dataset.target(2)["boxes"].zero_()
    assert dataset.target(2)["boxes"].sum() > 0


def outlined(document: dict[str, Any], segmentation: Any) -> None:
    """The first object has an outline in place of its box."""
    del document["annotations"][0]["bbox"]
    document["annotations"][0]["segmentation"] = segmentation


SWAPPED = [10, 20, 95, 75]  # xyxy
FAULTS = {
    "unknown image": (lambda d: d["annotations"][1].update(image_id=77), "902", "image_id 77"),
    "image id of another type": (
        lambda d: d["annotations"][1].update(image_id="ten"),
        "902",
        "image_id 'ten'",
    ),
    "unknown category": (
        lambda d: d["annotations"][2].update(category_id=8),
        "903",
        "category_id 8",
    ),
    "no bbox": (lambda d: d["annotations"][0].pop("bbox"), "901", "bbox None", "4 finite numbers"),
    "no bbox, short polygon": (
        lambda d: outlined(d, [[1, 2, 3, 4]]),
        "901",
        "no bbox",
        "[[1, 2, 3, 4]]",
        "neither",
    ),
    "no bbox, odd polygon": (
        lambda d: outlined(d, [[1, 2, 3, 4, 5, 6, 7]]),
        "901",
        "neither polygons",
    ),
    "no bbox, flat polygon": (lambda d: outlined(d, [1, 2, 3, 4, 5, 6]), "901", "neither polygons"),
    "no bbox, text in polygon": (
        lambda d: outlined(d, [[1, 2, 3, 4, 5, "6"]]),
        "901",
        "neither polygons",
    ),
    "no bbox, NaN in polygon": (
        lambda d: outlined(d, [[1, 2, float("nan"), 4, 5, 6]]),
        "901",
        "neither polygons",
    ),
    "no bbox, outline is text": (
        lambda d: outlined(d, "x"),
        "901",
        "neither polygons",
        "write a bbox",
    ),
    "no bbox, RLE without size": (lambda d: outlined(d, {"counts": [5]}), "901", "nor RLE"),
    "no bbox, damaged RLE": (
        lambda d: outlined(d, {"size": [80, 100], "counts": "@@@"}),
        "901",
        "nor RLE",
    ),
    "no bbox, RLE too long": (
        lambda d: outlined(d, {"size": [80, 100], "counts": [1, 9000]}),
        "901",
        "nor RLE",
    ),
    "no bbox, RLE too short": (
        lambda d: outlined(d, {"size": [80, 100], "counts": [650, 20, 60, 20]}),
        "901",
        "nor RLE with counts of all its pixels",
    ),
    "no bbox, RLE cut off": (
        lambda d: outlined(d, {"size": [80, 100], "counts": "~~~"}),
        "901",
        "nor RLE",
    ),
    "no bbox, RLE of nothing": (
        lambda d: outlined(d, {"size": [80, 100], "counts": [8000]}),
        "901",
        "zero or negative",
    ),
    "no bbox, empty outline": (lambda d: outlined(d, []), "901", "bbox None", "4 finite numbers"),
    "no bbox, outside": (
        lambda d: outlined(d, [[90, 9, 190, 9, 190, 20]]),
        "901",
        "[90.0, 9.0, 100.0, 11.0] leaves its image",
    ),
    "short bbox": (
        lambda d: d["annotations"][0].update(bbox=[1, 2, 3]),
        "901",
        "[1, 2, 3]",
        "4 finite numbers",
    ),
    "text in bbox": (
        lambda d: d["annotations"][0].update(bbox=[1, 2, 3, "4"]),
        "901",
        "4 finite numbers",
    ),
    "NaN in bbox": (
        lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
        "901",
        "4 finite numbers",
    ),
    "infinite bbox": (
        lambda d: d["annotations"][0].update(bbox=[1, 2, float("inf"), 4]),
        "901",
        "4 finite numbers",
    ),
    "huge bbox": (
        lambda d: d["annotations"][0].update(bbox=[10**400, 2, 3, 4]),
        "901",
        "4 finite numbers",
    ),
    "zero size": (
        lambda d: d["annotations"][1].update(bbox=[10, 10, 0, 5]),
        "902",
        "zero or negative size",
    ),
    "negative size": (
        lambda d: d["annotations"][1].update(bbox=[10, 10, 5, -5]),
        "902",
        "zero or negative size",
    ),
    "vanishes": (
        lambda d: d["annotations"][1].update(bbox=[100.5, 10, 1, 5]),
        "902",
        "zero or negative size",
    ),
    "xyxy": (
        lambda d: d["annotations"][1].update(bbox=SWAPPED),
        "902",
        "100x80 px",
        "xyxy given as xywh",
    ),
    "off to the left": (
        lambda d: d["annotations"][1].update(bbox=[-3, 10, 5, 5]),
        "902",
        "leaves its image 10",
    ),
    "image id twice": (lambda d: d["images"][2].update(id=10), "image 10", "b.png", "twice"),
    "image id is text": (
        lambda d: d["images"][2].update(id="x"),
        "'x'",
        "b.png",
        "not a whole number",
    ),
    "no file name": (lambda d: d["images"][2].pop("file_name"), "image 20", "file_name None"),
    "missing file": (
        lambda d: d["images"][2].update(file_name="lost.png"),
        "image 20",
        "lost.png",
        "train",
    ),
    "missing folder": (
        lambda d: d["images"][2].update(file_name="no/b.png"),
        "image 20",
        "no/b.png",
    ),
    "climbs out": (
        lambda d: d["images"][2].update(file_name="../gone.png"),
        "image 20",
        "../gone.png",
        "inside",
    ),
    "hidden climb": (
        lambda d: d["images"][2].update(file_name="x/../../gone.png"),
        "image 20",
        "inside",
    ),
    "half a surrogate pair": (
        lambda d: d["images"][2].update(file_name="\ud800.png"),
        "image 20",
        "not a path inside",
    ),
    "absolute": (
        lambda d: d["images"][2].update(file_name="/etc/hosts"),
        "image 20",
        "/etc/hosts",
        "inside",
    ),
    "Windows drive": (
        lambda d: d["images"][2].update(file_name="C:\\gone.png"),
        "image 20",
        "inside",
    ),
    "no width": (lambda d: d["images"][2].pop("width"), "image 20", "b.png", "Nonex80"),
    "zero height": (lambda d: d["images"][2].update(height=0), "image 20", "b.png", "100x0"),
    "category id twice": (lambda d: d["categories"][1].update(id=90), "ant", "90", "twice"),
    "category id is text": (
        lambda d: d["categories"][1].update(id="four"),
        "ant",
        "'four'",
        "not a whole number",
    ),
    "category without name": (lambda d: d["categories"][1].pop("name"), "category -4", "name"),
    "no images": (lambda d: d.pop("images"), '"images"'),
    "no annotations": (lambda d: d.pop("annotations"), '"annotations"'),
    "no categories": (lambda d: d.pop("categories"), '"categories"'),
    "empty categories": (lambda d: d.update(categories=[]), '"categories" is empty'),
    "rows are no objects": (lambda d: d.update(images=[1]), '"images"', "list of objects"),
    "annotation without id": (
        lambda d: d["annotations"].append({"image_id": 30, "category_id": 7}),
        "annotation number 4 (without id)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(tmp_path, fault):
    change, *fragments = FAULTS[fault]
    write(tmp_path, damaged(change))
    message = refused(tmp_path, "instances_train.json: ", *fragments)
    assert "more like it" not in message


def test_many_faults_are_counted(tmp_path):
    write(
        tmp_path,
        damaged(
            lambda d: [row.update(category_id=1, bbox=SWAPPED) for row in d["annotations"][1:]]
        ),
    )
    refused(tmp_path, "annotation 902: ", "category_id 1", "(and 2 more like it)")


def test_all_kinds_of_faults_are_collected(tmp_path):
    def change(document):
        first, second, third, fourth = document["annotations"]
        first["category_id"], second["bbox"], third["image_id"] = 1, SWAPPED, 20
        document["images"][2]["width"] = 0  # what is on this image is not told again
        fourth["category_id"] = -4

    write(tmp_path, damaged(change))
    annotations = read_annotations(tmp_path, "train")
    assert [(f.severity, f.code, f.where, f.count) for f in annotations.faults] == [
        ("error", "size-invalid", "image 20 ('b.png')", 1),
        ("error", "category-unknown", "annotation 901", 1),
        ("error", "box-outside", "annotation 902", 1),
    ]
    assert (annotations.ids.tolist(), annotations.first.tolist()) == ([10, 30], [0, 0, 1])
    assert annotations.object_ids.tolist() == [904]
    refused(tmp_path, "image 20", "; 2 more kinds of faults: redetr check reports them")


def test_images_are_in_the_order_of_their_names(tmp_path):
    change = damaged(lambda d: [row.update(id=-row["id"]) for row in d["images"]])
    write(tmp_path, change | {"annotations": []})
    dataset = open_dataset(tmp_path, "train")
    assert [dataset.target(i)["image_id"] for i in range(3)] == [-10, -20, -30]


def test_categories_of_one_name_are_told(tmp_path):
    write(tmp_path, damaged(lambda d: d["categories"][0].update(name="bee")))
    assert any(
        "2 classes are called 'bee'" in note for note in open_dataset(tmp_path, "train").notes
    )


def test_braces_in_paths_and_values_are_only_text(tmp_path):
    root = tmp_path / "a{0}b"
    write(root, damaged(lambda d: d["images"][2].update(file_name="{id}\nlost.png")))
    refused(root, "a{0}b", "{id}\\nlost.png")


@pytest.mark.parametrize(
    ("text", "where"), [('{"images": [}', "line 1 column 13"), ('{\n "a": 1', "line 2 column 8")]
)
def test_not_json(tmp_path, text, where):
    write(tmp_path, text)
    refused(tmp_path, "instances_train.json: not JSON", where)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\xd8", b"[]", b"[" * 100_000])
def test_json_of_another_kind(tmp_path, content):
    write(tmp_path, "").write_bytes(content)
    refused(tmp_path, "instances_train.json: ")


def test_a_few_boxes_without_height_are_left_out(tmp_path):
    def change(document):
        document["annotations"] *= 5000
        document["annotations"][3] = {
            "id": 5,
            "image_id": 10,
            "category_id": 7,
            "bbox": [9, 9, 1.03, 0.0],
        }

    write(tmp_path, damaged(change))
    dataset = open_dataset(tmp_path, "train")
    (note,) = dataset.notes
    assert (
        "annotation 5: bbox [9, 9, 1.03, 0.0] has no area and is left out, as one of 1 in 20,000 "
        "boxes" in note
    )
    assert sum(len(dataset.target(i)["boxes"]) for i in range(3)) == 19_999


def test_missing_split_is_named(tmp_path):
    write(tmp_path, DOCUMENT)
    with pytest.raises(
        InputError, match=r"no val split .*instances_val\*\.json.*valid/_annotations.*hold out"
    ):
        open_dataset(tmp_path, "val")


def test_several_files_for_a_split(tmp_path):
    write(tmp_path, DOCUMENT, "annotations/instances_train2014.json")
    write(tmp_path, DOCUMENT, "annotations/instances_train2017.json")
    refused(tmp_path, "instances_train2014.json, instances_train2017.json", "keep one")
    write(tmp_path, DOCUMENT, "annotations/instances_train.json")
    assert len(open_dataset(tmp_path, "train")) == 3


def test_folder_is_missing_empty_or_of_no_known_layout(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder", "digits")
    refused(tmp_path, str(tmp_path), "empty")
    save_image(tmp_path / "images" / "a.png")
    refused(tmp_path, "holds images and no annotations; give the folder that holds both")
    (tmp_path / "notes.txt").write_text("of May\n")
    refused(tmp_path, "annotations/instances_train*.json", "_annotations.coco.json")
    refused(tmp_path / "images" / "a.png", "is a file")
    with pytest.raises(InputError, match="split='tset' is not train, val or test"):
        open_dataset("digits", "tset")  # type: ignore[arg-type]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_truncated_image(tmp_path, extension):
    path = tmp_path / f"cut.{extension}"
    save_image(path)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"cut\.{extension}: .*replace the file"):
        read_image(path)


def test_damaged_and_foreign_image_files(tmp_path):
    path = tmp_path / "b.png"
    save_image(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    for text in (None, b"<html>not found</html>", b""):
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(InputError, match=r"b\.png: .*replace the file") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"gone\.png: the image file is missing"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    options = {"transparency": b"\xff" * 256} if mode == "P" else {}
    Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode).save(path, **options)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((3, 4, 6), torch.uint8)
    if mode in ("P", "RGBA", "CMYK"):
        assert (image[:, 0, 0] - torch.tensor([200, 100, 50])).abs().max() < 12


def test_16_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 6), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").unique().tolist() == [0x80]


def test_size_that_differs_from_the_annotations(tmp_path):
    write(tmp_path, DOCUMENT)
    dataset = open_dataset(tmp_path, "train")
    save_image(tmp_path / "train" / "a.png", size=(50, 40))
    with pytest.raises(
        InputError, match=r"a\.png: is 50x40 px, but .*instances_train\.json says 100x80"
    ):
        dataset.image(0)
    save_image(tmp_path / "train" / "a.png", size=(HEIGHT, WIDTH))
    with pytest.raises(InputError, match="EXIF"):
        dataset.image(0)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to show
    save_image(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, HEIGHT, WIDTH)


def test_classes_of_both_splits_have_to_agree(tmp_path):
    write(tmp_path, DOCUMENT)
    fewer = damaged(lambda d: (d["categories"].pop(0), d.update(annotations=d["annotations"][1:])))
    write(tmp_path, fewer, "annotations/instances_val.json", "val")
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    with pytest.raises(InputError, match=r"90 \('tooth'\) is only in train"):
        essential_faults(train, val)
