"""What does `--compile` gain in a training step, and what does it cost before the first one?

    python benchmarks/compiled.py redetr_n rtdetr_r18 detr_r50
    python benchmarks/compiled.py redetr_n detr_r50 --device cuda --precision bf16

redetr_n has 16 images of 128x128, the others 2 of 320x320. First the seconds of the first step:
without --compile, with it and an empty cache, and with it in a second process, which finds what the
first one compiled. Then steps in turns; medians. Each side is a process that keeps its memory.
Writes results/DATE-compiled-DEVICE.json after each model.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from apart import Apart
from choices import OTHERS, SMALL
from interleaved import measure, summary, times_faster
from record import unfinished, write
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr.memory import keep_memory
from redetr.precision import PRECISIONS


def work(model_name: str, device: str, precision: str, compiled: bool) -> Callable[[], None]:
    """A training step, compiled as `train --compile` does where all images have the same size."""
    keep_memory()
    side_px, count = SMALL.get(model_name, OTHERS)
    setting = argparse.Namespace(height=side_px, width=side_px, batch_size=count, device=device)
    images, targets = batch_of(setting)
    model = redetr.build(model_name, NUM_CLASSES).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    if compiled:
        model.compile(fullgraph=True, dynamic=False)
    criterion = redetr.SetCriterion.for_model(model)
    losses = lambda: criterion(model(images), targets)["loss"]  # noqa: E731 (for step_of)
    return step_of(model, losses, PRECISIONS[precision], fused=True)


def seconds_of_first_step(side: Apart) -> float:
    side.ready()
    started = time.perf_counter()
    side()
    return time.perf_counter() - started


def table(model_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    setting = (model_name, arguments.device, arguments.precision)
    first: dict[str, float] = {}
    sides: dict[str, Apart] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # of the processes that are started below
        for name, compiled in (("plain", False), ("compiled", True), ("compiled again", True)):
            sides[name] = Apart(work, *setting, compiled)
            first[name] = round(seconds_of_first_step(sides[name]), 1)
        del sides["compiled again"]
        seconds_by_side = measure(sides, arguments.rounds, warm_up=2)
    ratios = times_faster(seconds_by_side, "compiled")
    return {
        "seconds of the first step": first,
        "ms": summary(seconds_by_side),
        "compiled, times as fast": ratios["plain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    setting = {name: value for name, value in vars(arguments).items() if name != "models"}
    name = f"compiled-{arguments.device}"
    path, tables = unfinished(name, setting)
    for model_name in arguments.models:
        if model_name in tables:
            continue
        tables[model_name] = table(model_name, arguments)
        write(path, name, {"setting": setting, **tables})
        print(model_name, tables[model_name], flush=True)


if __name__ == "__main__":
    main()
