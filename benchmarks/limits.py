"""The best that the machine can do, and the demand of a side: the rate of matrix products, and
operations."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from interleaved import wait
from torch.utils.flop_counter import FlopCounterMode

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices; larger ones are not faster


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`, forward and
    backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def matrix_rate(
    device: str,
    dtype: torch.dtype,
    tries: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Operations per second in a product of large matrices."""
    side = _SIDE[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(tries + 2):
        wait()
        started = clock()
        a @ b
        wait()
        seconds.append(clock() - started)
    return 2 * side**3 / median(seconds[2:])


def cpu_gflops() -> dict[str, float]:
    """Billion operations per second in a product of large matrices on the CPU, by precision."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rates[name] = round(matrix_rate("cpu", dtype) / 1e9, 1)
    return rates
