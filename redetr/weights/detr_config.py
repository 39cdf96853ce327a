"""Translates the config.json of a DETR of Transformers to options of this library's DETR.

The config describes a `DetrForObjectDetection`, a `DetrForSegmentation` around one, or a
`TableTransformerForObjectDetection`, which is the same but has the norms before attention and
feed-forward networks (`pre_norm`).

Sizes that the weights show (backbone, queries, layers, widths) are taken from the weights, and the
rest from the config. The costs of matching, the other weights of the loss and dropout inside
attention do not change the predictions of the model, and are left out.
"""

from typing import Any

from redetr.errors import InputError
from redetr.models.backbone import RESNETS
from redetr.wording import alternatives

# Transformers' names for the functions in `models.transformer.ACTIVATIONS`.
_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
# The numbers of blocks in the stages of Transformers' own ResNet-18, 34, 50 and 101, and their
# widths.
_DEPTHS = {
    "basic": ([2, 2, 2, 2], [3, 4, 6, 3]),
    "bottleneck": ([3, 4, 6, 3], [3, 4, 23, 3]),
}
_WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
# Settings of Transformers' own ResNet for which only one value is supported.
_RESNET = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_BASE_MODELS = ("DetrModel", "TableTransformerModel")  # without heads
_WITH_MASKS = "DetrForSegmentation"
# The feature maps that a mask head needs from the backbone, by the setting that names them.
_ALL_STAGES = {
    "out_features": (
        ["stage1", "stage2", "stage3", "stage4"],
        ["layer1", "layer2", "layer3", "layer4"],
    ),
    "out_indices": ([1, 2, 3, 4],),
}


def options_from_config(config: dict[str, Any]) -> dict[str, Any]:
    """The options of `models.detr.detr` that a config states.

    Raises InputError, with the setting and its value, if this library's DETR does not support it.
    """
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        if name in _BASE_MODELS:
            raise _refused("architectures", architectures, "a model ForObjectDetection")
    if has_masks(config):
        _require_mask_head(config)
    _require(config, "num_channels", 3)
    nheads = config.get("encoder_attention_heads", 8)
    dec_nheads = config.get("decoder_attention_heads", 8)
    options = {
        "nheads": nheads,
        "activation": _activation(config),
        "position": _position(config),
        "dropout": config.get("dropout", 0.1),
        "eos_coef": config.get("eos_coefficient", 0.1),
        "norm_between": bool(config.get("auxiliary_loss")),
        "dilation": _is_dilated(config),
    }
    if dec_nheads != nheads:
        options["dec_nheads"] = dec_nheads
    return options


def has_masks(config: dict[str, Any]) -> bool:
    """Whether this is the config of a model with a mask head."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and _WITH_MASKS in architectures


def _require_mask_head(config: dict[str, Any]) -> None:
    """Raises InputError if the mask head differs from that of the original."""
    _require(config, "activation_function", "relu")
    for name in ("backbone_config", "backbone_kwargs"):
        settings = _table(config, name)
        for setting, known in _ALL_STAGES.items():
            value = settings.get(setting)
            if value is not None and value not in known:
                raise _refused(f"{name}.{setting}", value, f"{known[0]} with masks")


def _activation(config: dict[str, Any]) -> str:
    name = config.get("activation_function", "relu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise _refused("activation_function", name, alternatives(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _position(config: dict[str, Any]) -> str:
    kind = config.get("position_embedding_type", "sine")
    if kind not in ("sine", "learned"):
        raise _refused("position_embedding_type", kind, "sine or learned")
    return kind


def _is_dilated(config: dict[str, Any]) -> bool:
    """Whether the last stage of the backbone is dilated.

    Configs of all versions are interpreted as by Transformers 5: without a `backbone_config`, older
    settings describe a backbone of timm, or Transformers' own ResNet-50. Raises InputError for a
    backbone that is not a ResNet-18, 34, 50 or 101.
    """
    settings = _table(config, "backbone_config")
    if settings:
        kind = settings.get("model_type")
        if kind == "resnet":
            _require_resnet(settings)
            return False
        if kind != "timm_backbone":
            raise _refused("backbone_config.model_type", kind, "timm_backbone or resnet")
        _require_timm_resnet("backbone_config.backbone", settings.get("backbone"))
        return _has_stride_16(settings, "backbone_config")

    arguments = _table(config, "backbone_kwargs")
    if config.get("backbone") is not None:
        _require_timm_resnet("backbone", config["backbone"])
    if arguments:
        return _has_stride_16(arguments, "backbone_kwargs")
    return bool(config.get("use_timm_backbone", True) and config.get("dilation"))


def _require_timm_resnet(field: str, name: Any) -> None:
    resnet = str(name).partition(".")[0]  # resnet50.a1_in1k: a tag names its weights
    if resnet not in RESNETS:
        raise _refused(field, name, alternatives(RESNETS))


def _has_stride_16(settings: dict[str, Any], prefix: str) -> bool:
    """Whether a backbone of timm is dilated. Raises InputError for settings that are not
    supported."""
    _require(settings, "num_channels", 3, prefix)
    _require(settings, "in_chans", 3, prefix)
    _require_last_stage(settings, prefix)
    stride = settings.get("output_stride")
    if stride not in (None, 32, 16):
        raise _refused(f"{prefix}.output_stride", stride, "32 or 16")
    return stride == 16


def _require_resnet(settings: dict[str, Any]) -> None:
    """Raises InputError if Transformers' own ResNet differs from all of torchvision's."""
    for name, value in _RESNET.items():
        _require(settings, name, value, "backbone_config")
    _require_last_stage(settings, "backbone_config")
    blocks = settings.get("layer_type", "bottleneck")
    if blocks not in list(_DEPTHS):
        raise _refused("backbone_config.layer_type", blocks, alternatives(_DEPTHS))
    depths = settings.get("depths", [3, 4, 6, 3])
    if depths not in _DEPTHS[blocks]:
        known = " or ".join(str(depths) for depths in _DEPTHS[blocks])
        raise _refused("backbone_config.depths", depths, f"{known} ({blocks})")
    widths = settings.get("hidden_sizes", _WIDTHS["bottleneck"])
    if widths != _WIDTHS[blocks]:
        raise _refused("backbone_config.hidden_sizes", widths, f"{_WIDTHS[blocks]} ({blocks})")


def _require_last_stage(settings: dict[str, Any], prefix: str) -> None:
    """Raises InputError if the last feature map of the backbone is not that of its last stage."""
    for name, last in (("out_features", ("stage4", "layer4")), ("out_indices", (4, -1))):
        values = settings.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or not values or values[-1] not in last:
            raise _refused(f"{prefix}.{name}", values, f"a list that ends with {last[0]}")


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise InputError(f"{name} has to be a table of settings")
    return table


def _require(settings: dict[str, Any], name: str, value: Any, prefix: str = "") -> None:
    given = settings.get(name, value)
    if given != value:
        raise _refused(f"{prefix}.{name}" if prefix else name, given, str(value))


def _refused(field: str, value: Any, known: str) -> InputError:
    shown = repr(value)[:100]
    return InputError(f"{field} is {shown}, and this DETR can only have {known}")
