"""Processes, and all communication between them. The only module that imports `torch.distributed`.

One process is a world of size 1 and takes the same path. Tensors on the host travel over gloo,
gradients on GPUs over NCCL. Any launcher that sets torchrun's environment variables works.
"""

import inspect
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from redetr.choices import Compression
from redetr.errors import InputError, LostError, LostRankError, RedetrError, first_line
from redetr.launch import Launch, pick_device, read_launch

_WAITING = "waiting"
_POLL_S = 0.02
_ENDED = "ended"  # key of the store: the note of the first rank that ended by itself
_ABORT_S = 5.0  # at most, for a group of NCCL to end
_ANSWER_S = 1.0  # for that note to arrive; its rank breaks the connections right after it

P = ParamSpec("P")
T = TypeVar("T")

# gloo has no error class, and raises RuntimeError. Its messages begin with the failed line of its
# source, such as "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] ...", except for
# "Application timeout caused pair closure", which means that another rank did not respond.
_GLOO_LOCATION = re.compile(r"\[[^\[\]]*\bgloo/[^\[\]]+:\d+\]")
_GLOO_MESSAGE = re.compile(rf"{_GLOO_LOCATION.pattern}|caused pair closure")

# NCCL's errors have one class. Those with these words are about another rank, the others about
# this one: an old driver, for example, or no network interface.
_NCCL_LOSS = re.compile(
    "abort|timeout|timed out|remote|closed|connect|crash|failed to recv", re.IGNORECASE
)

_groups = itertools.count()  # of several ranks, in this process


@dataclass(frozen=True)
class Dist:
    """The rank of this process, and its communication with the others."""

    rank: int
    world_size: int
    device: torch.device
    set_up: "SetUp | None" = None  # of more than one rank

    def doing(self, what: str) -> None:
        """Notes what this rank does in the set-up of a run, see `SetUp.doing`."""
        if self.set_up:
            self.set_up.doing(what)

    def meet(self) -> None:
        """Waits in the set-up of a run until every rank is here, see `SetUp.meet`. Communicates
        (host only)."""
        if self.set_up:
            self.set_up.meet()

    def main_only(self, function: Callable[P, Any]) -> Callable[P, Any]:
        """`function` on rank 0; on the other ranks, a function that does nothing and returns
        None."""
        return function if self.rank == 0 else lambda *args, **kwargs: None

    def gather_rows(self, row: list[float]) -> Callable[[], Tensor]:
        """Sends a row of numbers to every rank, without waiting; the result waits for all of them
        and returns `[world_size, len(row)]` float64 on the host. Communicates (host only).
        """
        mine = torch.tensor(row, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        # Not all_gather_into_tensor: torch 2.14 deprecates it, and what replaces it is not in 2.11.
        work = torch_dist.all_gather(rows, mine, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return torch.stack(rows)

        return wait

    def gather(self, items: list[T]) -> list[T]:
        """The lists of all ranks joined, rank 0 first; items are pickled. Communicates (host
        only)."""
        if self.world_size == 1:
            return items
        lists: list[Any] = [None] * self.world_size
        torch_dist.all_gather_object(lists, items)
        joined: list[T] = []
        for items_of_rank in lists:
            joined += items_of_rank
        return joined

    def raise_any(self, error: RedetrError | None) -> None:
        """Raises, on every rank, the error of the first rank that has one. Communicates (host
        only)."""
        for problem in self.gather([error]):
            if problem is not None:
                raise problem

    def gather_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays joined along their first axis over all ranks, rank 0 first; lengths may differ.
        Communicates (host only)."""
        parts = self.gather([arrays])  # one for each rank
        joined = {}
        for name in arrays:
            joined[name] = np.concatenate([part[name] for part in parts])
        return joined

    def exchange(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Sends the `[n]` rows of `parts[i]` to rank i, and returns what each rank sent to this
        one. There is a part for each rank, and all have one type. Communicates (host only)."""
        counts = self.gather_rows([len(part) for part in parts])()  # [from, to]
        received = []
        transfers: list[Any] = []
        for rank, part in enumerate(parts):
            rows = part
            if rank != self.rank:
                rows = np.empty(int(counts[rank, self.rank]), part.dtype)
                if len(part):
                    transfers.append(torch_dist.isend(_as_bytes(part), rank))
                if len(rows):
                    transfers.append(torch_dist.irecv(_as_bytes(rows), rank))
            received.append(rows)
        for transfer in transfers:
            transfer.wait()
        return received

    def mean_(self, tensor: Tensor) -> Tensor:
        """`tensor` averaged over ranks, in place. Communicates, on the device of `tensor`."""
        torch_dist.all_reduce(tensor)
        return tensor.div_(self.world_size)

    def barrier(self) -> None:
        """Waits until every rank is here. Communicates (host only)."""
        self.gather_rows([0.0])()


def _as_bytes(rows: np.ndarray) -> Tensor:
    """A tensor on the same memory."""
    return torch.from_numpy(rows.view(np.uint8))


def main_process_only(function: Callable[P, Any]) -> Callable[P, Any]:
    """Like `Dist.main_only`, but outside a process group, for reports after the run."""
    return function if read_launch().rank == 0 else lambda *args, **kwargs: None


@contextmanager
def process_group(
    device: str = "auto", timeout_s: float = 600.0, setup_timeout_s: float = 3600.0
) -> Iterator[Dist]:
    """The process group for the time of a run: torchrun's if it started this process, else a world
    of one.

    `device` is one of `pick_device`. Raises InputError for a missing device, for one that two ranks
    share, if NCCL cannot work, or if the program has a process group of its own, which is left as
    it is; LostRankError if another rank dies or does not answer within `timeout_s`, or in
    `Dist.meet` within `setup_timeout_s`; LostError if another rank ended by itself: with its
    reason.
    """
    _require_no_group()
    launch = read_launch()
    rank_device = pick_device(device)
    has_nccl = torch_dist.is_nccl_available()  # not in all builds: gloo then sums gradients, too
    uses_nccl = rank_device.type == "cuda" and has_nccl
    backend = "cpu:gloo,cuda:nccl" if uses_nccl else "gloo"
    options: dict[str, Any] = {"backend": backend, "timeout": timedelta(seconds=timeout_s)}
    set_up = None
    has_failed = True
    excepthook = sys.excepthook
    try:
        store = _meet_other_ranks(launch, options)
        if launch.world_size > 1:
            set_up = SetUp(store, launch.rank, launch.world_size, setup_timeout_s)
        dist = Dist(launch.rank, launch.world_size, rank_device, set_up)
        if uses_nccl and launch.world_size > 1:
            _require_different_gpus(dist)
        yield dist
        has_failed = False
    except BaseException as error:
        failure = _failure_of(error, launch.rank, set_up, timeout_s)
        if set_up and not isinstance(failure, LostRankError):
            set_up.end(_reason(error))
        if failure is error:
            raise
        raise failure from error
    finally:
        if torch_dist.is_initialized():
            if has_failed and uses_nccl and launch.world_size > 1:
                _abort_group(rank_device)
            else:
                _close_group()
        if launch.world_size == 1:
            # Since the group began, PyTorch's hook prefixes each line of a traceback with the rank:
            # once more for each group, so for each run in a notebook.
            sys.excepthook = excepthook


def _require_no_group() -> None:
    if torch_dist.is_initialized():
        text = "this process already has a process group, but redetr creates its own"
        remedy = "call torch.distributed.destroy_process_group() first"
        raise InputError(text, remedy=remedy)


# The group that was closed last, by process. A forked one inherits its parent's without the threads
# that freeing it would wait for.
_closed_groups: dict[int, Any] = {}


def _close_group() -> None:
    """Closes the process group, which stays in memory until the next one is closed.

    When a gloo group is freed, torch 2.11 waits for the group's thread with Python's lock held, and
    that thread may need the lock to free the tensors of its last message. On a busy machine, a run
    that ended with an error could freeze so. By the time the next group is closed, that thread has
    long had nothing to do.
    """
    _closed_groups[os.getpid()] = torch_dist.group.WORLD
    torch_dist.destroy_process_group()


def _abort_group(device: torch.device) -> None:
    """Ends the process group without waiting for other ranks, which may be gone: closed in order,
    NCCL would first finish what it has begun with them, or wait for `timeout_s`.

    In a thread, because even this may wait for ranks of the same host. They notice when this
    process ends.
    """

    def abort() -> None:
        with suppress(RuntimeError):  # of CUDA, once more: the first one is reported
            torch.cuda.set_device(device)
            torch_dist.distributed_c10d._abort_process_group()

    _closed_groups[os.getpid()] = torch_dist.group.WORLD
    aborting = threading.Thread(target=abort, daemon=True)
    aborting.start()
    aborting.join(_ABORT_S)


def _require_different_gpus(dist: Dist) -> None:
    """Raises InputError, on all ranks, if two of them have the same GPU. Their numbers do not tell:
    each process may see a single one. Communicates (host only)."""
    gpus = dist.gather([str(torch.cuda.get_device_properties(dist.device).uuid)])
    for rank, gpu in enumerate(gpus):
        first = gpus.index(gpu)
        if first < rank:
            remedy = "start at most one process for each GPU"
            raise InputError(f"ranks {first} and {rank} share a GPU", remedy=remedy)


def _failure_of(
    error: BaseException, rank: int, set_up: "SetUp | None", timeout_s: float
) -> BaseException:
    """The error for the user: one of communication says which rank was lost, or why NCCL does not
    work on this one."""
    if not _is_about_communication(error):
        return error
    is_of_nccl = isinstance(error, torch_dist.DistBackendError)
    if is_of_nccl and not _NCCL_LOSS.search(str(error)):
        message = " ".join(str(error).split())
        remedy = (
            "set NCCL_DEBUG=INFO to see more; if this host has several network interfaces, name "
            "one in NCCL_SOCKET_IFNAME"
        )
        return InputError(f"NCCL failed: {message[-200:]}", remedy=remedy)  # ends with the cause
    return _lost_rank(rank, set_up, timeout_s, error)


def _is_about_communication(error: BaseException) -> bool:
    """Whether it is from PyTorch's process groups and stores, NCCL or gloo."""
    if isinstance(error, torch_dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _GLOO_MESSAGE.search(str(error)) is not None


def _lost_rank(
    rank: int, set_up: "SetUp | None", timeout_s: float, error: BaseException
) -> LostError:
    """What a communication error means: another rank ended, and noted why, or it ended without a
    note."""
    ended = set_up.end_of_another() if set_up else ""
    if ended:
        return LostError(f"rank {rank} stopped because {ended}")
    return LostRankError(
        f"rank {rank} lost another rank: it died, or did not respond within {timeout_s:g} s",
        remedy=f"see that rank's output for the cause ({_reason(error)})",
    )


def _meet_other_ranks(launch: Launch, options: dict[str, Any]) -> torch_dist.Store:
    """Starts the process group; returns the store of all ranks. Raises LostRankError if the others
    do not come, InputError for an impossible address."""
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if launch.world_size == 1:
            store: torch_dist.Store = torch_dist.HashStore()
            rank = 0
        else:
            meeting = torch_dist.rendezvous("env://", timeout=options["timeout"])
            shared_store, rank, _ = next(meeting)
            # A second run of this process would read what the first one left in the store.
            store = torch_dist.PrefixStore(f"group-{next(_groups)}", shared_store)
        group_store = torch_dist.PrefixStore("group", store)
        torch_dist.init_process_group(
            store=group_store, rank=rank, world_size=launch.world_size, **options
        )
        return store
    except ValueError as error:
        raise InputError(
            f"the address {address} of the environment cannot be used: {error}"
        ) from error
    except torch_dist.DistError as error:
        timeout_s = options["timeout"].total_seconds()
        raise LostRankError(
            f"rank {launch.rank} of {launch.world_size} did not meet the other ranks at {address} "
            f"within {timeout_s:g} s: one of them died, or MASTER_ADDR and MASTER_PORT are wrong",
            remedy=f"to run one process, unset WORLD_SIZE ({_reason(error)})",
        ) from error


def _reason(error: BaseException) -> str:
    """The message of an error in one line, without gloo's source lines and general advice."""
    if isinstance(error, KeyboardInterrupt):
        return "a signal"
    *_, reason = _GLOO_LOCATION.split(first_line(error))
    reason, _, _ = reason.partition(" This is typically caused by")
    return reason.strip(" .")[-160:]


def check_norms(
    model: nn.Module, dist: Dist, accumulate: int, is_compiled: bool = False
) -> list[str]:
    """Warnings for the user about trained BatchNorm layers, whose statistics depend on the batch.

    Raises InputError if statistics would differ between ranks or micro-batches, or for synchronised
    BatchNorm on a CPU, or compiled for several ranks, which PyTorch does not support.
    """
    # Those of frozen parts are in evaluation mode.
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    synchronised = [m for m in norms if isinstance(m, nn.SyncBatchNorm)]
    if len(synchronised) < len(norms) and dist.world_size * accumulate > 1:
        raise InputError(
            "the model trains BatchNorm, whose statistics would differ between ranks and "
            "micro-batches: use norm=group or norm=frozen_batch, norm=sync_batch on GPUs, or one "
            "rank without --accumulate"
        )
    if synchronised and dist.device.type == "cpu":
        raise InputError(
            "norm=sync_batch runs only on GPUs: use --model-options norm=frozen_batch with "
            "pretrained weights, norm=group without"
        )
    if synchronised and is_compiled and dist.world_size > 1:
        raise InputError(
            "norm=sync_batch cannot be compiled for several ranks: leave out --compile (a resumed "
            "run that has it needs --no-compile), or use --model-options norm=frozen_batch with "
            "pretrained weights"
        )
    if synchronised and accumulate > 1:
        return [
            "warning: synchronised BatchNorm is exact over ranks, not over accumulated "
            "micro-batches"
        ]
    return []


def replicate(
    model: nn.Module, dist: Dist, accumulate: int = 1, compression: Compression = "none"
) -> DistributedDataParallel:
    """`model` with gradients averaged over ranks after each backward pass. Communicates: rank 0's
    weights win.

    Every parameter takes part in every loss by construction, so unused ones are not searched for,
    and the graph is the same in each step: declared as static, except with accumulation, where
    PyTorch cannot combine that with `no_sync`, and where masks are computed after `forward`, whose
    gradients a static graph would not expect. Buffers are constants (frozen BatchNorm) or equal on
    all ranks (synchronised), so they are not broadcast in each step. `compression="bf16"` halves
    what travels, at a relative error of about 2e-3: no longer exact.
    """
    # The option has another name in newer versions of PyTorch.
    known = inspect.signature(DistributedDataParallel).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {broadcast: False}
    device_ids = [dist.device.index] if dist.device.type == "cuda" else None
    replica = DistributedDataParallel(
        model,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        static_graph=accumulate == 1 and not getattr(model, "masks_on_demand", False),
        **options,
    )
    if compression == "bf16":
        replica.register_comm_hook(None, _in_bf16)
    return replica


def _in_bf16(state: Any, bucket: torch_dist.GradBucket) -> torch.futures.Future[Tensor]:
    """`bf16_compress_hook`, which DDP refuses by its name where PyTorch is built without CUDA."""
    return bf16_compress_hook(state, bucket)


def accumulating(model: DistributedDataParallel, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: gradients travel with the last one of the
    window only."""
    return nullcontext() if last else model.no_sync()


class SetUp:
    """The part of a run before its first step, in which ranks may be minutes apart, because one has
    to read what another has cached. It has its own time limit, and ranks note what they do."""

    def __init__(self, store: torch_dist.Store, rank: int, world_size: int, limit_s: float):
        """Communicates."""
        self._store = torch_dist.PrefixStore("set-up", store)
        self._rank = rank
        self._world_size = world_size
        self._limit_s = limit_s
        self._group: Any = torch_dist.new_group(timeout=timedelta(seconds=limit_s), backend="gloo")

    def doing(self, what: str) -> None:
        """Notes what this rank does, such as "reading the annotations", for those who wait."""
        self._store.set(str(self._rank), what)

    def meet(self) -> None:
        """Waits until every rank has arrived. Raises LostRankError with what the others do if
        the limit is over, or LostError if one has ended. Communicates (host only)."""
        self.doing(_WAITING)
        started = time.monotonic()
        mine = torch.zeros(1)
        rows = [torch.empty_like(mine) for _ in range(self._world_size)]
        work: Any = torch_dist.all_gather(rows, mine, group=self._group, async_op=True)
        try:
            while not work.is_completed():  # a signal is noticed here, and not in `wait`
                time.sleep(_POLL_S)
            work.wait()
        except RuntimeError as error:
            others = self._others()
            if not _is_about_communication(error) or not others:
                raise
            waited_s = time.monotonic() - started
            kind = LostError if self.end_of_another() else LostRankError
            raise kind(
                f"rank {self._rank} waited {waited_s:.0f} s in the set-up for {others}",
                remedy="see that rank's output for the cause; if it is only slow, raise "
                "--setup-timeout-s",
            ) from error

    def end(self, reason: str) -> None:
        """Notes that this rank ends, and why, for those that will lose it."""
        with suppress(RuntimeError):  # the rank that holds the store may be gone
            self.doing(f"ended ({reason})")
            # The first note stays: the others end because of that rank.
            self._store.compare_set(_ENDED, "", f"rank {self._rank} ended: {reason}")

    def end_of_another(self) -> str:
        """The rank that ended by itself, and the reason; empty if there is none, or if it is
        unknown.

        A store that is cut off does not respond, and no time limit covers all of its calls, so a
        thread asks it.
        """
        answers = []

        def ask() -> None:
            with suppress(RuntimeError):  # no such note, or the rank that holds the store is gone
                self._store.wait([_ENDED], timedelta(seconds=_ANSWER_S))
                answers.append(self._store.get(_ENDED).decode())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(2 * _ANSWER_S)
        return answers[0] if answers else ""

    def _others(self) -> str:
        """Describes what the ranks that are not waiting are doing."""
        described = []
        for rank in range(self._world_size):
            what = "starting"
            if self._store.check([str(rank)]):
                what = self._store.get(str(rank)).decode()
            if what != _WAITING:
                described.append(f"rank {rank}: {what}")
        return ", ".join(described)
