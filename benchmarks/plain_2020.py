"""DETR as the code of 2020 computed it, with the same weights, as a reference for the speed of this
library.

Own code, the same operations in the same order: frozen BatchNorm as a product and a sum over the
feature map, images in contiguous layout, attention whose weights are computed and averaged though
nobody reads them, matching and losses layer by layer, each with copies to the host of its own. It
stands for the original, which no longer installs.
"""

from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.models import backbone, transformer
from redetr.structures import Outputs, Target

EOS_COEF, COST_BBOX, COST_GIOU = 0.1, 5.0, 2.0


def _conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    return norm(conv(x))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if ignored is not None:
        scores = scores.masked_fill(ignored, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout)
    weights.mean(1)  # which `nn.MultiheadAttention` also returned
    return weights @ v


class Plain(nn.Module):
    """A faithful model that computes like the code of 2020."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        # The original always passes a mask.
        mask = torch.zeros_like(images[:, 0], dtype=torch.bool) if mask is None else mask
        with (
            patch.object(backbone, "conv_norm", _conv_norm),
            patch.object(transformer, "attention", _attention),
            patch.object(transformer, "dropout", F.dropout),
        ):
            return self.model(images.contiguous(), mask)


def _match(outputs: Outputs, targets: list[Target]) -> list[tuple[Tensor, Tensor]]:
    """Query and object of each pair, by image."""
    with torch.no_grad():
        batch, queries = outputs["pred_logits"].shape[:2]
        scores = outputs["pred_logits"].flatten(0, 1).softmax(-1)
        boxes = outputs["pred_boxes"].flatten(0, 1)
        labels = torch.cat([target["labels"] for target in targets])
        wanted = torch.cat([target["boxes"] for target in targets])
        giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted))
        cost = COST_BBOX * torch.cdist(boxes, wanted, p=1) - scores[:, labels] - COST_GIOU * giou
        by_image = (
            cost.view(batch, queries, -1)
            .cpu()
            .split([len(target["labels"]) for target in targets], -1)
        )
        pairs = [linear_sum_assignment(costs[i]) for i, costs in enumerate(by_image)]
        return [
            (torch.as_tensor(q, dtype=torch.int64), torch.as_tensor(t, dtype=torch.int64))
            for q, t in pairs
        ]


def _layer_losses(
    outputs: Outputs, targets: list[Target], num_boxes: float, last: bool
) -> dict[str, Tensor]:
    logits = outputs["pred_logits"]
    pairs = _match(outputs, targets)
    index = (
        torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(pairs)]),
        torch.cat([q for q, _ in pairs]),
    )
    matched_labels = torch.cat(
        [target["labels"][t] for target, (_, t) in zip(targets, pairs, strict=True)]
    )
    background = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], background, dtype=torch.int64, device=logits.device)
    wanted[index] = matched_labels
    weight = torch.ones(background + 1, device=logits.device)
    weight[-1] = EOS_COEF
    losses = {"loss_ce": F.cross_entropy(logits.transpose(1, 2), wanted, weight)}
    if last:
        losses["class_error"] = (
            100 - 100 * (logits[index].argmax(-1) == matched_labels).float().mean()
        )
    with torch.no_grad():
        counts = torch.as_tensor(
            [len(target["labels"]) for target in targets], device=logits.device
        )
        found = (logits.argmax(-1) != background).sum(1)
        losses["cardinality_error"] = F.l1_loss(found.float(), counts.float())
    boxes = outputs["pred_boxes"][index]
    matched = torch.cat([target["boxes"][t] for target, (_, t) in zip(targets, pairs, strict=True)])
    losses["loss_bbox"] = F.l1_loss(boxes, matched, reduction="none").sum() / num_boxes
    giou = torch.diag(generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(matched)))
    losses["loss_giou"] = (1 - giou).sum() / num_boxes
    return losses


def plain_criterion(outputs: Outputs, targets: list[Target], *_: Any) -> dict[str, Tensor]:
    """The losses of all layers and their weighted sum "loss", of a softmax model; the batch stands
    alone."""
    device = outputs["pred_logits"].device
    boxes = torch.as_tensor(
        [sum(len(target["labels"]) for target in targets)], dtype=torch.float32, device=device
    )
    num_boxes = boxes.clamp(min=1).item()
    layers = [outputs, *outputs["aux_outputs"]]
    found = [_layer_losses(layer, targets, num_boxes, last=not i) for i, layer in enumerate(layers)]
    total = sum(
        each["loss_ce"] + COST_BBOX * each["loss_bbox"] + COST_GIOU * each["loss_giou"]
        for each in found
    )
    return {**found[0], "loss": torch.as_tensor(total)}
