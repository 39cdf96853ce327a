"""Builds a backbone from a name or from three widths."""

from redetr.errors import InputError
from redetr.models.backbone import RESNETS, Backbone, Norm, TimmBackbone, require_known
from redetr.models.efficientnet_lite import NAME as EFFICIENTNET_LITE
from redetr.models.efficientnet_lite import EfficientNetLite
from redetr.models.resnet_vd import SmallResNet

AnyBackbone = Backbone | TimmBackbone | EfficientNetLite | SmallResNet


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
    checkpoints of such models hold. Raises InputError for a name or an option that does not exist.
    """
    is_lite = backbone == EFFICIENTNET_LITE
    if isinstance(backbone, str) and not is_lite and not backbone.startswith("timm:"):
        return Backbone(backbone, weights, dilation, strides, norm)
    if dilation:
        raise InputError(f"{backbone} has no dilated variant: choose one of {', '.join(RESNETS)}")
    if is_lite:
        return EfficientNetLite(weights, strides, norm)
    if isinstance(backbone, str):
        timm_name = backbone.removeprefix("timm:")
        return TimmBackbone(timm_name, weights, strides, norm)
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
    return SmallResNet(backbone, strides)
