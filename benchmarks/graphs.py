"""How much faster are CUDA graphs? Inference, and the model's part of a training step, are captured
once and replayed.

    python benchmarks/graphs.py --device cuda

A small model on a GPU waits for Python to launch its kernels; a graph launches them all at once.
Inference is one graph. A training step cannot be one, because the assignment between queries and
objects is computed on the host in its middle. So its graphs are the model's forward and backward
passes, made by `torch.cuda.make_graphed_callables`; matching, losses, clipping and the optimizer
are not captured. Such graphs accept one size of images, and there is no DistributedDataParallel
here: the result is the possible gain, with --compile also compared with `torch.compile`. The
differences between outputs and losses are recorded. Without a GPU, only the plain sides run. Writes
results/DATE-graphs-DEVICE.json.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from interleaved import Sides, measure, summary, times_faster
from limits import matrix_rate, operations
from record import record
from torch import Tensor, nn

import redetr
from redetr.detector.inference import for_inference
from redetr.optim import build_optimizer, clip_gradients
from redetr.precision import PRECISIONS, autocast
from redetr.structures import Outputs

NUM_CLASSES, OBJECTS = 80, 8
# Model, images, side in px.
ANSWERS = (("redetr_n", 1, 640), ("redetr_n", 16, 640), ("detr_r50", 1, 800), ("detr_r50", 8, 800))
STEPS = (("redetr_n", 16, 128), ("redetr_n", 16, 640), ("detr_r50", 4, 800))


class Rounding(nn.Module):
    """The model under autocast without its cache of cast weights, because a graph cannot use a
    cache that was filled outside of it."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Outputs:
        enabled = self.dtype == torch.bfloat16
        with torch.autocast(
            images.device.type, self.dtype if enabled else None, enabled, cache_enabled=False
        ):
            return self.model(images)


def build(name: str, device: str) -> Any:
    torch.manual_seed(0)
    return redetr.build(name, NUM_CLASSES).to(device).to(memory_format=torch.channels_last)


def images_of(count: int, side: int, device: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )


def captured(work: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """A graph of `work`, and the outputs that each replay fills."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph, outputs


def apart(first: Outputs, second: Outputs) -> float:
    """The largest difference between boxes."""
    return (first["pred_boxes"] - second["pred_boxes"]).abs().max().item()


@torch.inference_mode()
def answers(
    name: str, count: int, side: int, arguments: argparse.Namespace, dtype: torch.dtype
) -> dict[str, Any]:
    """The times of the sides for inference."""
    images = images_of(count, side, arguments.device)
    model = for_inference(build(name, arguments.device))
    rounding = Rounding(model, dtype)

    def plain() -> Outputs:
        with autocast(images.device, dtype):
            return model(images)

    sides: Sides = {"plain": plain}
    result: dict[str, Any] = {}
    if arguments.device == "cuda":
        graph, outputs = captured(lambda: rounding(images))
        # The images differ from those that were captured.
        images.copy_(images_of(count, side, arguments.device).flip(-1))
        graph.replay()
        result["boxes apart"] = apart(outputs, plain())
        sides["graph"] = graph.replay
    seconds = measure(sides, arguments.rounds, warm_up=3)
    return {**result, **compared(seconds, operations(plain), arguments.device, dtype)}


def step_of(
    model: Any, called: Callable[[Tensor], Outputs], images: Tensor
) -> Callable[[], Tensor]:
    """One optimizer step with Muon; returns the loss."""
    criterion = redetr.SetCriterion.for_model(model)
    optimizer = build_optimizer(model, 1e-4, 1e-5, 1e-4, "muon")
    torch.manual_seed(2)
    targets: Any = [
        {
            "labels": torch.randint(NUM_CLASSES, (OBJECTS,)),
            "boxes": torch.rand(OBJECTS, 4) * 0.3 + 0.2,
        }
        for _ in images
    ]

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(called(images), targets)["loss"]
        loss.backward()
        clip_gradients(model, 0.1)
        optimizer.step()
        return loss.detach()

    return step


def steps(
    name: str, count: int, side: int, arguments: argparse.Namespace, dtype: torch.dtype
) -> dict[str, Any]:
    """The times of the sides for a training step on the same images, each with its own weights."""
    images = images_of(count, side, arguments.device)
    models = {"plain": build(name, arguments.device).train()}
    called: dict[str, Any] = {"plain": Rounding(models["plain"], dtype)}
    if arguments.device == "cuda":
        models["graphs"] = build(name, arguments.device).train()
        sample = torch.randn_like(images)
        called["graphs"] = torch.cuda.make_graphed_callables(
            Rounding(models["graphs"], dtype), (sample,)
        )
    if arguments.compile:
        models["compiled"] = build(name, arguments.device).train()
        called["compiled"] = torch.compile(
            Rounding(models["compiled"], dtype), fullgraph=True, dynamic=False
        )
    sides = {
        side_name: step_of(models[side_name], call, images) for side_name, call in called.items()
    }
    losses = {side_name: [step().item() for _ in range(3)] for side_name, step in sides.items()}
    seconds = measure(sides, arguments.rounds, warm_up=3)
    counted = operations(sides["plain"])
    return {"first losses": losses, **compared(seconds, counted, arguments.device, dtype)}


def compared(
    seconds: dict[str, list[float]], counted: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Times, ratios and the share of the rate of a large matrix product."""
    least = counted / matrix_rate(device, dtype, tries=5)
    return {
        "times": summary(seconds),
        "times faster than plain": {
            name: round(1 / ratio, 2) for name, ratio in times_faster(seconds, "plain").items()
        },
        "GFLOP": round(counted / 1e9, 1),
        "share of the rate reached": {
            name: round(least / median(values), 4) for name, values in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="also compiled training steps")
    parser.add_argument(
        "--small", action="store_true", help="one small case of each kind, to see that it runs"
    )
    arguments = parser.parse_args()
    dtype = PRECISIONS[arguments.precision]
    cases = {"answer": (answers, ANSWERS), "training step": (steps, STEPS)}
    results: dict[str, Any] = {}
    for kind, (work, settings) in cases.items():
        for name, count, side in (("redetr_n", 1, 64),) if arguments.small else settings:
            case = f"{kind} of {name}, {count} x {side} px"
            try:
                results[case] = work(name, count, side, arguments, dtype)
            except RuntimeError as error:  # what cannot be captured says so; it is a result, too
                results[case] = {"failed": str(error).splitlines()[0]}
            print(case, results[case], flush=True)
    record(
        f"graphs-{arguments.device}",
        {"setting": vars(arguments), "precision": str(dtype), "cases": results},
    )


if __name__ == "__main__":
    main()
