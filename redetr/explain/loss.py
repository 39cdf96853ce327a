"""How training would judge a model's predictions for one image: matching, loss terms, and their
divisors.

All numbers come from the functions that training uses: `cost_matrix`, `match`, `SetCriterion`. The
batch is that of one optimizer step with one image on each of W GPUs, without augmentation and
dropout.

Shapes: L decoder layers, Q queries, T objects of the image; boxes are fractions of the image.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.annotations import Split
from redetr.data.loader import Sample, Samples, canvas_of, to_batch
from redetr.data.transforms import final_size, resizer
from redetr.denoising import NoisyQueries, noisy_queries
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.explain.attention import on_host, with_all_layers
from redetr.labels import labels_in, model_labels_of, with_model_labels
from redetr.losses import NUM_DENOMINATORS, SetCriterion, decoder_predictions
from redetr.matcher import cost_matrix, match
from redetr.precision import exact_products, weights_dtype
from redetr.structures import LossConfig, Outputs, RelativeBoxes, Target
from redetr.truth import mask_gaps

Losses = dict[str, float]  # by the names of `SetCriterion`
Divisors = tuple[float, ...]  # of `SetCriterion.denominators`
_COSTS = ("cost_class", "cost_bbox", "cost_giou")
_TERMS = ("loss_ce", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class Share:
    """The losses that one GPU computes from its image."""

    image_id: int
    objects: int
    sums: Losses  # not divided; without "loss"
    divisors: Divisors
    losses: Losses
    single_divisors: Divisors  # as if the image were the whole batch
    single_losses: Losses


@dataclass(frozen=True, eq=False)
class NoisyAnswers:
    """The first group of noisy queries: for each object a positive and a negative one.

    All tensors are on the host.
    """

    groups: int
    labels: Tensor  # [2, T] that they start with
    starts: Tensor  # [2, T, 4] cxcywh
    boxes: Tensor  # [L, 2, T, 4] cxcywh
    scores: Tensor  # [L, 2, T] of the object's class

    def of_object(self, index: int) -> dict[str, Any]:
        """A dict for JSON: the start of the positive and the negative query of an object, and their
        predictions after each layer."""
        described = {}
        for sign, kind in enumerate(("positive", "negative")):
            described[kind] = {
                "label": int(self.labels[sign, index]),
                "start": self.starts[sign, index].tolist(),
                "boxes": self.boxes[:, sign, index].tolist(),
                "scores": self.scores[:, sign, index].tolist(),
            }
        return described


@dataclass(frozen=True, eq=False)
class LossExplanation:
    """The loss of one image, and of its batch. All tensors are on the host."""

    image_name: str  # as in `DetectionDataset.image_name`
    image: Tensor  # uint8 [channels, H, W], as it is stored
    class_names: tuple[str, ...]
    labels: Tensor  # [T] of the objects
    targets: Tensor  # [T, 4] cxcywh
    predicted: Tensor  # [L, Q, 4] cxcywh
    costs: Tensor  # [L, 3, Q, T] weighted class, L1 and GIoU cost; matching minimises their sum
    queries: Tensor  # [L, T] the query of each object; Q if there are more objects than queries
    terms: Tensor  # [L, T, 3] class, L1 and GIoU loss of each object and its query, not divided
    unmatched: Tensor  # [L] class loss of all other queries, not divided
    shares: tuple[Share, ...]  # of every GPU, the first holds the image
    together: Losses  # of all images in one process
    canvas: tuple[int, int]  # height, width that the images are padded to
    config: LossConfig
    noisy: NoisyAnswers | None = None  # None without denoising
    # a sentence on the objects of the data set without a mask; empty if there are none, and for
    # models without masks
    mask_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON: query, costs and losses of each object in every layer, and the losses of
        each GPU."""
        objects = []
        for index, label in enumerate(self.labels.tolist()):
            layers = []
            for layer in range(len(self.queries)):
                layers.append(self._matched_pair(layer, index))
            described: dict[str, Any] = {
                "label": self.class_names[label],
                "box": self.targets[index].tolist(),
                "layers": layers,
            }
            if self.noisy is not None:
                described["denoising"] = self.noisy.of_object(index)
            objects.append(described)
        gpus = [asdict(share) for share in self.shares]
        return {"objects": objects, "gpus": gpus, "together": self.together}

    def _matched_pair(self, layer: int, index: int) -> dict[str, Any]:
        """The query that was matched to an object in a layer, with the costs and losses of the
        pair."""
        query = int(self.queries[layer, index])
        num_queries = self.predicted.shape[1]
        if query >= num_queries:
            return {"query": None, "cost": {}}
        costs = self.costs[layer, :, query, index].tolist()
        terms = self.terms[layer, index].tolist()
        cost_by_name = dict(zip(_COSTS, costs, strict=True))
        term_by_name = dict(zip(_TERMS, terms, strict=True))
        return {"query": query, "cost": cost_by_name, **term_by_name}


def open_judged(
    detector: Detector,
    split: Split,
    source: str | None = None,
    val_fraction: float | None = None,
) -> DetectionDataset:
    """The data set for `explain_loss`, with masks if the model has some. Arguments and errors
    are those of `Detector.open_data`."""
    return detector.open_data(split, source, val_fraction, masks=detector.model.has_masks)


@torch.no_grad()
@exact_products()
def explain_loss(
    detector: Detector, dataset: DetectionDataset, image_id: int, world_size: int = 1
) -> LossExplanation:
    """The loss of the image with this id, which is on GPU 0; the other GPUs have the images that
    follow it.

    Raises InputError if there is no such image, if the data set has fewer images than there are
    GPUs, or if the model does not know its classes.
    """
    model = detector.model
    whole_model = with_all_layers(model)
    criterion = SetCriterion.for_model(model)
    index, samples = _batch(detector, dataset, image_id, world_size)
    targets = [target for _, target in samples]
    total = criterion.counts(targets)
    canvas = canvas_of(samples)
    groups = criterion.config.denoising
    noise = noisy_queries(targets, groups, model.num_classes) if groups else None
    outputs = []
    shares = []
    for position, sample in enumerate(samples):
        batch = to_batch([sample], detector.device, canvas, weights_dtype(detector.dtype))
        inputs: list[Any] = [batch.images, batch.padding]
        if noise is not None:
            inputs.append(_noise_of(noise, position, detector.device))
        image_outputs = whole_model(*inputs)
        _, target = sample
        outputs.append(image_outputs)
        shares.append(_share(criterion, image_outputs, target, total, world_size))
    noisy = None
    if noise is not None:
        noisy = _noisy_answers(noise, outputs[0]["denoising"], targets[0], groups)
    losses_together = criterion(_joined(outputs), targets)
    return LossExplanation(
        image_name=dataset.image_name(index),
        image=dataset.image(index),
        class_names=detector.class_names,
        labels=targets[0]["labels"],
        targets=targets[0]["boxes"],
        **_matching(criterion, outputs[0], targets[0]),
        shares=tuple(shares),
        together=_numbers(losses_together),
        canvas=canvas,
        config=model.loss_config,
        noisy=noisy,
        mask_note=_mask_note(dataset) if model.has_masks else "",
    )


def _mask_note(dataset: DetectionDataset) -> str:
    gaps = mask_gaps(dataset)
    return f"{gaps}; such objects add nothing to the losses of masks" if gaps else ""


def _noise_of(noise: NoisyQueries, position: int, device: torch.device) -> NoisyQueries:
    """The noisy queries of one image of a batch."""
    labels = noise.labels[position]
    boxes = noise.boxes[position]
    return NoisyQueries(labels[None].to(device), boxes[None].to(device))


def _noisy_answers(
    noise: NoisyQueries, outputs: Outputs, target: Target, groups: int
) -> NoisyAnswers:
    """The first group of the first image; `outputs` are the outputs under "denoising"."""
    predictions = decoder_predictions(outputs)
    num_objects = len(target["labels"])

    def first_group(values: Tensor) -> Tensor:
        """`[..., 2, T, N]` of `[..., M, N]`."""
        by_group = values.unflatten(-2, (groups, 2, -1))
        return by_group[..., 0, :, :num_objects, :].cpu()

    logits = first_group(predictions.logits[:, 0])  # [L, 2, T, K]
    classes = target["labels"].expand(logits.shape[:-1])  # [L, 2, T]
    scores = logits.sigmoid().gather(-1, classes[..., None])
    return NoisyAnswers(
        groups=groups,
        labels=first_group(noise.labels[0, :, None])[..., 0],
        starts=first_group(noise.boxes[0]),
        boxes=on_host(first_group(predictions.boxes[:, 0])),
        scores=on_host(scores[..., 0]),
    )


def _batch(
    detector: Detector, dataset: DetectionDataset, image_id: int, world_size: int
) -> tuple[int, list[Sample]]:
    """The index of the image, and one sample for each GPU, starting with that image, with the
    model's labels."""
    size = len(dataset)
    if world_size < 1:
        raise InputError(f"--world-size {world_size} must be at least 1")
    if world_size > size:
        text = f"{world_size} GPUs need an image each, and {dataset.name} has {size}"
        raise InputError(text, remedy="choose fewer GPUs (--world-size)")
    ids = [dataset.image_id(index) for index in range(size)]
    if image_id not in ids:
        examples = ", ".join(map(str, ids[:5]))
        raise InputError(
            f"{dataset.name}: no image has the id {image_id}: "
            f"give another --image-id, such as {examples}"
        )
    model = detector.model
    label_of = labels_in(dataset, model.num_classes, detector.classes)
    model_labels = model_labels_of(label_of)
    transform = resizer(final_size(model, detector.image_size))
    all_samples = Samples(dataset, transform, seed=0)
    first = ids.index(image_id)
    samples = []
    for gpu in range(world_size):
        index = (first + gpu) % size
        image, target = all_samples[(0, index)]
        samples.append((image, with_model_labels(target, model_labels)))
    return first, samples


def _share(
    criterion: SetCriterion, outputs: Outputs, target: Target, total: Tensor, world_size: int
) -> Share:
    counts = criterion.counts([target])
    divisors = criterion.denominators(counts, total, world_size)
    single_divisors = criterion.denominators(counts, counts)
    sums = _numbers(criterion(outputs, [target], torch.ones_like(divisors)))
    del sums["loss"]  # its terms have different divisors
    return Share(
        image_id=target["image_id"],
        objects=len(target["labels"]),
        sums=sums,
        divisors=tuple(divisors.tolist()),
        losses=_numbers(criterion(outputs, [target], divisors)),
        single_divisors=tuple(single_divisors.tolist()),
        single_losses=_numbers(criterion(outputs, [target], single_divisors)),
    )


def _matching(criterion: SetCriterion, outputs: Outputs, target: Target) -> dict[str, Tensor]:
    """Costs, assignment and the loss of each pair, by the names of `LossExplanation`."""
    config = criterion.config
    predictions = decoder_predictions(outputs)
    logits = predictions.logits  # [L, 1, Q, classes]
    boxes = predictions.boxes  # [L, 1, Q, 4]
    labels = target["labels"][None].to(boxes.device)
    target_boxes = target["boxes"][None].to(boxes.device)
    costs = []
    for name in _COSTS:
        costs.append(cost_matrix(logits, boxes, labels, target_boxes, _only(name, config)))
    whole_cost = cost_matrix(logits, boxes, labels, target_boxes, config)
    num_objects = len(target["labels"])
    (matched,) = match([whole_cost], [num_objects])
    queries = matched[:, 0].cpu()

    num_layers, _, num_queries, _ = boxes.shape
    terms = torch.zeros(num_layers, num_objects, 3)
    unmatched = torch.zeros(num_layers)
    for layer, query_of_object in enumerate(queries.tolist()):
        layer_logits = logits[layer]
        layer_boxes = boxes[layer]
        rest = [query for query in range(num_queries) if query not in query_of_object]
        rest_losses = _undivided(criterion, layer_logits[:, rest], layer_boxes[:, rest], target, [])
        unmatched[layer] = rest_losses[0]
        for index, query in enumerate(query_of_object):
            if query < num_queries:
                pair_logits = layer_logits[:, [query]]
                pair_boxes = layer_boxes[:, [query]]
                terms[layer, index] = _undivided(
                    criterion, pair_logits, pair_boxes, target, [index]
                )
    return {
        "predicted": on_host(boxes[:, 0]),
        "costs": on_host(torch.cat(costs, 1)),
        "queries": queries,
        "terms": terms,
        "unmatched": unmatched,
    }


def _undivided(
    criterion: SetCriterion, logits: Tensor, boxes: Tensor, target: Target, objects: list[int]
) -> Tensor:
    """The undivided losses `[3]` of queries `[1, q, ...]`, as if the image had only these objects.

    With one query and one object, matching has no choice. Masks are judged in the last layer only,
    and are no part of these losses.
    """
    num_queries = boxes.shape[1]
    config = replace(criterion.config, proposals=False, loss_mask=0.0, loss_dice=0.0)
    alone = SetCriterion(config, criterion.num_classes, num_queries)
    outputs = Outputs(pred_logits=logits, pred_boxes=boxes)
    selected: Target = {
        **target,
        "labels": target["labels"][objects],
        "boxes": RelativeBoxes(target["boxes"][objects]),
    }
    selected.pop("masks", None)
    losses = alone(outputs, [selected], torch.ones(NUM_DENOMINATORS))
    terms = [losses[name] for name in _TERMS]
    return torch.stack(terms).cpu()


def _only(cost: str, config: LossConfig) -> LossConfig:
    """The same configuration with this cost alone."""
    others: dict[str, Any] = {name: 0.0 for name in _COSTS if name != cost}
    return replace(config, **others)


def _joined(outputs: list[Outputs]) -> Outputs:
    """The outputs of the model for all images in one batch.

    `masks_of` computes masks of one image alone and is left out, because `pred_masks` hold them.
    """
    joined: Any = {}
    for name, value in outputs[0].items():
        if name == "masks_of":
            continue
        if name == "canvas":  # all images are padded to one size
            joined[name] = value
            continue
        values: list[Any] = [output[name] for output in outputs]  # type: ignore[literal-required]
        if isinstance(value, Tensor):
            joined[name] = torch.cat(values)
        elif isinstance(value, dict):
            joined[name] = _joined(values)
        else:
            joined[name] = [_joined(list(layer)) for layer in zip(*values, strict=True)]
    return joined


def _numbers(losses: dict[str, Tensor]) -> Losses:
    return {name: value.item() for name, value in losses.items()}
