"""What do masks cost, and how good are they? redetr_n with `--masks` on digits, from scratch.

    python benchmarks/masks.py --seeds 0 1 2               # with masks, and the same without
    python benchmarks/masks.py --seeds 0 1 2 --masks-only
    python benchmarks/masks.py --seeds 0 1 2 --boxes-only

Steps are fixed, not minutes: schedules on a wall clock are fragile on a shared machine. The
training time that is reported excludes evaluation. Runs are in --work: if the command is cut, the
same one resumes there. Delete that folder to measure another commit. Writes
results/DATE-masks-digits.json and a picture of predictions beside it; with --boxes-only,
results/DATE-masks-digits-boxes-only.json alone.
"""

import argparse
import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import RESULTS, record
from rich.console import Console

from redetr.commands.demonstration import demo_config
from redetr.commands.run_pictures import prediction_grid
from redetr.data import open_dataset
from redetr.detector.detector import load
from redetr.pages.curves import read_metrics
from redetr.pages.drawing import save_image
from redetr.training import train

STEPS = 1500  # those of the demo
EVALUATIONS = 3


def run(folder: Path, seed: int, steps: int, masks: bool) -> list[dict[str, Any]]:
    """Trains, or resumes an interrupted run, and returns the evaluations."""
    config = demo_config("digits", folder, steps)
    config = replace(config, seed=seed, masks=masks, eval_every=-(-steps // EVALUATIONS))
    evaluations = evaluations_in(folder)
    if not evaluations or evaluations[-1]["step"] < steps:
        config = replace(config, resume=(folder / "last.pt").exists())
        train(config, Console(stderr=True))
        evaluations = evaluations_in(folder)
    return evaluations


def evaluations_in(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "metrics.jsonl").exists():
        return []
    return [line for line in read_metrics(folder) if "AP" in line]


def measured(work: Path, seeds: list[int], steps: int, masks: bool) -> dict[str, Any]:
    """The evaluations of all seeds, and the means of the last ones."""
    evaluations = {}
    for seed in seeds:
        evaluations[f"seed {seed}"] = run(folder_of(work, seed, steps, masks), seed, steps, masks)
    last = [lines[-1] for lines in evaluations.values()]
    means = {key: sum(line[key] for line in last) / len(last) for key in ("AP", "time_s")}
    if masks:
        of_masks = [line["masks"] for line in last]
        for key in ("AP", "AP50", "AP75"):
            means[f"mask {key}"] = sum(line[key] for line in of_masks) / len(last)
    return {"mean at the end": means, "evaluations": evaluations}


def folder_of(work: Path, seed: int, steps: int, masks: bool) -> Path:
    kind = "masks" if masks else "boxes"
    return work / f"{kind}-{steps}-steps-seed-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-masks"))
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--masks-only", action="store_true")
    kinds.add_argument("--boxes-only", action="store_true")
    arguments = parser.parse_args()
    seeds, steps, work = arguments.seeds, arguments.steps, arguments.work
    about = {"n": len(seeds), "seeds": seeds, "steps": steps}
    boxes = None if arguments.masks_only else measured(work, seeds, steps, masks=False)
    if arguments.boxes_only:
        record("masks-digits-boxes-only", {**about, **(boxes or {})})
        return
    content = {**about, **measured(work, seeds, steps, masks=True)}
    if boxes:
        lost = boxes["mean at the end"]["AP"] - content["mean at the end"]["AP"]
        content |= {"box AP lost to masks": lost, "without masks": boxes}
    detector = load(folder_of(work, seeds[0], steps, masks=True))
    picture = prediction_grid(detector, open_dataset("digits", "val", masks=True), count=4)
    today = datetime.date.today().isoformat()
    RESULTS.mkdir(parents=True, exist_ok=True)
    save_image(picture, RESULTS / f"{today}-masks-digits-predictions.jpg")
    record("masks-digits", content)


if __name__ == "__main__":
    main()
