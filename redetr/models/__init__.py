"""Models by name: plain functions `name(num_classes, **options) -> DetectionModel`."""

import inspect
from collections.abc import Callable
from typing import Any

from redetr.bounds import require_count
from redetr.choices import MOST_BANDS
from redetr.errors import InputError
from redetr.models import detr, dfine, fast, panoptic, rtdetr
from redetr.models.channels import RGB, take_channels
from redetr.models.detr import detr_r50, detr_r50_dc5, detr_r101, detr_r101_dc5, detr_table
from redetr.models.dfine import dfine_l, dfine_m, dfine_n, dfine_s, dfine_x
from redetr.models.fast import redetr_mobile, redetr_n
from redetr.models.panoptic import detr_r50_dc5_panoptic, detr_r50_panoptic, detr_r101_panoptic
from redetr.models.rtdetr import (
    rtdetr_r18,
    rtdetr_r34,
    rtdetr_r50,
    rtdetr_r50m,
    rtdetr_r101,
    rtdetrv2_r18,
    rtdetrv2_r34,
    rtdetrv2_r50,
    rtdetrv2_r50m,
    rtdetrv2_r101,
)
from redetr.models.transformer import ACTIVATIONS
from redetr.structures import DetectionModel

MODELS: dict[str, Callable[..., DetectionModel]] = {
    "detr_r50": detr_r50,
    "detr_r50_dc5": detr_r50_dc5,
    "detr_r101": detr_r101,
    "detr_r101_dc5": detr_r101_dc5,
    "detr_table": detr_table,
    "detr_r50_panoptic": detr_r50_panoptic,
    "detr_r50_dc5_panoptic": detr_r50_dc5_panoptic,
    "detr_r101_panoptic": detr_r101_panoptic,
    "redetr_n": redetr_n,
    "redetr_mobile": redetr_mobile,
    "rtdetr_r18": rtdetr_r18,
    "rtdetr_r34": rtdetr_r34,
    "rtdetr_r50m": rtdetr_r50m,
    "rtdetr_r50": rtdetr_r50,
    "rtdetr_r101": rtdetr_r101,
    "rtdetrv2_r18": rtdetrv2_r18,
    "rtdetrv2_r34": rtdetrv2_r34,
    "rtdetrv2_r50m": rtdetrv2_r50m,
    "rtdetrv2_r50": rtdetrv2_r50,
    "rtdetrv2_r101": rtdetrv2_r101,
    "dfine_n": dfine_n,
    "dfine_s": dfine_s,
    "dfine_m": dfine_m,
    "dfine_l": dfine_l,
    "dfine_x": dfine_x,
}


# The minimum and maximum of numeric options. The upper bounds are far above every useful
# model; they keep the sizes of its tensors within what PyTorch can count.
_BOUNDS: dict[str, tuple[float, float]] = {
    "width": (8, 2**13),
    "enc_hidden_dim": (4, 2**13),
    "enc_dim_feedforward": (1, 2**20),
    "expansion": (0, 8),
    "block_width": (1, 2**13),
    "blocks": (1, 1000),
    "bins": (8, 2**10),
    "reg_scale": (0.001, 1000),
    "eval_idx": (-1000, 999),
    "hidden_dim": (4, 2**13),
    "nheads": (1, 2**13),
    "enc_layers": (0, 1000),
    "dec_layers": (1, 1000),
    "dim_feedforward": (1, 2**20),
    "dropout": (0, 1),
    "dec_nheads": (1, 2**13),
    "dec_dim_feedforward": (1, 2**20),
    "max_size": (1, 2**14),
    "eos_coef": (0, 1),
    "points": (1, 1000),
    "num_queries": (1, 2**20),
    "denoising": (0, 1000),
}
_FRACTIONS = ("dropout", "eos_coef", "expansion", "reg_scale")
_GROUPS = 8  # of GroupNorm: widths are multiples of it
_MOST_CHANNELS = 2**13


def build(name: str, num_classes: int, *, channels: int = 3, **overrides: Any) -> DetectionModel:
    """A model of `MODELS` with random weights; `overrides` as in `models.detr.detr`,
    `models.fast.fast`, `models.rtdetr.rtdetr` or `models.dfine.dfine`.

    `num_classes` is the data set's number of categories. `channels` is that of the images: unless
    it is three, the first convolution is derived from the one for RGB, see `models.channels`.
    Raises InputError for an unknown name, or an option that is unknown or invalid.
    """
    defaults = options_of(name)
    for option in overrides:
        if option not in defaults:
            raise _unknown_option(name, option, defaults)
    require_count("num_classes", num_classes, least=0)
    if num_classes == 0:
        raise InputError(f"num_classes is {num_classes}: a detector needs at least one class")
    try:
        _require_possible(name, defaults, overrides)
    except ValueError as error:
        given = ", ".join(f"{option}={value}" for option, value in overrides.items())
        raise InputError(f"model {name} cannot be built with {given}: {error}") from error
    if channels not in range(1, MOST_BANDS + 1):
        raise InputError(f"{channels} channels: a model takes 1 to {MOST_BANDS}")
    model = MODELS[name](num_classes, **overrides)
    if channels != RGB:
        take_channels(model, channels)
    return model


def _unknown_option(name: str, option: str, defaults: dict[str, Any]) -> InputError:
    """The error for an option that the model `name` lacks; `defaults` are those that it has."""
    if option == "denoising":
        text = f"model {name} has no denoising: only RT-DETR and D-FINE support it"
        return InputError(text, remedy="leave it out, or use --denoising 0")
    if option == "masks":
        text = f"model {name} predicts only boxes: masks need a fast variant, RT-DETR or D-FINE"
        return InputError(text, remedy="leave out --masks")
    return InputError(
        f"unknown option {option!r} of model {name}: choose from {', '.join(defaults)}"
    )


def _require_possible(name: str, defaults: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, for options that the model `name` cannot have."""
    options = defaults | overrides
    if _is_rtdetr(name):
        rtdetr.require_possible(options)
    if _is_dfine(name):
        dfine.require_possible(options)
    if _is_panoptic(name):
        panoptic.require_possible(options)
    for option, value in overrides.items():
        _require_value(name, option, value, defaults[option])
    hidden_dim = options["hidden_dim"]
    nheads = options["nheads"]
    dec_nheads = options.get("dec_nheads")
    if hidden_dim % 4 or hidden_dim % nheads:  # 4: sines and cosines of x and y
        raise ValueError("hidden_dim must be a multiple of 4 and of nheads")
    if dec_nheads is not None and hidden_dim % dec_nheads:
        raise ValueError("hidden_dim must be a multiple of dec_nheads")
    if _is_fast(name) and hidden_dim % _GROUPS:
        raise ValueError(f"hidden_dim must be a multiple of {_GROUPS}")


def _require_value(name: str, option: str, value: Any, default: Any) -> None:
    """Raises ValueError unless an option of the model `name`, seen by itself, may be `value`."""
    if option == "points" and not _is_fast(name):
        return  # one number, or one for each level: the model's `require_possible` has checked it
    if value is None and default is None:
        return
    if option in _BOUNDS:
        _require_number(option, value, whole=option not in _FRACTIONS)
    elif isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{option} must be true or false")
    elif option == "norm" and not isinstance(value, str):
        raise ValueError("norm must be a name")
    elif option == "position" and value not in ("sine", "learned"):
        raise ValueError("position must be sine or learned")
    elif option == "activation" and value not in list(ACTIVATIONS):
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}")
    elif option == "backbone" and not isinstance(value, str):
        _require_widths(value)


def _require_number(option: str, value: Any, whole: bool) -> None:
    least, most = _BOUNDS[option]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{option} must be a number")
    if whole and not isinstance(value, int):
        raise ValueError(f"{option} must be a whole number")
    if value < least:
        raise ValueError(f"{option} must be at least {least}")
    if not value <= most:  # also not a number
        raise ValueError(f"{option} must be at most {most}")


def _require_widths(value: Any) -> None:
    """Raises ValueError unless these are the widths of a `SmallResNet`."""
    message = (
        f"backbone must be a name, or three widths that are multiples of {_GROUPS}, at most "
        f"{_MOST_CHANNELS}"
    )
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise ValueError(message)
    allowed = range(_GROUPS, _MOST_CHANNELS + 1, _GROUPS)
    for width in value:
        if not isinstance(width, int) or width not in allowed:
            raise ValueError(message)


def options_of(name: str) -> dict[str, Any]:
    """All options of a model of `MODELS` with their defaults. Raises InputError for an unknown
    name."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    options = {}
    for function in _functions(name):  # a later one's defaults replace those before
        parameters = inspect.signature(function).parameters
        for parameter in parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                options[parameter.name] = parameter.default
    return options


def _functions(name: str) -> list[Callable[..., DetectionModel]]:
    """The functions that build a model, the most general one first."""
    model = MODELS[name]
    if _is_fast(name):
        return [fast.fast, model]
    if name.startswith("rtdetrv2"):
        first_version = name.replace("rtdetrv2", "rtdetr")
        return [rtdetr.rtdetr, MODELS[first_version], model]
    if _is_rtdetr(name):
        return [rtdetr.rtdetr, model]
    if _is_dfine(name):
        return [dfine.dfine, model]
    return [detr.detr, model]


def _is_fast(name: str) -> bool:
    return MODELS[name].__module__ == fast.__name__


def _is_rtdetr(name: str) -> bool:
    return MODELS[name].__module__ == rtdetr.__name__


def _is_dfine(name: str) -> bool:
    return MODELS[name].__module__ == dfine.__name__


def _is_panoptic(name: str) -> bool:
    return MODELS[name].__module__ == panoptic.__name__
