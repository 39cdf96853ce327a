"""What the process frees stays with it. In processes of their own: this lasts as long as the
process."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from redetr.detector.memory import keep_memory

# Pages that twenty large arrays, one after the other, have to ask the system for; each has 16,384
# pages of 4 kB.
FAULTS = """
import resource, sys
from redetr import cli
class Command:
    def run(self):
        import redetr.detector.detector
if sys.argv[1] == "command line":
    cli.parse_command = lambda arguments: Command()
    cli.main(["predict"])
import redetr.detector.detector
import torch
torch.zeros(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems have no mallopt")
def test_the_command_line_uses_freed_memory_again():
    """Most of the twenty arrays: where the heap grows, the first few may ask for pages of their
    own."""
    assert faults("command line") < 10 * 16384


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: other systems have no mallopt")
def test_importing_changes_nothing_for_a_program_that_does_not_ask():
    assert faults("given back") > 19 * 16384


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
