"""Box formats, IoU and GIoU: pure functions on tensors whose last dimension is 4.

Formats: `xyxy` is (left, top, right, bottom), `cxcywh` is (centre x, centre y, width, height).
Frame: pixels or fractions of the image, whichever the caller uses; no function here changes it.
"""

import torch
from torch import Tensor

# Coordinates are clamped to this, so that areas stay finite in fp32 (largest value 3e38).
_LARGEST_COORDINATE = 1e9
# Denominators are at least this, so that boxes without an area give 0 and not NaN.
_SMALLEST_AREA = 1e-12


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns `tensor` in fp32, or unchanged if it is fp64.

    Half precision has too few digits for boxes and their areas.
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(dtype)


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Returns `cxcywh` boxes `[..., 4]` as `xyxy` boxes `[..., 4]`."""
    centers = boxes[..., :2]
    sizes = boxes[..., 2:]
    top_left = centers - 0.5 * sizes
    bottom_right = centers + 0.5 * sizes
    return torch.cat([top_left, bottom_right], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Returns `xyxy` boxes `[..., 4]` as `cxcywh` boxes `[..., 4]`."""
    top_left = boxes[..., :2]
    bottom_right = boxes[..., 2:]
    centers = 0.5 * (top_left + bottom_right)
    sizes = bottom_right - top_left
    return torch.cat([centers, sizes], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Returns the areas `[...]` of `xyxy` boxes `[..., 4]`; that of an inverted box is 0."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = (x2 - x1).clamp(min=0)
    height = (y2 - y1).clamp(min=0)
    # Not `prod`: its backward pass looks for zeros, and waits for the GPU to count them.
    return width * height


def coordinates(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the four numbers of boxes `[..., 4]`, each `[...]` and contiguous.

    Computing with all pairs of boxes takes half as long as with the result of `unbind(-1)`, whose
    numbers are four apart in memory: the CPU then computes one at a time.
    """
    first, second, third, fourth = boxes.movedim(-1, 0).contiguous()
    return first, second, third, fourth


def iou_and_giou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU and generalized IoU, each `[...]`, of `xyxy` boxes `[..., 4]`, which broadcast.

    For all pairs, pass `boxes1.unsqueeze(-2)` and `boxes2.unsqueeze(-3)`. Both are computed in fp32
    (fp64 stays fp64). IoU is in [0, 1] and GIoU in [-1, 1]; both are finite for degenerate,
    inverted and infinite boxes. NaN stays NaN, so that a model that diverged is noticed.

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, equation 1.
    """
    boxes1 = _bounded(boxes1)
    boxes2 = _bounded(boxes2)

    # One coordinate at a time, [...]: several times faster on a CPU than intermediates [..., 2].
    left1, top1, right1, bottom1 = coordinates(boxes1)
    left2, top2, right2, bottom2 = coordinates(boxes2)

    inter_width = _overlap_length(left1, right1, left2, right2)
    inter = inter_width * _overlap_length(top1, bottom1, top2, bottom2)

    # The hull is the smallest box around both.
    hull_width = _hull_length(left1, right1, left2, right2)
    hull = hull_width * _hull_length(top1, bottom1, top2, bottom2)

    union = box_area(boxes1) + box_area(boxes2) - inter
    iou = inter / union.clamp(min=_SMALLEST_AREA)
    empty_share = (hull - union) / hull.clamp(min=_SMALLEST_AREA)
    return iou, iou - empty_share


def _overlap_length(start1: Tensor, end1: Tensor, start2: Tensor, end2: Tensor) -> Tensor:
    """Returns the length `[...]` that two ranges on an axis have in common, 0 if they are
    disjoint."""
    length = torch.minimum(end1, end2) - torch.maximum(start1, start2)
    return length.clamp(min=0)


def _hull_length(start1: Tensor, end1: Tensor, start2: Tensor, end2: Tensor) -> Tensor:
    """Returns the length `[...]` of the range around two ranges, 0 if both are inverted."""
    length = torch.maximum(end1, end2) - torch.minimum(start1, start2)
    return length.clamp(min=0)


def _bounded(boxes: Tensor) -> Tensor:
    """Returns `boxes` in fp32 or fp64, without infinite coordinates."""
    boxes = at_least_float32(boxes)
    return boxes.clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the IoU `[N, M]` of all pairs of `xyxy` boxes `[N, 4]` and `[M, 4]`."""
    rows = boxes1.unsqueeze(-2)  # [N, 1, 4]
    columns = boxes2.unsqueeze(-3)  # [1, M, 4]
    iou, _ = iou_and_giou(rows, columns)
    return iou


def intersection_areas(boxes1: Tensor, boxes2: Tensor, iou: Tensor) -> Tensor:
    """Returns the areas `[N, M]` that `xyxy` boxes `[N, 4]` and `[M, 4]` share, from their `iou`.

    IoU = I / (A1 + A2 - I), so I = (A1 + A2) IoU / (1 + IoU).
    """
    area1 = box_area(boxes1)[:, None]
    area2 = box_area(boxes2)
    return (area1 + area2) * iou / (1 + iou)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the GIoU `[N, M]` of all pairs of `xyxy` boxes `[N, 4]` and `[M, 4]`."""
    rows = boxes1.unsqueeze(-2)  # [N, 1, 4]
    columns = boxes2.unsqueeze(-3)  # [1, M, 4]
    _, giou = iou_and_giou(rows, columns)
    return giou
