"""AdamW with orthogonal steps for weight matrices: every direction of a matrix learns equally fast.

The gradient of a matrix is dominated by few directions. Muon (Jordan et al. 2024) steps by the
semi-orthogonal matrix nearest to the momentum instead, which Newton-Schulz iterations approximate.
It is scaled so that its entries are as large as those of AdamW's steps (Liu et al. 2025, "Muon is
scalable for LLM training"), so that both share one learning rate.

Deviations from `torch.optim.Muon`, which takes nothing but matrices, one by one and in bf16:
convolutions count as matrices, matrices of one shape are one batch, and the iterations are in fp32.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from redetr.boxes import at_least_float32

# From Jordan et al.: small singular values grow fastest, and end between 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# As good as the usual 5 here, and 40% cheaper: see benchmarks/convergence.md.
_ITERATIONS = 3
# From this ratio of columns to rows on, `_iterated_wide` is faster.
_WIDE = 2
# Root mean square of the entries of AdamW's step, measured by Liu et al.
_ADAM_RMS = 0.2
# Thinner matrices (depthwise filters, box heads, the first convolution) have few directions.
_SMALLEST_SIDE = 32


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether the step of this parameter is made orthogonal.

    A convolution counts as a matrix with a row per output channel. Class heads keep AdamW: their
    rows are classes, rare and common ones.
    """
    if parameter.dim() < 2 or "class_embed" in name or "score_head" in name:
        return False
    rows, columns = _matrix_shape(parameter)
    return min(rows, columns) >= _SMALLEST_SIDE


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Returns the (rows, columns) of a parameter with at least two dimensions."""
    return parameter.shape[0], parameter[0].numel()


class Muon(torch.optim.Optimizer):
    """Orthogonal momentum for groups with `orthogonal`, AdamW for the others.

    The weight decay of both is decoupled.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        defaults = {
            "orthogonal": False,
            "momentum": momentum,
            "betas": betas,
            # Makes `load_state_dict` move the step counts to the device, where the fused AdamW
            # wants them.
            "fused": True,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Takes one step. Parameters without a gradient stay as they are."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if group["orthogonal"]:
                self._orthogonal(group, params, grads)
            else:
                self._adamw(group, params, grads)

    def _orthogonal(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Decays the parameters, then adds their orthogonal steps, a batch for each shape."""
        momenta: list[Tensor] = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momenta.append(state["momentum"])
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])

        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p, direction in zip(params, directions, strict=True):
            pairs = by_shape.setdefault(_matrix_shape(p), [])
            pairs.append((p, direction))
        for shape, pairs in by_shape.items():
            matrices = [direction.reshape(shape) for _, direction in pairs]
            steps = orthogonalized(torch.stack(matrices))  # [N, *shape]
            # Entries of an orthogonal [R, C] have root mean square 1 / sqrt(max(R, C)).
            scale = -group["lr"] * _ADAM_RMS * math.sqrt(max(shape))
            for (p, _), step in zip(pairs, steps, strict=True):
                p.add_(step.view(p.shape), alpha=scale)

    def _adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Takes PyTorch's fused AdamW step."""
        averages: list[Tensor] = []
        squares: list[Tensor] = []
        steps: list[Tensor] = []
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            averages.append(state["exp_avg"])
            squares.append(state["exp_avg_sq"])
            steps.append(state["step"])
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
    """Returns `matrices` `[N, R, C]` with the same singular vectors, but singular values near 1.

    Each Newton-Schulz iteration turns a singular value s into a * s + b * s^3 + c * s^5. It is
    computed in fp32 (fp64 stays fp64); the result has the dtype of `matrices`.
    """
    x = at_least_float32(matrices)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the product with its transpose is smaller then
    rows, columns = x.shape[-2:]
    norm = torch.linalg.matrix_norm(x, keepdim=True)  # [N, 1, 1]
    x = x / (norm + 1e-7)  # singular values at most 1
    x = _iterated_wide(x) if columns >= _WIDE * rows else _iterated(x)
    if tall:
        x = x.mT
    return x.to(matrices.dtype)


def _iterated(x: Tensor) -> Tensor:
    """Returns `x` `[N, R, C]` after the Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b * gram + c * gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a * x + polynomial @ x
    return x


def _iterated_wide(x: Tensor) -> Tensor:
    """As `_iterated`, up to rounding: half the time where `x` has far more columns than rows.

    Each iteration multiplies from the left by a polynomial of x x^T. All of them are polynomials of
    the first one, so they commute, and their product is found without the wide matrix.
    """
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT  # [N, R, R]
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = identity.expand_as(gram)
    for _ in range(_ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor = polynomial + a * identity
        product = factor @ product
        gram = factor @ gram @ factor  # that of the next iteration
    return product @ x
