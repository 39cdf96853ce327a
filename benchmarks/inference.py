"""How fast is an answer? DETR-R50 on images of 800x1066, batch 1 and 8, against the 2020 way and Transformers.

    python benchmarks/inference.py
    python benchmarks/inference.py --exported         # also both models in ONNX Runtime and OpenVINO
    python benchmarks/inference.py --compile --precision bf16
    python benchmarks/inference.py --device cuda --precision bf16

Random weights: they do not change the time. The model alone, without resizing. OpenVINO computes in the precision that
it takes by default. Also the operations, and the time that they need at the rate of a large matrix product. Writes
results/DATE-inference-DEVICE.json.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import Sides, measure, summary, times_faster
from limits import matrix_rate, operations
from plain_2020 import Plain as Plain2020
from record import record
from torch import Tensor, nn

import redetr
from redetr.evaluate import autocast, pick_precision
from redetr.export_files import write_file
from redetr.export_graph import Plain, trace
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


class Answers(nn.Module):
    """Transformers' model as a function of arrays."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(images)
        return outputs.logits, outputs.pred_boxes


def exported_sides(model: nn.Module, images: Tensor, arguments: argparse.Namespace, folder: Path) -> Sides:
    """Files of both models: ours as `redetr export` writes it, theirs as PyTorch does, for one shape."""
    import onnxruntime
    import openvino

    files = {"redetr": folder / "redetr.onnx"}
    write_file(trace(Plain(model)), files["redetr"], "{}", ["images"], ["logits", "boxes"], "onnx")
    if not arguments.without_transformers:
        files["transformers"] = folder / "transformers.onnx"
        torch.onnx.export(
            Answers(transformers_model()).eval(), (images,), files["transformers"], dynamo=True, verbose=False
        )
    sides: Sides = {}
    for name, path in files.items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        compiled = openvino.Core().compile_model(path, "CPU")
        feed = session.get_inputs()[0].name
        sides[f"{name}, ONNX Runtime"] = lambda s=session, feed=feed: s.run(None, {feed: images.numpy()})
        sides[f"{name}, OpenVINO"] = lambda c=compiled: c([images.numpy()])
    return sides


def sides_of(images: Tensor, dtype: torch.dtype, arguments: argparse.Namespace) -> Sides:
    torch.manual_seed(0)
    model = redetr.build("detr_r50", NUM_CLASSES).to(images.device).eval()
    ready = for_inference(model)
    pixels = images.contiguous(memory_format=torch.channels_last)
    sides: Sides = {"redetr": answering(ready, pixels, dtype)}
    if arguments.compile:
        sides["redetr, compiled"] = answering(torch.compile(ready), pixels, dtype)
    sides["2020"] = answering(Plain2020(model), images, torch.float32)
    if not arguments.without_transformers:
        sides["transformers"] = answering(transformers_model().to(images.device), images, torch.float32)
    if arguments.exported:
        with tempfile.TemporaryDirectory() as folder:
            sides |= exported_sides(model, images, arguments, Path(folder))
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
    parser.add_argument("--exported", action="store_true", help="also in ONNX Runtime and OpenVINO")
    parser.add_argument("--without-transformers", action="store_true")
    arguments = parser.parse_args()
    if arguments.exported and arguments.device != "cpu":
        parser.error("--exported measures on the CPU")
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    dtype = pick_precision(arguments.precision, torch.device(arguments.device))
    rate = matrix_rate(arguments.device, dtype)
    found: dict[str, Any] = {}
    for batch_size in arguments.batch_sizes:
        images = torch.randn(batch_size, 3, arguments.height, arguments.width, device=arguments.device)
        sides = sides_of(images, dtype, arguments)
        seconds = measure(sides, arguments.rounds)
        ratios = {ours: times_faster(seconds, ours) for ours in seconds if ours.startswith("redetr")}
        needed = operations(sides["redetr"])
        limit = {"GFLOP": round(needed / 1e9, 1), "ms at that rate": round(1000 * needed / rate, 1),
                 "share reached": round(needed / rate / median(seconds["redetr"]), 3)}  # fmt: skip
        found[f"batch of {batch_size}"] = {"forward": summary(seconds), "times faster": ratios, "limit": limit}
    allocator = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    content = {"setting": vars(arguments), "allocator": allocator, "precision": str(dtype),
               "GFLOP/s of a matrix product": round(rate / 1e9, 1), **found}  # fmt: skip
    record(f"inference-{arguments.device}", content)


if __name__ == "__main__":
    main()
