"""Instance masks: the product of an embedding of each query and one of each pixel.

The pixels' embedding is made of the feature levels: all are added up at the finest, of stride 8,
mixed, doubled in size and mixed again, at stride 4, where the backbone's own map may join. That of
a query is an MLP of its state after the last decoder layer. A mask costs a product, so there may be
hundreds; in training, the loss asks for those of matched queries only.

In evaluation, what lies outside a query's box is taken for background: pixels are embedded by
convolutions, which cannot tell two equal objects at two positions apart.

Sources: Li et al., "Mask DINO" (CVPR 2023), for the product; Saakyan and Solntsev, "D-FINE-seg"
(2026), whose published weights have this layout, without the backbone's map of stride 4. Deviations
from the latter: only the last decoder layer is judged, noisy queries have no masks, objects are
matched by classes and boxes, and the box that cuts a mask is larger by one of its pixels.

Shape letters: B images, Q queries, D width of the model, E width of the embeddings, h, w at
stride 4.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32, box_cxcywh_to_xyxy
from redetr.models.group_norm import GroupNorm
from redetr.models.transformer import MLP
from redetr.structures import LossConfig, Outputs, Size

_MOST_GROUPS = 32  # of GroupNorm
_BACKGROUND = -5.0  # the largest logit outside a box: a score of 0.007
_LOSS_WEIGHT = 2.0  # of both losses


class MaskHead(nn.Module):
    """Predicts masks for the queries of a detector.

    `num_channels` are those of the levels, finest first; `fine_channels` that of a map of stride 4,
    None = there is none. `width` is E.
    """

    def __init__(
        self,
        num_channels: Sequence[int],
        hidden_dim: int,
        width: int,
        fine_channels: int | None = None,
    ):
        super().__init__()
        self.lateral = nn.ModuleList(_conv_norm(channels, width, 1) for channels in num_channels)
        self.fuse = _conv_norm(width, width, 3)
        self.fine = None if fine_channels is None else _conv_norm(fine_channels, width, 1)
        self.refine = _conv_norm(width, width, 3)
        self.queries = MLP(hidden_dim, hidden_dim, width, 3)

    def pixels(self, levels: list[Tensor], fine: Tensor | None = None) -> Tensor:
        """Returns the embedding of every pixel at stride 4, `[B, E, h, w]`."""
        height, width = levels[0].shape[-2:]
        projected = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        mixed = projected[0]
        for level in projected[1:]:
            mixed = mixed + F.interpolate(level, size=(height, width), mode="bilinear")
        mixed = F.relu(self.fuse(mixed))
        size = (2 * height, 2 * width) if fine is None else fine.shape[-2:]
        mixed = F.interpolate(mixed, size=size, mode="bilinear")
        if self.fine is not None:
            mixed = mixed + self.fine(fine)
        return F.relu(self.refine(mixed))

    def forward(
        self,
        outputs: Outputs,
        levels: list[Tensor],
        fine: Tensor | None,
        canvas: Size,
        ratio: Tensor,
        with_embeddings: bool,
    ) -> None:
        """Adds masks to `outputs`, which hold the `states` of the queries, `[B, Q, D]`.

        `levels` are `[B, num_channels[i], h_i, w_i]`, finest first, `fine` the features at stride 4
        or None. `canvas` is the (height, width) of the padded images, `ratio` `[B, 2]` the share
        (x, y) of it that is image. In evaluation, `pred_masks` are added; in training, or
        `with_embeddings`, the embeddings that masks are products of: `mask_embed`, `pixel_embed`.
        """
        outputs["canvas"] = canvas
        pixel_embed = self.pixels(levels, fine)
        mask_embed = self.queries(outputs["states"])
        mask_embed = mask_embed * mask_embed.shape[-1] ** -0.5  # [B, Q, E]
        if self.training or with_embeddings:
            outputs["mask_embed"] = mask_embed
            outputs["pixel_embed"] = pixel_embed
        if not self.training:
            masks = mask_embed @ pixel_embed.flatten(2).to(mask_embed.dtype)  # [B, Q, h * w]
            logits = at_least_float32(masks).unflatten(-1, pixel_embed.shape[-2:])
            outputs["pred_masks"] = _within_boxes(logits, outputs["pred_boxes"], ratio)


def _conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, GroupNorm(math.gcd(_MOST_GROUPS, outputs), outputs))


def _within_boxes(logits: Tensor, boxes: Tensor, ratio: Tensor) -> Tensor:
    """Returns `logits` `[B, Q, h, w]` with those outside `boxes` `[B, Q, 4]` lowered.

    A pixel counts as inside if its centre is in the box, or less than a pixel beside it.
    """
    height, width = logits.shape[-2:]
    # Centres and sides of pixels, as fractions of the canvas.
    x = (torch.arange(width, device=logits.device) + 0.5) / width  # [w]
    y = (torch.arange(height, device=logits.device) + 0.5) / height  # [h]
    pixel_width = 1 / width
    pixel_height = 1 / height

    on_image = box_cxcywh_to_xyxy(boxes)  # [B, Q, 4]
    on_canvas = on_image * ratio.repeat(1, 2)[:, None]
    left, top, right, bottom = on_canvas[..., None].unbind(2)  # each [B, Q, 1]
    in_columns = (x > left - pixel_width) & (x < right + pixel_width)  # [B, Q, w]
    in_rows = (y > top - pixel_height) & (y < bottom + pixel_height)  # [B, Q, h]
    inside = in_rows[..., :, None] & in_columns[..., None, :]
    lowered = logits.clamp(max=_BACKGROUND)
    return torch.where(inside, logits, lowered)


def with_mask_losses(config: LossConfig) -> LossConfig:
    """Returns the same losses and those of masks."""
    return replace(config, loss_mask=_LOSS_WEIGHT, loss_dice=_LOSS_WEIGHT)
