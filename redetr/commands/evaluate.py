"""`redetr evaluate`"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.progress import Progress
from rich.table import Table

from redetr.choices import size_text
from redetr.commands.arguments import Checkpoint, parse_flags
from redetr.commands.console import (
    ERRORS,
    OUT,
    print_json,
    print_results,
    require_batch_size,
    say_precision,
    say_spellings,
    warn_of_leakage,
    warn_of_left_out,
)
from redetr.garbage import quick_imports
from redetr.threads import use_threads
from redetr.wording import counted

if TYPE_CHECKING:
    from hotcoco import COCOeval

    from redetr.data import DetectionDataset
    from redetr.detector.detector import Detector
    from redetr.distributed import Dist
    from redetr.evaluation import RankDetections
    from redetr.panoptic_quality import PanopticResult
    from redetr.report.comparison import Difference
    from redetr.structures import DatasetDetections


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint: the twelve COCO numbers and AP per class. With --report, also write a
    page on its mistakes."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, a published weight file, or a Transformers folder or hub name."""
    data: str | None = None
    """digits, crowns, a folder, hf:NAME or the URL of archives; default: the training data."""
    split: Literal["val", "test", "train"] = "val"
    """The split to evaluate."""
    val_fraction: float | None = None
    """Share to hold out of data without a val split; default: that of the training run."""
    skip_unreadable: bool = False
    """Decode all images first and leave out those that cannot be read; default: as the training run
    did with its own data."""
    batch_size: int = 16
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = that of the training run; for weights from elsewhere, bf16 where it is faster."""
    threads: int | None = None
    """Compute threads of each process; default: OMP_NUM_THREADS, else one per core."""
    num_workers: int | None = None
    """Processes that load images; default: depends on the cores of the host."""
    report: str | None = None
    """Write a page on mistakes and their remedies (index.html) and its numbers (report.json) to
    this folder."""
    compare: str | None = None
    """A second checkpoint to compare with the first, also on the page of --report."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        with quick_imports():
            from redetr.class_shares import to_main
            from redetr.detector.detector import load
            from redetr.distributed import process_group
            from redetr.evaluation import quality_of, with_quality
            from redetr.pages.templates import require_redetr_page
            from redetr.weights.locating import locate

        require_batch_size(self.batch_size)
        if self.report:
            require_redetr_page(Path(self.report), "report.json")
        use_threads(self.threads)
        paths = [locate(checkpoint) for checkpoint in self._checkpoints]
        detectors = [load(checkpoint, device=self.device) for checkpoint in self._checkpoints]
        has_masks = [detector.model.has_masks for detector in detectors]
        dataset = detectors[0].open_data(
            self.split, self.data, self.val_fraction, any(has_masks), self.skip_unreadable
        )
        source = self.data or detectors[0].trained_on
        with process_group(self.device) as dist:
            dist.main_only(warn_of_left_out)(dataset, self.split)
            dist.main_only(_say_what_was_passed_over)(dataset)
            about = []
            for path, detector in zip(paths, detectors, strict=True):
                if self.split == "val":
                    dist.main_only(warn_of_leakage)(path, detector, dataset, source)
                detector.compute_in(self.precision, dist)
                dist.main_only(say_precision)(detector)
                dist.main_only(say_spellings)(detector, dataset)
                about.append(self._about(str(path), detector, dataset, source))
            # What each detector gives on the images of this rank.
            shares = [self._detect(detector, dataset, dist) for detector in detectors]
            if self.report or self.compare:  # these look at all detections together
                by_image = bool(self.compare)
                detections = []
                qualities = []
                for share in shares:
                    detections.append(to_main(share.detections, dist))
                    qualities.append(quality_of(dataset, share.segments, dist, by_image=by_image))
                dist.main_only(self._show)(dataset, about, detections, qualities, has_masks)
                return
            result = with_quality(detectors[0].model, dataset, shares[0], dist)
            dist.main_only(self._show_result)(about[0] | result.to_dict())

    def _about(
        self, path: str, detector: "Detector", dataset: "DetectionDataset", source: str | None
    ) -> dict[str, Any]:
        """What is measured, and on what."""
        from redetr.data.formats.folder import unreadable_of
        from redetr.precision import precision_name

        return {
            "checkpoint": path,
            "data": source,
            "split": self.split,
            "images": len(dataset),
            "image_size": detector.image_size,
            "precision": precision_name(detector.dtype),
            "predict_threshold": detector.threshold,
            "weights_from": detector.model.weights_from,
            "unreadable": unreadable_of(dataset),
        }

    @property
    def _checkpoints(self) -> list[str]:
        return [self.checkpoint, self.compare] if self.compare else [self.checkpoint]

    def _detect(
        self, detector: "Detector", dataset: "DetectionDataset", dist: "Dist"
    ) -> "RankDetections":
        from redetr.data.loader import spare_workers, watching_workers
        from redetr.evaluation import detect_classes

        num_workers = self.num_workers
        if num_workers is None:
            one_batch = len(dataset) <= self.batch_size
            num_workers = 0 if one_batch else spare_workers(dist.device)
        progress_bar = Progress(console=ERRORS, disable=self.json or dist.rank > 0)
        with watching_workers(), progress_bar as progress:
            task = progress.add_task("evaluating", total=len(dataset))
            return detect_classes(
                detector.model,
                dataset,
                dist,
                image_size=detector.image_size,
                batch_size=self.batch_size,
                dtype=detector.dtype,
                num_workers=num_workers,
                classes=detector.classes,
                on_batch=lambda images: progress.advance(task, images * dist.world_size),
            )

    def _show_result(self, result: dict[str, Any]) -> None:
        if self.json:
            print_json(result)
        else:
            self._print([result], None)

    def _show(
        self,
        dataset: "DetectionDataset",
        about: list[dict[str, Any]],
        detections: list["DatasetDetections"],
        qualities: list["PanopticResult | None"],
        has_masks: list[bool],
    ) -> None:
        from redetr.metrics import GroundTruth, coco_evaluation, coco_result, mask_evaluation
        from redetr.report import make_report, write_report

        truth = GroundTruth.from_dataset(dataset)
        reasons = [truth.why_no_masks if with_masks else "" for with_masks in has_masks]
        box_evaluations = [coco_evaluation(truth, detected) for detected in detections]
        mask_evaluations = [mask_evaluation(truth, detected) for detected in detections]
        results = []
        for i, description in enumerate(about):
            result = coco_result(truth, box_evaluations[i])
            evaluation = mask_evaluations[i]
            mask_result = None if evaluation is None else coco_result(truth, evaluation)
            result = replace(result, masks=mask_result, why_no_masks=reasons[i])
            result = replace(result, panoptic=qualities[i])
            results.append(description | result.to_dict())
        differences = (
            _differences(box_evaluations, mask_evaluations, qualities) if self.compare else None
        )
        if self.json:
            content = results[0]
            if self.compare:
                content = content | {"compared": results[1], "differences": differences}
            print_json(content)
        else:
            self._print(results, differences)
        if self.report:
            checkpoints = list(zip(self._checkpoints, detections, strict=True))
            report = make_report(dataset, checkpoints, differences, qualities, reasons)
            write_report(report, Path(self.report))
            ERRORS.print(f"{self.report}/index.html: the report; report.json holds its numbers")

    def _print(
        self, results: list[dict[str, Any]], differences: "Mapping[str, Difference] | None"
    ) -> None:
        for i, (checkpoint, result) in enumerate(zip(self._checkpoints, results, strict=True)):
            number = f"{i + 1}  " if self.compare else ""
            OUT.print(number + _measured(checkpoint, result), soft_wrap=True)
        print_results(results)
        if not self.compare:
            OUT.print(thresholds(results[0]))
        if differences:
            OUT.print(_differences_table(differences))
            OUT.print(
                "If an interval includes 0, these images cannot tell which checkpoint is better."
            )
        elif self.compare:
            OUT.print("no confidence intervals: they need objects in at least two images")


def _say_what_was_passed_over(dataset: "DetectionDataset") -> None:
    """Prints what the data set reports of itself, and the files that nothing claims."""
    from redetr.data.formats.folder import FolderDataset
    from redetr.data.unclaimed import unclaimed_beside

    lines = list(dataset.notes)
    if isinstance(dataset, FolderDataset):
        for fault in unclaimed_beside(dataset.annotations):
            lines.append(f"{fault.severity}: {fault}")
    for line in lines:
        ERRORS.print(line, soft_wrap=True, markup=False)


def thresholds(result: dict[str, Any]) -> str:
    """A sentence on the scores that count in the tables, and those that `predict` shows."""
    shown = f"redetr predict shows those with a score of at least {result['predict_threshold']}"
    best = result["threshold"]
    if best is not None and best != result["predict_threshold"]:
        shown += f", and F1 is best here with {best}"
    return f"AP counts detections of every score; {shown}"


def _measured(checkpoint: str, result: dict[str, Any]) -> str:
    """A sentence on the checkpoint and the data that were measured."""
    path = result["checkpoint"]
    if Path(checkpoint).is_dir() and Path(path).name == "last.pt":
        path += " (there is no best.pt)"
    size = size_text(result["image_size"])
    images = f"{counted(result['images'], 'image')}, at {size} px in {result['precision']}"
    images += f"; weights: {result['weights_from']}"
    return f"{path}: {result['split']} split of {result['data']}, {images}"


def _differences(
    box_evaluations: list["COCOeval"],
    mask_evaluations: list["COCOeval | None"],
    qualities: list["PanopticResult | None"],
) -> dict[str, "Difference"]:
    """The differences between two checkpoints; those of masks, where both have some, have names as
    "mask AP"."""
    from redetr.report import ap_differences, pq_difference

    differences = ap_differences(*box_evaluations)
    first, second = mask_evaluations
    if first is not None and second is not None:
        for name, difference in ap_differences(first, second).items():
            differences[f"mask {name}"] = difference
    counts = [quality.by_image for quality in qualities if quality is not None]
    if len(counts) == 2 and counts[0] is not None and counts[1] is not None:
        differences |= pq_difference(counts[0], counts[1])
    return differences


def _differences_table(differences: "Mapping[str, Difference]") -> Table:
    """The gain of the second checkpoint over the first in points, with confidence intervals."""
    table = Table("", "2 - 1", "95% interval", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name, change in differences.items():
        difference = f"{100 * change['difference']:+.1f}"
        interval = f"{100 * change['lower']:+.1f} to {100 * change['upper']:+.1f}"
        table.add_row(name, difference, interval)
    return table


parse = partial(parse_flags, Evaluate, prog="redetr evaluate")
