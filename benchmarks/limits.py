"""What the machine could do at best, and what a side takes of it: operations, rate of products, memory."""

import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from interleaved import wait
from torch.utils.flop_counter import FlopCounterMode

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices: large enough that more is not faster


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, tries: int = 15) -> float:
    """Operations per second in a product of large matrices."""
    side = _SIDE[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(tries + 2):
        wait()
        started = time.perf_counter()
        a @ b
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds[2:])


def peak_mb(device: str, build: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """The memory that `build(*arguments)` and three times the work it returns take at most, in a process of its own.

    On a GPU, what torch counts; on a CPU, what the process grew by since its imports. On Linux that counts from the
    size of the process that started this one, so measure before anything large is built there.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (device, build, *arguments))


def _peak_mb(device: str, build: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    if find_spec("transformers"):
        import transformers.models.detr.modeling_detr  # noqa: F401 (a package is no part of what a step takes)
    before = _resident()
    work = build(*arguments)
    for _ in range(3):
        work()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident() - before
    return round(peak / 1e6)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
