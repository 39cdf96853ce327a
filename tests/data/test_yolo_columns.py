"""What a line of YOLO labels is: its columns alone do not decide it."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from test_coco import refused, save_image

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations
from redetr.doctor.check import check

CONFIG = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
SETTLE = "write task: segment into data.yaml if these are outlines"


def write(root: Path, lines: list[str], **settings: object) -> Path:
    """Images of 96x64 px, of which each has one of the lines."""
    for number, line in enumerate(lines):
        image = root / f"images/train/{number:03}.png"
        save_image(image, number, size=(96, 64))
        label = root / f"labels/train/{number:03}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(line.encode() if isinstance(line, str) else line)
    (root / "data.yaml").write_text(yaml.safe_dump(CONFIG | settings))
    return root


def codes(root: Path) -> set[str]:
    return {fault.code for fault in read_annotations(root, "train").faults}


def joined(numbers: np.ndarray) -> list[str]:
    """Lines of class 0 and these numbers."""
    return [" ".join(["0", *(f"{value:.4f}" for value in row)]) for row in numbers]


POSES = {
    "two points": ("0 0.5 0.5 0.2 0.4 0.45 0.40 0.55 0.60", [2, 2]),
    "one point": ("0 0.5 0.5 0.2 0.4 0.45 0.40", [1, 2]),
    "one seen point": ("0 0.5 0.5 0.2 0.4 0.45 0.40 2", [1, 3]),
    "four points": ("0 0.5 0.5 0.2 0.4 0.45 0.4 1 0.55 0.4 1 0.55 0.6 0 0.45 0.6 1", [4, 3]),
    "hidden points": ("0 0.5 0.5 0.2 0.4 0 0 0 0.55 0.4 2 0 0 0 0.45 0.6 1", [4, 3]),
    "scores of points": (
        "0 0.5 0.5 0.2 0.4 0.45 0.4 0.7 0.55 0.4 0.9 0.55 0.6 0.1 0.45 0.6 1",
        [4, 3],
    ),
    "five points": ("0 0.5 0.5 0.2 0.4 .5 .5 .45 .4 .55 .4 .45 .6 .55 .6", [5, 2]),
}


@pytest.mark.parametrize("name", POSES)
def test_key_points_are_no_outline(tmp_path, name):
    """The box is the same with the shape of the keypoints; without it, the line is refused."""
    line, shape = POSES[name]
    write(tmp_path, [line] * 3 + ["1 0.5 0.5 0.2 0.4"], kpt_shape=shape)
    dataset = open_dataset(tmp_path, "train")
    for number in range(4):
        np.testing.assert_allclose(dataset.target(number)["boxes"], [[38.4, 19.2, 57.6, 44.8]])
    assert dataset.notes == (
        f"{tmp_path}/labels/train/000.txt: line 1: has keypoints; its box is used (and 2 more "
        "like it)",
    )
    write(tmp_path, [line] * 3 + ["1 0.5 0.5 0.2 0.4"])
    refused(tmp_path, "labels/train/000.txt: line 1: ", f"kpt_shape: {shape} into data.yaml")


def test_a_yaml_file_may_say_that_they_are_outlines(tmp_path):
    line = POSES["two points"][0]
    write(tmp_path, [line] * 3)
    refused(
        tmp_path,
        "000.txt: line 1: has 9 columns, as nearly all long lines: an outline of 4 points, or a "
        "box with 2 keypoints?",
        SETTLE,
        "(and 2 more like it)",
    )
    for task in ("segment", "obb"):
        write(tmp_path, [line] * 3, task=task)
        assert codes(tmp_path) == {"outline"}
    write(tmp_path, [line] * 3, task="detect")
    assert codes(tmp_path) == {"line-ambiguous"}


@pytest.mark.parametrize(("points", "dims"), [(2, 2), (3, 2), (4, 2), (6, 3), (17, 2)])
def test_people_with_key_points_are_doubted(tmp_path, points, dims):
    random = np.random.default_rng(points)
    sides = random.uniform(0.05, 0.4, (12, 2))
    centers = random.uniform(sides / 2, 1 - sides / 2)
    offsets = random.uniform(-0.5, 0.5, (12, points, 2)) * sides[:, None]
    numbers = centers[:, None] + offsets
    if dims == 3:
        seen = random.integers(0, 3, (12, points, 1))
        numbers = np.concatenate([numbers, seen], axis=2)
    rows = np.concatenate([centers, sides, numbers.reshape(12, -1)], axis=1)
    write(tmp_path, joined(rows))
    expected = "line-ambiguous" if rows.shape[1] % 2 == 0 else "line-invalid"
    assert codes(tmp_path) == {expected}
    write(tmp_path, joined(rows), kpt_shape=[points, dims])
    assert codes(tmp_path) == {"key-points"}


def polygons(random: np.random.Generator, points: int, count: int = 12) -> np.ndarray:
    """Polygons of so many points, anywhere in the image, `[count, 2 * points]`."""
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, points)), axis=1)
    radii = random.uniform(0.02, 0.15, (count, 1)) * random.uniform(0.6, 1, (count, points))
    centers = random.uniform(0.16, 0.84, (count, 1, 2))
    circles = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    return (centers + radii[:, :, None] * circles).reshape(count, -1)


@pytest.mark.parametrize("points", [3, 4, 5, 6, 8, 13])
def test_outlines_of_the_same_number_of_points_are_sound(tmp_path, points):
    write(tmp_path, joined(polygons(np.random.default_rng(points), points)))
    assert codes(tmp_path) == {"outline"}


def test_outlines_of_different_numbers_of_points_are_sound(tmp_path):
    lines = []
    for points in (3, 4, 5, 6):
        lines += joined(polygons(np.random.default_rng(points), points, 2))
    write(tmp_path, lines)
    assert codes(tmp_path) == {"outline"}


@pytest.mark.parametrize("count", [1, 12])
def test_oriented_boxes_are_sound(tmp_path, count):
    """Worked by hand: corners at 24, 32, 48 and 40 px give [24, 16, 48, 48]."""
    random = np.random.default_rng(count)
    half = random.uniform(0.03, 0.1, (count, 2)) * [1, 0.5]
    turn = random.uniform(0, np.pi, count)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half[:, None]
    x = corners[:, :, 0] * np.cos(turn)[:, None] - corners[:, :, 1] * np.sin(turn)[:, None]
    y = corners[:, :, 0] * np.sin(turn)[:, None] + corners[:, :, 1] * np.cos(turn)[:, None]
    centers = random.uniform(0.2, 0.8, (count, 1, 2))
    rows = (centers + np.stack([x, y * 1.5], axis=2)).reshape(count, 8)
    write(tmp_path, ["0 0.25 0.5 0.375 0.25 0.5 0.5 0.375 0.75", *joined(rows)])
    assert codes(tmp_path) == {"outline"}
    target = open_dataset(tmp_path, "train").target(0)
    np.testing.assert_allclose(target["boxes"], [[24, 16, 48, 48]])


def test_boxes_of_a_tracker_are_no_triangles(tmp_path):
    lines = [f"0 0.5 0.5 0.25 0.25 0.8{number} {number + 1}" for number in range(4)]
    write(tmp_path, lines)
    refused(tmp_path, "000.txt: line 1: ", "a score and a track id?", "delete the last two columns")


def test_key_points_outside_of_their_boxes_are_told(tmp_path):
    """The corners of the box were written in place of centre and size."""
    write(tmp_path, ["0 0.4 0.3 0.6 0.7 0.05 0.40 0.95 0.60"] * 3, kpt_shape=[2, 2])
    report = check(str(tmp_path), val_fraction=0.5)
    assert "key-points-outside" in {fault.code for fault in report.faults}
    (fault,) = [
        fault
        for fault in read_annotations(tmp_path, "train").faults
        if fault.code == "key-points-outside"
    ]
    assert (fault.where, fault.severity) == ("line 1", "warning")
    assert fault.text == "its keypoints lie outside its box, as in 3 of 3 lines"


@pytest.mark.parametrize(
    ("shape", "line", "says"),
    [
        ([2, 2], POSES["four points"][0], "17 columns, and kpt_shape: [2, 2]"),
        ([2, 2], "0 0.5 0.5 0.2 0.4 0.45 0.40", "makes 9; correct the line or kpt_shape"),
        ([0, 2], "", "data.yaml: kpt_shape ['0', '2'] is not [keypoints, 2]"),
        ([2, 4], "", "is not [keypoints, 2] or [keypoints, 3]"),
        ([2], "", "kpt_shape ['2'] is not"),
        (17, "", "kpt_shape '17' is not"),
        ({"a": 1}, "", "kpt_shape {'a': '1'} is not"),
    ],
)
def test_a_shape_that_does_not_fit(tmp_path, shape, line, says):
    write(tmp_path, [line], kpt_shape=shape)
    refused(tmp_path, says)


ODD = {
    "score": ("0 0.5 0.5 0.25 0.25 0.87", "its sixth column, '0.87', may be a score"),
    "track id": ("0 0.5 0.5 0.25 0.25 17", "its sixth column, '17', may be a score, a track id"),
    "commas": ("0,0.5,0.5,0.25,0.25", "it holds commas; separate numbers with spaces"),
    "commas and spaces": ("0, 0.5, 0.5, 0.25, 0.25", "it holds commas"),
    "decimal commas": ("0 0,5 0,5 0,25 0,25", "write a decimal point"),
    "semicolons": ("0;0.5;0.5;0.25;0.25", "it holds semicolons"),
    "UTF-16": ("\ufeff0 0.5 0.5 0.25 0.25".encode("utf-16-le"), "it is not in UTF-8; save"),
    "name": ("dog 0.5 0.5 0.25 0.25", "begins with a name, 'dog'; write 1, the number"),
    "unknown name": ("cow 0.5 0.5 0.25 0.25", "begins with a name, 'cow'; write class cx"),
    "not a number": ("0 nan 0.5 0.25 0.25", "nan is not a finite fraction"),
    "text": ("0 x 0.5 0.25 0.25", "'x' is not a number"),
    "DOTA": ("10 10 40 10 40 30 10 30 dog 0", "a line in DOTA format"),
    "outline with a score": ("0 .1 .1 .2 .1 .2 .2 0.9 .1 0.5", "score or a track id at the end"),
}


@pytest.mark.parametrize("name", ODD)
def test_the_reason_is_named(tmp_path, name):
    line, says = ODD[name]
    write(tmp_path, [line])
    refused(tmp_path, "labels/train/000.txt: line 1: ", says)


@pytest.mark.parametrize("line", ["\ufeff0 0.5 0.5 0.25 0.25\n", "0\t0.5\t0.5\t0.25\t0.25\r\n\r\n"])
def test_byte_order_marks_and_tabs_are_read(tmp_path, line):
    write(tmp_path, [line])
    assert open_dataset(tmp_path, "train").target(0)["boxes"].tolist() == [[36, 24, 60, 40]]
