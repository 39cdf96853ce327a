"""Which choices of the fast recipe pay? Short runs on digits from scratch, several seeds each.

    python benchmarks/convergence.py default adamw --seeds 0 1 2 --steps 400
    python benchmarks/convergence.py                        # lists the variants

Every run counts steps, not minutes; what a step costs is measured apart. The schedule runs to its end in each run, so
a short run says what a short recipe gives. Adds a line for each run to results/convergence.jsonl; convergence.md says
what was learned from them. One seed differs from another by 3 AP or so: smaller differences are no evidence.
"""

import argparse
import datetime
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from record import RESULTS, commit
from rich.console import Console

import redetr.muon
from redetr.config import TrainConfig
from redetr.demo import demo_config
from redetr.losses import Predictions, SetCriterion
from redetr.models.fast import FastDETR
from redetr.train import train

LOG = RESULTS / "convergence.jsonl"


def repeats(count: int) -> Callable[[], AbstractContextManager]:
    """Every object offered `count` times to the encoder's proposals."""
    original = SetCriterion.__init__

    def init(self, config, *rest, **named):
        original(self, replace(config, encoder_repeats=count), *rest, **named)

    return lambda: patch.object(SetCriterion, "__init__", init)


def iterations(count: int) -> Callable[[], AbstractContextManager]:
    """Newton-Schulz iterations of Muon."""
    return lambda: patch.object(redetr.muon, "_ITERATIONS", count)


def early_repeats(count: int) -> Callable[[], AbstractContextManager]:
    """Every object offered `count` times to the decoder's layers but the last."""
    original = SetCriterion._losses

    def losses(self, sets, targets, denominators):
        (names, logits, boxes, _), *others = sets
        early = Predictions(names[:-1], logits[:-1], boxes[:-1], count)
        return original(self, [Predictions(names[-1:], logits[-1:], boxes[-1:], 1), early, *others], targets,
                        denominators)  # fmt: skip

    return lambda: patch.object(SetCriterion, "_losses", losses)


@contextmanager
def groups(count: int, noise: float) -> Iterator[None]:
    """`count` sets of queries in training, with shared weights: the same content, proposals moved by `noise` of their
    size (none for the first), each set matched on its own."""
    decode, losses = FastDETR._decode, SetCriterion._losses

    def grouped(self, content, boxes, image):
        if not self.training:
            return decode(self, content, boxes, image)
        memory, shapes, valid_ratio = image
        moved = [boxes]
        for _ in range(count - 1):
            x, y, w, h = (boxes + noise * torch.randn_like(boxes) * boxes[..., 2:].repeat(1, 1, 2)).unbind(-1)
            sizes = [size.clamp(min=1e-3, max=1) for size in (w, h)]
            moved.append(torch.stack([x.clamp(0, 1), y.clamp(0, 1), *sizes], -1))
        image = (memory.repeat(count, 1, 1), shapes, valid_ratio.repeat(count, 1))
        return decode(self, content.repeat(count, 1, 1), torch.cat(moved), image)

    def apart(self, sets, targets, denominators):
        copies = sets[0].boxes.shape[1] // len(targets)
        first = losses(self, sets[:1], targets * copies, denominators * copies)
        rest = losses(self, sets[1:], targets, denominators)
        return first | rest | {"loss": first["loss"] + rest["loss"]}

    with patch.object(FastDETR, "_decode", grouped), patch.object(SetCriterion, "_losses", apart):
        yield


# What a variant changes: settings, options of the model, or a part of the code.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "adamw": {"optimizer": "adamw", "lr": 2e-3},
    "lr 2e-3": {"lr": 2e-3},
    "lr 8e-3": {"lr": 8e-3},
    "lr 16e-3": {"lr": 16e-3},
    "batch 8, twice the steps": {"batch_size": 8, "lr": 2.8e-3},
    "batch 32, half the steps": {"batch_size": 32, "lr": 5.7e-3},
    "no moving average": {"ema_decay": 0.0},
    "mosaics for half of the run": {"mosaic_until": 0.5},
    "2 decoder layers": {"options": ("dec_layers=2",)},
    "4 decoder layers": {"options": ("dec_layers=4",)},
    "wider": {"options": ("hidden_dim=192", "dim_feedforward=768")},
    "encoder targets once": {"code": repeats(1)},
    "encoder targets 8 times": {"code": repeats(8)},
    "early layers twice": {"code": early_repeats(2)},
    "2 groups": {"code": lambda: groups(2, 0.0)},
    "2 groups, one moved": {"code": lambda: groups(2, 0.2)},
    "3 groups, two moved": {"code": lambda: groups(3, 0.2)},
    "backbone wider": {"options": ("backbone=[48, 96, 192]",)},
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
