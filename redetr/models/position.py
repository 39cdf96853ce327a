"""Position encodings: where a feature is, as a vector the transformer can add."""

import math

import torch
from torch import Tensor, nn

from redetr.errors import InputError

_LARGEST_LEARNED_MAP = 50  # rows or columns, as in the original
_TEMPERATURE = 10000.0  # the ratio of the highest to the lowest frequency, about


def sine_features(positions: Tensor, num_feats: int) -> Tensor:
    """Returns the features `[..., num_feats]` (sin, cos, sin, cos, ...) of `positions` `[...]`.

    Positions are in radians.

    Source: Vaswani et al. 2017, section 3.5; the order of the original DETR.
    """
    pairs = torch.arange(num_feats // 2, device=positions.device, dtype=positions.dtype)
    exponent = pairs * 2 / num_feats  # [num_feats / 2]
    angles = positions[..., None] / _TEMPERATURE**exponent  # [..., num_feats / 2]
    sines_and_cosines = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return sines_and_cosines.flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of the row and the column, normalised over the unpadded part of each image.

    Source: the original DETR with `normalize=True`; the y half comes first.
    """

    def __init__(self, num_pos_feats: int):
        super().__init__()
        self.num_pos_feats = num_pos_feats

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the encodings `[B, H, W, 2 * num_pos_feats]`, computed in `dtype`.

        `mask` `[B, H, W]` is True = padding.
        """
        valid = (~mask).to(dtype)
        # A pixel's row is the number of unpadded pixels down to it, from 1; [B, H, W].
        y = valid.cumsum(1)
        x = valid.cumsum(2)
        height = y[:, -1:, :]  # [B, 1, W]
        width = x[:, :, -1:]  # [B, H, 1]
        y = y / (height + 1e-6) * (2 * math.pi)
        x = x / (width + 1e-6) * (2 * math.pi)
        y_features = sine_features(y, self.num_pos_feats)
        x_features = sine_features(x, self.num_pos_feats)
        return torch.cat([y_features, x_features], dim=-1)


class PositionEmbeddingLearned(nn.Module):
    """Learned encoding of the row and the column, for feature maps of up to 50 x 50.

    The x half comes first.
    """

    def __init__(self, num_pos_feats: int):
        super().__init__()
        self.row_embed = nn.Embedding(_LARGEST_LEARNED_MAP, num_pos_feats)
        self.col_embed = nn.Embedding(_LARGEST_LEARNED_MAP, num_pos_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the encodings `[B, H, W, 2 * num_pos_feats]`, in the dtype of the weights.

        Only the shape of `mask` `[B, H, W]` matters, not its values, nor does `dtype`. Raises
        InputError for a feature map of more than 50 rows or columns.
        """
        batch, height, width = mask.shape
        if max(height, width) > _LARGEST_LEARNED_MAP:
            raise InputError(
                f"learned positions cover at most 50 x 50 features, but this map has {height} x "
                f"{width}: use smaller images, or position=sine"
            )
        rows = self.row_embed.weight[:height, None]  # [H, 1, num_pos_feats]
        rows = rows.expand(-1, width, -1)
        columns = self.col_embed.weight[None, :width]  # [1, W, num_pos_feats]
        columns = columns.expand(height, -1, -1)
        encodings = torch.cat([columns, rows], dim=-1)  # [H, W, 2 * num_pos_feats]
        return encodings.expand(batch, -1, -1, -1)
