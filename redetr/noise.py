"""Batches of noise, in the form of those that a run trains on."""

import torch

from redetr.losses import SetCriterion
from redetr.precision import weights_dtype
from redetr.structures import Batch, DetectionModel, RelativeBoxes, Size, Target


def noise_batch(
    model: DetectionModel,
    criterion: SetCriterion,
    number: int,
    canvas: Size,
    channels: int,
    objects: int,
    dtype: torch.dtype,
) -> Batch:
    """`number` images with `objects` each, on the device of `model`, as it is trained in the
    precision `dtype`. Draws from PyTorch's generator."""
    device = next(model.parameters()).device
    height, width = canvas
    shape = (number, channels, height, width)
    images = torch.rand(shape, device=device, dtype=weights_dtype(dtype))
    padding = torch.zeros(number, height, width, dtype=torch.bool, device=device)
    # A column of padding, where images may have some: masks of attention take memory.
    shown = (height, width - 1) if model.resize == "aspect" else canvas
    padding[:, :, shown[1] :] = True
    targets = [_target(model, criterion, shown, objects) for _ in range(number)]
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, padding, targets, [shown] * number)


def _target(model: DetectionModel, criterion: SetCriterion, size: Size, objects: int) -> Target:
    boxes = torch.rand(objects, 4) * 0.5 + 0.25
    target = Target(
        boxes=RelativeBoxes(boxes),
        labels=torch.randint(model.num_classes, (objects,)),
        image_id=0,
        orig_size=size,
        size=size,
        iscrowd=torch.zeros(objects, dtype=torch.bool),
        area=torch.ones(objects),
        seed=0,
    )
    if criterion.config.has_masks:
        target["masks"] = torch.rand(objects, *size) < 0.5
    return target
