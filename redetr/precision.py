"""The number format of computations, and the trial that chooses it on a CPU."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Literal, NamedTuple

import torch

from redetr.choices import ImageSize, Precision
from redetr.errors import InputError
from redetr.structures import DetectionModel

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}

# The trial of "auto" on a CPU: images of at most this side, and so many rounds, or fewer if they
# take longer than this time.
_TRIAL_PX = 320
_TRIAL_ROUNDS = 5
_TRIAL_S = 0.5
# bf16 is chosen if it is at least this many times faster than fp32; a smaller gain is not worth its
# rounding.
_WORTHWHILE = 1.05


class PrecisionChoice(NamedTuple):
    """A number format, and why it was chosen."""

    name: Literal["fp32", "bf16", "fp64"]
    # how many times faster than fp32 bf16 was in the trial; None without a trial
    bf16_gain: float | None = None
    # the precision of the training run, if that decided
    of_run: Precision | None = None

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.name]

    @property
    def reason(self) -> str:
        """A line that gives the reason; empty if the user or the kind of device decided."""
        if self.of_run == self.name:
            return f"precision: {self.name}, as in its training run (--precision chooses)"
        if self.of_run is not None:
            return (
                f"precision: {self.name}; its training run computed in {self.of_run}, which is "
                "slow on this device (--precision chooses)"
            )
        if self.bf16_gain is None:
            return ""
        return (
            f"precision: {self.name}, because bf16 runs at {self.bf16_gain:.2f} times the speed of "
            "fp32 here (--precision chooses)"
        )


def pick_precision(
    precision: Precision,
    device: torch.device,
    model: DetectionModel,
    image_size: ImageSize,
    gradient: bool = False,
    of_run: Precision | None = None,
) -> PrecisionChoice:
    """The number format that `precision` means for a model with fp32 weights on `device`.

    "auto" is `of_run`, the precision in which the model was trained and evaluated, so that it
    predicts as it did then. It is fp32 instead if `of_run` is fp64, or bf16 on a device without
    bf16 units. If `of_run` is None, "auto" is bf16 where that is faster, else fp32. It is faster on
    GPUs with bf16 units. A CPU may have the units and still be slow, so a trial decides there: at
    most half a second of forward passes of `model`, with backward passes if `gradient` is True.
    "fp64" is for proofs, as its rounding errors stay invisible over a whole run. Raises InputError
    for an unknown name.
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"unknown precision {precision!r}: choose auto, {', '.join(PRECISIONS)}")
    if precision != "auto":
        return PrecisionChoice(precision)
    has_units = _has_bf16_units(device)
    if of_run is not None:
        name: Literal["fp32", "bf16"] = "bf16" if of_run == "bf16" and has_units else "fp32"
        return PrecisionChoice(name, of_run=of_run)
    if device.type == "cuda" and has_units:
        return PrecisionChoice("bf16")
    if not has_units:
        return PrecisionChoice("fp32")
    gain = _bf16_gain(model, image_size, gradient)
    return PrecisionChoice("bf16" if gain >= _WORTHWHILE else "fp32", gain)


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16_units()


def _cpu_has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _bf16_gain(model: DetectionModel, image_size: ImageSize, gradient: bool) -> float:
    """How many times faster the model runs in bf16 than in fp32 on a CPU.

    The weights, their gradients and the state of the random number generators do not change.
    """
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    height, width = (min(side, _TRIAL_PX) for side in sides)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, model.channels, height, width, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)

    def run(dtype: torch.dtype) -> None:
        with torch.set_grad_enabled(gradient), autocast(images.device, dtype):
            outputs = model(images)
        if gradient:
            total = outputs["pred_logits"].float().mean() + outputs["pred_boxes"].float().mean()
            parameters = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(total, parameters, allow_unused=True)

    was_training = model.training
    model.eval()  # no dropout, no statistics
    try:
        return _times_faster(lambda: run(torch.bfloat16), lambda: run(torch.float32))
    finally:
        model.train(was_training)


def _times_faster(candidate: Callable[[], None], reference: Callable[[], None]) -> float:
    """How many times faster `candidate` runs than `reference`: the median over rounds with one run
    of each."""
    candidate()
    reference()
    ratios: list[float] = []
    end = time.perf_counter() + _TRIAL_S
    for _ in range(_TRIAL_ROUNDS):
        started = time.perf_counter()
        if ratios and started > end:
            break
        candidate()
        between = time.perf_counter()
        reference()
        ended = time.perf_counter()
        candidate_s = between - started
        reference_s = ended - between
        ratios.append(reference_s / candidate_s)
    return median(ratios)


def precision_name(dtype: torch.dtype) -> str:
    """The key of `PRECISIONS` for this dtype."""
    for name, precision_dtype in PRECISIONS.items():
        if precision_dtype == dtype:
            return name
    raise ValueError(f"no precision computes in {dtype}")


def weights_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights and images for computations in `dtype`.

    bf16 is computed by autocast, which keeps weights in fp32.
    """
    return torch.float32 if dtype == torch.bfloat16 else dtype


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast for bf16; for other types, a context that does nothing."""
    return torch.autocast(device.type, dtype=dtype) if dtype == torch.bfloat16 else nullcontext()
