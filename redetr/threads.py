"""How many threads compute, and how they wait for each other where other programs want the cores.

On a CPU, the threads of an operation meet at its end. By default those of libgomp, which PyTorch
uses on Linux, spin while they wait: fastest on free cores. Where another program wants a core as
well, they spin on the very core that the last thread is waiting for. Threads that sleep early are
slower on free cores, and up to five times as fast on busy ones (`benchmarks/busy.py`).
"""

import math
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from redetr.errors import InputError
from redetr.wording import counted

if TYPE_CHECKING:  # PyTorch reads the environment when it is imported
    from redetr.choices import ImageSize
    from redetr.structures import DetectionModel

SPIN_COUNT = "1000"  # rounds of waiting, some 20 microseconds; by default 300 times as many
# Variables by which a user decides how threads wait: libgomp's own, and that of any OpenMP.
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_CGROUP = Path("/sys/fs/cgroup")
_PROCESSOR_TIMES = Path("/proc/stat")
_SPARE = 0.5  # of a core: a lower load is that of a system at rest
_SAMPLE_S = 0.2  # of the load at this moment; the system counts in hundredths of a second


def load() -> float:
    """How many threads have run or waited for a core, on average over the last minute; 0 where the
    system does not say."""
    with suppress(OSError, AttributeError):  # the latter on Windows
        return os.getloadavg()[0]
    return 0.0


class _ProcessorTime(NamedTuple):
    """Seconds since the system started, summed over its cores."""

    busy: float
    idle: float


def _processor_time() -> _ProcessorTime | None:
    """None where the system does not count it."""
    try:
        line = _PROCESSOR_TIMES.read_text().splitlines()[0]
        ticks = [int(field) for field in line.split()[1:8]]
        user, nice, system, idle, waiting, interrupts, soft_interrupts = ticks
    except (OSError, ValueError, IndexError):
        return None
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + interrupts + soft_interrupts
    return _ProcessorTime(busy / ticks_per_s, (idle + waiting) / ticks_per_s)


def _busy_now() -> float | None:
    """How many cores other processes use at this moment; None where the system does not say."""
    before = _processor_time()
    if before is None:
        return None
    own_before_s = time.process_time()
    time.sleep(_SAMPLE_S)
    own_s = time.process_time() - own_before_s
    after = _processor_time()
    if after is None:
        return None
    busy = after.busy - before.busy
    idle = after.idle - before.idle
    if busy + idle == 0:  # some sandboxes report zeros
        return None
    share = max(0.0, busy - own_s) / (busy + idle)
    return share * (os.cpu_count() or 1)


def busy_cores() -> float:
    """How many cores of the machine other programs keep busy; 0 where the system does not say.

    It is the load of the last minute, or what a fifth of a second shows if that is less: programs
    that have just ended still count in the load.
    """
    recent = load()
    if recent <= _SPARE:
        return recent
    now = _busy_now()
    return recent if now is None else min(recent, now)


def wait_politely(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes the threads of this process, and of those that it starts, sleep early while they wait,
    if other programs use the cores and the user has not decided it.

    Call it before PyTorch is imported: libgomp reads its settings once.
    """
    if any(name in environment for name in _VARIABLES):
        return
    if busy_cores() > _SPARE:
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def use_threads(count: int | None) -> None:
    """Sets the number of compute threads; None leaves it as it is. Raises InputError for a
    number below 1."""
    import torch

    if count is None:
        return
    if count < 1:
        raise InputError(f"--threads {count} must be at least 1")
    torch.set_num_threads(count)


@contextmanager
def restored_threads() -> Iterator[None]:
    """A context, or a decorator, after which as many threads compute as before."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def cores() -> int:
    """How many cores this process may keep busy: those that it may run on, or fewer if a container
    limits its time."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, round(min(count, _time_limit())))


def _time_limit() -> float:
    """Seconds of processor time per second that a container's limit allows (`docker --cpus`)."""
    with suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):  # version 1, in which -1 is no limit
        quota = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text()
        period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            return int(quota) / int(period)
    return math.inf


def free_threads(busy: float) -> int | None:
    """How many of PyTorch's threads can have a core of their own, if not all of them can: other
    programs keep `busy` cores busy, or a container limits the time on them. None if all can."""
    import torch

    threads = torch.get_num_threads()
    free: float = cores()
    if busy > _SPARE:
        free = min(free, (os.cpu_count() or 1) - busy)
    if threads == 1 or free >= threads:
        return None
    return max(1, min(threads - 1, round(free)))


class ThreadChoice(NamedTuple):
    """A number of threads, and the trial that chose it."""

    threads: int
    rejected: int
    gain: float  # how many times as fast as the rejected number

    @property
    def reason(self) -> str:
        comparison = f"{self.gain:.2f} times as fast as {self.rejected}"
        if self.gain < 1:  # too little to change the number
            comparison = f"{self.rejected} is only {1 / self.gain:.2f} times as fast"
        return (
            f"threads: {self.threads} ({comparison}), because other programs or a container limit "
            "take CPU time (override with --threads)"
        )


def pick_threads(
    model: "DetectionModel", image_size: "ImageSize", gradient: bool = False, batch_size: int = 1
) -> ThreadChoice | None:
    """Makes PyTorch compute on fewer threads if not all of them can have a core of their own and a
    trial of about half a second shows that fewer are faster. None if there was no trial.

    The model is on a CPU and works on `batch_size` images at once, with backward passes if
    `gradient` is True. OMP_NUM_THREADS in the environment is the user's decision.
    """
    import torch

    from redetr.trial import WORTHWHILE, times_faster, trial_pass

    fewer = free_threads(busy_cores())
    if fewer is None or "OMP_NUM_THREADS" in os.environ:
        return None
    before = torch.get_num_threads()
    with trial_pass(model, image_size, gradient, batch_size) as run:

        def run_on(count: int) -> None:
            torch.set_num_threads(count)
            run()

        gain = times_faster(lambda: run_on(fewer), lambda: run_on(before))
    if gain >= WORTHWHILE:
        choice = ThreadChoice(fewer, before, gain)
    else:
        choice = ThreadChoice(before, fewer, 1 / gain)
    torch.set_num_threads(choice.threads)
    return choice


def crowding() -> list[str]:
    """A note where not all threads have a core of their own."""
    import torch

    busy = busy_cores()
    fewer = free_threads(busy)
    if fewer is None:
        return []
    threads = torch.get_num_threads()
    note = f"note: {threads} threads compute on {counted(cores(), 'usable core')}"
    if busy > _SPARE:
        note += f", and other programs keep {busy:.1f} cores of the machine busy"
    return [f"{note}: try --threads {fewer}"]
