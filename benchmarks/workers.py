"""Does a loader process pay where the model computes on two cores?

    python benchmarks/workers.py digits crowns

`redetr train` of `redetr_n` in fp32 with one loader process and with none. Both take turns. Result:
milliseconds per step without the first steps, which start the loader processes. The ratio is the
median over rounds of the ratio within a round. Writes results/DATE-workers.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import summary
from limits import matrix_rate
from record import record

from redetr.pages.curves import read_metrics

STEPS = 60
LOG_EVERY = 10
WORKERS = (0, 1)


def step_seconds(data: str, num_workers: int) -> float:
    """Seconds per step of a training run."""
    command = [sys.executable, "-m", "redetr", "train", "redetr_n", "--data", data]
    command += ["--steps", str(STEPS), "--log-every", str(LOG_EVERY), "--precision", "fp32"]
    command += ["--num-workers", str(num_workers), "--no-pictures"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
        times = [line["time_s"] for line in read_metrics(output) if "loss" in line]
    return (times[-1] - times[0]) / (STEPS - LOG_EVERY)


def compare(data: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {f"{count} processes": [] for count in WORKERS}
    for _ in range(rounds):
        for count in WORKERS:
            seconds[f"{count} processes"].append(step_seconds(data, count))
    none, several = seconds.values()
    ratios = [slow / fast for slow, fast in zip(several, none, strict=True)]
    return {
        "ms": summary(seconds),
        "none, times as fast": round(median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"rounds": arguments.rounds, "load at the start": os.getloadavg()}
    content["GFLOP/s of a product"] = round(matrix_rate("cpu", torch.float32) / 1e9, 1)
    for data in arguments.data:
        content[data] = compare(data, arguments.rounds)
        print(data, content[data], flush=True)
    record("workers", content)


if __name__ == "__main__":
    main()
