"""How fast are RT-DETR and D-FINE, in training and as detectors, against Transformers?

    python benchmarks/families.py rtdetr_r18 rtdetr_r50 dfine_s
    python benchmarks/families.py dfine_s --exported     # also both in ONNX Runtime and OpenVINO

Images of 640x640, fp32 on a CPU, random weights. Training: all losses without denoising, frozen
BatchNorm, AdamW, the gradient clipped. Each side is a process; ours runs with `keep_memory`, as the
command line runs it, and theirs both with it and without: the ratio is to the faster one. Sides
take turns; medians. Also the operations of each, and the time that they need at the rate of a large
matrix product. OpenVINO computes in fp32 on both sides. Writes results/DATE-families.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from apart import Apart
from inference import Answers, answering, onnxruntime_side
from interleaved import measure, summary, times_faster
from limits import matrix_rate
from peers import PEERS, freeze_batch_norm, transformers_model
from record import record
from torch import Tensor, nn
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr.detector.inference import for_inference
from redetr.detector.memory import keep_memory
from redetr.export.files import write_file
from redetr.export.graph import Plain, trace
from redetr.structures import DetectionModel


def our_model(name: str) -> DetectionModel:
    torch.manual_seed(0)
    return redetr.build(name, NUM_CLASSES)


def our_step(name: str, arguments: argparse.Namespace) -> Callable[[], None]:
    keep_memory()
    images, targets = batch_of(arguments)
    model = our_model(name).to(memory_format=torch.channels_last).train()
    criterion = redetr.SetCriterion.for_model(model)
    images = images.contiguous(memory_format=torch.channels_last)
    return step_of(model, lambda: criterion(model(images), targets)["loss"], torch.float32, True)


def their_step(name: str, arguments: argparse.Namespace, kept: bool) -> Callable[[], None]:
    if kept:
        keep_memory()
    images, targets = batch_of(arguments)
    model = transformers_model(name, NUM_CLASSES).train()
    freeze_batch_norm(model)
    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    return step_of(
        model, lambda: model(pixel_values=images, labels=labels).loss, torch.float32, False
    )


def our_answer(name: str, images: Tensor) -> Callable[[], Any]:
    model = for_inference(our_model(name).eval())
    images = images.contiguous(memory_format=torch.channels_last)
    return answering(model, images, torch.float32, kept=True)


def their_answer(name: str, images: Tensor, kept: bool) -> Callable[[], Any]:
    model = transformers_model(name, NUM_CLASSES).eval()
    return answering(model, images, torch.float32, kept)


def write_models(name: str, images: Tensor, folder: Path) -> dict[str, Path]:
    """Both models as files: ours as `redetr export` writes it, theirs as PyTorch does."""
    files = {side: folder / f"{side}.onnx" for side in ("redetr", "transformers")}
    program = trace(Plain(our_model(name).eval()))
    write_file(program, files["redetr"], "{}", ["images"], ["logits", "boxes"], "onnx")
    theirs: nn.Module = Answers(transformers_model(name, NUM_CLASSES)).eval()
    torch.onnx.export(theirs, (images,), files["transformers"], dynamo=True, verbose=False)
    return files


def openvino_side(path: Path, images: Tensor) -> Callable[[], Any]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda: compiled([images.numpy()])


def work_of(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, Apart]]:
    """The sides of each kind of work."""
    training = {
        "redetr": Apart(our_step, name, arguments),
        "transformers": Apart(their_step, name, arguments, False),
        "transformers, memory kept": Apart(their_step, name, arguments, True),
    }
    images = torch.randn(1, 3, arguments.height, arguments.width)
    inference = {
        "redetr": Apart(our_answer, name, images),
        "transformers": Apart(their_answer, name, images, False),
        "transformers, memory kept": Apart(their_answer, name, images, True),
    }
    work = {"training step": training, "inference": inference}
    if arguments.exported:
        with tempfile.TemporaryDirectory() as folder:
            files = write_models(name, images, Path(folder))
            for kind, side in (("ONNX Runtime", onnxruntime_side), ("OpenVINO", openvino_side)):
                work[kind] = {maker: Apart(side, path, images) for maker, path in files.items()}
                for made in work[kind].values():
                    made()  # before the files are gone
    return work


def measured(sides: dict[str, Apart], rounds: int, rate: float, count: bool) -> dict[str, Any]:
    seconds = measure(sides, rounds, warm_up=2)
    result: dict[str, Any] = {
        "GFLOP/s of a product": round(rate / 1e9, 1),
        "ms": summary(seconds),
        "times faster": times_faster(seconds, "redetr"),
    }
    if count:
        operations = {name: side.operations() for name, side in sides.items()}
        shares = {}
        for name, counted in operations.items():
            shares[name] = round(counted / rate / median(seconds[name]), 3)
        giga = {name: round(counted / 1e9, 1) for name, counted in operations.items()}
        result |= {"GFLOP": giga, "share of the product rate": shares}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=PEERS)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=2, help="of the training step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exported", action="store_true", help="also in ONNX Runtime and OpenVINO")
    arguments = parser.parse_args()
    arguments.device = "cpu"
    tables: dict[str, Any] = {}
    for name in arguments.models:
        tables[name] = {}
        for kind, sides in work_of(name, arguments).items():
            rate = matrix_rate("cpu", torch.float32)  # while the sides wait
            in_torch = kind in ("training step", "inference")
            tables[name][kind] = measured(sides, arguments.rounds, rate, in_torch)
            print(name, kind, tables[name][kind], flush=True)
    record("families", {"setting": vars(arguments), **tables})


if __name__ == "__main__":
    main()
