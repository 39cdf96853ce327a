"""Optimizer, schedule and gradient clipping."""

import math

import torch
from torch import Tensor, nn

from redetr.choices import OptimizerName, Schedule
from redetr.muon import Muon, is_matrix


def param_groups(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    weight_decay: float,
    optimizer: OptimizerName = "adamw",
) -> list[dict]:
    """Trainable parameters by learning rate, weight decay and kind of step; no decay on norms,
    biases and embeddings.

    `base_lr` of a group is what the schedule multiplies.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.dim() < 2 or id(parameter) in embeddings
        # backbone.1 of DETR holds positions, which are no part of the pretrained net.
        in_backbone = name.startswith("backbone.") and not name.startswith("backbone.1.")
        rate = lr_backbone if in_backbone else lr
        orthogonal = optimizer == "muon" and not spared and is_matrix(name, parameter)
        groups.setdefault((rate, 0.0 if spared else weight_decay, orthogonal), []).append(parameter)
    return [
        {
            "params": params,
            "lr": rate,
            "base_lr": rate,
            "weight_decay": decay,
            "orthogonal": orthogonal,
        }
        for (rate, decay, orthogonal), params in groups.items()
    ]


def build_optimizer(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    weight_decay: float,
    optimizer: OptimizerName = "adamw",
) -> torch.optim.Optimizer:
    """Muon or fused AdamW over `param_groups`."""
    groups = param_groups(model, lr, lr_backbone, weight_decay, optimizer)
    return Muon(groups) if optimizer == "muon" else torch.optim.AdamW(groups, fused=True)


def lr_factor(
    step: int, steps: int, schedule: Schedule, warmup_steps: int, drop_at: float
) -> float:
    """What the base learning rate is multiplied by in optimizer step `step` of `steps`: a pure
    function.

    Linear warm-up, then "cosine" to 0, "step" (a tenth after the share `drop_at` of all steps) or
    "constant".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 0.1 if schedule == "step" and step >= drop_at * steps else 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """The norm of the whole gradient (a tensor: no synchronisation) before it is cut to `max_norm`;
    0 = never cut."""
    limit = max_norm if max_norm > 0 else math.inf
    return nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
