"""The same scenes in every form: the same targets, the same training; splits by hash; what
`datasets` reads."""

import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import lines_of, train_arguments
from conftest import write_tiny_coco
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from test_coco import refused

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.formats.holdout import held_out, hold_out
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.data.images import read_image
from redetr.data.open import absolute_source
from redetr.doctor.check import check
from redetr.errors import InputError

FORMS = ("coco", "yolo", "voc")


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    """The tiny data set in each form, and as `datasets` saves it."""
    root = tmp_path_factory.mktemp("forms")
    folders = {"coco": write_tiny_coco(root / "coco")}
    for form in ("yolo", "voc"):
        folders[form] = root / form
        convert(folders["coco"], folders[form], form)
    return folders


@pytest.mark.parametrize("form", ["yolo", "voc"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_targets_are_equal(forms, form, split):
    first, second = (open_dataset(forms[name], split) for name in ("coco", form))
    assert (len(first), first.class_names) == (len(second), second.class_names)
    for index in range(len(first)):
        (image, target), (other_image, other) = first[index], second[index]
        assert torch.equal(image, other_image)
        for name in ("boxes", "labels", "iscrowd", "area", "orig_size", "size"):
            assert np.array_equal(target[name], other[name]), name
    assert second.notes == ()


def curve(data: Path, output: Path) -> list[dict]:
    """What three steps of training write, without times."""
    main(list(map(str, train_arguments(data, output, steps=3, eval_every=3, augment="photo"))))
    times = ("time_s", "images_per_s", "data_wait")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in lines_of(output)
    ]


@pytest.mark.long
def test_training_is_the_same_to_the_digit(forms, tmp_path):
    curves = {form: curve(folder, tmp_path / form) for form, folder in forms.items()}
    assert len(curves["coco"]) == 4
    assert curves["coco"] == curves["yolo"] == curves["voc"]


@pytest.fixture
def unsplit(tmp_path) -> Path:
    """300 images in COCO form without a val split."""
    (tmp_path / "data/images").mkdir(parents=True)
    rows = []
    for number in range(300):
        Image.new("L", (8, 8)).save(tmp_path / f"data/images/{number}.png")
        rows.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8})
    annotations = [
        {"id": n, "image_id": n, "category_id": n % 2, "bbox": [0, 0, 4, 4]}
        for n in range(0, 300, 2)
    ]
    return rewrite(tmp_path / "data", rows, annotations)


def rewrite(root: Path, images: list[dict], annotations: list[dict]) -> Path:
    import json

    (root / "annotations").mkdir(exist_ok=True)
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(document))
    return root


def names(dataset) -> set[str]:
    return {dataset.path(i).name for i in range(len(dataset))}


def test_val_fraction_splits_by_name(unsplit):
    with pytest.raises(InputError, match=r"no val split.*--val-fraction 0\.1"):
        open_dataset(unsplit, "val")
    train, val = (open_dataset(unsplit, split, 0.1) for split in ("train", "val"))
    assert not names(train) & names(val)
    assert len(train) + len(val) == 300
    assert len(val) == 30
    assert (train.category_ids, train.class_names) == (val.category_ids, val.class_names)
    (note,) = train.notes
    assert (
        note
        == "no val split: 30 of 300 images are held out for validation, chosen by a hash of their "
        "names, with "
        "about that share of each class"
    )
    for dataset in (train, val):
        for index in range(len(dataset)):
            target = dataset.target(index)
            assert f"{target['image_id']}.png" == dataset.path(index).name
            assert len(target["boxes"]) == (target["image_id"] + 1) % 2
    more = names(open_dataset(unsplit, "val", 0.3))
    assert names(val) < more and len(more) == 90  # of more images, the same and others


def test_val_fraction_hardly_moves_images_when_others_come_or_order_changes(unsplit):
    """The first images by the hash of their names are held out: others push a few over the edge."""
    before = names(open_dataset(unsplit, "val", 0.1))
    rows = [
        {"id": 1000 - n, "file_name": f"{n}.png", "width": 8, "height": 8}
        for n in reversed(range(200))
    ]
    rewrite(unsplit, rows, [])
    after = names(open_dataset(unsplit, "val", 0.1))
    stayed = {name for name in before if int(name[:-4]) < 200}
    assert len(after) == 20
    assert len(after & stayed) >= 15


def classes_of(annotations) -> dict[str, int]:
    """How many images each class is in."""
    pairs = {*zip(annotations.labels.tolist(), annotations.image_of().tolist(), strict=True)}
    return Counter(annotations.class_names[label] for label, _ in pairs)


def test_a_quarter_of_16_images_is_4_with_a_quarter_of_each_class(unsplit):
    """As a user counts: 4 of 16, one of the 4 images of the rare class, and 3 of the others."""
    rows = [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in range(16)]
    boxes = []
    for n in range(16):
        for category in [0] if n % 4 else [0, 1]:
            boxes.append({"id": len(boxes) + 1, "image_id": n, "category_id": category,
                          "bbox": [1, 1, 3, 3]})  # fmt: skip
    rewrite(unsplit, rows, boxes)
    train, val = (open_dataset(unsplit, split, 0.25) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 4)
    assert classes_of(val.annotations) == {"a": 4, "b": 1}
    assert "4 of 16 images are held out" in val.notes[0]
    again = open_dataset(unsplit, "val", 0.25)
    assert names(again) == names(val)


@dataclass
class Objects:
    """As much of `Annotations` as the choice of images looks at."""

    names: np.ndarray
    labels: np.ndarray
    per_image: np.ndarray
    source: str = "data"

    def __len__(self) -> int:
        return len(self.names)

    def image_of(self) -> np.ndarray:
        return np.arange(len(self)).repeat(self.per_image)


@given(st.integers(2, 60), st.integers(1, 6), st.floats(0.02, 0.9), st.integers(0, 99))
def test_any_val_fraction_has_its_number_of_images_and_all_classes(count, classes, fraction, seed):
    wanted = int(fraction * count + 0.5)
    assume(0 < wanted < count)
    random = np.random.default_rng(seed)
    per_image = random.integers(0, 4, count)
    first = np.append(0, per_image.cumsum())
    labels = random.integers(0, classes, first[-1])
    annotations = Objects(np.array([b"%d.png" % n for n in range(count)]), labels, per_image)
    is_val = held_out(annotations, fraction)
    assert is_val.sum() == wanted
    if wanted < classes or count - wanted < classes:
        return  # not each class can be on both sides
    images = annotations.image_of()
    for label in range(classes):
        of_class = np.unique(images[labels == label])
        expected = fraction * len(of_class)
        assert abs(is_val[of_class].sum() - expected) <= classes + 1


def test_a_single_image_cannot_be_divided_and_what_helps_is_said(unsplit):
    rewrite(unsplit, [{"id": 0, "file_name": "0.png", "width": 8, "height": 8}], [])
    command = f"redetr convert {unsplit} {unsplit}-tiles --tile 640 --overlap 0"
    helps = re.escape(f"single image; cut it into tiles ({command})")
    with pytest.raises(InputError, match=helps):
        open_dataset(unsplit, "val", 0.25)


@pytest.mark.parametrize("count", [2, 5])
def test_a_split_that_is_empty_because_of_an_error_names_it(count, unsplit):
    """Images with errors are left out, and may be those that are missing."""
    rows = []
    for number in range(count):
        rows.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8})
    rows[0]["width"] = -8
    rewrite(unsplit, rows, [])
    for split in ("train", "val"):
        with pytest.raises(InputError, match=r"image 0 .*: -8x8 is not a size in pixels"):
            open_dataset(unsplit, split, 0.1)
    with pytest.raises(InputError, match="is not a size in pixels; write the size of the file"):
        check(str(unsplit), val_fraction=0.1)


def test_val_fraction_that_leaves_a_split_empty(unsplit):
    for fraction, count in ((1e-9, 0), (1 - 1e-9, 300)):
        with pytest.raises(
            InputError, match=rf"--val-fraction {fraction} holds out {count} of 300 images"
        ):
            open_dataset(unsplit, "val", fraction)


@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        (1.5, "--val-fraction 1.5 must be at least 0 and below 1"),
        (-0.1, "--val-fraction -0.1 must be at least 0 and below 1"),
        (float("nan"), "--val-fraction nan must be at least 0 and below 1"),
        ("x", "--val-fraction 'x' is not a number; give one that is at least 0 and below 1"),
    ],
)
def test_an_impossible_val_fraction_is_refused_beside_a_val_split_as_well(
    fraction, said, forms, tmp_path
):
    for opened in (
        lambda: open_dataset(forms["coco"], "val", fraction),
        lambda: open_dataset("digits", "train", fraction),
        lambda: check(str(forms["coco"]), val_fraction=fraction),
        lambda: convert(forms["coco"], tmp_path / "new", "yolo", val_fraction=fraction),
    ):
        with pytest.raises(InputError) as error:
            opened()
        assert str(error.value) == said


def test_val_fraction_beside_a_val_split_is_told(forms):
    dataset = open_dataset(forms["coco"], "val", 0.1)
    assert (len(dataset), "--val-fraction is not used" in dataset.notes[0]) == (5, True)
    (note,) = open_dataset("digits", "train", 0.1).notes
    assert note == "digits: has its own val split, so --val-fraction is not used"
    assert open_dataset("digits", "train").notes == ()


def test_val_fraction_in_training(forms, tmp_path, capsys):
    shutil.copytree(forms["yolo"], tmp_path / "data")
    text = (tmp_path / "data/data.yaml").read_text()
    (tmp_path / "data/data.yaml").write_text(text.replace("val: images/val\n", ""))
    flags = {"steps": 1, "eval_every": 1}
    main(
        list(
            map(
                str, train_arguments(tmp_path / "data", tmp_path / "run", val_fraction=0.3, **flags)
            )
        )
    )
    held_out, _ = hold_out(read_annotations(tmp_path / "data", "train"), "val", 0.3, tmp_path)
    errors = capsys.readouterr().err
    assert f"{len(held_out)} of 8 images are held out" in errors
    assert f"{8 - len(held_out)} training images" in errors
    main(["evaluate", str(tmp_path / "run"), "--val-fraction", "0.3"])
    for fraction in (-0.1, 1):
        with pytest.raises(SystemExit):
            main(
                list(
                    map(
                        str,
                        train_arguments(tmp_path / "data", tmp_path / "new", val_fraction=fraction),
                    )
                )
            )
        assert "--val-fraction" in capsys.readouterr().err


def test_folder_of_no_known_form(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    refused(
        tmp_path,
        "no data set found",
        "COCO: annotations/instances_train*.json",
        "YOLO: train in data.yaml",
        "Pascal VOC: ImageSets/Main/train.txt beside JPEGImages/",
    )


@pytest.fixture(scope="module")
def saved(forms, tmp_path_factory) -> Path:
    """The tiny data set as `datasets` saves it."""
    datasets = pytest.importorskip("datasets")
    fields = {
        "bbox": datasets.List(datasets.Value("float32"), length=4),
        "area": datasets.Value("float32"),
    }
    fields |= {
        "category": datasets.ClassLabel(names=["cup", "plate", "spoon"]),
        "iscrowd": datasets.Value("bool"),
    }
    splits = {}
    for split, name in (("train", "train"), ("val", "validation")):
        # The older way: a dict of lists.
        lists = {key: datasets.List(value) for key, value in fields.items()}
        things = datasets.List(fields) if split == "train" else lists
        features = datasets.Features({"image": datasets.Image(), "objects": things})
        a = read_annotations(forms["coco"], split)
        xywh = np.concatenate([a.boxes[:, :2], a.boxes[:, 2:] - a.boxes[:, :2]], axis=1).tolist()
        objects = [
            [
                {
                    "bbox": xywh[k],
                    "area": a.area[k],
                    "category": int(a.labels[k]),
                    "iscrowd": k % 2 == 1,
                }
                for k in range(a.first[i], a.first[i + 1])
            ]
            for i in range(len(a))
        ]
        if split == "val":
            objects = [
                {key: [thing[key] for thing in things] for key in fields} for things in objects
            ]
        rows = {"image": [str(a.path(i)) for i in range(len(a))], "objects": objects}
        splits[name] = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_datasets_give_equal_targets(forms, saved, split):
    first, second = open_dataset(forms["coco"], split), open_dataset(f"hf:{saved}", split)
    assert (len(first), first.class_names) == (len(second), second.class_names)
    crowds = []
    for index in range(len(first)):
        (image, target), (other_image, other) = first[index], second[index]
        assert torch.equal(image, other_image)
        for name in ("boxes", "labels", "area", "orig_size"):
            assert np.array_equal(target[name], other[name]), name
        crowds += other["iscrowd"].tolist()
    assert crowds == [k % 2 == 1 for k in range(len(crowds))]


def test_datasets_of_one_split_and_faults(saved, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = datasets.load_from_disk(str(saved))
    whole = splits["train"]
    whole.save_to_disk(str(tmp_path / "one"))
    parts = [open_dataset(f"hf:{tmp_path}/one", split, 0.3) for split in ("train", "val")]
    assert sum(map(len, parts)) == 8
    with pytest.raises(InputError, match=r"no val split, only train; --val-fraction"):
        open_dataset(f"hf:{tmp_path}/one", "val")
    with pytest.raises(InputError, match=r"no test split, only train; use val"):
        open_dataset(f"hf:{tmp_path}/one", "test", 0.3)
    tested = datasets.DatasetDict({**splits, "test": splits["validation"]})
    tested.save_to_disk(str(tmp_path / "tested"))
    assert len(open_dataset(f"hf:{tmp_path}/tested", "test", 0.3)) == len(splits["validation"])
    assert set(check(f"hf:{tmp_path}/tested").splits) == {"train", "val", "test"}
    tested["test"] = tested["test"].remove_columns("objects")
    tested.save_to_disk(str(tmp_path / "unlabelled"))
    report = check(f"hf:{tmp_path}/unlabelled")
    assert set(report.splits) == {"train", "val"} and not report.errors
    assert "split-unreadable" in {fault.code for fault in report.faults}
    whole.rename_column("objects", "things").save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(
        InputError, match=r"needs columns image and objects.*which are image, things"
    ):
        open_dataset(f"hf:{tmp_path}/odd", "train")
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(InputError, match="cannot read it") as caught:
            open_dataset(f"hf:{tmp_path}/{place}", "train")
        assert "\n" not in str(caught.value)


def test_datasets_decode_images_as_files_are(saved, tmp_path):
    """16-bit grey is scaled, and formats whose decoder runs a program are refused."""
    datasets = pytest.importorskip("datasets")
    grey = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
    grey.save(tmp_path / "grey.png")
    (tmp_path / "drawn.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n%%EOF\n"
    )
    one = datasets.load_from_disk(str(saved))["train"].select([0])
    for name in ("grey.png", "drawn.eps"):
        rows = {"image": [str(tmp_path / name)], "objects": [[]]}
        datasets.Dataset.from_dict(rows, features=one.features).save_to_disk(
            str(tmp_path / f"of {name}")
        )
    pixels = open_dataset(f"hf:{tmp_path}/of grey.png", "train").image(0)
    assert torch.equal(pixels, read_image(tmp_path / "grey.png"))
    assert pixels.unique().numel() == 256
    with pytest.raises(InputError, match=r"row 0 of train: not an image \(JPEG, "):
        open_dataset(f"hf:{tmp_path}/of drawn.eps", "train")


def test_a_source_is_named_for_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    for name in ("digits", "crowns", "hf:owner/name", "hf:name@1.0", str(tmp_path)):
        assert absolute_source(name) == name
    assert absolute_source("./digits") == f"{tmp_path}/digits"  # a folder of that name
    assert absolute_source("~/x") == str(Path.home() / "x")
    assert absolute_source("hf:saved") == f"hf:{tmp_path}/saved"
