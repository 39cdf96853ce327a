"""D-FINE: an RT-DETR that finds the edges of its boxes as distributions over bins.

Its first decoder layer proposes a box. Every layer then holds, for each of the four edges, a
distribution over how far the edge lies from where that box has it: the bins are fine near the
middle and coarse at the ends. A layer adds its logits to those of the layer before, and how peaked
a distribution is corrects the scores.

Source: Peng et al., "D-FINE: Redefine Regression Task of DETRs as Fine-grained Distribution
Refinement" (ICLR 2025). The parameter names are those of the original implementation. Deviations:
those of `rtdetr.py`, and the whole backbone is trained, where the original freezes the stem of l
and x. DEIM (Huang et al., CVPR 2025) and RT-DETRv4 (Liao et al., 2025) train the same architecture,
with SiLU in the decoder. "pre_outputs" are the boxes that the first layer proposes, before their
edges move, with its scores.

Shape letters: B images, Q queries, C classes, D width, N = bins + 1 values of the move of an edge.
Boxes are cxcywh, fractions of the unpadded image.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.edges import UPPER_BOUND, bin_values, move_edges
from redetr.models.backbone import Norm
from redetr.models.deformable import DecoderLayer, DeformableAttention, EncoderOutput, Sampling
from redetr.models.hgnetv2 import SIZES, HGNetV2
from redetr.models.hybrid import HybridEncoder, elan_pyramid
from redetr.models.mask_head import MaskHead
from redetr.models.resnet_vd import ConvNorm
from redetr.models.rtdetr import (
    NUM_LEVELS,
    RTDETR,
    points_of_level,
    require_common,
    require_points,
)
from redetr.models.transformer import ACTIVATIONS, MLP, Activation
from redetr.models.two_stage import TwoStageDecoder, init_heads, inverse_sigmoid
from redetr.structures import Outputs

_MOST_LEVELS = 4  # of the backbone
_LEVELS_OF_MASKS = 3  # the finest has stride 8
_LARGEST_QUERY_POS = 10
# The head that judges a box by its distributions.
_PEAKS = 4
_QUALITY_WIDTH = 64


class _Gate(nn.Module):
    """Mixes a query with what it has read, with a gate per channel."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.gate = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tensor, read: Tensor) -> Tensor:
        gates = self.gate(torch.cat([query, read], -1)).sigmoid()
        query_gate, read_gate = gates.chunk(2, -1)
        return self.norm(query_gate * query + read_gate * read)


class _Quality(nn.Module):
    """Corrects the scores of a box by how peaked the distributions of its edges are."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.reg_conf = MLP(4 * (_PEAKS + 1), _QUALITY_WIDTH, 1, 2, activation)
        for parameter in self.reg_conf.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, distributions: Tensor) -> Tensor:
        """Returns what to add to the logits, `[B, Q, 1]`.

        The `distributions` `[B, Q, 4, N]` sum to 1.
        """
        # Gathered: LiteRT has no operator for the values of `topk` alone.
        positions = distributions.topk(_PEAKS, dim=-1).indices
        peaks = distributions.gather(-1, positions)  # [B, Q, 4, peaks]
        statistics = torch.cat([peaks, peaks.mean(-1, keepdim=True)], -1)
        # Distributions are in fp32 or fp64, also where all weights are in bf16.
        first: Any = self.reg_conf.layers[0]
        return self.reg_conf(statistics.flatten(2).to(first.weight.dtype))


def _projections(num_channels: list[int], hidden_dim: int, norm: Norm) -> nn.ModuleList:
    """Returns what makes each level `hidden_dim` channels wide: nothing where it is."""
    projections = nn.ModuleList()
    for channels in num_channels:
        projection: nn.Module = nn.Identity()
        if channels != hidden_dim:
            projection = ConvNorm(channels, hidden_dim, 1, norm=norm)
        projections.append(projection)
    return projections


class Decoder(TwoStageDecoder):
    """Corrects the boxes of the queries by four distributions, which each layer refines."""

    def __init__(
        self,
        *,
        num_classes: int,
        num_channels: list[int],
        hidden_dim: int,
        nheads: int,
        dec_layers: int,
        dim_feedforward: int,
        points: list[int],
        sampling: Sampling,
        num_queries: int,
        eval_idx: int,
        norm: Norm,
        denoising: int,
        bins: int,
        reg_scale: float,
        activation: Activation,
    ):
        input_proj = _projections(num_channels, hidden_dim, norm)
        super().__init__(num_classes, input_proj, hidden_dim, num_queries, denoising, activation)
        self.last_in_eval = range(dec_layers)[eval_idx]
        self.bins = bins
        self.up = nn.Parameter(torch.tensor([UPPER_BOUND]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(reg_scale)]), requires_grad=False)
        attention = partial(
            DeformableAttention, hidden_dim, nheads, points, sampling, projects=False
        )
        gate = partial(_Gate, hidden_dim)
        layer = partial(
            DecoderLayer, hidden_dim, nheads, dim_feedforward, attention, gate, activation
        )
        self.decoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(layer() for _ in range(dec_layers)),
                "lqe_layers": nn.ModuleList(_Quality(activation) for _ in range(dec_layers)),
            }
        )
        self.pre_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3, activation)
        self.dec_score_head = nn.ModuleList(
            nn.Linear(hidden_dim, num_classes) for _ in range(dec_layers)
        )
        self.dec_bbox_head = nn.ModuleList(
            MLP(hidden_dim, hidden_dim, 4 * (bins + 1), 3, activation) for _ in range(dec_layers)
        )
        init_heads(self.dec_score_head, [self.pre_bbox_head, *self.dec_bbox_head])

    def _decode(
        self,
        content: Tensor,
        boxes: Tensor,
        encoded: EncoderOutput,
        every_layer: bool,
        ignored: Tensor | None = None,
    ) -> list[Outputs]:
        """As `TwoStageDecoder`; with `every_layer`, the last outputs hold the boxes that the first
        layer proposes, before their edges move, as "pre_outputs"."""
        layers: Any = self.decoder["layers"]
        quality_heads: Any = self.decoder["lqe_layers"]
        last = len(layers) - 1 if self.training else self.last_in_eval
        reg_scale = at_least_float32(self.reg_scale).abs()
        values = bin_values(self.up.abs() * reg_scale, self.bins)  # [N]
        x = content
        reference = boxes
        x_before: Any = 0.0
        edge_logits: Any = 0.0
        outputs: list[Outputs] = []
        proposed: Outputs | None = None
        for i in range(last + 1):
            # Boxes are in fp32 or fp64, also where all weights are in bf16.
            query_pos = self.query_pos_head(reference.to(x.dtype))  # [B, Q, D]
            query_pos = query_pos.clamp(-_LARGEST_QUERY_POS, _LARGEST_QUERY_POS)
            x = layers[i](x, query_pos, reference, *encoded, ignored)
            if i == 0:
                correction = at_least_float32(self.pre_bbox_head(x))
                first_boxes = (inverse_sigmoid(reference) + correction).sigmoid()  # [B, Q, 4]
            # Not detached: the loss of a layer also teaches the heads of those before.
            edge_logits = at_least_float32(self.dec_bbox_head[i](x + x_before)) + edge_logits
            distributions = edge_logits.unflatten(-1, (4, -1)).softmax(-1)  # [B, Q, 4, N]
            moves = (distributions * values).sum(-1)  # [B, Q, 4]; autocast rounds a product of `@`
            refined = move_edges(first_boxes.detach(), moves, reg_scale)  # [B, Q, 4]
            if every_layer or i == last:
                logits = at_least_float32(self.dec_score_head[i](x))  # [B, Q, C]
                if every_layer and i == 0:
                    proposed = {"pred_logits": logits, "pred_boxes": first_boxes}
                quality = at_least_float32(quality_heads[i](distributions))
                layer: Outputs = {"pred_logits": logits + quality, "pred_boxes": refined}
                if every_layer:
                    layer["edge_logits"] = edge_logits
                    layer["first_boxes"] = first_boxes.detach()
                outputs.append(layer)
            reference = refined.detach()
            x_before = x.detach()
        if proposed is not None:
            outputs[-1]["pre_outputs"] = proposed
        outputs[-1]["states"] = x
        return outputs


class DFINE(RTDETR):
    """An RT-DETR built from the parts of D-FINE. Scores are sigmoids: there is no "no object"
    class."""

    def __init__(
        self,
        num_classes: int,
        backbone: HGNetV2,
        encoder: HybridEncoder,
        decoder: Decoder,
        reg_scale: float,
        mask_head: MaskHead | None = None,
    ):
        super().__init__(num_classes, backbone, encoder, decoder, mask_head=mask_head)
        self.loss_config = replace(
            self.loss_config, loss_fgl=0.15, loss_ddf=1.5, loss_ddn=1.5, reg_scale=reg_scale
        )


def require_possible(options: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, for `options` that no D-FINE supports."""
    points = options["points"]
    num_levels = len(points) if isinstance(points, tuple | list) else NUM_LEVELS
    if num_levels not in range(2, _MOST_LEVELS + 1):
        raise ValueError(f"points must be those of 2 to {_MOST_LEVELS} levels")
    require_points(points, num_levels)
    if options["backbone"] not in tuple(SIZES):  # a list has no hash
        raise ValueError(f"backbone must be one of {', '.join(SIZES)}")
    require_common(options)
    if options["width"] % 8:
        raise ValueError("width must be a multiple of 8")
    bins = options["bins"]
    if not isinstance(bins, int) or bins % 2:
        raise ValueError("bins must be an even number")


def dfine(
    num_classes: int,
    *,
    backbone: str = "hgnetv2_b0",
    weights: str | None = None,
    width: int = 16,
    affine: bool = True,
    norm: Norm = "frozen_batch",
    enc_hidden_dim: int = 256,
    enc_dim_feedforward: int = 1024,
    block_width: int = 64,
    blocks: int = 1,
    hidden_dim: int = 256,
    nheads: int = 8,
    dec_layers: int = 3,
    dim_feedforward: int = 1024,
    points: int | tuple[int, ...] = (3, 6, 3),
    sampling: Sampling = "bilinear",
    bins: int = 32,
    reg_scale: float = 4.0,
    activation: str = "relu",
    num_queries: int = 300,
    eval_idx: int = -1,
    denoising: int = 0,
    masks: bool = False,
) -> DFINE:
    """Returns a D-FINE with random weights. The defaults are those of s.

    There are no backbone `weights` by name. `norm` is that of all convolutions; frozen BatchNorm
    means that of the weights it starts from. `width` is that of the backbone's stem, `affine`
    whether its activations are scaled. `block_width` and `blocks` are the width and the number of
    RepVGG blocks in the encoder's layers. `points` are those of a query on each level, the coarsest
    of which has stride 32. An edge moves by one of `bins` + 1 values; a larger `reg_scale` makes
    those in the middle finer. `activation` is that of the decoder and its heads: "silu" in DEIM and
    RT-DETRv4. `sampling`, `eval_idx` and `denoising` are as in `rtdetr`. With `masks`, each query
    has an instance mask; the backbone then has a feature map at stride 8 in any case.
    """
    by_level = points_of_level(points)
    num_levels = len(by_level)
    num_features = max(num_levels, _LEVELS_OF_MASKS) if masks else num_levels
    body = HGNetV2(backbone, weights, norm, width, affine, num_features)
    pyramid = elan_pyramid(enc_hidden_dim, block_width, blocks, norm)
    encoder = HybridEncoder(
        body.num_channels[-num_levels:], enc_hidden_dim, nheads, enc_dim_feedforward, pyramid, norm
    )
    decoder = Decoder(
        num_classes=num_classes,
        num_channels=[enc_hidden_dim] * num_levels,
        hidden_dim=hidden_dim,
        nheads=nheads,
        dec_layers=dec_layers,
        dim_feedforward=dim_feedforward,
        points=by_level,
        sampling=sampling,
        num_queries=num_queries,
        eval_idx=eval_idx,
        norm=norm,
        denoising=denoising,
        bins=bins,
        reg_scale=reg_scale,
        activation=ACTIVATIONS[activation],
    )
    mask_head = None
    if masks:
        finer = body.num_channels[:-num_levels]
        mask_channels = [*finer, *[enc_hidden_dim] * num_levels]
        mask_head = MaskHead(mask_channels, hidden_dim, hidden_dim)
    return DFINE(num_classes, body, encoder, decoder, reg_scale, mask_head)


def dfine_n(
    num_classes: int,
    *,
    enc_hidden_dim: int = 128,
    enc_dim_feedforward: int = 512,
    block_width: int = 21,
    blocks: int = 2,
    hidden_dim: int = 128,
    dim_feedforward: int = 512,
    points: int | tuple[int, ...] = (6, 6),
    **options: Any,
) -> DFINE:
    """D-FINE-N: 42.8 AP on COCO val 2017 with the authors' weights (published; Apache-2.0)."""
    return dfine(
        num_classes,
        enc_hidden_dim=enc_hidden_dim,
        enc_dim_feedforward=enc_dim_feedforward,
        block_width=block_width,
        blocks=blocks,
        hidden_dim=hidden_dim,
        dim_feedforward=dim_feedforward,
        points=points,
        **options,
    )


def dfine_s(num_classes: int, **options: Any) -> DFINE:
    """D-FINE-S: 48.5 AP (published; Apache-2.0); 50.7 from Objects365 (licence not stated)."""
    return dfine(num_classes, **options)


def dfine_m(
    num_classes: int,
    *,
    backbone: str = "hgnetv2_b2",
    width: int = 32,
    block_width: int = 128,
    blocks: int = 2,
    dec_layers: int = 4,
    **options: Any,
) -> DFINE:
    """D-FINE-M: 52.3 AP (published; Apache-2.0); 55.1 from Objects365 (licence not stated)."""
    return dfine(
        num_classes,
        backbone=backbone,
        width=width,
        block_width=block_width,
        blocks=blocks,
        dec_layers=dec_layers,
        **options,
    )


def dfine_l(
    num_classes: int,
    *,
    backbone: str = "hgnetv2_b4",
    width: int = 48,
    affine: bool = False,
    block_width: int = 128,
    blocks: int = 3,
    dec_layers: int = 6,
    **options: Any,
) -> DFINE:
    """D-FINE-L: 54.0 AP (published; Apache-2.0); 57.3 from Objects365 (licence not stated)."""
    return dfine(
        num_classes,
        backbone=backbone,
        width=width,
        affine=affine,
        block_width=block_width,
        blocks=blocks,
        dec_layers=dec_layers,
        **options,
    )


def dfine_x(
    num_classes: int,
    *,
    backbone: str = "hgnetv2_b5",
    width: int = 64,
    affine: bool = False,
    enc_hidden_dim: int = 384,
    enc_dim_feedforward: int = 2048,
    block_width: int = 192,
    blocks: int = 3,
    dec_layers: int = 6,
    reg_scale: float = 8.0,
    **options: Any,
) -> DFINE:
    """D-FINE-X: 55.8 AP (published; Apache-2.0); 59.3 from Objects365 (licence not stated)."""
    return dfine(
        num_classes,
        backbone=backbone,
        width=width,
        affine=affine,
        enc_hidden_dim=enc_hidden_dim,
        enc_dim_feedforward=enc_dim_feedforward,
        block_width=block_width,
        blocks=blocks,
        dec_layers=dec_layers,
        reg_scale=reg_scale,
        **options,
    )
