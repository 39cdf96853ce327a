"""Backbones: normalised images `[B, 3, H, W]` to feature maps by stride.

`Backbone` is a ResNet or MobileNet of torchvision, `TimmBackbone` a net of timm. Both take images
normalised by ImageNet's mean and deviation.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import mobilenetv2, mobilenetv3
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from redetr.download import fetch
from redetr.errors import InputError, first_line
from redetr.models.group_norm import GroupNorm
from redetr.models.recompute import runner

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Per stride of `_STRIDES`, the index of the first layer in `features` that runs at it.
MOBILENETS = {
    "mobilenet_v2": (0, 2, 4, 7, 14),
    "mobilenet_v3_small": (0, 1, 2, 4, 9),
    "mobilenet_v3_large": (0, 2, 4, 7, 13),
}
_STRIDES = (2, 4, 8, 16, 32)
Norm = Literal["frozen_batch", "group", "sync_batch"]


def _group_norm(channels: int) -> GroupNorm:
    """GroupNorm with eight groups, or with the most that divide both 8 and `channels`."""
    return GroupNorm(math.gcd(8, channels), channels)


# Layers by the name of the norm, each a function of the number of channels.
NORMS: dict[str, Any] = {
    "frozen_batch": FrozenBatchNorm2d,
    "group": _group_norm,
    "sync_batch": nn.SyncBatchNorm,
}


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Returns `norm(conv(x))`, `[B, C, h, w]`; a frozen BatchNorm is folded into the convolution.

    The weights are scaled and the shift becomes the bias: the same function and the same gradient
    of `conv.weight`, without the extra passes over the feature map.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the single convolution that equals `conv` followed by `norm`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # [C]
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    weight = conv.weight * scale[:, None, None, None]
    return weight, bias


def init_convolutions(net: nn.Module) -> None:
    """Draws the weights of all convolutions for training from scratch (He et al., ICCV 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def fuse_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Folds a frozen `norm` into `conv`, for inference; returns the module that replaces the
    norm."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm
    weight, bias = folded(conv, norm)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return nn.Identity()


def _residual_block(x: Tensor, block: BasicBlock | Bottleneck) -> Tensor:
    """Runs a block of torchvision's ResNet, with its norms folded."""
    identity = x
    if block.downsample is not None:
        conv, norm = block.downsample
        identity = conv_norm(x, conv, norm)
    out = conv_norm(x, block.conv1, block.bn1).relu_()
    out = conv_norm(out, block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        out = conv_norm(out.relu_(), block.conv3, block.bn3)
    return out.add_(identity).relu_()


def _chain(x: Tensor, layers: Iterable[nn.Module], recompute: bool = False) -> Tensor:
    """Runs torchvision's `layers` in turn, each convolution with the norm that follows it.

    With `recompute`, blocks are computed twice instead of keeping their intermediates.
    """
    run = runner(recompute)
    layers = iter(layers)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            norm = next(layers)
            x = conv_norm(x, layer, norm)
        elif isinstance(layer, nn.Sequential):
            x = _chain(x, layer, recompute)
        elif isinstance(layer, (BasicBlock, Bottleneck)):
            x = run(_residual_block, x, layer)
        elif isinstance(layer, mobilenetv2.InvertedResidual):
            out = run(_chain, x, layer.conv)
            x = x + out if layer.use_res_connect else out
        elif isinstance(layer, mobilenetv3.InvertedResidual):
            out = run(_chain, x, layer.block)
            x = x + out if layer.use_res_connect else out
        else:
            x = layer(x)
    return x


class Backbone(nn.Module):
    """A torchvision ResNet or MobileNet as `body`, cut off after the last of `strides`.

    `weights="imagenet"` loads torchvision's weights; None leaves random ones. `dilation` replaces
    the stride of the last stage by dilation (DC5).

    With `norm="frozen_batch"`, nothing before stride 8 is trained, as in the original: its filters
    serve any image, it has few weights, and its feature maps are the largest, which then need no
    gradient. `norm="group"` uses GroupNorm instead of frozen BatchNorm and trains everything: the
    choice for training from scratch. `norm="sync_batch"` trains BatchNorm with statistics over all
    ranks: GPUs only, exact over ranks but not over accumulated micro-batches.

    Raises InputError for an unknown name, or options that do not go together.
    """

    recompute = False

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | None = None,
        dilation: bool = False,
        strides: tuple[int, ...] = (32,),
        norm: Norm = "frozen_batch",
    ):
        super().__init__()
        known = (*RESNETS, *MOBILENETS)
        if name not in known:
            raise InputError(
                f"unknown backbone {name!r}: choose one of {', '.join(known)}, efficientnet_lite0, "
                "or timm:NAME"
            )
        if dilation and name not in RESNETS:
            raise InputError(f"{name} has no dilated variant: choose one of {', '.join(RESNETS)}")
        require_known(weights, norm)
        self.name = name
        self.body = _torchvision_net(name, norm, dilation)
        if weights:
            self.body.load_state_dict(_imagenet_weights(name))
        self._cut(last_stage=_STRIDES.index(max(strides)))
        self.strides = strides
        stages = self._stages()
        self.num_channels: list[int] = []
        for stride in strides:
            stage = stages[_STRIDES.index(stride)]
            self.num_channels.append(_out_channels(stage))
        if norm == "frozen_batch":
            for stage in stages[:2]:  # strides 2 and 4
                for layer in stage:
                    layer.requires_grad_(False)

    def _stages(self) -> list[list[nn.Module]]:
        """Returns the layers of each stride in `_STRIDES`."""
        body = self.body
        if self.name in MOBILENETS:
            layers = list(body.features)
            bounds = (*MOBILENETS[self.name], None)  # the last stage has all that remains
            return [layers[begin:end] for begin, end in pairwise(bounds)]
        stages = [[body.conv1, body.bn1, body.relu], [body.maxpool, body.layer1]]
        for name in ("layer2", "layer3", "layer4"):
            if hasattr(body, name):
                stages.append([getattr(body, name)])
        return stages

    def _cut(self, last_stage: int) -> None:
        """Removes the layers after stage `last_stage` (an index of `_STRIDES`): they would be
        computed for nothing, and get no gradient."""
        unused = ["fc", "avgpool", "classifier"]
        unused += [f"layer{i}" for i in range(last_stage + 1, 5)]
        for name in unused:
            if hasattr(self.body, name):
                delattr(self.body, name)
        if self.name in MOBILENETS:
            first_layers = (*MOBILENETS[self.name], None)
            end = first_layers[last_stage + 1]
            self.body.features = self.body.features[:end]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns a feature map `[B, num_channels[i], H / strides[i], W / strides[i]]` per stride.

        With `dilation`, the map of stride 32 has stride 16.
        """
        x = images
        features: dict[int, Tensor] = {}
        for stride, stage in zip(_STRIDES, self._stages(), strict=False):
            x = _chain(x, stage, self.recompute)
            features[stride] = x
        return [features[stride] for stride in self.strides]


def _torchvision_net(name: str, norm: Norm, dilation: bool) -> Any:
    """Returns torchvision's net of that name with random weights and norms of kind `norm`.

    A module; not typed as such, since the attributes of the nets differ.
    """
    norm_layer = NORMS[norm]
    if name.startswith("mobilenet_v3") and norm != "group":
        norm_layer = partial(norm_layer, eps=1e-3)  # as V3 was trained
    if not dilation:
        return torchvision.models.get_model(name, norm_layer=norm_layer)
    if name in ("resnet18", "resnet34"):  # torchvision dilates nets of bottlenecks only
        net = torchvision.models.get_model(name, norm_layer=norm_layer)
        _dilate(net.layer4)
        return net
    dilated = [False, False, True]
    return torchvision.models.get_model(
        name, norm_layer=norm_layer, replace_stride_with_dilation=dilated
    )


def _dilate(stage: nn.Sequential) -> None:
    """Replaces the stride of a stage of basic blocks by dilation 2.

    The first convolution stands before the stride, so that it is not dilated; nor are those of one
    pixel.
    """
    first = stage[0].conv1
    for module in stage.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        module.stride = (1, 1)
        if module is not first and module.kernel_size != (1, 1):
            module.dilation = (2, 2)
            module.padding = (2, 2)


def _out_channels(layers: list[nn.Module]) -> int:
    """Returns the output channels of the last convolution in `layers`."""
    channels = 0
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                channels = module.out_channels
    return channels


def require_known(weights: str | None, norm: str) -> None:
    """Raises InputError for weights or a norm that do not exist, or do not go together."""
    if weights not in (None, "imagenet"):
        raise InputError(f"unknown backbone weights {weights!r}: choose 'imagenet' or none")
    if norm not in NORMS:
        raise InputError(f"unknown norm {norm!r} of a backbone: choose {', '.join(NORMS)}")
    if weights and norm == "group":
        raise InputError(
            "ImageNet weights were trained with BatchNorm: they need norm=frozen_batch or "
            "sync_batch"
        )


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    """Returns torchvision's weights, from torch's cache or downloaded to it.

    Raises InputError, which names the path where the file belongs, if the download fails.
    """
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    file_name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    path = fetch(url, cached)
    return torch.load(path, map_location="cpu", weights_only=True)


class TimmBackbone(nn.Module):
    """A convolutional net of timm as `body`, cut off after the last of `strides`.

    It needs the extra `timm`. Its BatchNorm is frozen, or synchronised with `norm="sync_batch"`
    (see `Backbone`); everything else is trained.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, weights: str | None, strides: tuple[int, ...], norm: Norm = "frozen_batch"
    ):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise InputError(f'timm:{name} needs timm: pip install "redetr[timm]"') from None
        require_known(weights, norm)
        if norm == "group":
            raise InputError(
                f"timm:{name} cannot have norm=group: use norm=frozen_batch or sync_batch"
            )
        net = _timm_features(timm.create_model, name, bool(weights), strides)
        self.licence = net.pretrained_cfg.get("license") or "licence not stated by timm"
        if norm == "frozen_batch":
            self.body = timm.layers.freeze_batch_norm_2d(net.model)
        else:
            self.body = timm.layers.convert_sync_batchnorm(net.model)
        self.strides = strides
        self.num_channels = net.feature_info.channels()
        self._indices = net.out_indices
        # Images arrive normalised by ImageNet's mean and deviation; some nets were trained with
        # others.
        mean = _per_channel(timm.data.IMAGENET_DEFAULT_MEAN)
        std = _per_channel(timm.data.IMAGENET_DEFAULT_STD)
        net_mean = _per_channel(net.pretrained_cfg["mean"])
        net_std = _per_channel(net.pretrained_cfg["std"])
        self.register_buffer("scale", std / net_std, persistent=False)
        self.register_buffer("shift", (mean - net_mean) / net_std, persistent=False)
        self._recompute = False

    @property
    def recompute(self) -> bool:
        """Whether blocks are computed twice; setting it raises InputError for a net without."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        try:
            self.body.set_grad_checkpointing(value)
        except AssertionError:  # timm's, for a net without blocks that can be recomputed
            raise InputError(
                "--recompute: this timm backbone does not support it; leave the flag out"
            ) from None
        self._recompute = value

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns a feature map `[B, num_channels[i], H / strides[i], W / strides[i]]` per
        stride."""
        images = images * self.scale + self.shift
        return self.body.forward_intermediates(
            images, indices=self._indices, intermediates_only=True
        )


def _per_channel(values: Iterable[float]) -> Tensor:
    """Returns three `values` as `[3, 1, 1]`."""
    return torch.tensor(values)[:, None, None]


def _timm_features(
    create_model: Callable[..., Any], name: str, pretrained: bool, strides: tuple[int, ...]
) -> Any:
    """Returns timm's extractor of the features at `strides`.

    Raises InputError for a net without such features, and for one that timm does not have or cannot
    download.
    """
    options: dict[str, Any] = {"features_only": True, "feature_cls": "getter"}
    # timm and its hub client raise many kinds of error for unknown names and failed downloads.
    try:
        all_strides = create_model(name, **options).feature_info.reduction()
        # Where several feature maps have a stride, the last one has seen the most layers.
        last_index = {stride: index for index, stride in enumerate(all_strides)}
        indices = [last_index[stride] for stride in strides if stride in last_index]
        net = create_model(name, pretrained=pretrained, out_indices=indices, **options)
    except Exception as error:
        reason = first_line(error)[:160]
        raise InputError(
            f"timm:{name}: timm cannot provide it ({reason}); `timm.list_models()` has the "
            "names; without a network, download its weights on another machine and train with "
            "--weights FILE"
        ) from error
    has_strides = net.feature_info.reduction() == list(strides)
    if not has_strides or net.pretrained_cfg.get("fixed_input_size"):
        needed = ", ".join(map(str, strides))
        present = ", ".join(map(str, last_index))
        raise InputError(
            f"timm:{name} cannot be a backbone: a backbone takes images of any size and has "
            f"feature maps at strides {needed}, but this one has "
            f"{present}"
        )
    return net


def require_padding_mask(images: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError unless `mask` is None or the padding `[B, H, W]` of `images`
    `[B, 3, H, W]`, as bool.

    Transformers' `pixel_mask` would otherwise be read as its opposite.
    """
    if mask is None or torch.compiler.is_exporting():  # runtimes check the inputs of a file
        return
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype}, expected bool with True for padding: for a pixel_mask of "
            "Transformers, give pixel_mask == 0"
        )
    batch, _, height, width = images.shape
    if mask.shape != (batch, height, width):
        raise ValueError(
            f"mask is {list(mask.shape)}, expected {[batch, height, width]} for images "
            f"{list(images.shape)}"
        )


def padding_at(features: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the padding `[B, h, w]` of a feature map `[B, C, h, w]`, True = padding.

    `mask` `[B, H, W]` is that of the images, None = no padding. It is resized to the nearest pixel,
    as in the original DETR.
    """
    batch, _, height, width = features.shape
    if mask is None:
        return torch.zeros(batch, height, width, dtype=torch.bool, device=features.device)
    resized = F.interpolate(mask[:, None].float(), size=(height, width))  # [B, 1, h, w]
    return resized[:, 0].bool()
