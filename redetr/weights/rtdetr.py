"""Weights of RT-DETR and RT-DETRv2: files of the original code, and Transformers folders.

This library uses the parameter names of the original v2; those of v1 and of Transformers are
renamed. DEIM's files of v2 have the original names, but one more layer for the positions of
queries, by which they are recognised, and SiLU in the decoder.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.class_names import canonical
from redetr.errors import InputError
from redetr.weights.official import coco_class_names, join_projections
from redetr.weights.tensors import count_layers, new_name, require_dimensions

# The prefixes of model names, by the `model_type` in the config.json of a Transformers folder.
MODEL_TYPES = {"rt_detr": "rtdetr", "rt_detr_v2": "rtdetrv2"}

# Each rule is applied to each name, in order.
_FROM_V1 = [
    (r"^(encoder|decoder)\.input_proj\.(\d)\.0\.", r"\1.input_proj.\2.conv."),
    (r"^(encoder|decoder)\.input_proj\.(\d)\.1\.", r"\1.input_proj.\2.norm."),
    (r"^decoder\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^decoder\.enc_output\.1\.", "decoder.enc_output.norm."),
]
FROM_TRANSFORMERS: list[tuple[str, Any]] = [
    (
        r"^model\.backbone\.model\.embedder\.embedder\.(\d)\.",
        lambda match: f"backbone.conv1.conv1_{int(match[1]) + 1}.",
    ),
    (
        r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
        r"backbone.res_layers.\1.blocks.\2.",
    ),
    (r"^(backbone\..*)\.shortcut\.1\.", r"\1.short.conv."),  # after a pooling layer
    (r"^(backbone\..*)\.shortcut\.", r"\1.short."),
    (
        r"^(backbone\..*)\.layer\.(\d)\.",
        lambda match: f"{match[1]}.branch2{'abc'[int(match[2])]}.",
    ),
    (r"^(backbone\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\..*)\.normalization\.", r"\1.norm."),
    (r"^model\.(encoder|decoder)_input_proj\.", r"\1.input_proj."),
    (r"^model\.(enc_output|enc_score_head|enc_bbox_head)\.", r"decoder.\1."),
    (r"^model\.(denoising_class_embed)\.", r"decoder.\1."),
    (r"^model\.encoder\.aifi\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^(model\.decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(model\.decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    (r"\.fc1\.", ".linear1."),
    (r"\.fc2\.", ".linear2."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    *_FROM_V1,
]

# Names that every RT-DETR has, with the number of dimensions of their tensors.
_NEEDED = {
    "backbone.conv1.conv1_3.conv.weight": 4,
    "encoder.input_proj.0.conv.weight": 4,
    "encoder.encoder.0.layers.0.linear1.weight": 2,
    "encoder.fpn_blocks.0.conv1.conv.weight": 4,
    "decoder.enc_score_head.weight": 2,
    "decoder.dec_score_head.0.weight": 2,
    "decoder.decoder.layers.0.linear1.weight": 2,
    "decoder.decoder.layers.0.cross_attn.attention_weights.bias": 1,
}

# Tensors that the model does not need, because it computes them for the size of the image.
_UNUSED = (
    r"\.num_batches_tracked$",
    r"^decoder\.(anchors|valid_mask)$",
    r"\.(num_points_scale|n_points_scale)$",
    r"^encoder\.pos_embed\d*$",
)

# Settings of Transformers' config for which only these values give the function of our model.
SUPPORTED: dict[str, Any] = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "learn_initial_query": False,
    "with_box_refine": True,
    "encoder_layers": 1,
    "encode_proj_layers": [2],
    "feat_strides": [8, 16, 32],
    "num_feature_levels": 3,
    "positional_encoding_temperature": 10000,
    "eval_size": None,
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "decoder_offset_scale": 0.5,
}
SUPPORTED_BACKBONE: dict[str, Any] = {
    "model_type": "rt_detr_resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}

_LAYERS_OF_R50M = 6  # of the published decoder, of which the third gives the predictions


def is_rtdetr(tensors: dict[str, Tensor]) -> bool:
    """Whether the names are those of the original RT-DETR, v1 or v2."""
    return "decoder.enc_score_head.weight" in tensors and any(
        name.startswith("backbone.res_layers.") for name in tensors
    )


def from_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original code, v1 or v2, with our names."""
    return renamed(tensors, _FROM_V1)


def from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Transformers' `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection`,
    with our names."""
    return join_projections(renamed(tensors, FROM_TRANSFORMERS))


def renamed(tensors: dict[str, Tensor], rules: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
    """The tensors with their new names, without those that no model needs. Each of the `rules`, a
    pattern and its replacement, is applied to each name, in order."""
    by_new_name = {}
    # Sorted, because a folder may hold a head twice: the one in model.decoder, which is used, comes
    # last.
    for old_name in sorted(tensors):
        name = new_name(old_name, rules)
        if not any(re.search(pattern, name) for pattern in _UNUSED):
            by_new_name[name] = tensors[old_name]
    return by_new_name


def version_of(tensors: dict[str, Tensor]) -> str:
    """The prefix of the model's name, from a state dict of the original code."""
    if "encoder.input_proj.0.0.weight" in tensors:
        return "rtdetr"
    return "rtdetrv2"


def points_of(tensors: dict[str, Tensor]) -> int | tuple[int, ...] | None:
    """The points of a query on each level, which v2 stores; None if they are not stored.

    The buffer has one entry for each point: 1 / the number of points on its level.
    """
    scale = tensors.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if scale is None:
        return None
    counts = []
    position = 0
    while scale.dim() == 1 and position < len(scale):
        inverse = scale[position].item()
        count = round(1 / inverse) if 1e-3 <= inverse <= 1 else 1
        counts.append(count)
        position += count
    return counts[0] if len(set(counts)) == 1 else tuple(counts)


def describe(version: str, tensors: dict[str, Tensor]) -> tuple[str, int, dict[str, Any]]:
    """Model name, number of classes and options of a state dict with our names.

    Some options do not show in the weights. They are assumed to be 8 heads, as in every published
    model, the same number of points on all levels, and bilinear sampling. Raises InputError if this
    is not an RT-DETR, or if its backbone is unknown.
    """
    require_dimensions(tensors, _NEEDED, "an RT-DETR")
    enc_hidden_dim = len(tensors["encoder.input_proj.0.conv.weight"])
    encoder_block = len(tensors["encoder.fpn_blocks.0.conv1.conv.weight"])
    num_classes, hidden_dim = tensors["decoder.enc_score_head.weight"].shape
    backbone = _backbone(tensors)
    expansion = encoder_block / enc_hidden_dim
    size = {"resnet18vd": "r18", "resnet34vd": "r34", "resnet101vd": "r101"}.get(backbone)
    if size is None:
        size = "r50" if expansion == 1 else "r50m"
    nheads = 8
    query_pos_layers = count_layers(tensors, r"decoder\.query_pos_head\.layers\.(\d{1,9})\.")
    sampled = len(tensors["decoder.decoder.layers.0.cross_attn.attention_weights.bias"])
    dec_layers = count_layers(tensors, r"decoder\.dec_score_head\.(\d{1,9})\.")
    options = {
        "backbone": backbone,
        "width": len(tensors["backbone.conv1.conv1_3.conv.weight"]),
        "enc_hidden_dim": enc_hidden_dim,
        "enc_dim_feedforward": len(tensors["encoder.encoder.0.layers.0.linear1.weight"]),
        "expansion": expansion,
        "hidden_dim": hidden_dim,
        "nheads": nheads,
        "dec_layers": dec_layers,
        "dim_feedforward": len(tensors["decoder.decoder.layers.0.linear1.weight"]),
        "points": sampled // (3 * nheads),
        "activation": "relu" if query_pos_layers == 2 else "silu",
        "query_pos_layers": query_pos_layers,
    }
    if size == "r50m" and dec_layers != _LAYERS_OF_R50M:
        options["eval_idx"] = -1  # not a published model, so assume that the last layer predicts
    return f"{version}_{size}", num_classes, options


def _backbone(tensors: dict[str, Tensor]) -> str:
    depths = []
    for stage in range(4):
        pattern = rf"backbone\.res_layers\.{stage}\.blocks\.(\d{{1,9}})\."
        depths.append(count_layers(tensors, pattern))
    is_deep = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in tensors
    names: dict[tuple[tuple[int, ...], bool], str] = {
        ((2, 2, 2, 2), False): "resnet18vd",
        ((3, 4, 6, 3), False): "resnet34vd",
        ((3, 4, 6, 3), True): "resnet50vd",
        ((3, 4, 23, 3), True): "resnet101vd",
    }
    name = names.get((tuple(depths), is_deep))
    if name is None:
        raise InputError(
            f"these weights have a backbone with stages {depths}: only ResNet-vd 18, 34, 50 and "
            "101 are known"
        )
    return name


def options_from_config(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The options that only the config.json of a Transformers folder states; `file` is its path.

    Raises InputError for a setting with which this library's model would compute a different
    function.
    """
    require_settings(file, config, SUPPORTED)
    require_settings(file, config.get("backbone_config") or {}, SUPPORTED_BACKBONE)
    options = decoder_options(file, config)
    if config.get("model_type") == "rt_detr":  # v1 has no other sampling in Transformers
        options["sampling"] = "bilinear"
    return options


def require_settings(file: Path, settings: dict[str, Any], supported: dict[str, Any]) -> None:
    """Raises InputError if a setting does not have its supported value, or if `settings` is not a
    table."""
    if not isinstance(settings, dict):
        raise InputError("backbone_config has to be a table of settings", where=file)
    for name, value in supported.items():
        given = settings.get(name, value)
        if given != value:
            raise InputError(f"{name} is {given!r}: only {value!r} can be loaded", where=file)


def decoder_options(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The options of the decoder in a config.json; `file` is its path. Raises InputError if it
    states an unsupported value."""
    nheads = config.get("decoder_attention_heads", 8)
    if config.get("encoder_attention_heads", 8) != nheads:
        text = "encoder_attention_heads and decoder_attention_heads must be the same"
        raise InputError(text, where=file)
    method = config.get("decoder_method", "default")
    return {
        "nheads": nheads,
        "points": config.get("decoder_n_points", 4),
        "num_queries": config.get("num_queries", 300),
        "sampling": "bilinear" if method == "default" else method,
    }


def classes(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The class names and category ids of a model whose config has these names.

    If they are the names of COCO's 80 classes in COCO's order, the ids are COCO's, which have gaps.
    Otherwise, classes are numbered from 0.
    """
    coco_names = []
    coco_ids = []
    for category_id, name in enumerate(coco_class_names()):
        if name != "unused":
            coco_names.append(name)
            coco_ids.append(category_id)
    if [canonical(name) for name in names] == coco_names:
        return tuple(coco_names), tuple(coco_ids)
    return tuple(names), tuple(range(len(names)))


def names_without_config(num_classes: int) -> list[str]:
    """The class names for a file of the original code, which has none: COCO's if there are 80
    classes."""
    if num_classes == 80:
        return [name for name in coco_class_names() if name != "unused"]
    return [f"class {i}" for i in range(num_classes)]
