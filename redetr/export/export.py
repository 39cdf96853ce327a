"""A detector as a file that other programs run, compared with PyTorch on held-out images before it
gets its name.

Arrays are NumPy's. Boxes of detections are xyxy in pixels of the original image.
"""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from redetr.choices import ExportFormat, ExportPrecision
from redetr.data import DetectionDataset
from redetr.data.transforms import MEAN, STD, normalize, resizer
from redetr.detector.detections import detect
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.evaluation import labels_in
from redetr.export.files import SUFFIXES, Arrays, open_file, write_file
from redetr.export.graph import Plain, Processed, trace
from redetr.files import write_whole
from redetr.metrics import GroundTruth, coco_evaluation, coco_metrics
from redetr.report.analysis import judge, working_threshold
from redetr.structures import Outputs, collate

_NEEDED: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
}
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class ExportConfig:
    """What kind of file it is to be."""

    format: ExportFormat = "onnx"
    precision: ExportPrecision = "fp32"
    processing: bool = False  # images as stored go in, detections come out
    mask: bool = False  # a second input says what is padding

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("images", "mask") if self.mask else ("images",)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("scores", "labels", "boxes") if self.processing else ("logits", "boxes")

    def check(self) -> None:
        """Raises InputError for what does not go together, or a package that is missing."""
        if self.precision == "fp16" and self.format != "openvino":
            raise InputError("--precision fp16 goes with --format openvino: take that, or fp32")
        if self.precision == "int8" and self.format == "torch":
            raise InputError(
                "--precision int8 goes with --format onnx or openvino: take one of them, or fp32"
            )
        if self.processing and self.mask:
            raise InputError(
                "--with-processing takes images of one size, which have no padding: leave out "
                "--mask"
            )
        missing = [name for name in _NEEDED[self.format] if find_spec(name) is None]
        if missing:
            raise InputError(
                f"--format {self.format} needs {' and '.join(missing)}: pip install "
                '"redetr[export]"'
            )


@dataclass(frozen=True)
class Comparison:
    """A file and PyTorch on the same images."""

    images: int
    differences: dict[
        str, tuple[float, float]
    ]  # by output: the largest of all images, the median of each one's
    ap: tuple[float, float]  # PyTorch's and the file's, in percent

    @property
    def ap_drop(self) -> float:
        return self.ap[0] - self.ap[1]


def export(
    detector: Detector,
    path: Path,
    config: ExportConfig,
    held_out: DetectionDataset | None = None,
    train: DetectionDataset | None = None,
    *,
    images: int = 200,
    batch_size: int = 1,
    max_ap_drop: float = 0.1,
) -> Comparison | None:
    """Writes `detector`, which is on the host, to `path`; None if there are no `held_out` images to
    compare on.

    The first `images` of them are looked at; int8 finds the ranges of values on as many of `train`.
    Raises InputError if AP drops by more than `max_ap_drop` points; then nothing is written.
    """
    config.check()
    if config.precision == "int8" and not train:
        raise InputError(
            "--precision int8 learns the ranges of values on training images: give --data"
        )
    trial = Trial(detector, config, held_out, images, batch_size) if held_out else None
    described = json.dumps(describe(detector, config, trial.threshold() if trial else 0.5))
    module = (
        Processed(detector.model, detector.image_size)
        if config.processing
        else Plain(detector.model)
    )
    program = trace(module, config.mask)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.with_suffix(SUFFIXES[config.format]).name
        calibration = _calibration(detector, config, train, images) if train else ()
        write_file(
            program,
            built,
            described,
            config.inputs,
            config.outputs,
            config.format,
            config.precision,
            calibration,
        )
        comparison = trial.compare(open_file(built)) if trial else None
        if comparison and comparison.ap_drop > max_ap_drop:
            raise InputError(
                f"{path}: AP is {comparison.ap[1]:.2f}, with PyTorch {comparison.ap[0]:.2f}: it "
                "drops by more than "
                f"--max-ap-drop {max_ap_drop:g}, so no file was written"
            )
        for part in sorted(Path(folder).iterdir()):  # of OpenVINO's two, the weights first
            target = path if part == built else path.with_suffix(part.suffix)
            write_whole(target, lambda temporary, part=part: shutil.copyfile(part, temporary))  # type: ignore[misc]
    return comparison


def describe(detector: Detector, config: ExportConfig, threshold: float) -> dict[str, Any]:
    """What a program must know to use the file: it stands there as JSON."""
    model = detector.model
    return {
        "redetr": version("redetr"),
        "form": type(model).__name__,
        "scores": model.loss_config.scores,
        "precision": config.precision,
        "inputs": config.inputs,
        "outputs": config.outputs,
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "threshold": threshold,
        "resize": model.resize,
        "image_size": detector.image_size,
        "max_size": model.max_size,
        "mean": MEAN,
        "std": STD,
    }


def inputs_of(detector: Detector, config: ExportConfig, images: Sequence[Tensor]) -> Arrays:
    """What a file takes for uint8 `images` `[3, h, w]`; with `processing` they are of one size."""
    if config.processing:
        return [torch.stack(list(images)).numpy()]
    resize = resizer(detector.model.resize, detector.image_size, detector.model.max_size)
    batch = collate([normalize(resize(image)) for image in images])
    return [batch.images.numpy(), batch.mask.numpy()][: len(config.inputs)]


def _calibration(
    detector: Detector, config: ExportConfig, train: DetectionDataset, images: int
) -> Iterator[Arrays]:
    return (
        inputs_of(detector, config, [train.image(index)])
        for index in range(min(images, len(train)))
    )


class _Seen(NamedTuple):
    """What came out for one image: the arrays by name, and the detections in them."""

    outputs: dict[str, np.ndarray]
    found: dict[str, np.ndarray]


def _aligned(pytorch: dict[str, np.ndarray], file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's detections of an image in the order of those of PyTorch that they are: both are
    sorted by score, and where scores are equal but for rounding, two may have swapped places."""
    boxes = np.abs(pytorch["boxes"][:, None] - file["boxes"]).max(-1, initial=0)
    apart = np.abs(pytorch["scores"][:, None] - file["scores"]) + boxes / max(
        1, np.abs(pytorch["boxes"]).max(initial=0)
    )
    apart += pytorch["labels"][:, None] != file["labels"]
    order = linear_sum_assignment(np.nan_to_num(apart, nan=9.0))[1]
    return {name: rows[order] for name, rows in file.items()}


class Trial:
    """What PyTorch finds in the first images of a data set, for comparison with what a file finds.

    Raises InputError if the model does not know the classes of the data set.
    """

    def __init__(
        self,
        detector: Detector,
        config: ExportConfig,
        dataset: DetectionDataset,
        images: int,
        batch_size: int,
    ):
        self._detector, self._config, self._dataset = detector, config, dataset
        self._label_of = labels_in(dataset, detector.model.num_classes, detector.classes)
        self._targets = [dataset.target(index) for index in range(min(images, len(dataset)))]
        self._batches = self._batches_of(batch_size)
        self._pytorch = self._look(self._run_pytorch, replace(config, processing=False))

    def threshold(self) -> float:
        """The score from which on PyTorch's detections have the best F1."""
        truth = GroundTruth.from_targets(self._targets, self._dataset.class_names)
        detections = self._detections(self._pytorch)
        evaluation = coco_evaluation(truth, **detections)
        return working_threshold(judge(self._targets, evaluation, **detections))

    def compare(self, run: Run) -> Comparison:
        """PyTorch and a file that `open_file` opened."""
        seen, differences = self._look(run, self._config), {}
        pairs = [
            (a.found, _aligned(a.found, b.found))
            if self._config.processing
            else (a.outputs, b.outputs)
            for a, b in zip(self._pytorch, seen, strict=True)
        ]
        for name in self._config.outputs:
            if name != "labels":
                each = [float(np.abs(a[name] - b[name]).max(initial=0)) for a, b in pairs]
                differences[name] = (max(each), median(each))
        return Comparison(len(seen), differences, (self._ap(self._pytorch), self._ap(seen)))

    def _batches_of(self, batch_size: int) -> list[list[int]]:
        """Places of the images that go in at once: those of one size, unless a mask tells their
        padding."""
        groups = defaultdict(list)
        for index, target in enumerate(self._targets):
            any_size = self._config.mask or (
                self._detector.model.resize == "square" and not self._config.processing
            )
            groups[None if any_size else target["orig_size"]].append(index)
        return [
            group[i : i + batch_size]
            for group in groups.values()
            for i in range(0, len(group), batch_size)
        ]

    def _look(self, run: Run, config: ExportConfig) -> list[_Seen]:
        seen: dict[int, _Seen] = {}
        for batch in self._batches:
            arrays = run(
                inputs_of(self._detector, config, [self._dataset.image(index) for index in batch])
            )
            outputs = [
                dict(zip(config.outputs, each, strict=True)) for each in zip(*arrays, strict=True)
            ]
            sizes = [self._targets[index]["orig_size"] for index in batch]
            found = outputs if config.processing else self._decode(arrays, sizes)
            seen |= {
                index: _Seen(*pair)
                for index, pair in zip(batch, zip(outputs, found, strict=True), strict=True)
            }
        return [seen[index] for index in range(len(seen))]

    @torch.inference_mode()
    def _run_pytorch(self, arrays: Arrays) -> Arrays:
        outputs = self._detector.model(*map(torch.from_numpy, arrays))
        return [outputs["pred_logits"].numpy(), outputs["pred_boxes"].numpy()]

    def _decode(
        self, arrays: Arrays, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, np.ndarray]]:
        outputs = Outputs(
            pred_logits=torch.from_numpy(arrays[0]), pred_boxes=torch.from_numpy(arrays[1])
        )
        detector = self._detector
        kind, top_k = detector.model.loss_config.scores, detector.model.most_detections
        return [
            {
                "scores": each.scores.numpy(),
                "labels": each.labels.numpy(),
                "boxes": each.boxes.numpy(),
            }
            for each in detect(
                outputs, sizes, kind, detector.class_names, detector.category_ids, top_k
            )
        ]

    def _detections(self, seen: list[_Seen]) -> dict[str, np.ndarray]:
        """All images' detections of classes that the data set has, as `metrics.coco_metrics` takes
        them."""
        found = {
            name: np.concatenate([each.found[name] for each in seen])
            for name in ("scores", "labels", "boxes")
        }
        found["image_index"] = np.repeat(
            np.arange(len(seen)), [len(each.found["scores"]) for each in seen]
        )
        found["labels"] = self._label_of[found["labels"]]
        known = found["labels"] >= 0
        return {name: array[known] for name, array in found.items()}

    def _ap(self, seen: list[_Seen]) -> float:
        truth = GroundTruth.from_targets(self._targets, self._dataset.class_names)
        return 100 * coco_metrics(truth, **self._detections(seen)).ap
