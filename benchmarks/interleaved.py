"""Measures several ways to do the same thing in turn, so that other load of the machine affects all
of them."""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from statistics import median
from typing import Any, TypeVar

import torch

Sides = Mapping[str, Callable[[], Any]]
S = TypeVar("S", bound=Callable[[], Any])
# The threads of the side before spin for some milliseconds, on cores that the next side wants.
_SETTLE_S = 0.03
# Whether Transformers can be a side of the comparison.
TRANSFORMERS = bool(find_spec("transformers") and find_spec("timm"))


def wall_clock(side: Callable[[], Any]) -> float:
    return time.perf_counter()


def measure(
    sides: Mapping[str, S], rounds: int, warm_up: int = 1, clock: Callable[[S], float] = wall_clock
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after `warm_up` rounds that do not count; `clock` gives
    the time of a side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, work in sides.items():
            time.sleep(_SETTLE_S)
            wait()
            started = clock(work)
            work()
            wait()
            if number >= warm_up:
                seconds[name].append(clock(work) - started)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median, n and spread of each side, in milliseconds."""
    return {
        name: {
            "ms": _ms(median(values)),
            "n": len(values),
            "spread": [_ms(min(values)), _ms(max(values))],
        }
        for name, values in seconds.items()
    }


def times_faster(seconds: dict[str, list[float]], ours: str) -> dict[str, float]:
    """How many times faster `ours` is than each other side: the median over rounds of the ratio
    within a round."""
    return {
        name: round(
            median(other / own for own, other in zip(seconds[ours], values, strict=True)), 2
        )
        for name, values in seconds.items()
        if name != ours
    }


def _ms(value: float) -> float:
    return round(1000 * value, 2)
