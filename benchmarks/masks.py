"""What do masks cost, and how good are they? redetr_n with `--masks` on digits, from scratch.

    python benchmarks/masks.py --seeds 0 1 2               # box and mask AP, and a picture
    python benchmarks/masks.py --seeds 0 1 2 --boxes-only  # what the detector learns without masks

Steps are fixed, not minutes: schedules on a wall clock are fragile on a shared machine. The
training time that is reported excludes evaluation. Writes results/DATE-masks-digits.json and a
picture of predictions beside it, or results/DATE-masks-digits-boxes-only.json.
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
from redetr.pages.curves import read_metrics
from redetr.pages.drawing import save_image
from redetr.training import train

STEPS = 720  # those of the demo
EVALUATIONS = 3


def run(folder: Path, seed: int, steps: int, masks: bool) -> list[dict]:
    """Trains, and returns the evaluations."""
    config = demo_config("digits", folder, steps)
    config = replace(config, seed=seed, masks=masks, eval_every=-(-steps // EVALUATIONS))
    train(config, Console(stderr=True))
    return [line for line in read_metrics(folder) if "AP" in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--boxes-only", action="store_true")
    arguments = parser.parse_args()
    masks = not arguments.boxes_only
    name = "masks-digits" if masks else "masks-digits-boxes-only"
    with tempfile.TemporaryDirectory() as temporary:
        evaluations = {}
        for seed in arguments.seeds:
            folder = Path(temporary) / str(seed)
            evaluations[f"seed {seed}"] = run(folder, seed, arguments.steps, masks)
        if masks:
            detector = load(Path(temporary) / str(arguments.seeds[0]))
            picture = prediction_grid(detector, open_dataset("digits", "val", masks=True), count=4)
            today = datetime.date.today().isoformat()
            save_image(picture, RESULTS / f"{today}-{name}-predictions.jpg")
    last = [lines[-1] for lines in evaluations.values()]
    means = {key: sum(line[key] for line in last) / len(last) for key in ("AP", "time_s")}
    if masks:
        of_masks = [line["masks"] for line in last]
        for key in ("AP", "AP50", "AP75"):
            means[f"mask {key}"] = sum(line[key] for line in of_masks) / len(last)
    content = {"n": len(last), "seeds": arguments.seeds, "steps": arguments.steps}
    record(name, {**content, "mean at the end": means, "evaluations": evaluations})


if __name__ == "__main__":
    main()
