"""`redetr verify`"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import tyro
from rich import box
from rich.table import Table

from redetr.commands.arguments import parse_flags
from redetr.commands.console import OUT, print_json
from redetr.commands.recipe import HELP, ConfigFlags, split_recipe
from redetr.config import TrainConfig
from redetr.errors import RedetrError
from redetr.garbage import quick_imports
from redetr.wording import counted


@dataclass(frozen=True)
class Verify:
    """Prove that this layout of ranks and micro-batches computes the gradient of one process."""

    config: TrainConfig
    json: bool = False

    def run(self) -> None:
        with quick_imports():
            from redetr.distributed import main_process_only
            from redetr.verification import verify

        result = verify(self.config)
        report = print_json if self.json else _print_verification
        main_process_only(report)({**asdict(result), "failed": result.failed})
        if result.failed:
            raise RedetrError(
                f"the gradient of this layout is not that of one process: {len(result.failed)} "
                f"errors above exceed the tolerance, such as {result.failed[-1]}"
            )


@dataclass(frozen=True)
class _Flags(ConfigFlags):
    json: bool = False
    """Print JSON instead of a table."""


def _print_verification(result: dict[str, Any]) -> None:
    images = counted(result["batch_size"], "image")
    micro_batches = counted(result["accumulate"], "micro-batch", "micro-batches")
    OUT.print(
        f"relative error of the gradient of {images}: {result['world_size']} x {result['device']} "
        f"with {micro_batches} each, against one process"
    )
    precisions = result["errors"]
    table = Table("part", "parameters", *precisions, box=box.SIMPLE, pad_edge=False)
    for part, size in result["parameters"].items():
        errors = [f"{by_part[part]:.1e}" for by_part in precisions.values()]
        table.add_row(part, f"{size:,}", *errors)
    OUT.print(table)
    if not result["failed"]:
        OUT.print("exact: equal up to the order of floating-point sums")
    if result["world_size"] * result["accumulate"] == 1:
        OUT.print(
            "nothing was split, so this proves nothing: run it under torchrun, or give "
            "--accumulate 2"
        )


def parse(args: list[str]) -> Verify:
    if not args or (args[0].startswith("-") and args[0] not in HELP):
        args = ["redetr_n", *args]
    recipe, flags, program = split_recipe("verify", args)
    # Proves something without data and downloads; the flags of a training command make it prove
    # that run.
    default = replace(recipe, data="random", batch_size=0, weights=None, compile=False)
    about = (
        "Proves that the gradients of this layout of ranks and micro-batches are those of one "
        "process. By default, the images are noise (two per rank and micro-batch, at least 12) and "
        "the weights random; --data, --batch-size and --weights prove it for your own step. The "
        "model is never compiled: --compile is refused, and that of a run is ignored."
    )
    parsed = parse_flags(
        tyro.conf.OmitArgPrefixes[_Flags],
        args=flags,
        default=_Flags.of(default),
        prog=program,
        description=about,
    )
    return Verify(parsed.joined(recipe), parsed.json)
