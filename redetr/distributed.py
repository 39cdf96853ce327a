"""Processes, and all communication between them. The only module that imports `torch.distributed`.

One process is a world of size 1 and takes the same path. Tensors on the host travel over gloo, gradients on GPUs
over NCCL; `torchrun` is the only launcher.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from redetr.errors import InputError

P = ParamSpec("P")


@dataclass(frozen=True)
class Dist:
    """Who this process is."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    def main_only(self, function: Callable[P, Any]) -> Callable[P, Any]:
        """`function` on rank 0; on the other ranks something that does nothing and returns None."""
        return function if self.rank == 0 else lambda *args, **kwargs: None

    def gather_rows(self, row: list[float]) -> Tensor:
        """A row of numbers from every rank, `[world_size, len(row)]` float64 on the host. Communicates (host only)."""
        mine = torch.tensor(row, dtype=torch.float64)
        rows = mine.new_empty(self.world_size, len(row))
        torch_dist.all_gather_into_tensor(rows, mine[None])
        return rows

    def gather_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays joined along their first axis over all ranks, rank 0 first; lengths may differ. Communicates."""
        if self.world_size == 1:
            return arrays
        everyone: list[Any] = [None] * self.world_size
        torch_dist.all_gather_object(everyone, arrays)
        return {name: np.concatenate([part[name] for part in everyone]) for name in arrays}

    def mean_(self, tensor: Tensor) -> Tensor:
        """`tensor` averaged over ranks, in place. Communicates."""
        torch_dist.all_reduce(tensor)
        return tensor.div_(self.world_size)

    def barrier(self) -> None:
        """Waits until every rank is here. Communicates (host only)."""
        self.gather_rows([0.0])


def main_process_only(function: Callable[P, Any]) -> Callable[P, Any]:
    """As `Dist.main_only`, outside of a process group: for what is said after the run."""
    return function if os.environ.get("RANK", "0") == "0" else lambda *args, **kwargs: None


@contextmanager
def process_group(device: str = "auto", timeout_s: float = 600.0) -> Iterator[Dist]:
    """The process group for the time of a run: torchrun's if it started this process, else a world of one.

    `device` is "auto", "cpu" or "cuda". Raises InputError for a device that is not there.
    """
    rank, world_size, local_rank = (int(os.environ.get(n, d)) for n, d in
                                    (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    where = pick_device(device)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    options: dict[str, Any] = {"backend": backend, "timeout": timedelta(seconds=timeout_s)}
    if "WORLD_SIZE" not in os.environ:
        options |= {"store": torch_dist.HashStore(), "rank": 0, "world_size": 1}
    torch_dist.init_process_group(**options)
    try:
        yield Dist(rank, world_size, local_rank, where)
    finally:
        torch_dist.destroy_process_group()


def pick_device(device: str) -> torch.device:
    """The device of this process; "auto" is CUDA where there is one. Raises InputError if it is not there."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r}: choose auto, cpu or cuda")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError("device 'cuda' was asked for, but no CUDA device is visible: use --device cpu")
    if device == "cpu" or not has_cuda:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} has no GPU of its own: start at most {torch.cuda.device_count()} a node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def replicate(model: nn.Module, dist: Dist) -> DistributedDataParallel:
    """`model` with gradients averaged over ranks after each backward pass. Communicates: rank 0's weights win.

    Every parameter takes part in every loss by construction, so unused ones are not searched for. Buffers are
    constants (frozen BatchNorm), so they are not broadcast in each step.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    no_broadcast: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    device_ids = [dist.device.index] if dist.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, **no_broadcast)


def accumulating(model: DistributedDataParallel, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: gradients travel with the last one of the window only."""
    return nullcontext() if last else model.no_sync()
