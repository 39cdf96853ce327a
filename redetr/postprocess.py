"""Model outputs to detections in pixels of the original image.

Shapes: B images, Q queries, C classes, K detections of an image.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.structures import Outputs

Kind = Literal["softmax", "sigmoid"]


class Decoded(NamedTuple):
    """The detections of a batch, best score first."""

    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K]
    boxes: Tensor  # [B, K, 4] xyxy, pixels of the original images
    queries: Tensor  # [B, K] the query that each comes from


def decode(outputs: Outputs, orig_sizes: Tensor, kind: Kind, top_k: int) -> Decoded:
    """The detections of a batch.

    `orig_sizes` is `[B, 2]`: height and width of the original images, best on the model's device.
    "softmax" gives each query its best class except "no object": K = Q, whatever `top_k` is.
    "sigmoid" gives the `top_k` best pairs of query and class: K = min(top_k, Q * C). Boxes end
    at the edges of the image.

    Computed in fp32 on the model's device; nothing is copied to the host, and the graph can be
    exported. Raises ValueError for another `kind`.

    Source: Carion et al., "End-to-End Object Detection with Transformers", 2020 (softmax); Zhu et
    al., "Deformable DETR", 2021 (sigmoid). Deviations: pairs are ranked by logit and not by score,
    so that scores which round to the same fp32 number keep their order; the originals leave boxes
    as predicted. Cutting off what lies outside of the image never lowers a box's IoU with an object
    inside, so AP is that of the originals or slightly above.
    """
    logits = outputs["pred_logits"].float()
    if kind == "softmax":
        scores, labels = best_classes(logits, kind)
        queries = None
    elif kind == "sigmoid":
        num_classes = logits.shape[-1]
        pairs = logits.flatten(1)  # [B, Q * C]
        best_logits, pair = pairs.topk(min(top_k, pairs.shape[1]), dim=1)
        scores = best_logits.sigmoid()
        labels = pair % num_classes
        queries = pair // num_classes
    else:
        raise ValueError(f"kind must be softmax or sigmoid, not {kind!r}")

    scores, order = _best_first(scores)
    labels = labels.gather(1, order)
    queries = order if queries is None else queries.gather(1, order)
    boxes = box_cxcywh_to_xyxy(outputs["pred_boxes"].float())
    width_height = orig_sizes.to(boxes).flip(-1)
    corners = width_height.repeat(1, 2)[:, None]  # [B, 1, 4] the right bottom corner twice
    boxes = _rows(boxes, queries) * corners
    boxes = torch.minimum(boxes.clamp(min=0), corners)
    return Decoded(scores, labels, boxes, queries)


def best_classes(logits: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Score and label of each query's best class except "no object", `[..., Q]` each."""
    if kind == "softmax":
        probabilities = logits.float().softmax(-1)[..., :-1]
    else:
        probabilities = logits.float().sigmoid()
    best = probabilities.max(-1)
    return best.values, best.indices


def _best_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores `[B, K]` in descending order, and their indices; equal scores keep their order."""
    if torch.compiler.is_exporting():  # ONNX has a single kind of sort, which is stable
        return scores.sort(dim=1, descending=True)
    return scores.sort(dim=1, descending=True, stable=True)


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """The boxes `[B, K, 4]` with these indices `[B, K]`."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))
