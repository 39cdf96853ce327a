"""Round and rotated shapes that cross the border of the image: the part inside is used."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_exports import datumaro, via
from test_tools import HEIGHT, WIDTH, coco, image, labelme, text, voc

from redetr.data import open_dataset
from redetr.data.crossing import _clipped_polygon
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.errors import InputError

Write = Callable[[Path], Any]


def file(name: str, content: Any) -> Write:
    def write(root: Path) -> None:
        image(root, "a.jpg")
        text(root, name, content)

    return write


def cvat(shape: str) -> Write:
    labels = "<labels><label><name>cat</name></label></labels>"
    picture = f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shape}</image>'
    meta = f"<meta><task>{labels}</task></meta>"
    return file("annotations.xml", f"<annotations>{meta}{picture}</annotations>")


def at_border(center_x: float) -> dict[str, Write]:
    """Shapes around the point (`center_x`, 30) that span 24 px in x and 16 in y, except circles, in
    an image of 96x64 px."""
    x = center_x
    turned = {"cx": x, "cy": 30, "w": 16, "h": 24, "angle": math.pi / 2}
    robndbox = "".join(f"<{key}>{value}</{key}>" for key, value in turned.items())
    corners = [[x - 12, 30], [x, 22], [x + 12, 30], [x, 38]]
    box = f'xtl="{x - 8}" ytl="18" xbr="{x + 8}" ybr="42" rotation="90"'
    ellipse = {"name": "ellipse", "cx": x, "cy": 30, "rx": 12, "ry": 8}
    circle = {"name": "circle", "cx": x, "cy": 30, "r": 12}
    rotation = {"rotation": 90.0}
    of_labelme = partial(labelme, points=corners)
    return {
        "LabelMe, circle": labelme(points=[[x, 30], [x + 12, 30]], shape_type="circle"),
        "LabelMe, oriented": of_labelme(shape_type="oriented_rectangle"),
        "X-AnyLabeling, rotation": of_labelme(shape_type="rotation"),
        "VIA, circle": file("via.json", via(circle)),
        "VIA, ellipse": file("via.json", via(ellipse)),
        "CVAT, ellipse": cvat(f'<ellipse label="cat" cx="{x}" cy="30" rx="12" ry="8"/>'),
        "CVAT, rotated": cvat(f'<box label="cat" {box}/>'),
        "CVAT, COCO": coco(bbox=[x - 8, 18, 16, 24], attributes=rotation, area=16 * 24),
        "Datumaro, ellipse": file(
            "annotations/train.json", datumaro(type="ellipse", points=[x - 12, 22, x + 12, 38])
        ),
        "Datumaro, rotated": file(
            "annotations/train.json", datumaro(type="rotated_bbox", points=[x, 30, 16, 24, 90])
        ),
        "VOC, rotated": voc(f"<robndbox>{robndbox}</robndbox>"),
    }


SHAPES = list(at_border(0))
WITH_MASKS = [name for name in SHAPES if "circle" in name or "ellipse" in name or "Datu" in name]


CONTRADICTIONS = {"outline-differs", "area-differs", "mask-outside", "mask-thin", "mask-crossing"}


def span_of(name: str, center_x: float) -> list[float]:
    """The box around the shape, and inside the image."""
    radius_y = 12 if "circle" in name else 8
    span = [center_x - 12, 30 - radius_y, center_x + 12, 30 + radius_y]
    if name.startswith("VOC"):  # which counts pixels from 1
        span[0] -= 1
        span[1] -= 1
    return [max(0, span[0]), span[1], min(WIDTH, span[2]), span[3]]


@pytest.mark.parametrize("center_x", [5, WIDTH - 5], ids=["start", "end"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_part_inside_is_used_with_a_note(tmp_path, name, center_x):
    at_border(center_x)[name](tmp_path)
    dataset = open_dataset(tmp_path, "train")
    target = dataset.target(0)
    np.testing.assert_allclose(target["boxes"], [span_of(name, center_x)], atol=1e-4)
    width, height = target["boxes"][0, 2:] - target["boxes"][0, :2]
    np.testing.assert_allclose(target["area"], [width * height], rtol=1e-5)
    (note,) = [note for note in dataset.notes if "round or rotated" in note]
    start = center_x - 12.0 - name.startswith("VOC")
    assert f"spans [{start}, " in note
    assert "the part inside the image is used" in note
    for use in ("none", "check", "train"):
        faults = read_annotations(tmp_path, "train", use).faults
        severities = {fault.code: fault.severity for fault in faults}
        assert severities["shape-clipped"] == "note"
        assert set(severities.values()) <= {"note", "warning"}
        assert not severities.keys() & CONTRADICTIONS


@pytest.mark.parametrize("name", WITH_MASKS)
def test_its_mask_is_clipped(tmp_path, name):
    center_x = 5
    at_border(center_x)[name](tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", "train", masks=True)
    (mask,) = dataset.target(0)["masks"].numpy()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    radius_y = 12 if "circle" in name else 8
    if "rotated" in name:
        shape = (abs(x - center_x) < 12) & (abs(y - 30) < 8)
    else:
        shape = ((x - center_x) / 12) ** 2 + ((y - 30) / radius_y) ** 2 < 1
    assert mask.any()
    assert (mask != shape).sum() < 0.08 * shape.sum()  # the edge
    (polygon,) = dataset.annotations.masks.polygons(0)
    assert (polygon >= 0).all() and (polygon <= (WIDTH, HEIGHT)).all()
    convert(str(tmp_path / "data"), tmp_path / "yolo", "yolo")
    again = open_dataset(tmp_path / "yolo", "train", masks=True)
    assert (again.target(0)["masks"][0].numpy() != mask).sum() <= 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_centre_outside_is_an_error_that_quotes_the_box(tmp_path, name):
    """Not the one before its rotation, which is smaller."""
    at_border(WIDTH + 6)[name](tmp_path)
    with pytest.raises(InputError, match="leaves its image") as caught:
        open_dataset(tmp_path, "train")
    radius_y = 12 if "circle" in name else 8
    top, bottom = 30.0 - radius_y, 30.0 + radius_y
    xyxy = f"the box {[90.0, top, 114.0, bottom]} around it"
    xywh = f"bbox {[90.0, top, 24.0, bottom - top]}"
    assert xyxy in str(caught.value) or xywh in str(caught.value)


def test_a_slight_overshoot_needs_no_note(tmp_path):
    at_border(11)["VIA, circle"](tmp_path)
    dataset = open_dataset(tmp_path, "train", masks=True)
    assert dataset.target(0)["boxes"].tolist() == [[0, 18, 23, 42]]
    assert not any("round" in note for note in dataset.notes)


def test_other_shapes_that_cross_stay_errors(tmp_path):
    polygon = [[-7, 30], [5, 22], [17, 30], [5, 38]]
    labelme(points=polygon, shape_type="polygon")(tmp_path)
    with pytest.raises(InputError, match="leaves its image"):
        open_dataset(tmp_path, "train")


def test_a_box_beside_the_rotated_one_of_voc_may_be_clipped(tmp_path):
    """The two do not contradict each other."""
    write = at_border(5)["VOC, rotated"]
    write(tmp_path)
    scene = tmp_path / "train/a.xml"
    bndbox = "<bndbox><xmin>1</xmin><ymin>22</ymin><xmax>17</xmax><ymax>38</ymax></bndbox>"
    scene.write_text(scene.read_text().replace("<robndbox>", f"{bndbox}<robndbox>"))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.target(0)["boxes"].tolist() == [[0, 21, 17, 38]]
    assert not any("round" in note or "outline" in note for note in dataset.notes)


def test_parts_of_a_group_are_clipped_each(tmp_path):
    ellipse = '<ellipse label="cat" cx="5" cy="30" rx="12" ry="8" group_id="1"/>'
    polygon = '<polygon label="cat" points="40,20;50,20;50,40" group_id="1"/>'
    plain = '<polygon label="cat" points="60,20;70,20;70,40"/>'
    cvat(plain + ellipse + polygon + plain)(tmp_path)
    dataset = open_dataset(tmp_path, "train", masks=True)
    boxes = dataset.target(0)["boxes"].tolist()
    assert boxes == [[60, 20, 70, 40], [0, 20, 50, 40], [60, 20, 70, 40]]
    masks = dataset.annotations.masks
    assert [len(masks.polygons(i)) for i in range(3)] == [1, 2, 1]
    assert masks.polygons(1)[1].tolist() == [[40, 20], [50, 20], [50, 40]]
    assert masks.polygons(2)[0].tolist() == [[60, 20], [70, 20], [70, 40]]


def test_polygons_are_cut_at_the_border():
    """Also at a corner of the image, where moving the points to the border would add area."""
    diamond = np.array([[-4.0, 3], [3, -4], [10, 3], [3, 10]])
    part = _clipped_polygon(diamond, 20, 5)
    corners = np.unique(part.round(9), axis=0).tolist()
    assert corners == [[0, 0], [0, 5], [7, 0], [8, 5], [10, 3]]
    assert len(_clipped_polygon(diamond + 100, 20, 5)) == 0
    inside = np.array([[1.0, 1], [4, 1], [4, 4]])
    np.testing.assert_array_equal(_clipped_polygon(inside, 20, 5), inside)


def test_a_box_in_place_of_one_without_area_is_quoted(tmp_path):
    outline = [[80, 20, 120, 20, 120, 40]]
    coco(bbox=[80, 20, 0, 0], segmentation=outline)(tmp_path)
    says = (
        r"the box \[80.0, 20.0, 120.0, 40.0\] around its outline \(bbox \[80, 20, 0, 0\]\) leaves"
    )
    with pytest.raises(InputError, match=says):
        open_dataset(tmp_path, "train")
