"""The recipe for Slurm, submitted to a real one: whatever interrupts a job, it goes on, and ends
with the weights of a job that nothing disturbed."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hosts import HostsUnavailable, ip, wait_for
from slurm import LIMIT_S, Slurm, slurm
from system_packages import SLOW_PACKAGES, missing_packages
from test_launch import SLURM, logged, small_training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, SAVE_EVERY, HELD_AT = 14, 4, 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Slurm]:
    if missing := missing_packages(SLOW_PACKAGES):
        pytest.skip(f"no Slurm here (Debian: {', '.join(missing)})")
    context = slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster = context.__enter__()
    except HostsUnavailable as reason:
        pytest.skip(f"no hosts can be made here: {reason}")
    try:
        yield cluster
    finally:
        context.__exit__(None, None, None)


@dataclass
class Job:
    """A training of two ranks, one on each node, that stops once after step `HELD_AT`."""

    cluster: Slurm
    folder: Path
    number: str

    def wait_until_held(self) -> None:
        wait_for((self.folder / "held").exists, LIMIT_S, self.said)

    def assert_completed(self, least_restarts: int = 0) -> None:
        end = self.cluster.end_of(self.number, self.folder / "job.log")
        assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), self.said()
        assert int(end["Restarts"]) >= least_restarts

    def said(self) -> str:
        log = self.folder / "job.log"
        return log.read_text() if log.exists() else self.cluster.logs()


def submit(
    cluster: Slurm, data: Path, folder: Path, *flags: str, is_held: bool = True, **environment: str
) -> Job:
    program = folder / "redetr"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HELD_TRAIN} "$@"\n')
    program.chmod(0o755)
    if not is_held:
        (folder / "held").touch()
    environment |= {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HELD": str(folder / "held"),
        "HELD_AT": str(HELD_AT),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # `redetr` sets it before PyTorch is imported
    }
    options = ["--gpus-per-node=1", "--cpus-per-task=1", f"--output={folder}/job.log", *flags]
    training = small_training(data, folder / "run", STEPS)
    command = [*options, str(SLURM), *training, f"--save-every={SAVE_EVERY}"]
    return Job(cluster, folder, cluster.submit(command, **environment))


HELD_TRAIN = Path(__file__).with_name("held_train.py")


@pytest.fixture(scope="module")
def undisturbed(cluster, shared_coco, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    job = submit(cluster, shared_coco, folder, is_held=False)
    job.assert_completed()
    assert "2 x cpu" in job.said()
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run" / "last.pt", weights_only=True)["model"]


def assert_undisturbed(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    steps = [line["step"] for line in logged(folder / "run") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    for name, weight in weights(folder).items():
        assert torch.equal(weight, expected[name]), name


def test_a_job_that_is_requeued(cluster, shared_coco, tmp_path, undisturbed):
    job = submit(cluster, shared_coco, tmp_path)
    job.wait_until_held()
    cluster.command("scontrol", "requeue", job.number)
    job.assert_completed(least_restarts=1)
    assert "redetr: stopped by a signal after step" in job.said()
    assert_undisturbed(tmp_path, undisturbed)


def test_a_job_whose_time_is_over(cluster, shared_coco, tmp_path, undisturbed):
    # Slurm may signal up to a minute early; where much else runs, a start takes half a minute.
    job = submit(cluster, shared_coco, tmp_path, "--time=3", "--signal=B:USR1@60")
    job.assert_completed(least_restarts=1)
    assert_undisturbed(tmp_path, undisturbed)


def test_a_job_whose_process_is_killed(cluster, shared_coco, tmp_path, undisturbed):
    """It starts again on the same nodes."""
    job = submit(cluster, shared_coco, tmp_path)
    job.wait_until_held()
    processes = ip("netns", "pids", cluster.hosts["node2"].name).split()
    (rank,) = filter(is_training, processes)
    os.kill(int(rank), signal.SIGKILL)
    job.assert_completed()
    assert "redetr: rank 0 lost another rank" in job.said()
    assert "redetr is restarted after exit code 137" in job.said()
    assert_undisturbed(tmp_path, undisturbed)


def is_training(pid: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return str(HELD_TRAIN) in words


def test_a_job_whose_node_dies(cluster, shared_coco, tmp_path, undisturbed):
    """All its processes are killed, those of Slurm too. Later, it is back. Slurm counts a restart,
    and says why in the log only if the job is still running when it notices."""
    job = submit(cluster, shared_coco, tmp_path)
    job.wait_until_held()
    cluster.hosts["node2"].kill()
    wait_for(lambda: cluster.job(job.number)["Restarts"] == "1", LIMIT_S, job.said)
    cluster.start_node("node2")
    job.assert_completed(least_restarts=1)
    assert "redetr: rank 0 lost another rank" in job.said()
    assert_undisturbed(tmp_path, undisturbed)


def test_the_log_of_a_job_ends_with_what_was_wrong(cluster, tmp_path):
    """Two processes on each node without GPUs, one line each, and no traceback."""
    nothing = tmp_path / "nothing"
    job = submit(
        cluster, nothing, tmp_path, "--gpus-per-node=0", "--cpus-per-task=2", PROCESSES="2"
    )
    end = cluster.end_of(job.number, tmp_path / "job.log")
    assert (end["JobState"], end["ExitCode"]) == ("FAILED", "1:0")
    lines = job.said().splitlines()
    of_slurm = [line for line in lines if line.startswith("srun: ")]
    of_redetr = [line for line in lines if line not in of_slurm]
    assert len(of_redetr) == 4, lines
    for line in of_redetr:
        assert line.startswith(f"redetr: {nothing}: no such folder; give "), lines
