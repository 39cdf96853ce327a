"""Edges of boxes as distributions over bins: their geometry, and their losses.

Each edge of a box holds a distribution over how far it lies outside of where a first box has it.
The bins are values of this move, in sizes of the first box / `reg_scale`; between two of them, the
truth is a mixture of both.

Source: Peng et al., "D-FINE" (ICLR 2025): fine-grained localisation, and self-distillation.
Deviations of the losses: they are sums, divided by counts of the whole step (there, distillation is
divided by those of the local batch); queries are matched in each layer by itself (there, boxes and
edges take the union of all layers' matches, whose size is known only after the forward pass).

Shape letters: L decoder layers, B images, Q queries, C classes, T objects of an image, padded to
the most in the batch, N values of the bins. Boxes are cxcywh, fractions of the image; the four
edges are left, top, right, bottom.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh

UPPER_BOUND = 0.5  # `up` in D-FINE: the last value of W(n) but one, in sizes of the box
_TEMPERATURE = 5  # softens the distributions that are compared in distillation


class Edges(NamedTuple):
    """The edges of some decoder layers."""

    logits: Tensor  # [L, B, Q, 4, N]
    first_boxes: Tensor  # [B, Q, 4], from which they move; without gradient


def bin_values(bound: Tensor, bins: int) -> Tensor:
    """Returns the weighting function W(n) of D-FINE: how far an edge moves for each bin,
    `[bins + 1]`, in sizes of the box / `reg_scale`.

    They grow geometrically from 0 in the middle to `bound` `[1]`; the first and the last are twice
    as far.
    """
    ratio = (bound + 1) ** (2 / (bins - 2))
    exponents = torch.arange(1, bins // 2, device=bound.device, dtype=bound.dtype)
    outwards = ratio**exponents - 1  # [bins / 2 - 1]
    inwards = -outwards.flip(0)
    zero = torch.zeros_like(bound)
    farthest = 2 * bound
    return torch.cat([-farthest, inwards, zero, outwards, farthest])


def move_edges(boxes: Tensor, moves: Tensor, reg_scale: Tensor | float) -> Tensor:
    """Returns `boxes` `[..., 4]`, cxcywh, whose edges moved outwards by `moves` `[..., 4]`.

    The moves are those of the left, top, right and bottom edge, in widths and heights of the box
    divided by `reg_scale`.
    """
    center_x, center_y, width, height = boxes.unbind(-1)
    left, top, right, bottom = (0.5 + moves / reg_scale).unbind(-1)  # distances from the centre
    edges = [
        center_x - left * width,
        center_y - top * height,
        center_x + right * width,
        center_y + bottom * height,
    ]
    return box_xyxy_to_cxcywh(torch.stack(edges, -1))


def moves_between(boxes: Tensor, others: Tensor, reg_scale: float) -> Tensor:
    """Returns the moves `[..., 4]` by which the edges of `boxes` reach those of `others`, both
    cxcywh; as in `move_edges`."""
    center_x, center_y, width, height = boxes.unbind(-1)
    left, top, right, bottom = box_cxcywh_to_xyxy(others).unbind(-1)
    distances = [
        (center_x - left) / width,
        (center_y - top) / height,
        (right - center_x) / width,
        (bottom - center_y) / height,
    ]
    return (torch.stack(distances, -1) - 0.5) * reg_scale


def between_values(moves: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where `moves` `[...]` lie between `values` `[N]`, which ascend.

    These are the index of the value below, at most N - 2, and the share `[...]` of the value above,
    from 0 to 1. Moves beyond the ends are those of the ends.
    """
    moves = torch.minimum(moves, values[-1])
    moves = torch.maximum(moves, values[0])
    lower = torch.searchsorted(values, moves.contiguous(), right=True) - 1
    lower = lower.clamp(0, len(values) - 2)
    lower_value = values[lower]
    width = values[lower + 1] - lower_value
    upper_share = (moves - lower_value) / width
    return lower, upper_share


def localization_sums(
    edges: Edges, queries: Tensor, boxes: Tensor, iou: Tensor, reg_scale: float
) -> Tensor:
    """Returns the fine-grained localisation loss of every layer, `[L]`, not divided.

    It is the cross-entropy of each edge towards the two values around the truth, times the `iou`
    `[L, B, T]` of the boxes. `queries` `[L, B, T]` is the query of every object in `boxes`
    `[B, T, 4]`, Q for those without one, whose `iou` is 0.
    """
    logits = edges.logits
    layers, _, num_queries, _, num_values = logits.shape
    safe_queries = queries.clamp(max=num_queries - 1)
    index = safe_queries[..., None].expand(-1, -1, -1, 4 * num_values)
    matched_logits = logits.flatten(3).gather(2, index)
    matched_logits = matched_logits.unflatten(-1, (4, -1))  # [L, B, T, 4, N]
    first_boxes = edges.first_boxes.expand(layers, -1, -1, -1)
    first_boxes = first_boxes.gather(2, index[..., :4])  # [L, B, T, 4]

    bound = boxes.new_full((1,), UPPER_BOUND * reg_scale)
    values = bin_values(bound, num_values - 1)
    moves = moves_between(first_boxes, boxes, reg_scale)
    lower, upper_share = between_values(moves, values)
    lower_share = 1 - upper_share
    lower = lower[..., None]
    log_probabilities = matched_logits.log_softmax(-1)
    log_lower = log_probabilities.gather(-1, lower)[..., 0]  # [L, B, T, 4]
    log_upper = log_probabilities.gather(-1, lower + 1)[..., 0]
    cross_entropy = -lower_share * log_lower - upper_share * log_upper
    box_losses = cross_entropy.sum(-1) * iou  # [L, B, T]
    return box_losses.sum((1, 2))


def distillation_sums(
    edges: Edges, logits: Tensor, queries: Tensor, iou: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what all layers but the last are to learn from the last, each `[L - 1]`, not divided.

    It is the divergence of the distributions of each edge from those of the last layer: for queries
    with an object times the `iou` `[L, B, T]` of their box, and for all others times their best
    score in the last layer, whose class `logits` are `[B, Q, C]`. `queries` are those of
    `localization_sums`.
    """
    log_probabilities = (edges.logits / _TEMPERATURE).log_softmax(-1)  # [L, B, Q, 4, N]
    log_teacher = log_probabilities[-1].detach()
    gaps = log_teacher - log_probabilities[:-1]
    divergence = (log_teacher.exp() * gaps).sum((-1, -2))  # [L - 1, B, Q]
    divergence = _TEMPERATURE**2 * divergence

    layers, batch, num_queries = divergence.shape
    # One column more than queries: objects without a query write there, and it is cut off.
    empty = divergence.new_zeros(layers, batch, num_queries + 1)
    weights = empty.scatter(2, queries[:-1], iou[:-1])
    weights = weights[..., :-1]
    is_matched = empty.scatter(2, queries[:-1], 1.0)
    is_free = is_matched[..., :-1] == 0
    confidence = logits.detach().sigmoid().amax(-1)  # [B, Q]
    matched_sum = (divergence * weights).sum((1, 2))
    other_sum = (divergence * confidence * is_free).sum((1, 2))
    return matched_sum, other_sum
