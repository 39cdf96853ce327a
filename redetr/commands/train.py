"""`redetr train`"""

from dataclasses import dataclass, field
from typing import Any

import tyro

from redetr.commands.arguments import parse_flags
from redetr.commands.console import ERRORS, OUT, print_results
from redetr.commands.recipe import ConfigFlags, notes_on_run, split_recipe
from redetr.config import TrainConfig
from redetr.garbage import quick_imports
from redetr.judging import in_words, judge_of
from redetr.wording import percent


@dataclass(frozen=True)
class Train:
    """Trains as a recipe says; flags override it."""

    config: TrainConfig
    notes: tuple[str, ...] = field(default=(), metadata={"is_flag": False})  # said at the start

    def run(self) -> None:
        with quick_imports():
            from redetr.commands.run_pictures import draw_run
            from redetr.distributed import main_process_only
            from redetr.training import train

        for note in self.notes:
            main_process_only(ERRORS.print)(note)
        draw = draw_run if self.config.pictures else None
        result = train(self.config, ERRORS, after_evaluation=draw)
        main_process_only(self._report)(result)

    def _report(self, result: dict[str, Any]) -> None:
        step, best = result["step"], result["best"]
        line = f"final evaluation (step {step})"
        if best["step"] != step:
            judge = judge_of(best)
            number = f"{in_words(judge)} {percent(best[judge])}"
            line += f"; best.pt is from step {best['step']}, {number}"
        OUT.print(line, soft_wrap=True)
        print_results([result])
        written = "best.pt, best.safetensors, last.pt, metrics.jsonl"
        if self.config.pictures:
            written += "; look at curves.png, and predictions.png (ground truth beside predictions)"
        OUT.print(f"{self.config.output}: {written}", soft_wrap=True)


def parse(args: list[str]) -> Train:
    recipe, flags, program = split_recipe("train", args)
    about = (
        "Train a model with the settings of a recipe. Flags override them; the defaults below "
        "are the recipe's."
    )
    parsed = parse_flags(
        tyro.conf.OmitArgPrefixes[ConfigFlags],
        args=flags,
        default=ConfigFlags.of(recipe),
        prog=program,
        description=about,
    )
    config = parsed.joined(recipe)
    return Train(config, tuple(notes_on_run(args[0], config)))
