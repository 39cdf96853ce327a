"""The fast form: a two-stage DETR with a multi-scale deformable decoder, from image to boxes in one
file.

It learns in minutes where the faithful form needs days: queries start at the best-scored positions
of the feature maps, look only at a few points around their box (`grid_sample`, no custom kernel),
and correct that box layer by layer; the encoder's positions are matched to the objects as well.

Sources: Deformable DETR (Zhu et al. 2021) for the sampling, box refinement and two-stage selection;
DINO (Zhang et al. 2023) for learned query content; RT-DETR (Zhao et al. 2024) for the single
encoder layer. Deviations: coordinates are fractions of the unpadded image throughout, anchors are
sized by the stride, levels are 8, 16 and 32.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.backbone import AnyBackbone, Norm, build_backbone, padding_at
from redetr.models.position import PositionEmbeddingSine, sine_features
from redetr.models.transformer import MLP, MultiheadAttention, TransformerEncoderLayer
from redetr.structures import DetectionModel, LossConfig, Outputs

STRIDES = (8, 16, 32)
_ANCHOR_STRIDES = 2.25  # side of an anchor in strides of its level
_CLASS_BIAS = -4.0  # a score of 0.018 everywhere: few objects among many positions
_PADDING_SCORE = -1e4  # finite, so that losses and their gradients stay finite; its sigmoid is 0


def inverse_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """The logit of `x`, cut off at `eps` from 0 and 1."""
    x = x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


class DeformableAttention(nn.Module):
    """Every query reads each level at a few learned points around its box. Source: Deformable DETR,
    equation 3."""

    def __init__(self, hidden_dim: int, nheads: int, points: int):
        super().__init__()
        self.nheads = nheads
        self.points = points
        samples = nheads * len(STRIDES) * points
        self.offsets = nn.Linear(hidden_dim, samples * 2)
        self.weights = nn.Linear(hidden_dim, samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        # Each head starts looking in a direction of its own, point k at k steps: a star around the
        # centre.
        angle = torch.arange(nheads) * (2 * math.pi / nheads)
        star = torch.stack([angle.cos(), angle.sin()], -1)
        star = star / star.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1)
        bias = star[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, len(STRIDES), -1, -1).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(zero)
        for linear in (self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def samples(self, query: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Where each query looks, `[B, Q, heads, levels, points, 2]` (x, y as fractions of the
        unpadded image, also outside of it), and how much each point counts, `[B, Q, heads, levels *
        points]`.
        """
        split = (*query.shape[:2], self.nheads, len(STRIDES), self.points)
        offsets = at_least_float32(self.offsets(query)).view(*split, 2)
        weights = at_least_float32(self.weights(query)).view(*split[:3], -1).softmax(-1)
        centers, sizes = boxes[:, :, None, None, None, :2], boxes[:, :, None, None, None, 2:]
        return centers + offsets * sizes * (0.5 / self.points), weights

    def forward(
        self,
        query: Tensor,
        boxes: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        valid_ratio: Tensor,
    ) -> Tensor:
        """`[B, Q, D]` from `query` `[B, Q, D]`, its `boxes` `[B, Q, 4]` cxcywh and `memory` `[B, S,
        D]`.

        `shapes` are the (h, w) of the levels in `memory`; `valid_ratio` `[B, 2]` is the share (x,
        y) of the canvas that is image.
        """
        batch, queries, _ = query.shape
        where, weights = self.samples(query, boxes)
        # grid_sample wants [-1, 1] over the canvas, one "image" per head.
        grid = (
            (2 * where * valid_ratio[:, None, None, None, None] - 1).transpose(1, 2).flatten(0, 1)
        )
        values = (
            self.value_proj(memory)
            .unflatten(-1, (self.nheads, -1))
            .permute(0, 2, 3, 1)
            .flatten(0, 1)
        )
        values = at_least_float32(values)  # sampling in half precision loses the position
        sampled = [
            F.grid_sample(level.unflatten(-1, shape), grid[:, :, i], align_corners=False)
            for i, (level, shape) in enumerate(
                zip(values.split([h * w for h, w in shapes], -1), shapes, strict=True)
            )
        ]
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
        out = (torch.cat(sampled, -1) * weights).sum(-1)  # [B * heads, D / heads, Q]
        return self.out_proj(out.view(batch, -1, queries).mT.to(query.dtype))


class DecoderLayer(nn.Module):
    """Self-attention between queries, deformable attention to the image, feed-forward;
    post-norm."""

    def __init__(self, hidden_dim: int, nheads: int, points: int, dim_feedforward: int):
        super().__init__()
        self.self_attn = MultiheadAttention(hidden_dim, nheads)
        self.cross_attn = DeformableAttention(hidden_dim, nheads, points)
        self.linear1 = nn.Linear(hidden_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor, query_pos: Tensor, boxes: Tensor, *image: Any) -> Tensor:
        query = x + query_pos
        x = self.norm1(x + self.self_attn(query, query, x))
        x = self.norm2(x + self.cross_attn(x + query_pos, boxes, *image))
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Neck(nn.Module):
    """Backbone features to three levels of one width, strides 8, 16, 32; one encoder layer at
    stride 16."""

    def __init__(self, num_channels: list[int], hidden_dim: int, nheads: int, dim_feedforward: int):
        super().__init__()
        self.lateral8 = _conv_norm(num_channels[0], hidden_dim, 1)
        self.lateral16 = _conv_norm(num_channels[1], hidden_dim, 1)
        self.position = PositionEmbeddingSine(hidden_dim // 2)
        self.encoder = TransformerEncoderLayer(
            hidden_dim, nheads, dim_feedforward, dropout=0.0, pre_norm=False
        )
        self.down32 = _conv_norm(hidden_dim, hidden_dim, 3, stride=2)
        self.fuse8 = _conv_norm(hidden_dim, hidden_dim, 3)

    def forward(self, features: list[Tensor], mask: Tensor | None) -> list[Tensor]:
        at8, at16 = self.lateral8(features[0]), self.lateral16(features[1])
        padding = padding_at(at16, mask)
        pos = self.position(padding).flatten(1, 2).to(at16.dtype)
        encoded = self.encoder(
            at16.flatten(2).mT, pos, None if mask is None else ~padding.flatten(1)
        )
        at16 = encoded.mT.unflatten(-1, at16.shape[-2:])
        upsampled = F.interpolate(at16, size=at8.shape[-2:], mode="nearest")
        return [self.fuse8(at8 + upsampled), at16, self.down32(at16)]


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, outputs))


class FastDETR(DetectionModel):
    """Backbone, neck, query selection, deformable decoder. Scores are sigmoids: there is no "no
    object" class."""

    resize = "square"  # no padding, one shape
    image_size = 640
    max_size = None

    def __init__(
        self,
        num_classes: int,
        backbone: AnyBackbone,
        hidden_dim: int,
        nheads: int,
        dec_layers: int,
        dim_feedforward: int,
        points: int,
        num_queries: int,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.aux_loss = True
        self.loss_config = LossConfig(scores="sigmoid", cost_class=2.0, proposals=True)
        self.backbone = nn.ModuleList([backbone])
        self.neck = Neck(backbone.num_channels, hidden_dim, nheads, dim_feedforward)
        self.memory_norm = nn.LayerNorm(hidden_dim)
        self.enc_class_embed = nn.Linear(hidden_dim, num_classes)
        self.enc_bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.query_pos = MLP(2 * hidden_dim, hidden_dim, hidden_dim, 2)
        layer = (hidden_dim, nheads, points, dim_feedforward)
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(dec_layers))
        self.class_embed = nn.ModuleList(
            nn.Linear(hidden_dim, num_classes) for _ in range(dec_layers)
        )
        self.bbox_embed = nn.ModuleList(
            MLP(hidden_dim, hidden_dim, 4, 3) for _ in range(dec_layers)
        )
        for head in (self.enc_class_embed, *self.class_embed):
            nn.init.constant_(head.bias, _CLASS_BIAS)
        for head in (self.enc_bbox_embed, *self.bbox_embed):  # every box starts as its reference
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        """Classes and boxes of normalised `images` `[B, 3, H, W]`; `mask` `[B, H, W]` True =
        padding."""
        levels = self.neck(self.backbone[0](images), mask)
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        memory = self.memory_norm(torch.cat([level.flatten(2).mT for level in levels], dim=1))
        valid_ratio = _valid_ratio(images, mask)
        anchors = _anchors(shapes, images.shape[-2:], valid_ratio)
        enc_logits = at_least_float32(self.enc_class_embed(memory))
        if mask is not None:
            inside = (anchors[..., :2] < 1).all(-1, keepdim=True)
            enc_logits = torch.where(inside, enc_logits, _PADDING_SCORE)
        best = _best(enc_logits, self.num_queries)
        content = _take(memory, best)
        if not self.aux_loss:
            boxes = self._proposals(_take(anchors, best), content)
            return {
                **self._decode(content, boxes, (memory, shapes, valid_ratio))[-1],
                "aux_outputs": [],
            }
        enc_boxes = self._proposals(anchors, memory)
        layers = self._decode(
            content, _take(enc_boxes.detach(), best), (memory, shapes, valid_ratio)
        )
        enc_outputs: Outputs = {"pred_logits": enc_logits, "pred_boxes": enc_boxes}
        return {**layers[-1], "aux_outputs": layers[:-1], "enc_outputs": enc_outputs}

    def _proposals(self, anchors: Tensor, features: Tensor) -> Tensor:
        return (
            inverse_sigmoid(anchors) + at_least_float32(self.enc_bbox_embed(features))
        ).sigmoid()

    def _decode(self, content: Tensor, boxes: Tensor, image: tuple) -> list[Outputs]:
        x = self.query_embed.weight[: boxes.shape[1]] + content
        outputs: list[Outputs] = []
        for layer, class_embed, bbox_embed in zip(
            self.decoder, self.class_embed, self.bbox_embed, strict=True
        ):
            box_sines = sine_features(boxes * (2 * math.pi), self.hidden_dim // 2).flatten(-2)
            x = layer(x, self.query_pos(box_sines), boxes, *image)
            refined = (inverse_sigmoid(boxes) + at_least_float32(bbox_embed(x))).sigmoid()
            if self.aux_loss or layer is self.decoder[-1]:
                outputs.append(
                    {"pred_logits": at_least_float32(class_embed(x)), "pred_boxes": refined}
                )
            boxes = refined.detach()  # each layer learns its own correction
        return outputs


def _valid_ratio(images: Tensor, mask: Tensor | None) -> Tensor:
    """The share (x, y) of the canvas that is image, `[B, 2]`."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    if mask is None:
        return images.new_ones(images.shape[0], 2, dtype=dtype)
    columns, rows = (~mask[:, 0]).sum(1, dtype=dtype), (~mask[:, :, 0]).sum(1, dtype=dtype)
    return torch.stack([columns / mask.shape[2], rows / mask.shape[1]], -1)


def _anchors(shapes: list[tuple[int, int]], image_size: torch.Size, valid_ratio: Tensor) -> Tensor:
    """One square box per position, `[B, S, 4]` cxcywh as fractions of the unpadded image."""
    per_level = []
    for stride, (height, width) in zip(STRIDES, shapes, strict=True):
        y = (
            torch.arange(height, device=valid_ratio.device, dtype=valid_ratio.dtype) + 0.5
        ) / height
        x = (torch.arange(width, device=valid_ratio.device, dtype=valid_ratio.dtype) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        side = _ANCHOR_STRIDES * stride
        # Filled, not copied from the host: a copy would wait for the device.
        sizes = [torch.full_like(grid[:, :1], side / length) for length in reversed(image_size)]
        per_level.append(torch.cat([grid, *sizes], -1))
    return torch.cat(per_level) / valid_ratio.repeat(1, 2)[:, None]


def _best(logits: Tensor, count: int) -> Tensor:
    """The positions with the best class score, `[B, count]`; fewer if there are fewer positions."""
    scores = logits.detach().amax(-1)
    return scores.topk(min(count, scores.shape[1]), dim=1).indices


def _take(values: Tensor, positions: Tensor) -> Tensor:
    """`[B, K, D]` of `values` `[B, S, D]` at `positions` `[B, K]`."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def fast(
    num_classes: int,
    *,
    backbone: str | tuple[int, int, int] = (32, 64, 128),
    weights: str | None = None,
    norm: Norm = "frozen_batch",
    hidden_dim: int = 128,
    nheads: int = 8,
    dec_layers: int = 3,
    dim_feedforward: int = 512,
    points: int = 4,
    num_queries: int = 100,
) -> FastDETR:
    """A fast form from parts. `backbone` is a name of torchvision or timm, or three widths: see
    `build_backbone`."""
    body = build_backbone(backbone, weights, norm, (8, 16))
    return FastDETR(
        num_classes, body, hidden_dim, nheads, dec_layers, dim_feedforward, points, num_queries
    )


def redetr_n(num_classes: int, **options: Any) -> FastDETR:
    """Nano: a small residual net trained from scratch; about 2 M parameters."""
    return fast(num_classes, **options)


def redetr_s(
    num_classes: int,
    *,
    backbone: str | tuple[int, int, int] = (64, 128, 256),
    hidden_dim: int = 192,
    dim_feedforward: int = 768,
    **options: Any,
) -> FastDETR:
    """Small: twice the width of nano, trained from scratch."""
    return fast(
        num_classes,
        backbone=backbone,
        hidden_dim=hidden_dim,
        dim_feedforward=dim_feedforward,
        **options,
    )


def redetr_mobile(
    num_classes: int, *, backbone: str | tuple[int, int, int] = "mobilenet_v2", **options: Any
) -> FastDETR:
    """Nano on MobileNetV2, meant to start from ImageNet weights (`weights="imagenet"`)."""
    return fast(num_classes, backbone=backbone, **options)


def redetr_m(
    num_classes: int,
    *,
    backbone: str | tuple[int, int, int] = "resnet50",
    hidden_dim: int = 256,
    dec_layers: int = 6,
    dim_feedforward: int = 1024,
    num_queries: int = 300,
    **options: Any,
) -> FastDETR:
    """Medium: ResNet-50, meant to start from ImageNet weights (`weights="imagenet"`); six decoder
    layers."""
    return fast(
        num_classes,
        backbone=backbone,
        hidden_dim=hidden_dim,
        dec_layers=dec_layers,
        dim_feedforward=dim_feedforward,
        num_queries=num_queries,
        **options,
    )
