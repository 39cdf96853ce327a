"""Is what redetr chooses by itself on a CPU the fastest choice on this machine?

    python benchmarks/choices.py redetr_n rtdetr_r18

A training step in every fixed combination of precision, threads, memory layout and attention
kernel, and as `train` chooses by itself on free cores ("auto"). redetr_n has 16 images of 128x128,
the others 2 of 320x320. Each side is a process that keeps its memory, as the command line does;
sides take turns; medians. "auto, times as fast as the best" compares with the fixed combination
that has the best median: the median over rounds of the ratio within a round. Nothing else may run
meanwhile. Writes results/DATE-choices.json.
"""

import argparse
import os
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import torch
from apart import Apart
from interleaved import measure, summary, times_faster
from limits import cpu_gflops
from record import record
from torch import Tensor
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr import threads
from redetr.memory import keep_memory
from redetr.models import transformer
from redetr.precision import PRECISIONS, pick_precision

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
KERNELS = ("written out", "fused")
SMALL = {"redetr_n": (128, 16)}  # side in px, images
OTHERS = (320, 2)


class Choice(NamedTuple):
    """A fixed combination."""

    precision: str
    threads: int
    layout: str
    kernel: str

    @property
    def name(self) -> str:
        plural = "s" if self.threads > 1 else ""
        kernel = f"attention {self.kernel}"
        return f"{self.precision}, {self.threads} thread{plural}, {self.layout}, {kernel}"


def written_out(q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None, p: float) -> Tensor:
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    if ignored is not None:
        scores = scores.masked_fill(ignored, float("-inf"))
    weights = transformer.dropout(scores.softmax(-1), p)
    return weights.to(v.dtype) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None, p: float) -> Tensor:
    attended = None if ignored is None else ~ignored
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attended, p)


def work(model_name: str, choice: Choice | None) -> Callable[[], None]:
    """A training step in a fixed combination, or as `train` would choose."""
    keep_memory()
    side_px, count = SMALL.get(model_name, OTHERS)
    setting = argparse.Namespace(height=side_px, width=side_px, batch_size=count, device="cpu")
    images, targets = batch_of(setting)
    model = redetr.build(model_name, NUM_CLASSES).train()
    layout = LAYOUTS[choice.layout if choice else "channels_last"]
    model = model.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    if choice is None:
        device = torch.device("cpu")
        trial = {"gradient": True, "batch_size": count}
        dtype = pick_precision("auto", device, model, side_px, **trial).dtype
    else:
        torch.set_num_threads(choice.threads)
        dtype = PRECISIONS[choice.precision]
        transformer.attention = written_out if choice.kernel == "written out" else fused
    criterion = redetr.SetCriterion.for_model(model)
    return step_of(model, lambda: criterion(model(images), targets)["loss"], dtype, fused=True)


def fixed_choices() -> list[Choice]:
    counts = sorted({1, threads.cores()})
    return [Choice(*values) for values in product(("fp32", "bf16"), counts, LAYOUTS, KERNELS)]


def table(model_name: str, rounds: int) -> dict[str, Any]:
    sides = {"auto": Apart(work, model_name, None)}
    sides["auto"].ready()  # its trial is over before the others start
    for choice in fixed_choices():
        sides[choice.name] = Apart(work, model_name, choice)
    for side in sides.values():
        side()  # starts it
    seconds = measure(sides, rounds, warm_up=2)
    fixed = {name: values for name, values in seconds.items() if name != "auto"}
    best = min(fixed, key=lambda name: median(fixed[name]))
    ratios = times_faster(seconds, "auto")
    return {
        "ms": summary(seconds),
        "best fixed choice": best,
        "auto, times as fast as the best": ratios[best],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    content: dict[str, Any] = {"rounds": arguments.rounds}
    content["load at the start"] = os.getloadavg()
    content["processor"] = dict(torch.cpu.get_capabilities())
    content["GFLOP/s of a product"] = cpu_gflops()
    for name in arguments.models:
        content[name] = table(name, arguments.rounds)
        print(name, content[name], flush=True)
    record("choices", content)


if __name__ == "__main__":
    main()
