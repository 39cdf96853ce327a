"""What annotation tools write, with the traits of each: read right, or refused in words that
help."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_coco import save_image

from redetr.data import open_dataset
from redetr.errors import InputError

WIDTH, HEIGHT = 96, 64
BOX = [24, 16, 60, 48]  # xyxy of the object in every image
XYWH = [24, 16, 36, 32]
FRACTIONS = "0.4375 0.5 0.375 0.5"  # cx cy w h


def text(root: Path, name: str, content: Any) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        content = yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content)
    file.write_text(content)


def image(root: Path, name: str) -> None:
    save_image(root / name, len(name), size=(WIDTH, HEIGHT))


def yolo(
    line: str, name: str = "data.yaml", train: str = "images/train", **settings: Any
) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        image(root, f"{train}/a.jpg")
        text(root, f"{train.replace('images', 'labels')}/a.txt", f"{line}\n")
        text(root, name, {"train": train, "val": train, "nc": 1, "names": ["cat"]} | settings)
        return root

    return write


def coco(
    name: str = "annotations/instances_train.json", folder: str = "train", **values: Any
) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        image(root, f"{folder}/a.jpg")
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": XYWH, "iscrowd": 0}
        document = {
            "info": {"description": ""},
            "licenses": [],
            "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
            "annotations": [row | values],
            "categories": [{"id": 1, "name": "cat", "supercategory": "none"}],
        }
        text(root, name, document)
        return root

    return write


def voc(inside: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        image(root, "train/a.jpg")
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        head = "<folder>train</folder><filename>a.jpg</filename><segmented>0</segmented>"
        thing = f"<object><name>cat</name><pose>Unspecified</pose>{inside}</object>"
        text(root, "train/a.xml", f"<annotation>{head}{size}{thing}</annotation>")
        return root

    return write


def labelme(**shape: Any) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        image(root, "a.jpg")
        drawn = {"label": "cat", "points": [[24, 16], [60, 48]], "shape_type": "rectangle"}
        content = {"version": "5.0", "flags": {}, "shapes": [drawn | shape], "imagePath": "a.jpg"}
        text(root, "a.json", content | {"imageHeight": HEIGHT, "imageWidth": WIDTH})
        return root

    return write


def supervisely(root: Path) -> Path:
    image(root, "ds/img/a.jpg")
    points = {"exterior": [[24, 16], [59, 47]], "interior": []}
    thing = {"classTitle": "cat", "geometryType": "rectangle", "points": points}
    size = {"height": HEIGHT, "width": WIDTH}
    text(root, "ds/ann/a.jpg.json", {"description": "", "size": size, "objects": [thing]})
    text(root, "meta.json", {"classes": [{"title": "cat", "shape": "rectangle"}]})
    return root


BNDBOX = "<bndbox><xmin>25</xmin><ymin>17</ymin><xmax>60</xmax><ymax>48</ymax></bndbox>"
RECTANGLE = [[24, 16, 60, 16, 60, 48, 24, 48]]
KEY_POINTS = "0.3 0.3 2 0.5 0.3 2 0.5 0.7 1 0 0 0"
TURNED = "0 0.25 0.5 0.4375 0.25 0.625 0.5 0.4375 0.75"
MASK = {"size": [64, 96], "counts": [24 * 64 + 16, *[32, 32] * 35, 32, 36 * 64 + 16]}


@dataclass(frozen=True)
class Tool:
    """What it writes, and what that gives: the box, or words of the refusal or of a note."""

    write: Callable[[Path], Path]
    says: str = ""
    box: list[int] | None = None
    file: str = ""  # given in place of the folder


TOOLS = {
    # The number of columns in YOLO labels
    "Roboflow, keypoints": Tool(
        yolo(f"0 {FRACTIONS} {KEY_POINTS}", kpt_shape=[4, 3]), "has keypoints", BOX
    ),
    "CVAT, keypoints of many": Tool(
        yolo(f"0 {FRACTIONS} {'0.4 0.5 2 ' * 17}", kpt_shape=[17, 3]), "has keypoints", BOX
    ),
    "keypoints without a shape": Tool(
        yolo(f"0 {FRACTIONS} {KEY_POINTS}"), "write kpt_shape: [4, 3]"
    ),
    "17 keypoints without a shape": Tool(
        yolo(f"0 {FRACTIONS} {'0.4 0.5 2 ' * 17}"), "write kpt_shape: [17, 3] into data.yaml"
    ),
    "a shape in words": Tool(
        yolo(f"0 {FRACTIONS} {KEY_POINTS}", kpt_shape="4 x 3"), "kpt_shape '4 x 3' is not"
    ),
    "CVAT, oriented boxes": Tool(yolo(TURNED), "is an outline", BOX),
    "DOTA": Tool(yolo("24 16 60 16 60 48 24 48 cat 0"), "it is a line in DOTA format"),
    "FiftyOne, with confidence": Tool(yolo(f"0 {FRACTIONS} 0.93"), "may be a score, a track id"),
    "Ultralytics, tracks": Tool(yolo(f"0 {FRACTIONS} 0.93 1"), "a score and a track id?"),
    "Ultralytics, masks with confidence": Tool(
        yolo("0 .25 .25 .6 .25 .6 .7 .3 .7 .2 .5 0.93"), "score or a track id at the end"
    ),
    "angles": Tool(yolo(f"0 {FRACTIONS} 1.57"), "a track id or an angle"),
    # Parts that contradict each other, or stand for each other
    "a polygon beside a box without area": Tool(
        coco(segmentation=RECTANGLE, bbox=[0, 0, 0, 0], area=0, isbbox=False),
        "but its bbox has no area; its bounding box is used",
        BOX,
    ),
    "a flat outline": Tool(coco(segmentation=RECTANGLE[0]), "", BOX),
    "an area of another unit": Tool(coco(area=9_000_000), "cannot be that of bbox", BOX),
    "a mask beside its box": Tool(coco(segmentation=MASK, area=1152, bbox=XYWH), "", BOX),
    "a mask turned by a quarter": Tool(
        coco(segmentation=MASK | {"size": [96, 64]}), "its mask is 64x96 px, its image", BOX
    ),
    "corners beside an area": Tool(
        coco(bbox=[10, 10, 40, 30], area=600), "as xyxy; write xywh"
    ),
    "corners beside an outline": Tool(
        coco(bbox=BOX, segmentation=RECTANGLE), "fits its outline or area only as xyxy"
    ),
    "CVAT, default split": Tool(
        coco("annotations/instances_default.json", "images/default", attributes={"rotation": 0.0}),
        "",
        BOX,
    ),
    "CVAT, turned rectangle": Tool(
        coco(attributes={"rotation": 180.0}, segmentation=[]), "", BOX
    ),
    "RectLabel, polygon": Tool(
        voc(BNDBOX + "<polygon><x1>25</x1><y1>17</y1><x2>60</x2><y2>17</y2><x3>60</x3><y3>48</y3>"
            "</polygon>"), "", BOX),
    "a polygon of a larger image": Tool(
        voc(BNDBOX + "<polygon><x1>50</x1><y1>34</y1><x2>120</x2><y2>34</y2><x3>120</x3><y3>96</y3>"
            "</polygon>"), "is not the box around its outline", BOX),
    "roLabelImg": Tool(
        voc("<robndbox><cx>42.5</cx><cy>32.5</cy><w>31</w><h>35</h><angle>1.570796</angle>"
            "</robndbox>"), "has an outline but no bndbox", BOX),
    "width and height in VOC": Tool(
        voc("<bndbox><xmin>60</xmin><ymin>40</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"),
        "if it is xywh, write its corners",
    ),
    # LabelMe and what resembles it
    "LabelMe, rectangle": Tool(labelme(), "", BOX),
    "LabelMe 3, without a kind": Tool(
        labelme(points=[[24, 16], [60, 16], [60, 48]], shape_type=None), "", BOX
    ),
    "X-AnyLabeling, turned": Tool(
        labelme(points=[[42, 16], [60, 32], [42, 48], [24, 32]], shape_type="rotation"), "", BOX
    ),
    "X-AnyLabeling, difficult": Tool(labelme(difficult=True), "", BOX),
    "LabelMe, a point": Tool(labelme(points=[[3, 4]], shape_type="point"), "contains an object"),
    # No format that is read
    "Supervisely": Tool(supervisely, "in an unsupported format (Supervisely); export in COCO"),
    "FiftyOne": Tool(yolo(f"0 {FRACTIONS}", "dataset.yaml"), "", BOX),
    "another YAML": Tool(yolo(f"0 {FRACTIONS}", "mine.yaml"), "/mine.yaml itself"),
    "another YAML, given": Tool(yolo(f"0 {FRACTIONS}", "mine.yaml"), "", BOX, "mine.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
def test_it_is_read_or_refused(tmp_path, name):
    tool = TOOLS[name]
    root = tool.write(tmp_path) / tool.file
    if tool.box is None:
        with pytest.raises(InputError) as caught:
            open_dataset(root, "train")
        assert tool.says in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    dataset = open_dataset(root, "train")
    np.testing.assert_allclose(dataset.target(0)["boxes"], [tool.box], atol=1e-3)
    notes = " ".join(dataset.notes)
    assert tool.says in notes
    assert bool(notes) == bool(tool.says)
