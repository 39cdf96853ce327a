"""Models by name: plain functions `name(num_classes, **options) -> DetectionModel`."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from redetr.errors import InputError
from redetr.models import detr, fast, rtdetr
from redetr.models.detr import detr_r50, detr_r50_dc5, detr_r101, detr_r101_dc5
from redetr.models.fast import redetr_m, redetr_mobile, redetr_n, redetr_s
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
from redetr.structures import DetectionModel

MODELS: dict[str, Callable[..., DetectionModel]] = {
    "detr_r50": detr_r50,
    "detr_r50_dc5": detr_r50_dc5,
    "detr_r101": detr_r101,
    "detr_r101_dc5": detr_r101_dc5,
    "redetr_n": redetr_n,
    "redetr_s": redetr_s,
    "redetr_mobile": redetr_mobile,
    "redetr_m": redetr_m,
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
}


def build(name: str, num_classes: int, **overrides: Any) -> DetectionModel:
    """A model of `MODELS` with random weights; `overrides` as in `models.detr.detr`,
    `models.fast.fast` or `models.rtdetr.rtdetr`.

    `num_classes` is the data set's number of categories. Raises InputError for an unknown name or
    option.
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    allowed = options_of(name)
    for option in overrides:
        if option not in allowed:
            raise InputError(
                f"unknown option {option!r} of model {name}: choose from {', '.join(allowed)}"
            )
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: a detector needs at least one class")
    sizes = allowed | overrides
    try:
        if sizes["hidden_dim"] % math.lcm(4, sizes["nheads"]):  # 4: sines and cosines of x and y
            raise ValueError("hidden_dim must be a multiple of 4 and of nheads")
        if sizes["dec_layers"] < 1:
            raise ValueError("dec_layers must be at least 1")
        return MODELS[name](num_classes, **overrides)
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        given = ", ".join(f"{option}={value}" for option, value in overrides.items())
        raise InputError(f"model {name} cannot be built with {given}: {error}") from error


def options_of(name: str) -> dict[str, Any]:
    """All options of a model of `MODELS` with their defaults."""
    options = {}
    for function in _functions(name):  # a later one's defaults replace those before
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                options[parameter.name] = parameter.default
    return options


def _functions(name: str) -> list[Callable[..., DetectionModel]]:
    """The functions that a model is built by, the most general one first."""
    if name.startswith("detr"):
        return [detr.detr, MODELS[name]]
    if name.startswith("rtdetrv2"):
        first_version = name.replace("rtdetrv2", "rtdetr")
        return [rtdetr.rtdetr, MODELS[first_version], MODELS[name]]
    if name.startswith("rtdetr"):
        return [rtdetr.rtdetr, MODELS[name]]
    return [fast.fast, MODELS[name]]
