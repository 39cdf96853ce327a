"""An exponential moving average of the weights: what is evaluated and shipped."""

import copy

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from redetr.structures import DetectionModel


class ModelEma:
    """A copy of the model whose weights follow the trained ones; `decay` 0 follows at once.

    The decay grows from small values, min(decay, (1 + n) / (10 + n)) after n updates, so that the
    random start is soon forgotten. One fused call for all weights.
    """

    def __init__(self, model: DetectionModel, decay: float):
        self.decay = decay
        self.model: DetectionModel = copy.deepcopy(model).eval().requires_grad_(False)
        # The trained parameters; frozen ones never change.
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        self._pairs = [(ema, trained) for ema, trained in pairs if trained.requires_grad]
        # Statistics of trained BatchNorm are averages already.
        norms = zip(self.model.modules(), model.modules(), strict=True)
        self._statistics = [
            pair
            for ema, trained in norms
            if isinstance(trained, _BatchNorm)
            for pair in zip(ema.buffers(), trained.buffers(), strict=True)
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after optimizer step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_([e for e, _ in self._pairs], [t for _, t in self._pairs], 1 - decay)
        for ema, trained in self._statistics:
            ema.copy_(trained)
