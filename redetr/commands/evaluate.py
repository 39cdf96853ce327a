"""`redetr evaluate`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import Progress

from redetr.commands.arguments import FLAGS, Checkpoint
from redetr.commands.console import ERRORS, print_json, print_result, require_images
from redetr.data import DetectionDataset, open_dataset
from redetr.distributed import Dist, process_group
from redetr.errors import InputError
from redetr.evaluate import detect_classes
from redetr.metrics import GroundTruth, coco_metrics
from redetr.predict import Detector, load
from redetr.report import Found, make_report
from redetr.report_page import write_report


@dataclass(frozen=True)
class Evaluate:
    """Measures a checkpoint: the twelve COCO numbers, AP per class, and with --report a page on its mistakes."""

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
    """Folder for a page on what goes wrong, where, and what to do (index.html), with its numbers (report.json)."""
    compare: str | None = None
    """A second checkpoint, shown beside the first in the page of --report."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        require_images(self.batch_size)
        if self.compare and not self.report:
            raise InputError("--compare needs a folder for the page that compares: give --report FOLDER as well")
        detectors = [load(path, device=self.device, precision=self.precision) for path in self._checkpoints]
        source = self.data or detectors[0].trained_on
        if source is None:
            raise InputError(f"{self.checkpoint} does not say what it was trained on: give --data")
        held_out = detectors[0].val_fraction if self.val_fraction is None else self.val_fraction
        dataset = open_dataset(source, self.split, held_out)
        with process_group(self.device) as dist:
            found = [self._detect(detector, dataset, dist) for detector in detectors]
            dist.main_only(self._tell)(dataset, found)

    @property
    def _checkpoints(self) -> list[str]:
        return [self.checkpoint, self.compare] if self.compare else [self.checkpoint]

    def _detect(self, detector: Detector, dataset: DetectionDataset, dist: Dist) -> Found:
        with Progress(console=ERRORS, disable=self.json or dist.rank > 0) as progress:
            task = progress.add_task("evaluating", total=len(dataset))
            found, _ = detect_classes(
                detector.model, dataset, dist, image_size=detector.image_size, batch_size=self.batch_size,
                dtype=detector.dtype, classes=detector.classes,
                on_batch=lambda images: progress.advance(task, images * dist.world_size),
            )  # fmt: skip
            return found

    def _tell(self, dataset: DetectionDataset, found: list[Found]) -> None:
        result = coco_metrics(GroundTruth.from_dataset(dataset), **found[0])
        (print_json if self.json else print_result)(result.to_dict())
        if self.report:
            report = make_report(dataset, list(zip(self._checkpoints, found, strict=True)))
            write_report(report, Path(self.report))
            ERRORS.print(f"{self.report}/index.html: the report; report.json holds its numbers", markup=False)


parse = partial(tyro.cli, Evaluate, prog="redetr evaluate", config=FLAGS)
