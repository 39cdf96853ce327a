"""How training would judge a model's answer to one image: the matching, the loss terms, and what they are divided by.

All numbers come from the functions that train: `cost_matrix`, `match`, `SetCriterion`. The batch is one image on each
of W GPUs, as one optimizer step sees it, without augmentation and dropout.
Shapes: L decoder layers, Q queries, T objects of the image; boxes are fractions of the image.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.loader import Sample, Samples, canvas_of, to_batch
from redetr.data.transforms import resizer
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.evaluation import labels_in
from redetr.explain import with_all_layers
from redetr.losses import SetCriterion, decoder_predictions
from redetr.matcher import cost_matrix, match
from redetr.structures import LossConfig, Outputs, Target

Losses = dict[str, float]  # by the names of `SetCriterion`
Divisors = tuple[float, float]  # of the box terms, and of the class term
_COSTS = ("cost_class", "cost_bbox", "cost_giou")
_TERMS = ("loss_ce", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class Share:
    """What one GPU computes from its image."""

    image_id: int
    objects: int
    sums: Losses  # not divided; without "loss"
    divisors: Divisors
    losses: Losses
    own_divisors: Divisors  # as if the image were the whole batch
    own_losses: Losses


@dataclass(frozen=True, eq=False)
class LossExplanation:
    """The loss of one image, and of the batch it is in. All tensors are on the host."""

    image: Tensor  # uint8 [3, H, W], as it is stored
    class_names: tuple[str, ...]
    labels: Tensor  # [T] of the objects
    targets: Tensor  # [T, 4] cxcywh
    predicted: Tensor  # [L, Q, 4] cxcywh
    costs: Tensor  # [L, 3, Q, T] class, L1 and GIoU cost, weighted: their sum is what matching minimises
    queries: Tensor  # [L, T] the query of each object; Q if there are more objects than queries
    terms: Tensor  # [L, T, 3] class, L1 and GIoU loss of each object and its query, not divided
    unmatched: Tensor  # [L] class loss of all other queries, not divided
    shares: tuple[Share, ...]  # of every GPU, the first holds the image
    together: Losses  # of all images in one process
    canvas: tuple[int, int]  # height, width that the images are padded to
    config: LossConfig

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: of each object and layer its query, the parts of the matching cost and of the loss; what each GPU
        computes; the losses of all images in one process."""
        num_queries = self.predicted.shape[1]
        objects = []
        for t, label in enumerate(self.labels.tolist()):
            layers = []
            for layer, query in enumerate(self.queries[:, t].tolist()):
                matched = query < num_queries
                cost = self.costs[layer, :, query, t].tolist() if matched else []
                terms = self.terms[layer, t].tolist() if matched else []
                layers.append({"query": query if matched else None, "cost": dict(zip(_COSTS, cost, strict=False)),
                               **dict(zip(_TERMS, terms, strict=False))})  # fmt: skip
            objects.append({"label": self.class_names[label], "box": self.targets[t].tolist(), "layers": layers})
        return {"objects": objects, "gpus": [asdict(share) for share in self.shares], "together": self.together}


@torch.no_grad()
def explain_loss(detector: Detector, dataset: DetectionDataset, image_id: int, world_size: int = 1) -> LossExplanation:
    """The loss of the image with that id on GPU 0 and the next images of the data set, one each, on the other GPUs.

    Raises InputError if there is no such image, the data set is smaller than the world, or the model does not know its
    classes.
    """
    model, criterion = detector.model, SetCriterion.for_model(detector.model)
    index, samples = _batch(detector, dataset, image_id, world_size)
    canvas = canvas_of(samples)
    batches = [to_batch([sample], detector.device, canvas) for sample in samples]
    outputs = [with_all_layers(model)(batch.images, batch.padding) for batch in batches]
    targets = [target for _, target in samples]
    total = criterion.counts(targets)
    shares = [_share(criterion, out, target, total, world_size) for out, target in zip(outputs, targets, strict=True)]
    return LossExplanation(
        image=dataset.image(index),
        class_names=detector.class_names,
        labels=targets[0]["labels"],
        targets=targets[0]["boxes"],
        **_matching(criterion, outputs[0], targets[0]),
        shares=tuple(shares),
        together=_numbers(criterion(_joined(outputs), targets)),
        canvas=canvas,
        config=model.loss_config,
    )


def _batch(detector: Detector, dataset: DetectionDataset, image_id: int, world_size: int) -> tuple[int, list[Sample]]:
    """The image's place in the data set; the image and those behind it as the model sees them, in its own labels."""
    if not 1 <= world_size <= len(dataset):
        raise InputError(f"--world-size {world_size}: give each GPU an image, {dataset.name} has {len(dataset)}")
    ids = [dataset.image_id(i) for i in range(len(dataset))]
    if image_id not in ids:
        known = ", ".join(map(str, ids[:5]))
        raise InputError(f"{dataset.name}: no image has the id {image_id}: take another --image-id, such as {known}")
    label_of = labels_in(dataset, detector.model.num_classes, detector.classes).tolist()
    labels = torch.tensor([label_of.index(label) for label in range(len(dataset.class_names))])
    transform = resizer(detector.model.resize, detector.image_size, detector.model.max_size)
    seen, index = Samples(dataset, transform, seed=0), ids.index(image_id)
    samples = [seen[(0, (index + i) % len(dataset))] for i in range(world_size)]
    for _, target in samples:
        target["labels"] = labels[target["labels"]]
    return index, samples


def _share(criterion: SetCriterion, outputs: Outputs, target: Target, total: Tensor, world_size: int) -> Share:
    counts = criterion.counts([target])
    divisors = criterion.denominators(counts, total, world_size)
    own = criterion.denominators(counts, counts)
    sums, losses, own_losses = (_numbers(criterion(outputs, [target], by)) for by in (torch.ones(2), divisors, own))
    del sums["loss"]  # its parts have different divisors
    return Share(target["image_id"], len(target["labels"]), sums, _pair(divisors), losses, _pair(own), own_losses)


def _matching(criterion: SetCriterion, outputs: Outputs, target: Target) -> dict[str, Tensor]:
    """Costs, assignment and the loss of each pair, by the names of `LossExplanation`."""
    predictions, config = decoder_predictions(outputs), criterion.config
    logits, boxes = predictions.logits, predictions.boxes  # [L, 1, Q, ...]
    wanted = target["labels"][None].to(boxes.device), target["boxes"][None].to(boxes.device)
    parts = [cost_matrix(logits, boxes, *wanted, _only(name, config)) for name in _COSTS]
    whole = cost_matrix(logits, boxes, *wanted, config)
    queries = match([whole], [len(target["labels"])])[0][:, 0].cpu()
    terms = torch.zeros(*queries.shape, 3)
    unmatched = torch.zeros(len(queries))
    for layer, of_objects in enumerate(queries.tolist()):
        rest = [q for q in range(boxes.shape[2]) if q not in of_objects]
        unmatched[layer] = _pair_losses(criterion, logits[layer][:, rest], boxes[layer][:, rest], target, [])[0]
        for t, q in enumerate(of_objects):
            if q < boxes.shape[2]:
                pair = logits[layer][:, [q]], boxes[layer][:, [q]]
                terms[layer, t] = _pair_losses(criterion, *pair, target, [t])
    return {"predicted": boxes[:, 0].cpu(), "costs": torch.cat(parts, 1).cpu(), "queries": queries, "terms": terms,
            "unmatched": unmatched}  # fmt: skip


def _pair_losses(criterion: SetCriterion, logits: Tensor, boxes: Tensor, target: Target, objects: list[int]) -> Tensor:
    """The undivided losses `[3]` of some queries `[1, q, ...]` if the image held only these objects: with one query and
    one object, matching has no choice."""
    alone = SetCriterion(replace(criterion.config, proposals=False), criterion.num_classes, boxes.shape[1])
    some: Target = {**target, "labels": target["labels"][objects], "boxes": target["boxes"][objects]}
    losses = alone(Outputs(pred_logits=logits, pred_boxes=boxes), [some], torch.ones(2))
    return torch.stack([losses[term] for term in _TERMS]).cpu()


def _only(cost: str, config: LossConfig) -> LossConfig:
    """The same with the other two costs left out."""
    left_out: dict[str, Any] = {name: 0.0 for name in _COSTS if name != cost}
    return replace(config, **left_out)


def _joined(outputs: list[Outputs]) -> Outputs:
    """What the model would return for all images in one batch."""
    joined: Any = {}
    for name, value in outputs[0].items():
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


def _pair(divisors: Tensor) -> Divisors:
    box, class_ = divisors.tolist()
    return box, class_
