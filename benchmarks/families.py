"""How fast are RT-DETR and D-FINE in training and inference, compared with Transformers?

    python benchmarks/families.py rtdetr_r18 rtdetr_r50 dfine_s
    python benchmarks/families.py dfine_s --exported     # also both in ONNX Runtime and OpenVINO

The whole table, on a machine that does nothing else (about ten minutes on two cores):

    python benchmarks/families.py rtdetr_r18 rtdetr_r50 dfine_s --exported

Images of 640x640, fp32 on a CPU, random weights. Training: all losses without denoising, frozen
BatchNorm, AdamW, the gradient clipped. Each side is a process. Ours runs with `keep_memory`, which
our command line uses, and theirs both with and without it: the ratio is to the faster one. Sides
take turns; results are medians. Also reports the operations of each, and the time that they take at
the rate of a large matrix product of MKL, which convolutions can exceed. OpenVINO computes in fp32
on both sides. PyTorch's current ONNX exporter refuses Transformers' D-FINE (`aten._is_all_true`),
so the previous one is used for it. With --processor-time, times are the processor time of all
threads of a process, which other programs on the machine hardly affect.

Writes results/DATE-families.json after each row. Started again with the same settings at the same
commit, it measures the rows that are missing.
"""

import argparse
import os
import tempfile
import time
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
from record import unfinished, write
from torch import Tensor, nn
from training_step import NUM_CLASSES, batch_of, step_of

import redetr
from redetr.detector.inference import for_inference
from redetr.export.files import write_file
from redetr.export.graph import Plain, trace
from redetr.memory import keep_memory
from redetr.structures import DetectionModel

Sides = dict[str, Apart]
IN_TORCH = ("training step", "inference")
EXPORTED = ("ONNX Runtime", "OpenVINO")
SELECTION = ("models", "exported")  # flags that select rows, but do not change them


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
    """Both models as files, for one image of this size, as PyTorch's exporter writes theirs.
    `redetr export` leaves the number of images open, which costs OpenVINO a few percent."""
    files = {side: folder / f"{side}.onnx" for side in ("redetr", "transformers")}
    size = (images.shape[-2], images.shape[-1])
    program = trace(Plain(our_model(name).eval()), size=size, one_image=True)
    write_file(program, files["redetr"], "{}", ["images"], ["logits", "boxes"], "onnx")
    theirs: nn.Module = Answers(transformers_model(name, NUM_CLASSES)).eval()
    present = not name.startswith("dfine")
    torch.onnx.export(theirs, (images,), files["transformers"], dynamo=present, verbose=False)
    return files


def openvino_side(path: Path, images: Tensor) -> Callable[[], Any]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda: compiled([images.numpy()])


def training_sides(name: str, arguments: argparse.Namespace) -> Sides:
    return {
        "redetr": Apart(our_step, name, arguments),
        "transformers": Apart(their_step, name, arguments, False),
        "transformers, memory kept": Apart(their_step, name, arguments, True),
    }


def inference_sides(name: str, images: Tensor) -> Sides:
    return {
        "redetr": Apart(our_answer, name, images),
        "transformers": Apart(their_answer, name, images, False),
        "transformers, memory kept": Apart(their_answer, name, images, True),
    }


def exported_sides(name: str, images: Tensor, kind: str, folder: Path) -> Sides:
    """Both files in a runtime, written to `folder` by the first call."""
    folder.mkdir(exist_ok=True)
    files = {path.stem: path for path in folder.glob("*.onnx")} or write_models(
        name, images, folder
    )
    side = onnxruntime_side if kind == "ONNX Runtime" else openvino_side
    return {maker: Apart(side, path, images) for maker, path in files.items()}


def sides_of(name: str, kind: str, arguments: argparse.Namespace, folder: Path) -> Sides:
    """The sides of one row of the table: a model and a kind of work."""
    if kind == "training step":
        return training_sides(name, arguments)
    images = torch.randn(1, 3, arguments.height, arguments.width)
    if kind == "inference":
        return inference_sides(name, images)
    return exported_sides(name, images, kind, folder / name)


def measured(sides: Sides, rounds: int, in_torch: bool, processor_time: bool) -> dict[str, Any]:
    """A row of the table. Operations are counted for sides that run in PyTorch."""
    for side in sides.values():
        side()  # starts it
    # Measured while the sides wait.
    if processor_time:
        rate = matrix_rate("cpu", torch.float32, clock=time.process_time)
        seconds = measure(sides, rounds, warm_up=2, clock=Apart.processor_s)
    else:
        rate = matrix_rate("cpu", torch.float32)
        seconds = measure(sides, rounds, warm_up=2)
    result: dict[str, Any] = {
        "GFLOP/s of a product": round(rate / 1e9, 1),
        "ms": summary(seconds),
        "times faster": times_faster(seconds, "redetr"),
    }
    if in_torch:
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
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine")
    arguments = parser.parse_args()
    arguments.device = "cpu"
    if arguments.processor_time:
        os.environ["GOMP_SPINCOUNT"] = "0"  # waiting threads take none
    setting = {name: value for name, value in vars(arguments).items() if name not in SELECTION}
    path, tables = unfinished("families", setting)
    kinds = IN_TORCH + EXPORTED if arguments.exported else IN_TORCH
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            rows = tables.setdefault(name, {})
            for kind in kinds:
                if kind in rows:
                    continue
                sides = sides_of(name, kind, arguments, Path(folder))
                rows[kind] = measured(
                    sides, arguments.rounds, kind in IN_TORCH, arguments.processor_time
                )
                write(path, "families", {"setting": setting, **tables})
                print(name, kind, rows[kind], flush=True)
    print(path)


if __name__ == "__main__":
    main()
