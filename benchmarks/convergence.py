"""Which choices of a recipe pay? Short runs from scratch, several seeds each.

    python benchmarks/convergence.py default adamw --seeds 0 1 2 --steps 400
    python benchmarks/convergence.py "rtdetr" "rtdetr, denoising" --seeds 0 1 2 --steps 720
    python benchmarks/convergence.py                        # lists the variants
    python benchmarks/convergence.py --cost                 # what a step of each takes

Every run has a number of steps instead of minutes; the cost of a step is measured separately. The
schedule is completed in each run, so a short run shows what a short recipe can reach. Adds a line
for each run to results/convergence.jsonl. convergence.md states what was learned, also from
variants whose code has been removed. Seeds differ by about 3 AP, so smaller differences are not
evidence.
"""

import argparse
import datetime
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import measure
from record import RESULTS, commit, record
from rich.console import Console

from redetr import preparation, training
from redetr.commands.demonstration import demo_config
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.distributed import Dist, process_group, replicate
from redetr.training import train
from redetr.verification import first_batch

LOG = RESULTS / "convergence.jsonl"


# A small RT-DETR from scratch, hence with GroupNorm.
RTDETR: dict[str, Any] = {
    "model": "rtdetr_r18",
    "num_queries": 25,
    "options": (
        "norm=group",
        "width=32",
        "enc_hidden_dim=128",
        "enc_dim_feedforward=512",
        "hidden_dim=128",
        "dim_feedforward=512",
    ),
}
VARIFOCAL: dict[str, Any] = {**RTDETR, "options": (*RTDETR["options"], "class_loss=varifocal")}

# The settings, or options of the model, that each variant changes.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "adamw": {"optimizer": "adamw", "lr": 2e-3},
    "lr 2e-3": {"lr": 2e-3},
    "lr 6e-3": {"lr": 6e-3},
    "lr 8e-3": {"lr": 8e-3},
    "lr 16e-3": {"lr": 16e-3},
    "batch 8, twice the steps": {"batch_size": 8, "lr": 2.8e-3},
    "batch 32, half the steps": {"batch_size": 32, "lr": 5.7e-3},
    "no moving average": {"ema_decay": 0.0},
    "mosaics for half of the run": {"mosaic_until": 0.5},
    "2 decoder layers": {"options": ("dec_layers=2",)},
    "4 decoder layers": {"options": ("dec_layers=4",)},
    "wider": {"options": ("hidden_dim=192", "dim_feedforward=768")},
    "rtdetr": RTDETR,
    "rtdetr, denoising": {**RTDETR, "denoising": 5},
    "rtdetr, varifocal": VARIFOCAL,
    "rtdetr, varifocal, denoising": {**VARIFOCAL, "denoising": 5},
}


def config_of(variant: str, data: str, steps: int, seed: int, folder: Path) -> TrainConfig:
    changes = {name: value for name, value in VARIANTS[variant].items() if name != "options"}
    config = demo_config(data, folder, steps)
    # The number of images stays the same.
    steps = steps * config.batch_size // changes.get("batch_size", config.batch_size)
    options = VARIANTS[variant].get("options", ())
    return replace(
        config, steps=steps, seed=seed, eval_every=steps, model_options=options, **changes
    )


def run(variant: str, data: str, steps: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(variant, data, steps, seed, Path(folder))
        result = train(config, Console(stderr=True))
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "data": data,
        "variant": variant,
        "seed": seed,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "minutes": round(result["time_s"] / 60, 2),
        "AP": round(100 * result["AP"], 2),
        "AP50": round(100 * result["AP50"], 2),
    }


def step_of(variant: str, folder: Path, dist: Dist) -> Callable[[], None]:
    """A training step of a variant, always on the same images."""
    config = config_of(variant, "digits", 100, 0, folder)
    data = open_dataset(config.data, "train")
    state, criterion = preparation.prepare(config, dist, data)
    model = replicate(state.model, dist)
    window = training.announce([first_batch(data, state)], criterion, dist)

    def step() -> None:
        batches, denominators, _ = training.receive(window, criterion, dist)
        training.train_step(
            model, criterion, batches, denominators, state.optimizer, torch.float32, 0.1
        )

    return step


def cost(variants: list[str]) -> dict[str, float]:
    """Milliseconds of a training step for 16 images, the median of steps taken in turn."""
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as dist:
        sides = {variant: step_of(variant, Path(folder), dist) for variant in variants}
        seconds = measure(sides, rounds=15, warm_up=2)
    images = {variant: VARIANTS[variant].get("batch_size", 16) for variant in variants}
    return {
        variant: round(1000 * median(values) * 16 / images[variant])
        for variant, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS])
    parser.add_argument("--data", choices=("digits", "crowns"), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--steps", type=int, default=400, help="of 16 images; other batches take as many images"
    )
    parser.add_argument(
        "--cost", action="store_true", help="measure what a step of each takes, and train nothing"
    )
    arguments = parser.parse_args()
    if arguments.cost:
        record("convergence-cost", {"ms of a step": cost(arguments.variants or list(VARIANTS))})
        return
    for name, changes in VARIANTS.items() if not arguments.variants else ():
        print(f"{name:28} {changes}")
    for seed in arguments.seeds:
        for variant in arguments.variants:
            line = run(variant, arguments.data, arguments.steps, seed)
            with LOG.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)


if __name__ == "__main__":
    main()
