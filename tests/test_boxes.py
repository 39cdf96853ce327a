"""Box formats, IoU and GIoU: by hand, by property, and against torchvision."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redetr.boxes import (
    at_least_float32,
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    coordinates,
    generalized_box_iou,
    intersection_areas,
    iou_and_giou,
)

INF = float("inf")

numbers = st.floats(-1000, 1000, width=32)
any_numbers = st.floats(allow_nan=False, width=32)


def boxes_of(coordinates: st.SearchStrategy, most: int = 5) -> st.SearchStrategy[Tensor]:
    """Boxes `[N, 4]` of any four numbers, inverted or not."""
    box = st.tuples(coordinates, coordinates, coordinates, coordinates)
    return st.lists(box, min_size=1, max_size=most).map(torch.tensor)


def proper(boxes: Tensor, margin: float = 0.5) -> Tensor:
    """The same corners in order, and sides of at least `margin`."""
    low = torch.minimum(boxes[:, :2], boxes[:, 2:])
    high = torch.maximum(boxes[:, :2], boxes[:, 2:])
    return torch.cat([low, high + margin], dim=1)


def test_formats_by_hand():
    xyxy = torch.tensor([[10.0, 20.0, 30.0, 80.0], [0.0, 0.0, 1.0, 1.0]])
    cxcywh = torch.tensor([[20.0, 50.0, 20.0, 60.0], [0.5, 0.5, 1.0, 1.0]])
    assert torch.equal(box_xyxy_to_cxcywh(xyxy), cxcywh)
    assert torch.equal(box_cxcywh_to_xyxy(cxcywh), xyxy)
    assert box_cxcywh_to_xyxy(torch.zeros(2, 0, 4)).shape == (2, 0, 4)


def test_intersection_areas_by_hand():
    boxes1 = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    boxes2 = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]])
    areas = intersection_areas(boxes1, boxes2, box_iou(boxes1, boxes2))
    assert areas[0].tolist() == pytest.approx([1, 2, 0])


def test_coordinates_are_contiguous():
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    for number, coordinate in enumerate(coordinates(boxes)):
        assert coordinate.is_contiguous()
        assert coordinate.equal(boxes[..., number])


def test_area_of_an_inverted_box_is_zero():
    boxes = torch.tensor(
        [[1.0, 2.0, 4.0, 6.0], [4.0, 2.0, 1.0, 6.0], [4.0, 6.0, 1.0, 2.0], [1.0, 2.0, 1.0, 6.0]]
    )
    assert box_area(boxes).tolist() == [12, 0, 0, 0]


# Against the box (0, 0, 2, 2) of area 4:
BY_HAND = {
    "equal": ((0, 0, 2, 2), 1, 1),
    "half": ((0, 0, 1, 2), 1 / 2, 1 / 2),
    # overlap 1, union 4 + 4 - 1 = 7, hull 3 x 3 = 9
    "corner": ((1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),
    "touching": ((2, 0, 4, 2), 0, 0),
    # union 8, hull 6 x 2 = 12
    "apart": ((4, 0, 6, 2), 0, -4 / 12),
    # union 8, hull 102 x 102 = 10404
    "far apart": ((100, 100, 102, 102), 0, -(10404 - 8) / 10404),
    # a point: union 4, hull 3 x 2 = 6
    "point": ((3, 1, 3, 1), 0, -2 / 6),
}


@pytest.mark.parametrize(("box", "iou", "giou"), BY_HAND.values(), ids=BY_HAND.keys())
def test_iou_and_giou_by_hand(box, iou, giou):
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    second = torch.tensor([box], dtype=torch.float32)
    assert box_iou(first, second).item() == pytest.approx(iou, abs=1e-6)
    assert generalized_box_iou(first, second).item() == pytest.approx(giou, abs=1e-6)


def test_giou_tells_near_from_far_where_iou_cannot():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    others = torch.tensor([[2.0, 0.0, 3.0, 1.0], [20.0, 0.0, 21.0, 1.0]])
    assert box_iou(box, others).tolist() == [[0, 0]]
    near, far = generalized_box_iou(box, others)[0]
    assert near > far


@given(boxes_of(numbers))
def test_formats_round_trip(boxes):
    there_and_back = box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes))
    torch.testing.assert_close(there_and_back, boxes, rtol=1e-5, atol=1e-3)
    there_and_back = box_xyxy_to_cxcywh(box_cxcywh_to_xyxy(boxes))
    torch.testing.assert_close(there_and_back, boxes, rtol=1e-5, atol=1e-3)


@given(boxes_of(numbers), boxes_of(numbers))
def test_as_torchvision_on_proper_boxes(boxes1, boxes2):
    boxes1 = proper(boxes1)
    boxes2 = proper(boxes2)
    iou = torchvision.ops.box_iou(boxes1, boxes2)
    giou = torchvision.ops.generalized_box_iou(boxes1, boxes2)
    torch.testing.assert_close(box_iou(boxes1, boxes2), iou, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generalized_box_iou(boxes1, boxes2), giou, rtol=1e-5, atol=1e-6)


@given(boxes_of(any_numbers), boxes_of(any_numbers))
def test_in_range_and_symmetric_for_any_boxes(boxes1, boxes2):
    iou, giou = iou_and_giou(boxes1[:, None], boxes2[None])
    assert (iou >= 0).all()
    assert (iou <= 1 + 1e-5).all()
    assert (giou >= -1 - 1e-5).all()
    assert (giou <= iou + 1e-5).all()
    torch.testing.assert_close(generalized_box_iou(boxes2, boxes1), giou.T)


@given(boxes_of(numbers))
def test_one_of_a_box_with_itself(boxes):
    boxes = proper(boxes)
    giou = generalized_box_iou(boxes, boxes)
    torch.testing.assert_close(giou.diagonal(), torch.ones(len(boxes)))


@given(boxes_of(any_numbers, most=3), boxes_of(any_numbers, most=3))
def test_gradients_are_finite_for_any_boxes(boxes1, boxes2):
    boxes1, boxes2 = boxes1.requires_grad_(), boxes2.requires_grad_()
    generalized_box_iou(boxes1, boxes2).sum().backward()
    assert boxes1.grad.isfinite().all()
    assert boxes2.grad.isfinite().all()


def test_a_step_along_the_gradient_brings_disjoint_boxes_closer():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], requires_grad=True)
    goal = torch.tensor([[3.0, 0.0, 4.0, 1.0]])
    before = generalized_box_iou(box, goal)
    before.sum().backward()
    assert generalized_box_iou(box.detach() + 0.1 * box.grad, goal) > before


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 0),
        (5, 5, 5, 5),
        (3, 3, 1, 1),
        (-INF, -INF, INF, INF),
        (INF, INF, INF, INF),
        (0, 0, INF, 1),
        (1e30, 1e30, 2e30, 2e30),
        (1e-30, 0, 2e-30, 1e-30),
    ],
)
def test_degenerate_inverted_and_infinite_boxes_stay_finite(box):
    boxes = torch.tensor([box, (0, 0, 1, 1)], dtype=torch.float32)
    giou = generalized_box_iou(boxes, boxes)
    assert giou.isfinite().all()
    assert (giou.abs() <= 1).all()


def test_nan_is_not_hidden():
    boxes = torch.tensor([[float("nan"), 0.0, 1.0, 1.0]])
    unit_box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert generalized_box_iou(boxes, unit_box).isnan().all()


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_computed_in_at_least_fp32(given_dtype, expected):
    assert at_least_float32(torch.zeros(1, dtype=given_dtype)).dtype == expected
    # 300 x 300 = 90,000 is beyond the largest fp16 number, 65,504
    boxes = torch.tensor([[0, 0, 300, 300]], dtype=given_dtype)
    giou = generalized_box_iou(boxes, boxes)
    assert giou.dtype == expected
    assert giou.item() == 1


def test_pairs_and_broadcasting():
    boxes1 = proper(torch.rand(3, 4))
    boxes2 = proper(torch.rand(2, 4))
    assert box_iou(boxes1, boxes2).shape == (3, 2)
    assert generalized_box_iou(torch.zeros(0, 4), boxes2).shape == (0, 2)
    iou, giou = iou_and_giou(boxes1, boxes1.flip(0))
    torch.testing.assert_close(giou, generalized_box_iou(boxes1, boxes1.flip(0)).diagonal())
    assert iou.shape == (3,)
