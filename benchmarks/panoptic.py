"""What panoptic quality does a short training reach? A small panoptic DETR on scenes of things and
stuff, from scratch, boxes and masks together.

    python benchmarks/panoptic.py --seeds 0 1 2

240 scenes of 64 px, as the tests draw them: balls and crates before sky and grass, 40 of them held
out. PQ is measured by `evaluate`, and by hotcoco's reader of COCO's files from what
`redetr predict --panoptic` writes; the two have to agree. Runs are in --work: if the command is
cut, the same one resumes there. Writes results/DATE-panoptic.json.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotcoco.panoptic import pq_compute
from record import record
from rich.console import Console

import redetr
from redetr.cli import main as command_line
from redetr.config import TrainConfig
from redetr.pages.curves import read_metrics

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.panoptic_scenes import write_scenes

OPTIONS = (
    "backbone=[16, 32, 64]",
    "hidden_dim=64",
    "nheads=8",
    "enc_layers=1",
    "dec_layers=2",
    "dim_feedforward=128",
    "dropout=0.0",
)


def config_of(scenes: Path, folder: Path, seed: int, steps: int) -> TrainConfig:
    return TrainConfig(
        model="detr_r50_panoptic",
        masks=True,
        num_queries=10,
        model_options=OPTIONS,
        data=str(scenes),
        output=str(folder),
        image_size=64,
        batch_size=8,
        lr=1e-3,
        steps=steps,
        eval_every=steps,
        seed=seed,
        augment="plain",
        precision="fp32",
        device="cpu",
        num_workers=0,
    )


def run(scenes: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Trains, or resumes an interrupted run, and measures in both ways."""
    config = config_of(scenes, folder, seed, steps)
    finished = folder / "metrics.jsonl"
    if not finished.exists() or not any("AP" in line for line in read_metrics(folder)):
        config = replace(config, resume=(folder / "last.pt").exists())
        redetr.train(config, console=Console(stderr=True))
    (last,) = (line for line in read_metrics(folder) if "AP" in line)
    quality = redetr.load(folder, device="cpu").evaluate(str(scenes)).panoptic
    assert quality is not None
    pq_of_files = quality_of_files(scenes, folder)
    assert abs(quality.all.pq - pq_of_files) < 1e-9
    return {"time_s": last["time_s"], "PQ of files": pq_of_files, **quality.to_dict()}


def quality_of_files(scenes: Path, folder: Path) -> float:
    """PQ of the files that `redetr predict --panoptic` writes."""
    output = folder / "predictions"
    flags = ["--panoptic", "--save", "json", "--device", "cpu", "--precision", "fp32"]
    images = str(scenes / "val2017")
    command_line(["predict", str(folder), images, "--output", str(output), "--overwrite", *flags])
    truth = scenes / "annotations" / "panoptic_val2017.json"
    segments = output / "predictions.panoptic.json"
    return pq_compute(str(truth), str(segments), pred_folder=str(output))["All"]["pq"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-panoptic"))
    arguments = parser.parse_args()
    scenes = arguments.work / "scenes"
    if not scenes.exists():
        write_scenes(scenes, {"train": 200, "val": 40})
    runs = {}
    for seed in arguments.seeds:
        folder = arguments.work / f"{arguments.steps}-steps-seed-{seed}"
        runs[f"seed {seed}"] = run(scenes, folder, seed, arguments.steps)
    qualities = [result["PQ"] for result in runs.values()]
    about = {"n": len(qualities), "seeds": arguments.seeds, "steps": arguments.steps}
    mean = sum(qualities) / len(qualities)
    record("panoptic", about | {"mean PQ": mean, "lowest PQ": min(qualities), "runs": runs})


if __name__ == "__main__":
    main()
