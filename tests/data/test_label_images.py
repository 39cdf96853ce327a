"""Label images, such as those of Cellpose, StarDist and COCO's panoptic PNGs, become boxes."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.formats.label_images import CLASS_NAME
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.errors import InputError

# The object 7 is in two parts; 300 needs more than 8 bits.
LABELS = np.zeros((40, 60), np.int32)
LABELS[2:10, 3:20] = 7
LABELS[12:14, 5:8] = 7
LABELS[20:40, 50:60] = 300


def save(root: Path, labels: np.ndarray, images: str, masks: str, name: str = "a.png") -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (*labels.shape[:2], 3), dtype=np.uint8)
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(root / images / name)
    Image.fromarray(labels).save(root / masks / name)
    return root


PLACES = {
    "side by side": ("images", "masks"),
    "splits inside": ("images/train", "masks/train"),
    "splits outside": ("train/images", "train/masks"),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("depth", ["16-bit PNG", "32-bit TIFF", "colours"])
def test_boxes_by_hand(tmp_path, places, depth):
    labels = LABELS.astype(np.uint16)
    name = "a.png"
    if depth == "32-bit TIFF":
        labels = LABELS
        name = "a.tif"
    elif depth == "colours":
        labels = np.stack([LABELS % 256, LABELS // 256, 0 * LABELS], 2).astype(np.uint8)
    root = save(tmp_path, labels, *places, name)
    assert splits_of(root) == ["train"]
    annotations = read_annotations(root, "train")
    annotations.require_sound()
    assert annotations.boxes.tolist() == [[3, 2, 20, 14], [50, 20, 60, 40]]
    assert annotations.area.tolist() == [8 * 17 + 2 * 3, 20 * 10]
    assert annotations.class_names == (CLASS_NAME,)
    dataset = open_dataset(root, "train")
    assert dataset.image(0).shape == (3, 40, 60)
    assert dataset.target(0)["labels"].tolist() == [0, 0]


def test_label_images_have_the_name_of_their_image(tmp_path):
    """With an ending of its own, and `_mask` or `_masks` before it."""
    for name, suffix in {"a": ".png", "b": "_mask.png", "c": "_masks.tif"}.items():
        save(tmp_path, LABELS.astype(np.uint16), "images/train", "masks/train", f"{name}.tif")
        label_file = tmp_path / "masks/train" / f"{name}.tif"
        Image.open(label_file).save(tmp_path / "masks/train" / f"{name}{suffix}")
        if suffix != ".tif":
            label_file.unlink()
    save(tmp_path, 0 * LABELS, "images/val", "masks/val", "empty.tif")
    assert read_annotations(tmp_path, "train").object_counts().tolist() == [2, 2, 2]
    val = read_annotations(tmp_path, "val")
    assert (len(val), len(val.boxes)) == (1, 0)


def test_check_finds_nothing_that_is_passed_over(tmp_path, capsys):
    for split in ("train", "val"):
        for number in range(2):
            labels = np.roll(LABELS, number + (split == "val") * 2, 0)
            save(tmp_path, labels, f"images/{split}", f"masks/{split}", f"{number}{split}.tif")
    main(["check", str(tmp_path)])
    output = capsys.readouterr().out
    assert "ready to train" in output
    assert "folder-unused" not in output and "passed-over" not in output


def faults_of(root: Path) -> dict[str, str]:
    return {fault.code: fault.severity for fault in read_annotations(root, "train").faults}


def test_label_images_without_objects_of_their_own_are_refused(tmp_path):
    """A semantic mask says where objects are, not which pixels are of one: its box would be around
    all of them."""
    semantic = 255 * (LABELS > 0).astype(np.uint8)
    save(tmp_path / "all", semantic, "images", "masks")
    assert faults_of(tmp_path / "all") == {"label-image-semantic": "error"}
    single = np.zeros_like(semantic)
    single[4:9, 5:30] = 255
    for number in range(3):
        save(tmp_path / "few", single, "images", "masks", f"{number}.png")
    assert faults_of(tmp_path / "few") == {}
    save(tmp_path / "few", semantic, "images", "masks", "9.png")
    assert faults_of(tmp_path / "few") == {"label-image-semantic": "warning"}


def blobs(shift: int = 0) -> np.ndarray:
    """Three numbers, each in three blobs of 4x4 px."""
    labels = np.zeros((40, 60), np.uint8)
    for number in (1, 2, 3):
        for column in (0, 20, 40):
            start = column + shift
            labels[10 * number : 10 * number + 4, start : start + 4] = number
    return labels


def test_numbers_that_are_classes_are_refused(tmp_path):
    """The box of a class would be around all of its objects."""
    for number in range(3):
        save(tmp_path, blobs(number), "images", "masks", f"{number}.png")
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.code, fault.severity, fault.count) == ("label-image-semantic", "error", 3)
    assert "has 3 of its 3 numbers in parts that do not touch (3 in 3 parts)" in fault.text
    assert "give each object its own number" in fault.remedy


@pytest.mark.parametrize(
    ("num_in_parts", "expected"),
    [(2, {}), (3, {"label-image-semantic": "warning"}), (5, {"label-image-semantic": "error"})],
)
def test_objects_in_parts_are_accepted_unless_most_are(tmp_path, num_in_parts, expected):
    """Something in front of an object may divide it."""
    labels = np.zeros((40, 60), np.uint8)
    for number in range(1, 9):
        top = 5 * number - 5
        labels[top : top + 4, 10:40] = number
        if number <= num_in_parts:
            labels[:, 20:25][labels[:, 20:25] == number] = 0
    save(tmp_path, labels, "images", "masks")
    assert faults_of(tmp_path) == expected


def test_stray_pixels_are_not_parts(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    for number in range(1, 5):
        start = 10 * number
        labels[10:18, start : start + 8] = number
        labels[30:32, start : start + 2] = number  # 4 of 64 px
    save(tmp_path, labels, "images", "masks")
    assert faults_of(tmp_path) == {}


def test_many_numbers_are_not_classes(tmp_path):
    """Whatever divides the objects, as resizing does with thin ones."""
    labels = np.zeros((40, 600), np.uint16)
    labels[::20, ::2] = np.arange(1, 301)
    labels[10::20, ::2] = np.arange(1, 301)
    save(tmp_path, labels, "images", "masks")
    assert faults_of(tmp_path) == {"label-image-semantic": "warning"}


BALL = (np.hypot(*np.mgrid[-20:20, -30:30]) < 15).astype(np.uint8)


def as_jpeg(file: Path) -> None:
    Image.fromarray(200 * BALL).save(file.with_suffix(".jpg"))


def as_webp(file: Path) -> None:
    Image.fromarray(200 * BALL).convert("RGB").save(file.with_suffix(".webp"), quality=70)


def as_pages(file: Path) -> None:
    pages = [Image.fromarray(np.roll(BALL, shift, 1)) for shift in (0, 9)]
    pages[0].save(file.with_suffix(".tif"), save_all=True, append_images=pages[1:])


def as_glass(file: Path) -> None:
    ball = Image.fromarray(BALL).convert("RGBA")
    ball.putalpha(Image.fromarray(255 * BALL))
    ball.save(file)


def resized(file: Path) -> None:
    small = Image.fromarray(200 * BALL).resize((30, 20), Image.Resampling.NEAREST)
    small.resize((60, 40), Image.Resampling.BILINEAR).save(file)


REFUSED = {
    "JPEG": (as_jpeg, "label-image-invalid", "in lossy JPEG"),
    "WebP": (as_webp, "label-image-invalid", "in lossy WEBP"),
    "pages": (as_pages, "label-image-invalid", "holds 2 images"),
    "transparent": (as_glass, "label-image-invalid", "transparent pixels"),
    "resized smoothly": (resized, "label-image-smooth", "are only steps between two others"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_label_images_that_lost_their_numbers_are_refused(tmp_path, name):
    """Each of them would be read as dozens of objects along edges, or without most of its own."""
    write, code, words = REFUSED[name]
    root = save(tmp_path, BALL, "images", "masks")
    file = root / "masks/a.png"
    file.unlink()
    write(file)
    (fault,) = read_annotations(root, "train").faults
    assert (fault.code, fault.severity) == (code, "error")
    assert words in fault.text


def test_label_images_without_losses_in_any_mode(tmp_path):
    modes = {"RGBA": ".png", "LA": ".png", "P": ".png", "RGB": ".webp", "1": ".png"}
    for number, (mode, suffix) in enumerate(modes.items()):
        save(tmp_path, BALL, "images", "masks", f"{number}.png")
        (tmp_path / f"masks/{number}.png").unlink()
        ball = Image.fromarray(255 * BALL if mode == "1" else BALL).convert(mode)
        ball.save(tmp_path / f"masks/{number}{suffix}", lossless=True)
    annotations = read_annotations(tmp_path, "train")
    assert annotations.faults == []
    assert annotations.object_counts().tolist() == [1] * len(modes)


def test_objects_that_touch_or_have_two_pixels_are_no_steps(tmp_path):
    tiles = np.arange(1, 301, dtype=np.int32).reshape(15, 20).repeat(3, 0).repeat(3, 1)
    save(tmp_path, tiles, "images", "masks", "a.tif")
    spots = np.zeros((40, 60), np.int32)
    spots[::4, ::4] = np.arange(1, 151).reshape(10, 15)
    spots[::4, 1::4] = spots[::4, ::4]
    save(tmp_path, spots, "images", "masks", "b.tif")
    annotations = read_annotations(tmp_path, "train")
    assert [fault.code for fault in annotations.faults] == []
    assert annotations.object_counts().tolist() == [300, 150]


def test_faults_name_the_file(tmp_path):
    root = save(tmp_path, LABELS, "images", "masks", "a.tif")
    save(root, LABELS, "images", "masks", "b.tif")
    save(root, LABELS, "images", "masks", "c.tif")
    (root / "masks/a.tif").rename(root / "masks/z.tif")
    Image.fromarray(LABELS[:20]).save(root / "masks/b.tif")
    Image.fromarray(LABELS.astype(np.float32) + 0.5).save(root / "masks/c.tif")
    said = {fault.code: str(fault) for fault in read_annotations(root, "train").faults}
    assert re.search(r"masks: has no label image for a\.tif; add it", said["annotation-missing"])
    assert "masks/b.tif: is 60x20 px, its image b.tif 60x40 px" in said["mask-size"]
    assert re.search(r"masks/c\.tif: .*whole numbers from 0", said["label-image-invalid"])
    assert "masks/z.tif: has no image" in said["label-unclaimed"]
    with pytest.raises(InputError, match=r"; 2 more kinds of faults"):
        open_dataset(root, "train")


def test_an_image_with_two_label_images_is_an_error(tmp_path):
    labels = LABELS.astype(np.uint16)
    root = save(tmp_path, labels, "images", "masks")
    for name in ("a.tif", "a_mask.png"):
        Image.fromarray(labels).save(root / "masks" / name)
    (fault,) = read_annotations(root, "train").faults
    assert (fault.severity, fault.code, fault.count) == ("error", "image-twice", 2)
    assert str(fault).startswith(
        f"{root}/masks/a.tif: a.png is a label image of the same image; keep one of them"
    )


def test_images_that_share_a_label_image(tmp_path):
    root = save(tmp_path, LABELS.astype(np.uint16), "images", "masks")
    with Image.open(root / "images/a.png") as image:
        image.save(root / "images/a.tif")
    (fault,) = read_annotations(root, "train").faults
    assert (fault.severity, fault.code) == ("warning", "annotation-shared")
    assert fault.text == "a.png and a.tif share this file: both have its objects"


def test_a_label_image_is_read_as_stored(tmp_path):
    """Pillow would turn it by its tag, as it does its image."""
    root = save(tmp_path, LABELS, "images", "masks", "a.tif")
    expected = read_annotations(root, "train").boxes
    for name in ("images/a.tif", "masks/a.tif"):
        with Image.open(root / name) as image:
            image.load()
            image.save(root / name, tiffinfo={274: 6})
    annotations = read_annotations(root, "train")
    assert annotations.faults == []
    assert annotations.boxes.tolist() == expected.tolist()


def test_conversion(tmp_path):
    save(tmp_path / "source", LABELS.astype(np.uint16), "images", "masks")
    convert(tmp_path / "source", tmp_path / "yolo", "yolo")
    lines = (tmp_path / "yolo/labels/train/a.txt").read_text().splitlines()
    assert len(lines) == 2
    annotations = read_annotations(tmp_path / "yolo", "train")
    assert annotations.boxes.round(3).tolist() == [[3, 2, 20, 14], [50, 20, 60, 40]]
