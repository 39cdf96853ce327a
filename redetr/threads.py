"""How many threads compute, and how they wait for each other where other programs want the cores.

On a CPU, the threads of an operation meet at its end. By default those of libgomp, which PyTorch
uses on Linux, spin while they wait: fastest on free cores. Where another program wants a core as
well, they spin on the very core that the last thread is waiting for. Threads that sleep early are
a little slower on free cores, and up to five times as fast on busy ones (`benchmarks/busy.py`).
"""

import os
from collections.abc import MutableMapping
from contextlib import suppress

from redetr.errors import InputError

SPIN_COUNT = "1000"  # rounds of waiting, a few microseconds; by default thousands of millions
# What a user may set to decide it, of libgomp and of any OpenMP.
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_SPARE = 0.5  # of a core: a lower load is that of a system at rest


def load() -> float:
    """How many threads have run or waited for a core, on average over the last minute; 0 where the
    system does not say."""
    with suppress(OSError, AttributeError):  # the latter on Windows
        return os.getloadavg()[0]
    return 0.0


def wait_politely(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes the threads of this process, and of those that it starts, sleep early while they wait,
    if other programs use the cores and the user has not decided it.

    Call it before PyTorch is imported: libgomp reads its settings once.
    """
    if any(name in environment for name in _VARIABLES):
        return
    if load() > _SPARE:
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


def crowding() -> list[str]:
    """A note where other programs keep cores busy that this process wants."""
    import torch

    threads = torch.get_num_threads()
    cores = os.cpu_count() or 1
    busy = load()
    free = cores - busy
    if threads == 1 or busy <= _SPARE or free >= threads:
        return []
    fewer = max(1, min(threads - 1, round(free)))
    return [
        f"note: {threads} threads compute, and the load of this machine with {cores} cores was "
        f"{busy:.1f} in the last minute: if other programs stay that busy, try --threads {fewer}"
    ]
