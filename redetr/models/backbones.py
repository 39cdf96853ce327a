"""Builds a backbone from a name or from three widths."""

from redetr.choices import BASIC_RESNET
from redetr.errors import InputError
from redetr.models.backbone import RESNETS, Backbone, Norm, TimmBackbone, require_known
from redetr.models.basic_resnet import BasicResNet, widths_of_name
from redetr.models.efficientnet_lite import NAME as EFFICIENTNET_LITE
from redetr.models.efficientnet_lite import EfficientNetLite
from redetr.models.resnet_vd import SmallResNet

AnyBackbone = Backbone | TimmBackbone | EfficientNetLite | SmallResNet | BasicResNet


def build_backbone(
    backbone: str | tuple[int, int, int],
    weights: str | None,
    norm: Norm,
    strides: tuple[int, ...],
    dilation: bool = False,
) -> AnyBackbone:
    """Returns the backbone of a name of torchvision, of "efficientnet_lite0", of "timm:NAME", or of
    three widths.

    Three widths make a `SmallResNet`, which has strides 8 and 16 whatever `strides` says, and 4 if
    they have it, and GroupNorm: `norm` is then "group", or the default for other backbones, which
    checkpoints of such models hold. "basic:" and three widths make a `BasicResNet`, of which the
    same is true. Raises InputError for a name or an option that does not exist.
    """
    if isinstance(backbone, str):
        return _named(backbone, weights, norm, strides, dilation)
    _require_scratch(backbone, weights, norm, dilation)
    return SmallResNet(backbone, strides)


def _named(
    name: str, weights: str | None, norm: Norm, strides: tuple[int, ...], dilation: bool
) -> AnyBackbone:
    """Returns the backbone of this name."""
    if name.startswith(BASIC_RESNET):
        _require_scratch(name, weights, norm, dilation)
        return BasicResNet(widths_of_name(name), strides)
    if name == EFFICIENTNET_LITE:
        _require_not_dilated(name, dilation)
        return EfficientNetLite(weights, strides, norm)
    if name.startswith("timm:"):
        _require_not_dilated(name, dilation)
        return TimmBackbone(name.removeprefix("timm:"), weights, strides, norm)
    return Backbone(name, weights, dilation, strides, norm)


def _require_not_dilated(backbone: str | tuple[int, int, int], dilation: bool) -> None:
    if dilation:
        raise InputError(f"{backbone} has no dilated variant: choose one of {', '.join(RESNETS)}")


def _require_scratch(
    backbone: str | tuple[int, int, int], weights: str | None, norm: Norm, dilation: bool
) -> None:
    """Raises InputError for options of a backbone of widths, which is trained from scratch."""
    _require_not_dilated(backbone, dilation)
    if weights:
        raise InputError(
            f"a backbone of widths {backbone} is trained from scratch: leave out weights "
            f"({weights})"
        )
    require_known(weights, norm)
    if norm == "sync_batch":
        raise InputError(
            f"a backbone of widths {backbone} has GroupNorm, not norm={norm}",
            remedy="leave out norm, or choose a backbone by its name",
        )
