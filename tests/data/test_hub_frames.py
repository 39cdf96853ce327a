"""Images of Hugging Face rows that `datasets` rotates by their EXIF tag, and damaged ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from redetr.data import open_dataset
from redetr.data.formats.writing import convert
from redetr.data.headers import headers_of_contents
from redetr.data.orientation import turned_back
from redetr.doctor.check import check
from redetr.errors import InputError

datasets = pytest.importorskip("datasets")
WIDTH, HEIGHT = 96, 64
X, Y, BOX_WIDTH, BOX_HEIGHT = 8, 6, 30, 12  # in the upright image
ORIENTATIONS = range(1, 9)
NUMBER = datasets.Value("float32")
LABELS = datasets.List(datasets.ClassLabel(names=["cat"]))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scene() -> np.ndarray:
    """An upright image with a white object, and darker noise around it."""
    noise = np.random.default_rng(0).integers(0, 100, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    noise[Y : Y + BOX_HEIGHT, X : X + BOX_WIDTH] = 255
    return noise


def encoded(pixels: np.ndarray, orientation: int = 1, form: str = "PNG") -> dict[str, Any]:
    """The file of an upright image that is stored in this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored = Image.fromarray(np.ascontiguousarray(turned_back(pixels, orientation)))
    stored.save(buffer, form, exif=exif.tobytes(), quality=95)
    return {"bytes": buffer.getvalue(), "path": None}


def row(orientation: int = 1, form: str = "PNG", **fields: Any) -> dict[str, Any]:
    objects = {"bbox": [[X, Y, BOX_WIDTH, BOX_HEIGHT]], "category": [0]} | fields
    return {"image": encoded(scene(), orientation, form), "objects": objects}


def save(root: Path, rows: list[dict[str, Any]], columns: Any = None, **fields: Any) -> str:
    """The address of a data set of these rows in train and val."""
    boxes = datasets.List(datasets.List(NUMBER))
    objects = {"bbox": boxes, "category": LABELS} | fields
    types = {"image": datasets.Image(), "objects": objects} | (columns or {})
    part = datasets.Dataset.from_list(rows, features=datasets.Features(types))
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(str(root / "saved"))
    return f"hf:{root}/saved"


def require_around_object(dataset: Any, index: int) -> None:
    """The box, and the mask if there is one, are around the white object."""
    target = dataset.target(index)
    is_white = dataset.image(index).amin(0) > 200
    rows, columns = is_white.nonzero(as_tuple=True)
    start = [columns.min().item(), rows.min().item()]
    end = [columns.max().item() + 1, rows.max().item() + 1]
    assert target["boxes"].tolist() == [start + end]
    if "masks" in target:
        assert target["masks"][0].equal(is_white)


def test_boxes_are_those_of_the_image_as_datasets_decodes_it(tmp_path):
    source = save(tmp_path, [row(orientation) for orientation in ORIENTATIONS])
    decoded = datasets.load_from_disk(source.removeprefix("hf:"))["train"]
    dataset = open_dataset(f"{source},boxes=xywh", "train")
    for index in range(len(ORIENTATIONS)):
        assert np.array_equal(np.asarray(decoded[index]["image"]), scene())
        require_around_object(dataset, index)
    (note,) = dataset.faults
    assert (note.severity, note.code, note.count) == ("note", "image-upright", 7)
    assert "has the EXIF orientation 2: its boxes are read in the upright image" in note.text
    assert not check(source).errors


def test_fractions_of_upright_images(tmp_path):
    box = [X / WIDTH, Y / HEIGHT, BOX_WIDTH / WIDTH, BOX_HEIGHT / HEIGHT]
    rows = [row(orientation, bbox=[box]) for orientation in ORIENTATIONS]
    dataset = open_dataset(f"{save(tmp_path, rows)},boxes=xywh", "train")
    for index in range(len(ORIENTATIONS)):
        target = dataset.target(index)
        target["boxes"].round_()
        require_around_object(dataset, index)


POLYGON = [X, Y, X + BOX_WIDTH, Y, X + BOX_WIDTH, Y + BOX_HEIGHT, X, Y + BOX_HEIGHT]


@pytest.mark.parametrize("kind", ["polygons", "RLE", "image"])
def test_masks_are_turned_with_their_boxes(tmp_path, kind):
    mask = (scene() == 255).all(2)
    starts = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0))
    counts = np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()
    values, feature = {
        "polygons": ([[POLYGON]], datasets.List(datasets.List(NUMBER))),
        "RLE": (
            [{"size": [HEIGHT, WIDTH], "counts": counts}],
            {"size": datasets.List(datasets.Value("int64"))}
            | {"counts": datasets.List(datasets.Value("int64"))},
        ),
        "image": ([encoded(255 * mask.astype(np.uint8))], datasets.Image()),
    }[kind]
    rows = [row(orientation, segmentation=values) for orientation in ORIENTATIONS]
    source = save(tmp_path, rows, segmentation=datasets.List(feature))
    dataset = open_dataset(f"{source},boxes=xywh", "train", masks=True)
    for index in range(len(ORIENTATIONS)):
        require_around_object(dataset, index)


def test_columns_that_state_the_stored_size(tmp_path):
    """The boxes were drawn on the stored image, as in COCO's files."""
    size = datasets.Value("int64")
    turned = row(6) | {"width": HEIGHT, "height": WIDTH}
    turned["objects"]["bbox"] = [[Y, WIDTH - X - BOX_WIDTH, BOX_HEIGHT, BOX_WIDTH]]
    upright = row(6) | {"width": WIDTH, "height": HEIGHT}
    source = save(tmp_path, [turned, upright], {"width": size, "height": size})
    dataset = open_dataset(f"{source},boxes=xywh", "train")
    for index in range(2):
        require_around_object(dataset, index)
    said = {fault.code: (fault.severity, fault.where) for fault in dataset.faults}
    assert said == {
        "image-upright": ("note", "row 1 of train"),
        "image-orientation": ("warning", "row 0 of train"),
    }
    other = row(6) | {"width": WIDTH, "height": WIDTH}
    source = save(tmp_path / "other", [other], {"width": size, "height": size})
    with pytest.raises(InputError, match="columns state 96x96 px, but its image is 96x64 px"):
        open_dataset(source, "train")


def test_sizes_that_are_stated_as_text(tmp_path):
    text = datasets.Value("string")
    rows = [row() | {"width": "96", "height": "64.0"}, row() | {"width": "wide", "height": ""}]
    source = save(tmp_path, rows, {"width": text, "height": text})
    assert len(open_dataset(source, "train")) == 2
    rows[0]["width"] = "90"
    source = save(tmp_path / "other", rows, {"width": text, "height": text})
    with pytest.raises(InputError, match=r"row 0 of train: its columns state 90x64\.0 px"):
        open_dataset(source, "train")


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_conversion_of_rotated_images(tmp_path, form):
    rows = [row(orientation, "JPEG") for orientation in ORIENTATIONS]
    source = f"{save(tmp_path, rows)},boxes=xywh"
    convert(source, tmp_path / "new", form)
    before = open_dataset(source, "train")
    after = open_dataset(tmp_path / "new", "train")
    for index in range(len(ORIENTATIONS)):
        expected = before.target(index)["boxes"]
        np.testing.assert_allclose(after.target(index)["boxes"], expected, atol=1e-4)


def test_check_reads_the_images_of_rows(tmp_path):
    """As it does files: truncated ones, those of a single colour, and those of two splits."""
    rows = [row(form="JPEG"), row(2), row(3), row(4)]
    rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:-300]
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "red.png")
    rows[2]["image"] = {"bytes": (tmp_path / "red.png").read_bytes(), "path": None}
    address = f"{save(tmp_path, rows)},boxes=xywh"
    report = check(address)
    errors = [fault for fault in report.faults if fault.severity == "error"]
    assert [fault.code for fault in errors] == 2 * ["image-unreadable"]
    assert "truncated" in errors[0].text
    assert errors[0].remedy == "replace the image in this row, or delete the row"
    where = [fault.where for fault in errors]
    assert where == ["image 0 ('000000000') of train", "image 0 ('000000000') of val"]
    codes = {fault.code: (fault.severity, fault.count) for fault in report.faults}
    assert codes["image-plain"] == ("warning", 1)
    assert codes["image-leak"][0] == "warning"
    (leak,) = [fault for fault in report.faults if fault.code == "image-leak"]
    assert leak.where == "image 1 ('000000001') of val"


CONTENTS = {
    "HEIC": (b"\0\0\0\x18ftypheic", "not an image that is read, but HEIC"),
    "empty": (b"", "not an image: the file is empty"),
    "damaged": (b"\xff\xd8\xff" + bytes(40), "not an image"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_why_an_image_cannot_be_read(tmp_path, name):
    content, words = CONTENTS[name]
    unreadable = row() | {"image": {"bytes": content, "path": None}}
    source = f"{save(tmp_path, [row(), unreadable])},boxes=xywh"
    with pytest.raises(InputError) as caught:
        open_dataset(source, "train")
    said = str(caught.value)
    assert f"row 1 of train: {words}" in said
    assert "replace the image in this row, or delete the row" in said


def test_faults_of_rows_name_their_split(tmp_path):
    """Rows of all splits are numbered from 0, and these are the same in both."""
    box = [X, Y, BOX_WIDTH, BOX_HEIGHT]
    rows = [row(), row(2, bbox=[box, box], category=[0, 0]), row(3, bbox=[], category=[])]
    report = check(f"{save(tmp_path, rows)},boxes=xywh")
    for code, where in (
        ("box-twice", "annotation 2 in image 1 ('000000001')"),
        ("image-empty", "image 2 ('000000002')"),
    ):
        faults = [fault for fault in report.faults if fault.code == code]
        assert [fault.where for fault in faults] == [f"{where} of train", f"{where} of val"]


def test_samples_of_rows_are_decoded_for_the_page(tmp_path):
    rows = [row(orientation) for orientation in (1, 2, 3)]
    content = rows[1]["image"]["bytes"]
    middle = len(content) // 2
    rows[1]["image"]["bytes"] = content[:middle] + bytes(200) + content[middle + 200 :]
    source = f"{save(tmp_path, rows)},boxes=xywh"
    assert not check(source).errors
    report = check(source, samples=True)
    errors = [fault for fault in report.faults if fault.severity == "error"]
    assert [(fault.code, fault.where) for fault in errors] == [
        ("image-unreadable", f"image 1 ('000000001') of {split}") for split in ("train", "val")
    ]
    assert report.samples == [(split, index) for split in ("train", "val") for index in (0, 2)]


def test_headers_of_contents_that_cannot_be_read():
    def content_of(i: int) -> bytes:
        if i == 1:
            raise OSError("the file is gone")
        return encoded(scene(), 6)["bytes"]

    headers = headers_of_contents(3, content_of)
    assert [header.problem for header in headers] == ["", "the file is gone", ""]
    first = headers[0]
    assert (first.width, first.height, first.orientation) == (HEIGHT, WIDTH, 6)
    assert first.content == headers[2].content != ""


def test_a_truncated_row_is_no_file(tmp_path):
    rows = [row(form="JPEG"), row(form="JPEG")]
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:-300]
    dataset = open_dataset(f"{save(tmp_path, rows)},boxes=xywh", "train")
    with pytest.raises(InputError, match=r"truncated.*; replace the image in this row") as caught:
        dataset.image(1)
    assert "--skip-unreadable" not in str(caught.value)


def test_check_is_not_recommended_where_it_stops_as_well(tmp_path):
    unreadable = row() | {"image": {"bytes": b"", "path": None}}
    source = f"{save(tmp_path, [unreadable, row(bbox=[[1, 2, 3]])])},boxes=xywh"
    for opened in (lambda: open_dataset(source, "train"), lambda: check(source)):
        with pytest.raises(InputError, match=r"; 1 more kind of faults$"):
            opened()
