"""Backbones: normalised images `[B, 3, H, W]` to feature maps by stride.

`Backbone` is a ResNet or MobileNet of torchvision, `TimmBackbone` a net of timm, `SmallResNet` a
small residual net to train from scratch. All take images normalised by ImageNet's mean and
deviation.
"""

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
from redetr.errors import InputError
from redetr.models.recompute import runner

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Which of `features` is the first at stride 2, 4, 8, 16, 32.
MOBILENETS = {
    "mobilenet_v2": (0, 2, 4, 7, 14),
    "mobilenet_v3_small": (0, 1, 2, 4, 9),
    "mobilenet_v3_large": (0, 2, 4, 7, 13),
}
_STRIDES = (2, 4, 8, 16, 32)
Norm = Literal["frozen_batch", "group", "sync_batch"]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


# Layers by the name of the norm, each a function of the number of channels.
NORMS: dict[str, Any] = {
    "frozen_batch": FrozenBatchNorm2d,
    "group": _group_norm,
    "sync_batch": nn.SyncBatchNorm,
}


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`; a frozen BatchNorm is folded into the convolution.

    The weights are scaled and the shift becomes the bias, for the same function and the same
    gradient of `conv.weight`, without the extra passes over the feature map.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the work of `conv`, without bias, and `norm`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return weight, bias


def _residual_block(x: Tensor, block: BasicBlock | Bottleneck) -> Tensor:
    identity = x if block.downsample is None else conv_norm(x, *block.downsample)
    out = conv_norm(x, block.conv1, block.bn1).relu_()
    out = conv_norm(out, block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        out = conv_norm(out.relu_(), block.conv3, block.bn3)
    return out.add_(identity).relu_()


def _chain(x: Tensor, layers: Iterable[nn.Module], recompute: bool = False) -> Tensor:
    """torchvision's `layers` one after the other, each convolution together with the norm that
    follows it."""
    run, layers = runner(recompute), iter(layers)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = conv_norm(x, layer, next(layers))
        elif isinstance(layer, nn.Sequential):
            x = _chain(x, layer, recompute)
        elif isinstance(layer, (BasicBlock, Bottleneck)):
            x = run(_residual_block, x, layer)
        elif isinstance(layer, (mobilenetv2.InvertedResidual, mobilenetv3.InvertedResidual)):
            out = run(
                _chain,
                x,
                layer.conv if isinstance(layer, mobilenetv2.InvertedResidual) else layer.block,
            )
            x = x + out if layer.use_res_connect else out
        else:
            x = layer(x)
    return x


class Backbone(nn.Module):
    """A torchvision ResNet or MobileNet as `body`, without its classifier and what comes after the
    last of `strides`.

    `weights="imagenet"` loads torchvision's weights; None leaves random ones. `dilation` replaces
    the stride of the last stage by dilation (DC5).

    With `norm="frozen_batch"`, nothing before stride 8 is trained, as in the original: filters that
    serve any picture, few weights, and the largest feature maps, through which no gradient has to
    go. `norm="group"` takes GroupNorm in place of frozen BatchNorm and trains all of it: the choice
    for training from scratch. `norm="sync_batch"` trains BatchNorm with statistics over all ranks:
    GPUs only, exact over ranks but not over accumulated micro-batches.
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
                f"unknown backbone {name!r}: choose one of {', '.join(known)}, or timm:NAME"
            )
        if dilation and name not in ("resnet50", "resnet101"):
            raise InputError(f"{name} has no dilated form: choose resnet50 or resnet101")
        _check(weights, norm)
        eps = (
            {"eps": 1e-3} if name.startswith("mobilenet_v3") and norm != "group" else {}
        )  # as V3 was trained
        options = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
        self.name = name
        self.body = torchvision.models.get_model(
            name, norm_layer=partial(NORMS[norm], **eps), **options
        )
        if weights:
            self.body.load_state_dict(_imagenet_weights(name))
        self._cut(_STRIDES.index(max(strides)))
        self.strides = strides
        self.num_channels = [
            _out_channels(self._stages()[_STRIDES.index(stride)]) for stride in strides
        ]
        if norm == "frozen_batch":
            for layer in (layer for stage in self._stages()[:2] for layer in stage):
                layer.requires_grad_(False)

    def _stages(self) -> list[list[nn.Module]]:
        """The layers of each stride in `_STRIDES`."""
        body = self.body
        if self.name in MOBILENETS:
            layers = list(body.features)
            return [layers[begin:end] for begin, end in pairwise((*MOBILENETS[self.name], None))]
        later = [
            [getattr(body, layer)]
            for layer in ("layer2", "layer3", "layer4")
            if hasattr(body, layer)
        ]
        return [[body.conv1, body.bn1, body.relu], [body.maxpool, body.layer1], *later]

    def _cut(self, last: int) -> None:
        """Removes what comes after stage `last`: it would be computed for nothing, and get no
        gradient."""
        unused = {"fc", "avgpool", "classifier", *(f"layer{i}" for i in range(last + 1, 5))}
        for part in unused & dict(self.body.named_children()).keys():
            delattr(self.body, part)
        if self.name in MOBILENETS:
            self.body.features = self.body.features[: (*MOBILENETS[self.name], None)[last + 1]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[B, num_channels[i], H / strides[i], W / strides[i]]` (DC5: stride 16 under
        the name 32)."""
        x, features = images, {}
        for stride, stage in zip(_STRIDES, self._stages(), strict=False):
            x = features[stride] = _chain(x, stage, self.recompute)
        return [features[stride] for stride in self.strides]


def _out_channels(layers: list[nn.Module]) -> int:
    return [
        conv.out_channels
        for layer in layers
        for conv in layer.modules()
        if isinstance(conv, nn.Conv2d)
    ][-1]


def _check(weights: str | None, norm: str) -> None:
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
    """torchvision's weights from torch's cache, or from the net. Raises InputError with the place
    for the file."""
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = fetch(url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2])
    return torch.load(path, map_location="cpu", weights_only=True)


class TimmBackbone(nn.Module):
    """A convolutional net of timm as `body`, pruned after the last of `strides`; needs the extra
    `timm`.

    Its BatchNorm is frozen, or synchronised with `norm="sync_batch"` (see `Backbone`); all else is
    trained.
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
        _check(weights, norm)
        if norm == "group":
            raise InputError(
                f"timm:{name} cannot change to norm=group: take norm=frozen_batch or sync_batch"
            )
        net = _timm_features(timm.create_model, name, bool(weights), strides)
        freeze, synchronise = timm.layers.freeze_batch_norm_2d, timm.layers.convert_sync_batchnorm
        self.body = (freeze if norm == "frozen_batch" else synchronise)(net.model)
        self.strides = strides
        self.num_channels = net.feature_info.channels()
        self._indices = net.out_indices
        # From ImageNet's mean and deviation to those that this net was trained with, which for some
        # are others.
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None]
            for values in (
                timm.data.IMAGENET_DEFAULT_MEAN,
                timm.data.IMAGENET_DEFAULT_STD,
                net.pretrained_cfg["mean"],
                net.pretrained_cfg["std"],
            )
        )
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self._recompute = False

    @property
    def recompute(self) -> bool:
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        try:
            self.body.set_grad_checkpointing(value)
        except AssertionError:  # timm's word for a net that has no blocks to compute twice
            raise InputError(
                "--recompute: this backbone of timm cannot do that; leave the flag out"
            ) from None
        self._recompute = value

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[B, num_channels[i], H / strides[i], W / strides[i]]`."""
        images = images * self.scale + self.shift
        return self.body.forward_intermediates(
            images, indices=self._indices, intermediates_only=True
        )


def _timm_features(
    create_model: Callable[..., Any], name: str, pretrained: bool, strides: tuple[int, ...]
) -> Any:
    """timm's extractor of the features at `strides`. Raises InputError for a net that has none or
    cannot be had."""
    options: dict[str, Any] = {"features_only": True, "feature_cls": "getter"}
    try:
        found = create_model(name, **options).feature_info.reduction()
        last = {stride: index for index, stride in enumerate(found)}
        indices = [last[stride] for stride in strides if stride in last]
        net = create_model(name, pretrained=pretrained, out_indices=indices, **options)
    except (
        Exception
    ) as error:  # unknown names, downloads that fail: timm and its hub client raise many kinds
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"timm:{name}: timm cannot give it ({reason[:160]}); `timm.list_models()` has the "
            "names; where there is no "
            "net, get the file of its weights elsewhere and train with --weights FILE"
        ) from error
    if net.feature_info.reduction() != list(strides) or net.pretrained_cfg.get("fixed_input_size"):
        raise InputError(
            f"timm:{name} cannot be a backbone: that takes images of any size and has feature maps "
            "at strides "
            f"{', '.join(map(str, strides))}; this one has {', '.join(map(str, last))}"
        )
    return net


class _SmallBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the second norm's scale starts at 0, so the block starts
    as identity."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _group_norm(outputs)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_()))
        return out.add_(self.shortcut(x)).relu_()


class SmallResNet(nn.Module):
    """Residual stages at strides 4, 8, 16 with GroupNorm: each image is normalised by itself, with
    its padding."""

    recompute = False

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            _group_norm(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages, inputs = [], widths[0]
        for width, blocks in zip(
            widths, (1, 2, 2), strict=True
        ):  # pixels are dearest in the first stage
            stage = [_SmallBlock(inputs, width, 2)] + [
                _SmallBlock(width, width, 1) for _ in range(blocks - 1)
            ]
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
        x, features, run = self.stem(images), [], runner(self.recompute)
        for stage in self.stages:
            for block in stage.children():
                x = run(block, x)
            features.append(x)
        return features[1:]


AnyBackbone = Backbone | TimmBackbone | SmallResNet


def build_backbone(
    backbone: str | tuple[int, int, int],
    weights: str | None,
    norm: Norm,
    strides: tuple[int, ...],
    dilation: bool = False,
) -> AnyBackbone:
    """The backbone of that name: torchvision's, "timm:NAME", or a `SmallResNet` of three widths
    (strides 8, 16)."""
    if isinstance(backbone, str) and not backbone.startswith("timm:"):
        return Backbone(backbone, weights, dilation, strides, norm)
    if dilation:
        raise InputError(f"{backbone} has no dilated form: choose resnet50 or resnet101")
    if isinstance(backbone, str):
        return TimmBackbone(backbone.removeprefix("timm:"), weights, strides, norm)
    if weights:
        raise InputError(
            f"a backbone of widths {backbone} is trained from scratch: take no weights ({weights})"
        )
    return SmallResNet(backbone)


def padding_at(features: Tensor, mask: Tensor | None) -> Tensor:
    """The padding `[B, h, w]` of a feature map `[B, C, h, w]`; `mask` `[B, H, W]` is the images',
    None = no padding.

    Nearest pixel, as the original DETR does it.
    """
    batch, _, height, width = features.shape
    if mask is None:
        return torch.zeros(batch, height, width, dtype=torch.bool, device=features.device)
    return F.interpolate(mask[:, None].float(), size=(height, width))[:, 0].bool()
