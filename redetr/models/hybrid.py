"""The hybrid encoder of RT-DETR: attention where maps are small, convolutions across the levels.

Its convolutions are a `Pyramid`: that of RT-DETR, or that of D-FINE.

Sources: Zhao et al. 2024 and Peng et al. 2024; the RepVGG block is that of Ding et al., "RepVGG"
(CVPR 2021), the ELAN block that of Wang et al., "YOLOv9" (2024), and the way down that of Wang et
al., "YOLOv10" (2024). The parameter names are those of the original implementations of RT-DETRv2
and D-FINE.

Shape letters: B images, D width, and h, w the size of one level.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from redetr.models.backbone import Norm, folded, padding_at
from redetr.models.resnet_vd import ConvNorm
from redetr.models.transformer import TransformerEncoderLayer


def grid_sines(height: int, width: int, hidden_dim: int, like: Tensor) -> Tensor:
    """Returns the encoding of every position of a map, row by row, `[h * w, D]`.

    A quarter of the width each: sines and cosines of the row, sines and cosines of the column,
    which are counted from 0 and not normalised.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    count = hidden_dim // 4
    exponents = torch.arange(count, device=like.device, dtype=dtype) / count
    frequencies = 10000.0**-exponents  # [D / 4]
    rows = torch.arange(height, device=like.device, dtype=dtype)
    columns = torch.arange(width, device=like.device, dtype=dtype)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    y_angles = y.reshape(-1, 1) * frequencies  # [h * w, D / 4]
    x_angles = x.reshape(-1, 1) * frequencies
    quarters = [y_angles.sin(), y_angles.cos(), x_angles.sin(), x_angles.cos()]
    return torch.cat(quarters, -1).to(like.dtype)


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side; their sum is a single 3x3 convolution.

    Two branches train better than one. With frozen norms they are added as weights, not as feature
    maps: the same function and the same gradients at about the price of one.
    """

    def __init__(self, width: int, norm: Norm):
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3, norm=norm)
        self.conv2: ConvNorm | None = ConvNorm(width, width, 1, norm=norm)

    def _merged(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the single convolution, or None where norms depend on the images."""
        large, small = self.conv1, self.conv2
        if small is None or not isinstance(large.norm, FrozenBatchNorm2d):
            return None
        weight3, bias3 = folded(large.conv, large.norm)
        weight1, bias1 = folded(small.conv, small.norm)
        return weight3 + F.pad(weight1, (1, 1, 1, 1)), bias3 + bias1

    def forward(self, x: Tensor) -> Tensor:
        merged = self._merged()
        if merged is not None:
            return F.silu(F.conv2d(x, *merged, padding=1))
        out = self.conv1(x)
        if self.conv2 is not None:
            out = out + self.conv2(x)
        return F.silu(out)

    def fuse(self) -> None:
        """Keeps the single convolution alone, for inference, where norms are frozen."""
        merged = self._merged()
        if merged is not None:
            weight, bias = merged
            self.conv1.conv.weight = nn.Parameter(weight, requires_grad=False)
            self.conv1.conv.bias = nn.Parameter(bias, requires_grad=False)
            self.conv1.norm = nn.Identity()
            self.conv2 = None


class CSPRepLayer(nn.Module):
    """Mixes channels: one half goes through RepVGG blocks, the other past them."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int, norm: Norm):
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, 1, norm=norm, activation=nn.SiLU())
        self.conv2 = ConvNorm(inputs, width, 1, norm=norm, activation=nn.SiLU())
        self.bottlenecks = nn.Sequential(*[RepVGGBlock(width, norm) for _ in range(blocks)])
        self.conv3: nn.Module = nn.Identity()
        if width != outputs:
            self.conv3 = ConvNorm(width, outputs, 1, norm=norm, activation=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        through = self.bottlenecks(self.conv1(x))
        return self.conv3(through + self.conv2(x))


class ELANLayer(nn.Module):
    """Mixes two levels. Concatenates half of the channels, the output of a CSP layer for them, and
    the output of a second layer for that.

    `width` is that of the CSP layers. It is RepNCSPELAN4 of the original.
    """

    def __init__(self, hidden_dim: int, width: int, blocks: int, norm: Norm):
        super().__init__()

        def stage(inputs: int) -> nn.Sequential:
            mix = CSPRepLayer(inputs, width, width, blocks, norm)
            return nn.Sequential(mix, ConvNorm(width, width, 3, norm=norm, activation=nn.SiLU()))

        doubled = 2 * hidden_dim
        merged = doubled + 2 * width
        self.cv1 = ConvNorm(doubled, doubled, 1, norm=norm, activation=nn.SiLU())
        self.cv2 = stage(hidden_dim)
        self.cv3 = stage(width)
        self.cv4 = ConvNorm(merged, hidden_dim, 1, norm=norm, activation=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.cv1(x).chunk(2, 1)
        third = self.cv2(second)
        fourth = self.cv3(third)
        return self.cv4(torch.cat([first, second, third, fourth], 1))


class SeparableDown(nn.Module):
    """Halves the size: channels are mixed by a 1x1 convolution, positions by one for each channel.

    It is SCDown of the original.
    """

    def __init__(self, width: int, norm: Norm):
        super().__init__()
        self.cv1 = ConvNorm(width, width, 1, norm=norm)
        self.cv2 = ConvNorm(width, width, 3, 2, groups=width, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x))


class Pyramid(NamedTuple):
    """What makes the modules between two levels, all of width D."""

    lateral: Callable[[], nn.Module]  # D to D, before a level goes to the finer one
    downsample: Callable[[], nn.Module]  # D to D, half the size
    mix: Callable[[], nn.Module]  # two levels, 2 * D, to D


def csp_pyramid(hidden_dim: int, expansion: float, norm: Norm) -> Pyramid:
    """Returns the pyramid of RT-DETR: CSP layers of three RepVGG blocks."""

    def conv(kernel: int, stride: int) -> nn.Module:
        return ConvNorm(hidden_dim, hidden_dim, kernel, stride, norm=norm, activation=nn.SiLU())

    width = round(hidden_dim * expansion)
    return Pyramid(
        lateral=lambda: conv(1, 1),
        downsample=lambda: conv(3, 2),
        mix=lambda: CSPRepLayer(2 * hidden_dim, width, hidden_dim, 3, norm),
    )


def elan_pyramid(hidden_dim: int, width: int, blocks: int, norm: Norm) -> Pyramid:
    """Returns the pyramid of D-FINE: ELAN layers, whose CSP layers are `width` wide and have that
    many RepVGG `blocks`."""
    return Pyramid(
        lateral=lambda: ConvNorm(hidden_dim, hidden_dim, 1, norm=norm),
        downsample=lambda: nn.Sequential(SeparableDown(hidden_dim, norm)),
        mix=lambda: ELANLayer(hidden_dim, width, blocks, norm),
    )


class HybridEncoder(nn.Module):
    """Attention within the coarsest level, convolutions across the levels."""

    def __init__(
        self,
        num_channels: list[int],
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        pyramid: Pyramid,
        norm: Norm,
    ):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.input_proj = nn.ModuleList(
            ConvNorm(channels, hidden_dim, 1, norm=norm) for channels in num_channels
        )
        layer = TransformerEncoderLayer(
            hidden_dim, nheads, dim_feedforward, dropout=0.0, pre_norm=False, activation=F.gelu
        )
        self.encoder = nn.ModuleList([nn.ModuleDict({"layers": nn.ModuleList([layer])})])
        self.lateral_convs = nn.ModuleList()
        self.fpn_blocks = nn.ModuleList()
        self.downsample_convs = nn.ModuleList()
        self.pan_blocks = nn.ModuleList()
        for _ in num_channels[1:]:
            self.lateral_convs.append(pyramid.lateral())
            self.downsample_convs.append(pyramid.downsample())
            self.fpn_blocks.append(pyramid.mix())
            self.pan_blocks.append(pyramid.mix())

    @property
    def attention_layer(self) -> TransformerEncoderLayer:
        return self.encoder[0]["layers"][0]  # type: ignore[index]

    def _attend(self, level: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the coarsest level `[B, D, h, w]` after attention over all of its positions."""
        height, width = level.shape[-2:]
        positions = level.flatten(2).mT  # [B, h * w, D]
        pos = grid_sines(height, width, self.hidden_dim, like=level)[None]  # [1, h * w, D]
        ignored = None
        if mask is not None:
            ignored = padding_at(level, mask).flatten(1)  # [B, h * w]
        encoded = self.attention_layer(positions, pos, ignored)
        return encoded.mT.unflatten(-1, (height, width))

    def forward(self, features: list[Tensor], mask: Tensor | None) -> list[Tensor]:
        """Returns as many levels as `features`, all `[B, D, h, w]`, finest first."""
        projected = [proj(x) for proj, x in zip(self.input_proj, features, strict=True)]
        coarse = self._attend(projected.pop(), mask)

        downwards = []  # coarsest first
        for lateral, block in zip(self.lateral_convs, self.fpn_blocks, strict=True):
            fine = projected.pop()
            coarse = lateral(coarse)
            downwards.append(coarse)
            upsampled = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
            coarse = block(torch.cat([upsampled, fine], 1))

        levels = [coarse]  # finest first
        for downsample, block in zip(self.downsample_convs, self.pan_blocks, strict=True):
            smaller = downsample(levels[-1])
            levels.append(block(torch.cat([smaller, downwards.pop()], 1)))
        return levels
