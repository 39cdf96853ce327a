"""The same boxes written in the ways of other tools: each is read right, or something is said."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco import save_image

from redetr.data.annotations import Annotations
from redetr.data.contradictions import FORMATS, from_corners
from redetr.data.formats.hub_rows import Sample, box_form
from redetr.data.formats.layouts import read_annotations
from redetr.doctor.boxes import box_faults
from redetr.errors import InputError

WIDTH, HEIGHT = 96, 64
IMAGES = 8
Box = list[float]  # x1, y1, x2, y2 in pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The images of all examples."""
    root = tmp_path_factory.mktemp("traits")
    for form, below in (("coco", "train"), ("yolo", "images"), ("voc", "train"), ("labelme", "")):
        for number in range(IMAGES):
            save_image(root / form / below / f"{number}.png", number, size=(WIDTH, HEIGHT))
    (root / "coco/annotations").mkdir()
    (root / "yolo/labels").mkdir()
    return root


def some_boxes(random: Random) -> list[Box]:
    """One box an image, of whole pixels."""
    boxes = []
    for _ in range(IMAGES):
        width = random.randint(8, 60)
        height = random.randint(8, 40)
        x = random.randint(0, WIDTH - width)
        y = random.randint(0, HEIGHT - height)
        boxes.append([float(x), float(y), float(x + width), float(y + height)])
    return boxes


def rectangle(box: Box) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def runs(box: Box) -> dict[str, Any]:
    """The mask of a box, run by run down the columns."""
    x1, y1, x2, y2 = map(int, box)
    start = x1 * HEIGHT + y1
    rest = (WIDTH - x2) * HEIGHT + HEIGHT - y2
    counts = [start, *[y2 - y1, HEIGHT - y2 + y1] * (x2 - x1 - 1), y2 - y1, rest]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def write_coco(root: Path, boxes: list[Box], random: Random) -> None:
    box_format = random.choice(FORMATS)
    outline = random.choice(["polygon", "mask", "swapped mask", "none"])
    area = random.choice(["right", "zero", "none", "larger"])
    is_stated = outline in ("polygon", "mask") or (area == "right" and box_format == "xyxy")
    if not is_stated:
        box_format = "xywh"
    bbox = random.choice(["given", "given", "none", "empty"]) if outline != "none" else "given"
    rows = []
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = box
        row: dict[str, Any] = {"id": number, "image_id": number, "category_id": 1}
        row["bbox"] = from_corners(np.array([box]), box_format)[0].tolist()
        if bbox != "given":
            row["bbox"] = None if bbox == "none" else [0, 0, 0, 0]
        sides = (x2 - x1) * (y2 - y1)
        row["area"] = {"right": sides, "zero": 0, "none": None, "larger": 9 * sides}[area]
        row["segmentation"] = {"polygon": [rectangle(box)], "none": []}.get(outline, runs(box))
        if outline == "swapped mask":
            row["segmentation"]["size"] = [WIDTH, HEIGHT]
        rows.append(row)
    images = [
        {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(IMAGES)
    ]
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations/instances_train.json").write_text(json.dumps(document))


def yolo_line(box: Box, trait: str, random: Random) -> str:
    x1, y1, x2, y2 = box
    numbers = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
    numbers += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
    if trait in ("points", "seen points"):
        for _ in range(4):
            point = [random.uniform(x1, x2) / WIDTH, random.uniform(y1, y2) / HEIGHT]
            numbers += [*point, random.randint(0, 2)] if trait == "seen points" else point
    if trait == "outline":
        sides = [WIDTH, HEIGHT] * 4
        numbers = [value / side for value, side in zip(rectangle(box), sides, strict=True)]
    numbers += {"score": [0.5], "track": [0.5, random.randint(0, 2)]}.get(trait, [])
    words = ["0", *(f"{number:.6f}".rstrip("0").rstrip(".") for number in numbers)]
    return {"commas": ",", "tabs": "\t"}.get(trait, " ").join(words)


def write_yolo(root: Path, boxes: list[Box], random: Random) -> None:
    traits = ["plain", "points", "seen points", "outline", "score", "track", "commas", "tabs"]
    trait = random.choice(traits)
    shape = ""
    if random.random() < 0.5:
        shape = {"points": "kpt_shape: [4, 2]\n", "seen points": "kpt_shape: [4, 3]\n"}.get(
            trait, ""
        )
    start = random.choice(["", "\ufeff"])
    for number, box in enumerate(boxes):
        line = yolo_line(box, trait, random)
        (root / f"labels/{number}.txt").write_text(f"{start}{line}\r\n", encoding="utf-8")
    (root / "data.yaml").write_text(f"train: images\nnames: [cat]\n{shape}")


def write_voc(root: Path, boxes: list[Box], random: Random) -> None:
    trait = random.choice(["box", "polygon", "both", "turned", "xywh"])
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        last = [x2 - x1, y2 - y1] if trait == "xywh" else [x2, y2]
        sides = zip(("xmin", "ymin", "xmax", "ymax"), [x1 + 1, y1 + 1, *last], strict=True)
        bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        points = rectangle([x1 + 1, y1 + 1, x2, y2])
        pairs = zip(points[::2], points[1::2], strict=True)
        corners = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in pairs)
        middle = [("cx", (x1 + x2 + 1) / 2), ("cy", (y1 + y2 + 1) / 2), ("angle", 3.14159265)]
        turned = [*middle, ("w", x2 - x1 - 1), ("h", y2 - y1 - 1)]
        parts = ""
        if trait in ("box", "both", "xywh"):
            parts += f"<bndbox>{bndbox}</bndbox>"
        if trait in ("polygon", "both", "xywh"):
            parts += f"<polygon>{corners}</polygon>"
        if trait == "turned":
            words = "".join(f"<{name}>{value}</{name}>" for name, value in turned)
            parts += f"<robndbox>{words}</robndbox>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        scene = f"<annotation>{size}<object><name>cat</name>{parts}</object></annotation>"
        (root / f"train/{number}.xml").write_text(scene)


def write_labelme(root: Path, boxes: list[Box], random: Random) -> None:
    kind = random.choice(["rectangle", "polygon", "mask", "parts", "line", "cuboid"])
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = box
        points = [[x1, y1], [x2, y2]]
        if kind == "polygon":
            points.insert(1, [x2, y1])
        if kind == "mask":
            points[1] = [x2 - 1, y2 - 1]
        shapes = [{"label": "cat", "points": points, "shape_type": kind}]
        if kind == "parts":
            middle = [(x1 + x2) / 2, (y1 + y2) / 2]
            halves = ([points[0], middle], [middle, points[1]])
            shapes = [
                {"label": "cat", "points": half, "shape_type": "rectangle", "group_id": 0}
                for half in halves
            ]
        content = {"shapes": shapes, "imagePath": f"{number}.png"}
        (root / f"{number}.json").write_text(json.dumps(content))


WRITERS: dict[str, Callable[[Path, list[Box], Random], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
}


def require_right_or_told(folder: Path, form: str, seed: int) -> None:
    random = Random(seed)
    boxes = some_boxes(random)
    WRITERS[form](folder / form, boxes, random)
    try:
        a: Annotations = read_annotations(folder / form, "train")
        a.require_sound()
    except InputError as error:
        assert "\n" not in str(error)
        return
    # A note says what was taken for the box, and has to be right; a warning leaves it to the user.
    warnings = [fault for fault in a.faults + box_faults(a) if fault.severity == "warning"]
    if not any(fault.code != "area-differs" for fault in warnings):
        np.testing.assert_allclose(a.boxes, boxes, atol=0.02)
        np.testing.assert_allclose(a.area, (a.boxes[:, 2:] - a.boxes[:, :2]).prod(1), rtol=0.01)


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_traits_are_read_right_or_told(folder, form, seed):
    require_right_or_told(folder, form, seed)


@pytest.mark.slow
@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=10_000)
@given(seed=st.integers(0, 2**32))
def test_traits_are_always_read_right_or_told(folder, form, seed):
    require_right_or_told(folder, form, seed)


def require_form_or_refusal(seed: int) -> None:
    """Boxes of the rows of a hub data set: with areas or in large numbers, and never so few that
    centres make sense as corners."""
    random = np.random.default_rng(seed)
    count = int(random.integers(8, 60))
    sizes = random.integers(20, 2000, (count, 2)).astype(float)
    sides = random.uniform(0.05, 0.9, (count, 2)) * sizes
    starts = random.uniform(0, 1, (count, 2)) * (sizes - sides)
    boxes = np.concatenate([starts, starts + sides], axis=1)
    box_format = FORMATS[random.integers(3)]
    numbers = from_corners(boxes, box_format)
    fractions = bool(random.integers(2))
    if fractions:
        numbers = numbers / np.tile(sizes, 2)
    area = sides.prod(1)
    if count >= 30 and random.integers(2):
        area = np.full(count, -1.0)
    try:
        form = box_form("hf:x", Sample(numbers, sizes, area), "")
    except InputError as error:
        assert "boxes=" in str(error)
        return
    assert (form.box_format, form.fractions) == (box_format, fractions)
    x, y, width, height = form.pixels(numbers[0].tolist(), (int(sizes[0, 0]), int(sizes[0, 1])))
    np.testing.assert_allclose([x, y, x + width, y + height], boxes[0], atol=0.01)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_hub_boxes_are_read_right_or_refused(seed):
    require_form_or_refusal(seed)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(seed=st.integers(0, 2**32))
def test_hub_boxes_are_always_read_right_or_refused(seed):
    require_form_or_refusal(seed)
