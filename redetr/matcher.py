"""Bipartite matching: assigns each object to one query.

All decoder layers, images and proposal sets of a step are assigned from a single device-to-host
copy.

Shape letters: L decoder layers, B images, Q queries, K scores per query (the classes, and "no
object" for softmax), T objects of an image, padded to the most in the batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy, coordinates, iou_and_giou
from redetr.structures import LossConfig, to_device

# Replaces NaN and infinite costs: NaN and +inf are chosen last, -inf first. The loss itself stays
# NaN or infinite and is reported there.
_WORST_COST = 1e6
# Weights of the focal cost, as in Deformable DETR: alpha 0.25, gamma 2.
_FOCAL_POSITIVE = 0.25
_FOCAL_NEGATIVE = 0.75


def cost_matrix(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, config: LossConfig
) -> Tensor:
    """Returns the matching costs `[L, B, Q, T]`: the weighted sum of class, L1 and GIoU cost.

    `logits` `[L, B, Q, K]` and `boxes` `[L, B, Q, 4]` are the predictions, `labels` `[B, T]` and
    `target_boxes` `[B, T, 4]` the objects; boxes are cxcywh in one frame. The class cost is `-p`
    for softmax scores and the focal cost for sigmoid scores. All costs are finite.

    Source: Carion et al. 2020, equation 1 and appendix A.2; the focal cost as in Zhu et al.,
    Deformable DETR.
    """
    class_cost = _class_cost(logits, labels, config)  # [L, B, Q, T]
    predicted = boxes.unsqueeze(-2)  # [L, B, Q, 1, 4]
    target = target_boxes.unsqueeze(-3)  # [B, 1, T, 4]

    # One coordinate at a time: differences `[L, B, Q, T, 4]` would take four times the memory.
    l1 = torch.zeros_like(class_cost)
    for query_coordinate, object_coordinate in zip(
        coordinates(predicted), coordinates(target), strict=True
    ):
        l1 += (query_coordinate - object_coordinate).abs()

    predicted_xyxy = box_cxcywh_to_xyxy(predicted)
    target_xyxy = box_cxcywh_to_xyxy(target)
    _, giou = iou_and_giou(predicted_xyxy, target_xyxy)

    cost = config.cost_class * class_cost + config.cost_bbox * l1 - config.cost_giou * giou
    return cost.nan_to_num(nan=_WORST_COST, posinf=_WORST_COST, neginf=-_WORST_COST)


def _class_cost(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Returns the class cost `[L, B, Q, T]` of `logits` `[L, B, Q, K]` and `labels` `[B, T]`."""
    layers, batch, num_queries, _ = logits.shape
    index = labels[None, :, None, :].expand(layers, batch, num_queries, -1)
    if config.scores == "softmax":
        # Normalised over all classes first, then the scores of the objects' classes are taken.
        probabilities = logits.softmax(-1)  # [L, B, Q, K]
        return -probabilities.gather(3, index)

    # A sigmoid score depends on its own logit only, so the few that are needed are taken first.
    picked = logits.gather(3, index)  # [L, B, Q, T]
    p = picked.sigmoid()
    # softplus(-x) is -log(p) and softplus(x) is -log(1 - p), both without overflow.
    positive = _FOCAL_POSITIVE * (1 - p) ** 2 * F.softplus(-picked)
    negative = _FOCAL_NEGATIVE * p**2 * F.softplus(picked)
    return positive - negative


def assign(cost: np.ndarray, num_objects: list[int]) -> np.ndarray:
    """Returns the query of every object, `[L, B, T]` int64, for costs `[L, B, Q, T]`.

    `num_objects` holds how many of the T objects of each image are real. The total cost is minimal
    for each layer and image. The value Q stands for "no query": padding has it, and so have the
    objects that go without where there are more of them than queries.
    """
    layers, batch, num_queries, most_objects = cost.shape
    chosen = np.full((layers, batch, most_objects), num_queries, dtype=np.int64)
    for image, count in enumerate(num_objects):
        if count == 0:
            continue
        for layer in range(layers):
            queries, objects = linear_sum_assignment(cost[layer, image, :, :count])
            chosen[layer, image, objects] = queries
    return chosen


@torch.no_grad()
def match(costs: list[Tensor], num_objects: list[int]) -> list[Tensor]:
    """Returns `assign` of several costs `[L_i, B, Q_i, T]`, each `[L_i, B, T]`, on their device.

    The one synchronisation of a training step: a single copy to the host, a single copy back.
    """
    device = costs[0].device
    flat_costs = torch.cat([cost.flatten() for cost in costs])
    host_costs = flat_costs.cpu().numpy()

    chosen: list[np.ndarray] = []
    start = 0
    for cost in costs:
        stop = start + cost.numel()
        host_cost = host_costs[start:stop].reshape(cost.shape)
        chosen.append(assign(host_cost, num_objects))
        start = stop

    flat_chosen = np.concatenate([queries.ravel() for queries in chosen])
    packed = to_device(torch.from_numpy(flat_chosen), device)

    sizes = [queries.size for queries in chosen]
    matched: list[Tensor] = []
    for flat_queries, queries in zip(packed.split(sizes), chosen, strict=True):
        matched.append(flat_queries.view(queries.shape))
    return matched
