"""Models of Transformers with random weights, to compare with."""

import re
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import redetr
from redetr.weights.official import from_transformers

no_init_weights = pytest.importorskip("transformers.initialization").no_init_weights

# Transformers compiles some 400 regular expressions whenever it saves a model, more than `re`
# remembers unless it may.
re._MAXCACHE = 10_000  # type: ignore[attr-defined]

NUM_CLASSES = 5
SIZES = ((64, 128), (96, 64), (50, 101))


def randomized(kind: type, config: Any) -> Any:
    """A model of Transformers in which nothing is left at a neutral start: norms, biases and
    statistics are random.

    Matrices are as large as in a trained model, so that attention is peaked and positions and masks
    matter.
    """
    with no_init_weights():  # all are drawn below
        peer = kind(config)
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
            elif tensor.dim() == 4:
                fan_in = tensor[0].numel()
                largest = (3 / fan_in) ** 0.5  # a uniform draw is quicker than a normal one
                tensor.uniform_(-largest, largest)
    return peer.eval()


def ours_from(peer: Any) -> torch.nn.Module:
    """Our model with the weights of the peer, by way of a folder on disk."""
    precision = "fp64" if peer.dtype == torch.float64 else "fp32"
    with TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return redetr.load(folder, device="cpu", precision=precision).model


def padded_batch(dtype: torch.dtype, sizes: Sequence[tuple[int, int]] = SIZES) -> redetr.Batch:
    torch.manual_seed(1)
    return redetr.collate([torch.randn(3, *size, dtype=dtype) for size in sizes])


def run_peer(peer: Any, batch: redetr.Batch, **options: Any) -> Any:
    return peer(pixel_values=batch.images, pixel_mask=(~batch.mask).long(), **options)


def assert_same_outputs(peer: Any, batch: redetr.Batch, tolerance: float) -> None:
    """Logits and boxes of the peer and of ours agree on every entry."""
    ours = ours_from(peer)
    with torch.no_grad():
        theirs = run_peer(peer, batch)
        outputs = ours(batch.images, batch.mask)
    assert theirs.logits.std() > 0.1  # the comparison is not one of zeros
    assert difference(outputs["pred_logits"], theirs.logits) <= tolerance
    assert difference(outputs["pred_boxes"], theirs.pred_boxes) <= tolerance


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of an entry, as a share of entries that are larger than 1."""
    assert ours.shape == theirs.shape
    scale = theirs.abs().clamp(min=1)
    errors = (ours - theirs).abs() / scale
    return float(errors.max())


def random_targets(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    torch.manual_seed(2)
    targets = []
    for count in (4, 0, 1):
        labels = torch.randint(NUM_CLASSES, (count,))
        boxes = torch.rand(count, 4, dtype=dtype) * 0.4 + 0.1
        targets.append({"labels": labels, "boxes": boxes})
    return targets


def layerwise(peer: Any, batch: redetr.Batch) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all decoder layers, `[L, B, Q, ...]`, by Transformers' modules."""
    output = run_peer(peer, batch, output_hidden_states=True)
    # First comes the input of the decoder; the last one is normalised already.
    normalised = []
    for state in output.decoder_hidden_states[1:-1]:
        normalised.append(peer.model.decoder.layernorm(state))
    normalised.append(output.last_hidden_state)
    states = torch.stack(normalised)
    logits = peer.class_labels_classifier(states)
    boxes = peer.bbox_predictor(states).sigmoid()
    return logits, boxes


def peer_loss(
    peer: Any, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[Tensor, dict]:
    labels = []
    for target in targets:
        labels.append({"class_labels": target["labels"], "boxes": target["boxes"]})
    settings = peer.config.to_dict()
    settings |= {"auxiliary_loss": True, "num_labels": NUM_CLASSES}
    config = SimpleNamespace(**settings)
    total, losses, _ = peer.loss_function(
        logits[-1], labels, logits.device, boxes[-1], config, logits, boxes
    )
    kept = {}
    for name, loss in losses.items():
        if "cardinality" not in name:
            kept[name] = loss
    return total, kept


def assert_same_losses_and_gradients(peer: Any, tolerance: float) -> None:
    """In fp64, the terms of the loss and every gradient agree; `tolerance` is that of gradients."""
    ours = ours_from(peer)
    batch = padded_batch(torch.float64)
    targets = random_targets(torch.float64)

    logits, boxes = layerwise(peer, batch)
    total, losses = peer_loss(peer, logits, boxes, targets)
    total.backward()
    outputs = ours(batch.images, batch.mask)
    our_losses = redetr.SetCriterion.for_model(ours)(outputs, targets)
    our_losses["loss"].backward()

    expected_names = set()
    for term in ("loss_ce", "loss_bbox", "loss_giou"):
        expected_names.add(term)
        for i in range(len(logits) - 1):
            expected_names.add(f"{term}_{i}")
    assert losses.keys() == expected_names
    torch.testing.assert_close(our_losses, losses | {"loss": total}, rtol=1e-6, atol=0)

    gradients = {}
    for name, parameter in peer.named_parameters():
        gradients[name] = parameter.grad
    gradients = from_transformers(gradients)
    trainable = {}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            trainable[name] = parameter.grad
    assert len(trainable) > 50
    norms = torch.stack([gradient.norm() for gradient in trainable.values()])
    # A gradient that is zero but for rounding, such as that of attention between equal values, has
    # no relative error.
    smallest = 1e-8 * norms.norm()
    for name, gradient in trainable.items():
        error = (gradient - gradients[name]).norm() / gradients[name].norm().clamp(min=smallest)
        assert error < tolerance, f"{name}: {error:.1e}"
