"""What does plain DETR learn in an hour? The faithful variant scaled down (`detr_tiny`), on digits
from scratch.

    OMP_NUM_THREADS=1 python benchmarks/plain_hour.py

Steps are counted, not minutes, as in learning.py, which shows the fast variant on the same images.
Writes results/DATE-plain-hour.json and a plot of the curve.
"""

import argparse
import datetime
import tempfile
from dataclasses import replace

from record import RESULTS, record
from rich.console import Console

from redetr.pages.curves import plot_curves, read_metrics
from redetr.recipes import detr_tiny
from redetr.training import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            detr_tiny(),
            data="digits",
            epochs=0.0,
            steps=arguments.steps,
            seed=arguments.seed,
            eval_every=-(-arguments.steps // 10),
            output=folder,
        )
        train(config, Console(stderr=True))
        evaluations = [line for line in read_metrics(folder) if "AP" in line]
        RESULTS.mkdir(exist_ok=True)
        plot_curves(
            [folder],
            RESULTS / f"{datetime.date.today().isoformat()}-plain-hour.png",
            ["plain DETR"],
        )
    record("plain-hour", {"setting": config.to_dict(), "evaluations": evaluations})


if __name__ == "__main__":
    main()
