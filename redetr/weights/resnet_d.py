"""ImageNet weights of timm's ResNet-D for the backbone of RT-DETR.

timm's resnet18d, 34d, 50d and 101d are the ResNet-vd of RT-DETR, with two differences. In 18d and
34d, the first block adds its unchanged input, while ResNet-vd projects it, so the projection starts
as the identity. And RT-DETR takes pixels in [0, 1], while timm subtracts the mean and divides by
the deviation, so both become part of the first convolution and its norm. The result is the same
function, except for a border of one pixel: timm pads with the mean colour, and RT-DETR with black.
"""

import re

import torch
from torch import Tensor

from redetr.data.transforms import MEAN, STD
from redetr.weights.tensors import new_name

_RENAMES = (
    (r"^conv1\.0\.", "conv1.conv1_1.conv."),
    (r"^conv1\.1\.", "conv1.conv1_1.norm."),
    (r"^conv1\.3\.", "conv1.conv1_2.conv."),
    (r"^conv1\.4\.", "conv1.conv1_2.norm."),
    (r"^conv1\.6\.", "conv1.conv1_3.conv."),
    (r"^bn1\.", "conv1.conv1_3.norm."),
    (r"^layer1\.(\d+)\.downsample\.1\.", r"res_layers.0.blocks.\1.short.conv."),
    (r"^layer1\.(\d+)\.downsample\.2\.", r"res_layers.0.blocks.\1.short.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"layer\1.\2.short.conv.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.2\.", r"layer\1.\2.short.conv.norm."),
    (r"\.conv1\.weight$", ".branch2a.conv.weight"),
    (r"\.conv2\.weight$", ".branch2b.conv.weight"),
    (r"\.conv3\.weight$", ".branch2c.conv.weight"),
    (r"\.bn1\.", ".branch2a.norm."),
    (r"\.bn2\.", ".branch2b.norm."),
    (r"\.bn3\.", ".branch2c.norm."),
)
_SHORTCUT = "res_layers.0.blocks.0.short"
_EPS = 1e-5  # of the norms


def is_resnet_d(tensors: dict[str, Tensor]) -> bool:
    """Whether the tensor names are those of timm's ResNet-D."""
    return {"conv1.6.weight", "layer1.0.conv1.weight"} <= tensors.keys()


def from_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights of timm's ResNet-D with the names of `PResNet`, for pixels in [0, 1]."""
    renamed = {}
    for timm_name, tensor in tensors.items():
        name = new_name(timm_name, _RENAMES)
        name = re.sub(
            r"^layer(\d)\.", lambda match: f"res_layers.{int(match[1]) - 1}.blocks.", name
        )
        renamed[name] = tensor
    if f"{_SHORTCUT}.conv.weight" not in renamed:
        width = len(tensors["layer1.0.conv1.weight"])
        renamed |= _identity(width)
    _take_pixels(renamed)
    return renamed


def _identity(width: int) -> dict[str, Tensor]:
    """The weights of a projection and a norm that together are the identity."""
    return {
        f"{_SHORTCUT}.conv.weight": torch.eye(width)[:, :, None, None],
        f"{_SHORTCUT}.norm.weight": torch.ones(width),
        f"{_SHORTCUT}.norm.bias": torch.zeros(width),
        f"{_SHORTCUT}.norm.running_mean": torch.zeros(width),
        f"{_SHORTCUT}.norm.running_var": torch.full((width,), 1 - _EPS),
    }


def _take_pixels(tensors: dict[str, Tensor]) -> None:
    """Makes ImageNet's mean and deviation part of the first convolution and its norm."""
    weight = tensors["conv1.conv1_1.conv.weight"]  # [C, 3, 3, 3]
    mean = torch.tensor(MEAN, dtype=weight.dtype)[None, :, None, None]
    std = torch.tensor(STD, dtype=weight.dtype)[None, :, None, None]
    scaled = weight / std
    shift = (scaled * mean).sum((1, 2, 3))  # [C]
    tensors["conv1.conv1_1.conv.weight"] = scaled
    running_mean = tensors["conv1.conv1_1.norm.running_mean"]
    tensors["conv1.conv1_1.norm.running_mean"] = running_mean + shift
