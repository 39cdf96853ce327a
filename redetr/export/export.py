"""Writes a detector to a file that other programs can run.

The file is compared with PyTorch on held-out images before it gets its final name.

Arrays are NumPy's. Boxes of detections are xyxy in pixels of the original image.
"""

import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.transforms import final_size, normalize, resizer, statistics
from redetr.data.views import Scaling, Stretch
from redetr.detector.detector import Detector
from redetr.detector.inference import for_inference
from redetr.errors import InputError
from redetr.evaluation import compressed_masks
from redetr.export.comparison import (
    Comparison,
    ImageDetections,
    detections_apart,
    drop_interval,
)
from redetr.export.files import SUFFIXES, Arrays, open_file, write_file
from redetr.export.graph import Plain, Processed, trace
from redetr.export.mobile import image_by_image
from redetr.export.settings import NOT_RUN, ExportConfig
from redetr.files import UNFINISHED, write_whole
from redetr.labels import labels_in, with_labels
from redetr.metrics import GroundTruth, Measured, coco_evaluation, coco_metrics, coco_result
from redetr.postprocess import decode
from redetr.structures import DatasetDetections, Outputs, Size, collate
from redetr.wording import counted

Run = Callable[[Arrays], Arrays]


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
    """Writes `detector`, which must be on the host, to `path`, and compares the file with it.

    The comparison uses the first `images` images of `held_out`; it is None without `held_out`. int8
    is calibrated on as many images of `train`. Raises InputError, and writes nothing, if AP drops
    by more than `max_ap_drop` points and the choice of images does not explain it.
    """
    config.check()
    config = config.of_model(detector)
    if config.precision == "int8" and not train:
        raise InputError("--precision int8 is calibrated on training images: give --data")
    trial = Trial(detector, config, held_out, images, batch_size) if held_out else None
    threshold = trial.threshold() if trial else detector.threshold
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.with_suffix(SUFFIXES[config.format]).name
        calibration = _calibration(detector, config, train, images) if train else ()
        _build(detector, config, threshold, built, calibration)
        comparison = None
        if trial and config.format not in NOT_RUN:
            run = open_file(built)
            if config.single:
                run = image_by_image(run)
            comparison = trial.compare(run, max_ap_drop)
            _require_ap(path, comparison, config, max_ap_drop)
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
    elif config.for_devices:
        module = Plain(for_inference(detector.model))  # these converters do not fold BatchNorm
    else:
        module = Plain(detector.model)
    about = json.dumps(describe(detector, config, threshold))
    write_file(
        trace(module, config.mask, config.size, config.one_image),
        path,
        about,
        config.inputs,
        config.outputs,
        config.format,
        config.precision,
        calibration,
    )


def _require_ap(
    path: Path, comparison: Comparison, config: ExportConfig, max_ap_drop: float
) -> None:
    """Raises InputError if AP is undefined, or drops by more than allowed and more than by
    chance."""
    images = counted(comparison.images, "image")
    drops = comparison.drops()
    if math.isnan(drops[0].points):
        raise InputError(
            f"AP is undefined on {images} without objects to find",
            where=path,
            remedy="give --data with objects, more --images, or --no-check",
        )
    for drop in drops:
        if drop.points <= max_ap_drop or drop.by_chance:
            continue
        allowed = math.ceil(10 * drop.points) / 10
        raise InputError(
            f"{drop.name} is {drop.file:.2f}, with PyTorch {drop.pytorch:.2f}, on {images}: it "
            f"drops by more than --max-ap-drop {max_ap_drop:g}{drop.interval_text}, so no file was "
            "written",
            where=path,
            remedy=f"{_milder(config)}, or accept it with --max-ap-drop {allowed:g}",
        )


def _milder(config: ExportConfig) -> str:
    """A remedy for an export that loses AP."""
    if config.precision != "fp32":
        return "use --precision fp32, which differs only by rounding"
    if config.processing:
        return "leave out --with-processing, and prepare images as the metadata states"
    return "try another --format"


def _move(built: Path, path: Path) -> None:
    """Copies the parts of a file to `path` and next to it, each completely or not at all."""
    for part in sorted(built.parent.iterdir()):  # OpenVINO's weights come before its graph
        target = path if part == built else path.with_name(part.name)
        if part.is_dir():
            _move_folder(part, target)
        else:
            write_whole(target, partial(shutil.copyfile, part))


def _move_folder(built: Path, path: Path) -> None:
    """Copies a folder to `path`. An existing folder is replaced once the copy is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        copy = Path(folder) / "new"
        shutil.copytree(built, copy)
        if path.exists():
            path.rename(Path(folder) / "old")
        copy.rename(path)


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
        "size": config.size,
        "channels": model.channels,
        "mean": mean,
        "std": std,
    }


def inputs_of(detector: Detector, config: ExportConfig, images: Sequence[Tensor]) -> Arrays:
    """The inputs of a file for uint8 `images` `[C, h, w]`, which must have one size with
    `processing`."""
    if config.processing:
        return [torch.stack(list(images)).numpy()]
    resized = []
    for image in images:
        final = _final(detector, config.size, _size_of(image))
        resized.append(resizer(final)(image))
    batch = collate(resized, config.size, dtype=torch.float32, convert=normalize)
    if not config.mask:
        return [batch.images.numpy()]
    return [batch.images.numpy(), batch.mask.numpy()]


def _final(detector: Detector, canvas: Size | None, stored: Size) -> Scaling:
    """The size to which an image of `stored` px is resized for a file that takes any size, or only
    `canvas`.

    A model that stretches images stretches them to the canvas. A model that keeps the aspect ratio
    reduces images that would not fit into it.
    """
    final = final_size(detector.model, detector.image_size)
    if canvas is None:
        return final
    if isinstance(final, Stretch):
        return Stretch(*canvas)
    sides = final(*stored)
    share = min(1.0, *(most / side for most, side in zip(canvas, sides, strict=True)))
    height, width = (max(1, int(share * side)) for side in sides)
    return Stretch(height, width)


def _calibration(
    detector: Detector, config: ExportConfig, train: DetectionDataset, images: int
) -> Iterator[Arrays]:
    for index in range(min(images, len(train))):
        yield inputs_of(detector, config, [train.image(index)])


class Trial:
    """The detections of PyTorch in the first images of a data set, for comparison with a file.

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
        indices = range(min(images, len(dataset)))
        # Masks are compressed one image after the other: those of all images would take gigabytes.
        targets = (dataset.target(index) for index in indices)
        self._truth = GroundTruth.from_targets(targets, dataset.class_names)
        self._orig_sizes = [dataset.stored_size(index) for index in indices]
        self._batches = self._batches_of(batch_size)
        self._pytorch = self._run(self._run_pytorch, replace(config, processing=False, size=None))

    def threshold(self) -> float:
        """The score threshold with the best F1 of PyTorch's detections."""
        best = coco_metrics(self._truth, self._detections(self._pytorch)).threshold
        return self._detector.threshold if best is None else best

    def compare(self, run: Run, max_ap_drop: float = math.inf) -> Comparison:
        """Compares PyTorch with a file that `open_file` opened. The confidence interval of the drop
        of AP, which takes seconds, is computed only if AP drops by more than `max_ap_drop`
        points."""
        answers = self._run(run, self._config)
        threshold = self.threshold()
        apart = detections_apart(self._pytorch, answers, threshold)
        ap, interval = self._ap(answers, "bbox", max_ap_drop)
        mask_ap = mask_interval = None
        if self._truth.image_sizes is not None and self._config.masks:
            mask_ap, mask_interval = self._ap(answers, "segm", max_ap_drop)
        return Comparison(
            images=len(answers),
            threshold=threshold,
            paired=apart.paired,
            unpaired=apart.unpaired,
            same=apart.same,
            differences=apart.differences,
            ap=ap,
            interval=interval,
            mask_ap=mask_ap,
            mask_interval=mask_interval,
            mask_iou=apart.mask_iou,
            why_no_masks=self._truth.why_no_masks if self._config.masks else "",
        )

    def _ap(
        self, answers: list[ImageDetections], measured: Measured, max_ap_drop: float
    ) -> tuple[tuple[float, float], tuple[float, float] | None]:
        """The AP of PyTorch and of the file, of boxes or masks, and the confidence interval of its
        drop, where that is computed."""
        pytorch = coco_evaluation(self._truth, self._detections(self._pytorch), measured)
        file = coco_evaluation(self._truth, self._detections(answers), measured)
        ap_pytorch = 100 * coco_result(self._truth, pytorch).ap
        ap_file = 100 * coco_result(self._truth, file).ap
        interval = None
        if ap_pytorch - ap_file > max_ap_drop:
            interval = drop_interval(pytorch, file)
        return (ap_pytorch, ap_file), interval

    def _batches_of(self, batch_size: int) -> list[list[int]]:
        """The indices of the images of each batch.

        The images of a batch have the same size, unless a mask marks their padding or the model
        stretches them.
        """
        stretched = self._detector.model.resize == "square" and not self._config.processing
        any_size = self._config.mask or stretched
        groups = defaultdict(list)
        for index, orig_size in enumerate(self._orig_sizes):
            groups[None if any_size else orig_size].append(index)
        batches = []
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                batches.append(group[start : start + batch_size])
        return batches

    def _run(self, run: Run, config: ExportConfig) -> list[ImageDetections]:
        """The detections in each image, in the order of the data set."""
        answers: dict[int, ImageDetections] = {}
        for batch in self._batches:
            images = [self._dataset.image(index) for index in batch]
            inputs = inputs_of(self._detector, config, images)
            arrays = dict(zip(config.outputs, run(inputs), strict=True))
            if config.processing:
                detections = self._processed(arrays, batch)
            else:
                detections = self._decode(arrays, inputs, batch)
            for row, index in enumerate(batch):
                answers[index] = detections[row]
        return [answers[index] for index in range(len(answers))]

    @torch.inference_mode()
    def _run_pytorch(self, arrays: Arrays) -> Arrays:
        inputs = [torch.from_numpy(array) for array in arrays]
        outputs = Plain(self._detector.model)(*inputs)
        return [output.numpy() for output in outputs]

    def _decode(
        self, arrays: dict[str, np.ndarray], inputs: Arrays, indices: list[int]
    ) -> list[ImageDetections]:
        """The detections in these images of the data set, from the `arrays` that the model computed
        for `inputs`."""
        outputs = Outputs(
            pred_logits=torch.from_numpy(arrays["logits"]),
            pred_boxes=torch.from_numpy(arrays["boxes"]),
        )
        orig_sizes = [self._orig_sizes[index] for index in indices]
        model = self._detector.model
        decoded = decode(
            outputs, torch.tensor(orig_sizes), model.loss_config.scores, model.max_detections
        )
        compressed = None
        if "masks" in arrays:
            outputs["pred_masks"] = torch.from_numpy(arrays["masks"])
            canvas = _size_of(inputs[0])
            sizes = [canvas] * len(indices)
            if self._config.mask:
                sizes = [_unpadded_size(padding) for padding in inputs[1]]
            compressed = compressed_masks(
                outputs, decoded.queries, sizes, canvas, orig_sizes, model.is_panoptic
            )
        detections_by_image = []
        for row in range(len(indices)):
            in_image = {
                "scores": decoded.scores[row].numpy(),
                "labels": decoded.labels[row].numpy(),
                "boxes": decoded.boxes[row].numpy(),
            }
            if compressed is not None:
                in_image["masks"] = _rle_array(compressed[row], orig_sizes[row])
            detections_by_image.append(in_image)
        return detections_by_image

    def _processed(
        self, arrays: dict[str, np.ndarray], indices: list[int]
    ) -> list[ImageDetections]:
        """The detections of a file with postprocessing. Their masks are resized from logits to the
        size of the images."""
        detections = []
        for row in range(len(indices)):
            detections.append({name: rows[row] for name, rows in arrays.items()})
        if "masks" in arrays:
            logits = torch.from_numpy(arrays["masks"])  # [B, K, h, w]
            outputs = Outputs(pred_logits=logits, pred_boxes=logits, pred_masks=logits)
            queries = torch.arange(logits.shape[1]).expand(len(indices), -1)
            whole = _size_of(arrays["masks"])
            orig_sizes = [self._orig_sizes[index] for index in indices]
            sizes = [whole] * len(indices)
            masks = compressed_masks(outputs, queries, sizes, whole, orig_sizes)
            for in_image, of_image, size in zip(detections, masks, orig_sizes, strict=True):
                in_image["masks"] = _rle_array(of_image, size)
        return detections

    def _detections(self, answers: list[ImageDetections]) -> DatasetDetections:
        """All detections of classes in the data set, with the labels of the data set."""
        parts = []
        for index, in_image in enumerate(answers):
            masks = None
            if "masks" in in_image:
                masks = [rle["counts"] for rle in in_image["masks"]]
            part = DatasetDetections(
                image_index=np.full(len(in_image["scores"]), index),
                labels=in_image["labels"],
                scores=in_image["scores"],
                boxes=in_image["boxes"],
                masks=masks,
            )
            parts.append(part)
        return with_labels(DatasetDetections.concatenate(parts), self._label_of)


def _size_of(images: np.ndarray | Tensor) -> Size:
    height, width = images.shape[-2:]
    return height, width


def _unpadded_size(padding: np.ndarray) -> Size:
    """The size of an image whose padding `[H, W]` is True."""
    is_shown = ~padding
    height = int(is_shown[:, 0].sum())
    width = int(is_shown[0].sum())
    return height, width


def _rle_array(masks: list[bytes], size: Size) -> np.ndarray:
    """Compressed masks of an image of this size, as an array that can be indexed."""
    rles = np.empty(len(masks), object)
    rles[:] = [{"size": list(size), "counts": counts} for counts in masks]
    return rles
