"""`redetr evaluate`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.progress import Progress

from redetr.commands.arguments import FLAGS, Checkpoint
from redetr.commands.console import ERRORS, OUT, print_json, print_results, require_images

if TYPE_CHECKING:
    from redetr.data import DetectionDataset
    from redetr.detector.detector import Detector
    from redetr.distributed import Dist
    from redetr.report import Found


@dataclass(frozen=True)
class Evaluate:
    """Measures a checkpoint: the twelve COCO numbers, AP per class, and with --report a page on its
    mistakes."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, an official DETR file, or a Transformers folder."""
    data: str | None = None
    """digits, crowns, or a folder; default: what the checkpoint was trained on."""
    split: Literal["val", "test", "train"] = "val"
    """The part of the data set that is measured on."""
    val_fraction: float | None = None
    """Share held out of data without a val split; default: that of the training run."""
    batch_size: int = 16
    """Images at once."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the hardware multiplies it fast."""
    report: str | None = None
    """Folder for a page on what goes wrong, where, and what to do (index.html), with its numbers
    (report.json)."""
    compare: str | None = None
    """A second checkpoint, whose numbers stand beside those of the first, in the page of --report
    as well."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        from redetr.detector.detector import load
        from redetr.distributed import process_group
        from redetr.weights.reading import locate

        require_images(self.batch_size)
        paths = [locate(checkpoint) for checkpoint in self._checkpoints]
        detectors = [load(path, device=self.device, precision=self.precision) for path in paths]
        dataset = detectors[0].open_data(self.split, self.data, self.val_fraction)
        source = self.data or detectors[0].trained_on
        about = [
            {
                "checkpoint": str(path),
                "data": source,
                "split": self.split,
                "images": len(dataset),
                "image_size": detector.image_size,
            }
            for path, detector in zip(paths, detectors, strict=True)
        ]
        with process_group(self.device) as dist:
            found = [self._detect(detector, dataset, dist) for detector in detectors]
            dist.main_only(self._tell)(dataset, about, found)

    @property
    def _checkpoints(self) -> list[str]:
        return [self.checkpoint, self.compare] if self.compare else [self.checkpoint]

    def _detect(self, detector: "Detector", dataset: "DetectionDataset", dist: "Dist") -> "Found":
        from redetr.evaluation import detect_classes

        with Progress(console=ERRORS, disable=self.json or dist.rank > 0) as progress:
            task = progress.add_task("evaluating", total=len(dataset))
            found, _ = detect_classes(
                detector.model,
                dataset,
                dist,
                image_size=detector.image_size,
                batch_size=self.batch_size,
                dtype=detector.dtype,
                classes=detector.classes,
                on_batch=lambda images: progress.advance(task, images * dist.world_size),
            )
            return found

    def _tell(
        self, dataset: "DetectionDataset", about: list[dict[str, Any]], found: list["Found"]
    ) -> None:
        from redetr.metrics import GroundTruth, coco_metrics
        from redetr.report import make_report
        from redetr.report_page import write_report

        truth = GroundTruth.from_dataset(dataset)
        results = [
            one | coco_metrics(truth, **each).to_dict()
            for one, each in zip(about, found, strict=True)
        ]
        if self.json:
            print_json(results[0] | ({"compared": results[1]} if self.compare else {}))
        else:
            for number, (checkpoint, result) in enumerate(
                zip(self._checkpoints, results, strict=True), 1
            ):
                OUT.print(
                    f"{number}  " * bool(self.compare) + _measured(checkpoint, result),
                    soft_wrap=True,
                )
            print_results(results)
        if self.report:
            report = make_report(dataset, list(zip(self._checkpoints, found, strict=True)))
            write_report(report, Path(self.report))
            ERRORS.print(f"{self.report}/index.html: the report; report.json holds its numbers")


def _measured(checkpoint: str, result: dict[str, Any]) -> str:
    """What was measured, and on what."""
    last = Path(checkpoint).is_dir() and Path(result["checkpoint"]).name == "last.pt"
    path = f"{result['checkpoint']}{' (there is no best.pt)' * last}"
    return (
        f"{path}: {result['split']} split of {result['data']}, {result['images']} images, at "
        f"{result['image_size']} px"
    )


parse = partial(tyro.cli, Evaluate, prog="redetr evaluate", config=FLAGS)
