"""An exponential moving average of the weights, which is evaluated and shipped."""

import copy

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from redetr.structures import DetectionModel


class ModelEma:
    """A copy of the model whose weights are a moving average of the trained ones.

    With `decay` 0, they are the trained ones. Otherwise the decay grows from small values,
    min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon forgotten.
    """

    def __init__(self, model: DetectionModel, decay: float):
        self.decay = decay
        self.model: DetectionModel = copy.deepcopy(model).eval().requires_grad_(False)

        # Only trained parameters are averaged: frozen ones never change.
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []
        parameters = zip(self.model.parameters(), model.parameters(), strict=True)
        for average, weight in parameters:
            if weight.requires_grad:
                self._averages.append(average)
                self._weights.append(weight)

        # Statistics of a trained BatchNorm are copied: they are averages already.
        self._statistics: list[tuple[Tensor, Tensor]] = []
        modules = zip(self.model.modules(), model.modules(), strict=True)
        for copied, trained in modules:
            if isinstance(trained, _BatchNorm):
                self._statistics += zip(copied.buffers(), trained.buffers(), strict=True)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after optimizer step `step` (counted from 0)."""
        decay = 0.0
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
        # One fused call for all weights: hundreds of small kernels would take longer to launch.
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for copied, trained in self._statistics:
            copied.copy_(trained)
