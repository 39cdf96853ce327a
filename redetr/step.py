"""One optimizer step: the message of each rank about it, its batches, and the step itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from redetr.data.loader import Sample, canvas_of, to_batch
from redetr.denoising import NoisyQueries, noisy_queries
from redetr.distributed import Dist, accumulating
from redetr.losses import SetCriterion
from redetr.optim import clip_gradients
from redetr.precision import autocast
from redetr.structures import Batch, Outputs, to_device


@dataclass
class StepWindow:
    """This rank's micro-batches of one optimizer step, and the messages of all ranks on theirs."""

    samples: list[list[Sample]]
    counts: list[Tensor]  # `SetCriterion.counts` of each micro-batch
    # waits for, and returns, a row from each rank: counts, canvas height and width, wish to stop
    all_messages: Callable[[], Tensor]


def announce(
    samples: list[list[Sample]], criterion: SetCriterion, dist: Dist, stopping: bool = False
) -> StepWindow:
    """Tells all ranks what this one has for an optimizer step, without waiting for them.

    One small message per step, from host to host, where all of it is known before the forward pass:
    counts, the canvas that images are padded to, and whether a signal came. Nothing in it needs a
    synchronisation with the device.
    """
    counts = []
    all_samples: list[Sample] = []
    for micro_batch in samples:
        targets = [target for _, target in micro_batch]
        counts.append(criterion.counts(targets))
        all_samples += micro_batch
    height, width = canvas_of(all_samples)
    total = torch.stack(counts).sum(0)
    message = [*total.tolist(), height, width, stopping]
    return StepWindow(samples, counts, dist.gather_rows(message))


def receive(
    window: StepWindow, criterion: SetCriterion, dist: Dist, dtype: torch.dtype = torch.float32
) -> tuple[list[Batch], list[Tensor], bool]:
    """This rank's batches, the denominators `[4]` of the loss sums of each, and whether any rank
    wants to stop.

    Counts and canvas are functions of the global batch, so the gradient does not depend on how the
    batch is split. Waits for the messages of all ranks; if one is gone, raises as `process_group`
    says.
    """
    messages = window.all_messages()  # [ranks, counts + 3]; waits for all ranks
    num_counts = messages.shape[1] - 3
    counts_of_ranks, canvases, stops = messages.split([num_counts, 2, 1], dim=1)
    total = counts_of_ranks.sum(0)
    height, width = canvases.amax(0).int().tolist()
    is_stopping = bool(stops.any())
    batches = []
    denominators = []
    for micro_batch, counts in zip(window.samples, window.counts, strict=True):
        batches.append(to_batch(micro_batch, dist.device, (height, width), dtype))
        accumulated = len(window.counts)
        denominators.append(criterion.denominators(counts, total, dist.world_size, accumulated))
    return batches, denominators, is_stopping


def training_outputs(model: nn.Module, criterion: SetCriterion, batch: Batch) -> Outputs:
    """Returns the outputs from which the losses of a batch are computed: with denoising, also those
    of noisy queries. Masks on demand are left to the loss, which asks for those of matched queries.
    """
    groups = criterion.config.denoising
    if criterion.masks_on_demand:
        return model(batch.images, batch.padding, all_masks=False)
    if groups == 0:
        return model(batch.images, batch.padding)
    labels, boxes = noisy_queries(batch.targets, groups, criterion.num_classes)
    device = batch.images.device
    noisy = NoisyQueries(to_device(labels, device), to_device(boxes, device))
    return model(batch.images, batch.padding, noisy)


def train_step(
    model: DistributedDataParallel,
    criterion: SetCriterion,
    batches: list[Batch],
    denominators: list[Tensor],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    clip_norm: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step over the micro-batches of a window.

    Returns the losses by name, summed over this rank's micro-batches and already divided: their
    mean over ranks is the loss of the global batch. Also returns the norm of the averaged gradient
    before clipping. Communicates: gradients are averaged in the last backward pass. The only
    synchronisation with the device is the matcher's copy of the costs.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total: dict[str, Tensor] = {}
    for batch, batch_denominators in zip(batches, denominators, strict=True):
        with accumulating(model, last=batch is batches[-1]):
            with autocast(batch.images.device, dtype):
                outputs = training_outputs(model, criterion, batch)
            losses = criterion(outputs, batch.targets, batch_denominators)
            losses["loss"].backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach()
    norm = clip_gradients(model, clip_norm)
    optimizer.step()
    return total, norm
