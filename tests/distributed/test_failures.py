"""Runs that fail: they say why, end on every rank, and lose nothing that was saved.

Ranks are real processes, started as torchrun starts them.
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from command_line import SMALL, lines_of, run, start, train_arguments
from torch import Tensor

import redetr
from redetr.distributed import process_group
from redetr.losses import SetCriterion

EXACT = {
    "precision": "fp64",
    "log_every": 1,
    "eval_every": 100,
}  # rounding does not grow over a run


def start_ranks(world_size: int, arguments: list[Any]) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            arguments,
            {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world_size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "LOCAL_WORLD_SIZE": world_size,
            },
        )
        for rank in range(world_size)
    ]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(lines_of(folder)) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(process: subprocess.Popen) -> str:
    """The one line that a failed process ends with."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors, errors
    return errors.strip().splitlines()[-1]


def weights(folder: Path) -> Tensor:
    state = torch.load(folder / "last.pt", weights_only=True)
    return torch.cat(
        [tensor.flatten() for name in ("model", "ema") for tensor in state[name].values()]
    )


@pytest.fixture(scope="module")
def whole(shared_coco, tmp_path_factory) -> Path:
    """A run of twenty steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = run(train_arguments(shared_coco, folder, steps=20, **EXACT))
    assert code == 0, errors
    return folder


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="dies"),
        pytest.param(signal.SIGSTOP, id="hangs", marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_ends_the_others_and_fewer_go_on(shared_coco, tmp_path, whole, how):
    """The other rank says so; resumed by one process in the middle of an epoch, the run ends as if
    nothing had been."""
    folder = tmp_path / "run"
    arguments = [
        *train_arguments(shared_coco, folder, steps=20, save_every=1, timeout_s=8, **EXACT),
        "--resume",
    ]
    first, second = ranks = start_ranks(2, arguments)
    try:
        wait_for_step(folder, 3, first)
        second.send_signal(how)
        line = told(first)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert line.startswith(
        "redetr: rank 0 lost another rank: it died, or did not answer within 8 s"
    )
    code, _, errors = run(arguments)
    assert code == 0, errors
    assert "resumed from" in errors
    difference = weights(folder) - weights(whole)
    assert difference.norm() < 1e-12 * weights(whole).norm()
    assert [line["step"] for line in lines_of(folder)] == [line["step"] for line in lines_of(whole)]


def diverging_rank(rank: int, port: int, folder: Path, data: Path) -> None:
    """Rank 1 meets a loss that is not a number in its third step; each rank writes what it is
    told."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    forward, calls = SetCriterion.forward, []

    def poisoned(
        self: SetCriterion, outputs: Any, targets: Any, denominators: Any
    ) -> dict[str, Tensor]:
        calls.append([target["image_id"] for target in targets])
        losses = forward(self, outputs, targets, denominators)
        if rank == 1 and len(calls) == 3:
            losses |= {
                "loss_giou": losses["loss_giou"] * torch.nan,
                "loss": losses["loss"] * torch.nan,
            }
        return losses

    SetCriterion.forward = poisoned  # type: ignore[method-assign]
    config = redetr.TrainConfig(
        model="redetr_n",
        data=str(data),
        output=str(folder / "run"),
        steps=9,
        batch_size=4,
        image_size=64,
        log_every=2,
        eval_every=9,
        save_every=2,
        model_options=tuple(SMALL),
        device="cpu",
        precision="fp32",
        num_workers=0,
    )
    try:
        redetr.train(config)
    except redetr.DivergedError as error:
        (folder / f"{rank}.json").write_text(json.dumps({"said": str(error), "images": calls}))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(shared_coco, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(diverging_rank, (port, tmp_path, shared_coco), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["said"] == found[1]["said"]
    assert found[0]["said"].startswith(
        f"step 3: not finite: loss_giou, loss; images {found[1]['images'][2]};"
    )
    assert (
        torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 2
    )  # nothing broken was saved


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def slow_rank(rank: int, port: int, folder: Path, limit_s: float, ending: str) -> None:
    """Rank 1 takes 3 s for what rank 0 remembers, or ends before; each writes what it is told."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = "ready"
    try:
        with process_group("cpu", timeout_s=1, setup_timeout_s=limit_s) as dist:
            dist.doing("reading the annotations")
            if rank == 1 and ending == "error":
                raise redetr.InputError("no such folder", where="data")
            if rank == 1 and ending == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1:
                time.sleep(3)
            dist.meet()
            said += str(dist.gather([rank]))
    except redetr.RedetrError as error:
        said = str(error)
    (folder / f"{rank}.txt").write_text(said)


@pytest.mark.parametrize(
    ("limit_s", "ending", "said"),
    [
        (60, "", r"ready\[0, 1\]"),
        (1, "", r"rank 0 waited 1 s in the set-up for rank 1: reading the annotations; "),
        (60, "error", r"rank 0 waited \d s in the set-up for rank 1: ended \(data: no such fol"),
        (60, "kill", r"rank 0 waited \d s in the set-up for rank 1: reading the annotations; "),
    ],
)
def test_ranks_that_are_set_up_at_unequal_speed(tmp_path, limit_s, ending, said):
    """They wait longer than between steps, and know for whom."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("fork")  # torch is imported already
    arguments = (port, tmp_path, limit_s, ending)
    ranks = [context.Process(target=slow_rank, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert re.match(said, (tmp_path / "0.txt").read_text())


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
    """They travel through pipes, and are the same."""
    folders = [tmp_path / "plenty", tmp_path / "little"]
    losses = []
    for folder, within in zip(folders, ((), shared_memory_of("400k")), strict=True):
        arguments = train_arguments(shared_coco, folder, num_workers=1)
        code, _, errors = run(arguments, within=within)
        assert code == 0 and "Traceback" not in errors, errors
        losses.append([line.get("loss") for line in lines_of(folder)])
    assert losses[0] == losses[1]


def test_too_little_shared_memory_for_loader_processes(shared_coco, tmp_path):
    within = shared_memory_of("32k")
    process = start(train_arguments(shared_coco, tmp_path / "run", num_workers=1), within=within)
    line = told(process)
    assert "--shm-size" in line and "--num-workers 0" in line


def test_a_full_disk_keeps_the_last_checkpoint(shared_coco, whole, tmp_path):
    """A limit on the size of files stands for it: the checkpoint cannot be written, all else
    can."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "last.pt", tmp_path / "before.pt")
    limit = (folder / "last.pt").stat().st_size // 2
    process = start(
        [*train_arguments(shared_coco, folder, steps=20, **EXACT), "--resume"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    line = told(process)
    assert re.match(r"redetr: \S+/last.pt: cannot be written \(\d+ MB are free there\)", line), line
    assert (folder / "last.pt").read_bytes() == (tmp_path / "before.pt").read_bytes()
    assert not list(folder.glob(".unfinished*"))


def test_a_run_killed_at_any_moment_ends_the_same_bit_for_bit(shared_coco, whole, tmp_path):
    """Twice; `benchmarks/kill.py` does it twenty times, at moments spread over start, steps and
    saving."""
    folder = tmp_path / "run"
    arguments = [*train_arguments(shared_coco, folder, steps=20, save_every=1, **EXACT), "--resume"]
    for step in (2, 11):
        process = start(arguments)
        try:
            wait_for_step(folder, step, process)
        finally:
            process.kill()
            process.communicate()
    code, _, errors = run(arguments)
    assert code == 0, errors
    assert torch.equal(weights(folder), weights(whole))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_hosts_that_do_not_share_the_output_folder(shared_coco, whole, tmp_path):
    """Rank 1 finds no checkpoint where rank 0 does."""
    shutil.copytree(whole, tmp_path / "host0" / "run")
    (tmp_path / "host1").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*train_arguments(shared_coco, Path("run"), steps=20, **EXACT), "--resume"]
    ranks = [
        start(
            arguments,
            {
                "RANK": rank,
                "LOCAL_RANK": 0,
                "WORLD_SIZE": 2,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            cwd=tmp_path / f"host{rank}",
        )
        for rank in range(2)
    ]
    for rank in ranks:
        assert "of steps [20.0, 0.0]: --output must be a folder that all hosts share" in told(rank)
