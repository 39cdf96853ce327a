"""The types of the settings of a run, and the allowed ranges of its numbers."""

import math
import os
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from redetr.choices import MOST_BANDS
from redetr.errors import InputError


@dataclass(frozen=True)
class Bounds:
    """The range of a number, from `lowest` to `highest`; an open end is itself not allowed."""

    lowest: float = 0
    highest: float = math.inf
    open_below: bool = False
    open_above: bool = False

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.lowest if self.open_below else value >= self.lowest
        low_enough = value < self.highest if self.open_above else value <= self.highest
        return high_enough and low_enough

    def __str__(self) -> str:
        lower = f"above {self.lowest}" if self.open_below else f"at least {self.lowest}"
        if self.highest == math.inf:
            return lower
        if not self.open_below and not self.open_above:
            return f"from {self.lowest} to {self.highest}"
        upper = f"below {self.highest}" if self.open_above else f"at most {self.highest}"
        return f"{lower} and {upper}"


_LARGEST_RATE = 1e30  # times other factors, still a number of fp32
_LONGEST_WAIT_S = 1_000_000  # eleven days; systems count milliseconds in 32 bits
_MOST_PROCESSES = 1024  # also of threads: a mistyped number must not exhaust the machine

_AT_LEAST_0 = Bounds()
_AT_LEAST_1 = Bounds(1)
_SHARE = Bounds(0, 1)
_BELOW_1 = Bounds(0, 1, open_above=True)
_WAIT = Bounds(0, _LONGEST_WAIT_S, open_below=True)

# What each number may be, where 0 often means: choose for me.
BOUNDS = {
    "accumulate": _AT_LEAST_0,
    "num_queries": _AT_LEAST_0,
    "denoising": _AT_LEAST_0,
    "channels": Bounds(1, MOST_BANDS),
    "val_fraction": _BELOW_1,
    "image_size": Bounds(0, 2**14),
    "mosaic_until": _SHARE,
    "lr": Bounds(0, _LARGEST_RATE, open_below=True),
    "lr_backbone": Bounds(0, _LARGEST_RATE),
    "weight_decay": Bounds(0, 1000),
    "clip_norm": Bounds(0, _LARGEST_RATE),
    "ema_decay": _BELOW_1,
    "epochs": Bounds(0, 1_000_000),
    "steps": Bounds(0, 1_000_000_000),
    "warmup": _SHARE,
    "drop_at": _SHARE,
    "eval_every": _AT_LEAST_0,
    "eval_batch_size": _AT_LEAST_1,
    "patience": _SHARE,
    "num_workers": Bounds(0, _MOST_PROCESSES),
    "threads": Bounds(1, _MOST_PROCESSES),
    "loader_timeout_s": _WAIT,
    "cache_mb": _AT_LEAST_0,
    "seed": Bounds(0, 2**64 - 1),
    "log_every": _AT_LEAST_1,
    "save_every": _AT_LEAST_0,
    "timeout_s": _WAIT,
    "setup_timeout_s": _WAIT,
}


def require_in_bounds(name: str, value: float | None) -> None:
    """Raises InputError, naming the flag, for a value out of the `BOUNDS` of `name`."""
    bounds = BOUNDS[name]
    flag = name.replace("_", "-")
    if value is None:
        return
    if not isinstance(value, Real):  # possible from Python, where nothing is parsed
        raise InputError(f"--{flag} {value!r} is not a number", remedy=f"give one that is {bounds}")
    if value not in bounds:
        raise InputError(f"--{flag} {value} must be {bounds}")


def require_all_in_bounds(settings: object) -> None:
    """Raises InputError for an attribute with a name of `BOUNDS` that is out of them."""
    for name in BOUNDS:
        value = getattr(settings, name, None)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            require_in_bounds(name, number)


def require_share(name: str, value: Any) -> None:
    """Raises InputError unless the argument `name` of a function is a number from 0 to 1."""
    if not _is_number(value, Real) or not 0 <= value <= 1:
        raise InputError(f"{name}={value!r} is not a number between 0 and 1")


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raises InputError unless the argument `name` of a function is a whole number, not below the
    `least`."""
    if not _is_number(value, Integral) or value < least:
        raise InputError(f"{name}={value!r} is not a whole number of at least {least}")


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of this `kind`, also one of NumPy or PyTorch."""
    number = _plain_number(value)
    return isinstance(number, kind) and not isinstance(number, bool)


def _plain_number(value: Any) -> Any:
    """A number of NumPy or PyTorch as one of Python; anything else unchanged."""
    is_number_of_array = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_number_of_array else value


def plain_value(value: Any) -> Any:
    """A value without types that JSON lacks: a number of NumPy or PyTorch as one of Python, a list
    as a tuple, a path as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(map(plain_value, value))
    return _plain_number(value)


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a setting."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return value in inner
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        has_any_length = Ellipsis in inner  # as tuple[str, ...]
        if not has_any_length and len(value) != len(inner):
            return False
        return all(is_of_type(item, inner[0]) for item in value)
    if inner:  # a union
        return any(is_of_type(value, member) for member in inner)
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted)
