"""The largest micro-batch that the memory holds, found by trial before the first step.

The global batch does not change: it is split into as many micro-batches as needed, which give the
same gradient. A trial is a step of a copy of the model on noise, with the largest size to which the
run pads images, and as many objects as in the fullest image. It has two micro-batches, because the
gradients of the first are kept during the second, and includes the optimizer.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from redetr.choices import ClassNormalization
from redetr.config import Settings
from redetr.data.cache import available_memory
from redetr.data.loader import Samples
from redetr.data.views import Stretch
from redetr.distributed import Dist
from redetr.errors import InputError, exhausted_memory
from redetr.launch import read_launch
from redetr.losses import SetCriterion
from redetr.noise import noise_batch
from redetr.optim import build_optimizer, clip_gradients
from redetr.precision import PRECISIONS, autocast
from redetr.step import training_outputs
from redetr.structures import Batch, DetectionModel, Size
from redetr.wording import counted

_SAMPLED = 1000  # images whose sizes are examined
_IN_A_MOSAIC = 4  # images
# Shares of the memory that a step may take: on a GPU the rest is for fragments, on a host also for
# decoded images and loader processes.
_SHARE_OF_GPU = 0.9
_SHARE_OF_HOST = 0.6


class Meter(Protocol):
    """Measures the memory of a device in bytes."""

    def limit(self) -> float:
        """The bytes that this process may use in all."""

    def peak(self, work: Callable[[], None]) -> float:
        """The peak in bytes during `work`; infinite if memory ran out."""


class _GpuMeter:
    def __init__(self, device: torch.device):
        self._device = device

    def limit(self) -> float:
        free, _ = torch.cuda.mem_get_info(self._device)
        return _SHARE_OF_GPU * (free + torch.cuda.memory_reserved(self._device))

    def peak(self, work: Callable[[], None]) -> float:
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            work()
        except RuntimeError as error:
            if exhausted_memory(error) is None:
                raise
            return math.inf
        finally:
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(self._device)


class _HostMeter:
    """Measures with Linux's numbers for this process; the ranks share the memory of their host."""

    _STATUS = Path("/proc/self/status")

    def limit(self) -> float:
        share = _SHARE_OF_HOST / read_launch().local_world_size
        return self._kilobytes("VmRSS") * 1024 + share * available_memory()

    def peak(self, work: Callable[[], None]) -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        work()
        return self._kilobytes("VmHWM") * 1024

    def _kilobytes(self, name: str) -> int:
        for line in self._STATUS.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
        raise OSError(f"{self._STATUS} does not state {name}")


def meter_of(device: torch.device) -> Meter:
    """A meter of the memory of a device. Raises InputError if its memory cannot be measured."""
    if device.type == "cuda":
        return _GpuMeter(device)
    meter = _HostMeter()
    try:
        meter.limit()
        meter.peak(lambda: None)
    except OSError as error:
        text = f"--batch-size auto cannot measure the memory of this system ({error})"
        raise InputError(text, remedy="give --batch-size and --accumulate") from None
    return meter


def largest_fitting(most: int, peak_of: Callable[[int], float], limit: float) -> int:
    """The largest number up to `most` for which `peak_of` is within the limit; 0 if none is.

    Numbers are doubled, and then the range between the last two is halved. A number whose peak
    memory would exceed the limit, by linear extrapolation of the last two, is not tried, because
    the host would kill the process.
    """
    fits, fails = 0, most + 1
    peaks: list[tuple[int, float]] = []  # of numbers that fit
    while fits + 1 < fails:
        number = min(2 * fits, most) if fails > most else (fits + fails) // 2
        number = max(1, number)
        if _predicted(peaks, number) > limit:
            fails = number
            continue
        peak = peak_of(number)
        if peak > limit:
            fails = number
        else:
            fits = number
            peaks.append((number, peak))
    return fits


def _predicted(peaks: list[tuple[int, float]], number: int) -> float:
    if len(peaks) < 2:
        return 0.0
    (first, first_peak), (second, second_peak) = peaks[-2:]
    slope = max(0.0, (second_peak - first_peak) / (second - first))
    return second_peak + slope * (number - second)


def why_micro_batches_matter(model: DetectionModel, class_normalization: ClassNormalization) -> str:
    """Why the number of micro-batches changes the gradient; empty if it does not."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            return "the model trains BatchNorm, which depends on micro-batches"
    if class_normalization == "per_rank":
        return "--class-normalization per_rank divides by the count of each micro-batch"
    return ""


@contextmanager
def memory_errors(model: DetectionModel, class_normalization: ClassNormalization) -> Iterator[None]:
    """A context in which exhausted memory becomes an InputError that says what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        exhausted = exhausted_memory(error)
        if exhausted is None:
            raise
        in_evaluation = "in an evaluation, lower --eval-batch-size"
        smaller = "use --recompute or a smaller --image-size"
        reason = why_micro_batches_matter(model, class_normalization)
        if reason:
            raise InputError(
                f"{exhausted}: {smaller}; {in_evaluation}; a larger --accumulate needs a new run "
                f"and changes the gradient, because {reason}"
            ) from error
        raise InputError(
            f"{exhausted}: raise --accumulate (the gradient stays the same), or let "
            f"--batch-size auto choose it; {in_evaluation}; if a single image is too large, "
            f"{smaller}"
        ) from error


def choose_accumulation(
    config: Settings,
    model: DetectionModel,
    criterion: SetCriterion,
    samples: Samples,
    dist: Dist,
) -> tuple[int, str]:
    """How many micro-batches a rank needs for its share of the global batch, and a sentence on it.

    The rank with the least memory decides for all. Weights, gradients and random numbers stay as
    they are. Raises InputError if not even the smallest micro-batch fits, or micro-batches would
    not be exact. Communicates (host only).
    """
    reason = why_micro_batches_matter(model, criterion.class_normalization)
    if reason:
        text = f"--batch-size auto: {reason}"
        raise InputError(text, remedy="give --batch-size and --accumulate")
    canvas = largest_canvas(samples)
    meter = meter_of(dist.device)
    limit = meter.limit()
    share = math.ceil(config.batch_size / dist.world_size)
    trial = _Trial(config, model, criterion, samples, canvas)

    def peak_of(number: int) -> float:
        return meter.peak(partial(trial.run, number))

    devices = [dist.device] if dist.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        fits = largest_fitting(share, peak_of, limit)
    fits, limit = min(dist.gather([(fits, limit)]))  # of the rank that decides
    height, width = canvas
    memory = _described_memory(limit, dist.device)
    most_parts = config.batch_size // dist.world_size  # of one image each
    needed_parts = math.ceil(config.batch_size / (dist.world_size * max(fits, 1)))
    parts = min(needed_parts, most_parts)
    largest = math.ceil(config.batch_size / (dist.world_size * parts))
    if largest > fits:
        text = f"--batch-size auto: {memory} cannot hold {counted(largest, 'image')}"
        remedy = "use --recompute, a smaller --image-size, or a smaller model"
        raise InputError(f"{text} of {height}x{width} px", remedy=remedy)
    micro_batches = counted(parts, "micro-batch", "micro-batches")
    return parts, (
        f"{micro_batches} of {counted(largest, 'image')} per rank: {memory} can hold "
        f"{counted(fits, 'image')} of {height}x{width} px at a time (--accumulate {parts} skips "
        "this trial)"
    )


def _described_memory(num_bytes: float, device: torch.device) -> str:
    """An amount of the memory of a device, such as "0.4 GB of CPU memory"."""
    amount = f"{num_bytes / 1e9:.1f} GB"
    if num_bytes < 1e8:  # would be 0.0 or 0.1 GB
        amount = f"{num_bytes / 1e6:.3g} MB"
    kind = "GPU" if device.type == "cuda" else "CPU"
    return f"{amount} of {kind} memory"


def largest_canvas(samples: Samples) -> Size:
    """The largest height and the largest width of samples, by those of a first epoch."""
    final = samples.transform.draw.final
    if isinstance(final, Stretch):
        return final.size
    stride = math.ceil(len(samples) / _SAMPLED)
    sizes = [samples.size((0, index)) for index in range(0, len(samples), stride)]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


class _Trial:
    """Steps of a copy of a model, on noise."""

    def __init__(
        self,
        config: Settings,
        model: DetectionModel,
        criterion: SetCriterion,
        samples: Samples,
        canvas: Size,
    ):
        self._config = config
        self._model = model
        self._criterion = criterion
        self._canvas = canvas
        self._channels = samples.dataset.channels
        self._objects = samples.dataset.max_objects()
        if config.mosaic_until:
            self._objects *= _IN_A_MOSAIC

    def run(self, number: int) -> None:
        """An optimizer step of two micro-batches of `number` images."""
        config = self._config
        model = copy.deepcopy(self._model).train()
        optimizer = build_optimizer(
            model, config.lr, config.lr_backbone, config.weight_decay, config.optimizer
        )
        dtype = PRECISIONS[config.precision]
        for _ in range(2):
            batch = self._batch(number, dtype)
            with autocast(batch.images.device, dtype):
                outputs = training_outputs(model, self._criterion, batch)
            self._criterion(outputs, batch.targets)["loss"].backward()
        clip_gradients(model, config.clip_norm)
        optimizer.step()

    def _batch(self, number: int, dtype: torch.dtype) -> Batch:
        return noise_batch(
            self._model, self._criterion, number, self._canvas, self._channels, self._objects, dtype
        )
