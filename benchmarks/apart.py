"""Runs each side of a comparison in its own process, like a user's program, so that no side is
affected by the memory of another."""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import stand_ins  # noqa: F401 (before anything of redetr)
import torch
from interleaved import TRANSFORMERS, wait
from limits import operations


class Apart:
    """`build(*arguments)` creates the work in a new process. Calling this object does the work
    once, and waits for it.

    Sides are created concurrently, because imports and the start of a GPU take seconds. Call each
    side once before measuring.
    """

    def __init__(self, build: Callable[..., Callable[[], Any]], *arguments: Any):
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._made = self._process.submit(_begin, build, arguments)

    def ready(self) -> None:
        """Waits until the work is made."""
        self._made.result()

    def __call__(self) -> None:
        self.ready()
        self._ask(_work)

    def operations(self) -> int:
        return self._ask(_operations)

    def processor_s(self) -> float:
        """The processor time of the process so far, over all of its threads. Other load of the
        machine hardly affects it."""
        return self._ask(time.process_time)

    def peak_mb(self) -> int:
        """The peak memory of the work so far: on a GPU as counted by torch, on a CPU as the growth
        of the process since its imports. On Linux, the peak includes the size of the process that
        started this one, which therefore has to be small."""
        return self._ask(_peak_mb)

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        return self._process.submit(question, *arguments).result()


_side: dict[str, Any] = {}


def _begin(build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    if TRANSFORMERS:
        import transformers.models.detr.modeling_detr  # noqa: F401 (a package is no part of what a step takes)
    _side["before"] = _resident()
    _side["work"] = build(*arguments)


def _work() -> None:
    _side["work"]()
    wait()


def _operations() -> int:
    return operations(_side["work"])


def _peak_mb() -> int:
    cuda = torch.cuda.is_initialized()
    return round(
        (torch.cuda.max_memory_allocated() if cuda else _resident() - _side["before"]) / 1e6
    )


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
