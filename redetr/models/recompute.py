"""Activation checkpointing: the intermediates of a block are recomputed instead of kept.

The blocks are those of the backbone and the layers of the faithful variant's encoder, whose maps
grow with the image; everything else is kept as usual. It costs a second forward pass of the blocks.
On a CPU the gradient is the same to the last digit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from redetr.errors import InputError


def recompute_blocks(model: nn.Module) -> None:
    """Makes `model` keep only the inputs of its blocks from now on.

    Raises InputError for a net that cannot do so.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                "--recompute would update the statistics of a trained BatchNorm twice: use "
                "norm=group or norm=frozen_batch"
            )
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = True  # type: ignore[assignment]


def runner(recompute: bool) -> Callable[..., Any]:
    """Returns the function that calls a block (first argument) with its inputs (the others)."""
    if recompute:
        return partial(checkpoint, use_reentrant=False)
    return _call


def _call(block: Callable[..., Any], *inputs: Any) -> Any:
    return block(*inputs)
