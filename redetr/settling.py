"""The layout of the buckets in which gradients travel, settled before the first step.

DDP begins with one bucket and, after one or two backward passes, makes new ones in the order in
which gradients arrive: once a process. With three or more ranks, an element's place in its bucket
decides in which order the ranks' values are added. Without this, the first steps of a resumed
process would add in another order than the same steps of a run that never stopped.
"""

import torch
from torch.nn.parallel import DistributedDataParallel

from redetr.config import Settings
from redetr.data.sampler import slice_of
from redetr.distributed import Dist
from redetr.losses import SetCriterion
from redetr.noise import noise_batch
from redetr.precision import PRECISIONS, autocast
from redetr.step import training_outputs
from redetr.structures import Batch, DetectionModel

_PASSES = 2  # a static graph is only recorded in the first one
_ORDER_MATTERS = 3  # ranks: the sum of two numbers is the same in either order


def settle_buckets(
    model: DistributedDataParallel, criterion: SetCriterion, config: Settings, dist: Dist
) -> None:
    """Makes DDP settle its gradient buckets, so that all training steps use the same ones: those
    that the next forward pass makes.

    Runs forward and backward passes on noise. Weights, buffers and random numbers stay as they are,
    and no gradient is left. Communicates.
    """
    if dist.world_size < _ORDER_MATTERS:
        return
    inner = model.module
    before = [buffer.clone() for buffer in inner.buffers()]
    dtype = PRECISIONS[config.precision]
    devices = [dist.device] if dist.device.type == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        batch = _batch(inner, criterion, config, dist)
        for _ in range(_PASSES):
            with autocast(dist.device, dtype):
                outputs = training_outputs(model, criterion, batch)
            criterion(outputs, batch.targets)["loss"].backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in zip(inner.buffers(), before, strict=True):  # statistics of BatchNorm
            buffer.copy_(value)


def _batch(model: DetectionModel, criterion: SetCriterion, config: Settings, dist: Dist) -> Batch:
    """A small batch; of a compiled model, one of the usual size, since another would be compiled
    for itself."""
    number = 1
    if config.compile:
        part = slice_of(config.batch_size, 0, config.accumulate, dist.rank, dist.world_size)
        number = part.stop - part.start
    size = config.image_size
    canvas = size if isinstance(size, tuple) else (size, size)
    dtype = PRECISIONS[config.precision]
    return noise_batch(model, criterion, number, canvas, config.channels, 1, dtype)
