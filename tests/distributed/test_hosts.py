"""Training over several hosts goes on when one of them dies, and sees each image once an epoch all
the same.

Hosts are network namespaces (`hosts.py`), each with a torchrun of its own; the run folder is
shared, as it must be. The store of torchrun's rendezvous lies on the first host: its loss ends the
job, and is not tried here. The job is then started again by hand or by the batch system, with
`--resume`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import launcher_environment
from hosts import PORT, Host, HostsUnavailable, network, wait_for

from redetr.cli import main

# Epochs and steps end together every 8 steps only. No number of hosts above 1 divides the batch.
STEPS, BATCH, IMAGES, SAVE_EVERY = 24, 7, 8, 2
# where the host that will die waits for it: one step after a checkpoint, in the middle of an epoch
HELD_AT = 7
SMALL = ["backbone=[16,32,64]", "hidden_dim=32", "nheads=4", "dec_layers=2", "dim_feedforward=64"]

# A host without a sign of life for 4 s is dead; where there are fewer hosts than there may be, 3 s
# pass for one more.
RENDEZVOUS = "join_timeout=120,last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=4"
# Else torchrun starts workers anew on the store of the first round, whose place a host that comes
# later is not told.
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LIMIT_S = 240  # for each thing that is waited for


def train_arguments(data: Path, output: Path, timeout_s: int = 120) -> list[str]:
    """A small model; all its random numbers are functions of seed, epoch and image id."""
    flags = {
        "data": data,
        "output": output,
        "steps": STEPS,
        "batch-size": BATCH,
        "image-size": 64,
        "lr": 1e-3,
        "device": "cpu",
        "precision": "fp64",
        "num-workers": 0,
        "log-every": 1,
        "eval-every": STEPS,
        "save-every": SAVE_EVERY,
        "timeout-s": timeout_s,
    }
    return [
        "train",
        "redetr_n",
        *(f"--{k}={v}" for k, v in flags.items()),
        "--resume",
        "--model-options",
        *SMALL,
    ]


@dataclass
class Job:
    """A training run over `hosts`, in the folder `run` of `folder`. `timeout_s` is how long a rank
    waits for others."""

    hosts: list[Host]
    data: Path
    folder: Path
    timeout_s: int = 120
    in_forks: bool = False  # which start at once, and enter the host's network

    def start(self, host: Host, *hold: str) -> subprocess.Popen:
        """A torchrun on this host, with one process. `hold`: where to stop, as `traced_train.py`
        tells.

        A host that comes late finds the others held at the first step they do without it.
        """
        early = [f"{world}:1" for world in range(1, len(self.hosts))]
        first, trace = self.hosts[0], self.folder / "trace"
        trace.mkdir(exist_ok=True)
        launcher = {}
        python = sys.executable
        if self.in_forks:
            launcher = launcher_environment()
            python = launcher["PYTHON_EXEC"]
        command = [
            python,
            "-m",
            "torch.distributed.run",
            f"--nnodes=1:{len(self.hosts)}",
            "--nproc-per-node=1",
            "--max-restarts=3",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={first.address}:{PORT}",
            "--rdzv-id=job",
            f"--rdzv-conf=is_host={int(host is first)},{RENDEZVOUS}",
            f"--local-addr={host.address}",
            str(Path(__file__).with_name("traced_train.py")),
            *train_arguments(self.data, self.folder / "run", self.timeout_s),
        ]
        return host.start(
            command,
            self._log(host),
            GLOO_SOCKET_IFNAME="eth0",
            OMP_NUM_THREADS=os.environ["OMP_NUM_THREADS"],
            TRACE=str(trace),
            HOLD=",".join([*early, *hold]),
            **NEW_STORE,
            **launcher,
        )

    def lines(self) -> list[dict[str, Any]]:
        """What all processes have traced so far, in order of time."""
        texts = [file.read_text() for file in (self.folder / "trace").iterdir()]
        lines = [json.loads(line) for text in texts for line in text.split("\n")[:-1]]
        return sorted(lines, key=lambda line: line["at"])

    def wait_for_step(self, step: int, world: int) -> None:
        """Until all `world` processes have done `step`."""
        wanted = {"step": step, "world": world}
        self._wait(
            lambda: (
                len({line["rank"] for line in self.lines() if wanted.items() <= line.items()})
                == world
            ),
            f"{wanted} is not reached",
        )

    def exit_code(self, torchrun: subprocess.Popen) -> int:
        self._wait(lambda: torchrun.poll() is not None, f"{torchrun.args} does not end")
        return torchrun.wait()

    def said(self) -> str:
        """The end of what was printed on each host."""
        logs = [(host.address, self._log(host)) for host in self.hosts]
        return "\n".join(
            f"--- {address}\n{log.read_text()[-3000:]}" for address, log in logs if log.exists()
        )

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        wait_for(condition, LIMIT_S, lambda: f"{complaint}\n{self.said()}")

    def _log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"


@pytest.fixture
def hosts(request) -> Iterator[list[Host]]:
    """Two hosts, or as many as the test is parametrized with."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network(getattr(request, "param", 2)))
        except HostsUnavailable as reason:
            pytest.skip(f"no hosts can be made here: {reason}")
        yield made


@pytest.fixture(scope="module")
def alone(shared_coco, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights after the same steps in one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    main(train_arguments(shared_coco, folder))
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def last_executions(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """For each optimizer step, the lines of all ranks that did it last, rank 0 first."""
    of_step: dict[int, list[dict[str, Any]]] = {step: [] for step in range(1, STEPS + 1)}
    for line in lines:
        of_step[line["step"]].append(line)
    last = [lines[-lines[-1]["world"] :] for lines in of_step.values()]
    return [sorted(lines, key=lambda line: line["rank"]) for lines in last]


def worlds(steps: list[list[dict[str, Any]]]) -> list[tuple[int, int]]:
    """(processes, steps) of each part of the run."""
    return [
        (world, len(list(part))) for world, part in groupby(ranks[0]["world"] for ranks in steps)
    ]


def assert_each_image_once_an_epoch(steps: list[list[dict[str, Any]]]) -> None:
    """Over all ranks and incarnations: none twice, none left out, one epoch after the other."""
    for ranks in steps:
        assert [line["rank"] for line in ranks] == list(range(ranks[0]["world"])), ranks
    seen = [tuple(image) for ranks in steps for line in ranks for image in line["images"]]
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    assert sorted(seen) == [
        (epoch, image) for epoch in range(STEPS * BATCH // IMAGES) for image in range(IMAGES)
    ]


def assert_same_weights(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of sums, in fp64: over many steps, the rounding of fp32 would
    grow."""
    found = weights(folder)
    assert found.keys() == expected.keys()
    errors = {
        name: ((found[name] - w).norm() / w.norm().clamp(min=1e-12)).item()
        for name, w in expected.items()
    }
    assert {name: error for name, error in errors.items() if not error < 1e-9} == {}


@pytest.mark.long
@pytest.mark.parametrize(
    "hosts", [2, pytest.param(3, marks=pytest.mark.slow)], indirect=True, ids="{} hosts".format
)
def test_the_job_goes_on_without_a_host_that_died(hosts, shared_coco, tmp_path, alone):
    is_default_tier = len(hosts) == 2
    job = Job(hosts, shared_coco, tmp_path, in_forks=is_default_tier)
    *others, last = hosts
    torchruns = [job.start(host) for host in others]
    job.start(last, f"{len(hosts)}:{HELD_AT}")
    job.wait_for_step(HELD_AT, world=len(hosts))
    last.kill()
    assert [job.exit_code(torchrun) for torchrun in torchruns] == [0] * len(others), job.said()
    steps = last_executions(job.lines())
    *_, (together, _), (left, after) = worlds(steps)
    assert (together, left, after) == (len(hosts), len(others), STEPS - HELD_AT + 1)
    assert_each_image_once_an_epoch(steps)
    assert_same_weights(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_host_whose_power_fails_is_given_up_and_may_come_back(
    hosts, shared_coco, tmp_path, alone
):
    """Nothing tells the others that it is gone: `--timeout-s` does. Later it joins the job that
    went on without it."""
    job = Job(hosts, shared_coco, tmp_path, timeout_s=20)
    first, second = hosts
    torchrun = job.start(first, "1:13")
    job.start(second, f"2:{HELD_AT}")
    job.wait_for_step(HELD_AT, world=2)
    second.cut()
    second.kill()
    job.wait_for_step(13, world=1)
    second.plug()
    returned = job.start(second)
    assert (job.exit_code(torchrun), job.exit_code(returned)) == (0, 0), job.said()
    steps = last_executions(job.lines())
    *_, (together, _), (left, _), (again, after) = worlds(steps)
    assert (together, left, again) == (2, 1, 2)
    assert 0 < after < STEPS - 12
    assert_each_image_once_an_epoch(steps)
    assert_same_weights(tmp_path / "run", alone)
