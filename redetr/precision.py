"""The number format to compute in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from redetr.errors import InputError

PRECISIONS = {
    "auto": torch.float32,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in: "auto" is bf16 where the hardware multiplies it fast, else fp32.

    A CPU without bf16 units runs bf16 several times slower than fp32. "fp64" is for proofs: its
    rounding errors stay invisible over a whole run.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision == "auto":
        return torch.bfloat16 if _has_fast_bf16(device) else torch.float32
    return PRECISIONS[precision]


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def weights_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights and images when computing in `dtype`.

    bf16 is computed by autocast, whose weights are fp32.
    """
    return torch.float32 if dtype == torch.bfloat16 else dtype


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to bf16; other types mean none."""
    return torch.autocast(device.type, dtype=dtype) if dtype == torch.bfloat16 else nullcontext()
