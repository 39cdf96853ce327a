"""Does the faithful variant train? A small DETR memorises 8 digit scenes.

    python benchmarks/overfit.py

The small configuration is the recipe `detr_tiny`, with AdamW as the original; the learning rate is
constant. Writes results/DATE-overfit.json.
"""

import time
from dataclasses import replace

import torch
from record import record

from redetr.data.formats.digits import DigitsDataset
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation
from redetr.data.views import Fit
from redetr.distributed import process_group, replicate
from redetr.evaluation import evaluate
from redetr.losses import SetCriterion
from redetr.models import build
from redetr.optim import build_optimizer, set_lr
from redetr.recipes import detr_tiny
from redetr.step import announce, receive, train_step

SCENES = 8


def overfit(steps: int, log_every: int = 100) -> list[dict[str, float]]:
    """AP on the training scenes as training goes on."""
    config = replace(detr_tiny(), optimizer="adamw", lr=5e-4, steps=steps)
    dataset = DigitsDataset("train", size=SCENES)
    samples = Samples(dataset, augmentation("plain", Fit(128)), config.seed)
    curve = []
    with process_group("cpu") as dist:
        torch.manual_seed(config.seed)
        model = build(config.model, len(dataset.class_names), **config.model_kwargs()).to(
            memory_format=torch.channels_last
        )
        criterion = SetCriterion.for_model(model)
        optimizer = build_optimizer(
            model, config.lr, config.lr, config.weight_decay, config.optimizer
        )
        replica = replicate(model, dist)
        started = time.perf_counter()
        for step in range(1, steps + 1):
            set_lr(optimizer, min(1.0, step / 50) * (1.0 if step < 0.7 * steps else 0.2))
            window = announce([[samples[(step, i)] for i in range(SCENES)]], criterion, dist)
            batches, divisors, _ = receive(window, criterion, dist)
            losses, _ = train_step(
                replica, criterion, batches, divisors, optimizer, torch.float32, config.clip_norm
            )
            if step % log_every == 0:
                result = evaluate(model, dataset, dist, image_size=128)
                seconds = round(time.perf_counter() - started, 1)
                curve.append(
                    {
                        "step": step,
                        "time_s": seconds,
                        "loss": losses["loss"].item(),
                        **result.metrics,
                    }
                )
                print(
                    f"step {step}  loss {losses['loss'].item():.3f}  AP {100 * result.ap:.1f}  "
                    f"{seconds} s",
                    flush=True,
                )
    return curve


if __name__ == "__main__":
    record("overfit", {"n": 1, "scenes": SCENES, "curve": overfit(steps=1500)})
