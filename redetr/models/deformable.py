"""Blocks of the families whose queries read a few points of several feature maps.

Source: Deformable DETR (Zhu et al. 2021).

Shape letters: B images, Q queries, D width, S positions of all levels together, P points of a query
on all levels together, and h, w the size of one level. Boxes are cxcywh, fractions of the unpadded
image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.linear import Linear
from redetr.models.transformer import Activation, MultiheadAttention

Sampling = Literal["bilinear", "discrete"]


class EncoderOutput(NamedTuple):
    """What the queries read; see `DeformableAttention`."""

    memory: Tensor  # [B, S, D]
    shapes: list[tuple[int, int]]  # (h, w) of each level
    ratio: Tensor  # [B, 2], the share (x, y) of the canvas that is image


def star_offsets(nheads: int, points: Sequence[int]) -> Tensor:
    """Returns initial offsets, `[heads * P * 2]`, for `points` on each level.

    Each head starts in its own direction, with point k at k steps: a star around the centre.
    """
    angle = torch.arange(nheads) * (2 * math.pi / nheads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)  # [heads, 2]
    longer_part = direction.abs().amax(-1, keepdim=True)
    direction = direction / longer_part  # on a square
    steps_by_level = [torch.arange(1, count + 1) for count in points]
    steps = torch.cat(steps_by_level)  # [P]
    star = direction[:, None] * steps[:, None]  # [heads, P, 2]
    return star.flatten()


def read_points(
    values: Tensor,
    shapes: list[tuple[int, int]],
    points: Tensor,
    weights: Tensor,
    per_level: Sequence[int],
    sampling: Sampling = "bilinear",
) -> Tensor:
    """Returns the weighted sum of what each query reads, `[B, Q, D]`.

    `values` are `[B, S, heads, D / heads]`, and `shapes` the (h, w) of their levels. `points`
    `[B, Q, heads, P, 2]` are x and y as fractions of the canvas, `per_level[i]` of them on level i,
    and `weights` are `[B, Q, heads, P]`. Computed in fp32 or fp64.
    """
    batch, num_queries, nheads, *_ = points.shape
    width = nheads * values.shape[-1]
    points = points.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, P, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, P]
    values = values.permute(0, 2, 3, 1).flatten(0, 1)  # [B * heads, d, S]
    values = at_least_float32(values)  # sampling in half precision loses the position

    positions = [height * width for height, width in shapes]
    levels = values.split(positions, -1)
    if sampling == "bilinear":
        points = 2 * points - 1  # grid_sample wants [-1, 1] over the canvas
    points_by_level = points.split(list(per_level), 2)
    sampled = []
    for shape, level, level_points in zip(shapes, levels, points_by_level, strict=True):
        feature_map = level.unflatten(-1, shape)  # [B * heads, d, h, w]
        if sampling == "bilinear":
            at_points = F.grid_sample(feature_map, level_points, align_corners=False)
        else:
            at_points = _nearest(feature_map, level_points)
        sampled.append(at_points)  # [B * heads, d, Q, points]

    weighted = torch.cat(sampled, -1) * weights[:, None]
    out = weighted.sum(-1)  # [B * heads, d, Q]
    return out.view(batch, width, num_queries).mT  # [B, Q, D]


def _nearest(level: Tensor, points: Tensor) -> Tensor:
    """Returns the values of `level` `[N, d, h, w]` at `points` `[N, Q, points, 2]`.

    The result is `[N, d, Q, points]`.

    Source: the discrete sampling of RT-DETRv2, whose rounding moves the points by half a pixel;
    points outside the level read its border.
    """
    height, width = level.shape[-2:]
    x = points[..., 0] * width  # [N, Q, points]
    y = points[..., 1] * height
    column = (x + 0.5).long().clamp(0, width - 1)
    row = (y + 0.5).long().clamp(0, height - 1)
    position = row * width + column
    position = position.flatten(1)[:, None]  # [N, 1, Q * points]
    position = position.expand(-1, level.shape[1], -1)  # [N, d, Q * points]
    values = level.flatten(2).gather(-1, position)
    return values.unflatten(-1, points.shape[1:3])


class DeformableAttention(nn.Module):
    """Attention of each query to `points[i]` learned points around its box on level i.

    The parameter names are those of Deformable DETR and RT-DETR. Without `projects`, it reads the
    levels as they are, as in D-FINE: they and the result have no projection.
    """

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        points: list[int],
        sampling: Sampling,
        projects: bool = True,
    ):
        super().__init__()
        self.nheads = nheads
        self.per_level = points  # number of points on each level
        self.sampling: Sampling = sampling
        num_samples = nheads * sum(points)
        self.sampling_offsets = nn.Linear(hidden_dim, num_samples * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_samples)
        self.value_proj: nn.Module = nn.Identity()
        self.output_proj: nn.Module = nn.Identity()
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star_offsets(nheads, points))
        attention = self.attention_weights
        for parameter in (self.sampling_offsets.weight, attention.weight, attention.bias):
            nn.init.zeros_(parameter)
        if projects:
            self.value_proj = Linear(hidden_dim, hidden_dim)
            self.output_proj = Linear(hidden_dim, hidden_dim)
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)
        if sampling == "discrete":  # whole pixels have no gradient
            self.sampling_offsets.requires_grad_(False)

    def samples(self, query: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where each query looks, `[B, Q, heads, P, 2]`, and the weights of these points.

        The points are fractions of the unpadded image, and may lie outside it; the weights
        `[B, Q, heads, P]` sum to 1.
        """
        batch, num_queries, _ = query.shape
        shape = (batch, num_queries, self.nheads, sum(self.per_level))
        offsets = at_least_float32(self.sampling_offsets(query)).view(*shape, 2)
        weights = at_least_float32(self.attention_weights(query)).view(shape).softmax(-1)
        boxes = boxes[:, :, None, None, :]
        centers = boxes[..., :2]  # [B, Q, 1, 1, 2]
        sizes = boxes[..., 2:]
        by_level = []
        offsets_by_level = offsets.split(self.per_level, 3)
        for count, level_offsets in zip(self.per_level, offsets_by_level, strict=True):
            # Offset `count` reaches the border of the box: half a size from its centre.
            by_level.append(centers + level_offsets * sizes * (0.5 / count))
        return torch.cat(by_level, 3), weights

    def forward(
        self,
        query: Tensor,
        boxes: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        ratio: Tensor,
    ) -> Tensor:
        """Returns `[B, Q, D]` for `query` `[B, Q, D]`, its `boxes` `[B, Q, 4]` and the `memory`.

        `memory` is `[B, S, D]`, `shapes` are the (h, w) of its levels, and `ratio` `[B, 2]` is the
        share (x, y) of the canvas that is image.
        """
        points, weights = self.samples(query, boxes)
        points = points * ratio[:, None, None, None]  # as fractions of the canvas
        values = self.value_proj(memory).unflatten(-1, (self.nheads, -1))  # [B, S, heads, d]
        out = read_points(values, shapes, points, weights, self.per_level, self.sampling)
        return self.output_proj(out.to(query.dtype))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the image, feed-forward net.

    Post-norm: a norm follows each of the three residuals. `cross_attention` makes the module that
    reads the image, with the inputs of `DeformableAttention`. `gate` makes the module that replaces
    the second residual and its norm: it takes a query and what the query has read.
    """

    def __init__(
        self,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        cross_attention: Callable[[], nn.Module],
        gate: Callable[[], nn.Module] | None = None,
        activation: Activation = torch.relu,
    ):
        super().__init__()
        self.activation = activation
        self.self_attn = MultiheadAttention(hidden_dim, nheads)
        self.cross_attn = cross_attention()
        self.linear1 = Linear(hidden_dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        if gate is None:
            self.norm2 = nn.LayerNorm(hidden_dim)
        self.gateway = None if gate is None else gate()
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        boxes: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        ratio: Tensor,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """Returns the next queries, `[B, Q, D]`.

        `x` and its position encoding `query_pos` are `[B, Q, D]`; `boxes` `[B, Q, 4]` are where the
        queries look. `memory`, `shapes` and `ratio` are those of `EncoderOutput`. `ignored`
        `[B, Q, Q]` is True where a query does not see another one.
        """
        query = x + query_pos
        x = self.norm1(x + self.self_attn(query, query, x, ignored))
        read = self.cross_attn(x + query_pos, boxes, memory, shapes, ratio)
        if self.gateway is None:
            x = self.norm2(x + read)
        else:
            x = self.gateway(x, read)
        hidden = self.activation(self.linear1(x))
        return self.norm3(x + self.linear2(hidden))


def valid_ratio(images: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the share (x, y) of the canvas that is image, `[B, 2]`; `mask` is True = padding."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    if mask is None:
        return images.new_ones(images.shape[0], 2, dtype=dtype)
    # Padding is at the right and at the bottom, so the first row and column show all of it.
    _, height, width = mask.shape
    columns = (~mask[:, 0]).sum(1, dtype=dtype)  # [B]
    rows = (~mask[:, :, 0]).sum(1, dtype=dtype)
    return torch.stack([columns / width, rows / height], -1)


def position_centers(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Returns x and y of the positions of a level (h, w), row by row, `[h * w, 2]`.

    They are fractions of the canvas, on the device and in the dtype of `like`.
    """
    height, width = shape
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    y = (rows + 0.5) / height
    x = (columns + 0.5) / width
    grid = torch.meshgrid(x, y, indexing="xy")
    centers = torch.stack(grid, -1)  # [h, w, 2]
    return centers.flatten(0, 1)


def best_positions(logits: Tensor, count: int) -> Tensor:
    """Returns the positions with the best class score, best first: `[B, count]`.

    There are fewer if `logits` `[B, S, C]` has fewer than `count` positions.
    """
    scores = logits.detach().amax(-1)  # [B, S]
    count = min(count, scores.shape[1])
    return scores.topk(count, dim=1).indices


def take(values: Tensor, positions: Tensor) -> Tensor:
    """Returns the `[B, Q, D]` of `values` `[B, S, D]` at `positions` `[B, Q]`."""
    index = positions[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)
