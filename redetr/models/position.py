"""Position encodings: where a feature is, as a vector the transformer can add."""

import math

import torch
from torch import Tensor, nn

from redetr.errors import InputError


def sine_features(positions: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Sine and cosine features `[..., num_feats]` of `positions` `[...]` (radians): sin, cos, sin,
    cos, ...

    Source: Vaswani et al. 2017, section 3.5; the order of the original DETR.
    """
    exponent = (
        torch.arange(num_feats // 2, device=positions.device, dtype=positions.dtype) * 2 / num_feats
    )
    angles = positions[..., None] / temperature**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of the row and the column, normalised over the valid (unpadded) pixels of each
    image.

    Source: the original DETR with `normalize=True`; the y half comes first.
    """

    def __init__(self, num_pos_feats: int):
        super().__init__()
        self.num_pos_feats = num_pos_feats

    def forward(self, mask: Tensor) -> Tensor:
        """Encodings `[B, H, W, 2 * num_pos_feats]` (fp32) for a `mask` `[B, H, W]`, True =
        padding."""
        valid = (~mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        return torch.cat(
            [sine_features(y, self.num_pos_feats), sine_features(x, self.num_pos_feats)], dim=-1
        )


class PositionEmbeddingLearned(nn.Module):
    """Learned encoding of the row and the column, for feature maps of up to 50 x 50; the x half
    comes first."""

    def __init__(self, num_pos_feats: int):
        super().__init__()
        self.row_embed = nn.Embedding(50, num_pos_feats)
        self.col_embed = nn.Embedding(50, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """Encodings `[B, H, W, 2 * num_pos_feats]` for a `mask` `[B, H, W]`, whose values do not
        matter.

        Raises InputError for a feature map of more than 50 rows or columns.
        """
        batch, height, width = mask.shape
        if max(height, width) > 50:
            raise InputError(
                f"learned positions reach 50 x 50 features, this map has {height} x {width}: take "
                "smaller images, or "
                "position=sine"
            )
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        columns = self.col_embed.weight[None, :width].expand(height, -1, -1)
        return torch.cat([columns, rows], dim=-1).expand(batch, -1, -1, -1)
