"""The set loss: sums over matched and unmatched queries, divided by counts that are given.

The criterion never communicates. For training that is exact over ranks and accumulation steps, the
caller adds up `counts` of the whole window over all ranks and passes `denominators`; without them
the batch stands alone.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from redetr.boxes import at_least_float32, box_cxcywh_to_xyxy, iou_and_giou
from redetr.choices import ClassNormalization
from redetr.matcher import cost_matrix, match
from redetr.structures import LossConfig, Outputs, Target

# Exponent of the IoU target and of the weight of unmatched scores (Huang et al., DEIM, CVPR 2025,
# "MAL").
_IOU_GAMMA = 1.5
# Stands for the sum of the class weights where there is none: no object, and `eos_coef` 0.
_SMALLEST_WEIGHT = 1e-6


class Predictions(NamedTuple):
    """One set of predictions to be matched: the decoder's layers, or the encoder's proposals."""

    names: list[str]  # suffix of the loss names, per layer
    logits: Tensor  # [L, B, Q, K]
    boxes: Tensor  # [L, B, Q, 4] cxcywh


def decoder_predictions(outputs: Outputs) -> Predictions:
    """All decoder layers, first layer first."""
    layers = [*outputs.get("aux_outputs", []), outputs]
    names = [f"_{i}" for i in range(len(layers) - 1)] + [""]
    logits = torch.stack([layer["pred_logits"] for layer in layers])
    boxes = torch.stack([layer["pred_boxes"] for layer in layers])
    return Predictions(names, at_least_float32(logits), at_least_float32(boxes))


class SetCriterion(nn.Module):
    """Matching and loss of one form of the model. Source: Carion et al. 2020, equations 2 and 3,
    and `LossConfig`."""

    def __init__(
        self,
        config: LossConfig,
        num_classes: int,
        num_queries: int,
        class_normalization: ClassNormalization = "global",
    ):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.class_normalization: ClassNormalization = class_normalization

    @classmethod
    def for_model(
        cls, model: Any, class_normalization: ClassNormalization = "global"
    ) -> "SetCriterion":
        """The criterion with the weights, costs and scores that belong to `model`."""
        return cls(model.loss_config, model.num_classes, model.num_queries, class_normalization)

    def counts(self, targets: list[Target]) -> Tensor:
        """(number of boxes, sum of class weights) `[2]` float64 on the host; known before any
        forward pass.

        An image with T boxes has exactly min(Q, T) matched queries of weight 1; the rest have
        `eos_coef`.
        """
        boxes = sum(len(target["labels"]) for target in targets)
        matched = sum(min(self.num_queries, len(target["labels"])) for target in targets)
        unmatched = self.num_queries * len(targets) - matched
        return torch.tensor(
            [boxes, matched + self.config.eos_coef * unmatched], dtype=torch.float64
        )

    def denominators(
        self, counts: Tensor, window: Tensor, world_size: int = 1, accumulate: int = 1
    ) -> Tensor:
        """What one micro-batch's (box, class) sums are divided by, `[2]`.

        `counts` `[2]` are this micro-batch's, `window` `[2]` the sum over all micro-batches of all
        ranks of this optimizer step. Gradients are averaged over ranks afterwards, hence the
        division by `world_size`; it comes after the clamp, so that few boxes on many ranks are not
        scaled down. Sigmoid scores are normalised by boxes. With `class_normalization="per_rank"`
        the class loss is divided by the micro-batch's own count, as in the original: the result
        then depends on how the batch is split.
        """
        per_rank = self.class_normalization == "per_rank"
        boxes = window[0].clamp(min=1) / world_size
        for_classes, share = (counts, accumulate) if per_rank else (window, 1 / world_size)
        if self.config.scores == "softmax":
            return torch.stack([boxes, for_classes[1].clamp(min=_SMALLEST_WEIGHT) * share])
        return torch.stack([boxes, for_classes[0].clamp(min=1) * share])

    def forward(
        self, outputs: Outputs, targets: list[Target], denominators: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses by name, and their weighted total "loss".

        `loss_ce`, `loss_bbox`, `loss_giou` of the last decoder layer, with suffix `_0`, `_1`, ...
        of the earlier ones and `_enc` of the encoder's proposals. `targets` hold `labels` `[T]` and
        `boxes` `[T, 4]`, cxcywh as fractions of the image. `denominators` `[2]` as from the
        function of that name; by default the batch stands alone. Images without objects are fine:
        every loss stays connected to the graph. Computed in fp32 or fp64. Raises ValueError if
        there are not as many targets as images.
        """
        device, images = outputs["pred_logits"].device, len(outputs["pred_logits"])
        if len(targets) != images:
            raise ValueError(
                f"outputs of {images} images, targets of {len(targets)}: give an empty one for no "
                "objects"
            )
        if denominators is None:
            counts = self.counts(targets)
            denominators = self.denominators(counts, counts)
        sets = [decoder_predictions(outputs)]
        if self.config.proposals:
            sets.append(decoder_predictions(outputs["enc_outputs"])._replace(names=["_enc"]))
        with torch.autocast(device.type, enabled=False):
            return self._losses(
                sets, targets, denominators.to(device, sets[0].logits.dtype, non_blocking=True)
            )

    def _losses(
        self, sets: list[Predictions], targets: list[Target], denominators: Tensor
    ) -> dict[str, Tensor]:
        device, dtype = sets[0].logits.device, sets[0].boxes.dtype
        labels = pad_sequence([t["labels"] for t in targets], batch_first=True).to(
            device, non_blocking=True
        )
        boxes = pad_sequence([t["boxes"] for t in targets], batch_first=True).to(
            device, dtype, non_blocking=True
        )
        with torch.no_grad():
            costs = [cost_matrix(s.logits, s.boxes, labels, boxes, self.config) for s in sets]
        chosen = match(costs, [len(t["labels"]) for t in targets])
        losses: dict[str, Tensor] = {}
        total = denominators.new_zeros(())
        box_count, class_count = denominators
        for predictions, queries in zip(sets, chosen, strict=True):
            loss_ce, loss_bbox, loss_giou = self._sums(predictions, queries, labels, boxes)
            terms = {
                "loss_ce": loss_ce / class_count,
                "loss_bbox": loss_bbox / box_count,
                "loss_giou": loss_giou / box_count,
            }
            for term, per_layer in terms.items():
                total = total + getattr(self.config, term) * per_layer.sum()
                names = [term + name for name in predictions.names]
                losses.update(zip(names, per_layer.unbind(), strict=True))
        return losses | {"loss": total}

    def _sums(
        self, predictions: Predictions, queries: Tensor, labels: Tensor, boxes: Tensor
    ) -> tuple[Tensor, ...]:
        """Unnormalised class, L1 and GIoU loss per layer, each `[L]`.

        `queries` `[L, B, T]` is the query of every object, Q for those without one; `labels` `[B,
        T]`, `boxes` `[B, T, 4]`. No boolean indexing: it would wait for the device.
        """
        num_queries = predictions.logits.shape[2]
        matched = queries < num_queries
        index = queries.clamp(max=num_queries - 1)[..., None].expand(-1, -1, -1, 4)
        picked = predictions.boxes.gather(2, index)
        iou, giou = iou_and_giou(box_cxcywh_to_xyxy(picked), box_cxcywh_to_xyxy(boxes))
        loss_bbox = ((picked - boxes).abs().sum(-1) * matched).sum((1, 2))
        loss_giou = ((1 - giou) * matched).sum((1, 2))
        labels = labels.expand_as(queries)
        if self.config.scores == "softmax":
            loss_ce = self._cross_entropy(predictions.logits, queries, labels)
        else:
            loss_ce = _iou_aware_bce(predictions.logits, queries, labels, iou.detach())
        return loss_ce, loss_bbox, loss_giou

    def _cross_entropy(self, logits: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
        layers, batch, num_queries, classes = logits.shape
        # One column more than queries: objects without a query write there, and it is cut off.
        wanted = labels.new_full((layers, batch, num_queries + 1), classes - 1)
        wanted = wanted.scatter(2, queries, labels)[..., :-1].flatten()
        loss = F.cross_entropy(logits.flatten(0, 2), wanted, reduction="none")
        loss = torch.where(wanted == classes - 1, self.config.eos_coef * loss, loss)
        return loss.view(layers, -1).sum(1)


def _iou_aware_bce(logits: Tensor, queries: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
    """Binary cross-entropy towards IoU^1.5 at matched scores; others are pushed to 0 with weight
    p^1.5. `[L]`."""
    layers, batch, num_queries, classes = logits.shape
    slots = (
        queries * classes + labels
    )  # the flattened position of (query, class), beyond the end if unmatched
    flat = logits.new_zeros(layers, batch, (num_queries + 1) * classes)
    wanted = flat.scatter(2, slots, iou.pow(_IOU_GAMMA))[..., :-classes].view_as(logits)
    matched = flat.scatter(2, slots, 1.0)[..., :-classes].view_as(logits)
    weight = torch.where(matched > 0, matched, logits.detach().sigmoid().pow(_IOU_GAMMA))
    loss = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="none")
    return loss.view(layers, -1).sum(1)
