"""Photographs that viewers rotate: labels in YOLO form are fractions of the rotated image, and boxes
are pixels of the stored one. What is shown is taken from Pillow, and what is under a box from the
pixels."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageOps
from test_coco import write as write_coco

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.doctor.check import check, essential_faults
from redetr.errors import InputError

WIDTH, HEIGHT = 60, 40
ORIENTATIONS = range(1, 9)
# An L, which no rotation or mirror image equals, on pixel borders.
CORNERS = [(7, 5), (31, 5), (31, 11), (15, 11), (15, 27), (7, 27)]
BOX = [7, 5, 31, 27]


def stored_image() -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    draw.rectangle((7, 5, 30, 10), "white")
    draw.rectangle((7, 5, 14, 26), "white")
    return image


def save(path: Path, orientation: int) -> np.ndarray:
    """Saves the image with the tag; returns it as viewers show it, `[H, W]`, True on the L."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    stored_image().save(path, exif=exif)
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image).convert("L")
    return np.array(shown) > 127


def box_around(pixels: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(pixels)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def box_line(shown: np.ndarray) -> str:
    height, width = shown.shape
    x1, y1, x2, y2 = box_around(shown)
    return (
        f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
        f" {(x2 - x1) / width} {(y2 - y1) / height}"
    )


def outline_line(shown: np.ndarray) -> str:
    """The corners of the L, which are where one or three of four pixels are white."""
    height, width = shown.shape
    padded = np.pad(shown, 1).astype(int)
    sums = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    corners = [(x, y) for y, x in zip(*np.nonzero(sums % 2), strict=True)]
    ring = [corners.pop(0)]
    for axis in (1, 0) * 3:  # along a row, then along a column
        x, y = ring[-1]
        beside = [c for c in corners if c[axis] == (x, y)[axis]]
        if beside:
            nearest = min(beside, key=lambda c: abs(c[0] - x) + abs(c[1] - y))
            corners.remove(nearest)
            ring.append(nearest)
    assert len(ring) == 6
    return "0 " + " ".join(f"{x / width} {y / height}" for x, y in ring)


def write_yolo(root: Path, line_of, settings: dict | None = None, name: str = "data.yaml") -> Path:
    """An image of each orientation, in both splits."""
    for split in ("train", "val"):
        (root / "labels" / split).mkdir(parents=True)
        for orientation in ORIENTATIONS:
            shown = save(root / f"images/{split}/{orientation}.png", orientation)
            (root / f"labels/{split}/{orientation}.txt").write_text(line_of(shown) + "\n")
    if name == "data.yaml":
        config = {"train": "images/train", "val": "images/val", "names": ["ell"]}
        (root / name).write_text(yaml.safe_dump(config | (settings or {})))
    else:
        (root / name).write_text("ell\n")
    return root


def require_boxes_on_the_object(root: Path) -> None:
    dataset = open_dataset(root, "train")
    assert len(dataset) == 8
    for index in range(8):
        image, target = dataset.sample(index)
        assert target["size"] == (HEIGHT, WIDTH)
        assert target["boxes"].tolist() == [BOX], dataset.image_name(index)
        pixels = image.numpy()[0] > 127
        assert target["boxes"][0].tolist() == list(box_around(pixels))


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt"])
def test_boxes_lie_on_the_object_in_stored_pixels(tmp_path, name):
    require_boxes_on_the_object(write_yolo(tmp_path, box_line, name=name))


def test_outlines_and_their_masks_too(tmp_path):
    root = write_yolo(tmp_path, outline_line, {"task": "segment"})
    require_boxes_on_the_object(root)
    dataset = open_dataset(root, "train", masks=True)
    for index in range(8):
        image, target = dataset.sample(index)
        np.testing.assert_array_equal(target["masks"][0].numpy(), image.numpy()[0] > 127)


def test_rotated_boxes_too(tmp_path):
    def corners(shown: np.ndarray) -> str:
        height, width = shown.shape
        x1, y1, x2, y2 = box_around(shown)
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        return "0 " + " ".join(f"{x / width} {y / height}" for x, y in points)

    require_boxes_on_the_object(write_yolo(tmp_path, corners, {"task": "obb"}))


def test_boxes_with_key_points_too(tmp_path):
    def line(shown: np.ndarray) -> str:
        _, x, y, *_ = box_line(shown).split()
        return f"{box_line(shown)} {x} {y} 2"

    require_boxes_on_the_object(write_yolo(tmp_path, line, {"kpt_shape": [1, 3]}))


def test_a_negative_width_stays_one(tmp_path):
    root = write_yolo(tmp_path, box_line)
    (root / "labels/train/6.txt").write_text("0 .5 .5 -.1 .2\n")
    with pytest.raises(InputError, match="has zero or negative size"):
        open_dataset(root, "train")


def test_a_file_whose_header_cannot_be_read_is_reported_as_before(tmp_path):
    root = write_yolo(tmp_path, box_line)
    (root / "images/train/6.png").write_bytes(b"no image")
    codes = {fault.code for fault in read_annotations(root, "train").faults}
    assert codes == {"image-unreadable", "image-upright"}


def test_check_and_training_say_that_labels_are_read_upright(tmp_path):
    root = write_yolo(tmp_path, box_line)
    notes = [fault for fault in check(str(root)).faults if fault.code.startswith("image-")]
    of_tags = {(fault.severity, fault.code) for fault in notes if "EXIF" in fault.text}
    assert of_tags == {("note", "image-upright")}
    (note,) = (n for n in notes if n.code == "image-upright" and n.file.parent.name == "train")
    assert note.count == 7
    assert "orientation 2: its labels are read in the upright image" in str(note)
    train, val = (open_dataset(root, split) for split in ("train", "val"))
    assert any("are read in the upright image" in line for line in train.notes)
    codes = {fault.code for fault in essential_faults(train, val)}
    assert "image-orientation" not in codes


def coco(root: Path, orientations=ORIENTATIONS, turned: bool = False) -> Path:
    """COCO, whose boxes refer to stored pixels, unless sizes are those of the turned image."""
    width, height = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
    names = [f"{orientation}.png" for orientation in orientations]
    flat = [number for corner in CORNERS for number in corner]
    document = {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [7, 5, 24, 22],
                "area": 272,
                "iscrowd": 0,
                "segmentation": [flat],
            }
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "ell"}],
    }
    write_coco(root, document)
    for orientation, name in zip(orientations, names, strict=True):
        save(root / "train" / name, orientation)
    return root


def test_yolo_is_written_in_fractions_of_the_shown_image_and_read_back_exactly(tmp_path):
    source = coco(tmp_path / "source")
    notes = convert(source, tmp_path / "yolo", "yolo")
    (note,) = (line for line in notes if "EXIF" in line)
    assert "7 images keep EXIF tags" in note
    assert "labels are fractions of the rotated image" in note
    for orientation in ORIENTATIONS:
        with Image.open(tmp_path / f"yolo/images/train/{orientation}.png") as image:
            shown = np.array(ImageOps.exif_transpose(image).convert("L")) > 127
        height, width = shown.shape
        text = (tmp_path / f"yolo/labels/train/{orientation}.txt").read_text()
        points = np.array(text.split()[1:], float).reshape(-1, 2) * (width, height)
        drawn = Image.new("L", (width, height))
        corners = [tuple(point - 0.5) for point in points]  # centres of pixels
        ImageDraw.Draw(drawn).polygon(corners, 255)
        assert (np.array(drawn) > 127)[shown].mean() > 0.8
        assert [*points.min(0), *points.max(0)] == pytest.approx(box_around(shown))
    convert(tmp_path / "yolo", tmp_path / "coco", "coco")
    before = read_annotations(source, "train", "check")
    after = read_annotations(tmp_path / "coco", "train", "check")
    np.testing.assert_array_equal(before.boxes, after.boxes)
    for index in range(8):
        for first, second in zip(
            before.masks.polygons(index), after.masks.polygons(index), strict=True
        ):
            np.testing.assert_array_equal(first, second)


def test_boxes_without_outlines_are_written_so_too(tmp_path):
    """VOC has no masks, so the lines hold boxes."""
    convert(coco(tmp_path / "source"), tmp_path / "voc", "voc")
    convert(tmp_path / "voc", tmp_path / "yolo", "yolo")
    for orientation in ORIENTATIONS:
        with Image.open(tmp_path / f"yolo/images/train/{orientation}.png") as image:
            shown = np.array(ImageOps.exif_transpose(image).convert("L")) > 127
        words = (tmp_path / f"yolo/labels/train/{orientation}.txt").read_text().split()
        assert [float(word) for word in words] == pytest.approx(
            [float(word) for word in box_line(shown).split()]
        )


@pytest.mark.parametrize("form", ["coco", "voc"])
@pytest.mark.parametrize("source_form", ["coco", "yolo"])
def test_tags_that_are_copied_with_boxes_of_stored_pixels_are_reported(tmp_path, form, source_form):
    source = tmp_path / "source"
    if source_form == "coco":
        coco(source)
    else:
        write_yolo(source, box_line)
    notes = convert(source, tmp_path / "new", form)
    (note,) = (line for line in notes if "EXIF tags" in line)
    assert f"boxes in {form.upper()} are those of the stored pixels" in note


def test_nothing_is_said_of_images_without_a_tag(tmp_path):
    for form in ("coco", "yolo", "voc"):
        notes = convert(coco(tmp_path / f"of-{form}", [1]), tmp_path / form, form)
        assert not any("EXIF" in note for note in notes)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
@pytest.mark.parametrize(
    ("orientation", "remedy"),
    [(6, "annotated as its EXIF tag rotates it"), (1, "restore the file that was annotated")],
)
def test_a_file_of_another_size_than_annotated_is_not_converted(
    tmp_path, form, orientation, remedy
):
    source = coco(tmp_path / "source", [orientation], turned=True)
    with pytest.raises(InputError) as raised:
        convert(source, tmp_path / "new", form)
    said = str(raised.value)
    assert f"image 0 ('{orientation}.png'): is 60x40 px, but annotated as 40x60" in said
    assert remedy in said
    assert not (tmp_path / "new").exists()


def test_a_stored_data_set_is_judged_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("redetr.data.store.WORTH", 0)
    root = write_yolo(tmp_path / "data", box_line)
    train, val = (open_dataset(root, split) for split in ("train", "val"))
    assert train.annotations.stored is not None
    assert (train.annotations.is_upright, train.annotations.object_kind) == (True, "line")
    assert "image-orientation" not in {fault.code for fault in essential_faults(train, val)}
    require_boxes_on_the_object(root)
