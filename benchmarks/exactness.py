"""How far is the gradient of two ranks, or of two accumulated micro-batches, from that of one
process? Ours and peers'.

    pip install transformers timm accelerate     # for the peer; accelerate is what its Trainer runs
    python benchmarks/exactness.py               # DETR, then the grid (about 15 minutes)
    python benchmarks/exactness.py rtdetr        # RT-DETR, then the grid
    python benchmarks/exactness.py dfine         # D-FINE, then the grid

ResNet-50 of DETR, RT-DETR-R18 or D-FINE-S; 4 images of 128x160 with 1, 1, 7 and 15 objects, no
dropout, auxiliary losses, fp32, CPU; ranks are processes over gloo. The reference of each
implementation is its own gradient of the whole batch in one process.

- "transformers": `DetrForObjectDetection`, `RTDetrForObjectDetection` or `DFineForObjectDetection`
  under DistributedDataParallel, for DETR with accelerate's state set up, as its Trainer does; for
  accumulation the loss of each micro-batch is divided by their number, as the Trainer does. The
  BatchNorm of its RT-DETR and D-FINE is frozen, as ours is, and they train without denoising, whose
  noise would differ between the two sides of the comparison; ours train with it.
- "original": the rules of the 2020 code on our DETR: box losses over the mean number of boxes per
  rank, the class loss a weighted mean of the local batch, each micro-batch normalised on its own.

The grid calls `redetr verify` under torchrun. Writes results/DATE-exactness.json, or
DATE-exactness-FAMILY.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from peers import freeze_batch_norm, transformers_model
from record import record
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import redetr
from redetr.distributed import process_group
from redetr.verification import split_gradient, whole_gradient

OBJECTS, SIZE, CLASSES = (1, 1, 7, 15), (128, 160), 5
MODELS = {"rtdetr": "rtdetr_r18", "dfine": "dfine_s"}
RECIPES = {  # of the grid
    "detr": ["redetr_n", "detr_r50"],
    "rtdetr": ["rtdetr_r18_finetune"],
    "dfine": ["dfine_s_finetune"],
}
GRID = ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 4), (2, 2))  # ranks, micro-batches


def scenes() -> list[tuple[Tensor, redetr.Target]]:
    """The global batch, as from a loader."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i, count in enumerate(OBJECTS):
        boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.2
        labels = torch.randint(CLASSES, (count,), generator=generator)
        image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
        samples.append(
            (
                image,
                redetr.Target(
                    boxes=boxes,
                    labels=labels,
                    image_id=i,
                    orig_size=SIZE,
                    size=SIZE,
                    iscrowd=torch.zeros(count, dtype=torch.bool),
                    area=torch.ones(count),
                    seed=i,
                ),
            )
        )
    return samples


def ours(
    family: str, normalization: Any = "global"
) -> tuple[redetr.structures.DetectionModel, redetr.SetCriterion]:
    torch.manual_seed(0)
    if family == "detr":
        model = redetr.build("detr_r50", CLASSES, dropout=0.0)
    else:
        model = redetr.build(MODELS[family], CLASSES, denoising=5)
    model = model.to(memory_format=torch.channels_last)
    return model, redetr.SetCriterion.for_model(model, normalization)


def peer(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "detr":
        return peer_detr()
    model = transformers_model(MODELS[family], CLASSES).train()
    freeze_batch_norm(model)
    return model


def peer_detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection

    return DetrForObjectDetection(
        DetrConfig(
            backbone="resnet50",
            use_pretrained_backbone=False,
            num_labels=CLASSES,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            auxiliary_loss=True,
        )
    ).train()


def peer_loss(model: nn.Module, samples: list[tuple[Tensor, redetr.Target]]) -> Tensor:
    images = torch.stack([image for image, _ in samples]).float() / 255 - 0.5
    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for _, target in samples]
    return model(pixel_values=images, labels=labels).loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of the whole gradient and of the heads; and by which factor the box head's is
    too large."""

    def flat(gradient: dict[str, Tensor], parts: tuple[str, ...]) -> Tensor:
        chosen = []
        for name, values in gradient.items():
            if any(part in name for part in parts):
                chosen.append(values.flatten())
        return torch.cat(chosen)

    parts = {
        "all": ("",),
        "box_head": ("bbox",),
        "class_head": ("class_embed", "class_labels", "score_head"),
    }
    relative = {
        key: (
            (flat(found, part) - flat(expected, part)).norm() / flat(expected, part).norm()
        ).item()
        for key, part in parts.items()
    }
    return {
        **relative,
        "box_head_factor": (
            flat(found, parts["box_head"]).norm() / flat(expected, parts["box_head"]).norm()
        ).item(),
    }


def rank_main(rank: int, family: str, folder: Path) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29555",
    }
    with process_group("cpu") as dist:
        found = {
            name: split_gradient(*ours(family, rule), scenes(), dist, 1, torch.float32)
            for name, rule in rules(family).items()
        }
        if family == "detr":  # its loss asks accelerate for the number of ranks
            from accelerate import PartialState

            PartialState(cpu=True)
        model = DistributedDataParallel(peer(family), find_unused_parameters=True)
        peer_loss(model, scenes()[2 * rank : 2 * rank + 2]).backward()
        found["transformers"] = gradients(model.module)
        if rank == 0:
            torch.save(found, folder / "ranks.pt")


def rules(family: str) -> dict[str, Any]:
    """The normalisation of our model on each side; the rules of the original apply to DETR only."""
    if family == "detr":
        return {"redetr": "global", "original": "per_rank"}
    return {"redetr": "global"}


def accumulated(family: str) -> dict[str, dict[str, Tensor]]:
    """The gradients of two micro-batches in this process."""
    with process_group("cpu") as dist:
        found = {"redetr": split_gradient(*ours(family), scenes(), dist, 2, torch.float32)}
    if "original" in rules(family):
        model, criterion = ours(family)
        cpu = torch.device("cpu")
        halves = []
        for i in (0, 2):
            half = scenes()[i : i + 2]
            halves.append(whole_gradient(model, criterion, half, cpu, torch.float32))
        first, second = halves
        found["original"] = {name: (first[name] + second[name]) / 2 for name in first}
    theirs = peer(family)
    for i in (0, 2):
        (peer_loss(theirs, scenes()[i : i + 2]) / 2).backward()
    return {**found, "transformers": gradients(theirs)}


def comparison(family: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (family, Path(folder)), nprocs=2)
        ranks = torch.load(Path(folder) / "ranks.pt")
    whole = whole_gradient(*ours(family), scenes(), torch.device("cpu"), torch.float32)
    model = peer(family)
    peer_loss(model, scenes()).backward()
    expected = {"redetr": whole, "original": whole, "transformers": gradients(model)}
    table = {"2 ranks": ranks, "2 accumulation steps": accumulated(family)}
    return {
        split: {name: errors(found[name], expected[name]) for name in found}
        for split, found in table.items()
    }


def grid(recipe: str) -> dict[str, dict[str, float]]:
    """The largest relative error of the whole gradient over ranks, by layout and precision."""
    rows = {}
    for ranks, micro_batches in GRID:
        verify = [
            "-m",
            "redetr",
            "verify",
            recipe,
            "--json",
            "--device",
            "cpu",
            "--precision",
            "fp32",
        ]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        run = subprocess.run(
            [sys.executable, *launch, *verify, f"--accumulate={micro_batches}"],
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        rows[f"{ranks}x{micro_batches}"] = {
            p: e["all"] for p, e in json.loads(run.stdout)["errors"].items()
        }
        print(recipe, f"{ranks}x{micro_batches}", rows[f"{ranks}x{micro_batches}"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", nargs="?", choices=list(RECIPES), default="detr")
    parser.add_argument("--recipes", nargs="*", help="of the grid; default: those of the family")
    arguments = parser.parse_args()
    family = arguments.family
    found = comparison(family)
    print(json.dumps(found, indent=2), flush=True)
    recipes = RECIPES[family] if arguments.recipes is None else arguments.recipes
    grids = {name: grid(name) for name in recipes}
    name = "exactness" if family == "detr" else f"exactness-{family}"
    record(name, {"n": 1, "comparison": found, "grid": grids})


if __name__ == "__main__":
    main()
