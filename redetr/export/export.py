"""A detector as a file that other programs run.

It is compared with PyTorch on held-out images before it gets its name.

Arrays are NumPy's. Boxes of detections are xyxy in pixels of the original image.
"""

import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from redetr.choices import ExportFormat, ExportPrecision
from redetr.data import DetectionDataset
from redetr.data.transforms import final_size, normalize, resizer, statistics
from redetr.detector.detections import detections_of
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.evaluation import labels_in, with_labels
from redetr.export.files import SUFFIXES, Arrays, open_file, write_file
from redetr.export.graph import Plain, Processed, trace
from redetr.files import write_whole
from redetr.metrics import GroundTruth, coco_evaluation, coco_metrics
from redetr.report.analysis import judge, working_threshold
from redetr.structures import DatasetDetections, Outputs, collate
from redetr.wording import counted

_NEEDED: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
}
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class ExportConfig:
    """What the file contains, and how."""

    format: ExportFormat = "onnx"
    precision: ExportPrecision = "fp32"
    processing: bool = False  # images as stored go in, detections come out
    mask: bool = False  # a second input marks the padding

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("images", "mask") if self.mask else ("images",)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("scores", "labels", "boxes") if self.processing else ("logits", "boxes")

    def check(self) -> None:
        """Raises InputError for options that exclude each other, or a missing package."""
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
    # by output: the largest difference of all images, and the median of each image's largest one
    differences: dict[str, tuple[float, float]]
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
    """Writes `detector`, which is on the host, to `path`, and compares the file with it.

    The comparison is on the first `images` of `held_out`; without these it is None. int8 finds the
    ranges of values on as many of `train`. Raises InputError if AP drops by more than `max_ap_drop`
    points; then nothing is written.
    """
    config.check()
    if config.precision == "int8" and not train:
        raise InputError(
            "--precision int8 learns the ranges of values on training images: give --data"
        )
    trial = Trial(detector, config, held_out, images, batch_size) if held_out else None
    threshold = trial.threshold() if trial else 0.5
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.with_suffix(SUFFIXES[config.format]).name
        calibration = _calibration(detector, config, train, images) if train else ()
        _build(detector, config, threshold, built, calibration)
        comparison = None
        if trial:
            comparison = trial.compare(open_file(built))
            _require_ap(path, comparison, max_ap_drop)
        _move(built, path)
    return comparison


def _build(
    detector: Detector,
    config: ExportConfig,
    threshold: float,
    path: Path,
    calibration: Iterable[Arrays],
) -> None:
    """Traces the model and writes it to `path`."""
    if config.processing:
        module: Plain | Processed = Processed(detector.model, detector.image_size)
    else:
        module = Plain(detector.model)
    about = json.dumps(describe(detector, config, threshold))
    write_file(
        trace(module, config.mask),
        path,
        about,
        config.inputs,
        config.outputs,
        config.format,
        config.precision,
        calibration,
    )


def _require_ap(path: Path, comparison: Comparison, max_ap_drop: float) -> None:
    if math.isnan(comparison.ap_drop):
        raise InputError(
            f"AP is undefined on {counted(comparison.images, 'image')} without an object to find",
            where=path,
            remedy="give --data with objects, more --images, or --no-check",
        )
    if comparison.ap_drop > max_ap_drop:
        pytorch_ap, file_ap = comparison.ap
        raise InputError(
            f"{path}: AP is {file_ap:.2f}, with PyTorch {pytorch_ap:.2f}: it drops by more than "
            f"--max-ap-drop {max_ap_drop:g}, so no file was written"
        )


def _move(built: Path, path: Path) -> None:
    """Copies the parts of a file to `path` and beside it, each of them whole."""
    for part in sorted(built.parent.iterdir()):  # of OpenVINO's two, the weights first
        target = path if part == built else path.with_suffix(part.suffix)
        write_whole(target, partial(shutil.copyfile, part))


def describe(detector: Detector, config: ExportConfig, threshold: float) -> dict[str, Any]:
    """The metadata of the file, for programs that use it."""
    model = detector.model
    mean, std = statistics(model.channels)
    return {
        "redetr": version("redetr"),
        "weights_from": model.weights_from,
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
        "mean": mean,
        "std": std,
    }


def inputs_of(detector: Detector, config: ExportConfig, images: Sequence[Tensor]) -> Arrays:
    """What a file takes for uint8 `images` `[3, h, w]`; with `processing` they are of one size."""
    if config.processing:
        return [torch.stack(list(images)).numpy()]
    resize = resizer(final_size(detector.model, detector.image_size))
    batch = collate([resize(image) for image in images], dtype=torch.float32, convert=normalize)
    if not config.mask:
        return [batch.images.numpy()]
    return [batch.images.numpy(), batch.mask.numpy()]


def _calibration(
    detector: Detector, config: ExportConfig, train: DetectionDataset, images: int
) -> Iterator[Arrays]:
    for index in range(min(images, len(train))):
        yield inputs_of(detector, config, [train.image(index)])


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a model or file computed for one image, arrays by name."""

    outputs: dict[str, np.ndarray]  # the names of `ExportConfig.outputs`
    detections: dict[str, np.ndarray]  # scores, labels and boxes


def _aligned(pytorch: dict[str, np.ndarray], file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's detections of an image in the order of those of PyTorch that they correspond to.

    Both are sorted by score: where scores are equal but for rounding, two may have changed places.
    """
    pairs = {}  # what the detections of PyTorch and of the file are apart, [K, K] or [K, K, 4]
    for name in ("boxes", "scores", "labels"):
        pairs[name] = np.abs(pytorch[name][:, None] - file[name])
    largest = max(1, np.abs(pytorch["boxes"]).max(initial=0))
    distance = pairs["scores"] + pairs["boxes"].max(-1, initial=0) / largest
    distance += pairs["labels"] != 0
    distance = np.nan_to_num(distance, nan=9.0)
    _, order = linear_sum_assignment(distance)
    return {name: rows[order] for name, rows in file.items()}


class Trial:
    """What PyTorch detects in the first images of a data set, to be compared with a file.

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
        self._detector = detector
        self._config = config
        self._dataset = dataset
        self._label_of = labels_in(dataset, detector.model.num_classes, detector.classes)
        self._targets = [dataset.target(index) for index in range(min(images, len(dataset)))]
        self._truth = GroundTruth.from_targets(self._targets, dataset.class_names)
        self._batches = self._batches_of(batch_size)
        self._pytorch = self._run(self._run_pytorch, replace(config, processing=False))

    def threshold(self) -> float:
        """The score from which on PyTorch's detections have the best F1."""
        detections = self._detections(self._pytorch)
        evaluation = coco_evaluation(self._truth, detections)
        return working_threshold(judge(self._targets, evaluation, detections))

    def compare(self, run: Run) -> Comparison:
        """PyTorch and a file that `open_file` opened."""
        answers = self._run(run, self._config)
        pairs = []
        for expected, answer in zip(self._pytorch, answers, strict=True):
            if self._config.processing:
                aligned = _aligned(expected.detections, answer.detections)
                pairs.append((expected.detections, aligned))
            else:
                pairs.append((expected.outputs, answer.outputs))
        differences = {}
        for name in self._config.outputs:
            if name == "labels":
                continue
            largest = []
            for expected_arrays, arrays in pairs:
                difference = np.abs(expected_arrays[name] - arrays[name])
                largest.append(float(difference.max(initial=0)))
            differences[name] = (max(largest), median(largest))
        ap = (self._ap(self._pytorch), self._ap(answers))
        return Comparison(len(answers), differences, ap)

    def _batches_of(self, batch_size: int) -> list[list[int]]:
        """Indices of the images that go in at once.

        They are of one size, unless a mask marks their padding or the model stretches them.
        """
        stretched = self._detector.model.resize == "square" and not self._config.processing
        any_size = self._config.mask or stretched
        groups = defaultdict(list)
        for index, target in enumerate(self._targets):
            groups[None if any_size else target["orig_size"]].append(index)
        batches = []
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                batches.append(group[start : start + batch_size])
        return batches

    def _run(self, run: Run, config: ExportConfig) -> list[_Answer]:
        """The answer for each image, in the order of the data set."""
        answers: dict[int, _Answer] = {}
        for batch in self._batches:
            images = [self._dataset.image(index) for index in batch]
            arrays = run(inputs_of(self._detector, config, images))
            outputs = []
            for rows in zip(*arrays, strict=True):
                outputs.append(dict(zip(config.outputs, rows, strict=True)))
            if config.processing:
                detections = outputs
            else:
                detections = self._decode(arrays, batch)
            for index, *answer in zip(batch, outputs, detections, strict=True):
                answers[index] = _Answer(*answer)
        return [answers[index] for index in range(len(answers))]

    @torch.inference_mode()
    def _run_pytorch(self, arrays: Arrays) -> Arrays:
        inputs = [torch.from_numpy(array) for array in arrays]
        outputs = self._detector.model(*inputs)
        return [outputs["pred_logits"].numpy(), outputs["pred_boxes"].numpy()]

    def _decode(self, arrays: Arrays, indices: list[int]) -> list[dict[str, np.ndarray]]:
        logits, boxes = (torch.from_numpy(array) for array in arrays)
        detector = self._detector
        of_images = detections_of(
            Outputs(pred_logits=logits, pred_boxes=boxes),
            [self._targets[index]["orig_size"] for index in indices],
            detector.model.loss_config.scores,
            detector.class_names,
            detector.category_ids,
            top_k=detector.model.most_detections,
        )
        decoded = []
        for detections in of_images:
            arrays_of_image = {
                "scores": detections.scores.numpy(),
                "labels": detections.labels.numpy(),
                "boxes": detections.boxes.numpy(),
            }
            decoded.append(arrays_of_image)
        return decoded

    def _detections(self, answers: list[_Answer]) -> DatasetDetections:
        """All detections of classes that the data set has, with its labels."""
        parts = []
        for index, answer in enumerate(answers):
            in_image = answer.detections
            part = DatasetDetections(
                image_index=np.full(len(in_image["scores"]), index),
                labels=in_image["labels"],
                scores=in_image["scores"],
                boxes=in_image["boxes"],
            )
            parts.append(part)
        return with_labels(DatasetDetections.concatenate(parts), self._label_of)

    def _ap(self, answers: list[_Answer]) -> float:
        return 100 * coco_metrics(self._truth, self._detections(answers)).ap
