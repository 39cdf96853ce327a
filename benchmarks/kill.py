"""Does a run that is killed with `kill -9` at any moment, and resumed, end like an undisturbed run?

    python benchmarks/kill.py             # twenty runs, each killed at three random moments

Each run trains twenty steps of a small model on two ranks with two micro-batches and a loader
process, evaluates twice and saves after every step. One of its ranks is killed: in the set-up, in a
step, in an evaluation. The other ends by itself, and both are started again. A third of the runs
have mosaics and denoising, a third dropout, and a third read their images from tar archives. The
final state of a run is compared bit for bit with that of an undisturbed run. Writes
results/DATE-kill.json.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import record
from rich.progress import track

from redetr.data.formats.writing import convert

STEPS = 20
EVAL_EVERY = 10
FLAGS = f"""
    --steps {STEPS} --batch-size 8 --accumulate 2 --save-every 1 --eval-every {EVAL_EVERY}
    --log-every 1 --device cpu --precision fp32 --num-workers 1 --image-size 64 --timeout-s 60
    --resume
"""
DIGITS = "--data digits --num-queries 10"
SMALL = "backbone=[16,32,64] hidden_dim=32 nheads=4 dec_layers=2 dim_feedforward=64"
CASES = {
    "mosaics and denoising": f"rtdetr_r18_finetune {DIGITS} {FLAGS} --weights none "
    "--mosaic-until 0.7 --denoising 5 --model-options width=16 enc_hidden_dim=32 "
    "enc_dim_feedforward=48 hidden_dim=32 dim_feedforward=64",
    "dropout": f"detr_tiny {DIGITS} {FLAGS} --model-options {SMALL} enc_layers=1 dropout=0.3",
    "archives": f"redetr_n --data {{archives}} {FLAGS} --model-options {SMALL}",
}
MOMENTS = ("set-up", "step", "evaluation")
RANKS = 2


class Rank(subprocess.Popen):
    """A process whose standard error goes to a file: a pipe that nobody reads fills up, and then
    stops the process."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open until the process has ended)
        super().__init__(command, env=environment, stdout=subprocess.DEVNULL, stderr=self._errors)

    def end(self) -> str:
        """Waits for the end of the process; returns what it wrote to standard error."""
        self.wait()
        with self._errors as file:
            file.seek(0)
            return file.read()


def start_ranks(arguments: list[str], count: int = RANKS) -> list[Rank]:
    """`redetr` with these arguments in as many processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(count):
        added = shared | {"RANK": rank, "LOCAL_RANK": rank}
        environment = os.environ | {name: str(value) for name, value in added.items()}
        ranks.append(Rank([sys.executable, "-m", "redetr", *arguments], environment))
    return ranks


def finish(ranks: list[Rank]) -> None:
    """Waits until a run has ended well."""
    for process in ranks:
        errors = process.end()
        if process.returncode:
            raise SystemExit(f"a run failed with exit code {process.returncode}:\n{errors}")


def last_line(folder: Path) -> dict[str, Any]:
    """The last whole line of a run's log; that of step 0 before there is one."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1]) if lines else {"step": 0}


def wait_for(folder: Path, ranks: list[Rank], step: int) -> None:
    """Until the run has logged `step`, or has ended."""
    while last_line(folder)["step"] < step and ranks[0].poll() is None:
        time.sleep(0.01)


def kill(ranks: list[Rank], victim: int) -> None:
    """Kills one rank, and waits until the others have ended by themselves."""
    ranks[victim].kill()
    for process in ranks:
        process.end()


def arguments_of(case: str, folder: Path) -> list[str]:
    recipe, *flags = CASES[case].format(archives=folder.parent / "archives").split()
    return ["train", recipe, "--output", str(folder), *flags]


def disturbed(case: str, folder: Path, setup_s: float, chance: random.Random) -> list[str]:
    """Trains with a kill in each phase, in random order; returns the phases and steps of the
    kills."""
    fell_into = []
    for moment in chance.sample(MOMENTS, len(MOMENTS)):
        first = last_line(folder)["step"]
        ranks = start_ranks(arguments_of(case, folder))
        if moment == "set-up":
            time.sleep(chance.uniform(0, setup_s))
        elif moment == "step":
            wait_for(folder, ranks, chance.randint(min(first + 1, STEPS), STEPS))
        else:
            due = EVAL_EVERY * (1 + first // EVAL_EVERY)
            wait_for(folder, ranks, min(due, STEPS))
        time.sleep(chance.uniform(0, 0.3))
        kill(ranks, chance.randrange(RANKS))
        fell_into.append(f"{moment}, at step {last_line(folder)['step']}")
    finish(start_ranks(arguments_of(case, folder)))
    return fell_into


def same_state(first: Path, second: Path) -> bool:
    """Whether weights, their average, the state of the optimizer and the best result are equal bit
    for bit."""
    saved, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (first, second))
    try:
        for key in ("model", "ema", "optimizer"):
            torch.testing.assert_close(saved[key], other[key], rtol=0, atol=0)
    except AssertionError:
        return False
    return saved["best"] == other["best"]


def same(first: Path, second: Path) -> bool:
    """Whether the states of two runs are equal, and their logs without times."""
    return same_state(first, second) and curve(first) == curve(second)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without times."""
    times = ("time_s", "images_per_s", "data_wait")
    lines = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({name: value for name, value in line.items() if name not in times})
    return lines


def left_over(folder: Path) -> list[str]:
    """Files that should not be in the folder of a run that has ended."""
    return [path.name for path in folder.iterdir() if path.name[0] == "." or path.suffix == ".lock"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        convert("crowns", Path(temporary) / "archives", "coco", shard_bytes=1_000_000)
        alone = {}
        setup_s = 0.0
        for case in CASES:
            alone[case] = Path(temporary) / case
            started = time.monotonic()
            ranks = start_ranks(arguments_of(case, alone[case]))
            wait_for(alone[case], ranks, 1)
            setup_s = time.monotonic() - started
            finish(ranks)
        for number in track(range(arguments.runs), "killing"):
            case = list(CASES)[number % len(CASES)]
            folder = Path(temporary) / str(number)
            killed_in = disturbed(case, folder, setup_s, chance)
            row = {"run": number, "case": case, "killed in": killed_in}
            rows.append(row | {"equal": same(alone[case], folder), "left": left_over(folder)})
            print(rows[-1], flush=True)
    equal = sum(row["equal"] for row in rows)
    settings = {"steps": STEPS, "ranks": RANKS, "accumulate": 2, "seed": arguments.seed}
    record("kill", {"n": arguments.runs, "equal": equal, **settings, "runs": rows})


if __name__ == "__main__":
    main()
