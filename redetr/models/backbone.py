"""Backbones: image `[B, 3, H, W]` to feature maps by stride.

`Backbone` is a torchvision ResNet, `SmallResNet` a small residual net to train from scratch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from redetr.errors import InputError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
Norm = Literal["frozen_batch", "group", "sync_batch"]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


_NORMS = {"frozen_batch": FrozenBatchNorm2d, "group": _group_norm, "sync_batch": nn.SyncBatchNorm}


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`; a frozen BatchNorm is folded into the convolution.

    The weights are scaled and the shift becomes the bias, for the same function and the same gradient of
    `conv.weight`, without the extra passes over the feature map.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _residual_block(x: Tensor, block: BasicBlock | Bottleneck) -> Tensor:
    identity = x if block.downsample is None else conv_norm(x, *block.downsample)
    out = conv_norm(x, block.conv1, block.bn1).relu_()
    out = conv_norm(out, block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        out = conv_norm(out.relu_(), block.conv3, block.bn3)
    return (out + identity).relu_()


class Backbone(nn.Module):
    """A torchvision ResNet as `body`, with frozen BatchNorm; the stem and the first stage are not trained.

    `weights="imagenet"` loads torchvision's weights; None leaves random ones. `dilation` replaces the stride of the
    last stage by dilation (DC5). `norm="group"` takes GroupNorm in place of frozen BatchNorm and trains all of it:
    the choice for training from scratch. `norm="sync_batch"` trains BatchNorm with statistics over all ranks: GPUs
    only, exact over ranks but not over accumulated micro-batches.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | None = None,
        dilation: bool = False,
        strides: tuple[int, ...] = (32,),
        norm: Norm = "frozen_batch",
    ):
        super().__init__()
        if name not in RESNETS:
            raise InputError(f"unknown backbone {name!r}: choose one of {', '.join(RESNETS)}")
        if weights not in (None, "imagenet"):
            raise InputError(f"unknown backbone weights {weights!r}: choose 'imagenet' or none")
        if dilation and name in ("resnet18", "resnet34"):
            raise InputError(f"{name} has no dilated form: choose resnet50 or resnet101")
        if norm not in _NORMS:
            raise InputError(f"unknown norm {norm!r} of a backbone: choose {', '.join(_NORMS)}")
        frozen = norm == "frozen_batch"
        if weights and norm == "group":
            raise InputError("ImageNet weights were trained with BatchNorm: they need norm=frozen_batch or sync_batch")
        body = torchvision.models.get_model(
            name,
            replace_stride_with_dilation=[False, False, dilation],
            norm_layer=_NORMS[norm],
        )
        if weights:
            body.load_state_dict(_imagenet_weights(name))
        del body.fc, body.avgpool
        self.body = body
        self.strides = strides
        width = 512 * (4 if name in ("resnet50", "resnet101") else 1)
        self.num_channels = [{8: width // 4, 16: width // 2, 32: width}[stride] for stride in strides]
        if frozen:
            for part in (body.conv1, body.bn1, body.layer1):
                part.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[B, num_channels[i], H / strides[i], W / strides[i]]` (DC5: stride 16 under the name 32)."""
        body = self.body
        x = conv_norm(images, body.conv1, body.bn1).relu_()
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = {}
        for stride, stage in zip((4, 8, 16, 32), (body.layer1, body.layer2, body.layer3, body.layer4), strict=True):
            for block in stage:
                x = _residual_block(x, block)
            features[stride] = x
        return [features[stride] for stride in self.strides]


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    """torchvision's weights from torch's cache, or from the net. Raises InputError with the place for the file."""
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    try:
        return torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no connection, or a file with another hash
        place = f"{torch.hub.get_dir()}/checkpoints/{url.rpartition('/')[2]}"
        raise InputError(f"cannot get ImageNet weights from {url} ({error}); put that file at {place}") from error


class _SmallBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the second norm's scale starts at 0, so the block starts as identity."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _group_norm(outputs)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_()))
        return (out + self.shortcut(x)).relu_()


class SmallResNet(nn.Module):
    """Residual stages at strides 4, 8, 16 with GroupNorm, whose result does not depend on the batch."""

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), _group_norm(widths[0]), nn.ReLU(inplace=True)
        )
        stages, inputs = [], widths[0]
        for width, blocks in zip(widths, (1, 2, 2), strict=True):  # pixels are dearest in the first stage
            stage = [_SmallBlock(inputs, width, 2)] + [_SmallBlock(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.strides = (8, 16)
        self.num_channels = list(widths[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 8 and 16."""
        x, features = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[1:]


def padding_at(features: Tensor, mask: Tensor | None) -> Tensor:
    """The padding `[B, h, w]` of a feature map `[B, C, h, w]`; `mask` `[B, H, W]` is the images', None = no padding.

    Nearest pixel, as the original DETR does it.
    """
    batch, _, height, width = features.shape
    if mask is None:
        return torch.zeros(batch, height, width, dtype=torch.bool, device=features.device)
    return F.interpolate(mask[:, None].float(), size=(height, width))[:, 0].bool()
