"""Training large images with less memory: what is inside a block is not kept, but computed again
for its gradient.

The blocks are those of the backbone and the layers of the faithful form's encoder, whose maps grow
with the image; all else is kept as always. The gradient is the same to the last digit on a CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from redetr.errors import InputError


def recompute_blocks(model: nn.Module) -> None:
    """From now on, `model` keeps only what enters its blocks. Raises InputError for a net that
    cannot do so."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(
            "--recompute would move the statistics of a trained BatchNorm twice: take norm=group "
            "or "
            "norm=frozen_batch"
        )
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = True  # type: ignore[assignment]


def runner(recompute: bool) -> Callable[..., Any]:
    """What calls a block with its inputs."""
    return partial(checkpoint, use_reentrant=False) if recompute else _call


def _call(block: Callable[..., Any], *inputs: Any) -> Any:
    return block(*inputs)
