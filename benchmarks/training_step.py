"""How fast is a training step? DETR-R50 on 2 images of 512x640 with all losses, compared with the
code of 2020 and with Transformers.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --device cuda --height 800 --width 1066 \\
        --batch-size 4 --precision bf16

All sides do the same work: the stem and the first stage are frozen, auxiliary losses are on,
dropout is where the original has it (Transformers leaves out two of three by default), the
optimizer is AdamW, and the gradient is clipped. Each side is a process, ours with `keep_memory`,
which our command line uses; sides take turns; results are medians. The others compute in fp32,
their default; if ours computes in bf16 on a GPU, there is also a side of Transformers in bf16. Also
reports the peak memory of a step (including weights, gradients and the state of the optimizer), its
operations, and the time that these would take at the rate of a large matrix product. On a GPU, fp32
means fp32: only the side with that name rounds to TF32. Writes
results/DATE-training-step-DEVICE-PRECISION.json, "-compiled" with --compile.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from apart import Apart
from interleaved import TRANSFORMERS, measure, summary, times_faster
from limits import matrix_rate
from plain_2020 import Plain, plain_criterion
from record import record
from torch import Tensor, nn

import redetr
from redetr.memory import keep_memory
from redetr.optim import build_optimizer, clip_gradients
from redetr.precision import PRECISIONS, autocast

NUM_CLASSES, OBJECTS = 91, 8


def batch_of(arguments: argparse.Namespace) -> tuple[Tensor, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    images = torch.randn(
        arguments.batch_size, 3, arguments.height, arguments.width, device=arguments.device
    )
    targets = [
        {
            "labels": torch.randint(NUM_CLASSES, (OBJECTS,), device=arguments.device),
            "boxes": torch.rand(OBJECTS, 4, device=arguments.device) * 0.3 + 0.2,
        }
        for _ in range(arguments.batch_size)
    ]
    return images, targets


def step_of(
    model: nn.Module, losses: Callable[[], Tensor], dtype: torch.dtype, fused: bool
) -> Callable[[], None]:
    """A function that takes one optimizer step; `losses` returns the total loss."""
    device = next(model.parameters()).device
    if fused:
        optimizer = build_optimizer(model, 1e-4, 1e-5, 1e-4)
    else:
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 1e-4, weight_decay=1e-4
        )

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            loss = losses()
        loss.backward()
        if fused:
            clip_gradients(model, 0.1)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return step


def round_to_tf32(tf32: bool) -> None:
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def redetr_step(
    arguments: argparse.Namespace, dtype: torch.dtype, compiled: bool = False, tf32: bool = False
) -> Callable[[], None]:
    keep_memory()
    round_to_tf32(tf32)
    images, targets = batch_of(arguments)
    model = (
        redetr.build("detr_r50", NUM_CLASSES)
        .to(arguments.device)
        .to(memory_format=torch.channels_last)
        .train()
    )
    criterion = redetr.SetCriterion.for_model(model)
    images = images.contiguous(memory_format=torch.channels_last)
    called = torch.compile(model) if compiled else model
    return step_of(model, lambda: criterion(called(images), targets)["loss"], dtype, fused=True)


def plain_step(arguments: argparse.Namespace) -> Callable[[], None]:
    round_to_tf32(False)
    images, targets = batch_of(arguments)
    model = Plain(redetr.build("detr_r50", NUM_CLASSES).to(arguments.device)).train()
    return step_of(
        model, lambda: plain_criterion(model(images), targets)["loss"], torch.float32, fused=False
    )


def transformers_step(
    arguments: argparse.Namespace, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    import transformers

    round_to_tf32(False)
    images, targets = batch_of(arguments)
    config = transformers.DetrConfig(
        backbone="resnet50",
        use_pretrained_backbone=False,
        num_labels=NUM_CLASSES,
        auxiliary_loss=True,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    model = transformers.DetrForObjectDetection(config).to(arguments.device).train()
    for name, parameter in model.named_parameters():
        if "backbone" in name and not any(
            f"layer{i}." in name or f"stages.{i - 1}." in name for i in (2, 3, 4)
        ):
            parameter.requires_grad_(False)
    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    return step_of(
        model, lambda: model(pixel_values=images, labels=labels).loss, dtype, fused=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also compiled")
    parser.add_argument("--alone", action="store_true", help="without the others")
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    dtype = PRECISIONS[arguments.precision]
    builders: dict[str, tuple[Any, ...]] = {"redetr": (redetr_step, arguments, dtype)}
    if arguments.compile:
        builders["redetr, compiled"] = (redetr_step, arguments, dtype, True)
    if gpu and dtype == torch.float32:
        builders["redetr, TF32"] = (redetr_step, arguments, dtype, False, True)
    if not arguments.alone:
        builders["2020"] = (plain_step, arguments)
    if TRANSFORMERS and not arguments.alone:
        builders["transformers"] = (transformers_step, arguments)
        if gpu and dtype == torch.bfloat16:
            builders["transformers, bf16"] = (transformers_step, arguments, torch.bfloat16)
    sides = {name: Apart(*builder) for name, builder in builders.items()}
    seconds = measure(sides, arguments.rounds, warm_up=2)
    memory = {name: side.peak_mb() for name, side in sides.items()}
    operations = {
        name: side.operations() for name, side in sides.items() if not name.endswith("compiled")
    }
    rate = matrix_rate(arguments.device, dtype)
    least = operations["redetr"] / rate
    content: dict[str, Any] = {
        "setting": vars(arguments),
        "precision": str(dtype),
        "steps": summary(seconds),
        "times faster": times_faster(seconds, "redetr"),
        "peak MB": memory,
        "limit": {
            "GFLOP": {name: round(count / 1e9, 1) for name, count in operations.items()},
            "GFLOP/s of a matrix product": round(rate / 1e9, 1),
            "ms at that rate": round(1000 * least, 1),
            "share reached": round(least / median(seconds["redetr"]), 3),
            "times faster at that rate": {
                name: round(median(values) / least, 2)
                for name, values in seconds.items()
                if name != "redetr"
            },
        },
    }
    suffix = "-compiled" if arguments.compile else ""
    record(f"training-step-{arguments.device}-{str(dtype).removeprefix('torch.')}{suffix}", content)


if __name__ == "__main__":
    main()
