"""Optimizer, schedule and gradient clipping."""

import math

import torch
from torch import Tensor, nn

from redetr.choices import OptimizerName
from redetr.config import Settings
from redetr.muon import Muon, is_matrix


def param_groups(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    weight_decay: float,
    optimizer: OptimizerName = "adamw",
) -> list[dict]:
    """Returns the trainable parameters, grouped by learning rate, weight decay and kind of step.

    The backbone learns with `lr_backbone`, everything else with `lr`. Norms, biases and embeddings
    do not decay. The schedule multiplies `base_lr` of a group; `orthogonal` is for `Muon`.
    """
    embeddings: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            embeddings.add(id(module.weight))

    by_kind: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() >= 2 and id(parameter) not in embeddings
        decay = weight_decay if decays else 0.0
        part = name.removeprefix("detr.")  # the detector of the panoptic DETR
        # backbone.1 of DETR holds positions, which are not part of the pretrained net.
        in_backbone = part.startswith("backbone.") and not part.startswith("backbone.1.")
        rate = lr_backbone if in_backbone else lr
        orthogonal = optimizer == "muon" and decays and is_matrix(name, parameter)
        params = by_kind.setdefault((rate, decay, orthogonal), [])
        params.append(parameter)

    groups: list[dict] = []
    for (rate, decay, orthogonal), params in by_kind.items():
        group = {
            "params": params,
            "lr": rate,
            "base_lr": rate,
            "weight_decay": decay,
            "orthogonal": orthogonal,
        }
        groups.append(group)
    return groups


def build_optimizer(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    weight_decay: float,
    optimizer: OptimizerName = "adamw",
) -> torch.optim.Optimizer:
    """Returns Muon or fused AdamW over `param_groups`."""
    groups = param_groups(model, lr, lr_backbone, weight_decay, optimizer)
    if optimizer == "muon":
        return Muon(groups)
    return torch.optim.AdamW(groups, fused=True)


def lr_factor(config: Settings, step: int) -> float:
    """Returns the factor of the base learning rates in optimizer step `step`, counted from 0.

    Linear warm-up, then "cosine" to 0, "step" (a tenth after the share `drop_at` of all steps) or
    "constant". A pure function, so that a resumed run has the same rates.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        cosine_steps = max(1, config.steps - config.warmup_steps)
        progress = min(1.0, (step - config.warmup_steps) / cosine_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "step" and step >= config.drop_at * config.steps:
        return 0.1
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scales the whole gradient down to norm `max_norm` if it is larger; 0 = no limit.

    Returns the norm before, as a tensor on the device: no synchronisation.
    """
    limit = max_norm if max_norm > 0 else math.inf
    return nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
