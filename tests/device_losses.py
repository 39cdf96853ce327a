"""The losses of a batch on some device, from the outputs that the CPU computed."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from redetr.data.loader import to_batch
from redetr.structures import Outputs, Target
from tests.distributed.test_exactness import build, global_samples


def outputs_on(device: torch.device, outputs: Outputs) -> Outputs:
    """The outputs with their tensors on `device`.

    `masks_of` computes where its model is, so it stays behind, and `pred_masks`, which has the same
    masks, takes its place.
    """
    moved = tree_map_only(Tensor, lambda tensor: tensor.to(device), outputs)
    if "pred_masks" in moved:
        moved.pop("masks_of", None)
    return moved


def without_objects(target: Target) -> Target:
    """The target of the same image with nothing in it."""
    nothing = target.copy()
    for name in ("boxes", "labels", "iscrowd", "area", "masks"):
        if name in target:
            nothing[name] = target[name][:0]
    return nothing


def assert_losses_of_the_cpu(form: str, device: torch.device) -> None:
    """The losses of a model of `VARIANTS` on `device` are those of the CPU, also where an image, or
    the whole batch, has no object, and where the targets are on the device as well."""
    model, criterion = build(form)
    batch = to_batch(global_samples(), torch.device("cpu"), (96, 96))
    with torch.no_grad():
        outputs = model(batch.images, batch.mask)
    on_device = outputs_on(device, outputs)
    for targets in (batch.targets, [without_objects(target) for target in batch.targets]):
        expected = criterion(outputs, targets)
        there = tree_map_only(Tensor, lambda tensor: tensor.to(device), targets)
        for given in (criterion(on_device, targets), criterion(on_device, there)):
            assert given.keys() == expected.keys()
            assert given["loss"].device.type == device.type
            for name, value in expected.items():
                torch.testing.assert_close(given[name].cpu(), value, rtol=1e-4, atol=1e-5, msg=name)
