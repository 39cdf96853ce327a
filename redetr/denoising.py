"""Contrastive denoising: in training, extra queries that start from noisy objects.

In each group, every object has two noisy queries. The box of the positive one is nearly right, and
it is to find the object; that of the negative one is further off, and it is to find nothing. Which
object a query belongs to is known, so nothing is matched, and the decoder learns to correct boxes
from the first step. Evaluation and prediction use none of this.

The gradient stays exact over ranks and micro-batches: the number of groups is fixed, the noise is a
function of (seed, epoch, image), padding is neither seen nor judged, and a batch without objects
has queries too, all padding, so that the graph is the same on every rank.

Source: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes" (ICLR 2023), with the noise
of RT-DETR. Deviations: there, the number of groups follows from the image of the local batch with
the most objects, and padding takes part.

Shape letters: B images, G groups, T objects of an image, padded to the most in the batch and at
least 1, M = G * 2 * T noisy queries in this order, positive before negative, Q ordinary queries.
Boxes are cxcywh, fractions of the unpadded image.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from redetr.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from redetr.structures import Outputs, Target

_LABEL_NOISE = 0.25  # share of the labels that are drawn anew
_SMALLEST_SIDE = 1e-5  # an edge may move across the opposite one: such boxes have no size


class NoisyQueries(NamedTuple):
    """The starting points of noisy queries."""

    labels: Tensor  # [B, M] int64; padding has C, the number of classes
    boxes: Tensor  # [B, M, 4] float32


def noisy_queries(targets: list[Target], groups: int, num_classes: int) -> NoisyQueries:
    """Returns the noisy queries of a batch, on the host.

    The noise of an image depends on its target's `seed` alone. Raises KeyError for targets without
    a seed, which those of a data loader have.
    """
    most_objects = max(len(target["labels"]) for target in targets)
    per_group = max(1, most_objects)
    all_labels = torch.full((len(targets), groups, 2, per_group), num_classes)  # padding at first
    all_boxes = torch.full((len(targets), groups, 2, per_group, 4), 0.5)
    for target, labels, boxes in zip(targets, all_labels, all_boxes, strict=True):
        num_objects = len(target["labels"])
        generator = torch.Generator()
        generator.manual_seed(target["seed"])
        label_draws = torch.rand(groups, 2, num_objects, 2, generator=generator)
        box_draws = torch.rand(groups, 2, num_objects, 8, generator=generator)
        labels[..., :num_objects] = with_other_labels(target["labels"], label_draws, num_classes)
        boxes[..., :num_objects, :] = with_moved_edges(target["boxes"], box_draws)
    return NoisyQueries(all_labels.flatten(1), all_boxes.flatten(1, 3))


def with_other_labels(labels: Tensor, draws: Tensor, num_classes: int) -> Tensor:
    """Returns labels `[G, 2, T]` of noisy queries for the objects' `labels` `[T]`.

    `draws` `[G, 2, T, 2]` are uniform in [0, 1). A quarter of the labels is drawn from all classes.
    """
    is_drawn = draws[..., 0] < _LABEL_NOISE
    drawn_labels = draws[..., 1] * num_classes
    return torch.where(is_drawn, drawn_labels.long(), labels)


def with_moved_edges(boxes: Tensor, draws: Tensor) -> Tensor:
    """Returns boxes `[G, 2, T, 4]` of noisy queries for the objects' `boxes` `[T, 4]`.

    `draws` `[G, 2, T, 8]` are uniform in [0, 1). Each edge moves outwards or inwards: in a positive
    query by up to half of the width or height of the box, in a negative one by a half to a whole.
    """
    sign_draws, distances = draws.split(4, -1)  # each [G, 2, T, 4]
    signs = torch.where(sign_draws < 0.5, -1.0, 1.0)
    positive, negative = distances.unbind(1)
    halves = torch.stack([positive, negative + 1], 1)  # how far, in halves of a side
    sides = boxes[:, 2:].repeat(1, 2)  # [T, 4]: w, h, w, h
    edges = box_cxcywh_to_xyxy(boxes)
    edges = edges + signs * halves * sides / 2  # [G, 2, T, 4]
    moved = box_xyxy_to_cxcywh(edges.clamp(0, 1))
    return moved.clamp(_SMALLEST_SIDE, 1 - _SMALLEST_SIDE)


def with_noisy_queries(
    content: Tensor,
    boxes: Tensor,
    noisy: NoisyQueries,
    class_embed: nn.Embedding,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where all queries start, noisy ones last, and which others each of them ignores.

    These are content `[B, Q + M, D]`, boxes `[B, Q + M, 4]` and `ignored_queries`. `content`
    `[B, Q, D]` and `boxes` `[B, Q, 4]` are those of the ordinary queries; the content of a noisy
    one is the row of its label in `class_embed`, whose last row, of padding, is 0.
    """
    num_queries = content.shape[1]
    noisy_content = class_embed(noisy.labels)  # [B, M, D]
    noisy_boxes = noisy.boxes.to(boxes.dtype)
    all_content = torch.cat([content, noisy_content], 1)
    all_boxes = torch.cat([boxes, noisy_boxes], 1)

    num_classes = len(class_embed.weight) - 1
    is_padding = noisy.labels.eq(num_classes)
    ignored = ignored_queries(is_padding, groups, num_queries)
    return all_content, all_boxes, ignored


def ignored_queries(is_padding: Tensor, groups: int, num_queries: int) -> Tensor:
    """Returns which others each query ignores in self-attention, `[B, Q + M, Q + M]`.

    `is_padding` `[B, M]` is that of the noisy queries. Ordinary queries, which come first, see only
    each other, so that they answer as if there were no others. Noisy ones see these and their own
    group.
    """
    batch, num_noisy = is_padding.shape
    per_group = num_noisy // groups
    index = torch.arange(num_noisy, device=is_padding.device)
    group = index // per_group  # [M]
    is_other_group = group[:, None] != group  # [M, M]

    everyone = num_queries + num_noisy
    ignored = is_padding.new_zeros(batch, everyone, everyone)
    ignored[:, :num_queries, num_queries:] = True
    ignored[:, num_queries:, num_queries:] = is_other_group | is_padding[:, None]
    return ignored


def split_outputs(layers: list[Outputs], num_queries: int) -> Outputs:
    """Returns the outputs of a decoder's `layers`: of its first queries, with those of the noisy
    ones behind them under "denoising"."""
    ordinary: list[Outputs] = []
    noisy: list[Outputs] = []
    for layer in layers:
        ordinary_layer, noisy_layer = _split({**layer}, num_queries)
        ordinary.append(ordinary_layer)
        noisy.append(noisy_layer)
    outputs = ordinary[-1]
    outputs["aux_outputs"] = ordinary[:-1]
    outputs["denoising"] = noisy[-1]
    outputs["denoising"]["aux_outputs"] = noisy[:-1]
    return outputs


def _split(layer: dict[str, Any], num_queries: int) -> tuple[Any, Any]:
    """Returns the outputs of the first queries of a layer, and those of the others."""
    first = {}
    others = {}
    for name, value in layer.items():
        if isinstance(value, dict):
            first[name], others[name] = _split(value, num_queries)
        else:  # [B, Q + M, ...]
            first[name] = value[:, :num_queries]
            others[name] = value[:, num_queries:]
    return first, others


def known_objects(num_objects: list[int], groups: int, num_noisy: int) -> tuple[Tensor, Tensor]:
    """Returns which noisy query is to find which object, and which are padding, on the host.

    The first is the query of every object in every group, `[B, G * T]` with M for "none"; the
    second is a mask `[B, M]`. `num_objects` are those of each image, and `num_noisy` is M; they may
    have been padded to more objects. Raises ValueError if the queries are not those of such images.
    """
    most_objects = max(num_objects)
    per_group, rest = divmod(num_noisy, 2 * groups)
    if rest or per_group < max(1, most_objects):
        raise ValueError(
            f"{num_noisy} noisy queries do not match images with {num_objects} objects"
        )
    counts = torch.tensor(num_objects)
    is_missing = torch.arange(per_group) >= counts[:, None]  # [B, T]
    is_padding = is_missing.repeat(1, 2 * groups)  # [B, M]

    queries = torch.arange(num_noisy).view(groups, 2, per_group)
    positives = queries[:, 0]  # [G, T]
    positives = positives.masked_fill(is_missing[:, None], num_noisy)  # [B, G, T]
    positives = positives[..., :most_objects]  # without objects, there are none
    return positives.flatten(1), is_padding
