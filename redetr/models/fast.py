"""The fast variant: a two-stage DETR with a multi-scale deformable decoder.

It learns in minutes where the faithful variant needs days: queries start at the best-scored
positions of the feature maps, look only at a few points around their box (`grid_sample`, no custom
kernel), and correct that box layer by layer; the encoder's positions are matched to the objects as
well.

Sources: Deformable DETR (Zhu et al. 2021) for the sampling, box refinement and two-stage selection;
DINO (Zhang et al. 2023) for learned query content; RT-DETR (Zhao et al. 2024) for the single
encoder layer. Deviations: coordinates are fractions of the unpadded image throughout, anchors are
sized by the stride, levels are 8, 16 and 32.

Shape letters: B images, Q queries, C classes, D width, S positions of all levels together, and
h, w the size of one level. Boxes are cxcywh, fractions of the unpadded image.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.backbone import Norm, padding_at, require_padding_mask
from redetr.models.backbones import AnyBackbone, build_backbone
from redetr.models.deformable import (
    DecoderLayer,
    DeformableAttention,
    EncoderOutput,
    best_positions,
    position_centers,
    take,
    valid_ratio,
)
from redetr.models.group_norm import GroupNorm
from redetr.models.linear import Linear
from redetr.models.mask_head import MaskHead, with_mask_losses
from redetr.models.position import PositionEmbeddingSine, sine_features
from redetr.models.transformer import MLP, TransformerEncoderLayer
from redetr.models.two_stage import init_heads
from redetr.structures import DetectionModel, LossConfig, Outputs

STRIDES = (8, 16, 32)
_ANCHOR_STRIDES = 2.25  # side of an anchor in strides of its level
_MASK_WIDTH = 64  # of the embeddings of masks
_CLASS_BIAS = -4.0  # a score of 0.018 everywhere: few objects among many positions
_LEAST_FRACTION = 1e-4  # of the image: keeps logits of coordinates finite
_PADDING_SCORE = -1e4  # finite, so that losses and their gradients stay finite; its sigmoid is 0


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Returns the logit of `x`, which is clamped to [1e-4, 1 - 1e-4].

    Not that of `two_stage.py`, whose bound is 1e-5, as in RT-DETR.
    """
    x = x.clamp(_LEAST_FRACTION, 1 - _LEAST_FRACTION)
    odds = x / (1 - x)
    return odds.log()


class Neck(nn.Module):
    """Three levels of one width, strides 8, 16 and 32, from backbone features at strides 8 and 16.

    The only encoder layer is at stride 16, where attention over all positions is affordable.
    """

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
        """Returns the levels, each `[B, D, h, w]`; `mask` `[B, H, W]` is True = padding."""
        features8, features16 = features
        level8 = self.lateral8(features8)
        level16 = self.lateral16(features16)

        padding = padding_at(level16, mask)  # [B, h, w]
        pos = self.position(padding).flatten(1, 2).to(level16.dtype)  # [B, h * w, D]
        ignored = None if mask is None else padding.flatten(1)  # [B, h * w]
        encoded = self.encoder(level16.flatten(2).mT, pos, ignored)
        level16 = encoded.mT.unflatten(-1, level16.shape[-2:])

        upsampled = F.interpolate(level16, size=level8.shape[-2:], mode="nearest")
        level8 = self.fuse8(level8 + upsampled)
        level32 = self.down32(level16)
        return [level8, level16, level32]


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, GroupNorm(8, outputs))


class FastDETR(DetectionModel):
    """Backbone, neck, query selection, deformable decoder.

    Scores are sigmoids: there is no "no object" class. With `masks`, the backbone has a feature map
    at stride 4 as well.
    """

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
        masks: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.aux_loss = True
        self.loss_config = LossConfig(scores="sigmoid", cost_class=2.0, proposals=True)
        self.backbone = nn.ModuleList([backbone])
        self.neck = Neck(backbone.num_channels[-2:], hidden_dim, nheads, dim_feedforward)
        self.memory_norm = nn.LayerNorm(hidden_dim)
        self.enc_class_embed = Linear(hidden_dim, num_classes)
        self.enc_bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.query_pos = MLP(2 * hidden_dim, hidden_dim, hidden_dim, 2)
        by_level = [points] * len(STRIDES)
        cross_attention = partial(DeformableAttention, hidden_dim, nheads, by_level, "bilinear")
        arguments = (hidden_dim, nheads, dim_feedforward, cross_attention)
        self.decoder = nn.ModuleList(DecoderLayer(*arguments) for _ in range(dec_layers))
        self.class_embed = nn.ModuleList(
            nn.Linear(hidden_dim, num_classes) for _ in range(dec_layers)
        )
        self.bbox_embed = nn.ModuleList(
            MLP(hidden_dim, hidden_dim, 4, 3) for _ in range(dec_layers)
        )
        self.mask_head: MaskHead | None = None
        self.has_masks = masks
        if masks:
            levels = [hidden_dim] * len(STRIDES)
            fine = backbone.num_channels[0]
            self.mask_head = MaskHead(levels, hidden_dim, _MASK_WIDTH, fine)
            self.loss_config = with_mask_losses(self.loss_config)
        score_heads = [self.enc_class_embed, *self.class_embed]
        bbox_heads = [self.enc_bbox_embed, *self.bbox_embed]
        init_heads(score_heads, bbox_heads, _CLASS_BIAS)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        """Returns logits `[B, Q, C]` and boxes `[B, Q, 4]` of every decoder layer, as `Outputs`.

        With `aux_loss`, also those of all encoder positions, `[B, S, C]` and `[B, S, 4]`. A model
        with masks adds them, see `MaskHead`. `images` `[B, 3, H, W]` are normalised; `mask`
        `[B, H, W]` is True = padding, None = there is none. Raises ValueError for a mask of another
        shape or dtype.
        """
        require_padding_mask(images, mask)
        (backbone,) = self.backbone
        features = backbone(images)
        levels = self.neck(features[-2:], mask)  # three of [B, D, h, w]
        ratio = valid_ratio(images, mask)  # [B, 2]
        outputs = self._detect(levels, ratio, images.shape[-2:], mask is not None)
        if self.mask_head is not None:
            height, width = images.shape[-2:]
            self.mask_head(outputs, levels, features[0], (height, width), ratio, self.aux_loss)
        del outputs["states"]
        return outputs

    def _detect(
        self, levels: list[Tensor], ratio: Tensor, image_size: torch.Size, padded: bool
    ) -> Outputs:
        """Returns the outputs of `forward` without masks, and the last `states` of the queries.

        `ratio` `[B, 2]` is the share (x, y) of the canvas that is image.
        """
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        flat_levels = [level.flatten(2).mT for level in levels]
        memory = self.memory_norm(torch.cat(flat_levels, dim=1))  # [B, S, D]
        anchors = _anchors(shapes, image_size, ratio)  # [B, S, 4]

        enc_logits = at_least_float32(self.enc_class_embed(memory))  # [B, S, C]
        if padded:
            inside = (anchors[..., :2] < 1).all(-1, keepdim=True)  # [B, S, 1]
            enc_logits = torch.where(inside, enc_logits, _PADDING_SCORE)
        best = best_positions(enc_logits, self.num_queries)  # [B, Q]
        content = take(memory, best)  # [B, Q, D]
        encoded = EncoderOutput(memory, shapes, ratio)

        if not self.aux_loss:
            # Only the chosen positions need a box.
            boxes = self._proposals(take(anchors, best), content)
            layers = self._decode(content, boxes, encoded)
            return {**layers[-1], "aux_outputs": []}

        enc_boxes = self._proposals(anchors, memory)  # [B, S, 4]
        # The decoder's losses do not teach the encoder's boxes, which have their own.
        boxes = take(enc_boxes.detach(), best)
        layers = self._decode(content, boxes, encoded)
        enc_outputs: Outputs = {"pred_logits": enc_logits, "pred_boxes": enc_boxes}
        return {**layers[-1], "aux_outputs": layers[:-1], "enc_outputs": enc_outputs}

    def _proposals(self, anchors: Tensor, features: Tensor) -> Tensor:
        """Returns the boxes `[B, N, 4]` of positions with `anchors` and `features` `[B, N, D]`."""
        reference = inverse_sigmoid(anchors)
        correction = at_least_float32(self.enc_bbox_embed(features))
        return (reference + correction).sigmoid()

    def _decode(
        self,
        content: Tensor,
        boxes: Tensor,
        encoded: EncoderOutput,
    ) -> list[Outputs]:
        """Returns the outputs of every decoder layer; without `aux_loss`, of the last one only.

        `content` `[B, Q, D]` and `boxes` `[B, Q, 4]` are where the queries start; `encoded` is
        what they read.
        """
        num_queries = boxes.shape[1]  # fewer than usual on a tiny image
        x = self.query_embed.weight[:num_queries] + content  # [B, Q, D]
        outputs: list[Outputs] = []
        heads = zip(self.decoder, self.class_embed, self.bbox_embed, strict=True)
        for layer, class_embed, bbox_embed in heads:
            box_sines = sine_features(boxes * (2 * math.pi), self.hidden_dim // 2)
            # Boxes are in fp32 or fp64, also where all weights are in bf16.
            box_sines = box_sines.flatten(-2).to(x.dtype)  # [B, Q, 4 * D / 2]
            query_pos = self.query_pos(box_sines)  # [B, Q, D]
            x = layer(x, query_pos, boxes, *encoded)
            reference = inverse_sigmoid(boxes)
            correction = at_least_float32(bbox_embed(x))
            refined = (reference + correction).sigmoid()  # [B, Q, 4]
            if self.aux_loss or layer is self.decoder[-1]:
                logits = at_least_float32(class_embed(x))  # [B, Q, C]
                outputs.append({"pred_logits": logits, "pred_boxes": refined})
            boxes = refined.detach()  # each layer learns its own correction
        outputs[-1]["states"] = x
        return outputs


def _anchors(shapes: list[tuple[int, int]], image_size: torch.Size, ratio: Tensor) -> Tensor:
    """Returns one square box per position, `[B, S, 4]`.

    `shapes` are the (h, w) of the levels, `image_size` is the (H, W) of the canvas in px, and
    `ratio` `[B, 2]` is the share (x, y) of the canvas that is image.
    """
    canvas_height, canvas_width = image_size
    per_level = []
    for stride, shape in zip(STRIDES, shapes, strict=True):
        centers = position_centers(shape, like=ratio)  # [h * w, 2]
        side = _ANCHOR_STRIDES * stride
        # Filled, not copied from the host: a copy would wait for the device.
        anchor_width = torch.full_like(centers[:, :1], side / canvas_width)
        anchor_height = torch.full_like(centers[:, :1], side / canvas_height)
        per_level.append(torch.cat([centers, anchor_width, anchor_height], -1))
    # From fractions of the canvas to fractions of the unpadded image.
    canvas_anchors = torch.cat(per_level)  # [S, 4]
    return canvas_anchors / ratio.repeat(1, 2)[:, None]


def fast(
    num_classes: int,
    *,
    backbone: str | tuple[int, int, int] = (32, 64, 128),
    weights: str | None = None,
    norm: Norm = "frozen_batch",
    hidden_dim: int = 64,
    nheads: int = 8,
    dec_layers: int = 3,
    dim_feedforward: int = 256,
    points: int = 4,
    num_queries: int = 100,
    masks: bool = False,
) -> FastDETR:
    """Returns a fast variant. `backbone` is a name of torchvision or timm, or three widths.

    See `build_backbone` for the names. With `masks`, each query has an instance mask.
    """
    strides = (4, 8, 16) if masks else (8, 16)
    body = build_backbone(backbone, weights, norm, strides)
    return FastDETR(
        num_classes,
        body,
        hidden_dim,
        nheads,
        dec_layers,
        dim_feedforward,
        points,
        num_queries,
        masks,
    )


def redetr_n(num_classes: int, **options: Any) -> FastDETR:
    """Nano: a small residual net trained from scratch; about 0.75 M parameters."""
    return fast(num_classes, **options)


def redetr_mobile(
    num_classes: int,
    *,
    backbone: str | tuple[int, int, int] = "efficientnet_lite0",
    hidden_dim: int = 128,
    dim_feedforward: int = 512,
    **options: Any,
) -> FastDETR:
    """EfficientNet-Lite0, meant to start from ImageNet weights (`weights="imagenet"`); about 2 M
    parameters."""
    return fast(
        num_classes,
        backbone=backbone,
        hidden_dim=hidden_dim,
        dim_feedforward=dim_feedforward,
        **options,
    )
