"""Ranks of which one fails or is late: the others know which, and why."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from command_line import SMALL
from forked import free_ports, spawn_ranks
from torch import Tensor

import redetr
from redetr.distributed import process_group
from redetr.losses import SetCriterion


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
    (port,) = free_ports(1)
    spawn_ranks(diverging_rank, (port, tmp_path, shared_coco), 2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["said"] == found[1]["said"]
    assert found[0]["said"].startswith(
        f"step 3: not finite: loss_giou, loss; images {found[1]['images'][2]};"
    )
    # Nothing broken was saved.
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 2


_STEP_LIMIT_S = 10


def slow_rank(rank: int, port: int, folder: Path, limit_s: float, ending: str) -> None:
    """Rank 1 takes longer than the limit between steps for what rank 0 remembers, or ends before;
    each writes what it is told."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = "ready"
    try:
        with process_group("cpu", timeout_s=_STEP_LIMIT_S, setup_timeout_s=limit_s) as dist:
            dist.doing("reading the annotations")
            if rank == 1 and ending == "error":
                raise redetr.InputError("no such folder", where="data")
            if rank == 1 and ending == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1 and not ending:
                time.sleep(_STEP_LIMIT_S + 2)
            dist.meet()
            if rank == 1 and ending == "late error":
                raise OSError(28, "No space left on device")
            if rank == 1 and ending == "late loss":
                raise redetr.errors.LostError("a loader process died")
            if rank == 1 and ending == "late kill":
                os.kill(os.getpid(), signal.SIGKILL)
            said += str(dist.gather([rank]))
    except redetr.RedetrError as error:
        said = f"{error.exit_code}: {error}"
    except OSError:
        said = "ended"
    (folder / f"{rank}.txt").write_text(said)


@pytest.mark.long
@pytest.mark.parametrize(
    ("limit_s", "ending", "said"),
    [
        (60, "", r"ready\[0, 1\]"),
        (
            _STEP_LIMIT_S / 2,
            "",
            r"1: rank 0 waited \d+ s in the set-up for rank 1: reading the annotations; ",
        ),
        (60, "error", r"1: rank 0 waited \d+ s in the set-up for rank 1: ended \(data: no such "),
        (60, "kill", r"1: rank 0 waited \d+ s in the set-up for rank 1: reading the annotations; "),
        (60, "late error", r"1: rank 0 stopped because rank 1 ended: .*No space left on device$"),
        (60, "late loss", r"1: rank 0 stopped because rank 1 ended: a loader process died$"),
        (60, "late kill", r"1: rank 0 lost another rank: it died, or did not respond within 10 s"),
    ],
)
def test_ranks_that_are_set_up_at_unequal_speed(tmp_path, limit_s, ending, said):
    """They wait longer than between steps, and know for whom."""
    (port,) = free_ports(1)
    context = mp.get_context("fork")  # torch is imported already
    arguments = (port, tmp_path, limit_s, ending)
    ranks = [context.Process(target=slow_rank, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert re.match(said, (tmp_path / "0.txt").read_text())
