"""One optimizer step: what ranks tell each other about it, its batches, and the step itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from redetr.data.loader import Sample, canvas_of, to_batch
from redetr.distributed import Dist, accumulating
from redetr.losses import SetCriterion
from redetr.optim import clip_gradients
from redetr.precision import autocast
from redetr.structures import Batch


@dataclass
class Window:
    """This rank's micro-batches of one optimizer step, and what all ranks tell each other about
    theirs."""

    samples: list[list[Sample]]
    counts: list[Tensor]  # `SetCriterion.counts` of each micro-batch
    everyone: Callable[[], Tensor]  # waits for the row of each rank: counts, canvas, wish to stop


def announce(
    samples: list[list[Sample]], criterion: SetCriterion, dist: Dist, stopping: bool = False
) -> Window:
    """Tells all ranks what this one has for an optimizer step, without waiting for them.

    One small message per step, on the host, where all of it is known before the forward pass:
    counts, the canvas that images are padded to, and whether a signal came. Nothing of it costs a
    synchronisation with the device.
    """
    counts = [criterion.counts([target for _, target in micro]) for micro in samples]
    height, width = canvas_of([sample for micro in samples for sample in micro])
    row = [*torch.stack(counts).sum(0).tolist(), height, width, stopping]
    return Window(samples, counts, dist.gather_rows(row))


def receive(
    window: Window, criterion: SetCriterion, dist: Dist, dtype: torch.dtype = torch.float32
) -> tuple[list[Batch], list[Tensor], bool]:
    """The batches of this rank, what each one's loss sums are divided by, and whether any rank
    wants to stop.

    Counts and canvas are functions of the global batch, so the gradient does not depend on how the
    batch is split.
    """
    everyone = window.everyone()
    total, (height, width) = everyone[:, :2].sum(0), everyone[:, 2:4].amax(0).int().tolist()
    batches = [to_batch(micro, dist.device, (height, width), dtype) for micro in window.samples]
    divisors = [
        criterion.denominators(c, total, dist.world_size, len(window.counts)) for c in window.counts
    ]
    return batches, divisors, bool(everyone[:, 4].any())


def train_step(
    model: DistributedDataParallel,
    criterion: SetCriterion,
    batches: list[Batch],
    denominators: list[Tensor],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    clip_norm: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step over a window of micro-batches; returns this rank's losses and the norm of
    the gradient.

    The only synchronisation with the device is the matcher's copy of the costs.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total: dict[str, Tensor] = {}
    for i, (batch, divisors) in enumerate(zip(batches, denominators, strict=True)):
        with accumulating(model, last=i == len(batches) - 1):
            with autocast(batch.images.device, dtype):
                outputs = model(batch.images, batch.padding)
            losses = criterion(outputs, batch.targets, divisors)
            losses["loss"].backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach()
    norm = clip_gradients(model, clip_norm)
    optimizer.step()
    return total, norm
