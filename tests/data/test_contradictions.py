"""Parts of one annotation that contradict each other: box, outline, area, mask and image."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.mask import encode
from test_coco import refused, save_image
from test_voc import write as write_voc

from redetr.data import open_dataset
from redetr.data.contradictions import FORMATS, from_corners, other_format, to_corners
from redetr.data.faults import Fault
from redetr.data.formats.layouts import read_annotations
from redetr.doctor.check import check

WIDTH, HEIGHT = 96, 64
# Corners of four objects, in the upper left of the image: as width and height, the last two numbers
# stay inside of it as well.
CORNERS = [(5, 4, 30, 22), (38, 20, 52, 40), (20, 24, 60, 36), (40, 6, 50, 46)]


def polygon(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def coco(root: Path, objects: list[dict[str, Any]]) -> Path:
    """An image for each of the objects."""
    images = []
    annotations = []
    for number, values in enumerate(objects, start=1):
        save_image(root / f"train/{number}.png", number, (WIDTH, HEIGHT))
        name = f"{number}.png"
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        row = {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 4, 30, 20]}
        annotations.append(row | values)
    categories = [{"id": 1, "name": "cat"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text(json.dumps(document))
    return root


def faults(root: Path) -> list[Fault]:
    return read_annotations(root, "train").faults


def only_fault(root: Path) -> Fault:
    (fault,) = faults(root)
    return fault


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [10, 10, 0, 20], [3, 3, 5, 0.0]])
def test_an_outline_stands_for_a_box_without_area(tmp_path, box):
    coco(tmp_path, [{"bbox": box, "segmentation": polygon(10, 10, 40, 30)}] * 3)
    dataset = open_dataset(tmp_path, "train")
    assert [dataset.target(i)["boxes"].tolist() for i in range(3)] == [[[10, 10, 40, 30]]] * 3
    assert "has a segmentation, but its bbox has no area; its bounding box" in dataset.notes[0]
    assert "(and 2 more" in dataset.notes[0]


def test_a_flat_outline_stands_for_nothing(tmp_path):
    coco(tmp_path, [{"bbox": [10, 10, 5, 0], "segmentation": polygon(10, 10, 40, 10)}])
    refused(tmp_path, "annotation 1: bbox [10, 10, 5, 0] has zero or negative size")


@pytest.mark.parametrize("area", [0, 1, 7000])
def test_areas_that_cannot_be(tmp_path, area):
    """Of 3000 px are medium objects, whatever the file says."""
    coco(tmp_path, [{"bbox": [5, 5, 60, 50], "area": area}] * 4)
    fault = only_fault(tmp_path)
    assert (fault.severity, fault.code, fault.count) == ("warning", "area-differs", 4)
    assert fault.text == f"area {area} cannot be that of bbox [5, 5, 60, 50] of 3000 px"
    assert open_dataset(tmp_path, "train").target(0)["area"].tolist() == [3000]


def test_areas_of_masks_are_sound(tmp_path):
    """They fill their boxes, or hardly any of one; a crowd is not judged."""
    thin = {"bbox": [5, 5, 60, 50], "area": 9, "segmentation": polygon(5, 5, 65, 55)}
    crowd = {"bbox": [5, 5, 60, 50], "area": 0, "iscrowd": 1}
    tiny = {"bbox": [5, 5, 2, 2], "area": 9}
    coco(tmp_path, [{"area": 600}, {"area": 450.5}] * 60 + [thin, crowd, tiny])
    assert faults(tmp_path) == []
    assert open_dataset(tmp_path, "train").annotations.area.min() == 0


def test_corners_given_as_width_and_height(tmp_path):
    """Outline and area of each object state it, although all boxes stay inside."""
    objects = []
    for x1, y1, x2, y2 in CORNERS * 3:
        area = (x2 - x1) * (y2 - y1)
        outline = polygon(x1, y1, x2, y2)
        objects.append({"bbox": [x1, y1, x2, y2], "area": area, "segmentation": outline})
    coco(tmp_path / "both", objects)
    line = "annotation 1: bbox [5, 4, 30, 22] fits its outline or area only as xyxy"
    message = refused(tmp_path / "both", line, "write xywh: boxes are xyxy", "(and 11 more")
    for dropped in ("area", "segmentation"):
        rest = [{key: row[key] for key in row if key != dropped} for row in objects]
        coco(tmp_path / dropped, rest)
        assert refused(tmp_path / dropped, line)[-40:] == message[-40:]
    report = check(str(tmp_path / "both"), val_fraction=0.5)
    assert {fault.code for fault in report.faults} >= {"format-xyxy"}
    assert len(report.splits["train"].boxes) > 0  # they can be looked at


def test_centres_given_as_corners(tmp_path):
    objects = []
    for x1, y1, x2, y2 in CORNERS:
        box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        objects.append({"bbox": box, "segmentation": polygon(x1, y1, x2, y2)})
    coco(tmp_path, objects)
    refused(tmp_path, "bbox [17.5, 13.0, 25, 18] fits its outline or area only as cxcywh")


@pytest.mark.parametrize("read_as", FORMATS)
@pytest.mark.parametrize("written_as", FORMATS)
def test_the_format_that_outlines_state(read_as, written_as):
    boxes = np.array(CORNERS, float)
    no_area = np.full(4, -1.0)
    read = to_corners(from_corners(boxes, written_as), read_as)
    other = other_format(read, boxes, no_area, read_as)
    if read_as == written_as:
        assert other is None
        return
    assert other is not None
    assert other[0] == written_as
    assert other[1].all()
    nothing = np.full_like(boxes, np.nan)
    assert other_format(read, nothing, no_area, read_as) is None


@pytest.mark.parametrize("count", [1, 20, 1_000, 50_000])
@pytest.mark.parametrize("read_as", FORMATS)
def test_areas_of_masks_state_no_format(read_as, count):
    """The area of a round object equals that of its box in another format by coincidence only,
    although no area is that of the box as it was read."""
    for seed in range(20):
        boxes = random_boxes(count, seed)
        no_outline = np.full_like(boxes, np.nan)
        round_areas = math.pi / 4 * box_areas(boxes)
        assert other_format(boxes, no_outline, round_areas, read_as) is None


@pytest.mark.parametrize("count", [1, 10, 1_000])
def test_areas_of_boxes_state_the_format(count):
    """Boxes that span their image fit both formats, and state nothing."""
    boxes = random_boxes(count, 0)
    whole = np.tile([0.0, 0, 640, 480], (2 * count, 1))
    areas = box_areas(np.concatenate([boxes, whole]))
    read = to_corners(np.concatenate([boxes, whole]), "xywh")
    other = other_format(read, np.full_like(read, np.nan), areas, "xywh")
    assert other is not None
    assert other[0] == "xyxy"
    assert other[1].tolist() == [True] * count + [False] * 2 * count


def random_boxes(count: int, seed: int) -> np.ndarray:
    """xyxy boxes of objects in images of 640x480 px."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(60, 300, (count, 2))
    starts = rng.uniform(1, [640, 480] - sides)
    return np.concatenate([starts, starts + sides], axis=1)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def test_round_objects_with_the_areas_of_their_masks(tmp_path):
    """As xyxy, one of them has the area that is stated, and none has it as xywh."""
    boxes = [[8, 4, 60, 40], *[[30, 20, 40, 36]] * 19]
    rows = []
    for box in boxes:
        rows.append({"bbox": box, "area": round(math.pi / 4 * box[2] * box[3], 1)})
    coco(tmp_path, rows)
    assert faults(tmp_path) == []


def test_a_box_and_an_outline_of_two_objects(tmp_path):
    """Some pixels of difference are usual, and an outline may be cut or hidden in part."""
    near = {"segmentation": polygon(7, 5, 33, 23)}
    far = {"segmentation": polygon(40, 30, 80, 60)}
    coco(tmp_path, [near, near, far, near])
    fault = only_fault(tmp_path)
    assert (fault.severity, fault.code, fault.where) == (
        "warning",
        "outline-differs",
        "annotation 3",
    )
    assert "bbox [5, 4, 30, 20] is not the box around its outline" in fault.text
    assert "[40.0, 30.0, 80.0, 60.0] as xyxy" in fault.text


def runs(height: int, width: int, x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    encoded = encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_a_mask_of_another_size(tmp_path):
    """An error where the box is of that size as well, else a warning."""
    half = runs(HEIGHT // 2, WIDTH // 2, 5, 4, 17, 12)
    coco(tmp_path / "taken", [{"bbox": None, "segmentation": half}])
    text = "annotation 1: its mask is 48x32 px, its image 1 96x64 px"
    refused(tmp_path / "taken", text)
    coco(tmp_path / "same", [{"bbox": [5, 4, 12, 8], "segmentation": half}])
    refused(tmp_path / "same", text, "export the annotations of this image again")
    coco(tmp_path / "scaled", [{"bbox": [10, 8, 24, 16], "segmentation": half}])
    found = {fault.code: fault.severity for fault in faults(tmp_path / "scaled")}
    assert found == {"mask-size": "warning", "outline-differs": "warning"}
    whole = runs(HEIGHT, WIDTH, 5, 4, 35, 24)
    coco(tmp_path / "sound", [{"segmentation": whole, "area": 600}])
    assert faults(tmp_path / "sound") == []


@pytest.mark.parametrize(
    "outline",
    [[], [[]], [[1, 2, 3]], [["a", "b", "c", "d", "e", "f"]], "x", 5, None, [None], [[[1, 2]]],
     {"size": [64, 96]}, {"size": 3, "counts": []}, {"size": ["a", 2]}, [{"x": 1}], [[1, None]]],
    ids=str,
)  # fmt: skip
def test_an_outline_that_is_none_beside_a_box(tmp_path, outline):
    coco(tmp_path, [{"segmentation": outline}])
    assert faults(tmp_path) == []


VOC = "<annotation><size><width>100</width><height>80</height></size>{}</annotation>"
BNDBOX = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>40</xmax><ymax>60</ymax></bndbox>"
ROBOFLOW = "<polygon><x1>11</x1><y1>21</y1><x2>40</x2><y2>21</y2><x3>40</x3><y3>60</y3></polygon>"
LABELME = "<polygon>{}</polygon>".format(
    "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((11, 21), (40, 21), (40, 60)))
)
TURNED = "<robndbox><cx>25.5</cx><cy>40.5</cy><w>39</w><h>29</h><angle>1.5707963</angle></robndbox>"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (BNDBOX + ROBOFLOW, ""),
        (BNDBOX + LABELME, ""),
        (ROBOFLOW, "outline"),
        (LABELME, "outline"),
        (TURNED, "outline"),
        (BNDBOX + ROBOFLOW.replace("40", "90"), "outline-differs"),
        (BNDBOX + ROBOFLOW.replace("<x2>40", "<x2>far"), ""),  # no outline
    ],
)
def test_outlines_of_voc(tmp_path, parts, code):
    write_voc(tmp_path)
    scene = VOC.format(f"<object><name>ant</name>{parts}</object>")
    (tmp_path / "Annotations/b.xml").write_text(scene)
    found = {fault.code for fault in faults(tmp_path)}
    assert found == ({code} if code else set())
    box = open_dataset(tmp_path, "train").target(1)["boxes"]
    np.testing.assert_allclose(box, [[10, 20, 40, 60]], atol=1e-4)


def test_width_and_height_in_voc_are_named(tmp_path):
    write_voc(tmp_path)
    swapped = BNDBOX.replace("<xmax>40", "<xmax>9")
    scene = VOC.format(f"<object><name>ant</name>{swapped}</object>")
    (tmp_path / "Annotations/b.xml").write_text(scene)
    refused(tmp_path, "has zero or negative size; correct or delete it; if it is xywh, write")
