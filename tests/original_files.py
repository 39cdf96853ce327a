"""Small models of the RT-DETR family, and files as their originals write them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import redetr


def randomized(name: str, num_classes: int, options: dict[str, Any]) -> Any:
    """A model of these options in which no tensor is at a neutral start."""
    torch.manual_seed(0)
    model = redetr.build(name, num_classes, **options)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1)
        elif not tensor.any():
            tensor.normal_(0, 0.1)
    return model


def original_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the original with the weights of `model`, and all else it holds."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    for i, layer in enumerate(model.decoder.decoder["layers"]):
        points = layer.cross_attn.per_level
        scale = [1 / count for count in points for _ in range(count)]
        tensors[f"decoder.decoder.layers.{i}.cross_attn.num_points_scale"] = torch.tensor(scale)
    for name in ("up", "reg_scale"):  # of D-FINE, which holds them twice
        if f"decoder.{name}" in tensors:
            tensors[f"decoder.decoder.{name}"] = tensors[f"decoder.{name}"]
    hidden_dim = len(tensors["decoder.enc_output.norm.weight"])
    tensors["decoder.denoising_class_embed.weight"] = torch.rand(model.num_classes + 1, hidden_dim)
    tensors["decoder.anchors"] = torch.rand(1, 8400, 4)
    tensors["decoder.valid_mask"] = torch.ones(1, 8400, 1, dtype=torch.bool)
    return tensors


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    """A checkpoint as the originals write it: the average is what they evaluate."""
    trained = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    ema = {"module": tensors, "updates": 9, "warmups": 0}
    torch.save({"model": trained, "ema": ema, "last_epoch": 71, "date": "2024"}, path)
    return path


def random_targets(num_classes: int, counts: tuple[int, ...]) -> list[Any]:
    """Targets of images with so many objects each."""
    generator = torch.Generator().manual_seed(2)
    batch = []
    for count in counts:
        labels = torch.randint(num_classes, (count,), generator=generator)
        boxes = 0.3 + 0.4 * torch.rand(count, 4, generator=generator)
        batch.append({"labels": labels, "boxes": boxes, "seed": count})
    return batch
