"""Weights of D-FINE: files of the original code, and Transformers folders.

This library uses the parameter names of the original; those of Transformers are renamed. DEIM and
RT-DETRv4 train the same architecture with SiLU in the decoder, and their files have the same names:
see `activation_of` for how they are distinguished. D-FINE-seg adds a mask head.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.edges import UPPER_BOUND
from redetr.errors import InputError
from redetr.models.hgnetv2 import SIZES
from redetr.weights import rtdetr
from redetr.weights.official import join_projections
from redetr.weights.tensors import count_layers, require_dimensions

# Each rule is applied to each name, in order, before the rules that D-FINE shares with RT-DETR.
_FROM_TRANSFORMERS: list[tuple[str, Any]] = [
    (r"^model\.backbone\.model\.embedder\.", "backbone.stem."),
    (r"^model\.backbone\.model\.encoder\.", "backbone."),
    (r"^(backbone\..*)\.normalization\.", r"\1.bn."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+)\.csp_rep1\.", r"\1.cv2.0."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+)\.csp_rep2\.", r"\1.cv3.0."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+)\.conv2\.", r"\1.cv2.1."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+)\.conv3\.", r"\1.cv3.1."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+)\.conv([14])\.", r"\1.cv\2."),
    (r"^(model\.encoder\.downsample_convs\.\d+)\.conv([12])\.", r"\1.0.cv\2."),
    (r"^model\.decoder\.(up|reg_scale|pre_bbox_head)\b", r"decoder.\1"),
    (r"^model\.decoder\.lqe_layers\.", "decoder.decoder.lqe_layers."),
    (r"\.mlp\.layers\.0\.", ".linear1."),
    (r"\.mlp\.layers\.1\.", ".linear2."),
]

# The mask head in files of D-FINE-seg.
_FROM_DFINE_SEG: list[tuple[str, Any]] = [
    (r"^decoder\.mask_decoder\.lateral\.(\d+)\.", r"mask_head.lateral.\1.0."),
    (r"^decoder\.mask_decoder\.bn\.(\d+)\.", r"mask_head.lateral.\1.1."),
    (r"^decoder\.mask_decoder\.fusion_conv\.", "mask_head.fuse.0."),
    (r"^decoder\.mask_decoder\.fusion_norm\.", "mask_head.fuse.1."),
    (r"^decoder\.mask_decoder\.up_conv\.", "mask_head.refine.0."),
    (r"^decoder\.mask_decoder\.bn1\.", "mask_head.refine.1."),
    (r"^decoder\.mask_head\.", "mask_head.queries."),
]

# Names that every D-FINE has, with the number of dimensions of their tensors.
_NEEDED = {
    "backbone.stem.stem4.conv.weight": 4,
    "encoder.input_proj.0.conv.weight": 4,
    "encoder.encoder.0.layers.0.linear1.weight": 2,
    "encoder.fpn_blocks.0.cv4.conv.weight": 4,
    "encoder.fpn_blocks.0.cv2.1.conv.weight": 4,
    "decoder.up": 1,
    "decoder.reg_scale": 1,
    "decoder.enc_score_head.weight": 2,
    "decoder.dec_bbox_head.0.layers.2.bias": 1,
    "decoder.decoder.layers.0.linear1.weight": 2,
    "decoder.decoder.layers.0.cross_attn.attention_weights.bias": 1,
}

# Tensors that the model does not need: a second name for the same numbers, values that are computed
# from them, and a projection that RT-DETRv4 uses only in training.
_UNUSED = (
    r"^decoder\.decoder\.(up|reg_scale|project)$",
    r"^encoder\.feature_projector\.",
)

# Settings of Transformers' config for which only these values give the function of our model.
SUPPORTED = {
    "layer_scale": 1,
    "top_prob_values": 4,
    "lqe_hidden_dim": 64,
    "lqe_layers": 2,
}
SUPPORTED_BACKBONE: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "hidden_act": "relu",
    "stem_strides": [2, 1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_downsample_strides": [2, 2, 2, 2],
}
_STRIDES = [4, 8, 16, 32]

# In lower-case names of files. DEIM trains D-FINE's networks, so its files may have both words. As
# beginnings of words, because wide_images and part_v4 contain the letters too.
_WITH_SILU = re.compile(r"(?<![a-z0-9])(deim(?![a-z])|rt[-_. ]?(detr[-_. ]?)?v4)")
_WITH_RELU = re.compile(r"dfine|(?<![a-z0-9])d[-_. ]fine")


def is_dfine(tensors: dict[str, Tensor]) -> bool:
    """Whether the names are those of the original D-FINE."""
    return "decoder.pre_bbox_head.layers.0.weight" in tensors and any(
        name.startswith("backbone.stem.") for name in tensors
    )


def from_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original code or of D-FINE-seg, without tensors that the model does not
    need."""
    return _without_unused(rtdetr.renamed(tensors, _FROM_DFINE_SEG))


def from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Transformers' `DFineForObjectDetection`, with our names."""
    names = rtdetr.renamed(tensors, [*_FROM_TRANSFORMERS, *rtdetr.FROM_TRANSFORMERS])
    return join_projections(_without_unused(names))


def _without_unused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    needed = {}
    for name, tensor in tensors.items():
        if not any(re.search(pattern, name) for pattern in _UNUSED):
            needed[name] = tensor
    return needed


def describe(
    tensors: dict[str, Tensor], points: int | tuple[int, ...] | None = None
) -> tuple[str, int, dict[str, Any]]:
    """Model name, number of classes and options of a state dict with our names.

    `points` are the points of a query on each level; None = as in published models. Raises
    InputError if this is not a D-FINE, or if its backbone is unknown.
    """
    require_dimensions(tensors, _NEEDED, "a D-FINE")
    up = float(tensors["decoder.up"][0])
    if up != UPPER_BOUND:  # the losses take it for granted
        raise InputError(f"decoder.up is {up} in these weights: only {UPPER_BOUND} can be loaded")
    num_levels = count_layers(tensors, r"encoder\.input_proj\.(\d)\.")
    if points is None:
        points = (6, 6) if num_levels == 2 else (3, 6, 3)
    if isinstance(points, int):
        points = (points,) * num_levels
    num_classes, hidden_dim = tensors["decoder.enc_score_head.weight"].shape
    backbone = _backbone(tensors)
    sizes = {"hgnetv2_b0": "s", "hgnetv2_b2": "m", "hgnetv2_b4": "l", "hgnetv2_b5": "x"}
    size = "n" if num_levels == 2 else sizes[backbone]
    sampled = len(tensors["decoder.decoder.layers.0.cross_attn.attention_weights.bias"])
    mixing = r"encoder\.fpn_blocks\.0\.cv2\.0\.bottlenecks\.(\d{1,9})\."
    options = {
        "backbone": backbone,
        "width": len(tensors["backbone.stem.stem4.conv.weight"]),
        "affine": "backbone.stem.stem1.lab.scale" in tensors,
        "enc_hidden_dim": len(tensors["encoder.fpn_blocks.0.cv4.conv.weight"]),
        "enc_dim_feedforward": len(tensors["encoder.encoder.0.layers.0.linear1.weight"]),
        "block_width": len(tensors["encoder.fpn_blocks.0.cv2.1.conv.weight"]),
        "blocks": count_layers(tensors, mixing),
        "hidden_dim": hidden_dim,
        "nheads": sampled // max(1, sum(points)),
        "dec_layers": count_layers(tensors, r"decoder\.dec_score_head\.(\d{1,9})\."),
        "dim_feedforward": len(tensors["decoder.decoder.layers.0.linear1.weight"]),
        "points": points,
        "bins": len(tensors["decoder.dec_bbox_head.0.layers.2.bias"]) // 4 - 1,
        "reg_scale": float(tensors["decoder.reg_scale"][0]),
        "masks": any(name.startswith("mask_head.") for name in tensors),
    }
    return f"dfine_{size}", num_classes, options


def _backbone(tensors: dict[str, Tensor]) -> str:
    blocks = []
    for stage in range(4):
        blocks.append(count_layers(tensors, rf"backbone\.stages\.{stage}\.blocks\.(\d{{1,9}})\."))
    layers = count_layers(tensors, r"backbone\.stages\.0\.blocks\.0\.layers\.(\d{1,9})\.")
    for name, size in SIZES.items():
        if [stage.blocks for stage in size.stages] == blocks and size.layers == layers:
            return name
    raise InputError(
        f"these weights have a backbone with stages {blocks} of {layers} layers: only HGNetV2 B0, "
        "B2, B4 and B5 are known"
    )


def options_from_config(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The options that only the config.json of a Transformers folder states; `file` is its path.

    Raises InputError for a setting with which this library's model would compute a different
    function.
    """
    num_levels = config.get("num_feature_levels", 3)
    if not isinstance(num_levels, int) or num_levels not in (2, 3):
        text = f"num_feature_levels is {num_levels!r}: only 2 and 3 can be loaded"
        raise InputError(text, where=file)
    by_level = {
        "feat_strides": _STRIDES[-num_levels:],
        "encode_proj_layers": [num_levels - 1],
        "num_feature_levels": num_levels,
    }
    dec_layers = config.get("decoder_layers", 6)
    is_last = isinstance(dec_layers, int) and config.get("eval_idx") == dec_layers - 1
    if not is_last:
        by_level["eval_idx"] = -1
    rtdetr.require_settings(file, config, rtdetr.SUPPORTED | SUPPORTED | by_level)
    backbone = config.get("backbone_config") or {}
    out_indices = [2, 3, 4][-num_levels:]
    supported_backbone = SUPPORTED_BACKBONE | {"out_indices": out_indices}
    rtdetr.require_settings(file, backbone, supported_backbone)
    options = rtdetr.decoder_options(file, config)
    points = options["points"]
    if isinstance(points, int):
        options["points"] = (points,) * num_levels
    elif isinstance(points, list):
        options["points"] = tuple(points)
    return options


def activation_of(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """The activation in the decoder of a file with the original's names; None if it cannot be
    determined.

    RT-DETRv4's files have a projection that no others have. Otherwise, the name of the file or of
    its folder shows who trained it.
    """
    if any(name.startswith("encoder.feature_projector.") for name in tensors):
        return "silu"
    for name in (path.name, path.absolute().parent.name):
        if _WITH_SILU.search(name.lower()):
            return "silu"
        if _WITH_RELU.search(name.lower()):
            return "relu"
    return None


def lacking_activation(path: Path, or_flag: str = "") -> InputError:
    """The error for a file whose activation `activation_of` cannot determine; `or_flag` names a
    remedy besides renaming the file."""
    return InputError(
        "does not say who trained it: D-FINE has ReLU in the decoder, DEIM and RT-DETRv4 have SiLU",
        where=path,
        remedy=f"put dfine- or deim- before its name or that of its folder{or_flag}",
    )
