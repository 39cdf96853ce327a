"""The backbone of D-FINE: HGNetV2, whose blocks keep what each of their layers has computed.

Source: Cui et al., PP-HGNetV2 of PaddleClas (2023), in the sizes that D-FINE uses. The parameter
names are those of the original implementation of D-FINE.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.errors import InputError
from redetr.models.backbone import (
    NORMS,
    Norm,
    conv_norm,
    fuse_norm,
    init_convolutions,
    require_known,
)
from redetr.models.recompute import runner


class _Stage(NamedTuple):
    width: int  # of the layers of a block
    outputs: int
    blocks: int

    def scaled(self, width: int, published_width: int) -> "_Stage":
        """Returns the same stage for another `width` of the stem."""
        layer_width = self.width * width // published_width
        outputs = self.outputs * width // published_width
        return _Stage(layer_width, outputs, self.blocks)


class _Size(NamedTuple):
    stem: tuple[int, int]  # its inner width and its outputs
    stages: tuple[_Stage, _Stage, _Stage, _Stage]  # at strides 4, 8, 16, 32
    layers: int  # of each block


SIZES = {
    "hgnetv2_b0": _Size(
        (16, 16),
        (_Stage(16, 64, 1), _Stage(32, 256, 1), _Stage(64, 512, 2), _Stage(128, 1024, 1)),
        layers=3,
    ),
    "hgnetv2_b2": _Size(
        (24, 32),
        (_Stage(32, 96, 1), _Stage(64, 384, 1), _Stage(128, 768, 3), _Stage(256, 1536, 1)),
        layers=4,
    ),
    "hgnetv2_b4": _Size(
        (32, 48),
        (_Stage(48, 128, 1), _Stage(96, 512, 1), _Stage(192, 1024, 3), _Stage(384, 2048, 1)),
        layers=6,
    ),
    "hgnetv2_b5": _Size(
        (32, 64),
        (_Stage(64, 128, 1), _Stage(128, 512, 2), _Stage(256, 1024, 5), _Stage(512, 2048, 2)),
        layers=6,
    ),
}
_LIGHT = (False, False, True, True)  # stages whose layers mix channels and positions apart
_RIGHT_AND_BELOW = (0, 1, 0, 1)  # padding: one row and one column of zeros


class _Affine(nn.Module):
    """A scale and a shift, the same for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


class HGConv(nn.Module):
    """A convolution without bias, its norm, and, unless `linear`, ReLU and, optionally, an affine
    layer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
        affine: bool,
        norm: Norm,
    ):
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = NORMS[norm](outputs)
        self.act = nn.Identity() if linear else nn.ReLU(inplace=True)
        self.lab = nn.Identity() if linear or not affine else _Affine()

    def forward(self, x: Tensor) -> Tensor:
        return self.lab(self.act(conv_norm(x, self.conv, self.bn)))

    def fuse(self) -> None:
        """Makes a frozen norm part of the convolution, for inference; other norms stay."""
        self.bn = fuse_norm(self.conv, self.bn)


class _LightConv(nn.Module):
    """Channels are mixed by a 1x1 convolution, positions by one for each channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, affine: bool, norm: Norm):
        super().__init__()
        self.conv1 = HGConv(inputs, outputs, 1, linear=True, affine=affine, norm=norm)
        self.conv2 = HGConv(outputs, outputs, kernel, groups=outputs, affine=affine, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class _Stem(nn.Module):
    """Images at stride 4; on the way, at stride 2, a pooled and a convolved branch."""

    def __init__(self, width: int, outputs: int, affine: bool, norm: Norm):
        super().__init__()
        self.stem1 = HGConv(3, width, 3, 2, affine=affine, norm=norm)
        self.stem2a = HGConv(width, width // 2, 2, affine=affine, norm=norm)
        self.stem2b = HGConv(width // 2, width, 2, affine=affine, norm=norm)
        self.stem3 = HGConv(2 * width, width, 3, 2, affine=affine, norm=norm)
        self.stem4 = HGConv(width, outputs, 1, affine=affine, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        x = F.pad(self.stem1(images), _RIGHT_AND_BELOW)
        convolved = F.pad(self.stem2a(x), _RIGHT_AND_BELOW)
        convolved = self.stem2b(convolved)
        pooled = F.max_pool2d(x, kernel_size=2, stride=1)
        return self.stem4(self.stem3(torch.cat([pooled, convolved], 1)))


class _Block(nn.Module):
    """Layers in a row; 1x1 convolutions mix the outputs of all of them with the input."""

    def __init__(
        self, inputs: int, stage: _Stage, layers: int, *, light: bool, affine: bool, norm: Norm
    ):
        super().__init__()
        self.residual = inputs == stage.outputs
        self.layers = nn.ModuleList()
        for i in range(layers):
            channels = inputs if i == 0 else stage.width
            if light:
                self.layers.append(_LightConv(channels, stage.width, 5, affine, norm))
            else:
                self.layers.append(HGConv(channels, stage.width, 3, affine=affine, norm=norm))
        total = inputs + layers * stage.width
        half = stage.outputs // 2
        self.aggregation = nn.Sequential(
            HGConv(total, half, 1, affine=affine, norm=norm),
            HGConv(half, stage.outputs, 1, affine=affine, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        mixed = self.aggregation(torch.cat(outputs, 1))
        return x + mixed if self.residual else mixed


class HGNetV2(nn.Module):
    """An HGNetV2 of `SIZES`, all of it trained.

    `width` is that of the stem's output; all other widths are scaled with it. `affine` adds a
    trained scale and shift after each activation. The features are those of the last `num_levels`
    stages. It takes the images' values as they are, without ImageNet's mean and deviation: the
    caller decides.
    """

    recompute = False

    def __init__(
        self,
        name: str,
        weights: str | None,
        norm: Norm,
        width: int,
        affine: bool,
        num_levels: int,
    ):
        super().__init__()
        if weights is not None:
            raise InputError(
                f"{name} has no weights named {weights!r}: start from those of a detector, such as "
                "--weights ustc-community/dfine-small-coco, or from a file of the backbone's "
                "weights"
            )
        require_known(None, norm)
        size = SIZES[name]
        inner, published_width = size.stem
        self.stem = _Stem(inner * width // published_width, width, affine, norm)
        self.stages = nn.ModuleList()
        inputs = width
        outputs: list[int] = []
        for i, published in enumerate(size.stages):
            stage = published.scaled(width, published_width)
            downsample: nn.Module = nn.Identity()
            if i > 0:
                downsample = HGConv(
                    inputs, inputs, 3, 2, groups=inputs, linear=True, affine=affine, norm=norm
                )
            blocks = nn.Sequential()
            for _ in range(stage.blocks):
                block = _Block(
                    inputs, stage, size.layers, light=_LIGHT[i], affine=affine, norm=norm
                )
                blocks.append(block)
                inputs = stage.outputs
            self.stages.append(nn.ModuleDict({"downsample": downsample, "blocks": blocks}))
            outputs.append(inputs)
        self.num_channels = outputs[-num_levels:]
        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps `[B, num_channels[i], h, w]`, that of stride 32 last."""
        run = runner(self.recompute)
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage["downsample"](x)  # type: ignore[index]
            for block in stage["blocks"]:  # type: ignore[index]
                x = run(block, x)
            features.append(x)
        return features[-len(self.num_channels) :]
