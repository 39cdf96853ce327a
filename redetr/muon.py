"""AdamW whose steps for weight matrices are orthogonal: every direction of a matrix learns at the
same speed.

A gradient of a matrix is dominated by few directions. Muon (Jordan et al. 2024) takes the
momentum's nearest semi-orthogonal matrix instead, by Newton-Schulz iterations; scaled so that its
entries are as large as AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), both share
one learning rate. `torch.optim.Muon` takes neither convolutions nor anything but matrices, one by
one and in bf16; here matrices of one shape are one batch.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from redetr.boxes import at_least_float32

_COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al.: fastest growth of small singular values, to 0.7 .. 1.2
_ITERATIONS = 3  # as good as the usual 5 here, and 40% cheaper: see benchmarks/convergence.md
_ADAM_RMS = 0.2  # of an entry of AdamW's step, measured by Liu et al.
_SMALLEST_SIDE = (
    32  # thinner matrices (depthwise filters, box heads, the first convolution) have few directions
)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether the step of this parameter is made orthogonal; convolutions count as matrices of
    their outputs.

    Class heads keep AdamW: their rows are classes, rare and common ones.
    """
    if parameter.dim() < 2 or "class_embed" in name or "score_head" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= _SMALLEST_SIDE


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for groups with `orthogonal`, AdamW for the others; decoupled weight
    decay for all."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        # "fused": `load_state_dict` then takes the count of steps to the device, too, where the
        # fused AdamW wants it.
        super().__init__(
            groups, {"orthogonal": False, "momentum": momentum, "betas": betas, "fused": True}
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step by the gradients that are there."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if params:
                (self._orthogonal if group["orthogonal"] else self._adamw)(group, params, grads)

    def _orthogonal(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        moments = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, moments, group["momentum"])  # Nesterov's
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p, update in zip(params, ahead, strict=True):
            by_shape.setdefault((len(p), p[0].numel()), []).append((p, update))
        for shape, pairs in by_shape.items():
            updates = orthogonalized(torch.stack([update.reshape(shape) for _, update in pairs]))
            scale = -group["lr"] * _ADAM_RMS * math.sqrt(max(shape))
            for (p, _), update in zip(pairs, updates, strict=True):
                p.add_(update.view(p.shape), alpha=scale)

    def _adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), device=p.device),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        averages, squares, steps = (
            [self.state[p][k] for p in params] for k in ("exp_avg", "exp_avg_sq", "step")
        )
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly semi-orthogonal matrices `[N, R, C]` with the singular vectors of those given,
    singular values near 1."""
    a, b, c = _COEFFICIENTS
    x = at_least_float32(matrices)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # singular values at most 1
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
