"""What DETR does with an image: where its queries look, and how their boxes move.

Attention is recomputed from the inputs of its layers, so models need no changes and lose no time.
Shapes: L decoder layers, Q queries, S strides (levels), h w the feature map. Boxes are fractions of
the image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32, box_cxcywh_to_xyxy
from redetr.data.transforms import final_size, normalize, resizer
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.models.deformable import best_positions, position_centers
from redetr.models.detr import DETR
from redetr.models.fast import STRIDES, FastDETR
from redetr.models.panoptic import PanopticDETR
from redetr.models.rtdetr import RTDETR
from redetr.models.transformer import MultiheadAttention, for_all_heads
from redetr.postprocess import best_classes
from redetr.precision import exact_products, weights_dtype
from redetr.structures import DetectionModel, LossConfig, Outputs

Inputs = dict[nn.Module, tuple]  # the arguments that each module was called with


@dataclass(frozen=True, eq=False)
class Maps:
    """Cross-attention of the faithful variant: every query weighs all positions of the feature
    map."""

    weights: Tensor  # [L, Q, heads, h, w], sums to 1 over (h, w)


@dataclass(frozen=True, eq=False)
class Points:
    """Cross-attention of all other variants: every query reads a few points of each level.

    Levels with fewer points than others are padded with points outside the image, whose weight is
    0.
    """

    # [L, Q, heads, S, points, 2] x, y; may lie outside the image
    where: Tensor
    weights: Tensor  # [L, Q, heads, S, points], sums to 1 over (S, points)


@dataclass(frozen=True, eq=False)
class Picks:
    """The starting points of selected queries: the best positions of all levels, best first."""

    level: Tensor  # [Q] index into the strides
    centers: Tensor  # [Q, 2] x, y of the position
    boxes: Tensor  # [Q, 4] xyxy, the box proposed there


@dataclass(frozen=True, eq=False)
class Explanation:
    """The computation of a model on one image. All tensors are fp32 on the host."""

    image: Tensor  # uint8 [channels, H, W], as it was given
    class_names: tuple[str, ...]
    boxes: Tensor  # [L, Q, 4] xyxy after every decoder layer
    scores: Tensor  # [L, Q] of the best class
    labels: Tensor  # [L, Q] the best class
    cross_attention: Maps | Points
    strides: tuple[int, ...]  # px of a cell of each level; none for the faithful variant
    self_attention: Tensor  # [L, Q, Q], mean over heads; each row sums to 1
    # [h, w, h, w] last encoder layer, mean over heads; sums to 1 over the last two
    encoder_attention: Tensor
    encoder_stride: int  # px of its cells
    picks: Picks | None  # None for the faithful variant
    # [Q, h, w] for each query, how likely each position belongs to its object; None without masks
    masks: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON: the prediction of each query after every layer, best query first. Boxes
        are xyxy in pixels of the image."""
        height, width = self.image.shape[-2:]
        boxes_px = self.boxes * torch.tensor([width, height, width, height])
        ranked = self.scores[-1].argsort(descending=True)
        queries = []
        for query in ranked.tolist():
            labels = self.labels[:, query].tolist()
            scores = self.scores[:, query].tolist()
            boxes = boxes_px[:, query].tolist()
            layers = []
            for label, score, box in zip(labels, scores, boxes, strict=True):
                answer = {
                    "label": self.class_names[label],
                    "score": round(score, 6),
                    "box": [round(edge, 3) for edge in box],
                }
                layers.append(answer)
            queries.append({"query": query, "layers": layers})
        return {"image_size": [height, width], "queries": queries}


@dataclass(frozen=True)
class AttentionLayers:
    """The attention layers of a model that can be explained."""

    encoder: Any  # of the last encoder layer
    encoder_level: int  # the level that it looks at
    to_queries: list[Any]  # of every decoder layer: self-attention
    to_image: list[Any]  # of every decoder layer: cross-attention


@torch.no_grad()
@exact_products()
def explain(detector: Detector, image: Tensor) -> Explanation:
    """What `detector` does with `image`, uint8 `[channels, H, W]`.

    Raises InputError if the model has no attention layers that can be explained.
    """
    model = detector.model
    attention = attention_layers(model)
    recorded = [attention.encoder, *attention.to_queries, *attention.to_image]
    if isinstance(model, DETR | PanopticDETR):
        recorded.append(model.input_proj)
    batch = model_input(detector, image)
    with recorded_inputs([*recorded, *selecting_modules(model)]) as inputs:
        outputs = with_all_layers(model)(batch)

    cross_attention: Maps | Points
    if isinstance(model, DETR | PanopticDETR):
        (features,) = inputs[model.input_proj]
        shapes = [features.shape[-2:]]
        cross_attention = _maps(attention.to_image, inputs, shapes[0])
        strides: tuple[int, ...] = ()
        picks = None
    else:
        _, _, _, shapes, _ = inputs[attention.to_image[0]]
        cross_attention = _points(attention.to_image, inputs)
        strides = strides_of(batch, shapes)
        picks = picked_proposals(model, outputs, inputs)

    height, width = shapes[attention.encoder_level]
    (encoder_stride,) = strides_of(batch, [(height, width)])
    boxes, scores, labels = _answers(outputs, model.loss_config)
    self_attention = []
    for module in attention.to_queries:
        self_attention.append(_mean_over_heads(module, inputs))
    encoder_attention = _mean_over_heads(attention.encoder, inputs)
    masks = on_host(outputs["pred_masks"][0].sigmoid()) if model.has_masks else None
    return Explanation(
        image=image,
        class_names=detector.class_names,
        boxes=boxes,
        scores=scores,
        labels=labels,
        cross_attention=cross_attention,
        strides=strides,
        self_attention=torch.stack(self_attention).cpu(),
        encoder_attention=encoder_attention.view(height, width, height, width).cpu(),
        encoder_stride=encoder_stride,
        picks=picks,
        masks=masks,
    )


def attention_layers(model: nn.Module) -> AttentionLayers:
    """The attention layers of the model. Raises InputError if it has none that can be explained."""
    layers: Any
    if isinstance(model, DETR | PanopticDETR) and len(model.transformer.encoder.layers):
        layers = model.transformer.decoder.layers
        return AttentionLayers(
            encoder=model.transformer.encoder.layers[-1].self_attn,
            encoder_level=0,
            to_queries=[layer.self_attn for layer in layers],
            to_image=[layer.multihead_attn for layer in layers],
        )
    if isinstance(model, FastDETR):
        layers = model.decoder
        encoder, encoder_level = model.neck.encoder, STRIDES.index(16)
    elif isinstance(model, RTDETR):
        decoder: Any = model.decoder
        layers = decoder.decoder["layers"][: decoder.last_in_eval + 1]
        encoder, encoder_level = model.encoder.attention_layer, -1
    else:
        raise InputError(
            f"{type(model).__name__}: explain shows models with encoder and decoder attention: "
            "detr_*, redetr_*, rtdetr_*, dfine_*"
        )
    return AttentionLayers(
        encoder=encoder.self_attn,
        encoder_level=encoder_level,
        to_queries=[layer.self_attn for layer in layers],
        to_image=[layer.cross_attn for layer in layers],
    )


def selecting_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose inputs `picked_proposals` needs."""
    if isinstance(model, RTDETR):
        return [model.decoder.enc_score_head]
    return []


def strides_of(batch: Tensor, shapes: list[tuple[int, int]]) -> tuple[int, ...]:
    """The size of a cell of each level in pixels of the images; `shapes` are the (h, w) of the
    levels."""
    image_height = batch.shape[-2]
    return tuple(round(image_height / height) for height, _ in shapes)


@contextmanager
def recorded_inputs(modules: Sequence[nn.Module]) -> Iterator[Inputs]:
    """A dict that holds the arguments of each module after a forward pass."""
    inputs: Inputs = {}

    def record(module: nn.Module, arguments: tuple) -> None:
        inputs[module] = arguments

    hooks = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def with_all_layers(model: DetectionModel) -> DetectionModel:
    """The same model, not compiled, which also returns the outputs of all earlier layers.

    A model that was optimized for prediction leaves them out, as well as those of the encoder.
    """
    whole = copy(model)
    if isinstance(model, PanopticDETR):
        # `aux_loss` is that of its detector, which the copy would share.
        whole._modules = model._modules.copy()
        whole.detr = copy(model.detr)
    whole.aux_loss = True
    whole._compiled_call_impl = None
    return whole


def model_input(detector: Detector, image: Tensor) -> Tensor:
    """The image as the model takes it, a batch of one without padding, in the dtype of its
    weights."""
    model = detector.model
    resize = resizer(final_size(model, detector.image_size))
    resized = resize(image).to(detector.device)
    return normalize(resized)[None].to(weights_dtype(detector.dtype))


def on_host(values: Tensor) -> Tensor:
    """Results of the model as fp32 on the host; it may have computed them in fp64."""
    return values.float().cpu()


def attention_weights(
    module: MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Any = None,
    ignored: Tensor | None = None,
) -> Tensor:
    """How much each query attends to each key, `[B, heads, N, M]` fp32.

    The arguments are those of a call of the module, so `value` is among them, but is not needed.
    """
    query_weight, key_weight, _ = module.in_proj_weight.chunk(3)
    query_bias, key_bias, _ = module.in_proj_bias.chunk(3)
    queries = _split_heads(F.linear(query, query_weight, query_bias), module.nheads)
    keys = _split_heads(F.linear(key, key_weight, key_bias), module.nheads)
    head_dim = queries.shape[-1]
    scores = queries * head_dim**-0.5 @ keys.mT
    if ignored is not None:
        scores = scores.masked_fill(for_all_heads(ignored), float("-inf"))
    return scores.softmax(-1)


def picked_proposals(model: DetectionModel, outputs: Outputs, inputs: Inputs) -> Picks:
    """The level and position of the proposals that became queries.

    `inputs` are those of the first deformable attention and of `selecting_modules`.
    """
    first = attention_layers(model).to_image[0]
    _, boxes, _, shapes, _ = inputs[first]
    logits = outputs["enc_outputs"]["pred_logits"]
    for head in selecting_modules(model):  # where the outputs hold those of the queries alone
        logits = head(*inputs[head])
    (best,) = best_positions(at_least_float32(logits), boxes.shape[1]).cpu()
    all_levels = []
    all_centers = []
    for level, (height, width) in enumerate(shapes):
        all_centers.append(position_centers((height, width), like=boxes.cpu()))
        all_levels.append(torch.full((height * width,), level))
    return Picks(
        level=torch.cat(all_levels)[best],
        centers=on_host(torch.cat(all_centers)[best]),
        boxes=on_host(box_cxcywh_to_xyxy(boxes[0])),
    )


def _answers(outputs: Outputs, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `[L, Q, 4]` xyxy, and scores and labels `[L, Q]` of the best classes, on the host."""
    boxes = []
    scores = []
    labels = []
    for layer in [*outputs["aux_outputs"], outputs]:
        layer_scores, layer_labels = best_classes(layer["pred_logits"][0], config.scores)
        boxes.append(box_cxcywh_to_xyxy(layer["pred_boxes"][0]))
        scores.append(layer_scores)
        labels.append(layer_labels)
    host_labels = torch.stack(labels).cpu()
    return on_host(torch.stack(boxes)), on_host(torch.stack(scores)), host_labels


def _split_heads(projected: Tensor, nheads: int) -> Tensor:
    """`[B, heads, N, D / heads]` fp32 from `[B, N, D]`."""
    split = projected.unflatten(-1, (nheads, -1))
    return split.transpose(1, 2).float()


def _mean_over_heads(module: MultiheadAttention, inputs: Inputs) -> Tensor:
    """The attention weights `[N, M]` of the only image."""
    weights = attention_weights(module, *inputs[module])
    return weights[0].mean(0)


def _maps(modules: list[MultiheadAttention], inputs: Inputs, size: tuple[int, int]) -> Maps:
    layers = []
    for module in modules:
        weights = attention_weights(module, *inputs[module])[0]
        layers.append(weights.transpose(0, 1))
    weights = torch.stack(layers)
    return Maps(weights.unflatten(-1, size).cpu())


def _points(modules: list[Any], inputs: Inputs) -> Points:
    all_points = []
    all_weights = []
    for module in modules:
        query, boxes, *_ = inputs[module]
        points, weights = module.samples(query, boxes)
        all_points.append(_by_level(points[0], module.per_level, outside=-1.0))
        all_weights.append(_by_level(weights[0], module.per_level, outside=0.0))
    return Points(on_host(torch.stack(all_points)), on_host(torch.stack(all_weights)))


def _by_level(values: Tensor, counts: list[int], outside: float) -> Tensor:
    """`[Q, heads, S, points, ...]` from `[Q, heads, P, ...]`, of which counts[i] are on level i.

    Levels with fewer points than others are padded with `outside`.
    """
    levels = []
    for level in values.split(counts, 2):
        shape = list(level.shape)
        shape[2] = max(counts) - shape[2]
        levels.append(torch.cat([level, level.new_full(shape, outside)], 2))
    return torch.stack(levels, 2)
