"""COCO numbers of a model on a data set, the same for any number of ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from redetr.bounds import require_count
from redetr.choices import ImageSize
from redetr.class_shares import shared_metrics
from redetr.data import DetectionDataset
from redetr.data.loader import ANSWER_S, Samples, load_batches, to_batch
from redetr.data.sampler import EvalSampler
from redetr.data.transforms import Scaling, final_size, resizer
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.in_python import require_callable, require_dataset, require_model
from redetr.labels import (
    labels_in,
    model_labels_of,
    things_of,
    with_labels,
    with_model_labels,
)
from redetr.losses import DENOMINATOR_OF, NUM_DENOMINATORS, SetCriterion
from redetr.masks import encode
from redetr.metrics import CocoResult
from redetr.panoptic import panoptic_of_batch
from redetr.panoptic_quality import PanopticResult, shared_quality
from redetr.postprocess import decode, decode_masks
from redetr.precision import autocast, exact_products, weights_dtype
from redetr.structures import Batch, DatasetDetections, DetectionModel, Outputs, Size, Target
from redetr.truth import TruthObjects, holds_masks

Losses = dict[str, float]  # by the names of `SetCriterion`


class RankDetections(NamedTuple):
    """What a model gives on the images of this rank, and its losses."""

    detections: DatasetDetections
    segments: DatasetDetections | None  # None where panoptic quality cannot be measured
    losses: Losses  # of the whole data set; empty without a criterion


def evaluate(
    model: DetectionModel,
    dataset: DetectionDataset,
    dist: Dist | None = None,
    *,
    classes: Sequence[tuple[int, str]] | None = None,
    image_size: ImageSize | None = None,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_workers: int = 0,
    loader_timeout_s: float = ANSWER_S,
    criterion: SetCriterion | None = None,
    on_batch: Callable[[int], Any] = lambda images: None,
) -> CocoResult:
    """The twelve COCO numbers, per-class AP and, with a `criterion`, the losses on `dataset`.

    Masks are measured if the model and all objects have them; if only the model has, `why_no_masks`
    of the result says why not. Where a panoptic model meets panoptic data, also the panoptic
    quality. `classes` are the (category id, name) of the model's labels, by default those of the
    data set. Images are resized to `image_size` px, by default that with which the model of a
    `Detector` was trained, of others `model.image_size`. `batch_size` is that of a rank, `dtype`
    the precision. `num_workers` processes load the images, 0 = this one; each must answer within
    `loader_timeout_s`. `on_batch` is called with the number of images after each batch. The model
    keeps its mode. Raises InputError for invalid arguments and missing classes (see
    `detect_classes`), DivergedError for scores or boxes that are not finite. Communicates.
    """
    _require_usable(model, dataset, classes, batch_size, dtype, num_workers)
    require_callable(criterion=criterion, on_batch=on_batch)
    dist = dist or _alone(model)
    was_training = model.training
    try:
        local = detect_classes(
            model,
            dataset,
            dist,
            classes=classes,
            image_size=image_size,
            batch_size=batch_size,
            dtype=dtype,
            num_workers=num_workers,
            loader_timeout_s=loader_timeout_s,
            criterion=criterion,
            on_batch=on_batch,
        )
    finally:
        model.train(was_training)
    result = with_quality(model, dataset, local, dist)
    return replace(result, losses=local.losses)


def _require_usable(
    model: DetectionModel,
    dataset: DetectionDataset,
    classes: Sequence[tuple[int, str]] | None,
    batch_size: int,
    dtype: torch.dtype,
    num_workers: int,
) -> None:
    """Raises InputError for arguments of `evaluate` that cannot work."""
    require_model(model)
    require_dataset(dataset, "dataset")
    for entry in classes or ():
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            remedy = "give detector.classes, or leave it out"
            raise InputError(f"classes holds {entry!r}, not (category id, name)", remedy=remedy)
    require_count("batch_size", batch_size)
    require_count("num_workers", num_workers, least=0)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype={dtype!r} is not a type of PyTorch, such as torch.float32")


def with_quality(
    model: DetectionModel, dataset: DetectionDataset, local: RankDetections, dist: Dist
) -> CocoResult:
    """The numbers of all ranks' detections and, if it can be measured, panoptic quality; `local`
    are those of this rank. Communicates."""
    objects = TruthObjects.from_dataset(dataset)
    result = shared_metrics(objects, local.detections, dist)
    quality = quality_of(dataset, local.segments, dist, objects)
    why_no_masks = objects.why_no_masks if model.has_masks else ""
    return replace(result, panoptic=quality, why_no_masks=why_no_masks)


def quality_of(
    dataset: DetectionDataset,
    segments: DatasetDetections | None,
    dist: Dist,
    objects: TruthObjects | None = None,
    by_image: bool = False,
) -> PanopticResult | None:
    """Panoptic quality of this rank's segments and those of the others; None if it cannot be
    measured, as with None instead of segments.

    `objects` are those of the data set, if they are known already; `by_image` is that of
    `shared_quality`. Communicates.
    """
    if segments is None:
        return None
    if objects is None:
        objects = TruthObjects.from_dataset(dataset)
    if objects.masks is None:  # of a user's own data set: only some targets have masks
        return None
    return shared_quality(objects, segments, dataset.is_thing, dist, by_image)


def has_quality(model: DetectionModel, dataset: DetectionDataset) -> bool:
    """Whether panoptic quality can be measured: of a panoptic model, on data that says what things
    and what stuff is, and holds the masks of all objects."""
    return model.is_panoptic and bool(dataset.is_thing) and holds_masks(dataset)


def detect_classes(
    model: DetectionModel,
    dataset: DetectionDataset,
    dist: Dist | None = None,
    *,
    classes: Sequence[tuple[int, str]] | None = None,
    **options: Any,
) -> RankDetections:
    """What `detect_share` returns, with the labels of the data set; options as there.

    `classes` are the (category id, name) of the model's labels, by default those of the data set;
    classes that the data set does not have are left out (official checkpoints have 91 outputs for
    COCO's 80 categories). Where the model lacks an id with its name, all are matched by distinct
    names alone: conversion of data changes ids. Other spellings, such as Pascal VOC's, count as the
    same name (`class_names.py`). Raises InputError if the model does not know all
    classes of the data set. Communicates.
    """
    label_of = labels_in(dataset, model.num_classes, classes)
    is_thing = model.is_thing or things_of(dataset, label_of)
    local = detect_share(
        model,
        dataset,
        dist,
        is_thing=is_thing,
        model_labels=model_labels_of(label_of),
        **options,
    )
    segments = None
    if local.segments is not None:
        segments = with_labels(local.segments, label_of)
    return RankDetections(with_labels(local.detections, label_of), segments, local.losses)


@exact_products()
@torch.inference_mode()
def detect_share(
    model: DetectionModel,
    dataset: DetectionDataset,
    dist: Dist | None = None,
    *,
    image_size: ImageSize | None = None,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_workers: int = 0,
    loader_timeout_s: float = ANSWER_S,
    criterion: SetCriterion | None = None,
    on_batch: Callable[[int], Any] = lambda images: None,
    is_thing: Sequence[bool] = (),
    model_labels: Tensor | None = None,
) -> RankDetections:
    """This rank's detections on `dataset`, and with a `criterion` the losses of all of it.

    Each image is processed once, over all ranks. Options are those of `evaluate`; `is_thing` `[C]`
    says which classes of the model are things, by default all. `model_labels` are those of the
    model for the labels of `dataset`, by default the same; detections have the model's. They have
    masks if both the model and the targets do. Leaves the model in evaluation mode. Raises
    RuntimeError unless each image was seen exactly once. Communicates at the end.
    """
    dist = dist or _alone(model)
    model.eval()
    dataset = dataset.with_channels(model.channels)
    samples = Samples(dataset, resizer(_final_size(model, image_size)), seed=0)
    sampler = EvalSampler(len(dataset), batch_size, dist.rank, dist.world_size)
    pin_memory = dist.device.type == "cuda"
    batches = load_batches(samples, sampler, num_workers, pin_memory, loader_timeout_s)
    parts = []
    segment_parts = []
    with_masks = model.has_masks and holds_masks(dataset)
    with_segments = has_quality(model, dataset)
    indices: list[int] = []
    sums = _LossSums(criterion, model_labels)
    for keys, batch_samples in zip(sampler, batches, strict=True):
        batch = to_batch(batch_samples, dist.device, dtype=weights_dtype(dtype))
        with autocast(dist.device, dtype):
            outputs = outputs_of(model, batch)
        sums.add(outputs, batch.targets)
        batch_indices = [index for _, index in keys]
        indices += batch_indices
        parts.append(_detections_of_batch(model, outputs, batch, batch_indices, with_masks))
        if with_segments:
            segment_parts.append(_segments_of_batch(model, outputs, batch, batch_indices, is_thing))
        on_batch(len(batch_samples))
    _require_each_once(dist.gather(indices), len(dataset))
    segments = DatasetDetections.concatenate(segment_parts) if with_segments else None
    return RankDetections(DatasetDetections.concatenate(parts), segments, sums.losses(dist))


def _require_each_once(indices: list[int], num_images: int) -> None:
    if sorted(indices) != list(range(num_images)):
        raise RuntimeError("evaluation did not see each image exactly once")


def _final_size(model: DetectionModel, image_size: ImageSize | None) -> Scaling:
    """The size at which a model is evaluated. Raises InputError for one that it cannot take."""
    size = image_size or model.trained_size or model.image_size
    sides = (size,) if not isinstance(size, tuple) else size
    for side in sides:
        require_count("image_size", side)
    if len(sides) > 2:
        raise InputError(f"image_size={size} is neither a side nor (height, width)")
    if isinstance(size, tuple) and model.resize == "aspect":
        text = f"image_size={size}, but the model keeps the aspect ratio of images"
        raise InputError(text, remedy="give one number, the shorter side")
    return final_size(model, size)


def outputs_of(model: DetectionModel, batch: Batch) -> Outputs:
    """The outputs of `model` for a batch; masks that are computed on demand are left out."""
    if model.masks_on_demand:
        return model(batch.images, batch.padding, all_masks=False)
    return model(batch.images, batch.padding)


def _alone(model: DetectionModel) -> Dist:
    """A `Dist` of this process alone; it needs no process group."""
    return Dist(0, 1, next(model.parameters()).device)


def _detections_of_batch(
    model: DetectionModel, outputs: Outputs, batch: Batch, indices: list[int], with_masks: bool
) -> DatasetDetections:
    """The detections in images with these indices."""
    orig_sizes = [target["orig_size"] for target in batch.targets]
    scores, labels, boxes, queries = decode(
        outputs, torch.tensor(orig_sizes), model.loss_config.scores, model.max_detections
    )
    detections_per_image = scores.shape[1]
    masks = None
    if with_masks:
        by_image = compressed_masks(
            outputs, queries, batch.sizes, batch.canvas, orig_sizes, model.is_panoptic
        )
        masks = list(chain.from_iterable(by_image))
    return DatasetDetections(
        image_index=np.repeat(np.array(indices), detections_per_image),
        labels=labels.flatten().cpu().numpy(),
        scores=scores.flatten().cpu().numpy(),
        boxes=boxes.flatten(0, 1).cpu().numpy(),
        masks=masks,
    )


def compressed_masks(
    outputs: Outputs,
    queries: Tensor,
    sizes: Sequence[Size],
    canvas: Size,
    orig_sizes: Sequence[Size],
    original: bool = False,
) -> list[list[bytes]]:
    """For each image of a batch, the masks of its `queries` `[B, K]`, compressed as in
    `DatasetDetections`.

    `sizes` are what the model saw of the images, without the padding up to `canvas`; all sizes are
    (height, width) in px, and masks have the `orig_sizes`. `original` is as in `decode_masks`.
    """
    masks_by_image = []
    for i, (size, orig_size) in enumerate(zip(sizes, orig_sizes, strict=True)):
        # Several detections of a query, of different classes, share its mask.
        distinct, mask_of_query = queries[i].unique(return_inverse=True)
        masks: list[bytes] = []
        for chunk in decode_masks(outputs, i, distinct, size, canvas, orig_size, original):
            masks += encode(chunk)
        masks_by_image.append([masks[row] for row in mask_of_query.tolist()])
    return masks_by_image


def _segments_of_batch(
    model: DetectionModel,
    outputs: Outputs,
    batch: Batch,
    indices: list[int],
    is_thing: Sequence[bool],
) -> DatasetDetections:
    """The segments of images with these indices, with their masks and, for boxes, zeros. `is_thing`
    is as in `detect_share`."""
    things = is_thing or (True,) * model.num_classes
    orig_sizes = [target["orig_size"] for target in batch.targets]
    image_index = []
    labels = []
    scores = []
    masks: list[bytes] = []
    panoptics = panoptic_of_batch(outputs, batch.sizes, orig_sizes, things)
    for index, panoptic in zip(indices, panoptics, strict=True):
        for segment in panoptic.segments:
            image_index.append(index)
            labels.append(segment.label)
            scores.append(segment.score)
        masks += encode(panoptic.masks())
    return DatasetDetections(
        image_index=np.array(image_index, np.int64),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        boxes=np.zeros((len(labels), 4), np.float32),
        masks=masks,
    )


_COUNTS = ("boxes", "matched", "unmatched")  # of `SetCriterion.counts`


class _LossSums:
    """Losses of a data set from the sums of its batches: divided once, by the counts of all of it.

    Batches are dealt to ranks whole, and `fsum` does not depend on the order, so the result is the
    same to the last digit for any number of ranks.
    """

    def __init__(self, criterion: SetCriterion | None, model_labels: Tensor | None = None):
        self._criterion = criterion
        self._model_labels = model_labels  # as in `detect_share`
        self._batches: list[dict[str, float]] = []  # the counts of each, and its undivided losses

    def add(self, outputs: Outputs, targets: list[Target]) -> None:
        """Adds a batch. Waits for the device."""
        if self._criterion is None:
            return
        if self._model_labels is not None:
            targets = [with_model_labels(target, self._model_labels) for target in targets]
        undivided = torch.ones(NUM_DENOMINATORS, dtype=torch.float64)
        losses = self._criterion(outputs, targets, undivided)
        del losses["loss"]  # its parts have different counts
        values = torch.stack(list(losses.values())).tolist()
        sums = dict(zip(losses, values, strict=True))
        counts = dict(zip(_COUNTS, self._criterion.counts(targets).tolist(), strict=True))
        self._batches.append({**counts, **sums})

    def losses(self, dist: Dist) -> Losses:
        """The losses of the whole data set, and their weighted total first, as "loss"; empty
        without a criterion or images. Communicates."""
        batches = dist.gather(self._batches)
        if self._criterion is None or not batches:
            return {}
        sums = {}
        for name in batches[0]:
            sums[name] = math.fsum(batch[name] for batch in batches)
        count_sums = []
        for name in _COUNTS:
            count_sums.append(sums.pop(name))  # what remains are losses
        counts = torch.tensor(count_sums, dtype=torch.float64)
        divisors = self._criterion.denominators(counts, counts).tolist()
        weights = asdict(self._criterion.config)
        losses = {}
        total = 0.0
        for name, value in sums.items():
            term = _term_of(name)
            losses[name] = value / divisors[DENOMINATOR_OF[term]]
            total += weights[term] * losses[name]
        return {"loss": total, **losses}


def _term_of(loss: str) -> str:
    """The term that a loss belongs to: "loss_ce" for "loss_ce_dn_0"."""
    prefix, term, *_ = loss.split("_")
    return f"{prefix}_{term}"
