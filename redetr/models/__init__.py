"""Models by name: plain functions `name(num_classes, **options) -> DetectionModel`."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from redetr.errors import InputError
from redetr.models import detr, fast
from redetr.models.detr import detr_r50, detr_r50_dc5, detr_r101, detr_r101_dc5
from redetr.models.fast import redetr_m, redetr_mobile, redetr_n, redetr_s
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
}


def build(name: str, num_classes: int, **overrides: Any) -> DetectionModel:
    """A model of `MODELS` with random weights; `overrides` as in `models.detr.detr` or
    `models.fast.fast`.

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
    functions = (detr.detr if name.startswith("detr") else fast.fast, MODELS[name])
    parameters = [
        p for function in functions for p in inspect.signature(function).parameters.values()
    ]
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
