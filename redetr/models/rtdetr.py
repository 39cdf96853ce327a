"""RT-DETR and RT-DETRv2: a real-time DETR, from image to boxes.

A ResNet-vd; an encoder with attention at stride 32 only, whose levels a pyramid of convolutions
mixes downwards and upwards; queries that start at the best positions of these levels; a decoder
with multi-scale deformable attention that corrects their boxes layer by layer.

Sources: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (CVPR 2024), and Lv et al.,
"RT-DETRv2" (2024). The parameter names are those of the original implementation of RT-DETRv2; the
two versions have one architecture, and differ in how they were trained. DEIM (Huang et al., CVPR
2025) trains v2 with SiLU in the decoder and a deeper net for the positions of queries. Deviations:
positions are encoded row by row, so that images need not be square (the original exchanges rows and
columns, which no square image shows); padding is masked; a frozen BatchNorm is folded into its
convolution, and so are the two branches of a RepVGG block. None changes what the published weights
compute.

Shape letters: B images, Q queries, C classes, D width, S positions of all levels together, and
h, w the size of one level. Boxes are cxcywh, fractions of the unpadded image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redetr.boxes import at_least_float32
from redetr.choices import ClassLoss
from redetr.data.transforms import MEAN, STD
from redetr.denoising import NoisyQueries
from redetr.models.backbone import Norm, require_padding_mask
from redetr.models.deformable import (
    DecoderLayer,
    DeformableAttention,
    EncoderOutput,
    Sampling,
    valid_ratio,
)
from redetr.models.hybrid import HybridEncoder, csp_pyramid
from redetr.models.mask_head import MaskHead, with_mask_losses
from redetr.models.resnet_vd import DEPTHS, ConvNorm, PResNet
from redetr.models.transformer import ACTIVATIONS, MLP, Activation
from redetr.models.two_stage import TwoStageDecoder, init_heads, inverse_sigmoid
from redetr.structures import DetectionModel, LossConfig, Outputs

NUM_LEVELS = 3  # strides 8, 16, 32
_MOST_POINTS = 1000
_LARGEST_EXPANSION = 8


class Decoder(TwoStageDecoder):
    """Corrects the boxes of the queries by a logit for each of their four numbers."""

    def __init__(
        self,
        *,
        num_classes: int,
        num_channels: list[int],
        hidden_dim: int,
        nheads: int,
        dec_layers: int,
        dim_feedforward: int,
        points: list[int],
        sampling: Sampling,
        num_queries: int,
        eval_idx: int,
        norm: Norm,
        denoising: int,
        activation: Activation,
        query_pos_layers: int,
    ):
        input_proj = nn.ModuleList(
            ConvNorm(channels, hidden_dim, 1, norm=norm) for channels in num_channels
        )
        super().__init__(
            num_classes,
            input_proj,
            hidden_dim,
            num_queries,
            denoising,
            activation,
            query_pos_layers,
        )
        self.last_in_eval = range(dec_layers)[eval_idx]
        attention = partial(DeformableAttention, hidden_dim, nheads, points, sampling)
        layer = partial(
            DecoderLayer, hidden_dim, nheads, dim_feedforward, attention, activation=activation
        )
        layers = nn.ModuleList(layer() for _ in range(dec_layers))
        self.decoder = nn.ModuleDict({"layers": layers})
        self.dec_score_head = nn.ModuleList(
            nn.Linear(hidden_dim, num_classes) for _ in range(dec_layers)
        )
        self.dec_bbox_head = nn.ModuleList(
            MLP(hidden_dim, hidden_dim, 4, 3, activation) for _ in range(dec_layers)
        )
        init_heads(self.dec_score_head, self.dec_bbox_head)

    def _decode(
        self,
        content: Tensor,
        boxes: Tensor,
        encoded: EncoderOutput,
        every_layer: bool,
        ignored: Tensor | None = None,
    ) -> list[Outputs]:
        """As `TwoStageDecoder`."""
        layers: Any = self.decoder["layers"]
        last = len(layers) - 1 if self.training else self.last_in_eval
        x = content
        reference = boxes  # where a layer starts; no gradient flows to the layers before
        previous = boxes  # the same numbers, with their gradient
        outputs: list[Outputs] = []
        for i in range(last + 1):
            # Boxes are in fp32 or fp64, also where all weights are in bf16.
            query_pos = self.query_pos_head(reference.to(x.dtype))  # [B, Q, D]
            x = layers[i](x, query_pos, reference, *encoded, ignored)
            correction = at_least_float32(self.dec_bbox_head[i](x))
            refined = (inverse_sigmoid(reference) + correction).sigmoid()  # [B, Q, 4]
            if every_layer or i == last:
                logits = at_least_float32(self.dec_score_head[i](x))  # [B, Q, C]
                # The same numbers as `refined`, but the loss also teaches the head of the layer
                # before (DINO's "look forward twice").
                judged_boxes = (inverse_sigmoid(previous) + correction).sigmoid()
                outputs.append({"pred_logits": logits, "pred_boxes": judged_boxes})
            previous = refined
            reference = refined.detach()
        outputs[-1]["states"] = x
        return outputs


class RTDETR(DetectionModel):
    """Backbone, hybrid encoder, decoder. Scores are sigmoids: there is no "no object" class."""

    mean: Tensor
    std: Tensor

    resize = "square"  # no padding, one shape
    image_size = 640
    max_size = None

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        encoder: HybridEncoder,
        decoder: TwoStageDecoder,
        class_loss: ClassLoss = "mal",
        mask_head: MaskHead | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = decoder.num_queries
        self.aux_loss = True
        self.loss_config = LossConfig(
            scores="sigmoid",
            cost_class=2.0,
            proposals=True,
            denoising=decoder.denoising,
            class_loss=class_loss,
        )
        self.has_masks = mask_head is not None
        if mask_head is not None:
            self.loss_config = with_mask_losses(self.loss_config)
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.mask_head = mask_head
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, noisy: NoisyQueries | None = None
    ) -> Outputs:
        """Returns logits `[B, Q, C]` and boxes `[B, Q, 4]` of every decoder layer, as `Outputs`.

        With `aux_loss`, also those of the encoder's best positions, from which the queries start.
        `images` `[B, 3, H, W]` are normalised; `mask` `[B, H, W]` is True = padding, None = there
        is none. With `noisy` queries, the outputs hold theirs, too; the others stay the same.
        Raises ValueError for a mask of another shape or dtype.
        """
        require_padding_mask(images, mask)
        # The published weights take pixels in [0, 1].
        features = self.backbone(images * self.std + self.mean)
        num_levels = len(self.encoder.input_proj)  # finer features are for masks alone
        levels = self.encoder(features[-num_levels:], mask)
        ratio = valid_ratio(images, mask)
        outputs = self.decoder(levels, ratio, self.aux_loss, noisy)
        if self.mask_head is not None:
            all_levels = [*features[:-num_levels], *levels]
            height, width = images.shape[-2:]
            self.mask_head(outputs, all_levels, None, (height, width), ratio, self.aux_loss)
        del outputs["states"]
        return outputs


def points_of_level(points: int | Sequence[int]) -> list[int]:
    """Returns how many points a query reads on each level."""
    return [points] * NUM_LEVELS if isinstance(points, int) else list(points)


def require_common(options: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, for `options` that no model of this family supports."""
    if options["sampling"] not in ("bilinear", "discrete"):
        raise ValueError("sampling must be bilinear or discrete")
    for name in ("width", "enc_hidden_dim", "nheads", "dec_layers", "eval_idx"):
        if not isinstance(options[name], int):
            raise ValueError(f"{name} must be a whole number")
    enc_hidden_dim, nheads = options["enc_hidden_dim"], options["nheads"]
    if enc_hidden_dim % 8 or nheads < 1 or enc_hidden_dim % nheads:
        raise ValueError("enc_hidden_dim must be a multiple of 8 and of nheads")
    eval_idx, dec_layers = options["eval_idx"], options["dec_layers"]
    if not -dec_layers <= eval_idx < dec_layers:
        raise ValueError(f"eval_idx is {eval_idx}, but there are {dec_layers} decoder layers")


def require_points(points: Any, num_levels: int) -> None:
    """Raises ValueError unless `points` can be those of a query on each of `num_levels` levels."""
    if not isinstance(points, int | tuple | list):
        raise ValueError(f"points must be a number, or {num_levels} of them")
    by_level = points_of_level(points)
    possible = range(1, _MOST_POINTS + 1)
    if len(by_level) != num_levels or any(count not in possible for count in by_level):
        raise ValueError(f"points must be 1 to {_MOST_POINTS} on each of {num_levels} levels")


def require_possible(options: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, for `options` that no RT-DETR supports."""
    require_points(options["points"], NUM_LEVELS)
    if options["backbone"] not in tuple(DEPTHS):  # a list has no hash
        raise ValueError(f"backbone must be one of {', '.join(DEPTHS)}")
    if options["class_loss"] not in ("mal", "varifocal"):
        raise ValueError("class_loss must be mal or varifocal")
    if options["query_pos_layers"] not in (2, 3):
        raise ValueError("query_pos_layers must be 2 or 3")
    require_common(options)
    if options["width"] % 16:
        raise ValueError("width must be a multiple of 16")
    enc_hidden_dim, expansion = options["enc_hidden_dim"], options["expansion"]
    if not isinstance(expansion, int | float) or not 0 < expansion <= _LARGEST_EXPANSION:
        raise ValueError(f"expansion must be above 0 and at most {_LARGEST_EXPANSION}")
    block_width = round(enc_hidden_dim * expansion)
    if block_width % 8 or not block_width:
        raise ValueError("enc_hidden_dim times expansion must be a multiple of 8")


def rtdetr(
    num_classes: int,
    *,
    backbone: str = "resnet18vd",
    weights: str | None = None,
    width: int = 64,
    norm: Norm = "frozen_batch",
    enc_hidden_dim: int = 256,
    enc_dim_feedforward: int = 1024,
    expansion: float = 0.5,
    hidden_dim: int = 256,
    nheads: int = 8,
    dec_layers: int = 3,
    dim_feedforward: int = 1024,
    points: int | tuple[int, ...] = 4,
    sampling: Sampling = "bilinear",
    num_queries: int = 300,
    eval_idx: int = -1,
    activation: str = "relu",
    query_pos_layers: int = 2,
    denoising: int = 0,
    class_loss: ClassLoss = "mal",
    masks: bool = False,
) -> RTDETR:
    """Returns an RT-DETR with random weights. The defaults are those of R18.

    There are no backbone `weights` by name. `norm` is that of all convolutions; frozen BatchNorm
    means that of the weights it starts from. `width` is that of the backbone's first stage,
    `expansion` that of the encoder's blocks relative to `enc_hidden_dim`. `points` are those of a
    query on each level. `sampling="discrete"` reads whole pixels, for devices without
    `grid_sample`. `eval_idx` is the decoder layer that answers in evaluation, where later layers
    are not computed; all are trained. `activation` is that of the decoder and its heads, and
    `query_pos_layers` how many layers make a position encoding of a box: "silu" and 3 in DEIM, see
    `TwoStageDecoder`. `denoising` is the number of groups of noisy queries in
    training, see `denoising.py`; the published weights were trained with the `class_loss`
    "varifocal". With `masks`, each query has an instance mask.
    """
    body = PResNet(backbone, weights, norm, width)
    pyramid = csp_pyramid(enc_hidden_dim, expansion, norm)
    encoder = HybridEncoder(
        body.num_channels, enc_hidden_dim, nheads, enc_dim_feedforward, pyramid, norm
    )
    decoder = Decoder(
        num_classes=num_classes,
        num_channels=[enc_hidden_dim] * NUM_LEVELS,
        hidden_dim=hidden_dim,
        nheads=nheads,
        dec_layers=dec_layers,
        dim_feedforward=dim_feedforward,
        points=points_of_level(points),
        sampling=sampling,
        num_queries=num_queries,
        eval_idx=eval_idx,
        norm=norm,
        denoising=denoising,
        activation=ACTIVATIONS[activation],
        query_pos_layers=query_pos_layers,
    )
    levels = [enc_hidden_dim] * NUM_LEVELS
    mask_head = MaskHead(levels, hidden_dim, hidden_dim) if masks else None
    return RTDETR(num_classes, body, encoder, decoder, class_loss, mask_head)


def rtdetr_r18(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETR-R18: 46.4 AP on COCO val 2017 with the authors' weights (published; Apache-2.0)."""
    return rtdetr(num_classes, **options)


def rtdetr_r34(
    num_classes: int, *, backbone: str = "resnet34vd", dec_layers: int = 4, **options: Any
) -> RTDETR:
    """RT-DETR-R34: 48.9 AP (published; Apache-2.0)."""
    return rtdetr(num_classes, backbone=backbone, dec_layers=dec_layers, **options)


def rtdetr_r50m(
    num_classes: int,
    *,
    backbone: str = "resnet50vd",
    dec_layers: int = 6,
    eval_idx: int = 2,
    **options: Any,
) -> RTDETR:
    """RT-DETR-R50-m: 51.3 AP (published; Apache-2.0); trains six decoder layers, runs three."""
    return rtdetr(
        num_classes, backbone=backbone, dec_layers=dec_layers, eval_idx=eval_idx, **options
    )


def rtdetr_r50(
    num_classes: int,
    *,
    backbone: str = "resnet50vd",
    expansion: float = 1.0,
    dec_layers: int = 6,
    **options: Any,
) -> RTDETR:
    """RT-DETR-R50: 53.1 AP (published; Apache-2.0)."""
    return rtdetr(
        num_classes, backbone=backbone, expansion=expansion, dec_layers=dec_layers, **options
    )


def rtdetr_r101(
    num_classes: int,
    *,
    backbone: str = "resnet101vd",
    enc_hidden_dim: int = 384,
    enc_dim_feedforward: int = 2048,
    expansion: float = 1.0,
    dec_layers: int = 6,
    **options: Any,
) -> RTDETR:
    """RT-DETR-R101: 54.3 AP (published; Apache-2.0)."""
    return rtdetr(
        num_classes,
        backbone=backbone,
        enc_hidden_dim=enc_hidden_dim,
        enc_dim_feedforward=enc_dim_feedforward,
        expansion=expansion,
        dec_layers=dec_layers,
        **options,
    )


def rtdetrv2_r18(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETRv2-R18: 48.1 AP on COCO val 2017 with the authors' weights (published; Apache-2.0)."""
    return rtdetr_r18(num_classes, **options)


def rtdetrv2_r34(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETRv2-R34: 49.9 AP (published; Apache-2.0)."""
    return rtdetr_r34(num_classes, **options)


def rtdetrv2_r50m(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETRv2-R50-m: 51.9 AP (published; Apache-2.0); trains six decoder layers, runs three."""
    return rtdetr_r50m(num_classes, **options)


def rtdetrv2_r50(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETRv2-R50: 53.4 AP (published; Apache-2.0)."""
    return rtdetr_r50(num_classes, **options)


def rtdetrv2_r101(num_classes: int, **options: Any) -> RTDETR:
    """RT-DETRv2-R101: 54.3 AP (published; Apache-2.0)."""
    return rtdetr_r101(num_classes, **options)
