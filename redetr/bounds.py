"""The allowed ranges of the numbers among the settings of a run."""

import math
from dataclasses import dataclass

from redetr.choices import MOST_BANDS


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


_ABOVE_0 = Bounds(open_below=True)
_AT_LEAST_0 = Bounds()
_AT_LEAST_1 = Bounds(1)
_SHARE = Bounds(0, 1)
_BELOW_1 = Bounds(0, 1, open_above=True)

# What each number may be, where 0 often means: choose for me.
BOUNDS = {
    "num_queries": _AT_LEAST_0,
    "denoising": _AT_LEAST_0,
    "channels": Bounds(1, MOST_BANDS),
    "val_fraction": _BELOW_1,
    "image_size": _AT_LEAST_0,
    "mosaic_until": _SHARE,
    "lr": _ABOVE_0,
    "lr_backbone": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "clip_norm": _AT_LEAST_0,
    "ema_decay": _BELOW_1,
    "epochs": _AT_LEAST_0,
    "steps": _AT_LEAST_0,
    "warmup": _SHARE,
    "drop_at": _SHARE,
    "eval_every": _AT_LEAST_0,
    "eval_batch_size": _AT_LEAST_1,
    "patience": _SHARE,
    "num_workers": _AT_LEAST_0,
    "threads": _AT_LEAST_1,
    "loader_timeout_s": _ABOVE_0,
    "cache_mb": _AT_LEAST_0,
    "seed": _AT_LEAST_0,
    "log_every": _AT_LEAST_1,
    "save_every": _AT_LEAST_0,
    "timeout_s": _ABOVE_0,
    "setup_timeout_s": _ABOVE_0,
}
