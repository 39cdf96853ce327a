"""`redetr demo`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from redetr.commands.console import OUT


@dataclass(frozen=True)
class Demo:
    """Trains redetr_n for a few minutes, evaluates it and shows its predictions."""

    data: str = "digits"
    """digits, or crowns for real aerial photographs."""
    output: str = "runs/demo"
    """The run folder; an earlier demo there is replaced."""
    steps: int = 0
    """Length of the run; default: about five minutes on two cores."""

    def run(self) -> None:
        from redetr.commands.demonstration import demo

        demo(self.data, Path(self.output), self.steps, OUT)


parse = partial(tyro.cli, Demo, prog="redetr demo")
