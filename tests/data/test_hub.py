"""Rows of Hugging Face data sets in the forms in which they are published."""

import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco import refused, save_image
from test_fuzz import require_consistent

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.contradictions import FORMATS, from_corners
from redetr.data.formats import hub
from redetr.data.formats.hub_rows import BoxForm, Sample, box_form
from redetr.data.formats.layouts import splits_of
from redetr.data.formats.writing import convert
from redetr.data.images import FORMATS as FORMATS_OF_IMAGES
from redetr.data.images import IMAGE_SUFFIXES, suffix_of
from redetr.data.open import absolute_source
from redetr.doctor.check import check
from redetr.errors import InputError
from redetr.masks import encode

datasets = pytest.importorskip("datasets")
WIDTH, HEIGHT = 96, 64
CORNERS = [(5, 4, 30, 22), (38, 20, 52, 40), (20, 24, 60, 36), (40, 6, 50, 46)]
LABEL = datasets.ClassLabel(names=["cat", "dog"])
BOX = datasets.List(datasets.Value("float32"), length=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save(
    root: Path, objects: list[Any], features: Any, suffix: str = ".png", **columns: list[Any]
) -> str:
    """The address of a data set of these rows in train and val. Its images have this suffix."""
    images = []
    for number in range(len(objects)):
        file = root / f"{number}{suffix}"
        save_image(file, number, size=(WIDTH, HEIGHT))
        images.append(str(file))
    rows = {"image": images, "objects": objects} | columns
    types = {"image": datasets.Image(), "objects": features}
    types |= {name: datasets.Value("int64") for name in columns}
    part = datasets.Dataset.from_dict(rows, features=datasets.Features(types))
    folder = root / "saved"
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(str(folder))
    return f"hf:{folder}"


def fields(category: Any = LABEL, box: str = "bbox", name: str = "category") -> dict[str, Any]:
    return {box: datasets.List(BOX), name: datasets.List(category)}


def boxes_of(source: str) -> list[list[float]]:
    dataset = open_dataset(source, "train")
    return [dataset.target(i)["boxes"][0].round().tolist() for i in range(len(dataset))]


def test_corners_with_areas(tmp_path):
    """All of them would stay inside as width and height; their areas say what they are."""
    objects = []
    for x1, y1, x2, y2 in CORNERS:
        area = (x2 - x1) * (y2 - y1)
        objects.append({"bbox": [[x1, y1, x2, y2]], "category": [1], "area": [area]})
    features = fields() | {"area": datasets.List(datasets.Value("float32"))}
    source = save(tmp_path, objects, features)
    assert boxes_of(source) == [list(box) for box in CORNERS]
    (note,) = open_dataset(source, "val").notes
    assert "its boxes are read as xyxy in pixels, the only format that fits" in note
    assert "hub-form" in {fault.code for fault in check(source).faults}


VALUE = datasets.Value("float32")
CORNER_NAMES = ("xmin", "ymin", "xmax", "ymax")


def named(box: tuple[int, ...], names: tuple[str, ...] = CORNER_NAMES) -> dict[str, int]:
    return dict(zip(names, box, strict=True))


@pytest.mark.parametrize(
    "form", ["dicts in lists", "dicts in objects", "columns", "lists in a dict"]
)
def test_numbers_of_a_box_have_names(tmp_path, form):
    """They say that they are corners, whatever lists they are in."""
    numbers = dict.fromkeys(CORNER_NAMES, VALUE)
    box = CORNERS[0]
    other = CORNERS[1]
    objects: Any = [{"bbox": named(box), "category": 0}, {"bbox": named(other), "category": 1}]
    features: Any = datasets.List({"bbox": numbers, "category": LABEL})
    if form == "dicts in lists":
        objects = {"bbox": [named(box), named(other)], "category": [0, 1]}
        features = {"bbox": datasets.List(numbers), "category": datasets.List(LABEL)}
    if form == "columns":
        objects = [named(box) | {"label": 0}, named(other) | {"label": 1}]
        features = datasets.List(numbers | {"label": LABEL})
    if form == "lists in a dict":
        lists = {name: [box[i], other[i]] for i, name in enumerate(CORNER_NAMES)}
        objects = {"bbox": lists, "category": [0, 1]}
        of_lists = dict.fromkeys(CORNER_NAMES, datasets.List(VALUE))
        features = {"bbox": of_lists, "category": datasets.List(LABEL)}
    dataset = open_dataset(save(tmp_path, [objects], features), "train")
    assert dataset.target(0)["boxes"].tolist() == [list(map(float, box)), list(map(float, other))]
    (note,) = dataset.notes
    assert "its boxes are read as xyxy, as their names (xmin ymin xmax ymax) state" in note


def test_names_of_centres_and_fractions(tmp_path):
    names = ("x_center", "y_center", "width", "height")
    objects = [[{"bbox": named((0.5, 0.5, 0.25, 0.5), names), "category": 0}]]
    features = datasets.List({"bbox": dict.fromkeys(names, VALUE), "category": LABEL})
    assert boxes_of(save(tmp_path, objects, features)) == [[36, 16, 60, 48]]


def test_a_few_boxes_that_may_be_corners(tmp_path):
    """They are taken as width and height, and a line says so until the address settles it."""
    source = save(tmp_path, [{"bbox": [[5, 4, 30, 22]], "category": [0]}], fields())
    (note,) = open_dataset(source, "train").notes
    assert (
        f"2 boxes are too few to tell xywh from xyxy, so xywh is assumed: give {source},boxes=xyxy"
    ) in note
    assert open_dataset(f"{source},boxes=xywh", "train").notes == ()
    assert boxes_of(f"{source},boxes=xyxy") == [[5, 4, 30, 22]]


def test_corners_that_leave_their_images(tmp_path):
    objects = [{"bbox": [[x1, 30, x1 + 20, 60]], "category": [0]} for x1 in (10, 50, 70)]
    source = save(tmp_path, objects, fields())
    assert boxes_of(source) == [[x1, 30, x1 + 20, 60] for x1 in (10, 50, 70)]


def test_a_form_that_is_not_clear_is_settled_by_the_address(tmp_path):
    """A third of the image, or a tenth: fractions may be xywh or xyxy."""
    objects = [{"bbox": [[0.1, 0.2, 0.3, 0.3]], "category": [0]}] * 3
    source = save(tmp_path, objects, fields())
    with pytest.raises(
        InputError, match="may be xywh or xyxy as fractions of the image; state which"
    ):
        open_dataset(source, "train")
    with pytest.raises(InputError, match=rf"as in {source},boxes=xyxy"):
        check(source)
    expected = {"xywh": [10, 13, 38, 32], "xyxy": [10, 13, 29, 19]}
    for box_format, box in expected.items():
        assert boxes_of(f"{source},boxes={box_format}") == [box] * 3
    with pytest.raises(InputError, match="boxes=yolo is not a format; write one of xywh, cxcywh"):
        open_dataset(f"{source},boxes=yolo", "train")


@pytest.mark.parametrize("unit", ["pixels", "fractions"])
@pytest.mark.parametrize("box_format", FORMATS)
def test_formats_of_many_boxes(box_format, unit):
    random = np.random.default_rng(0)
    sizes = np.tile([640.0, 480.0], (400, 1))
    sides = random.uniform(0.05, 0.4, (400, 2)) * sizes
    starts = random.uniform(0, 1, (400, 2)) * (sizes - sides)
    boxes = np.concatenate([starts, starts + sides], axis=1)
    numbers = from_corners(boxes, box_format)
    if unit == "fractions":
        numbers = numbers / np.tile(sizes, 2)
    for area in (np.full(400, -1.0), sides.prod(1), sides.prod(1) * 0.7):
        form = box_form("hf:x", Sample(numbers, sizes, area), "")
        assert (form.box_format, form.fractions) == (box_format, unit == "fractions")
        box = form.pixels(numbers[0].tolist(), (640, 480))
        np.testing.assert_allclose(box, [*starts[0], *sides[0]], atol=1e-6)


def test_areas_of_fractions():
    form = BoxForm("xywh", fractions=True)
    assert form.area(0.25, (40, 20)) == 200
    assert form.area(30.0, (40, 20)) == 30.0  # of pixels
    assert form.area(None, (40, 20)) is None
    assert BoxForm().area(0.25, (40, 20)) == 0.25


def test_small_objects_in_a_corner_are_not_taken_for_width_and_height():
    random = np.random.default_rng(1)
    starts = random.uniform(20, 250, (100, 2))
    boxes = np.concatenate([starts, starts + random.uniform(5, 20, (100, 2))], axis=1)
    sample = Sample(boxes, np.tile([640.0, 640.0], (100, 1)), np.full(100, -1.0))
    with pytest.raises(InputError, match="may be xywh or xyxy in pixels; state which"):
        box_form("hf:x", sample, "")
    assert box_form("hf:x", sample, "xywh") == BoxForm("xywh")


NAMES = {
    "boxes and labels": ("boxes", "label", LABEL, [1], ("cat", "dog")),
    "categories": ("bbox", "categories", LABEL, [1], ("cat", "dog")),
    "texts": ("bbox", "category", datasets.Value("string"), ["dog"], ("dog",)),
    "numbers": ("bbox", "category_id", datasets.Value("int64"), [7], ("7",)),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_columns_and_classes(tmp_path, name):
    box, category, feature, value, classes = NAMES[name]
    objects = [{box: [[5, 4, 30, 22]], category: value}] * 2
    source = save(tmp_path, objects, fields(feature, box, category))
    dataset = open_dataset(source, "train")
    assert dataset.target(0)["boxes"].tolist() == [[5, 4, 35, 26]]
    assert dataset.class_names == classes
    assert dataset.class_names[int(dataset.target(0)["labels"][0])] == classes[-1]
    notes = [note for note in dataset.notes if "too few to tell" not in note]
    assert bool(notes) == (name in ("texts", "numbers"))


def test_a_row_without_image(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "objects": fields()})
    rows = {"image": [None], "objects": [{"bbox": [[5, 4, 30, 22]], "category": [1]}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    words = "row 0 of train: it has no image; replace the image in this row, or delete the row"
    with pytest.raises(InputError, match=words):
        open_dataset(f"hf:{tmp_path}/saved", "train")


NUMBERS = [0.0, -1.0, 5.0, 30.0, 1e30, float("nan"), float("inf"), 0.5]
BOXES = st.lists(st.one_of(st.none(), st.lists(st.sampled_from(NUMBERS), max_size=5)), max_size=3)
LABELS = st.lists(st.sampled_from([None, -1, 0, 1, 7]), max_size=3)
AREAS = st.lists(st.one_of(st.none(), st.sampled_from(NUMBERS)), max_size=3)
FIELDS = {
    "bbox": st.one_of(st.none(), BOXES),
    "category": st.one_of(st.none(), LABELS),
    "area": st.one_of(st.none(), AREAS),
}
OBJECTS = st.one_of(st.none(), st.fixed_dictionaries(FIELDS))


def read_rows(picture: Path, objects: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    features = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.Value("int64")),
        "area": datasets.List(datasets.Value("float32")),
    }
    types = datasets.Features({"image": datasets.Image(), "objects": features})
    rows = {"image": [str(picture)] * len(objects), "objects": objects}
    loaded = {"train": datasets.Dataset.from_dict(rows, features=types)}
    monkeypatch.setattr(hub, "_load", lambda source: loaded)
    try:
        require_consistent(open_dataset("hf:x", "train").annotations)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(OBJECTS, min_size=1, max_size=3))
def test_odd_rows_are_read_or_refused(saved_picture, monkeypatch, objects):
    read_rows(saved_picture, objects, monkeypatch)


@pytest.mark.slow
@settings(max_examples=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(OBJECTS, min_size=1, max_size=3))
def test_many_odd_rows_are_read_or_refused(saved_picture, monkeypatch, objects):
    read_rows(saved_picture, objects, monkeypatch)


@pytest.fixture(scope="module")
def saved_picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "a.png"
    save_image(file, size=(WIDTH, HEIGHT))
    return file


def test_lists_of_different_lengths(tmp_path):
    sound = {"bbox": [[5, 4, 30, 22]], "category": [1]}
    short = {"bbox": [[5, 4, 30, 22], [40, 30, 20, 20]], "category": [1]}
    source = save(tmp_path, [sound, short, short], fields())
    said = r"row 1 of train: its lists differ in length: 2 bbox, 1 category"
    with pytest.raises(InputError, match=said):
        open_dataset(source, "train")


def test_a_note_on_all_splits_is_reported_once(tmp_path):
    corners = [{"bbox": [[40, 30, 90, 60]], "category": [1]}] * 4
    report = check(save(tmp_path, corners, fields()))
    (note,) = [fault for fault in report.faults if fault.code == "hub-form"]
    assert (note.where, note.count) == ("", 1)


def test_a_hub_out_of_reach_is_one_line(capsys, caplog, monkeypatch):
    """The client's logger prints two lines per attempt."""
    logger = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(name, **options):
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SystemExit):
        main(["check", "hf:nobody/nothing"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "`datasets` cannot read it (no network)" in lines[0]
    assert not caplog.messages
    logger.warning("a warning elsewhere")
    assert caplog.messages == ["a warning elsewhere"]


def test_key_points_are_passed_over_with_a_note(tmp_path):
    """As in COCO files; lists without a number in them are none."""
    box = {"bbox": [[5, 4, 30, 22]], "category": [1]}
    points = ([[8, 6, 2]], [[]], [[9, 7, 0]])
    objects = [box | {"keypoints": of_row} for of_row in points]
    lists = datasets.List(datasets.List(datasets.Value("float32")))
    dataset = open_dataset(save(tmp_path, objects, fields() | {"keypoints": lists}), "train")
    (fault,) = [fault for fault in dataset.faults if fault.code == "key-points"]
    assert (fault.severity, fault.where, fault.count) == ("note", "row 0 of train", 2)
    assert len(dataset) == 3


def test_columns_that_state_another_size(tmp_path):
    objects = [{"bbox": [[5, 4, 30, 22]], "category": [1]}] * 2
    source = save(tmp_path, objects, fields(), width=[WIDTH, HEIGHT], height=[HEIGHT, WIDTH])
    with pytest.raises(
        InputError, match="row 1 of train: its columns state 64x96 px, but its image is 96x64 px"
    ):
        open_dataset(source, "train")


def image_folder(root: Path, metadata: str = "metadata.jsonl") -> Path:
    for split in ("train", "validation"):
        rows = []
        for number in range(3):
            save_image(root / split / f"{number}.png", number, size=(WIDTH, HEIGHT))
            objects = {"bbox": [[5, 4, 30, 22]], "categories": [number % 2]}
            rows.append(json.dumps({"file_name": f"{number}.png", "objects": objects}))
        (root / split / metadata).write_text("\n".join(rows))
    return root


def test_a_folder_of_images(tmp_path):
    root = image_folder(tmp_path / "folder")
    dataset = open_dataset(f"hf:{root}", "val")
    assert (len(dataset), dataset.class_names) == (3, ("0", "1"))
    assert dataset.target(0)["boxes"].tolist() == [[5, 4, 35, 26]]
    assert dataset.image(0).shape == (3, HEIGHT, WIDTH)
    assert not check(f"hf:{root}").errors


def test_a_folder_names_its_address(tmp_path):
    root = image_folder(tmp_path / "folder")
    source = save(tmp_path / "data", [{"bbox": [], "category": []}], fields())
    for folder in (root, Path(source.removeprefix("hf:"))):
        refused(folder, f"Hugging Face `datasets` reads it: give hf:{folder}")


def test_damaged_metadata_is_one_line(tmp_path):
    root = image_folder(tmp_path / "folder")
    (root / "train/metadata.jsonl").write_text('{"file_name": "0.png", "objects": [{]}')
    with pytest.raises(InputError, match="cannot read it") as caught:
        open_dataset(f"hf:{root}", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_conversion(tmp_path, form, capsys):
    root = image_folder(tmp_path / "folder")
    main(["convert", f"hf:{root}", str(tmp_path / "new"), "--to", form])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("train has 3 images, 3 objects, val has 3 images, 3 objects")
    assert sum("without names" in line for line in lines) == 1
    assert splits_of(tmp_path / "new") == ["train", "val"]
    first, second = (open_dataset(s, "val") for s in (f"hf:{root}", tmp_path / "new"))
    for number in range(3):
        assert first.target(number)["boxes"].equal(second.target(number)["boxes"])
        assert first.image(number).equal(second.image(number))
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"folder", "new", "cache"}  # nothing is left behind
    with pytest.raises(InputError, match="is inside"):
        convert(f"hf:{root}", root / "inside", form)


ROW = {"bbox": [[5, 4, 30, 22]], "category": [1]}


def with_splits(root: Path, *names: str) -> str:
    """The address of a data set with splits of these names, each of the same two rows."""
    source = save(root, [ROW, ROW], fields())
    part = datasets.load_from_disk(source.removeprefix("hf:"))["train"]
    folder = root / "-".join(names)
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(str(folder))
    return f"hf:{folder}"


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_splits_of_other_names_are_refused(tmp_path, form):
    source = with_splits(tmp_path, "full", "dev")
    words = "no train, val or test split, only full, dev; call its splits train, validation and"
    for fraction in (0.0, 0.5):
        with pytest.raises(InputError, match=words):
            convert(source, tmp_path / "new", form, val_fraction=fraction)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="no train split, only full, dev; call its splits train"):
        open_dataset(source, "train", 0.5)


def test_splits_that_are_not_converted_are_named(tmp_path):
    source = with_splits(tmp_path, "train", "dev")
    notes = convert(source, tmp_path / "new", "coco")
    assert f"{source}: only train, validation and test are read, not dev" in notes
    assert splits_of(tmp_path / "new") == ["train"]


def test_no_images_are_held_out_of_a_test_split(tmp_path):
    source = with_splits(tmp_path, "test")
    words = "has only a test split, and --val-fraction holds out images of train; leave it out"
    with pytest.raises(InputError, match=words):
        convert(source, tmp_path / "new", "coco", val_fraction=0.5)
    assert not (tmp_path / "new").exists()
    convert(source, tmp_path / "new", "coco")
    assert splits_of(tmp_path / "new") == ["test"]
    for fraction in (0.0, 0.5):
        with pytest.raises(InputError, match=r"no val split, only test; use test \(--split test"):
            open_dataset(source, "val", fraction)
        with pytest.raises(InputError, match="no train split, only test; call its splits"):
            open_dataset(source, "train", fraction)


def test_a_fraction_beside_a_val_split_is_reported(tmp_path):
    source = save(tmp_path, [ROW, ROW], fields())
    note = f"{source}: has its own val split, so --val-fraction is not used"
    for split in ("train", "val"):
        assert note in open_dataset(source, split, 0.5).notes
        assert note not in open_dataset(source, split).notes
    assert note in convert(source, tmp_path / "new", "coco", val_fraction=0.5)


def test_images_of_every_format_are_written_with_a_suffix_that_is_read(tmp_path):
    for name in (*FORMATS_OF_IMAGES, "MPO"):
        image = Image.new("RGB", (8, 8))
        image.format = name
        assert suffix_of(image) in IMAGE_SUFFIXES
    rows = [{"bbox": [[5, 4, 30, 22]], "category": [1]}]
    source = save(tmp_path, rows, fields(), suffix=".jp2")
    convert(source, tmp_path / "new", "yolo")
    dataset = open_dataset(tmp_path / "new", "train")
    assert dataset.path(0).suffix == ".jp2"
    assert dataset.image(0).equal(open_dataset(source, "train").image(0))


def test_the_address_for_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert absolute_source("hf:a@b,boxes=xyxy") == f"hf:{tmp_path}/a@b,boxes=xyxy"
    assert absolute_source("hf:owner/x@1.0,boxes=xyxy") == "hf:owner/x@1.0,boxes=xyxy"


RLE = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
MASK_FORMS = {
    "polygons": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
    "one polygon each": datasets.List(datasets.List(datasets.Value("float64"))),
    "RLE": datasets.List(RLE),
    "images": datasets.List(datasets.Image()),
}


@pytest.mark.parametrize("form", MASK_FORMS)
def test_masks_of_rows(tmp_path, form):
    """Rectangles of whole pixels: the same in every form."""
    objects, expected = [], []
    for x1, y1, x2, y2 in CORNERS:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y1:y2, x1:x2] = True
        expected.append(mask)
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
        (counts,) = encode(torch.from_numpy(mask)[None])
        values = {
            "polygons": [polygon],
            "one polygon each": polygon,
            "RLE": {"size": [HEIGHT, WIDTH], "counts": counts.decode()},
            "images": Image.fromarray(mask),
        }
        row = {"bbox": [[x1, y1, x2 - x1, y2 - y1]], "category": [1]}
        objects.append(row | {"segmentation": [values[form]]})
    source = save(tmp_path, objects, fields() | {"segmentation": MASK_FORMS[form]})
    dataset = open_dataset(source, "train", masks=True)
    for index, mask in enumerate(expected):
        np.testing.assert_array_equal(dataset.target(index)["masks"][0].numpy(), mask)
    assert "masks" not in open_dataset(source, "val").target(0)
    convert(source, tmp_path / "coco", "coco")
    again = open_dataset(tmp_path / "coco", "train", masks=True)
    assert sorted(again.target(i)["masks"].sum().item() for i in range(4)) == sorted(
        int(mask.sum()) for mask in expected
    )


@pytest.mark.parametrize("mode", ["PNG", "JPEG", "opaque"])
def test_masks_as_images_of_any_kind_are_the_same(mode):
    """Losses leave specks around an object, and a band of opacity is no object."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:43] = 255
    image = Image.fromarray(mask)
    if mode == "opaque":
        image = image.convert("RGBA")
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "JPEG" else "PNG")
    rle = BoxForm().segmentation(Image.open(file), (60, 40))
    assert pycocotools.mask.toBbox(rle).tolist() == [20, 10, 23, 20]
    assert pycocotools.mask.area(rle) == 20 * 23


@pytest.mark.parametrize(
    ("label", "value", "quoted"), [(LABEL, -1, "-1"), (datasets.List(LABEL), [0], "[0]")]
)
def test_a_class_that_is_none_is_quoted(tmp_path, label, value, quoted):
    source = save(tmp_path, [{"bbox": [[5, 4, 30, 22]], "category": [value]}], fields(label))
    refused_text = f"no category has its category_id {re.escape(quoted)};"
    with pytest.raises(InputError, match=refused_text):
        open_dataset(source, "train")


def test_rows_with_boxes_only_have_no_masks(tmp_path):
    source = save(tmp_path, [{"bbox": [[5, 4, 30, 22]], "category": [1]}], fields())
    with pytest.raises(InputError, match="has only boxes, no masks"):
        open_dataset(source, "train", masks=True)


def with_test_split(source: str, objects: list[Any], root: Path) -> str:
    """The address of the data set with a test split: the first images of train, with these
    objects."""
    splits = datasets.load_from_disk(source.removeprefix("hf:"))
    train = splits["train"]
    images = [train[index]["image"] for index in range(len(objects))]
    rows = {"image": images, "objects": objects}
    splits["test"] = datasets.Dataset.from_dict(rows, features=train.features)
    splits.save_to_disk(str(root / "with-test"))
    return f"hf:{root}/with-test"


def test_a_test_split_with_boxes_only_is_a_warning(tmp_path):
    x1, y1, x2, y2 = CORNERS[0]
    row = {"bbox": [[x1, y1, x2 - x1, y2 - y1]], "category": [1]}
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    features = fields() | {"segmentation": MASK_FORMS["polygons"]}
    source = save(tmp_path, [row | {"segmentation": [[polygon]]}], features)
    source = with_test_split(source, [row | {"segmentation": [[]]}], tmp_path)
    report = check(f"{source},boxes=xywh", masks=True)
    (fault,) = [fault for fault in report.faults if fault.code == "mask-missing"]
    assert (fault.severity, fault.where) == ("warning", "the test split")
    assert not report.errors
    assert report.figures()["test"]["masks"] == 0
