"""Bipartite matching: which query answers for which object.

All decoder layers, images and proposal sets of a step are assigned from one device-to-host copy.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy, iou_and_giou
from redetr.structures import LossConfig

# Stands for NaN and infinite costs: such a pair is chosen last. The loss itself stays NaN and is
# reported there.
_WORST_COST = 1e6


def cost_matrix(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, config: LossConfig
) -> Tensor:
    """Matching costs `[L, B, Q, T]`, finite; a sum of class, L1 and GIoU cost.

    `logits` `[L, B, Q, K]` and `boxes` `[L, B, Q, 4]` against `labels` `[B, T]` and `target_boxes`
    `[B, T, 4]` (both cxcywh in the same frame). Class cost: `-p` for softmax scores, the focal cost
    for sigmoid scores.

    Source: Carion et al. 2020, equation 1 and appendix A.2; the focal cost as in Zhu et al.,
    Deformable DETR.
    """
    index = labels[None, :, None, :].expand(*logits.shape[:3], -1)
    if config.scores == "softmax":
        class_cost = -logits.softmax(-1).gather(3, index)
    else:
        picked = logits.gather(3, index)
        p = picked.sigmoid()
        positive = 0.25 * (1 - p) ** 2 * torch.nn.functional.softplus(-picked)
        class_cost = positive - 0.75 * p**2 * torch.nn.functional.softplus(picked)
    predicted, wanted = boxes[..., :, None, :], target_boxes[..., None, :, :]
    l1 = sum((predicted[..., i] - wanted[..., i]).abs() for i in range(4))
    giou = iou_and_giou(box_cxcywh_to_xyxy(predicted), box_cxcywh_to_xyxy(wanted))[1]
    cost = config.cost_class * class_cost + config.cost_bbox * l1 - config.cost_giou * giou
    return cost.nan_to_num(_WORST_COST, _WORST_COST, -_WORST_COST)


def assign(cost: np.ndarray, num_objects: list[int]) -> np.ndarray:
    """The query of every object, `[L, B, T]` int64, from costs `[L, B, Q, T]`; Q means "no query".

    Minimal total cost per layer and image. With more objects than queries, `Q` of them are matched.
    """
    layers, batch, queries, largest = cost.shape
    chosen = np.full((layers, batch, largest), queries, dtype=np.int64)
    for image, count in enumerate(num_objects):
        if count == 0:
            continue
        for layer in range(layers):
            rows, columns = linear_sum_assignment(cost[layer, image, :, :count])
            chosen[layer, image, columns] = rows
    return chosen


@torch.no_grad()
def match(costs: list[Tensor], num_objects: list[int]) -> list[Tensor]:
    """`assign` for several cost tensors `[L_i, B, Q_i, T]` on the device, result on the device.

    The one synchronisation of a training step: a single copy to the host, a single copy back.
    """
    device = costs[0].device
    on_host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    sizes = [cost.numel() for cost in costs]
    parts = np.split(on_host, np.cumsum(sizes)[:-1])
    chosen = [
        assign(part.reshape(cost.shape), num_objects)
        for part, cost in zip(parts, costs, strict=True)
    ]
    packed = torch.from_numpy(np.concatenate([c.ravel() for c in chosen]))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    split = packed.split([c.size for c in chosen])
    return [part.view(c.shape) for part, c in zip(split, chosen, strict=True)]
