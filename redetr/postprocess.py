"""Model outputs to detections in pixels of the original image.

Shapes: B images, Q queries, C classes, K detections of an image, N detections that remain.
"""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.structures import Outputs

if TYPE_CHECKING:
    pass

Kind = Literal["softmax", "sigmoid"]


def decode(
    outputs: Outputs, orig_sizes: Tensor, kind: Kind, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores `[B, K]`, labels `[B, K]` and boxes `[B, K, 4]` (xyxy pixels, unclipped) on the
    model's device.

    `orig_sizes` is `[B, 2]`: height and width of the original images, best on that device.
    "softmax" gives each query its best class but "no object": K = Q, in the order of the queries,
    whatever `top_k` is. "sigmoid" gives the `top_k` best pairs of query and class, best first: K =
    min(top_k, Q * C). Computed in fp32; nothing is copied to the host. Raises ValueError for
    another `kind`.

    Source: Carion et al., "End-to-End Object Detection with Transformers", 2020 (softmax); Zhu et
    al., "Deformable DETR", 2021 (sigmoid). Deviation: pairs are ranked by logit and not by score,
    so that scores which round to the same fp32 number keep their order.
    """
    logits = outputs["pred_logits"].float()
    boxes = box_cxcywh_to_xyxy(outputs["pred_boxes"].float())
    if kind == "softmax":
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    elif kind == "sigmoid":
        num_classes = logits.shape[-1]
        pairs = logits.flatten(1)
        best, index = pairs.topk(min(top_k, pairs.shape[1]), dim=1)
        scores, labels = best.sigmoid(), index % num_classes
        boxes = boxes.gather(1, (index // num_classes)[..., None].expand(-1, -1, 4))
    else:
        raise ValueError(f"kind must be softmax or sigmoid, not {kind!r}")
    height_width = orig_sizes.to(boxes)
    return scores, labels, boxes * height_width.flip(-1).repeat(1, 2)[:, None]
