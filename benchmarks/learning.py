"""What does a detector learn in minutes on two cores, from scratch? Compares the fast variant with
plain DETR.

    python benchmarks/learning.py digits --plain  # also plain DETR, for the same training time
    python benchmarks/learning.py digits --seeds 0 1 2
    python benchmarks/learning.py crowns          # redetr_n on aerial photographs

The number of steps is fixed instead of the time, because schedules on a wall clock are fragile on a
shared machine. The reported training time excludes evaluation. Writes
results/DATE-learning-DATA.json, with a plot and a picture of predictions next to it. In trials,
seeds differed by several AP.
"""

import argparse
import datetime
import tempfile
from dataclasses import replace
from pathlib import Path

from record import RESULTS, record
from rich.console import Console

from redetr.commands.demonstration import demo_config
from redetr.commands.run_pictures import prediction_grid
from redetr.data import open_dataset
from redetr.detector.detector import load
from redetr.pages.curves import plot_curves, read_metrics
from redetr.pages.drawing import save_image
from redetr.recipes import detr_tiny
from redetr.training import train

EVALUATIONS = 5
PROBE_STEPS = 25


def run(config):
    """Trains and returns the evaluations and the folder."""
    config = replace(config, eval_every=-(-config.steps // EVALUATIONS))
    train(config, Console(stderr=True))
    return [line for line in read_metrics(config.output) if "AP" in line]


def plain_config(folder: Path, seconds: float):
    """Plain DETR for as long as `seconds` of training, by a short probe of its step."""
    probe = replace(detr_tiny(), data="digits", epochs=0.0, steps=PROBE_STEPS, log_every=5)
    train(replace(probe, output=str(folder / "probe"), eval_every=PROBE_STEPS))
    times = [line["time_s"] for line in read_metrics(folder / "probe") if "loss" in line]
    step_s = (times[-1] - times[0]) / (PROBE_STEPS - 5)
    return replace(probe, steps=round(seconds / step_s), output=str(folder / "plain"), log_every=20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=("digits", "crowns"))
    parser.add_argument("--steps", type=int, default=0, help="of redetr_n; default: the demo's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plain", action="store_true", help="plain DETR as well, on digits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {f"redetr_n, seed {seed}": folder / str(seed) for seed in arguments.seeds}
        configs = [demo_config(arguments.data, run, arguments.steps) for run in runs.values()]
        evaluations = {
            name: run(replace(config, seed=seed))
            for name, config, seed in zip(runs, configs, arguments.seeds, strict=True)
        }
        last = [lines[-1] for lines in evaluations.values()]
        if arguments.plain:
            evaluations["detr_tiny"] = run(plain_config(folder, last[0]["time_s"]))
            runs["plain DETR, scaled down"] = folder / "plain"
        stem = f"{datetime.date.today().isoformat()}-learning-{arguments.data}"
        RESULTS.mkdir(exist_ok=True)
        plot_curves(list(runs.values()), RESULTS / f"{stem}.png", list(runs))
        detector = load(folder / str(arguments.seeds[0]))
        picture = prediction_grid(detector, open_dataset(arguments.data, "val"), count=6)
        save_image(picture, RESULTS / f"{stem}-predictions.jpg")
        means = {
            key: sum(line[key] for line in last) / len(last) for key in ("AP", "AP50", "time_s")
        }
        record(
            f"learning-{arguments.data}",
            {
                "n": len(last),
                "seeds": arguments.seeds,
                "mean at the end": means,
                "evaluations": evaluations,
            },
        )


if __name__ == "__main__":
    main()
