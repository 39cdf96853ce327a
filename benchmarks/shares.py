"""What does a training step spend its time on, and how near is each part to the machine's limit?

    python benchmarks/shares.py detr_r50 redetr_n

Steps of `detr_r50` on 2 images of 512x640, of `redetr_n` on 16 of 128x128 and of others on 2 of
320x320, in fp32 on a CPU, with all losses and AdamW, in PyTorch's profiler: the time within each
kind of operation, without what it calls. For convolutions and matrix products also their rate, as a
share of the rate of a large matrix product, measured in the same run. Nothing else may run
meanwhile. Writes results/DATE-shares.json.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from choices import OTHERS, SMALL
from limits import matrix_rate
from record import record
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr.memory import keep_memory

STEPS = 5
# Parts of the names of operations, by kind; the first kind that fits counts.
KINDS = {
    "gradients of convolutions": ("convolution_backward",),
    "convolutions": ("convolution",),
    "matrix products and attention": ("mm", "matmul", "linear", "attention"),
    "optimizer": ("adam", "foreach", "norm_out", "linalg_vector_norm"),
    "sampling of feature maps": ("grid_sampler",),
    "normalization": ("layer_norm", "group_norm", "batch_norm"),
}
OTHER = "element-wise operations, copies and the rest"


def step_for(model_name: str) -> Callable[[], None]:
    side_px, count = SMALL.get(model_name, OTHERS)
    height, width = (512, 640) if model_name == "detr_r50" else (side_px, side_px)
    setting = argparse.Namespace(height=height, width=width, batch_size=count, device="cpu")
    images, targets = batch_of(setting)
    images = images.contiguous(memory_format=torch.channels_last)
    model = redetr.build(model_name, NUM_CLASSES).train().to(memory_format=torch.channels_last)
    criterion = redetr.SetCriterion.for_model(model)
    losses = lambda: criterion(model(images), targets)["loss"]  # noqa: E731 (for step_of)
    return step_of(model, losses, torch.float32, fused=True)


def kind_of(operation: str) -> str:
    for kind, parts in KINDS.items():
        if any(part in operation for part in parts):
            return kind
    return OTHER


def shares(model_name: str) -> dict[str, Any]:
    step = step_for(model_name)
    for _ in range(3):
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    operations: dict[str, int] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = kind_of(str(operation))
        operations[kind] = operations.get(kind, 0) + count
    rate = matrix_rate("cpu", torch.float32)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / STEPS
    total = sum(seconds.values())
    rows: dict[str, Any] = {}
    for kind, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        rows[kind] = {"ms": round(taken * 1e3, 1), "share": round(taken / total, 3)}
        if kind in operations:
            rows[kind]["share of the product rate"] = round(operations[kind] / taken / rate, 3)
    return {
        "ms": round(total * 1e3, 1),
        "GFLOP/s of a product": round(rate / 1e9, 1),
        "parts": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    keep_memory()
    content = {}
    for name in arguments.models:
        content[name] = shares(name)
        print(name, content[name], flush=True)
    record("shares", content)


if __name__ == "__main__":
    main()
