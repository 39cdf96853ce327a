"""Prepares a model for inference: the same function, with less computation."""

import copy
from itertools import pairwise

import torch
from torch import nn

from redetr.models.backbone import Backbone, fuse_norm
from redetr.models.efficientnet_lite import EfficientNetLite
from redetr.models.hgnetv2 import HGConv
from redetr.models.hybrid import RepVGGBlock
from redetr.models.resnet_vd import ConvNorm
from redetr.structures import DetectionModel


def for_inference(model: DetectionModel) -> DetectionModel:
    """A copy of `model` in evaluation mode that computes nothing which only the loss needs.

    It returns no `aux_outputs`. In the backbones of torchvision, EfficientNet-Lite, RT-DETR and
    D-FINE, frozen BatchNorm becomes part of the weights of the convolution before it. Backbones of
    timm may have it elsewhere and are not changed. Outputs change by rounding: by less than 1e-4 in
    the tests.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.aux_loss = False
    for module in list(model.modules()):
        if isinstance(module, ConvNorm | HGConv | RepVGGBlock):
            module.fuse()
    for backbone in model.modules():
        if not isinstance(backbone, Backbone | EfficientNetLite):
            continue
        for parent in backbone.body.modules():
            fuse_norms(parent)
    return model.to(memory_format=torch.channels_last)


def fuse_norms(parent: nn.Module) -> None:
    """Fuses each frozen BatchNorm in `parent` with the convolution right before it."""
    for (_, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
        if isinstance(conv, nn.Conv2d):
            setattr(parent, norm_name, fuse_norm(conv, norm))
