"""Models for images with a number of channels other than three."""

import torch
from torch import Tensor, nn

from redetr.structures import DetectionModel

RGB = 3
# Buffers that lead from ImageNet's normalisation to that of a backbone.
_PER_CHANNEL = ("scale", "shift", "mean", "std")


def first_convolution(model: DetectionModel) -> tuple[str, nn.Conv2d]:
    """The convolution that reads the image, and its path in the model."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "backbone" in path.split("."):
            return path, module
    raise ValueError("the backbone has no convolution")


def adapted(weight: Tensor, channels: int) -> Tensor:
    """A kernel for `channels` channels, `[D, channels, k, k]`, from one for RGB `[D, 3, k, k]`.

    Of three and more, the first three keep their weights and each other channel gets their mean; of
    fewer, each gets the mean. All are scaled by `3 / channels`, so that sums stay about as large.
    """
    return _for_channels(weight, channels) * (RGB / channels)


def _for_channels(values: Tensor, channels: int) -> Tensor:
    """RGB values `[D, 3, ...]` extended to `channels` channels; the others get the mean of the
    three."""
    mean = values.mean(1, keepdim=True)
    if channels < RGB:
        return torch.cat([mean] * channels, 1)
    return torch.cat([values, *[mean] * (channels - RGB)], 1)


def take_channels(model: DetectionModel, channels: int) -> None:
    """Converts a model for RGB into one for `channels` channels. Its first convolution is trained,
    also where the first stages are frozen: what it does with the other channels has never been
    learned."""
    _, convolution = first_convolution(model)
    convolution.weight = nn.Parameter(adapted(convolution.weight.detach(), channels))
    convolution.in_channels = channels
    for module in model.modules():
        for name in _PER_CHANNEL:
            values = getattr(module, name, None)
            if isinstance(values, Tensor) and values.shape == (RGB, 1, 1):
                setattr(module, name, _for_channels(values[None], channels)[0])
    model.channels = channels
