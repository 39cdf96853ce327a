"""What are ImageNet weights worth on few images? Crowns with MobileNetV2: from them, and from scratch.

    python benchmarks/pretrained.py

The same model, steps, data order and evaluations. From scratch it takes what suits that: GroupNorm in place of
BatchNorm, which is frozen in a pretrained backbone, and the learning rate of `redetr_n` for all weights. Writes
results/DATE-pretrained-crowns.json and a plot beside it. One seed.
"""

import argparse
import datetime
import tempfile
from dataclasses import replace
from pathlib import Path

from imagenet_mobilenet import mobilenet_v2_weights
from record import RESULTS, record
from rich.console import Console

from redetr.recipes import redetr_mobile, redetr_n
from redetr.train import train
from redetr.visualize import plot_curves, read_metrics

EVALUATIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = replace(redetr_mobile(), data="crowns", epochs=0.0, steps=arguments.steps, seed=arguments.seed,
                         eval_every=-(-arguments.steps // EVALUATIONS))  # fmt: skip
        configs = {
            "ImageNet weights": replace(config, weights=str(mobilenet_v2_weights(folder))),
            "from scratch": replace(
                config, weights="none", model_options=("norm=group",), lr=redetr_n().lr, lr_backbone=None
            ),
        }
        runs = [folder / name for name in configs]
        evaluations = {}
        for run, (name, each) in zip(runs, configs.items(), strict=True):
            train(replace(each, output=str(run)), Console(stderr=True))
            evaluations[name] = [line for line in read_metrics(run) if "AP" in line]
        RESULTS.mkdir(exist_ok=True)
        plot_curves(runs, RESULTS / f"{datetime.date.today().isoformat()}-pretrained-crowns.png", list(configs))
        record("pretrained-crowns", {"n": 1, "seed": arguments.seed, "evaluations": evaluations})


if __name__ == "__main__":
    main()
