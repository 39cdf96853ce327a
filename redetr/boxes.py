"""Box formats, IoU and GIoU: pure functions on tensors whose last dimension is 4.

Formats: `xyxy` is (left, top, right, bottom), `cxcywh` is (centre x, centre y, width, height). The
frame (pixels, or fractions of the image) is the caller's; no function here changes it.
"""

import torch
from torch import Tensor

# Coordinates beyond this are cut off, so that areas stay finite in fp32 (largest value 3e38).
_LARGEST_COORDINATE = 1e9
_SMALLEST_AREA = 1e-12


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in fp32, or as it is in fp64. Half precision has too few digits for boxes and their
    areas."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """The same boxes `[..., 4]` as (left, top, right, bottom)."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """The same boxes `[..., 4]` as (centre x, centre y, width, height)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([0.5 * (top_left + bottom_right), bottom_right - top_left], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas `[...]` of `xyxy` boxes; a box turned inside out has area 0."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = (x2 - x1).clamp(min=0)
    height = (y2 - y1).clamp(min=0)
    # Not `prod`: its backward pass looks for zeros, and waits for the GPU to count them.
    return width * height


def iou_and_giou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU `[...]` of `xyxy` boxes `[..., 4]` that broadcast against each other.

    Pass `boxes1[..., :, None, :]` and `boxes2[..., None, :, :]` for all pairs. Computed in fp32
    (fp64 stays fp64). IoU is in [0, 1] and GIoU in [-1, 1]; both are finite for degenerate,
    inverted and infinite boxes. NaN stays NaN, so that a diverged model is seen and not hidden.

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, equation 1.
    """
    boxes1 = at_least_float32(boxes1).clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)
    boxes2 = at_least_float32(boxes2).clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes1.unbind(-1), boxes2.unbind(-1)
    # Coordinate by coordinate: on a CPU this is several times faster than stacking [..., 2]
    # intermediates.
    inter = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0) * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    ).clamp(min=0)
    hull = (torch.maximum(x2, u2) - torch.minimum(x1, u1)).clamp(min=0) * (
        torch.maximum(y2, v2) - torch.minimum(y1, v1)
    ).clamp(min=0)
    union = box_area(boxes1) + box_area(boxes2) - inter
    iou = inter / union.clamp(min=_SMALLEST_AREA)
    return iou, iou - (hull - union) / hull.clamp(min=_SMALLEST_AREA)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU `[N, M]` of all pairs of `xyxy` boxes `[N, 4]` and `[M, 4]`."""
    return iou_and_giou(boxes1[..., :, None, :], boxes2[..., None, :, :])[0]


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU `[N, M]` of all pairs of `xyxy` boxes `[N, 4]` and `[M, 4]`, finite for any finite or
    infinite input."""
    return iou_and_giou(boxes1[..., :, None, :], boxes2[..., None, :, :])[1]
