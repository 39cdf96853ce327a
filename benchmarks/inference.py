"""How fast is an answer? DETR-R50 on images of 800x1066, batch 1 and 8, against the 2020 way and Transformers.

    python benchmarks/inference.py
    python benchmarks/inference.py --compile --precision bf16
    python benchmarks/inference.py --device cuda --precision bf16

Random weights: they do not change the time. The model alone, without resizing. Writes
results/DATE-inference-DEVICE.json.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from interleaved import Sides, measure, summary, times_faster
from plain_2020 import Plain
from record import record
from torch import Tensor, nn

import redetr
from redetr.evaluate import autocast, pick_precision
from redetr.inference import for_inference

NUM_CLASSES = 91


def answering(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Any]:
    def answer() -> Any:
        with torch.inference_mode(), autocast(images.device, dtype):
            return model(images)

    return answer


def transformers_model() -> nn.Module:
    import transformers

    config = transformers.DetrConfig(backbone="resnet50", use_pretrained_backbone=False, num_labels=NUM_CLASSES)
    return transformers.DetrForObjectDetection(config).eval()


def sides_of(images: Tensor, dtype: torch.dtype, arguments: argparse.Namespace) -> Sides:
    torch.manual_seed(0)
    model = redetr.build("detr_r50", NUM_CLASSES).to(images.device).eval()
    ready = for_inference(model)
    pixels = images.contiguous(memory_format=torch.channels_last)
    sides: Sides = {"redetr": answering(ready, pixels, dtype)}
    if arguments.compile:
        sides["redetr, compiled"] = answering(torch.compile(ready), pixels, dtype)
    sides["2020"] = answering(Plain(model), images, torch.float32)
    if not arguments.without_transformers:
        sides["transformers"] = answering(transformers_model().to(images.device), images, torch.float32)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled")
    parser.add_argument("--without-transformers", action="store_true")
    arguments = parser.parse_args()
    dtype = pick_precision(arguments.precision, torch.device(arguments.device))
    found: dict[str, Any] = {}
    for batch_size in arguments.batch_sizes:
        images = torch.randn(batch_size, 3, arguments.height, arguments.width, device=arguments.device)
        seconds = measure(sides_of(images, dtype, arguments), arguments.rounds, warm_up=2)
        ratios = {ours: times_faster(seconds, ours) for ours in seconds if ours.startswith("redetr")}
        found[f"batch of {batch_size}"] = {"forward": summary(seconds), "times faster": ratios}
    record(f"inference-{arguments.device}", {"setting": vars(arguments), "precision": str(dtype), **found})


if __name__ == "__main__":
    main()
