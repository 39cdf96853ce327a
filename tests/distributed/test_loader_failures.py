"""Loader processes that die, hang or lack shared memory: the run says so, and nothing is left."""

import ctypes
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import lines_of, told, train_arguments, wait_for_step
from forked import Fork

from redetr.signals import StopSignals

# In fp64, rounding does not grow over a run.
EXACT = {"precision": "fp64", "log_every": 1, "eval_every": 100}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def loaders(process: Fork) -> list[int]:
    """The loader processes of a run."""
    pids = children(process.pid)
    return [pid for pid in pids if "redetr" in Path(f"/proc/{pid}/cmdline").read_text()]


def has_ended(pid: int) -> bool:
    """Also if the process that has to notice it, such as the first one of a container, does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    _, _, after_name = status.rpartition(") ")
    return after_name.startswith("Z")


def report_signals(file: Path) -> None:
    """In this process: creates the file once a run has handled a signal."""
    handle = StopSignals.handle

    def reporting(self: StopSignals, number: int, frame: Any) -> None:
        handle(self, number, frame)
        file.touch()

    StopSignals.handle = reporting  # type: ignore[method-assign]


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(signal.SIGKILL, "a loader process died, ", id="dies"),
        pytest.param(signal.SIGSTOP, "loader processes did not respond within 3 s: ", id="hangs"),
    ],
)
def test_a_loader_process_that(number, said, shared_coco, tmp_path):
    settings = {"steps": 100_000, "num_workers": 1, "loader_timeout_s": 3}
    process = Fork(train_arguments(shared_coco, tmp_path / "run", **settings, **EXACT))
    try:
        wait_for_step(tmp_path / "run", 2, process)
        (worker,) = loaders(process)
        os.kill(worker, number)
        line = told(process)
    finally:
        process.kill()
    assert line.startswith(f"redetr: {said}")
    assert "--num-workers" in line
    assert has_ended(worker)


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once(shared_coco, tmp_path):
    """Without a word, and nothing is left: here while the run waits for a loader that hangs."""
    folder = tmp_path / "run"
    settings = {"steps": 100_000, "num_workers": 1, "loader_timeout_s": 1000}
    handled = tmp_path / "handled"
    arguments = train_arguments(shared_coco, folder, **settings, **EXACT)
    process = Fork(arguments, prepare=[partial(report_signals, handled)])
    try:
        wait_for_step(folder, 2, process)
        (worker,) = loaders(process)
        os.kill(worker, signal.SIGSTOP)
        steps = 0
        while steps < len(lines_of(folder)):  # the batches that were loaded before
            steps = len(lines_of(folder))
            time.sleep(2)
        process.send_signal(signal.SIGINT)
        while not handled.exists():  # the system would make one signal of both
            assert process.poll() is None
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("step "), errors
    assert has_ended(worker)
    assert not list(folder.glob(".unfinished*"))


_CLONE_NEWNS = 0x00020000  # of <sched.h>


def limit_shared_memory(size: str) -> None:
    """Gives this process, in a mount namespace of its own, so little of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace can be made here")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


@pytest.fixture(scope="module")
def can_mount() -> None:
    tried = Fork.calling(limit_shared_memory, "32k")
    _, errors = tried.communicate(timeout=60)
    if tried.returncode:
        reason = errors.strip().splitlines()[-1]
        pytest.skip(f"no mounts can be made here: {reason}")


@pytest.mark.usefixtures("can_mount")
def test_batches_that_shared_memory_does_not_hold(shared_coco, tmp_path):
    """They travel through pipes, and are those of a run without loader processes."""
    alone_folder, little = tmp_path / "alone", tmp_path / "little"
    limit = partial(limit_shared_memory, "400k")
    process = Fork(train_arguments(shared_coco, little, num_workers=1), prepare=[limit])
    alone = Fork(train_arguments(shared_coco, alone_folder))
    _, errors = alone.communicate(timeout=120)
    assert alone.returncode == 0, errors
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    losses = []
    for folder in (alone_folder, little):
        losses.append([line.get("loss") for line in lines_of(folder)])
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("can_mount")
def test_too_little_shared_memory_for_loader_processes(shared_coco, tmp_path):
    limit = partial(limit_shared_memory, "32k")
    arguments = train_arguments(shared_coco, tmp_path / "run", num_workers=1)
    process = Fork(arguments, prepare=[limit])
    line = told(process)
    assert "--shm-size" in line and "--num-workers 0" in line
