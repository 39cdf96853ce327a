"""A model made ready to answer: the same function with less work in it."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from redetr.models.backbone import Backbone
from redetr.models.hybrid import RepVGGBlock
from redetr.models.presnet import ConvNorm
from redetr.structures import DetectionModel


def for_inference(model: DetectionModel) -> DetectionModel:
    """A copy of `model` in evaluation mode that computes nothing which only the loss needs
    (`aux_loss`).

    In torchvision's nets and in RT-DETR, frozen BatchNorm becomes part of the weights of the
    convolution before it; nets of timm may have it elsewhere and stay as they are. Numbers change
    by rounding: by less than 1e-4 in the tests.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.aux_loss = False
    for module in list(model.modules()):
        if isinstance(module, ConvNorm | RepVGGBlock):
            module.fuse()
    bodies = [module.body for module in model.modules() if isinstance(module, Backbone)]
    for parent in [module for body in bodies for module in body.modules()]:
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                setattr(parent, name, _folded(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model.to(memory_format=torch.channels_last)


def _folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> nn.Conv2d:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    conv.bias = nn.Parameter(
        shift if conv.bias is None else shift + scale * conv.bias, requires_grad=False
    )
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    return conv
