"""Query selection, shared by RT-DETR and D-FINE: queries start at the best positions.

Source: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (CVPR 2024). The parameter
names are those of the original implementation of RT-DETRv2.

Shape letters: B images, Q queries, C classes, D width, S positions of all levels together, h, w
the size of one level. Boxes are cxcywh, fractions of the unpadded image.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.denoising import NoisyQueries, split_outputs, with_noisy_queries
from redetr.models.deformable import EncoderOutput, best_positions, position_centers, take
from redetr.models.linear import Linear
from redetr.models.transformer import MLP, Activation
from redetr.structures import Outputs

_SMALLEST_ANCHOR = 0.05  # side on the finest level, a fraction of the image; doubles per level
_BORDER = 0.01  # anchors with a coordinate closer than this to 0 or 1 are not used
_LEAST_FRACTION = 1e-5  # of the image: keeps logits of coordinates finite
_CLASS_BIAS = -math.log(99)  # a score of 0.01 everywhere: few objects among many positions


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Returns the logit of `x` in [0, 1]; `x` and `1 - x` are each taken as at least 1e-5, as in
    RT-DETR."""
    odds = x.clamp(min=_LEAST_FRACTION) / (1 - x).clamp(min=_LEAST_FRACTION)
    return odds.log()


class TwoStageDecoder(nn.Module):
    """Selects the queries at the best positions; a subclass corrects their boxes layer by layer.

    `input_proj` has a module for each level of the encoder, which projects it to `hidden_dim`.
    `query_pos_layers` is the number of layers that turn the box of a query into its position
    encoding: 2 with twice the width between them, or 3 of the same width (DEIM on RT-DETRv2).
    """

    def __init__(
        self,
        num_classes: int,
        input_proj: nn.ModuleList,
        hidden_dim: int,
        num_queries: int,
        denoising: int,
        activation: Activation,
        query_pos_layers: int = 2,
    ):
        super().__init__()
        self.denoising = denoising
        self.num_queries = num_queries
        self.input_proj = input_proj
        proj = Linear(hidden_dim, hidden_dim)
        self.enc_output = nn.Sequential(OrderedDict(proj=proj, norm=nn.LayerNorm(hidden_dim)))
        self.enc_score_head = Linear(hidden_dim, num_classes)
        self.enc_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3, activation)
        width = 2 * hidden_dim if query_pos_layers == 2 else hidden_dim
        self.query_pos_head = MLP(4, width, hidden_dim, query_pos_layers, activation)
        for linear in (proj, *self.query_pos_head.layers):
            nn.init.xavier_uniform_(linear.weight)
        init_heads([self.enc_score_head], [self.enc_bbox_head])
        if denoising:
            self.denoising_class_embed = nn.Embedding(
                num_classes + 1, hidden_dim, padding_idx=num_classes
            )

    def forward(
        self,
        levels: list[Tensor],
        ratio: Tensor,
        every_layer: bool,
        noisy: NoisyQueries | None = None,
    ) -> Outputs:
        """Returns `Outputs` for the `levels` of the encoder; `ratio` as in `DeformableAttention`.

        They include the last `states` of the queries. Without `every_layer`, they are those of the
        last layer only. With `noisy` queries, they hold the outputs of these as well.
        """
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        projected = [proj(level) for proj, level in zip(self.input_proj, levels, strict=True)]
        memory = torch.cat([level.flatten(2).mT for level in projected], 1)  # [B, S, D]
        content, proposals = self._select(memory, _anchors(shapes, ratio))
        # The decoder's losses do not train the selection, which has its own losses.
        boxes = proposals["pred_boxes"].detach()
        content = content.detach()
        encoded = EncoderOutput(memory, shapes, ratio)
        outputs: Outputs
        if noisy is None:
            layers = self._decode(content, boxes, encoded, every_layer)
            outputs = {**layers[-1], "aux_outputs": layers[:-1]}
        else:
            num_queries = content.shape[1]
            content, boxes, ignored = with_noisy_queries(
                content, boxes, noisy, self.denoising_class_embed, self.denoising
            )
            layers = self._decode(content, boxes, encoded, every_layer, ignored)
            outputs = split_outputs(layers, num_queries)
        if every_layer:
            outputs["enc_outputs"] = proposals
        return outputs

    def _select(self, memory: Tensor, anchors: Tensor) -> tuple[Tensor, Outputs]:
        """Returns the content `[B, Q, D]` of the best positions, and their logits and boxes.

        `memory` is `[B, S, D]`, `anchors` `[B, S, 4]`. Positions whose anchor is not used still
        compete, with features of zeros and the constant box (1, 1, 1, 1), as in the original.
        """
        is_inside = (anchors > _BORDER) & (anchors < 1 - _BORDER)
        used = is_inside.all(-1, keepdim=True)  # [B, S, 1]
        used = used.to(memory.dtype)  # Core ML cannot gather truth values
        features = self.enc_output(memory * used)  # [B, S, D]
        logits = at_least_float32(self.enc_score_head(features))  # [B, S, C]
        best = best_positions(logits, self.num_queries)  # [B, Q]
        content = take(features, best)
        correction = at_least_float32(self.enc_bbox_head(content))
        boxes = (inverse_sigmoid(take(anchors, best)) + correction).sigmoid()  # [B, Q, 4]
        boxes = torch.where(take(used, best) > 0, boxes, 1.0)
        return content, {"pred_logits": take(logits, best), "pred_boxes": boxes}

    def _decode(
        self,
        content: Tensor,
        boxes: Tensor,
        encoded: EncoderOutput,
        every_layer: bool,
        ignored: Tensor | None = None,
    ) -> list[Outputs]:
        """Returns the outputs of every decoder layer that is used, or without `every_layer` of the
        last one only. The last outputs also hold its queries, as `states` `[B, Q, D]`.

        The queries start with `content` `[B, Q, D]` and `boxes` `[B, Q, 4]`, and read `encoded`.
        `ignored` `[B, Q, Q]` is True where a query does not see another one. Q includes noisy
        queries.
        """
        raise NotImplementedError


def init_heads(
    score_heads: Iterable[Any], bbox_heads: Iterable[Any], class_bias: float = _CLASS_BIAS
) -> None:
    """Initialises heads so that all scores are low and each box equals its reference.

    `class_bias` is the logit of all scores.
    """
    for head in score_heads:
        nn.init.constant_(head.bias, class_bias)
    for head in bbox_heads:
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)


def _anchors(shapes: list[tuple[int, int]], ratio: Tensor) -> Tensor:
    """Returns one square box per position, `[B, S, 4]`; those in the padding lie beyond 1."""
    by_level = []
    for i, shape in enumerate(shapes):
        centers = position_centers(shape, like=ratio) / ratio[:, None]  # [B, h * w, 2]
        sides = torch.full_like(centers, _SMALLEST_ANCHOR * 2**i)
        by_level.append(torch.cat([centers, sides], -1))
    return torch.cat(by_level, 1)
