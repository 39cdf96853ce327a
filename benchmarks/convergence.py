"""Which choices of the fast recipe pay? Short runs from scratch, several seeds each.

    python benchmarks/convergence.py default adamw --seeds 0 1 2 --steps 400
    python benchmarks/convergence.py                        # lists the variants
    python benchmarks/convergence.py --cost                 # what a step of each takes

Every run counts steps, not minutes; what a step costs is measured apart. The schedule runs to its end in each run, so
a short run says what a short recipe gives. Adds a line for each run to results/convergence.jsonl; convergence.md says
what was learned from them. One seed differs from another by 3 AP or so: smaller differences are no evidence.
"""

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from interleaved import measure
from record import RESULTS, commit, record
from rich.console import Console
from torch import Tensor, nn

from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.demo import demo_config
from redetr.distributed import Dist, process_group, replicate
from redetr.losses import Predictions, SetCriterion
from redetr.models.fast import FastDETR, Neck
from redetr.models.transformer import TransformerEncoderLayer
from redetr.structures import Target
from redetr.train import train

training = sys.modules["redetr.train"]
LOG = RESULTS / "convergence.jsonl"


@contextmanager
def denoising(repeats: int, box_noise: float, label_noise: float) -> Iterator[None]:
    """A second set of queries in training, after DN-DETR (Li et al. 2022): each object `repeats` times, its box moved
    by up to `box_noise` of its size and its label wrong in a share of `label_noise`; the rest of them are free. The
    content of such a query is a learned vector of its label; the two sets do not see each other."""
    targets_now: list[Target] = []
    build, decode, losses, receive = FastDETR.__init__, FastDETR._decode, SetCriterion._losses, training.receive

    def with_labels(self, num_classes, *rest, **named):
        build(self, num_classes, *rest, **named)
        self.label_embed = nn.Embedding(num_classes + 1, self.hidden_dim)  # the last one: of a free query

    def listening(*arguments):
        batches, denominators, stopped = receive(*arguments)
        targets_now[:] = batches[0].targets
        return batches, denominators, stopped

    def with_noised(self, content, boxes, image):
        if not self.training:
            return decode(self, content, boxes, image)
        noised, labels = torch.rand_like(boxes), torch.full_like(boxes[..., 0], self.num_classes, dtype=torch.long)
        for i, target in enumerate(targets_now):
            wanted = target["boxes"].repeat(repeats, 1)[: boxes.shape[1]].to(boxes)
            moved = wanted + box_noise * (2 * torch.rand_like(wanted) - 1) * wanted[:, 2:].repeat(1, 2) / 2
            noised[i, : len(wanted)] = moved.clamp(1e-3, 1)
            wrong = torch.rand(len(wanted)) < label_noise
            told = target["labels"].repeat(repeats)[: boxes.shape[1]]
            labels[i, : len(wanted)] = torch.where(wrong, torch.randint_like(told, self.num_classes), told)
        memory, shapes, valid_ratio = image
        image = (memory.repeat(2, 1, 1), shapes, valid_ratio.repeat(2, 1))
        content = torch.cat([content, self.label_embed(labels) - self.query_embed.weight[: boxes.shape[1]]])
        return decode(self, content, torch.cat([boxes, noised]), image)

    def apart(self, sets, targets, denominators):
        if sets[0].logits.shape[1] == len(targets):
            return losses(self, sets, targets, denominators)
        names, logits, boxes = sets[0]
        halves = zip(logits.chunk(2, 1), boxes.chunk(2, 1), strict=True)
        asked, told = (Predictions(names, *half) for half in halves)
        found = losses(self, [asked, *sets[1:]], targets, denominators)
        wanted = [{**target, "labels": target["labels"].repeat(repeats), "boxes": target["boxes"].repeat(repeats, 1)}
                  for target in targets]  # fmt: skip
        return found | {"loss": found["loss"] + losses(self, [told], wanted, denominators * repeats)["loss"]}

    with (patch.object(FastDETR, "__init__", with_labels), patch.object(FastDETR, "_decode", with_noised),
          patch.object(SetCriterion, "_losses", apart), patch.object(training, "receive", listening)):  # fmt: skip
        yield


@contextmanager
def encoder_layers(count: int) -> Iterator[None]:
    """Encoder layers at stride 16."""
    build = Neck.__init__

    def init(self, channels, hidden_dim, nheads, dim_feedforward):
        build(self, channels, hidden_dim, nheads, dim_feedforward)
        layer = (hidden_dim, nheads, dim_feedforward)
        self.encoder = Several(TransformerEncoderLayer(*layer, dropout=0.0, pre_norm=False) for _ in range(count))

    with patch.object(Neck, "__init__", init):
        yield


class Several(nn.ModuleList):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        for layer in self:
            x = layer(x, *rest)
        return x


@contextmanager
def learned_content() -> Iterator[None]:
    """Queries know where they start, but not what the encoder saw there: the content is learned alone."""
    decode = FastDETR._decode
    with patch.object(FastDETR, "_decode", lambda self, content, *rest: decode(self, 0 * content, *rest)):
        yield


# What a variant changes: settings, options of the model, or a part of the code.
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
    "denoising": {"code": lambda: denoising(3, 0.4, 0.2)},
    "no encoder layer": {"code": lambda: encoder_layers(0)},
    "2 encoder layers": {"code": lambda: encoder_layers(2)},
    "content learned alone": {"code": learned_content},
    "backbone wider": {"options": ("backbone=[48, 96, 192]",)},
}


def config_of(variant: str, data: str, steps: int, seed: int, folder: Path) -> TrainConfig:
    changes = {name: value for name, value in VARIANTS[variant].items() if name not in ("code", "options")}
    config = demo_config(data, folder, steps)
    steps = steps * config.batch_size // changes.get("batch_size", config.batch_size)  # as many images
    options = VARIANTS[variant].get("options", ())
    return replace(config, steps=steps, seed=seed, eval_every=steps, model_options=options, **changes)


def run(variant: str, data: str, steps: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, VARIANTS[variant].get("code", nullcontext)():
        config = config_of(variant, data, steps, seed, Path(folder))
        result = train(config, Console(stderr=True))
    return {
        "date": datetime.date.today().isoformat(), "commit": commit(), "data": data, "variant": variant, "seed": seed,
        "steps": config.steps, "batch_size": config.batch_size, "minutes": round(result["time_s"] / 60, 2),
        "AP": round(100 * result["AP"], 2), "AP50": round(100 * result["AP50"], 2),
    }  # fmt: skip


def step_of(variant: str, folder: Path, dist: Dist) -> Callable[[], None]:
    """A training step of a variant; the same images each time."""
    code = VARIANTS[variant].get("code", nullcontext)
    config = config_of(variant, "digits", 100, 0, folder)
    data = open_dataset(config.data, "train")
    with code():
        state, criterion = training.prepare(config, dist, data)
        model = replicate(state.model, dist)
        window = training.announce([[data.sample(i) for i in range(state.config.batch_size)]], criterion, dist)

    def step() -> None:
        with code():
            batches, denominators, _ = training.receive(window, criterion, dist)
            training.train_step(model, criterion, batches, denominators, state.optimizer, torch.float32, 0.1)

    return step


def cost(variants: list[str]) -> dict[str, float]:
    """Milliseconds of a training step for 16 images, the median of steps taken in turn."""
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as dist:
        sides = {variant: step_of(variant, Path(folder), dist) for variant in variants}
        seconds = measure(sides, rounds=15, warm_up=2)
    images = {variant: VARIANTS[variant].get("batch_size", 16) for variant in variants}
    return {variant: round(1000 * median(values) * 16 / images[variant]) for variant, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS])
    parser.add_argument("--data", choices=("digits", "crowns"), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400, help="of 16 images; other batches take as many images")
    parser.add_argument("--cost", action="store_true", help="measure what a step of each takes, and train nothing")
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
