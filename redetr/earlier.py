"""Converts the settings and the names of weights of earlier versions."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from redetr.choices import BASIC_RESNET, PATIENCE
from redetr.model_options import ALSO_SETTINGS, parsed_options

if TYPE_CHECKING:
    from torch import Tensor

# Models of earlier versions, which are now redetr_n with these options.
_EARLIER_MODELS = {
    "redetr_s": ("backbone=[64, 128, 256]", "hidden_dim=192", "dim_feedforward=768"),
    "redetr_m": (
        "backbone=resnet50",
        "hidden_dim=256",
        "dec_layers=6",
        "dim_feedforward=1024",
        "num_queries=300",
    ),
}

# An option that backbones of three widths took and ignored.
_IGNORED_NORM = "norm=sync_batch"

# A layer of `BasicResNet`, the backbone of models that earlier versions trained from scratch.
_EARLIER_LAYER = "backbone.0.stem.0.weight"
# The defaults of redetr_n in those versions.
_EARLIER_DEFAULTS = {"backbone": (32, 64, 128), "hidden_dim": 128, "dim_feedforward": 512}

# Layers of the fast variants by their names in earlier versions; now they are those of RT-DETR.
_EARLIER_NAMES = {
    ".cross_attn.offsets.": ".cross_attn.sampling_offsets.",
    ".cross_attn.weights.": ".cross_attn.attention_weights.",
    ".cross_attn.out_proj.": ".cross_attn.output_proj.",
}


def with_present_names(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The weights of a run, with the names of this version."""
    renamed = {}
    for name, tensor in tensors.items():
        for earlier, present in _EARLIER_NAMES.items():
            name = name.replace(earlier, present)
        renamed[name] = tensor
    return renamed


def with_earlier_network(
    model: str, options: dict[str, Any], tensor_names: Collection[str]
) -> dict[str, Any]:
    """The options that build the model of a run, given those in its settings.

    Three widths stood for another backbone in earlier versions, and redetr_n was wider. The names
    of the run's tensors tell.
    """
    # A panoptic DETR has a prefix before it.
    if not any(name.endswith(_EARLIER_LAYER) for name in tensor_names):
        return options
    if model == "redetr_n":
        options = _EARLIER_DEFAULTS | options
    widths = options.get("backbone")
    if not isinstance(widths, tuple | list):
        return options
    name = BASIC_RESNET + ",".join(map(str, widths))
    return {**options, "backbone": name}


def migrated(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run by name, with the names, defaults and units of this version."""
    values = _present_model(values)
    values = _present_norm(values)
    values = _without_overridden(values)
    return _present_patience(values)


def _present_model(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run whose model may have the name or the defaults of an earlier version."""
    model = values.get("model")
    if model == "redetr_mobile" and "freeze" not in values:  # which all later runs state
        given = values.get("model_options", ())
        return {**values, "model_options": ("backbone=mobilenet_v2", *given)}
    if not isinstance(model, str) or model not in _EARLIER_MODELS:
        return values
    options = list(_EARLIER_MODELS[model])
    if values.get("num_queries") is not None:  # which an option would override
        options = [option for option in options if not option.startswith("num_queries=")]
    given = values.get("model_options", ())  # these come later, and win
    return {**values, "model": "redetr_n", "model_options": (*options, *given)}


def _present_norm(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run whose norm an earlier version ignored: a backbone of three widths, the
    default of redetr_n, always has GroupNorm."""
    options = _options_in(values)
    if _IGNORED_NORM not in options:
        return values
    default = (32, 64, 128) if values.get("model") == "redetr_n" else ""
    backbone = parsed_options(options).get("backbone", default)
    if isinstance(backbone, str):
        return values
    kept = [option for option in options if option != _IGNORED_NORM]
    return {**values, "model_options": kept}


def _present_patience(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run whose patience may be a number of evaluations, as in earlier
    versions."""
    patience = values.get("patience")
    if type(patience) is int and patience > 0:
        return {**values, "patience": PATIENCE}
    return values


def _without_overridden(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without those that a model option of the same name overrode in earlier
    versions, as it did the number of queries that the data suggests. Weights of a whole detector
    replaced what the option had loaded."""
    options = _options_in(values)
    kept = dict(values)
    weights = values.get("weights")
    if weights not in (None, "none", "imagenet"):
        options = [option for option in options if not option.startswith("weights=")]
        kept["model_options"] = options
    for option in options:
        name, equals, _ = option.partition("=")
        if name in ALSO_SETTINGS and equals and parsed_options([option])[name] != kept.get(name):
            kept.pop(name, None)
    return kept


def _options_in(values: dict[str, Any]) -> list[str]:
    """The model options in settings; none if they are malformed, which is reported later."""
    options = values.get("model_options")
    if not isinstance(options, list | tuple) or not all(isinstance(o, str) for o in options):
        return []
    return list(options)
