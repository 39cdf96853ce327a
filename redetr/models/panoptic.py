"""The panoptic DETR: a DETR, an attention map for each query, and a net that makes masks of them.

The parameter names are those of the official checkpoints, which load strictly: the detector is
`detr`, and `bbox_attention` and `mask_head` make the masks. Shape letters: see
`redetr.structures`; N are chosen queries, of any images.

Source: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4.
"""

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.detr import DETR, HeadInputs, detr
from redetr.models.group_norm import GroupNorm
from redetr.models.transformer import Transformer
from redetr.precision import autocast
from redetr.structures import DetectionModel, Outputs

_STRIDES = (4, 8, 16, 32)
_GROUPS = 8  # of each GroupNorm, or as many as there are channels
# Maps that are computed at once where no gradient is needed: bounds the memory of 100 queries.
_MAPS_AT_ONCE = 16


T = TypeVar("T")


class AttentionMaps(nn.Module):
    """How much each query attends to each position, by head; nothing is read there."""

    def __init__(self, hidden_dim: int, nheads: int):
        super().__init__()
        self.nheads = nheads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, states: Tensor, memory: Tensor, padding: Tensor | None, images: Tensor
    ) -> Tensor:
        """Returns weights `[N, heads, S]` that add up to 1 over all heads and positions of a query.

        `states` `[N, D]` are chosen queries and `images` `[N]` the index of the image of each;
        `memory` `[B, S, D]` are the positions, and those where `padding` `[B, S]` is True get 0.
        """
        queries = self.q_linear(states).unflatten(-1, (self.nheads, -1))  # [N, heads, d]
        keys = self.k_linear(memory).unflatten(-1, (self.nheads, -1))  # [B, S, heads, d]
        head_dim = queries.shape[-1]
        keys_of_query = keys.transpose(1, 2)[images]  # [N, heads, S, d]
        scores = keys_of_query @ (queries * head_dim**-0.5)[..., None]
        scores = at_least_float32(scores[..., 0])  # [N, heads, S]
        if padding is not None:
            scores = scores.masked_fill(padding[images][:, None], float("-inf"))
        return scores.flatten(1).softmax(-1).view_as(scores)


class PanopticMaskHead(nn.Module):
    """From attention maps, features of the image, and the finer maps of the backbone to masks.

    The part of the first layer that reads the features, and the adapters, give the same for all
    queries of an image, and are computed once for each.
    """

    def __init__(self, hidden_dim: int, nheads: int, map_channels: list[int]):
        super().__init__()
        widths = _widths(hidden_dim, nheads)
        self.lay1, self.gn1 = _layer(widths[0], widths[0])
        self.lay2, self.gn2 = _layer(widths[0], widths[1])
        self.lay3, self.gn3 = _layer(widths[1], widths[2])
        self.lay4, self.gn4 = _layer(widths[2], widths[3])
        self.lay5, self.gn5 = _layer(widths[3], widths[4])
        self.out_lay = nn.Conv2d(widths[4], 1, 3, padding=1)
        fine, finer, finest = map_channels
        self.adapter1 = nn.Conv2d(fine, widths[1], 1)
        self.adapter2 = nn.Conv2d(finer, widths[2], 1)
        self.adapter3 = nn.Conv2d(finest, widths[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def shared(self, features: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Returns what `forward` needs of the images, whichever their queries are.

        `features` are `[B, D, h, w]`, `maps` those of the backbone, coarse to fine.
        """
        feature_weight = self.lay1.weight[:, : features.shape[1]]
        first = F.conv2d(features, feature_weight, self.lay1.bias, padding=1)
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        adapted = [adapter(x) for adapter, x in zip(adapters, maps, strict=True)]
        return [first, *adapted]

    def forward(self, attention: Tensor, shared: list[Tensor], images: Tensor) -> Tensor:
        """Returns logits `[N, h, w]` of the size of the finest map.

        `attention` `[N, heads, h, w]` are the maps of chosen queries, `images` `[N]` the index of
        the image of each, and `shared` is that of the method of this name.
        """
        first, *adapted = shared
        nheads = attention.shape[1]
        attention_weight = self.lay1.weight[:, -nheads:]
        x = first[images] + F.conv2d(attention, attention_weight, padding=1)
        x = self.gn1(x).relu()
        x = self.gn2(self.lay2(x)).relu()
        finer_layers = [(self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5)]
        for image_maps, (layer, norm) in zip(adapted, finer_layers, strict=True):
            x = F.interpolate(x, size=image_maps.shape[-2:], mode="nearest")
            x = norm(layer(image_maps[images] + x)).relu()
        return self.out_lay(x)[:, 0]


def _coarse_to_fine(by_stride: list[T]) -> list[T]:
    """Of values at strides 4, 8, 16 and perhaps 32, those at 16, 8 and 4."""
    at_4, at_8, at_16 = by_stride[:3]
    return [at_16, at_8, at_4]


def _widths(hidden_dim: int, nheads: int) -> list[int]:
    """Returns the channels of the mask head, from its input on."""
    return [hidden_dim + nheads, *(hidden_dim // share for share in (2, 4, 8, 16))]


def _layer(inputs: int, outputs: int) -> tuple[nn.Conv2d, GroupNorm]:
    norm = GroupNorm(min(_GROUPS, outputs), outputs)
    return nn.Conv2d(inputs, outputs, 3, padding=1), norm


def require_possible(options: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, if there is no mask head of these widths."""
    hidden_dim = options["hidden_dim"]
    nheads = options["nheads"]
    if not isinstance(hidden_dim, int) or not isinstance(nheads, int):
        return  # for the checks of all models
    for width in _widths(hidden_dim, nheads):
        if width < 1 or width % min(_GROUPS, width):
            raise ValueError(
                f"hidden_dim + nheads, and hidden_dim / 2, / 4, / 8 and / 16, must each be smaller "
                f"than {_GROUPS} or a multiple of it, as with hidden_dim=256 and nheads=8"
            )


class PanopticDETR(DetectionModel):
    """A DETR that also gives a mask for each query: things and stuff in one set.

    Deviations from the original: see `DETR`; masks can be had for some queries only. As GroupNorm
    sees one map at a time, their numbers are the same.
    """

    resize = "aspect"
    image_size = DETR.image_size
    has_masks = True
    masks_on_demand = True
    is_panoptic = True

    def __init__(self, detr: DETR, nheads: int):
        super().__init__()
        self.detr = detr
        self.num_classes = detr.num_classes
        self.num_queries = detr.num_queries
        self.max_size = detr.max_size
        self.loss_config = replace(
            detr.loss_config, loss_mask=1.0, loss_dice=1.0, mask_region="canvas"
        )
        hidden_dim = detr.query_embed.embedding_dim
        self.bbox_attention = AttentionMaps(hidden_dim, nheads)
        backbone: Any = detr.backbone[0]
        map_channels = _coarse_to_fine(backbone.num_channels)
        self.mask_head = PanopticMaskHead(hidden_dim, nheads, map_channels)

    @property
    def aux_loss(self) -> bool:
        """Whether outputs hold those of the earlier decoder layers."""
        return self.detr.aux_loss

    @aux_loss.setter
    def aux_loss(self, value: bool) -> None:
        self.detr.aux_loss = value

    # The parts of the detector under the names that they have in a DETR.

    @property
    def backbone(self) -> nn.ModuleList:
        """The backbone and the position encodings."""
        return self.detr.backbone

    @property
    def transformer(self) -> Transformer:
        """Encoder and decoder."""
        return self.detr.transformer

    @property
    def input_proj(self) -> nn.Conv2d:
        """The convolution between backbone and encoder."""
        return self.detr.input_proj

    def forward(
        self, images: Tensor, mask: Tensor | None = None, all_masks: bool = True
    ) -> Outputs:
        """Returns what `DETR.forward` does, and `pred_masks` `[B, Q, H / 4, W / 4]`.

        They are logits over the padded canvas. With `all_masks=False`, `masks_of` takes their
        place: it computes those of chosen queries.
        """
        inputs = self.detr.head_inputs(images, mask)
        outputs = self.detr.predictions(inputs.states)
        height, width = images.shape[-2:]
        outputs["canvas"] = (height, width)
        outputs["masks_of"] = partial(self.masks, inputs)
        if all_masks:
            num_images = images.shape[0]  # a symbol where a file for any number is traced
            index = torch.arange(num_images, device=images.device)
            queries = torch.arange(self.num_queries, device=images.device)
            masks = self.masks(
                inputs, index.repeat_interleave(self.num_queries), queries.repeat(num_images)
            )
            outputs["pred_masks"] = masks.unflatten(0, (num_images, self.num_queries))
        return outputs

    def masks(self, inputs: HeadInputs, images: Tensor, queries: Tensor) -> Tensor:
        """Returns the logits `[N, H / 4, W / 4]` of these queries `[N]` of these images `[N]`.

        Both are indices. Where no gradient is needed, only a few are computed at once.
        """
        maps = _coarse_to_fine(inputs.maps)
        projected = inputs.projected
        # The caller may have left the autocast in which the features were computed.
        with autocast(projected.device, projected.dtype):
            shared = self.mask_head.shared(projected, maps)
            if torch.is_grad_enabled() or torch.compiler.is_exporting():
                return self._some_masks(inputs, shared, images, queries)
            parts = []
            for some_images, some_queries in zip(
                images.split(_MAPS_AT_ONCE), queries.split(_MAPS_AT_ONCE), strict=True
            ):
                parts.append(self._some_masks(inputs, shared, some_images, some_queries))
        return torch.cat(parts)

    def _some_masks(
        self, inputs: HeadInputs, shared: list[Tensor], images: Tensor, queries: Tensor
    ) -> Tensor:
        states = inputs.states[-1][images, queries]  # [N, D]
        attention = self.bbox_attention(states, inputs.memory, inputs.padding, images)
        size = inputs.projected.shape[-2:]
        attention = attention.unflatten(-1, size).to(inputs.projected.dtype)
        return at_least_float32(self.mask_head(attention, shared, images))


def panoptic(num_classes: int, nheads: int = 8, **options: Any) -> PanopticDETR:
    """Returns a panoptic DETR with random weights; options as in `detr`."""
    detector = detr(num_classes, _STRIDES, nheads=nheads, **options)
    return PanopticDETR(detector, nheads)


def detr_r50_panoptic(num_classes: int, **options: Any) -> PanopticDETR:
    """Panoptic DETR with ResNet-50: 43.4 PQ on COCO val 2017 (published)."""
    return panoptic(num_classes, **options)


def detr_r50_dc5_panoptic(
    num_classes: int, *, dilation: bool = True, **options: Any
) -> PanopticDETR:
    """Panoptic DETR with ResNet-50, the last stage dilated: 44.6 PQ (published)."""
    return panoptic(num_classes, dilation=dilation, **options)


def detr_r101_panoptic(
    num_classes: int, *, backbone: str = "resnet101", **options: Any
) -> PanopticDETR:
    """Panoptic DETR with ResNet-101: 45.1 PQ (published)."""
    return panoptic(num_classes, backbone=backbone, **options)
