"""Columns of Hugging Face data sets that hold no images, and objects that are null."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_coco import save_image

from redetr.data import open_dataset
from redetr.errors import InputError

datasets = pytest.importorskip("datasets")
WIDTH, HEIGHT = 96, 64
VALUE = datasets.Value("float32")
LABEL = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def saved_picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "a.png"
    save_image(file, size=(WIDTH, HEIGHT))
    return file


def rows_of(root: Path, rows: list[dict[str, Any]], **features: Any) -> str:
    """The address of a data set of these rows, which has a train split only."""
    part = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    part.save_to_disk(str(root / "saved"))
    return f"hf:{root}/saved"


THING = {"bbox": datasets.List(VALUE), "category": LABEL}


def test_objects_that_are_null(tmp_path, saved_picture):
    box = {"bbox": [5, 4, 30, 22], "category": 1}
    rows = [{"image": str(saved_picture), "objects": [None, box, None]}]
    source = rows_of(tmp_path, rows, image=datasets.Image(), objects=datasets.List(THING))
    dataset = open_dataset(f"{source},boxes=xywh", "train")
    assert dataset.target(0)["boxes"].tolist() == [[5, 4, 35, 26]]
    (note,) = dataset.faults
    assert (note.severity, note.code, note.where) == ("note", "object-null", "row 0 of train")
    assert note.text == "has 2 objects without any values, left out"


def test_texts_that_are_null_have_no_class(tmp_path, saved_picture):
    thing = {"bbox": datasets.List(VALUE), "category": datasets.Value("string")}
    rows = [{"image": str(saved_picture), "objects": [{"bbox": [5, 4, 30, 22], "category": "a"}]}]
    rows.append({"image": str(saved_picture), "objects": [None]})
    source = rows_of(tmp_path, rows, image=datasets.Image(), objects=datasets.List(thing))
    dataset = open_dataset(source, "train")
    assert dataset.class_names == ("a",)
    assert any("1 box is too few to tell xywh from xyxy" in note for note in dataset.notes)


PIXELS = np.full((HEIGHT, WIDTH, 3), 9, np.uint8)
COLUMNS_OF_IMAGES = {
    "lists of images": (datasets.List(datasets.Image()), "lists of Image"),
    "numbers": (datasets.Value("int64"), "int64"),
    "dicts": ({"height": datasets.Value("int64")}, "dicts of height"),
    "floats": (datasets.Array3D((HEIGHT, WIDTH, 3), "float32"), "Array3D"),
}


@pytest.mark.parametrize("name", COLUMNS_OF_IMAGES)
def test_columns_that_hold_no_image_of_each_row(tmp_path, saved_picture, name):
    feature, called = COLUMNS_OF_IMAGES[name]
    values = {"numbers": 7, "dicts": {"height": 3}, "floats": PIXELS}
    rows = [{"image": values.get(name, [str(saved_picture)]), "objects": []}]
    source = rows_of(tmp_path, rows, image=feature, objects=datasets.List(THING))
    with pytest.raises(
        InputError, match=f"its column image holds {called}, not an image of each row; write one"
    ):
        open_dataset(source, "train")


@pytest.mark.filterwarnings("ignore:Downcasting array")  # by `datasets`, which stores int64
@pytest.mark.parametrize("name", ["path", "bytes", "array", "dict"])
def test_columns_of_images_without_the_type_of_one(tmp_path, saved_picture, name):
    content = saved_picture.read_bytes()
    binary = datasets.Value("binary")
    value, feature = {
        "path": (str(saved_picture), datasets.Value("string")),
        "bytes": (content, binary),
        "array": (PIXELS, datasets.Array3D(PIXELS.shape, "uint8")),
        "dict": (
            {"bytes": content, "path": None},
            {"bytes": binary, "path": datasets.Value("string")},
        ),
    }[name]
    rows = [{"image": value, "objects": [{"bbox": [5, 4, 30, 22], "category": 1}]}]
    source = rows_of(tmp_path, rows, image=feature, objects=datasets.List(THING))
    dataset = open_dataset(source, "train")
    assert dataset.image(0).shape == (3, HEIGHT, WIDTH)
    assert dataset.target(0)["boxes"].tolist() == [[5, 4, 35, 26]]


def test_lists_of_lists_of_objects_are_not_read(tmp_path, saved_picture):
    rows = [{"image": str(saved_picture), "objects": [[{"bbox": [5, 4, 30, 22], "category": 1}]]}]
    lists = datasets.List(datasets.List(THING))
    source = rows_of(tmp_path, rows, image=datasets.Image(), objects=lists)
    with pytest.raises(InputError, match="needs columns image and objects"):
        open_dataset(source, "train")


WHOLE = {"width": WIDTH, "height": HEIGHT}  # the size of the image
NUMBERS = {
    "x y width height": {"x": 5, "y": 4, "width": 30, "height": 22},
    "x y w h": WHOLE | {"x": 5, "y": 4, "w": 30, "h": 22},
    "left top w h": WHOLE | {"left": 5, "top": 4, "w": 30, "h": 22},
    "x_center y_center w h": WHOLE | {"x_center": 20, "y_center": 15, "w": 30, "h": 22},
    "center_x center_y w h": WHOLE | {"center_x": 20, "center_y": 15, "w": 30, "h": 22},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_width_and_height_are_those_of_the_box_or_of_the_image(tmp_path, saved_picture, name):
    numbers = NUMBERS[name]
    rows = [{"image": str(saved_picture), "label": 1} | numbers]
    types = dict.fromkeys(numbers, datasets.Value("int64"))
    source = rows_of(tmp_path, rows, image=datasets.Image(), label=LABEL, **types)
    assert open_dataset(source, "train").target(0)["boxes"].tolist() == [[5, 4, 35, 26]]


@pytest.mark.parametrize("column", ["", "objects"])
def test_rows_whose_numbers_are_all_null_have_no_object(tmp_path, saved_picture, column):
    thing = {"xmin": 5, "ymin": 4, "xmax": 35, "ymax": 26, "label": 1}
    types: dict[str, Any] = dict.fromkeys(thing, datasets.Value("int64")) | {"label": LABEL}
    values: list[dict[str, Any]] = [thing, dict.fromkeys(thing)]
    if column:
        values = [{column: thing}, {column: None}]
        types = {column: types}
    rows = [{"image": str(saved_picture)} | of_row for of_row in values]
    source = rows_of(tmp_path, rows, image=datasets.Image(), **types)
    dataset = open_dataset(source, "train")
    assert [dataset.target(index)["boxes"].tolist() for index in range(2)] == [[[5, 4, 35, 26]], []]


def test_a_label_without_numbers_is_reported_by_its_box(tmp_path, saved_picture):
    thing = {"xmin": 5, "ymin": 4, "xmax": 35, "ymax": 26, "label": 1}
    types: dict[str, Any] = dict.fromkeys(thing, datasets.Value("int64")) | {"label": LABEL}
    values: list[dict[str, Any]] = [thing, dict.fromkeys(thing) | {"label": 0}]
    rows = [{"image": str(saved_picture)} | of_row for of_row in values]
    source = rows_of(tmp_path, rows, image=datasets.Image(), **types)
    with pytest.raises(InputError, match="is not 4 finite numbers"):
        open_dataset(source, "train")
