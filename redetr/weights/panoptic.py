"""Weights of the panoptic DETR: the official checkpoints and Transformers folders.

This library uses the official parameter names, in which those of the detector have the prefix
`detr.`. Transformers writes the mask head with the official names by default, and with others in
its own format.
"""

from typing import Any

from torch import Tensor

from redetr.errors import InputError
from redetr.weights import official
from redetr.weights.tensors import new_name

PREFIX = "detr."
# Names that only a model with a mask head has.
HEADS = ("bbox_attention.", "mask_head.")
LAST_THING = 90  # of COCO's category ids; those above are stuff

_FROM_TRANSFORMERS: list[tuple[str, str]] = [
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
]
# The three stages that add a finer map have the layers 3, 4 and 5 and the adapters 1, 2 and 3.
for _stage in range(3):
    _prefix = rf"^mask_head\.fpn_stages\.{_stage}\."
    _FROM_TRANSFORMERS += [
        (_prefix + r"fpn_adapter\.", f"mask_head.adapter{_stage + 1}."),
        (_prefix + r"refine\.conv\.", f"mask_head.lay{_stage + 3}."),
        (_prefix + r"refine\.norm\.", f"mask_head.gn{_stage + 3}."),
    ]


def is_panoptic(weights: dict[str, Tensor]) -> bool:
    """Whether these weights have the official or the Transformers names of a DETR with a mask
    head."""
    has_detector = any(name.startswith(PREFIX) for name in weights)
    return has_detector and any(name.startswith(HEADS) for name in weights)


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Transformers' `DetrForSegmentation`, with the official names."""
    renamed = {}
    of_detector = {}
    for name, tensor in weights.items():
        if name.startswith(PREFIX):
            of_detector[name.removeprefix(PREFIX)] = tensor
            continue
        renamed[new_name(name, _FROM_TRANSFORMERS)] = tensor
    for name, tensor in official.from_transformers(of_detector).items():
        renamed[PREFIX + name] = tensor
    return renamed


def with_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a DETR without masks, with the names that they have in a panoptic DETR. Those
    of a panoptic DETR are returned unchanged."""
    if is_panoptic(weights):
        return weights
    return {PREFIX + name: tensor for name, tensor in weights.items()}


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a panoptic DETR, with the names that those of its detector have in a DETR
    without masks."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


def describe(weights: dict[str, Tensor]) -> tuple[str, int, dict[str, Any]]:
    """Model name, number of classes and options of a state dict with official names.

    Dilation (DC5) leaves no trace in the weights. Raises InputError if this is not a panoptic DETR.
    """
    of_detector = {}
    for name, tensor in weights.items():
        if name.startswith(PREFIX):
            of_detector[name.removeprefix(PREFIX)] = tensor
    _, num_classes, options = official.describe_detr(of_detector)
    first = weights.get("mask_head.lay1.weight")
    if first is None or first.dim() != 4:
        raise InputError(
            "these weights are not a panoptic DETR: mask_head.lay1.weight is missing or of another "
            "shape"
        )
    # The head reads the features and the attention maps of all heads.
    options["nheads"] = max(1, first.shape[0] - options["hidden_dim"])
    name = "detr_r50_panoptic"
    if options["backbone"] == "resnet101":
        name = "detr_r101_panoptic"
    return name, num_classes, options


_STUFF_NAMES = """
92 banner,blanket
95 bridge
100 cardboard
107 counter
109 curtain
112 door-stuff
118 floor-wood,flower
122 fruit
125 gravel
128 house
130 light
133 mirror-stuff
138 net
141 pillow
144 platform,playingfield
147 railroad,river,road
151 roof
154 sand,sea,shelf
159 snow
161 stairs
166 tent
168 towel
171 wall-brick
175 wall-stone,wall-tile,wall-wood,water-other
180 window-blind,window-other
184 tree-merged,fence-merged,ceiling-merged,sky-other-merged,cabinet-merged,table-merged
190 floor-other-merged,pavement-merged,mountain-merged,grass-merged,dirt-merged,paper-merged
196 food-other-merged,building-other-merged,rock-merged,wall-other-merged,rug-merged
"""


def coco_class_names(num_classes: int) -> list[str]:
    """The names of category ids 0 to `num_classes` - 1 of COCO panoptic; "unused" for ids without a
    category."""
    names = official.coco_class_names() + ["unused"] * (num_classes - LAST_THING - 1)
    official.enter_names(names, _STUFF_NAMES)
    return names
