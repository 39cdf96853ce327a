"""How much faster is a training step on a CPU if the process keeps the memory that it frees?

    python benchmarks/kept_memory.py

Training steps in fp32 of two models, in processes with and without `keep_memory`, which take turns;
medians. Writes results/DATE-kept-memory.json.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from apart import Apart
from interleaved import measure, summary, times_faster
from record import record
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr.memory import keep_memory

# Model, height and width of the images in px, and their number.
SETTINGS = (("redetr_n", 128, 128, 16), ("redetr_n", 320, 320, 8), ("detr_r50", 512, 640, 2))


def work(name: str, height: int, width: int, count: int, keeps: bool) -> Callable[[], None]:
    """A training step, in a process of its own."""
    if keeps:
        keep_memory()
    setting = argparse.Namespace(height=height, width=width, batch_size=count, device="cpu")
    images, targets = batch_of(setting)
    images = images.contiguous(memory_format=torch.channels_last)
    model = redetr.build(name, NUM_CLASSES).to(memory_format=torch.channels_last).train()
    criterion = redetr.SetCriterion.for_model(model)
    losses = lambda: criterion(model(images), targets)["loss"]  # noqa: E731 (for step_of)
    return step_of(model, losses, torch.float32, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    content: dict[str, Any] = {"rounds": rounds}
    for name, height, width, count in SETTINGS:
        setting = (name, height, width, count)
        sides = {
            "kept": Apart(work, *setting, True),
            "given back": Apart(work, *setting, False),
        }
        seconds = measure(sides, rounds, warm_up=2)
        ratios = []
        for kept, given_back in zip(seconds["kept"], seconds["given back"], strict=True):
            ratios.append(round(given_back / kept, 2))
        content[f"{name}, {count} of {height}x{width}"] = {
            "ms": summary(seconds),
            "times faster": times_faster(seconds, "kept")["given back"],
            "spread": [min(ratios), max(ratios)],
        }
    record("kept-memory", content)


if __name__ == "__main__":
    main()
