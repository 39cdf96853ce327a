"""How fast are matching and loss? 6 decoder layers, 16 images, 20 objects each, 100 queries,
forward and backward.

    python benchmarks/criterion.py

Compared with the code of 2020 (layer by layer) and with Transformers' loss. First checks that the
values are equal.
"""

import argparse
from collections.abc import Callable
from types import SimpleNamespace

import stand_ins  # noqa: F401 (before anything of redetr)
import torch
from interleaved import TRANSFORMERS, measure, summary, times_faster
from plain_2020 import plain_criterion
from record import record
from torch import Tensor

from redetr.losses import SetCriterion
from redetr.structures import LossConfig, Outputs

LAYERS, IMAGES, QUERIES, OBJECTS, CLASSES = 6, 16, 100, 20, 80


def scene(device: str) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Logits `[L, B, Q, C + 1]`, boxes `[L, B, Q, 4]` and targets."""
    torch.manual_seed(0)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, device=device, requires_grad=True)
    boxes = (torch.rand(LAYERS, IMAGES, QUERIES, 4, device=device) * 0.5 + 0.2).requires_grad_()
    targets = [
        {
            "labels": torch.randint(CLASSES, (OBJECTS,), device=device),
            "boxes": torch.rand(OBJECTS, 4, device=device) * 0.5 + 0.2,
        }
        for _ in range(IMAGES)
    ]
    return logits, boxes, targets


def outputs_of(logits: Tensor, boxes: Tensor) -> Outputs:
    layers = [Outputs(pred_logits=c, pred_boxes=b) for c, b in zip(logits, boxes, strict=True)]
    return Outputs(**layers[-1], aux_outputs=layers[:-1])


def transformers_loss(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    config = SimpleNamespace(
        class_cost=1,
        bbox_cost=5,
        giou_cost=2,
        num_labels=CLASSES,
        eos_coefficient=0.1,
        auxiliary_loss=True,
        decoder_layers=LAYERS,
        bbox_loss_coefficient=5,
        giou_loss_coefficient=2,
    )
    return ForObjectDetectionLoss(
        logits[-1], labels, logits.device, boxes[-1], config, logits, boxes
    )[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    logits, boxes, targets = scene(arguments.device)
    criterion = SetCriterion(LossConfig(), CLASSES, QUERIES)
    losses: dict[str, Callable[[], Tensor]] = {
        "redetr": lambda: criterion(outputs_of(logits, boxes), targets)["loss"],
        "2020": lambda: plain_criterion(outputs_of(logits, boxes), targets)["loss"],
    }
    if TRANSFORMERS:
        losses["transformers"] = lambda: transformers_loss(logits, boxes, targets)
    values = {name: loss().item() for name, loss in losses.items()}
    if max(values.values()) - min(values.values()) > 1e-4 * values["redetr"]:
        raise SystemExit(f"not the same loss: {values}")
    seconds = measure(
        {name: lambda loss=loss: loss().backward() for name, loss in losses.items()},
        arguments.rounds,
    )
    record(
        f"criterion-{arguments.device}",
        {
            "losses": values,
            "forward and backward": summary(seconds),
            "times faster": times_faster(seconds, "redetr"),
        },
    )


if __name__ == "__main__":
    main()
