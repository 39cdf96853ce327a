"""What DETR did with an image: where its queries looked, what they told each other, how their boxes moved.

Attention is computed again from what its layers were called with, so the models stay as they are and lose no time.
Shapes: L decoder layers, Q queries, S strides (levels), h w the feature map; boxes are fractions of the image.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.data import DetectionDataset
from redetr.data.transforms import normalize, resizer
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.models.detr import DETR
from redetr.models.fast import STRIDES, FastDETR
from redetr.models.transformer import MultiheadAttention
from redetr.structures import DetectionModel, LossConfig, Outputs


@dataclass(frozen=True, eq=False)
class Maps:
    """Cross-attention of the faithful form: every query weighs all positions of the feature map."""

    weights: Tensor  # [L, Q, heads, h, w], sums to 1 over (h, w)


@dataclass(frozen=True, eq=False)
class Points:
    """Cross-attention of the fast form: every query reads a few points of each level."""

    where: Tensor  # [L, Q, heads, S, points, 2] x, y; may lie outside of the image, where there is nothing to read
    weights: Tensor  # [L, Q, heads, S, points], sums to 1 over (S, points)


@dataclass(frozen=True, eq=False)
class Picks:
    """Where the queries of the fast form start: the best-scored positions of all levels, best first."""

    level: Tensor  # [Q] index into `STRIDES`
    centers: Tensor  # [Q, 2] x, y of the position
    boxes: Tensor  # [Q, 4] xyxy, the box proposed there


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model did with one image. All tensors are fp32 on the host."""

    image: Tensor  # uint8 [3, H, W], as it was given
    class_names: tuple[str, ...]
    boxes: Tensor  # [L, Q, 4] xyxy after every decoder layer
    scores: Tensor  # [L, Q] of the best class
    labels: Tensor  # [L, Q] the best class
    cross_attention: Maps | Points
    self_attention: Tensor  # [L, Q, Q], mean over heads; each row sums to 1
    encoder_attention: Tensor  # [h, w, h, w] of the last encoder layer, mean over heads; sums to 1 over the last two
    picks: Picks | None  # of the fast form

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: of every query, best first, what it answered after each layer, boxes xyxy in pixels."""
        height, width = self.image.shape[-2:]
        boxes = self.boxes * torch.tensor([width, height, width, height])
        ranked = self.scores[-1].argsort(descending=True).tolist()
        return {"image_size": [height, width], "queries": [{"query": q, "layers": [
            {"label": self.class_names[label], "score": round(score, 6), "box": [round(x, 3) for x in box]}
            for label, score, box in zip(*(x[:, q].tolist() for x in (self.labels, self.scores, boxes)), strict=True)
        ]} for q in ranked]}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Habits:
    """What the queries did on N images of a data set."""

    boxes: Tensor  # [N, Q, 4] cxcywh, final
    scores: Tensor  # [N, Q]
    centers: Tensor | None  # [N, Q, 2] where the queries of the fast form started
    level: Tensor | None  # [N, Q]


@torch.no_grad()
def explain(detector: Detector, image: Tensor) -> Explanation:
    """What `detector` does with `image`, uint8 `[3, H, W]`. Raises InputError for a model without attention layers."""
    model = detector.model
    encoder, among, across = _attention_layers(model)
    features = [model.input_proj] if isinstance(model, DETR) else []
    with _inputs_of([encoder, *features]) as seen, _inputs_of(among) as told, _inputs_of(across) as looked:
        outputs = with_all_layers(model)(_seen(detector, image))
    layers = [*outputs["aux_outputs"], outputs]
    height, width = seen[1][0].shape[-2:] if features else looked[0][3][STRIDES.index(16)]
    best = [best_class(layer["pred_logits"][0], model.loss_config) for layer in layers]
    cross = [_cross(module, call) for module, call in zip(across, looked, strict=True)]
    own = [attention_weights(module, *call) for module, call in zip(among, told, strict=True)]
    return Explanation(
        image=image,
        class_names=detector.class_names,
        boxes=torch.stack([box_cxcywh_to_xyxy(layer["pred_boxes"][0]) for layer in layers]).cpu(),
        scores=torch.stack([scores for scores, _ in best]).cpu(),
        labels=torch.stack([labels for _, labels in best]).cpu(),
        cross_attention=_maps(cross, (height, width)) if features else _points(cross),
        self_attention=torch.stack([weights[0].mean(0) for weights in own]).cpu(),
        encoder_attention=attention_weights(encoder, *seen[0])[0].mean(0).view(height, width, height, width).cpu(),
        picks=None if features else _picks(outputs, looked[0]),
    )


@torch.no_grad()
def query_habits(
    detector: Detector, dataset: DetectionDataset, count: int, on_image: Callable[[], Any] = lambda: None
) -> Habits:
    """What the queries do on `count` images spread over the data set (all of it, if it has fewer)."""
    model, found = detector.model, []
    first = _attention_layers(model)[2][:1] if isinstance(model, FastDETR) else []
    for i in _spread(len(dataset), count):
        with _inputs_of(first) as calls:
            outputs = with_all_layers(model)(_seen(detector, dataset.image(i)))
        scores, _ = best_class(outputs["pred_logits"][0], model.loss_config)
        picks = _picks(outputs, calls[0]) if first else None
        found.append((outputs["pred_boxes"][0].cpu(), scores.cpu(), picks))
        on_image()
    boxes, all_scores, all_picks = zip(*found, strict=True)
    return Habits(
        boxes=torch.stack(boxes),
        scores=torch.stack(all_scores),
        centers=torch.stack([picks.centers for picks in all_picks]) if first else None,
        level=torch.stack([picks.level for picks in all_picks]) if first else None,
    )


def with_all_layers(model: DetectionModel) -> DetectionModel:
    """The same model, not compiled, with the outputs of earlier layers and the encoder also where it answers without
    them."""
    whole = copy(model)
    whole.aux_loss, whole._compiled_call_impl = True, None
    return whole


def best_class(logits: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Score and label of each query's best class, `[Q]` each, from `[Q, K]`; "no object" is none."""
    logits = logits.float()
    probabilities = logits.softmax(-1)[..., :-1] if config.scores == "softmax" else logits.sigmoid()
    best = probabilities.max(-1)
    return best.values, best.indices


def attention_weights(module: MultiheadAttention, query: Tensor, key: Tensor, value: Any = None,
                      valid: Tensor | None = None) -> Tensor:  # fmt: skip
    """How much each query attends to each key, `[B, heads, N, M]` fp32, from what `module` was called with."""
    (wq, wk, _), (bq, bk, _) = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k = (x.unflatten(-1, (module.nheads, -1)).transpose(1, 2).float()
            for x in (F.linear(query, wq, bq), F.linear(key, wk, bk)))  # fmt: skip
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
    return scores.softmax(-1)


def _attention_layers(model: nn.Module) -> tuple[Any, list[Any], list[Any]]:
    """The last encoder layer's attention, and every decoder layer's to queries and to the image."""
    if isinstance(model, DETR) and len(model.transformer.encoder.layers):
        layers: Any = model.transformer.decoder.layers
        cross = [layer.multihead_attn for layer in layers]
        return model.transformer.encoder.layers[-1].self_attn, [layer.self_attn for layer in layers], cross
    if isinstance(model, FastDETR):
        layers = model.decoder
        return model.neck.encoder.self_attn, [layer.self_attn for layer in layers], [x.cross_attn for x in layers]
    raise InputError(
        f"{type(model).__name__}: explain shows models with encoder and decoder attention: detr_*, redetr_*"
    )


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[tuple]]:
    """A list that, after a forward pass, holds what each module was called with."""
    calls: list[tuple] = [()] * len(modules)

    def keep(place: int) -> Callable:
        return lambda module, arguments: calls.__setitem__(place, arguments)

    hooks = [module.register_forward_pre_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _seen(detector: Detector, image: Tensor) -> Tensor:
    """The image as the model takes it, a batch of one without padding."""
    model = detector.model
    resize = resizer(model.resize, detector.image_size, model.max_size)
    return normalize(resize(image).to(detector.device))[None]


def _cross(module: Any, call: tuple) -> Any:
    """Weights, or points and their weights, of a decoder layer's attention to the image."""
    return attention_weights(module, *call) if isinstance(module, MultiheadAttention) else module.samples(*call[:2])


def _maps(looked: list[Tensor], size: tuple[int, int]) -> Maps:
    weights = torch.stack([weights[0].transpose(0, 1) for weights in looked])
    return Maps(weights.unflatten(-1, size).cpu())


def _points(looked: list[tuple[Tensor, Tensor]]) -> Points:
    where = torch.stack([points[0] for points, _ in looked])
    weights = torch.stack([weights[0] for _, weights in looked])
    return Points(where.cpu(), weights.unflatten(-1, where.shape[3:5]).cpu())


def _picks(outputs: Outputs, call: tuple) -> Picks:
    """Level and position of the proposals that became queries; `call` is that of the first deformable attention."""
    _, boxes, _, shapes, _ = call
    best = outputs["enc_outputs"]["pred_logits"][0].amax(-1).topk(boxes.shape[1]).indices.cpu()
    levels, centers = [], []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(-1, 2))
        levels.append(torch.full((height * width,), level))
    return Picks(torch.cat(levels)[best], torch.cat(centers)[best], box_cxcywh_to_xyxy(boxes[0]).cpu())


def _spread(length: int, count: int) -> list[int]:
    """At most `count` of the indices below `length`, evenly."""
    count = min(length, count)
    return [k * length // count for k in range(count)]
