"""COCO numbers of a model on a data set, the same for any number of ranks."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from redetr.data import DetectionDataset
from redetr.data.loader import Samples, load_batches, to_batch
from redetr.data.sampler import EvalSampler
from redetr.data.transforms import resizer
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.losses import SetCriterion
from redetr.metrics import CocoResult, GroundTruth, coco_metrics
from redetr.postprocess import decode
from redetr.precision import autocast, weights_dtype
from redetr.structures import DetectionModel, Outputs, Target


@torch.inference_mode()
def detect(
    model: DetectionModel,
    dataset: DetectionDataset,
    dist: Dist | None = None,
    *,
    image_size: int,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_workers: int = 0,
    criterion: SetCriterion | None = None,
    on_batch: Callable[[int], Any] = lambda images: None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """All detections on `dataset`: `image_index`, `labels`, `scores` `[N]` and `boxes` `[N, 4]`
    xyxy pixels; and the losses of the whole data set if there is a `criterion`, by the names that
    it gives them.

    Each image is looked at once, over all ranks. Communicates at the end. `on_batch` is told the
    number of images after each batch.
    """
    dist = dist or Dist(0, 1, next(model.parameters()).device)
    model.eval()
    transform = resizer(model.resize, image_size, model.max_size)
    sampler = EvalSampler(len(dataset), batch_size, dist.rank, dist.world_size)
    batches = load_batches(
        Samples(dataset, transform, seed=0), sampler, num_workers, dist.device.type == "cuda"
    )
    parts = [_no_detections()]
    seen = [np.zeros(0, np.int64)]
    sums = _LossSums(criterion)
    for keys, samples in zip(sampler, batches, strict=True):
        batch = to_batch(samples, dist.device, dtype=weights_dtype(dtype))
        with autocast(dist.device, dtype):
            outputs = model(batch.images, batch.padding)
        sums.add(outputs, batch.targets)
        sizes = torch.tensor([target["orig_size"] for target in batch.targets])
        best = decode(outputs, sizes, model.loss_config.scores, model.most_detections)
        scores, labels, boxes = (x.cpu().numpy() for x in best)
        seen.append(np.array([index for _, index in keys]))
        index = np.repeat(seen[-1], scores.shape[1])
        parts.append(
            {
                "image_index": index,
                "labels": labels.ravel(),
                "scores": scores.ravel(),
                "boxes": boxes.reshape(-1, 4),
            }
        )
        on_batch(len(samples))
    counted = dist.gather_arrays({"seen": np.concatenate(seen)})["seen"]
    if sorted(counted.tolist()) != list(range(len(dataset))):
        raise RuntimeError("evaluation did not see each image exactly once")
    found = dist.gather_arrays(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )
    return found, sums.losses(dist)


class _LossSums:
    """Losses of a data set from the sums of its batches: divided once, by the counts of all of it.

    Batches are dealt to ranks whole, and `fsum` does not depend on the order, so the result is the
    same to the last digit for any number of ranks.
    """

    def __init__(self, criterion: SetCriterion | None):
        self._criterion = criterion
        self._batches: list[dict[str, float]] = []

    def add(self, outputs: Outputs, targets: list[Target]) -> None:
        if self._criterion:
            losses = self._criterion(outputs, targets, torch.ones(2, dtype=torch.float64))
            del losses["loss"]  # its parts have different counts
            values = torch.stack(list(losses.values())).tolist()
            boxes, classes = self._criterion.counts(targets).tolist()
            self._batches.append(
                {"boxes": boxes, "classes": classes, **dict(zip(losses, values, strict=True))}
            )

    def losses(self, dist: Dist) -> dict[str, float]:
        batches = dist.gather(self._batches)
        if not batches or not self._criterion:
            return {}
        sums = {name: math.fsum(batch[name] for batch in batches) for name in batches[0]}
        counts = torch.tensor([sums.pop("boxes"), sums.pop("classes")], dtype=torch.float64)
        for_boxes, for_classes = self._criterion.denominators(counts, counts).tolist()
        losses = {
            n: value / (for_classes if n.startswith("loss_ce") else for_boxes)
            for n, value in sums.items()
        }
        weights = asdict(self._criterion.config)
        total = sum(
            weights["_".join(name.split("_")[:2])] * value for name, value in losses.items()
        )
        return {"loss": total, **losses}


def _no_detections() -> dict[str, np.ndarray]:
    counts, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return {
        "image_index": counts,
        "labels": counts,
        "scores": values,
        "boxes": values.reshape(0, 4),
    }


def labels_in(
    dataset: DetectionDataset, num_classes: int, classes: Sequence[tuple[int, str]] | None = None
) -> np.ndarray:
    """The label in `dataset` of each of a model's `[num_classes]`, -1 where it has none; `classes`
    and errors as in `detect_classes`.
    """
    wanted: list[Any] = list(zip(dataset.category_ids, dataset.class_names, strict=True))
    known: list[Any] = wanted if classes is None else list(classes)
    unknown = [one for one in wanted if one not in known]
    if len(known) != num_classes or (unknown and not _names_suffice(dataset.class_names, known)):
        theirs = (
            f"of which it does not know {_some(unknown)}" if unknown else f"such as {_some(wanted)}"
        )
        raise InputError(
            f"the model knows {num_classes} "
            f"classes{', such as ' * bool(classes)}{_some(classes or [])}; "
            f"{dataset.name} has {len(wanted)}, {theirs}: give data with the categories it was "
            "trained on"
        )
    if unknown:
        wanted, known = list(dataset.class_names), [name for _, name in known]
    return np.array([wanted.index(one) if one in wanted else -1 for one in known])


def _names_suffice(names: Sequence[str], known: list[tuple[int, str]]) -> bool:
    """Whether each name is one class of the data and one that the model knows, whatever the ids."""
    counts = Counter(name for _, name in known)
    return len(set(names)) == len(names) and all(counts[name] == 1 for name in names)


def _some(classes: Sequence[tuple[int, str]]) -> str:
    """The first classes, in words."""
    return ", ".join(f"{name} ({id_})" for id_, name in classes[:3]) + ", ..." * (len(classes) > 3)


def detect_classes(
    model: DetectionModel,
    dataset: DetectionDataset,
    dist: Dist | None = None,
    *,
    classes: Sequence[tuple[int, str]] | None = None,
    **options: Any,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What `detect` returns, with the labels of the data set; options as there. Communicates.

    `classes` are the (category id, name) of the model's labels, by default those of the data set;
    classes that the data set does not have are left out (official checkpoints have 91 outputs for
    COCO's 80 categories). Where the model lacks an id with its name, all are matched by distinct
    names alone: conversion of data changes ids. Raises InputError if the model does not know all
    classes of the data set.
    """
    label_of = labels_in(dataset, model.num_classes, classes)
    found, losses = detect(model, dataset, dist, **options)
    found["labels"] = label_of[found["labels"]]
    known = found["labels"] >= 0
    return {name: array[known] for name, array in found.items()}, losses


def evaluate(
    model: DetectionModel, dataset: DetectionDataset, dist: Dist | None = None, **options: Any
) -> CocoResult:
    """The twelve COCO numbers, per-class AP and, with a `criterion`, losses of `model` on
    `dataset`; options and errors as in `detect_classes`. Communicates."""
    found, losses = detect_classes(model, dataset, dist, **options)
    return replace(coco_metrics(GroundTruth.from_dataset(dataset), **found), losses=losses)
