"""Training of RT-DETR against Hugging Face Transformers: denoising queries and loss terms.

Transformers lets padding take part in denoising, and divides by the counts of the process: the
images hold the same number of objects, and there is one process.
"""

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_rtdetr import TINY, load, random_peer
from torch import Tensor, nn

from redetr.denoising import NoisyQueries, with_moved_edges
from redetr.losses import SetCriterion
from redetr.structures import LossConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NUM_CLASSES = 5
GROUPS = 3
OBJECTS = 4
DENOISING = "get_contrastive_denoising_training_group"


def labels_of(counts: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    labels = []
    for count in counts:
        boxes = 0.2 + 0.4 * torch.rand(count, 4, generator=generator, dtype=dtype)
        classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        labels.append({"class_labels": classes, "boxes": boxes})
    return labels


@pytest.mark.parametrize("version", ["rtdetr", "rtdetrv2"])
def test_same_answers_of_noisy_queries(version, monkeypatch):
    """With the noise of Transformers in both: content, references, and who sees whom."""
    peer = random_peer(version, "r18", **TINY, num_denoising=GROUPS * OBJECTS)
    width = TINY["d_model"]
    class_embed = torch.randn(NUM_CLASSES + 1, width)
    class_embed[-1] = 0
    peer.model.denoising_class_embed.weight.data.copy_(class_embed)
    detector = load(peer)
    ours = detector.model.double()
    peer.double().train()
    for norm in peer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # ours are frozen

    noise: dict[str, Tensor] = {}

    def embed_and_keep(labels: Tensor) -> Tensor:
        noise["labels"] = labels
        return peer.model.denoising_class_embed(labels)

    module = importlib.import_module(type(peer).__module__)
    draw = getattr(module, DENOISING)

    def draw_and_keep(**arguments: Any) -> Any:
        content, references, mask, meta = draw(**arguments | {"class_embed": embed_and_keep})
        references = references.double()
        noise["boxes"] = references.sigmoid()
        return content, references, mask.double(), meta

    monkeypatch.setattr(module, DENOISING, draw_and_keep)
    pixels = torch.rand(2, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer.model(pixel_values=pixels, labels=labels_of((OBJECTS, OBJECTS)))

    decoder = ours.decoder
    decoder.denoising = GROUPS
    decoder.denoising_class_embed = nn.Embedding.from_pretrained(class_embed.double())
    noisy = NoisyQueries(noise["labels"].long(), noise["boxes"])
    with torch.no_grad():
        outputs = ours.train()((pixels - ours.mean) / ours.std, None, noisy)
    num_noisy = GROUPS * 2 * OBJECTS
    assert noisy.labels.shape == (2, num_noisy)
    all_ours = [*outputs["denoising"]["aux_outputs"], outputs["denoising"]]
    for i, layer in enumerate(all_ours):
        logits = theirs.intermediate_logits[:, i, :num_noisy]
        boxes = theirs.intermediate_reference_points[:, i, :num_noisy]
        torch.testing.assert_close(layer["pred_logits"], logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(layer["pred_boxes"], boxes, rtol=0, atol=1e-10)


def leaves(layers: int, batch: int, queries: int) -> tuple[Tensor, Tensor]:
    logits = torch.randn(batch, layers, queries, NUM_CLASSES, dtype=torch.float64)
    boxes = 0.2 + 0.4 * torch.rand(batch, layers, queries, 4, dtype=torch.float64)
    return logits.requires_grad_(), boxes.requires_grad_()


def layers_of(logits: Tensor, boxes: Tensor) -> Any:
    layers = []
    for i in range(logits.shape[1]):
        layers.append({"pred_logits": logits[:, i], "pred_boxes": boxes[:, i]})
    return {**layers[-1], "aux_outputs": layers[:-1]}


@pytest.mark.parametrize(
    ("counts", "groups"), [((4, 4), 0), ((3, 0), 0), ((5, 5), 2)], ids=["", "an empty image", "dn"]
)
def test_same_losses_and_gradients(counts, groups):
    """Varifocal, L1 and GIoU of all layers, the proposals and noisy queries, on the same boxes."""
    torch.manual_seed(0)
    queries, layers, batch = 12, 3, len(counts)
    num_noisy = groups * 2 * max(counts)
    logits, boxes = leaves(layers, batch, queries)
    enc_logits, enc_boxes = leaves(1, batch, queries)
    noisy_logits, noisy_boxes = leaves(layers, batch, num_noisy)
    labels = labels_of(counts)

    meta = None
    if groups:
        positives = torch.arange(num_noisy).view(groups, 2, -1)[:, 0].flatten()
        meta = {
            "dn_positive_idx": [positives] * batch,
            "dn_num_group": groups,
            "dn_num_split": [num_noisy, queries],
        }
    config = transformers.RTDetrConfig(num_labels=NUM_CLASSES)
    all_logits = torch.cat([noisy_logits, logits], 2)
    all_boxes = torch.cat([noisy_boxes, boxes], 2)
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    loss, terms, _ = RTDetrForObjectDetectionLoss(
        all_logits[:, -1],
        labels,
        torch.device("cpu"),
        all_boxes[:, -1],
        config,
        all_logits,
        all_boxes,
        enc_logits[:, 0],
        enc_boxes[:, 0],
        meta,
    )
    inputs = [logits, boxes, enc_logits, enc_boxes]
    if groups:
        inputs += [noisy_logits, noisy_boxes]
    their_gradients = torch.autograd.grad(loss, inputs)

    outputs = layers_of(logits, boxes)
    outputs["enc_outputs"] = {"pred_logits": enc_logits[:, 0], "pred_boxes": enc_boxes[:, 0]}
    if groups:
        outputs["denoising"] = layers_of(noisy_logits, noisy_boxes)
    loss_config = LossConfig(
        scores="sigmoid", cost_class=2.0, proposals=True, denoising=groups, class_loss="varifocal"
    )
    targets: Any = [{"labels": each["class_labels"], "boxes": each["boxes"]} for each in labels]
    losses = SetCriterion(loss_config, NUM_CLASSES, queries)(outputs, targets)
    our_gradients = torch.autograd.grad(losses["loss"], inputs)

    suffixes = {"": "", "_0": "_aux_0", "_1": "_aux_1", "_enc": "_aux_2"}
    if groups:
        suffixes |= {"_dn_0": "_dn_0", "_dn_1": "_dn_1", "_dn": "_dn_2"}
    assert len(terms) == 3 * len(suffixes)
    for ours, theirs in suffixes.items():
        for name, peer_name, weight in (
            ("loss_ce", "loss_vfl", 1),
            ("loss_bbox", "loss_bbox", 5),
            ("loss_giou", "loss_giou", 2),
        ):
            torch.testing.assert_close(weight * losses[name + ours], terms[peer_name + theirs])
    torch.testing.assert_close(losses["loss"], loss)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)
    mal = SetCriterion(replace(loss_config, class_loss="mal"), NUM_CLASSES, queries)
    assert mal(outputs, targets)["loss"].item() != pytest.approx(loss.item(), rel=1e-3)


def test_boxes_with_the_same_draws(monkeypatch):
    """Two groups of two objects; the draws of a positive and a negative query of each."""
    import transformers.models.rt_detr.modeling_rt_detr as module

    labels = labels_of((2,), torch.float32)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 2, 2, 8, generator=generator)
    signs = (draws[..., :4] >= 0.5).float().view(1, 8, 4)
    distances = draws[..., 4:].reshape(1, 8, 4)
    like = {"randint_like": lambda tensor, *_, **__: signs if tensor.dim() == 3 else tensor}
    like["rand_like"] = lambda tensor, **_: distances if tensor.dim() == 3 else tensor.float()
    for name, function in like.items():
        monkeypatch.setattr(torch, name, function)
    _, unactivated, _, _ = getattr(module, DENOISING)(
        labels, NUM_CLASSES, 3, lambda classes: classes, 4, label_noise_ratio=0.0
    )
    ours = with_moved_edges(labels[0]["boxes"], draws).view(1, 8, 4)
    torch.testing.assert_close(ours, unactivated.sigmoid(), rtol=0, atol=2e-6)
