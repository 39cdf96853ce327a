"""Names of classes that mean the same."""

import pytest

from redetr.class_names import canonical, other_spellings, same_classes
from redetr.weights.official import coco_class_names

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
AS_IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def test_every_class_of_pascal_voc_is_one_of_coco():
    coco = coco_class_names()
    matches = same_classes(VOC, coco)
    expected = [AS_IN_COCO.get(name, name) for name in VOC]
    assert [coco[matches[i]] for i in range(len(VOC))] == expected
    assert other_spellings(coco, coco) == ""
    assert other_spellings(VOC[:11], coco) == "aeroplane = airplane, diningtable = dining table"


def test_the_names_of_coco_are_canonical():
    names = set(coco_class_names())
    assert {canonical(name) for name in names} == names


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["Car", "traffic_light"], ["traffic light", "car"], {0: 1, 1: 0}),
        (["tv", "tvmonitor"], ["tv", "x"], {0: 0}),  # an equal name decides
        (["Car", "CAR"], ["car"], {}),  # which of them it is, nothing says
        (["car"], ["Car", "CAR"], {}),
        (["a", "a"], ["a"], {0: 0, 1: 0}),
        (["-1", "+1", "1 0"], ["1", "10"], {}),  # no word, and no gap between words
    ],
)
def test_matches(names, known, expected):
    assert same_classes(names, known) == expected


def test_a_long_list_is_cut():
    names = [f"Class {i}" for i in range(9)]
    listed = other_spellings(names, [name.lower() for name in names])
    assert listed.startswith("Class 0 = class 0, Class 1 = class 1, ")
    assert listed.endswith("Class 5 = class 5, and 3 more")
