"""Loader processes that die, hang or lack shared memory: the run says so, and nothing is left."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import lines_of, start, told, train_arguments, wait_for_step
from forked import Fork

# In fp64, rounding does not grow over a run.
EXACT = {"precision": "fp64", "log_every": 1, "eval_every": 100}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def loaders(process: subprocess.Popen) -> list[int]:
    """The loader processes of a run."""
    pids = children(process.pid)
    return [pid for pid in pids if "redetr" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(signal.SIGKILL, "a loader process died, ", id="dies"),
        pytest.param(signal.SIGSTOP, "loader processes did not answer within 3 s: ", id="hangs"),
    ],
)
def test_a_loader_process_that(number, said, shared_coco, tmp_path):
    settings = {"steps": 100_000, "num_workers": 1, "loader_timeout_s": 3}
    process = start(train_arguments(shared_coco, tmp_path / "run", **settings, **EXACT))
    try:
        wait_for_step(tmp_path / "run", 2, process)
        (worker,) = loaders(process)
        os.kill(worker, number)
        line = told(process)
    finally:
        process.kill()
    assert line.startswith(f"redetr: {said}")
    assert "--num-workers" in line
    assert not Path(f"/proc/{worker}").exists()


def test_a_second_ctrl_c_ends_at_once(shared_coco, tmp_path):
    """Without a word, and nothing is left: here while the run waits for a loader that hangs."""
    folder = tmp_path / "run"
    settings = {"steps": 100_000, "num_workers": 1, "loader_timeout_s": 1000}
    process = start(train_arguments(shared_coco, folder, **settings, **EXACT))
    try:
        wait_for_step(folder, 2, process)
        (worker,) = loaders(process)
        os.kill(worker, signal.SIGSTOP)
        steps = 0
        while steps < len(lines_of(folder)):  # the batches that were loaded before
            steps = len(lines_of(folder))
            time.sleep(2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("step "), errors
    assert not Path(f"/proc/{worker}").exists()
    assert not list(folder.glob(".unfinished*"))


def shared_memory_of(size: str) -> tuple[str, ...]:
    """What runs a command with so little of it."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    within = ("unshare", "--mount", "sh", "-c", mount, "sh")
    try:
        tried = subprocess.run([*within, "true"], capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mounts can be made here: {error}")
    if tried.returncode:
        pytest.skip(f"no mounts can be made here: {tried.stderr.strip()}")
    return within


def test_batches_that_shared_memory_does_not_hold(shared_coco, tmp_path):
    """They travel through pipes, and are those of a run without loader processes."""
    alone_folder, little = tmp_path / "alone", tmp_path / "little"
    within = shared_memory_of("400k")
    process = start(train_arguments(shared_coco, little, num_workers=1), within=within)
    alone = Fork(train_arguments(shared_coco, alone_folder))
    _, errors = alone.communicate(timeout=120)
    assert alone.returncode == 0, errors
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    losses = []
    for folder in (alone_folder, little):
        losses.append([line.get("loss") for line in lines_of(folder)])
    assert losses[0] == losses[1]


def test_too_little_shared_memory_for_loader_processes(shared_coco, tmp_path):
    within = shared_memory_of("32k")
    process = start(train_arguments(shared_coco, tmp_path / "run", num_workers=1), within=within)
    line = told(process)
    assert "--shm-size" in line and "--num-workers 0" in line
