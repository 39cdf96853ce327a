"""Runs that are cut off: they say why, end on every rank, and lose nothing that was saved.

Ranks are real processes, with the environment that torchrun gives them.
"""

import itertools
import os
import re
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lines_of, told, train_arguments, wait_for_step
from forked import Fork, start_ranks
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from redetr import evaluation
from redetr.postprocess import decode

_HELD_FROM = 14  # steps
# In fp64, rounding does not grow over a run.
EXACT = {"precision": "fp64", "log_every": 1, "eval_every": 100}


def finish(arguments: list[Any]) -> str:
    """What a run that succeeds reports."""
    process = Fork(arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def weights(folder: Path) -> Tensor:
    state = torch.load(folder / "last.pt", weights_only=True)
    return torch.cat(
        [tensor.flatten() for name in ("model", "ema") for tensor in state[name].values()]
    )


def hold_steps(released: Path) -> None:
    """In this process, all optimizer steps but the first ones wait until the file exists.

    So that a run does not end before the test has interrupted it.
    """
    numbers = itertools.count(1)

    def hold(*_: Any) -> None:
        if next(numbers) < _HELD_FROM:
            return
        while not released.exists():
            time.sleep(0.01)

    register_optimizer_step_post_hook(hold)


@pytest.fixture(scope="module")
def whole(shared_coco, tmp_path_factory) -> Path:
    """A run of twenty steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(train_arguments(shared_coco, folder, steps=20, **EXACT))
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
    released = tmp_path / "released"
    first, second = ranks = start_ranks(2, arguments, prepare=[partial(hold_steps, released)])
    try:
        wait_for_step(folder, 3, first)
        second.send_signal(how)
        released.touch()
        line = told(first, code=1)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert line.startswith(
        "redetr: rank 0 lost another rank: it died, or did not respond within 8 s"
    )
    assert "resumed from" in finish(arguments)
    difference = weights(folder) - weights(whole)
    assert difference.norm() < 1e-12 * weights(whole).norm()
    assert [line["step"] for line in lines_of(folder)] == [line["step"] for line in lines_of(whole)]


def wait_in_evaluations(folder: Path) -> None:
    """In this process, each batch of an evaluation leaves a file, and the first one waits until the
    test has written another."""

    def decode_and_wait(*arguments: Any) -> Any:
        number = len(list(folder.glob(f"batch-{os.getpid()}-*")))
        (folder / f"batch-{os.getpid()}-{number}").touch()
        while not (folder / "signal sent").exists():
            time.sleep(0.01)
        return decode(*arguments)

    evaluation.decode = decode_and_wait


def test_a_signal_to_one_rank_ends_the_evaluation_of_all(shared_coco, tmp_path):
    """After a batch or two, not after the evaluation; what was trained is saved before it."""
    data = tmp_path / "data"
    for name in ("train", "val"):
        shutil.copytree(shared_coco / "train", data / name)
        file = data / "annotations" / f"instances_{name}.json"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(shared_coco / "annotations" / "instances_train.json", file)
    flags = {"steps": 4, "eval_every": 2, "eval_batch_size": 1}
    arguments = train_arguments(data, tmp_path / "run", **flags)
    prepare = [partial(wait_in_evaluations, tmp_path)]
    ranks = start_ranks(2, arguments, prepare=prepare)
    try:
        for rank in ranks:
            wait_for_file(tmp_path, f"batch-{rank.pid}-0", rank)
        ranks[1].send_signal(signal.SIGTERM)
        (tmp_path / "signal sent").touch()
        line = told(ranks[0], code=75)
        ranks[1].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert line.startswith("redetr: stopped by a signal in the evaluation of step 2; ")
    assert ranks[1].returncode == 75
    for rank in ranks:
        assert len(list(tmp_path.glob(f"batch-{rank.pid}-*"))) < 4  # of its half of 8 images
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 2


def wait_for_file(folder: Path, name: str, process: Fork) -> None:
    """Returns when the file is there. Fails if the process ends before."""
    while not (folder / name).exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_full_disk_keeps_the_last_checkpoint(shared_coco, whole, tmp_path):
    """A limit on the size of files stands for it: the checkpoint cannot be written, all else
    can."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "last.pt", tmp_path / "before.pt")
    limit = (folder / "last.pt").stat().st_size // 2
    process = Fork(
        [*train_arguments(shared_coco, folder, steps=20, **EXACT), "--resume"],
        prepare=[partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))],
    )
    line = told(process)
    assert re.match(r"redetr: \S+/last.pt: cannot be written \(\d+ MB are free there\)", line), line
    assert (folder / "last.pt").read_bytes() == (tmp_path / "before.pt").read_bytes()
    assert not list(folder.glob(".unfinished*"))


@pytest.mark.long
def test_a_run_killed_at_any_moment_ends_the_same_bit_for_bit(shared_coco, whole, tmp_path):
    """Twice; `benchmarks/kill.py` does it twenty times, at moments spread over start, steps and
    saving."""
    folder = tmp_path / "run"
    arguments = [*train_arguments(shared_coco, folder, steps=20, save_every=1, **EXACT), "--resume"]
    never = tmp_path / "released"
    for step in (2, 11):
        process = Fork(arguments, prepare=[partial(hold_steps, never)])
        try:
            wait_for_step(folder, step, process)
        finally:
            process.kill()
            process.communicate()
    finish(arguments)
    assert torch.equal(weights(folder), weights(whole))


def test_hosts_that_do_not_share_the_output_folder(shared_coco, whole, tmp_path):
    """Rank 1 finds no checkpoint where rank 0 does."""
    shutil.copytree(whole, tmp_path / "host0" / "run")
    (tmp_path / "host1").mkdir()
    arguments = [*train_arguments(shared_coco, Path("run"), steps=20, **EXACT), "--resume"]
    folders = [tmp_path / "host0", tmp_path / "host1"]
    ranks = start_ranks(2, arguments, folders)
    for rank in ranks:
        said = "different steps there (20, 0): --output must be a folder that all hosts share"
        assert said in told(rank)
