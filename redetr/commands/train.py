"""`redetr train`"""

from dataclasses import dataclass

import tyro

from redetr.commands.arguments import FLAGS
from redetr.commands.console import ERRORS, OUT, print_result
from redetr.commands.recipe import split_recipe
from redetr.config import TrainConfig
from redetr.distributed import main_process_only
from redetr.train import train


@dataclass(frozen=True)
class Train:
    """Trains as a recipe says; flags override it."""

    config: TrainConfig

    def run(self) -> None:
        result = train(self.config, ERRORS)
        main_process_only(print_result)(result)
        main_process_only(OUT.print)(f"{self.config.output}: best.pt, best.safetensors, last.pt, metrics.jsonl")


def parse(args: list[str]) -> Train:
    recipe, flags, program = split_recipe("train", args)
    about = "Trains a model as the recipe says. A flag replaces a setting; the defaults below are the recipe's."
    return Train(tyro.cli(TrainConfig, args=flags, default=recipe, prog=program, config=FLAGS, description=about))
