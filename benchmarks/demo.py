"""How soon does the demo on digits reach 60 AP, in fp32 and as redetr chooses by itself?

    python benchmarks/demo.py --seeds 0 1 2

Each run is `redetr train` with the settings of `redetr demo`, evaluated more often. The precisions
take turns with each seed. Times are training times, without evaluation; the time to 60 AP is
interpolated between two evaluations. The ratio is the median over seeds of the ratio of a seed.
Writes results/DATE-demo.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from limits import cpu_gflops
from record import record

from redetr.commands.demonstration import demo_config
from redetr.config import TrainConfig
from redetr.pages.curves import read_metrics

GOAL_AP = 0.6
EVALUATIONS = 20
PRECISIONS = ("fp32", "auto")


def train(precision: str, seed: int) -> dict[str, Any]:
    """Runs the demo, and returns what it reached, and when."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        config = demo_config("digits", folder, steps=0)
        command = [sys.executable, "-m", "redetr", "train", config.model, "--data", config.data]
        command += ["--steps", str(config.steps), "--patience", str(config.patience)]
        command += ["--eval-every", str(config.steps // EVALUATIONS), "--no-pictures"]
        command += ["--precision", precision, "--seed", str(seed), "--output", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        lines = [line for line in read_metrics(folder) if "AP" in line]
        chosen = TrainConfig.read(folder / "config.json").precision
    curve = [{key: line[key] for key in ("step", "time_s", "AP", "AP50")} for line in lines]
    return {
        "seed": seed,
        "precision": chosen,
        "seconds to AP 60": round(seconds_to(GOAL_AP, curve), 1),
        "seconds": curve[-1]["time_s"],
        "AP": curve[-1]["AP"],
        "curve": curve,
    }


def seconds_to(ap: float, curve: list[dict[str, float]]) -> float:
    """The training time after which `curve` first reaches `ap`, between two evaluations."""
    time_before, ap_before = 0.0, 0.0
    for line in curve:
        if line["AP"] >= ap:
            share = (ap - ap_before) / (line["AP"] - ap_before)
            return time_before + share * (line["time_s"] - time_before)
        time_before, ap_before = line["time_s"], line["AP"]
    raise SystemExit(f"the demo has not reached {ap:.0%} AP: {curve[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    content: dict[str, Any] = {"load at the start": os.getloadavg()}
    content["GFLOP/s of a product"] = cpu_gflops()
    runs: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    for seed in arguments.seeds:
        for precision in PRECISIONS:
            runs[precision].append(train(precision, seed))
            print(precision, runs[precision][-1], flush=True)
    for key in ("seconds to AP 60", "seconds", "AP"):
        content[f"median {key}"] = {
            precision: round(median(run[key] for run in runs[precision]), 3)
            for precision in PRECISIONS
        }
    pairs = zip(runs["fp32"], runs["auto"], strict=True)
    ratios = [slow["seconds to AP 60"] / fast["seconds to AP 60"] for slow, fast in pairs]
    content["auto, times as fast to AP 60"] = round(median(ratios), 3)
    content["spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    record("demo", content | {"runs": runs})


if __name__ == "__main__":
    main()
