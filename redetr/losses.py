"""The set loss: sums over matched and unmatched queries, divided by given counts.

The criterion never communicates. For training that is exact over ranks and accumulation steps, the
caller adds up `counts` over all micro-batches of an optimizer step and all ranks, and passes
`denominators`; without them the batch stands alone.

Shape letters: L decoder layers, B images, Q queries, K scores per query (the classes, and "no
object" for softmax), T objects of an image, padded to the most in the batch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from redetr.boxes import at_least_float32, box_cxcywh_to_xyxy, iou_and_giou
from redetr.choices import ClassLoss, ClassNormalization
from redetr.denoising import known_objects
from redetr.edges import Edges, distillation_sums, localization_sums
from redetr.mask_losses import mask_sums
from redetr.matcher import cost_matrix, match
from redetr.structures import LossConfig, Outputs, Target, to_device
from redetr.wording import counted

# "mal": exponent of the IoU target and of the weight of unmatched scores (Huang et al., DEIM,
# CVPR 2025).
_MAL_GAMMA = 1.5
# "varifocal": factor and exponent of the weight of unmatched scores (Zhang et al., VarifocalNet,
# CVPR 2021), as in RT-DETR.
_VARIFOCAL_ALPHA = 0.75
_VARIFOCAL_GAMMA = 2
# Replaces a sum of class weights that is 0: no object, and `eos_coef` 0.
_SMALLEST_WEIGHT = 1e-6
# A logit whose score is 0, and so are its loss and its gradient. It is finite: 0 times infinity is
# no number.
_SCORE_0 = -1e4
# Boxes may leave the image a little; larger numbers are pixels.
_LARGEST_FRACTION = 2.0


# The entries of `SetCriterion.denominators`, and the one that each term of the loss is divided by.
_BOXES, _CLASSES, _MATCHED_EDGES, _OTHER_EDGES = range(4)
NUM_DENOMINATORS = 4
DENOMINATOR_OF = {
    "loss_ce": _CLASSES,
    "loss_bbox": _BOXES,
    "loss_giou": _BOXES,
    "loss_fgl": _BOXES,
    "loss_ddf": _MATCHED_EDGES,
    "loss_ddn": _OTHER_EDGES,
    "loss_mask": _BOXES,
    "loss_dice": _BOXES,
}


class Predictions(NamedTuple):
    """One set of predictions to be matched: the decoder's layers, or the encoder's proposals."""

    suffixes: list[str]  # of the names of the losses, for each layer
    logits: Tensor  # [L, B, Q, K]
    boxes: Tensor  # [L, B, Q, 4] cxcywh
    edges: Edges | None = None  # of the last layers, if they have any


def decoder_predictions(outputs: Outputs) -> Predictions:
    """Returns the predictions of all decoder layers, first layer first, in fp32 or fp64.

    Boxes that are proposed within the first layer come before its own.
    """
    earlier_layers = outputs.get("aux_outputs", [])
    layers = [*earlier_layers, outputs]
    suffixes = [f"_{i}" for i in range(len(earlier_layers))]
    suffixes.append("")  # the last layer's losses have plain names
    if "pre_outputs" in outputs:
        layers.insert(0, outputs["pre_outputs"])
        suffixes.insert(0, "_pre")
    logits = torch.stack([layer["pred_logits"] for layer in layers])  # [L, B, Q, K]
    boxes = torch.stack([layer["pred_boxes"] for layer in layers])  # [L, B, Q, 4]
    edge_logits = [layer["edge_logits"] for layer in layers if "edge_logits" in layer]
    edges = None
    if edge_logits:
        by_edge = torch.stack(edge_logits).unflatten(-1, (4, -1))  # [L, B, Q, 4, N]
        edges = Edges(at_least_float32(by_edge), at_least_float32(outputs["first_boxes"]))
    return Predictions(suffixes, at_least_float32(logits), at_least_float32(boxes), edges)


def noisy_predictions(
    outputs: Outputs, num_objects: list[int], groups: int
) -> tuple[Predictions, Tensor]:
    """Returns the predictions of the noisy queries, and the query that is to detect each object.

    `outputs` are those under "denoising", with M noisy queries. The queries are
    `[L, B, groups * T]`: those of every object in every group, M where there is none. The logits of
    padding are replaced by a constant whose score, loss and gradient are 0.
    """
    predictions = decoder_predictions(outputs)
    logits = predictions.logits  # [L, B, M, K]
    layers, _, num_noisy, _ = logits.shape
    queries, is_padding = known_objects(num_objects, groups, num_noisy)
    queries = to_device(queries, logits.device).expand(layers, -1, -1)
    is_padding = to_device(is_padding, logits.device)
    judged_logits = logits.masked_fill(is_padding[..., None], _SCORE_0)
    suffixes = [f"_dn{suffix}" for suffix in predictions.suffixes]
    return predictions._replace(suffixes=suffixes, logits=judged_logits), queries


class SetCriterion(nn.Module):
    """Matching and loss of a model variant.

    Source: Carion et al. 2020, equations 2 and 3. Deviations: the class loss, too, is divided by a
    count of the whole optimizer step (see `denominators`); with sigmoid scores, it is that of
    `_iou_aware_bce`.
    """

    def __init__(
        self,
        config: LossConfig,
        num_classes: int,
        num_queries: int,
        class_normalization: ClassNormalization = "global",
        masks_on_demand: bool = False,
    ):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.class_normalization: ClassNormalization = class_normalization
        self.masks_on_demand = masks_on_demand  # as in `DetectionModel`

    @classmethod
    def for_model(
        cls, model: Any, class_normalization: ClassNormalization = "global"
    ) -> "SetCriterion":
        """Returns the criterion with the weights, costs and scores that belong to `model`."""
        return cls(
            model.loss_config,
            model.num_classes,
            model.num_queries,
            class_normalization,
            model.masks_on_demand,
        )

    def counts(self, targets: list[Target], num_queries: int | None = None) -> Tensor:
        """Returns the numbers of boxes, of queries with a box, and of those without, `[3]`.

        They are float64 on the host. All are known before any forward pass, so they can be sent
        ahead: an image with T boxes has exactly min(Q, T) matched queries. Q is `num_queries`, by
        default that of the model.
        """
        if num_queries is None:
            num_queries = self.num_queries
        boxes = 0
        matched = 0
        for target in targets:
            num_objects = len(target["labels"])
            boxes += num_objects
            matched += min(num_queries, num_objects)
        unmatched = num_queries * len(targets) - matched
        return torch.tensor([boxes, matched, unmatched], dtype=torch.float64)

    def denominators(
        self, counts: Tensor, step_counts: Tensor, world_size: int = 1, accumulate: int = 1
    ) -> Tensor:
        """Returns the denominators of the sums of one micro-batch, `[4]`.

        They are those of boxes, classes, edges of matched queries and edges of other queries;
        `DENOMINATOR_OF` has the index for each term.

        `counts` `[3]` are those of this micro-batch, `step_counts` `[3]` their sum over all
        micro-batches of the optimizer step on all ranks. Gradients are averaged over ranks
        afterwards, hence the division by `world_size`; it follows the clamp, so that few boxes on
        many ranks are not scaled down.

        Softmax scores are normalised by the sum of class weights, which are 1 for queries with a
        box and `eos_coef` for others; sigmoid scores by boxes. With
        `class_normalization="per_rank"`, the class loss is divided by the micro-batch's count, as
        in the original; the result then depends on how the batch is split.
        """
        boxes = step_counts[0].clamp(min=1) / world_size
        if self.class_normalization == "per_rank":
            # The gradient is a mean over ranks, but a sum over accumulated micro-batches.
            class_counts = counts
            scale: float = accumulate
        else:
            class_counts = step_counts
            scale = 1 / world_size
        num_boxes, matched, unmatched = class_counts
        if self.config.scores == "softmax":
            class_weight = matched + self.config.eos_coef * unmatched
            classes = class_weight.clamp(min=_SMALLEST_WEIGHT) * scale
        else:
            classes = num_boxes.clamp(min=1) * scale
        matched_edges, other_edges = distillation_denominators(step_counts[1], step_counts[2])
        return torch.stack([boxes, classes, matched_edges / world_size, other_edges / world_size])

    def forward(
        self, outputs: Outputs, targets: list[Target], denominators: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the losses by name, and their weighted total as "loss"; all are scalars.

        - `loss_ce`, `loss_bbox`, `loss_giou`: of the last decoder layer. A suffix names another
          one: `_0`, `_1`, ... the earlier layers, `_pre` boxes that are proposed within the first
          one (D-FINE), `_enc` the encoder's proposals, `_dn`, `_dn_0`, ... noisy queries.
        - `loss_fgl`, `loss_ddf`, `loss_ddn`: of layers that hold the edges of their boxes as
          distributions, the last two not of the very last one: see `edges.py`.
        - `loss_mask`, `loss_dice`: of the last layer of a model with masks: see `mask_losses.py`.

        `targets` hold `labels` `[T]`, `boxes` `[T, 4]`, cxcywh as fractions of the image, and
        `masks` `[T, h, w]` where these are known. `denominators` `[4]` are those of the method of
        that name; by default the batch stands alone. The losses of noisy queries are divided by the
        number of groups times `noisy_denominators`. Images without objects are fine: every loss
        stays connected to the graph. Computed in fp32 or fp64.

        Raises ValueError unless there are as many targets as images, for labels or boxes of another
        shape, and if proposals are to be judged, but `aux_loss` of the model is off; if the targets
        are on the host, also for labels outside the model's classes and for boxes in pixels.
        """
        logits = outputs["pred_logits"]
        num_images = len(logits)
        if len(targets) != num_images:
            raise ValueError(
                f"outputs for {counted(num_images, 'image')}, but "
                f"{counted(len(targets), 'target')}: an image without objects needs an empty target"
            )
        for index, target in enumerate(targets):
            _require_shapes(index, target)
        if denominators is None:
            counts = self.counts(targets, num_queries=logits.shape[1])
            denominators = self.denominators(counts, counts)

        sets = [decoder_predictions(outputs)]
        if self.config.proposals:
            if "enc_outputs" not in outputs:
                raise ValueError(
                    "the outputs lack the encoder's proposals: set aux_loss of the model to True"
                )
            proposals = decoder_predictions(outputs["enc_outputs"])
            sets.append(proposals._replace(suffixes=["_enc"]))

        dtype = sets[0].logits.dtype
        denominators = denominators.to(logits.device, dtype, non_blocking=True)
        with torch.autocast(logits.device.type, enabled=False):
            return self._losses(sets, outputs, targets, denominators)

    def _losses(
        self,
        sets: list[Predictions],
        outputs: Outputs,
        targets: list[Target],
        denominators: Tensor,
    ) -> dict[str, Tensor]:
        """Matches all prediction sets at once, and returns the losses of `forward`."""
        device = sets[0].logits.device
        dtype = sets[0].boxes.dtype
        labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
        boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
        self._require_ranges(labels, boxes)
        labels = to_device(labels, device).long()  # [B, T]
        boxes = to_device(boxes, device).to(dtype)  # [B, T, 4]

        costs: list[Tensor] = []
        with torch.no_grad():
            for predictions in sets:
                cost = cost_matrix(
                    predictions.logits, predictions.boxes, labels, boxes, self.config
                )
                costs.append(cost)  # [L, B, Q, T]
        num_objects = [len(target["labels"]) for target in targets]
        matched_queries = match(costs, num_objects)

        parts: list[tuple[dict[str, Tensor], Tensor]] = []
        for predictions, queries in zip(sets, matched_queries, strict=True):
            sums = self._sums(predictions, queries, labels, boxes)
            parts.append(self._divided(sums, denominators, predictions.suffixes))
        if self.config.has_masks:
            last_queries = matched_queries[0][-1]  # [B, T]
            sums = mask_sums(outputs, last_queries, targets, self.config.mask_region)
            parts.append(self._divided(sums, denominators, [""]))
        noisy_outputs = outputs.get("denoising")
        if noisy_outputs is not None:
            groups = self.config.denoising
            predictions, queries = noisy_predictions(noisy_outputs, num_objects, groups)
            sums = self._sums(
                predictions, queries, labels.repeat(1, groups), boxes.repeat(1, groups, 1)
            )
            noisy = groups * noisy_denominators(denominators)
            parts.append(self._divided(sums, noisy, predictions.suffixes))
        return _joined(parts)

    def _require_ranges(self, labels: Tensor, boxes: Tensor) -> None:
        """Raises ValueError for labels outside the model's classes, which would address the scores
        of another query, and for boxes in pixels."""
        if not labels.numel() or labels.device.type != "cpu" or boxes.device.type != "cpu":
            return  # to look at those on a GPU, a step would wait for it once more
        host_labels = np.asarray(labels)
        lowest, highest = host_labels.min(), host_labels.max()
        if lowest < 0 or highest >= self.num_classes:
            classes = counted(self.num_classes, "class", "classes")
            raise ValueError(
                f"labels range from {lowest} to {highest}, but a model with {classes} takes 0 to "
                f"{self.num_classes - 1}"
            )
        largest = np.abs(np.asarray(boxes.float())).max()
        if largest > _LARGEST_FRACTION:
            raise ValueError(
                f"a box has the coordinate {largest:g}: boxes must be cxcywh as fractions of the "
                "image, not pixels"
            )

    def _divided(
        self, sums: dict[str, Tensor], denominators: Tensor, suffixes: list[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the losses of some layers by name, and their weighted total.

        `sums` are those of `_sums`, `suffixes` those of the names of the losses, for each layer.
        """
        losses: dict[str, Tensor] = {}
        total = denominators.new_zeros(())
        for term, sum_per_layer in sums.items():
            per_layer = sum_per_layer / denominators[DENOMINATOR_OF[term]]
            total = total + getattr(self.config, term) * per_layer.sum()
            term_suffixes = _layers_with(term, suffixes, len(per_layer))
            for suffix, loss in zip(term_suffixes, per_layer.unbind(), strict=True):
                losses[term + suffix] = loss
        return losses, total

    def _sums(
        self, predictions: Predictions, queries: Tensor, labels: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """Returns the losses by term, not divided: for each term a number for every layer that has
        it, `[L]` or fewer (see `_layers_with`).

        `queries` `[L, B, T]` is the query of every object, Q for those without one; `labels`
        `[B, T]` and `boxes` `[B, T, 4]` are the objects. Objects without a query are computed and
        multiplied by 0: boolean indexing would wait for the device.
        """
        num_queries = predictions.logits.shape[2]
        matched = queries < num_queries  # [L, B, T]
        safe_queries = queries.clamp(max=num_queries - 1)
        index = safe_queries[..., None].expand(-1, -1, -1, 4)  # [L, B, T, 4]
        matched_boxes = predictions.boxes.gather(2, index)  # [L, B, T, 4]
        iou, giou = iou_and_giou(box_cxcywh_to_xyxy(matched_boxes), box_cxcywh_to_xyxy(boxes))

        l1 = (matched_boxes - boxes).abs().sum(-1)  # [L, B, T]
        loss_bbox = (l1 * matched).sum((1, 2))
        loss_giou = ((1 - giou) * matched).sum((1, 2))

        labels = labels.expand_as(queries)  # [L, B, T]
        if self.config.scores == "softmax":
            loss_ce = self._cross_entropy(predictions.logits, queries, labels)
        else:
            loss_ce = _iou_aware_bce(
                predictions.logits, queries, labels, iou.detach(), self.config.class_loss
            )
        sums = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}

        edges = predictions.edges
        if edges is not None and self.config.has_edges:
            num_layers = len(edges.logits)  # the last ones: D-FINE's first boxes have no edges
            edge_queries = queries[-num_layers:]
            weights = (iou.detach() * matched)[-num_layers:]
            sums["loss_fgl"] = localization_sums(
                edges, edge_queries, boxes, weights, self.config.reg_scale
            )
            last_logits = predictions.logits[-1]
            ddf, ddn = distillation_sums(edges, last_logits, edge_queries, weights)
            sums |= {"loss_ddf": ddf, "loss_ddn": ddn}
        return sums

    def _cross_entropy(self, logits: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy `[L]` of `logits` `[L, B, Q, K]`; "no object" is class K - 1.

        `queries` and `labels` `[L, B, T]`: which query is to answer with which class.
        """
        layers, batch, num_queries, classes = logits.shape
        no_object = classes - 1
        # One column more than queries: objects without a query write there, and it is cut off.
        target_classes = labels.new_full((layers, batch, num_queries + 1), no_object)
        target_classes = target_classes.scatter(2, queries, labels)
        target_classes = target_classes[..., :-1].flatten()  # [L * B * Q]
        loss = F.cross_entropy(logits.flatten(0, 2), target_classes, reduction="none")
        loss = torch.where(target_classes == no_object, self.config.eos_coef * loss, loss)
        return loss.view(layers, -1).sum(1)


def _joined(parts: list[tuple[dict[str, Tensor], Tensor]]) -> dict[str, Tensor]:
    """The losses of all parts, and as "loss" the sum of the parts' weighted totals."""
    losses: dict[str, Tensor] = {}
    total = torch.zeros_like(parts[0][1])
    for part, weighted in parts:
        losses |= part
        total = total + weighted
    losses["loss"] = total
    return losses


def _layers_with(term: str, suffixes: list[str], count: int) -> list[str]:
    """The suffixes of the `count` layers that have this term: the last ones, except that the very
    last is the teacher in distillation, and has none of its terms."""
    if term in ("loss_ddf", "loss_ddn"):
        suffixes = suffixes[:-1]
    return suffixes[len(suffixes) - count :]


def _require_shapes(index: int, target: Target) -> None:
    """Raises ValueError unless the target of the image `index` has labels `[T]`, which are whole
    numbers, boxes `[T, 4]` and, if any, masks `[T, h, w]`."""
    labels, boxes = target["labels"], target["boxes"]
    if labels.ndim != 1 or boxes.shape != (len(labels), 4):
        raise ValueError(
            f"target {index}: labels {list(labels.shape)} and boxes {list(boxes.shape)}, expected "
            "[T] and [T, 4]"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"target {index}: labels are {labels.dtype}, expected int64")
    masks = target.get("masks")
    if masks is not None and (masks.ndim != 3 or len(masks) != len(labels)):
        raise ValueError(f"target {index}: masks {list(masks.shape)}, expected [T, h, w]")


def distillation_denominators(matched: Tensor, unmatched: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what distillation is divided by, for these numbers of queries with and without a box.

    The loss is the average of two means over edges, which are weighted by the roots of their
    numbers: (A / a * sqrt(a) + B / b * sqrt(b)) / (sqrt(a) + sqrt(b)), for sums A and B over a and
    b edges. So A is divided by a + sqrt(a * b).
    """
    edges, other_edges = 4 * matched, 4 * unmatched
    both = (edges * other_edges).sqrt()
    return (edges + both).clamp(min=1), (other_edges + both).clamp(min=1)


def noisy_denominators(denominators: Tensor) -> Tensor:
    """Returns the `denominators` `[4]` of a group of noisy queries.

    It has a query with and one without an object for each box, so as many edges of either kind:
    a = b = 4 * boxes, and `distillation_denominators` gives a + sqrt(a * b) = 8 * boxes for both.
    """
    boxes, classes, _, _ = denominators
    edges = 8 * boxes
    return torch.stack([boxes, classes, edges, edges])


def _iou_aware_bce(
    logits: Tensor, queries: Tensor, labels: Tensor, iou: Tensor, class_loss: ClassLoss
) -> Tensor:
    """Returns the binary cross-entropy `[L]` of `logits` `[L, B, Q, K]` towards the IoU.

    `queries`, `labels` and `iou` `[L, B, T]`: which query is to answer with which class, and the
    overlap of its box with the object's. "mal": matched scores aim at IoU^1.5 with weight 1, and
    all other scores p at 0 with weight p^1.5. "varifocal": matched scores aim at the IoU with the
    IoU as weight, and all others at 0 with weight 0.75 * p^2.
    """
    layers, batch, num_queries, classes = logits.shape
    # Index of (query, class) in the flattened scores; that of query Q lies beyond their end, in
    # extra entries that are cut off.
    slots = queries * classes + labels  # [L, B, T]
    flat = logits.new_zeros(layers, batch, (num_queries + 1) * classes)

    def by_score(values: Tensor) -> Tensor:
        """Values `[L, B, T]` of the objects at their scores, `[L, B, Q, K]`; 0 elsewhere."""
        return flat.scatter(2, slots, values)[..., :-classes].view_as(logits)

    matched = by_score(torch.ones_like(iou))  # 1 or 0
    scores = logits.detach().sigmoid()
    if class_loss == "mal":
        goals = by_score(iou.pow(_MAL_GAMMA))
        matched_weight = matched
        unmatched_weight = scores.pow(_MAL_GAMMA)
    else:
        goals = by_score(iou)
        matched_weight = goals
        unmatched_weight = _VARIFOCAL_ALPHA * scores.pow(_VARIFOCAL_GAMMA)
    weight = torch.where(matched > 0, matched_weight, unmatched_weight)
    loss = F.binary_cross_entropy_with_logits(logits, goals, weight, reduction="none")
    return loss.view(layers, -1).sum(1)
