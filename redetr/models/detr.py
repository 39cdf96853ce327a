"""The faithful variant: the original DETR, with the parameter names of its checkpoints.

Official checkpoints load strictly. Shape letters: see `redetr.structures`.

Source: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.models.backbone import Norm, padding_at, require_padding_mask
from redetr.models.backbones import AnyBackbone, build_backbone
from redetr.models.position import PositionEmbeddingLearned, PositionEmbeddingSine
from redetr.models.transformer import MLP, Transformer
from redetr.structures import DetectionModel, LossConfig, Outputs


class HeadInputs(NamedTuple):
    """The results of DETR before its heads."""

    maps: list[Tensor]  # of the backbone, a `[B, channels, h, w]` for each of its strides
    projected: Tensor  # [B, D, h, w] the last of them in the width of the transformer
    memory: Tensor  # [B, S, D] the same after the encoder
    padding: Tensor | None  # [B, S] True = padding, None = there is none
    states: Tensor  # [L, B, Q, D] of the queries after each decoder layer


class DETR(DetectionModel):
    """CNN backbone, transformer encoder and decoder; every object query predicts a class and a box.

    Deviations from the original: frozen BatchNorm is folded into the convolutions, attention runs
    on a fused kernel where that is fast, tensors are batch first. None changes the function
    computed.
    """

    resize = "aspect"
    image_size = 800

    def __init__(
        self,
        num_classes: int,
        backbone: AnyBackbone,
        transformer: Transformer,
        num_queries: int,
        hidden_dim: int,
        position: Literal["sine", "learned"],
        aux_loss: bool,
        max_size: int = 1333,
        eos_coef: float = 0.1,
    ):
        super().__init__()
        self.max_size = max_size
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.aux_loss = aux_loss
        self.loss_config = LossConfig(eos_coef=eos_coef)
        embeddings = {"sine": PositionEmbeddingSine, "learned": PositionEmbeddingLearned}
        position_embedding = embeddings[position](hidden_dim // 2)
        # In one list because the official parameter names are `backbone.0` and `backbone.1`.
        self.backbone = nn.ModuleList([backbone, position_embedding])
        self.transformer = transformer
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        """Returns logits `[B, Q, C + 1]` and boxes `[B, Q, 4]` of every decoder layer as `Outputs`.

        `images` `[B, 3, H, W]` are normalised; `mask` `[B, H, W]` is True = padding, None = there
        is none. Boxes are cxcywh as fractions of the unpadded image. Raises ValueError for a mask
        of another shape or dtype.
        """
        return self.predictions(self.head_inputs(images, mask).states)

    def head_inputs(self, images: Tensor, mask: Tensor | None = None) -> HeadInputs:
        """Returns the inputs of the heads; arguments as in `forward`."""
        require_padding_mask(images, mask)
        backbone, position_embedding = self.backbone
        maps = backbone(images)
        features = maps[-1]
        padding = padding_at(features, mask)  # [B, h, w]
        # Half precision has too few digits for positions.
        dtype = torch.promote_types(features.dtype, torch.float32)
        pos = position_embedding(padding, dtype).flatten(1, 2).to(features.dtype)  # [B, S, D]
        queries = self.query_embed.weight.to(features.dtype)  # [Q, D]
        queries = queries.expand(images.shape[0], -1, -1)

        # Without a mask, attention needs none: the fused kernels are faster without.
        ignored = None if mask is None else padding.flatten(1)  # [B, S]
        projected = self.input_proj(features)  # [B, D, h, w]
        states, memory = self.transformer(projected.flatten(2).mT, pos, queries, ignored)
        return HeadInputs(maps, projected, memory, ignored, states)

    def predictions(self, states: Tensor) -> Outputs:
        """Returns logits and boxes of the decoder states `[L, B, Q, D]`."""
        if not self.aux_loss:
            states = states[-1:]
        all_logits = at_least_float32(self.class_embed(states))  # [L, B, Q, C + 1]
        all_boxes = at_least_float32(self.bbox_embed(states)).sigmoid()  # [L, B, Q, 4]
        layers: list[Outputs] = []
        for logits, boxes in zip(all_logits, all_boxes, strict=True):
            layers.append({"pred_logits": logits, "pred_boxes": boxes})
        return {**layers[-1], "aux_outputs": layers[:-1]}


def detr(
    num_classes: int,
    strides: tuple[int, ...] = (32,),
    *,
    backbone: str | tuple[int, int, int] = "resnet50",
    weights: str | None = None,
    dilation: bool = False,
    norm: Norm = "frozen_batch",
    position: Literal["sine", "learned"] = "sine",
    hidden_dim: int = 256,
    nheads: int = 8,
    enc_layers: int = 6,
    dec_layers: int = 6,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    pre_norm: bool = False,
    num_queries: int = 100,
    aux_loss: bool = True,
    activation: str = "relu",
    dec_nheads: int | None = None,
    dec_dim_feedforward: int | None = None,
    norm_between: bool = False,
    max_size: int = 1333,
    eos_coef: float = 0.1,
) -> DETR:
    """Returns a DETR with random transformer weights. The defaults are DETR-R50.

    `strides` are those of the backbone's maps; the transformer takes the last one.
    `weights="imagenet"` loads weights of the backbone. `pre_norm` normalises before attention and
    feed-forward nets instead of after them, and once more after the encoder. `max_size` is the
    maximum length of the longer side, in px, and `eos_coef` the weight of "no object" in the loss.

    Not in the original: `norm` "group" or "sync_batch" (see `Backbone`) for training from scratch;
    other backbones, where three widths make a `SmallResNet` (stride 16); `activation`,
    `dec_nheads`, `dec_dim_feedforward` and `norm_between` (see `Transformer`,
    `TransformerDecoder`), which models of Transformers may have.
    """
    body = build_backbone(backbone, weights, norm, strides, dilation)
    transformer = Transformer(
        hidden_dim=hidden_dim,
        nheads=nheads,
        enc_layers=enc_layers,
        dec_layers=dec_layers,
        dim_feedforward=dim_feedforward,
        dropout=dropout,
        pre_norm=pre_norm,
        activation=activation,
        dec_nheads=dec_nheads,
        dec_dim_feedforward=dec_dim_feedforward,
        norm_between=norm_between,
    )
    return DETR(
        num_classes,
        body,
        transformer,
        num_queries=num_queries,
        hidden_dim=hidden_dim,
        position=position,
        aux_loss=aux_loss,
        max_size=max_size,
        eos_coef=eos_coef,
    )


def detr_r50(num_classes: int, **options: Any) -> DETR:
    """DETR with ResNet-50: 42.0 AP on COCO val 2017 with the official weights (published)."""
    return detr(num_classes, **options)


def detr_r50_dc5(num_classes: int, *, dilation: bool = True, **options: Any) -> DETR:
    """DETR with ResNet-50, the last stage dilated instead of strided: 43.3 AP (published)."""
    return detr(num_classes, dilation=dilation, **options)


def detr_r101(num_classes: int, *, backbone: str = "resnet101", **options: Any) -> DETR:
    """DETR with ResNet-101: 43.5 AP (published)."""
    return detr(num_classes, backbone=backbone, **options)


def detr_r101_dc5(
    num_classes: int, *, backbone: str = "resnet101", dilation: bool = True, **options: Any
) -> DETR:
    """DETR with ResNet-101, the last stage dilated instead of strided: 44.9 AP (published)."""
    return detr(num_classes, backbone=backbone, dilation=dilation, **options)


def detr_table(
    num_classes: int,
    *,
    backbone: str = "resnet18",
    pre_norm: bool = True,
    num_queries: int = 15,
    max_size: int = 800,
    eos_coef: float = 0.4,
    **options: Any,
) -> DETR:
    """Table Transformer: DETR with ResNet-18 and pre-norm, for tables on scanned pages.

    The defaults are the published detector of tables; that of their rows and columns has 125
    queries and a `max_size` of 1000.

    Source: Smock et al., "PubTables-1M: Towards comprehensive table extraction from unstructured
    documents", CVPR 2022.
    """
    return detr(
        num_classes,
        backbone=backbone,
        pre_norm=pre_norm,
        num_queries=num_queries,
        max_size=max_size,
        eos_coef=eos_coef,
        **options,
    )
