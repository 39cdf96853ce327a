"""`redetr demo`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from redetr.commands.arguments import parse_flags
from redetr.commands.console import OUT
from redetr.garbage import quick_imports


@dataclass(frozen=True)
class Demo:
    """Train a detector for a few minutes, evaluate it and show its predictions."""

    data: str = "digits"
    """digits, or crowns (tree crowns in aerial photographs)."""
    recipe: Literal["redetr_n", "redetr_mobile"] = "redetr_n"
    """redetr_n learns from scratch, redetr_mobile from ImageNet weights (needs the extra
    imagenet)."""
    output: str = "runs/demo"
    """The run folder; replaces an earlier demo there."""
    steps: int = 0
    """Length of the run in optimizer steps; default: 1,500 on digits; on crowns, 1,200 of
    redetr_n and 600 of redetr_mobile: three to five minutes on two cores."""

    def run(self) -> None:
        with quick_imports():
            from redetr.commands.demonstration import demo

        demo(self.data, Path(self.output), self.steps, OUT, self.recipe)


parse = partial(parse_flags, Demo, prog="redetr demo")
