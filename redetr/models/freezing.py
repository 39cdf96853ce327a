"""Freezes parts of a model, which training then does not change."""

from collections.abc import Sequence

from torch import nn

from redetr.errors import InputError
from redetr.structures import DetectionModel

_MASK_PARTS = ("mask_head", "bbox_attention")


def freeze(model: DetectionModel, names: Sequence[str]) -> None:
    """Takes the parts of these `names` out of training: no gradients, and fixed statistics.

    "detector" is everything but what makes masks. Any other name is the path of a module, such as
    `backbone` or `decoder.layers`; where nothing is there, it is a module one level deeper, so that
    `encoder` is `transformer.encoder` in DETR. The prefix `detr.` of the parts of a panoptic DETR
    can be left out. Raises InputError for a name that `model` does not have, or if nothing is left
    to train.
    """
    paths = paths_of(model, names)
    for path in paths:
        model.get_submodule(path).requires_grad_(False)
    model.frozen = tuple(paths)
    model.train(model.training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze {' '.join(names)}: nothing is left to train")


def paths_of(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The paths of the modules that `freeze` freezes by these names. Raises InputError for a name
    that `model` does not have."""
    paths = []
    for name in names:
        paths += _detector(model) if name == "detector" else [_path_of(model, name)]
    return paths


def _detector(model: nn.Module) -> list[str]:
    """The parts of a model that make no masks."""
    parts = []
    for name, module in model.named_children():
        if name not in _MASK_PARTS and _has_parameters(module):
            parts.append(name)
    return parts


def trains_only_masks(model: nn.Module) -> bool:
    """Whether everything on which boxes depend is frozen, so that training cannot change them."""
    for name, parameter in model.named_parameters():
        part, _, _ = name.partition(".")
        if parameter.requires_grad and part not in _MASK_PARTS:
            return False
    return True


def what_is_frozen(model: DetectionModel) -> str:
    """The frozen parts, and how many parameters are trained, in words."""
    total = 0
    trained = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
    names = ", ".join(model.frozen)
    return f"frozen: {names}; {trained:,} of {total:,} parameters are trained"


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _path_of(model: nn.Module, name: str) -> str:
    """The path of the module that this name of `freeze` means. Raises InputError as there."""
    parts = []  # of the model itself
    inner = []  # all within them
    one_deeper = []  # those called `name` within a part of the detector
    for path, module in model.named_modules():
        if not path or not _has_parameters(module):  # the model itself has the path ""
            continue
        if path == name:
            return path
        if path.count(".") == 0:
            parts.append(path)
        else:
            inner.append(path)
        in_detector = path.removeprefix("detr.")
        if in_detector == name:
            return path
        if in_detector.count(".") == 1 and in_detector.endswith(f".{name}"):
            one_deeper.append(path)
    if len(one_deeper) == 1:
        return one_deeper[0]
    if one_deeper:
        raise InputError(
            f"--freeze {name}: the model has {len(one_deeper)} such parts, "
            f"{' and '.join(one_deeper)}: give the full names"
        )
    raise InputError(
        f"--freeze {name}: the model has no such part; it has {', '.join(parts)}, and their parts, "
        f"such as {inner[0]}"
    )
