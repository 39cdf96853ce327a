"""Which choices of the fast recipe pay? Short runs on digits from scratch, several seeds each.

    python benchmarks/convergence.py muon adamw --seeds 0 1 2 --steps 400
    python benchmarks/convergence.py                        # lists the variants

Every run counts steps, not minutes; what a step costs is measured apart. The schedule runs to its end in each run, so
a short run says what a short recipe gives. Adds a line for each run to results/convergence.jsonl; convergence.md says
what was learned from them. One seed differs from another by 3 AP or so: smaller differences are no evidence.
"""

import argparse
import datetime
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from record import RESULTS, commit
from rich.console import Console

import redetr.muon
from redetr.config import TrainConfig
from redetr.demo import demo_config
from redetr.models import fast
from redetr.structures import LossConfig
from redetr.train import train

LOG = RESULTS / "convergence.jsonl"


def repeats(count: int) -> Callable[[], AbstractContextManager]:
    """Every object offered `count` times to the encoder's proposals."""
    return lambda: patch.object(fast, "LossConfig", lambda **given: LossConfig(**{**given, "encoder_repeats": count}))


def iterations(count: int) -> Callable[[], AbstractContextManager]:
    """Newton-Schulz iterations of Muon."""
    return lambda: patch.object(redetr.muon, "_ITERATIONS", count)


# What a variant changes: settings, options of the model, or a part of the code.
VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": "adamw"},
    "lr x0.5": {"lr": 1e-3},
    "lr x2": {"lr": 4e-3},
    "batch 8, twice the steps": {"batch_size": 8, "lr": 1.4e-3},
    "batch 32, half the steps": {"batch_size": 32, "lr": 2.8e-3},
    "no moving average": {"ema_decay": 0.0},
    "mosaics for half of the run": {"mosaic_until": 0.5},
    "2 decoder layers": {"options": ("dec_layers=2",)},
    "4 decoder layers": {"options": ("dec_layers=4",)},
    "wider": {"options": ("hidden_dim=192", "dim_feedforward=768")},
    "encoder targets once": {"code": repeats(1)},
    "encoder targets 8 times": {"code": repeats(8)},
    "5 iterations": {"code": iterations(5)},
    "2 iterations": {"code": iterations(2)},
}


def config_of(variant: str, steps: int, seed: int, folder: Path) -> TrainConfig:
    changes = {name: value for name, value in VARIANTS[variant].items() if name not in ("code", "options")}
    config = demo_config("digits", folder, steps)
    steps = steps * config.batch_size // changes.get("batch_size", config.batch_size)  # as many images
    options = VARIANTS[variant].get("options", ())
    return replace(config, steps=steps, seed=seed, eval_every=steps, model_options=options, **changes)


def run(variant: str, steps: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, VARIANTS[variant].get("code", nullcontext)():
        config = config_of(variant, steps, seed, Path(folder))
        result = train(config, Console(stderr=True))
    return {
        "date": datetime.date.today().isoformat(), "commit": commit(), "variant": variant, "seed": seed,
        "steps": config.steps, "batch_size": config.batch_size, "minutes": round(result["time_s"] / 60, 2),
        "AP": round(100 * result["AP"], 2), "AP50": round(100 * result["AP50"], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400, help="of 16 images; other batches take as many images")
    arguments = parser.parse_args()
    for name, changes in VARIANTS.items() if not arguments.variants else ():
        print(f"{name:28} {changes}")
    for seed in arguments.seeds:
        for variant in arguments.variants:
            line = run(variant, arguments.steps, seed)
            with LOG.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)


if __name__ == "__main__":
    main()
