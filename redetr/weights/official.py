"""Weights of DETR and Table Transformer: the official checkpoints and Transformers folders.

This library uses the official parameter names. Transformers splits the in-projection of attention
in three, and renames the rest. The table below is valid for folders of all its versions (`out_proj`
and `fc1` on disk).
"""

import re
from typing import Any

import torch
from torch import Tensor

from redetr.errors import InputError
from redetr.weights.tensors import count_layers, new_name, require_dimensions

# Each rule is applied to each name, in order.
_FROM_TRANSFORMERS: list[tuple[str, Any]] = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (
        r"^model\.backbone\.(conv_encoder\.)?position_embedding\.|^model\.position_embedding\.",
        "backbone.1.",
    ),
    (r"row_embeddings\.", "row_embed."),
    (r"column_embeddings\.", "col_embed."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    (r"\.fc1\.", ".linear1."),
    (r"\.fc2\.", ".linear2."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.(encoder|decoder)\.layernorm\.", r".\1.norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
]
# The backbone of Transformers' own ResNet: stages, layers and shortcuts under other names.
_FROM_TRANSFORMERS_RESNET: list[tuple[str, Any]] = [
    (r"\.embedder\.embedder\.convolution\.", ".conv1."),
    (r"\.embedder\.embedder\.normalization\.", ".bn1."),
    (r"\.encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f".layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
]


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Transformers' `DetrForObjectDetection` or
    `TableTransformerForObjectDetection`, with the official names."""
    rules = [*_FROM_TRANSFORMERS, *_FROM_TRANSFORMERS_RESNET]
    renamed = {}
    for old_name, tensor in weights.items():
        name = new_name(old_name, rules)
        if not name.endswith("num_batches_tracked"):
            renamed[name] = tensor
    return join_projections(renamed)


def join_projections(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the projections of query, key and value joined into one tensor. Raises
    InputError if one is missing, or if their shapes differ."""
    joined = {}
    for name, tensor in weights.items():
        if not re.search(r"\.[qkv]_proj\.", name):
            joined[name] = tensor
        elif ".q_proj." in name:
            parts = []
            for letter in "qkv":
                part = weights.get(name.replace(".q_proj.", f".{letter}_proj."))
                if part is None or part.dim() == 0 or part.shape != tensor.shape:
                    raise InputError(
                        f"these weights are not a DETR: {name} lacks a key or value projection of "
                        "its shape"
                    )
                parts.append(part)
            joined[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return joined


# Names that every DETR has, with the number of dimensions of their tensors.
_NEEDED = {
    "query_embed.weight": 2,
    "class_embed.weight": 2,
    "backbone.0.body.conv1.weight": 4,
    "transformer.decoder.layers.0.linear1.weight": 2,
}


def describe_detr(weights: dict[str, Tensor]) -> tuple[str, int, dict[str, Any]]:
    """Model name, number of classes and options of a state dict with official names.

    Dilation (DC5) leaves no trace in the weights: the caller has to know. Heads are 32 wide, as in
    every published DETR. Raises InputError if this is not a DETR.
    """
    require_dimensions(weights, _NEEDED, "a DETR")
    num_queries, hidden_dim = weights["query_embed.weight"].shape
    num_outputs, _ = weights["class_embed.weight"].shape
    dec_dim_feedforward, _ = weights["transformer.decoder.layers.0.linear1.weight"].shape
    dim_feedforward = dec_dim_feedforward
    in_encoder = weights.get("transformer.encoder.layers.0.linear1.weight")
    if in_encoder is not None and in_encoder.dim() == 2:
        dim_feedforward = len(in_encoder)
    backbone = _backbone_of(weights)
    options = {
        "backbone": backbone,
        "hidden_dim": hidden_dim,
        "nheads": max(1, hidden_dim // 32),
        "enc_layers": count_layers(weights, r"transformer\.encoder\.layers\.(\d{1,9})\."),
        "dec_layers": count_layers(weights, r"transformer\.decoder\.layers\.(\d{1,9})\."),
        "dim_feedforward": dim_feedforward,
        "num_queries": num_queries,
        "pre_norm": "transformer.encoder.norm.weight" in weights,
        "position": "learned" if "backbone.1.row_embed.weight" in weights else "sine",
    }
    if dec_dim_feedforward != dim_feedforward:
        options["dec_dim_feedforward"] = dec_dim_feedforward
    name = "detr_r101" if backbone == "resnet101" else "detr_r50"
    if backbone == "resnet18" and options["pre_norm"]:
        name = "detr_table"
    return name, num_outputs - 1, options


def _backbone_of(weights: dict[str, Tensor]) -> str:
    """The name of the ResNet. Raises InputError if it is unknown."""
    blocks = []
    for stage in (1, 2, 3, 4):
        pattern = rf"backbone\.0\.body\.layer{stage}\.(\d{{1,9}})\."
        blocks.append(count_layers(weights, pattern))
    has_bottlenecks = "backbone.0.body.layer1.0.conv3.weight" in weights
    if blocks == [2, 2, 2, 2] and not has_bottlenecks:
        return "resnet18"
    if blocks == [3, 4, 6, 3]:
        return "resnet50" if has_bottlenecks else "resnet34"
    if blocks == [3, 4, 23, 3] and has_bottlenecks:
        return "resnet101"
    kind = "bottlenecks" if has_bottlenecks else "basic blocks"
    raise InputError(
        f"these weights have a backbone with stages {blocks} of {kind}: only ResNet-18, 34, 50, "
        "101 are known"
    )


# COCO's category ids have gaps. Official checkpoints have 91 outputs, one per id; those of the gaps
# are never predicted.
_COCO_NAMES = """
1 person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant
13 stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe
27 backpack,umbrella
31 handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove
41 skateboard,surfboard
43 tennis racket,bottle
46 wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot
58 hot dog,pizza,donut,cake
62 chair,couch,potted plant,bed
67 dining table
70 toilet
72 tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator
84 book,clock,vase,scissors,teddy bear,hair drier,toothbrush
"""


def coco_class_names() -> list[str]:
    """The names of category ids 0 to 90; "unused" for ids without a category."""
    names = ["unused"] * 91
    enter_names(names, _COCO_NAMES)
    return names


def enter_names(names: list[str], table: str) -> None:
    """Enters the names of a table into `names`, by category id. Each line has the first id of a
    range, and the names from there on."""
    for line in table.strip().splitlines():
        first, _, listed = line.partition(" ")
        for offset, name in enumerate(listed.split(",")):
            names[int(first) + offset] = name
