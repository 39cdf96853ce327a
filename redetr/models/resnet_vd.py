"""ResNet-vd, the backbone of RT-DETR and, in a small size, of the fast variants; its convolution
block.

Sources: He et al., "Bag of Tricks for Image Classification" (CVPR 2019), variant D: a stem of three
small convolutions, and shortcuts that average before they project. The parameter names are those of
the original implementation of RT-DETRv2.
"""

from collections import OrderedDict
from collections.abc import Sequence

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

# Blocks of each stage, at strides 4, 8, 16 and 32.
DEPTHS = {
    "resnet18vd": (2, 2, 2, 2),
    "resnet34vd": (3, 4, 6, 3),
    "resnet50vd": (3, 4, 6, 3),
    "resnet101vd": (3, 4, 23, 3),
}
_BOTTLENECKS = ("resnet50vd", "resnet101vd")


class ConvNorm(nn.Module):
    """A convolution without bias, its norm, and an activation if there is one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        norm: Norm,
        activation: nn.Module | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = NORMS[norm](outputs)
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(conv_norm(x, self.conv, self.norm))

    def fuse(self) -> None:
        """Makes a frozen norm part of the convolution, for inference; other norms stay."""
        self.norm = fuse_norm(self.conv, self.norm)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """Brings the input of a stage to its output's size; the stride is an average of 2 x 2 pixels,
    where a strided 1 x 1 convolution would ignore three of four."""
    if stride == 1:
        return ConvNorm(inputs, outputs, 1, norm=norm)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True)
    conv = ConvNorm(inputs, outputs, 1, norm=norm)
    return nn.Sequential(OrderedDict(pool=pool, conv=conv))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first block of a stage projects its input."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, first: bool, norm: Norm):
        super().__init__()
        self.short = _shortcut(inputs, width, stride, norm) if first else nn.Identity()
        self.branch2a = ConvNorm(inputs, width, 3, stride, norm=norm, activation=nn.ReLU(True))
        self.branch2b = ConvNorm(width, width, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch2b(self.branch2a(x))
        return F.relu(out + self.short(x), inplace=True)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride is that of the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, first: bool, norm: Norm):
        super().__init__()
        outputs = self.expansion * width
        self.short = _shortcut(inputs, outputs, stride, norm) if first else nn.Identity()
        self.branch2a = ConvNorm(inputs, width, 1, norm=norm, activation=nn.ReLU(True))
        self.branch2b = ConvNorm(width, width, 3, stride, norm=norm, activation=nn.ReLU(True))
        self.branch2c = ConvNorm(width, outputs, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch2c(self.branch2b(self.branch2a(x)))
        return F.relu(out + self.short(x), inplace=True)


class ResNetVd(nn.Module):
    """A ResNet-vd, all of it trained: a stage of `depths[i]` blocks of `widths[i]` channels at
    stride 4, 8, 16, ... each.

    `num_channels` has the channels of each stage's output.
    """

    recompute = False

    def __init__(
        self,
        block: type[_BasicBlock] | type[_Bottleneck],
        widths: Sequence[int],
        depths: Sequence[int],
        norm: Norm,
    ):
        super().__init__()
        require_known(None, norm)
        stem = OrderedDict[str, nn.Module]()
        width = widths[0]
        sizes = [(3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)]
        for i, (inputs, outputs, stride) in enumerate(sizes, start=1):
            relu = nn.ReLU(inplace=True)
            stem[f"conv1_{i}"] = ConvNorm(inputs, outputs, 3, stride, norm=norm, activation=relu)
        self.conv1 = nn.Sequential(stem)

        self.res_layers = nn.ModuleList()
        self.num_channels: list[int] = []
        inputs = width
        for stage, (stage_width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = nn.ModuleList()
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(block(inputs, stage_width, stride, i == 0, norm))
                inputs = block.expansion * stage_width
            self.res_layers.append(nn.ModuleDict({"blocks": blocks}))
            self.num_channels.append(inputs)

        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps `[B, num_channels[i], h, w]`, that of stride 4 first."""
        run = runner(self.recompute)
        x = self.conv1(images)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.res_layers:
            for block in stage["blocks"]:  # type: ignore[index]
                x = run(block, x)
            features.append(x)
        return features


class PResNet(ResNetVd):
    """A backbone of `DEPTHS`; `width` is that of its first stage, and doubles with each.

    It takes the images' values as they are, without ImageNet's mean and deviation: the caller
    decides.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        norm: Norm = "frozen_batch",
        width: int = 64,
    ):
        if weights is not None:
            raise InputError(
                f"{name} has no weights named {weights!r}: start from those of a detector, such as "
                "--weights PekingU/rtdetr_r18vd, or from a file of the backbone's weights"
            )
        if name not in DEPTHS:
            raise InputError(f"unknown backbone {name!r}: choose one of {', '.join(DEPTHS)}")
        block = _Bottleneck if name in _BOTTLENECKS else _BasicBlock
        widths = [width * 2**stage for stage in range(4)]
        super().__init__(block, widths, DEPTHS[name], norm)
        del self.num_channels[0]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps `[B, num_channels[i], h, w]` at strides 8, 16 and 32."""
        return super().forward(images)[1:]


class SmallResNet(ResNetVd):
    """One block each at strides 4, 8 and 16, with GroupNorm, for training from scratch.

    Each image is normalised by itself, together with its padding. The map of stride 4 is returned
    only if `strides` has it.
    """

    def __init__(self, widths: tuple[int, int, int], strides: tuple[int, ...] = (8, 16)):
        super().__init__(_BasicBlock, widths, depths=(1, 1, 1), norm="group")
        self.strides = (4, 8, 16) if 4 in strides else (8, 16)
        self.num_channels = self.num_channels[-len(self.strides) :]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns a feature map `[B, num_channels[i], h, w]` per stride."""
        return super().forward(images)[-len(self.strides) :]
