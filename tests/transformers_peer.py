"""Models of Transformers with random weights, to compare with."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import redetr

NUM_CLASSES = 5
SIZES = ((64, 128), (96, 64), (50, 101))


def randomize(peer: Any) -> Any:
    """Leaves nothing of a model at a neutral start: norms, biases and statistics are random.

    Matrices are as large as in a trained model, so that attention is peaked and positions and masks
    matter.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif tensor.dim() == 1 and ".backbone." in name:
                tensor.uniform_(0.2, 0.6)  # keeps the sums of 16 or 33 residual blocks in bounds
            elif tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 2:
                std = 1 if "embeddings" in name else tensor.shape[1] ** -0.5
                tensor.normal_(0, std)
    return peer.eval()


def ours_from(peer: Any) -> torch.nn.Module:
    """Our model with the weights of the peer, by way of a folder on disk."""
    with TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return redetr.load(folder, device="cpu").model


def padded_batch(dtype: torch.dtype, sizes: Sequence[tuple[int, int]] = SIZES) -> redetr.Batch:
    torch.manual_seed(1)
    return redetr.collate([torch.randn(3, *size, dtype=dtype) for size in sizes])


def run_peer(peer: Any, batch: redetr.Batch, **options: Any) -> Any:
    return peer(pixel_values=batch.images, pixel_mask=(~batch.mask).long(), **options)


def assert_same_outputs(peer: Any, batch: redetr.Batch, tolerance: float) -> None:
    """Logits and boxes of the peer and of ours agree on every entry."""
    ours = ours_from(peer).to(batch.images.dtype)
    with torch.no_grad():
        theirs = run_peer(peer, batch)
        outputs = ours(batch.images, batch.mask)
    assert theirs.logits.std() > 0.1  # the comparison is not one of zeros
    assert difference(outputs["pred_logits"], theirs.logits) <= tolerance
    assert difference(outputs["pred_boxes"], theirs.pred_boxes) <= tolerance


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of an entry, as a share of entries that are larger than 1."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())
