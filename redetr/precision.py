"""The number format of computations, and the trial that chooses it on a CPU."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch

from redetr.choices import ImageSize, Precision
from redetr.errors import InputError
from redetr.structures import DetectionModel
from redetr.trial import WORTHWHILE, times_faster, trial_pass

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}


class PrecisionChoice(NamedTuple):
    """A number format, and why it was chosen."""

    name: Literal["fp32", "bf16", "fp64"]
    # how many times faster than fp32 bf16 was in the trial; None without a trial
    bf16_gain: float | None = None
    # the precision of the training run, if that decided
    run_precision: Precision | None = None

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.name]

    @property
    def reason(self) -> str:
        """A line that gives the reason; empty if the user or the kind of device decided."""
        if self.run_precision == self.name:
            return f"precision: {self.name}, as in its training run (override with --precision)"
        if self.run_precision == "fp64":
            return f"precision: {self.name}; its training run computed in fp64, which is for proofs"
        if self.run_precision is not None:
            return (
                f"precision: {self.name}; its training run computed in {self.run_precision}, which "
                "is slow on this device (override with --precision)"
            )
        if self.bf16_gain is None:
            return ""
        return (
            f"precision: {self.name}, because bf16 runs at {self.bf16_gain:.2f} times the speed of "
            "fp32 here (override with --precision)"
        )


def pick_precision(
    precision: Precision,
    device: torch.device,
    model: DetectionModel,
    image_size: ImageSize,
    gradient: bool = False,
    batch_size: int = 1,
    run_precision: Precision | None = None,
) -> PrecisionChoice:
    """The number format that `precision` means for a model with fp32 weights on `device`.

    "auto" is `run_precision`, the precision in which the model was trained and evaluated, so that
    it predicts as it did then. It is fp32 instead if `run_precision` is fp64, or bf16 on a device
    without bf16 units. If `run_precision` is None, "auto" is bf16 where that is faster, else fp32.
    It is faster on GPUs with bf16 units. A CPU may have the units and still be slow, so a trial
    decides there: at most half a second of forward passes with `batch_size` images, and of backward
    passes if `gradient` is True. "fp64" is for proofs, as its rounding errors stay invisible over a
    whole run. Raises InputError for an unknown name.
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"unknown precision {precision!r}: choose auto, {', '.join(PRECISIONS)}")
    if precision != "auto":
        return PrecisionChoice(precision)
    has_units = _has_bf16_units(device)
    if run_precision is not None:
        name: Literal["fp32", "bf16"] = "bf16" if run_precision == "bf16" and has_units else "fp32"
        return PrecisionChoice(name, run_precision=run_precision)
    if device.type == "cuda" and has_units:
        return PrecisionChoice("bf16")
    if not has_units:
        return PrecisionChoice("fp32")
    gain = _bf16_gain(model, image_size, gradient, batch_size)
    return PrecisionChoice("bf16" if gain >= WORTHWHILE else "fp32", gain)


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16_units()


def _cpu_has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _bf16_gain(
    model: DetectionModel, image_size: ImageSize, gradient: bool, batch_size: int
) -> float:
    """How many times faster the model runs in bf16 than in fp32 on a CPU."""
    cpu = torch.device("cpu")
    with trial_pass(model, image_size, gradient, batch_size) as run:

        def run_in_bf16() -> None:
            with autocast(cpu, torch.bfloat16):
                run()

        return times_faster(run_in_bf16, run)


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
    """Autocast for the half types; for others, a context that does nothing.

    No run computes in fp16, but a loop of the user's own may.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device.type, dtype=dtype)
    return nullcontext()


class _Fp32Products:
    """How GPUs multiply fp32. PyTorch has one setting for all threads, so contexts that overlap in
    several threads share it: the first sets it, and the last one restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_contexts = 0
        self._before = ("", "")  # of convolutions and matrix products

    def make_exact(self) -> None:
        """Enters a context."""
        convolutions: Any = torch.backends.cudnn  # has more attributes than its module
        matrices = torch.backends.cuda.matmul
        with self._lock:
            self._num_contexts += 1
            if self._num_contexts > 1:
                return
            self._before = convolutions.conv.fp32_precision, matrices.fp32_precision
            convolutions.allow_tf32 = False  # the older setting, which the compiler reads
            # The older one yields to that of all operations.
            convolutions.conv.fp32_precision = "ieee"
            matrices.fp32_precision = "ieee"

    def restore(self) -> None:
        """Leaves a context."""
        convolutions: Any = torch.backends.cudnn
        with self._lock:
            self._num_contexts -= 1
            if self._num_contexts:
                return
            convolution_precision, matrix_precision = self._before
            convolutions.allow_tf32 = convolution_precision == "tf32"
            convolutions.conv.fp32_precision = convolution_precision
            torch.backends.cuda.matmul.fp32_precision = matrix_precision


_FP32_PRODUCTS = _Fp32Products()


@contextmanager
def exact_products() -> Iterator[None]:
    """A context, or a decorator, in which GPUs multiply fp32 as fp32.

    By default, PyTorch lets convolutions round to the 10 bits of TF32. Then products differ by 1e-3
    between two splits of a batch. All threads of the process then multiply so; the setting is
    restored when the last context ends.
    """
    _FP32_PRODUCTS.make_exact()
    try:
        yield
    finally:
        _FP32_PRODUCTS.restore()
