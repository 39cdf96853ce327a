"""What the process frees stays with it. In processes of their own: this lasts as long as the
process."""

import ctypes
import resource
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from forked import in_fork

from redetr import cli
from redetr.memory import keep_memory

_PR_SET_THP_DISABLE = 41  # of Linux
PAGES = (1 << 26) // resource.getpagesize()  # of an array of 64 MB


class Command:
    """One that does nothing but import what predicts."""

    def run(self) -> None:
        import_module("redetr.detector.detector")


def faults(how: str) -> int:
    """Pages that twenty large arrays, one after the other, have to ask the system for.

    For a process of its own, in which pages are not huge.
    """
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if how == "command line":
        cli.parse_command = lambda arguments: Command()
        cli.main(["predict"])
    import_module("redetr.detector.detector")
    torch.zeros(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems have no mallopt")
def test_the_command_line_uses_freed_memory_again():
    """Most of the twenty arrays: where the heap grows, the first few may ask for pages of their
    own."""
    assert in_fork(faults, "command line") < 10 * PAGES


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems have no mallopt")
def test_importing_changes_nothing_for_a_program_that_does_not_ask():
    assert in_fork(faults, "given back") > 19 * PAGES


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems have no mallopt")
@pytest.mark.parametrize(
    ("most", "kept"), [(2**40, (2**31 - 1, 2**31 - 1)), (2**25, (2**25, 2**31 - 1)), (0, ())]
)
def test_an_older_glibc_takes_32_mb(most, kept, monkeypatch):
    """Which says no to more. Without the threshold for mmap (-3), the one for giving back (-1)
    would do harm."""
    taken = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > most:
            return 0
        taken[parameter] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_memory()
    assert taken == dict(zip((-3, -1), kept, strict=False))
