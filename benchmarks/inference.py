"""How fast is inference? DETR-R50 on images of 800x1066, with batches of 1 and 8, compared with the
code of 2020 and with Transformers.

    python benchmarks/inference.py
    python benchmarks/inference.py --exported  # also both models in ONNX Runtime and OpenVINO
    python benchmarks/inference.py --compile --precision bf16
    python benchmarks/inference.py --device cuda --precision bf16

Weights are random, which does not change the time. The model is measured without resizing. Each
side is a process; sides take turns; results are medians. On a CPU, each side is also measured with
`keep_memory`, which our command line uses. OpenVINO computes in its default precision. Also reports
the operations, and the time that they take at the rate of a large matrix product. Writes
results/DATE-inference-DEVICE.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from apart import Apart
from interleaved import TRANSFORMERS, measure, summary, times_faster
from limits import matrix_rate
from plain_2020 import Plain as Plain2020
from record import record
from torch import Tensor, nn

import redetr
from redetr.detector.inference import for_inference
from redetr.export.files import write_file
from redetr.export.graph import Plain, trace
from redetr.memory import keep_memory
from redetr.precision import PRECISIONS, autocast
from redetr.structures import DetectionModel

NUM_CLASSES = 91


def images_of(arguments: argparse.Namespace, batch_size: int) -> Tensor:
    return torch.randn(batch_size, 3, arguments.height, arguments.width, device=arguments.device)


def answering(
    model: nn.Module, images: Tensor, dtype: torch.dtype, kept: bool
) -> Callable[[], Any]:
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if kept:
        keep_memory()

    def answer() -> Any:
        with torch.inference_mode(), autocast(images.device, dtype):
            return model(images)

    return answer


def redetr_model() -> DetectionModel:
    torch.manual_seed(0)
    return redetr.build("detr_r50", NUM_CLASSES).eval()


def redetr_side(
    arguments: argparse.Namespace,
    batch_size: int,
    kept: bool,
    dtype: torch.dtype,
    compiled: bool = False,
) -> Callable[[], Any]:
    model = for_inference(redetr_model().to(arguments.device))
    images = images_of(arguments, batch_size).contiguous(memory_format=torch.channels_last)
    return answering(torch.compile(model) if compiled else model, images, dtype, kept)


def peer_side(
    arguments: argparse.Namespace, batch_size: int, kept: bool, model: Callable[[], nn.Module]
) -> Callable[[], Any]:
    return answering(
        model().to(arguments.device), images_of(arguments, batch_size), torch.float32, kept
    )


def plain_model() -> nn.Module:
    return Plain2020(redetr_model())


def transformers_model() -> nn.Module:
    import transformers

    config = transformers.DetrConfig(
        backbone="resnet50", use_pretrained_backbone=False, num_labels=NUM_CLASSES
    )
    return transformers.DetrForObjectDetection(config).eval()


class Answers(nn.Module):
    """Transformers' model as a function of arrays."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(images)
        return outputs.logits, outputs.pred_boxes


def write_models(images: Tensor, folder: Path) -> dict[str, Path]:
    """Both models as files: ours as `redetr export` writes it, theirs as PyTorch does, for one
    shape."""
    files = {name: folder / f"{name}.onnx" for name in ("redetr", "transformers")}
    write_file(
        trace(Plain(redetr_model())), files["redetr"], "{}", ["images"], ["logits", "boxes"], "onnx"
    )
    torch.onnx.export(
        Answers(transformers_model()).eval(),
        (images,),
        files["transformers"],
        dynamo=True,
        verbose=False,
    )
    return files


def onnxruntime_side(path: Path, images: Tensor) -> Callable[[], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def openvino_side(path: Path, images: Tensor) -> Callable[[], Any]:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU")
    return lambda: compiled([images.numpy()])


def sides_of(
    arguments: argparse.Namespace, batch_size: int, dtype: torch.dtype
) -> dict[str, Apart]:
    sides: dict[str, Apart] = {}
    work = (arguments, batch_size)
    for kept in (False, True) if arguments.device == "cpu" else (False,):
        how = ", memory kept" if kept else ""
        sides[f"redetr{how}"] = Apart(redetr_side, *work, kept, dtype)
        if arguments.compile:
            sides[f"redetr, compiled{how}"] = Apart(redetr_side, *work, kept, dtype, True)
        if not arguments.alone:
            sides[f"2020{how}"] = Apart(peer_side, *work, kept, plain_model)
        if TRANSFORMERS and not arguments.alone:
            sides[f"transformers{how}"] = Apart(peer_side, *work, kept, transformers_model)
    if arguments.exported:
        images = images_of(*work)
        exported: dict[str, Apart] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, path in write_models(images, Path(folder)).items():
                exported[f"{name}, ONNX Runtime"] = Apart(onnxruntime_side, path, images)
                exported[f"{name}, OpenVINO"] = Apart(openvino_side, path, images)
            for side in exported.values():
                side.ready()  # it has read its file
        sides |= exported
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled")
    parser.add_argument("--alone", action="store_true", help="without the others")
    parser.add_argument("--exported", action="store_true", help="also in ONNX Runtime and OpenVINO")
    arguments = parser.parse_args()
    if arguments.exported and arguments.device != "cpu":
        parser.error("--exported measures on the CPU")
    dtype = PRECISIONS[arguments.precision]
    rate = matrix_rate(arguments.device, dtype)
    found: dict[str, Any] = {}
    for batch_size in arguments.batch_sizes:
        sides = sides_of(arguments, batch_size, dtype)
        seconds = measure(sides, arguments.rounds)
        ratios = {
            ours: times_faster(seconds, ours) for ours in seconds if ours.startswith("redetr")
        }
        least = sides["redetr"].operations() / rate
        shares = {ours: round(least / median(seconds[ours]), 3) for ours in ratios}
        limit = {
            "GFLOP": round(least * rate / 1e9, 1),
            "ms at that rate": round(1000 * least, 1),
            "share reached": shares,
        }
        found[f"batch of {batch_size}"] = {
            "forward": summary(seconds),
            "times faster": ratios,
            "limit": limit,
        }
    content = {
        "setting": vars(arguments),
        "precision": str(dtype),
        "GFLOP/s of a matrix product": round(rate / 1e9, 1),
        **found,
    }
    record(f"inference-{arguments.device}", content)


if __name__ == "__main__":
    main()
