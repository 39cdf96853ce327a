"""Does a run that is killed with `kill -9` at any moment, and resumed, end as if nothing had been?

    python benchmarks/kill.py             # twenty runs, each killed once at a random moment;
    --kills 3 for more

Each run trains twenty steps of a small model with a loader process, evaluates twice and saves after
every step, so kills fall into start-up, steps, evaluation and writing. What it ends with is
compared bit for bit with a run that was left alone. Writes results/DATE-kill.json.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import record
from rich.progress import track

FLAGS = """
    --data digits --steps 20 --batch-size 4 --save-every 1 --eval-every 10 --log-every 1
    --device cpu --precision fp32
    --num-workers 1 --image-size 64 --num-queries 10 --resume
    --model-options backbone=[16,32,64] hidden_dim=32 nheads=4 dec_layers=2 dim_feedforward=64
"""


def start(folder: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "redetr",
        "train",
        "redetr_n",
        "--output",
        str(folder),
        *FLAGS.split(),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a resumed run failed with exit code {process.returncode}:\n{errors}")


def wait_for_step(folder: Path, process: subprocess.Popen, step: int, delay_s: float) -> None:
    """Until the run has logged `step`, and a moment longer, or has ended."""
    log = folder / "metrics.jsonl"
    while process.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        if step == 0 or (
            lines and lines[-1].startswith('{"step": ') and int(lines[-1][9:].split(",")[0]) >= step
        ):
            break
        time.sleep(0.01)
    time.sleep(delay_s if step else 8 * delay_s)  # the start takes seconds


def steps_saved(folder: Path) -> int:
    """How far the folder's checkpoint is; 0 without one."""
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            return torch.load(folder / name, weights_only=True)["step"]
    return 0


def same(first: Path, second: Path) -> bool:
    """Whether weights, their average and the optimizer's state are equal bit for bit, and the best
    result."""
    one, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (first, second))
    try:
        for key in ("model", "ema", "optimizer"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
    except AssertionError:
        return False
    return one["best"] == other["best"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        alone = Path(temporary) / "alone"
        finish(start(alone))
        rows = []
        for number in track(range(arguments.runs), "killing"):
            folder, saved_at_kill = Path(temporary) / str(number), []
            for _ in range(arguments.kills):
                first = steps_saved(folder)
                process = start(folder)
                wait_for_step(
                    folder, process, chance.randint(min(first, 19), 19), chance.uniform(0, 0.5)
                )
                process.kill()
                process.communicate()
                saved_at_kill.append(steps_saved(folder))
            finish(start(folder))
            rows.append(
                {"run": number, "saved_at_kill": saved_at_kill, "equal": same(alone, folder)}
            )
        equal = sum(row["equal"] for row in rows)
        record(
            "kill",
            {
                "n": arguments.runs,
                "equal": equal,
                "steps": 20,
                "seed": arguments.seed,
                "runs": rows,
            },
        )


if __name__ == "__main__":
    main()
