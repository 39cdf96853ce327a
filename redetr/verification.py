"""Proof on your own machines: the gradient of this layout of ranks and micro-batches against that
of one process.

What is proved is the code that trains: `announce`, `receive` and `train_step`. The reference is
what one would write by hand: the whole batch, one forward pass, the set loss, one backward pass.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from redetr.bounds import require_all_in_bounds
from redetr.choices import Compression
from redetr.config import TrainConfig
from redetr.data import DetectionDataset, Hints, open_dataset
from redetr.data.loader import Sample, canvas_of, to_batch
from redetr.data.sampler import TrainSampler, slice_of
from redetr.distributed import Dist, process_group, replicate
from redetr.errors import InputError
from redetr.in_python import require_config
from redetr.losses import SetCriterion
from redetr.models.transformer import MultiheadAttention
from redetr.precision import PRECISIONS, autocast, exact_products, weights_dtype
from redetr.preparation import (
    custom_augmentation,
    grouping,
    images_to_leave_out,
    prepare,
    train_samples,
)
from redetr.state import State
from redetr.step import announce, receive, train_step, training_outputs
from redetr.structures import DetectionModel, StoredTarget
from redetr.threads import restored_threads, use_threads

# Largest relative error of the whole gradient. In bf16, another split means another rounding of
# each product. In fp32, rounding grows with the number of queries that a gradient sums over:
# RT-DETR-R18 with 5 groups of noisy queries reached 1.1e-6. A wrong divisor shows in fp64, and by
# far more.
TOLERANCE = {"fp64": 1e-12, "fp32": 3e-6, "bf16": 0.02}
_NOISE = 0.02  # standard deviation of the weights that replace zeros
# Objects of each image of noise. Half of the images hold none: with two ranks, one has no object at
# all.
_OBJECTS = (0, 0, 0, 0, 0, 0, 15, 1, 7, 2, 3, 4)
_INKED = 0.5  # share of the pixels of a box that are in its mask


@dataclass(frozen=True)
class Verification:
    """Relative errors of the gradient, by part of the model and precision; "all" is the whole
    gradient."""

    world_size: int
    accumulate: int
    batch_size: int
    device: str
    parameters: dict[str, int]  # by part
    errors: dict[str, dict[str, float]]  # by precision, then by part; the largest over ranks

    @property
    def failed(self) -> list[str]:
        """The figures over the tolerance, in words; a small part may be ten times as far off as
        the whole."""
        failures = []
        for precision, errors in self.errors.items():
            for part, error in errors.items():
                tolerance = TOLERANCE[precision]
                if part != "all":
                    tolerance *= 10
                if not error <= tolerance:  # NaN is over it as well
                    failures.append(f"{part} in {precision} by {error:.1e}")
        return failures


class Noise(DetectionDataset):
    """Noise of several sizes with 0 to 15 random boxes, and noise in these as `masks`."""

    name, class_names, category_ids = "random", ("a", "b", "c"), (1, 2, 3)
    hints = Hints(image_size=128, augment="plain")

    def __init__(self, size: int, masks: bool = False, channels: int = 3):
        self._size = size
        self.has_masks = masks
        self.channels = channels

    def __len__(self) -> int:
        return self._size

    def target(self, index: int) -> StoredTarget:
        rng = np.random.default_rng(index)
        objects = _OBJECTS[index % len(_OBJECTS)]
        height, width = rng.integers(60, 160, 2).tolist()
        corners = rng.uniform(0, [width, height], (objects, 2, 2))
        top_left = corners.min(1)
        bottom_right = corners.max(1) + 1
        boxes = np.concatenate([top_left, bottom_right], 1).clip(0, [width, height] * 2)
        labels = rng.integers(0, 3, objects)
        target = StoredTarget(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(labels),
            image_id=index,
            orig_size=(height, width),
            size=(height, width),
            iscrowd=torch.zeros(objects, dtype=torch.bool),
            area=torch.ones(objects),
        )
        if self.has_masks:
            masks = np.zeros((objects, height, width), bool)
            for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
                part = mask[top:bottom, left:right]
                part[:] = rng.random(part.shape) < _INKED
            target["masks"] = torch.from_numpy(masks)
        return target

    def image(self, index: int) -> Tensor:
        height, width = self.target(index)["orig_size"]
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (self.channels, height, width), np.uint8)
        return torch.from_numpy(pixels)


def verify(config: TrainConfig) -> Verification:
    """Compares the gradients of one optimizer step of the run `config`, in fp64 and in its
    precision, with those of one process. Under torchrun, every process calls this. `data="random"`
    needs no data; a `batch_size` of 0 takes two images per rank and micro-batch, at least 12.
    Raises the errors of `train`, and InputError for `compile`. A frozen detector may be random.
    """
    require_config(config)
    require_all_in_bounds(config)  # the group of processes needs some of them
    if config.compile:  # it rounds in its own way, so that other queries win near ties
        text = "--compile: the gradients of a compiled model are not compared"
        raise InputError(text, remedy="leave it out: the split is the same")
    with (
        process_group(config.device, config.timeout_s, config.setup_timeout_s) as dist,
        restored_threads(),
    ):
        if config.batch_size == 0:
            two_each = 2 * dist.world_size * max(config.accumulate, 1)
            config = replace(config, batch_size=max(len(_OBJECTS), two_each))
        config.check(dist.world_size)
        use_threads(config.threads)
        data = _open(config)
        config = replace(config, channels=data.channels)
        state, criterion = prepare(config, dist, data, is_training=False)
        samples = first_batch(data, state)
        settings = state.config
        return compare(
            state.model,
            criterion,
            samples,
            dist,
            settings.accumulate,
            settings.precision,
            settings.gradient_compression,
        )


def _open(config: TrainConfig) -> DetectionDataset:
    """The training data, with the channels that the model takes."""
    if config.data == "random":
        return Noise(config.batch_size, config.masks, config.channels or Noise.channels)
    data = open_dataset(
        config.data,
        "train",
        config.val_fraction,
        masks=config.masks,
        leave_out=images_to_leave_out(config).get("train"),
    )
    return data.with_channels(config.channels or data.channels)


def first_batch(data: DetectionDataset, state: State) -> list[Sample]:
    """The first global batch as training sees it; noise comes in order, so that the first half has
    no objects."""
    config = state.config
    samples = train_samples(config, state.model, data, custom_augmentation(config))
    if isinstance(data, Noise):
        keys = [(0, i) for i in range(config.batch_size)]
    else:
        sampler = TrainSampler(
            len(data),
            config.batch_size,
            config.seed,
            first_step=0,
            last_step=1,
            size_of=grouping(config, state.model, samples),
        )
        (keys,) = sampler
    return [samples[key] for key in keys]


def compare(
    model: DetectionModel,
    criterion: SetCriterion,
    samples: list[Sample],
    dist: Dist,
    accumulate: int,
    precision: str,
    compression: Compression = "none",
) -> Verification:
    """The gradients of one optimizer step on the global batch `samples`, in fp64 and in `precision`
    (a name in `PRECISIONS`): split, with this `compression`, and whole, without. Communicates.

    `model` stays as it is: a copy of it is put in general position, without dropout, whose masks
    differ between ranks by nature.
    """
    model = copy.deepcopy(model)
    _without_dropout(model)
    put_in_general_position(model)
    errors: dict[str, dict[str, float]] = {}
    parts = _parts(model)
    for name in dict.fromkeys(("fp64", precision)):
        dtype = PRECISIONS[name]
        with exact_products():
            split = split_gradient(model, criterion, samples, dist, accumulate, dtype, compression)
            num_parts = _parts_of_whole(model, dtype, accumulate, dist.world_size)
            whole = whole_gradient(model, criterion, samples, dist.device, dtype, num_parts)
        errors_here = [_relative_error(split, whole, names) for names in parts.values()]
        errors_everywhere = dist.gather_rows(errors_here)()  # [world_size, parts]
        largest = errors_everywhere.amax(0).tolist()
        errors[name] = dict(zip(parts, largest, strict=True))
    sizes = {}
    for part, names in parts.items():
        sizes[part] = sum(split[name].numel() for name in names)
    return Verification(dist.world_size, accumulate, len(samples), dist.device.type, sizes, errors)


def _parts_of_whole(
    model: DetectionModel, dtype: torch.dtype, accumulate: int, world_size: int
) -> int:
    """The number of parts in which one process computes the gradient of the whole batch.

    If rounding matters, as many as in the split, because kernels depend on the size of a batch.
    But synchronised BatchNorm has one mean over the parts of all ranks.
    """
    if dtype == torch.float64:
        return 1
    modules = model.modules()
    if any(isinstance(module, nn.SyncBatchNorm) and module.training for module in modules):
        return accumulate
    return accumulate * world_size


def split_gradient(
    model: DetectionModel,
    criterion: SetCriterion,
    samples: list[Sample],
    dist: Dist,
    accumulate: int,
    dtype: torch.dtype,
    compression: Compression = "none",
) -> dict[str, Tensor]:
    """The gradient by parameter, computed as in training, where every rank has slices of the batch.
    Communicates."""
    model = copy.deepcopy(model).to(weights_dtype(dtype))
    micro_batches = []
    for micro in range(accumulate):
        part = slice_of(len(samples), micro, accumulate, dist.rank, dist.world_size)
        micro_batches.append(samples[part])
    window = announce(micro_batches, criterion, dist)
    batches, denominators, _ = receive(window, criterion, dist, weights_dtype(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    replica = replicate(model, dist, accumulate, compression)
    train_step(replica, criterion, batches, denominators, optimizer, dtype, clip_norm=0.0)
    return _gradients(model)


def whole_gradient(
    model: DetectionModel,
    criterion: SetCriterion,
    samples: list[Sample],
    device: torch.device,
    dtype: torch.dtype,
    num_parts: int = 1,
) -> dict[str, Tensor]:
    """The gradient by parameter of the whole batch, divided into `num_parts`, in this process
    alone.

    With the whole batch as one part, it defines the gradient that every layout has to give. In fp32
    and bf16, kernels round batches of other sizes differently, and at near ties of scores or costs,
    another query is chosen. The differences reach 2e-5 in fp32 and 0.3 in bf16 (`redetr_n` on 8
    threads).
    """
    model = copy.deepcopy(model).to(weights_dtype(dtype)).train()
    counts = criterion.counts([target for _, target in samples])
    denominators = criterion.denominators(counts, counts)
    for number in range(num_parts):
        part = samples[slice_of(len(samples), number, num_parts, 0, 1)]
        batch = to_batch(part, device, canvas_of(samples), weights_dtype(dtype))
        with autocast(device, dtype):
            outputs = training_outputs(model, criterion, batch)
        criterion(outputs, batch.targets, denominators)["loss"].backward()
    return _gradients(model)


def put_in_general_position(model: DetectionModel) -> None:
    """Fills weights that are all zero, such as the initial ones of box heads, with small noise.

    With them, boxes are equal squares, and two queries within one large object may be exchanged at
    exactly the same cost. Rounding decides which one is matched, and that depends on the batch.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.detach().any():
            noise = torch.randn(parameter.shape, generator=generator) * _NOISE
            parameter.data.copy_(noise)


def _without_dropout(model: DetectionModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, MultiheadAttention):
            module.dropout = 0.0


def _gradients(model: DetectionModel) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.double()
    return gradients


def _parts(model: DetectionModel) -> dict[str, list[str]]:
    """Names of trained parameters by part of the model, and of all."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    parts: dict[str, list[str]] = {}
    for name in trained:
        words = name.removeprefix("detr.").split(".")
        part = words[0]
        if part == "transformer":  # encoder and decoder apart
            part = ".".join(words[:2])
        parts.setdefault(part, []).append(name)
    return {**parts, "all": trained}


def _relative_error(
    actual: dict[str, Tensor], expected: dict[str, Tensor], names: list[str]
) -> float:
    differences = [(actual[name] - expected[name]).flatten() for name in names]
    expectations = [expected[name].flatten() for name in names]
    difference = torch.cat(differences).norm()
    norm = torch.cat(expectations).norm()
    if norm > 0:
        return (difference / norm).item()
    return difference.item()
