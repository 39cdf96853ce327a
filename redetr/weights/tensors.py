"""Finds the tensors in weight files of other programs, and what their names say."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redetr.errors import InputError

# Prefixes of names in wrapped models: DataParallel and `torch.compile`.
_WRAPPERS = ("module.", "_orig_mod.")
# Keys of the moving average: of RT-DETR and its successors, of Deformable DETR's successors, and of
# timm.
_AVERAGES = ("ema", "model_ema", "state_dict_ema")
# Other types, such as float8, hold numbers only together with scales that no model here has.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def require_tensors(path: Path, tensors: Any) -> dict[str, Tensor]:
    """Returns `tensors` unchanged. Raises InputError unless it is a dict of complete tensors by
    name, none of them in less than half precision."""
    if not isinstance(tensors, dict):
        raise InputError("damaged: its weights are not a dict of named tensors", where=path)
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise InputError(f"damaged: {name!r} is not a valid tensor name", where=path)
        if not _is_whole(tensor):
            raise InputError(f"damaged: {name} is not a complete tensor", where=path)
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            text = f"{name} is {kind}, which is less than half precision"
            remedy = "convert the weights to float32, float16 or bfloat16 with their scales"
            raise InputError(text, where=path, remedy=remedy)
    return tensors


def _is_whole(tensor: Any) -> bool:
    """Whether this is a dense tensor in memory, with storage for all elements of its shape."""
    if not isinstance(tensor, Tensor):
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    if tensor.numel() == 0:
        return False
    needed = tensor.numel() * tensor.element_size()
    return needed <= tensor.untyped_storage().nbytes()


def without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix of a wrapper, if all of their names have it."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return without_wrappers(inner)
    return tensors


def unwrapped(content: Any) -> Any:
    """The weights in a checkpoint of an original code: the moving average, which its authors
    evaluate, or else the model. Other content is returned unchanged."""
    if not isinstance(content, dict):
        return content
    for key in _AVERAGES:
        averaged = content.get(key)
        if isinstance(averaged, dict):
            averaged = averaged.get("module", averaged)
        if isinstance(averaged, dict) and any(isinstance(x, Tensor) for x in averaged.values()):
            return averaged
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict):
            content = content.get(key, content)
    return content


def new_name(name: str, rules: Sequence[tuple[str, Any]]) -> str:
    """The name of a tensor after each of the rules, a pattern and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def count_layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """The number of layers in the names; the group of the pattern matches the index of a layer."""
    count = 0
    for name in tensors:
        match = re.match(pattern, name)
        if match:
            count = max(count, int(match[1]) + 1)
    return count


def require_dimensions(tensors: Mapping[str, Tensor], needed: Mapping[str, int], kind: str) -> None:
    """Raises InputError unless the weights have the `needed` tensors, each with its number of
    dimensions. `kind` is the model in the error, such as "a DETR"."""
    for name, dimensions in needed.items():
        if name not in tensors:
            raise InputError(f"these weights are not {kind}: {name} is missing")
        if tensors[name].dim() != dimensions:
            raise InputError(f"these weights are not {kind}: {name} is of another shape")
