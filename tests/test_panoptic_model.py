"""The panoptic DETR: masks of some queries, and where its weights start."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import redetr
from redetr.config import TrainConfig
from redetr.models.freezing import freeze
from redetr.optim import param_groups
from redetr.weights.starting import starting_point

OPTIONS = {
    "backbone": (16, 32, 64),
    "hidden_dim": 64,
    "nheads": 8,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 20,
    "dropout": 0.0,
}
CONFIG = TrainConfig(
    model="detr_r50_panoptic",
    num_queries=5,
    model_options=(
        "backbone=resnet18",
        "hidden_dim=64",
        "enc_layers=1",
        "dec_layers=1",
        "nheads=8",
        "dim_feedforward=32",
    ),
)
CLASSES = ("cup", "sky")


def small(seed: int = 0, **options):
    torch.manual_seed(seed)
    return redetr.build("detr_r50_panoptic", 3, **OPTIONS | options).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((64, 96), (50, 61))]
    return redetr.collate(images)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_masks_of_some_queries_are_those_of_all(with_gradient, batch):
    """20 queries of two images are more than are computed at once."""
    model = small()
    images = torch.tensor([1, 0, 1, 1])
    queries = torch.tensor([19, 4, 0, 19])
    with torch.set_grad_enabled(with_gradient):
        outputs = model(batch.images, batch.mask)
        some = model(batch.images, batch.mask, all_masks=False)
        assert "pred_masks" not in some
        chosen = some["masks_of"](images, queries)
    assert outputs["pred_masks"].shape == (2, 20, 16, 24)
    torch.testing.assert_close(chosen, outputs["pred_masks"][images, queries])
    assert outputs["pred_masks"].std() > 0.01
    assert not torch.allclose(chosen[0], chosen[2])  # each query has its own


def test_gradients_of_some_masks_are_those_of_all(batch):
    """And masks of no query leave no parameter of the head without a gradient."""
    model = small()
    some = torch.tensor([1, 0]), torch.tensor([3, 7])
    none = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    gradients = {}
    for name, indices, all_masks in (
        ("all", some, True),
        ("some", some, False),
        ("0", none, False),
    ):
        model.zero_grad()
        outputs = model(batch.images, batch.mask, all_masks=all_masks)
        if all_masks:
            masks = outputs["pred_masks"][indices]
        else:
            masks = outputs["masks_of"](*indices)
        masks.square().sum().backward()
        heads = [*model.mask_head.named_parameters(), *model.bbox_attention.named_parameters()]
        gradients[name] = {key: parameter.grad.clone() for key, parameter in heads}
    torch.testing.assert_close(gradients["some"], gradients["all"])
    assert not any(gradient.any() for gradient in gradients["0"].values())


def test_attention_maps_add_up_to_1_over_all_heads(batch):
    model = small()
    inputs = model.detr.head_inputs(batch.images, batch.mask)
    states = inputs.states[-1][[0, 1, 1], [0, 3, 9]]
    images = torch.tensor([0, 1, 1])
    maps = model.bbox_attention(states, inputs.memory, inputs.padding, images)
    assert maps.shape == (3, 8, 4 * 6)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(maps.sum(2), torch.full((3, 8), 1 / 8, dtype=torch.float64))
    # The second image is 61 px wide: two of six columns are padding.
    by_column = maps.unflatten(-1, (4, 6))[1].sum((0, 1))
    assert (by_column[:4] > 0).all() and not by_column[4:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_of_half_types_outside_of_the_autocast(dtype, batch):
    model = small().float()
    images = batch.images.float()
    exact = model(images, batch.mask)["pred_masks"]
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images, batch.mask, all_masks=False)
    chosen = outputs["masks_of"](torch.tensor([0, 1]), torch.tensor([5, 6]))
    assert chosen.dtype == torch.float32
    error = chosen - exact[[0, 1], [5, 6]]
    assert error.norm() < 0.1 * exact[[0, 1], [5, 6]].norm()


def test_widths_that_no_head_has_are_named():
    with pytest.raises(
        redetr.InputError, match=r"hidden_dim \+ nheads, .* than 8 or a multiple of it"
    ):
        redetr.build("detr_r50_panoptic", 3, **OPTIONS | {"nheads": 4})
    with pytest.raises(redetr.InputError, match=r"hidden_dim / 2, .* than 8 or a multiple of it"):
        redetr.build("detr_r50_panoptic", 3, **OPTIONS | {"hidden_dim": 96})


def test_the_detector_is_frozen_by_its_name():
    """The second stage of the published training; and parts of it as in a DETR."""
    model = redetr.build("detr_r50_panoptic", 3, **OPTIONS)
    freeze(model, ["detr"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"bbox_attention", "mask_head"}
    model = redetr.build("detr_r50_panoptic", 3, **OPTIONS)
    freeze(model, ["backbone", "encoder"])
    assert model.frozen == ("detr.backbone", "detr.transformer.encoder")


def test_the_backbone_learns_at_its_rate():
    model = redetr.build("detr_r50_panoptic", 3, **OPTIONS)
    rates = {}
    for group in param_groups(model, 1.0, 0.1, 0.0):
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    for name, parameter in model.named_parameters():
        expected = 0.1 if name.startswith("detr.backbone.0.") else 1.0
        assert rates[id(parameter)] == expected, name


def run_file(model: str, path: Path) -> dict[str, Tensor]:
    """A checkpoint of a run of `model` with the options of `CONFIG`; returns its weights."""
    torch.manual_seed(7)
    tensors = redetr.build(model, len(CLASSES), **CONFIG.model_kwargs()).state_dict()
    content = {
        "model": tensors,
        "ema": None,
        "optimizer": {},
        "step": 1,
        "config": replace(CONFIG, model=model).to_dict(),
        "class_names": list(CLASSES),
        "category_ids": [1, 2],
    }
    torch.save(content, path)
    return tensors


def started(path: Path, classes: tuple[str, ...] = CLASSES) -> tuple[dict[str, Tensor], str]:
    """The tensors of a new panoptic DETR that starts from a file, and the line that says how."""
    torch.manual_seed(0)
    model = redetr.build(CONFIG.model, len(classes), **CONFIG.model_kwargs())
    (line,) = starting_point(model, replace(CONFIG, weights=str(path)), classes)
    return model.state_dict(), line


def test_the_detector_starts_from_one_without_masks(tmp_path):
    path = tmp_path / "boxes.pt"
    weights = run_file("detr_r50", path)
    tensors, line = started(path)
    for name, tensor in weights.items():
        assert torch.equal(tensors[f"detr.{name}"], tensor)
    assert line == (
        f"loaded {len(weights)} of {len(tensors)} tensors from {path}; the mask head starts at "
        "random"
    )


def test_everything_starts_from_one_with_masks(tmp_path):
    path = tmp_path / "masks.pt"
    weights = run_file("detr_r50_panoptic", path)
    tensors, line = started(path)
    torch.testing.assert_close(tensors, weights, rtol=0, atol=0)
    assert line == f"loaded {len(tensors)} of {len(tensors)} tensors from {path}"
    tensors, line = started(path, ("sky", "grass"))
    assert torch.equal(tensors["detr.class_embed.bias"][0], weights["detr.class_embed.bias"][1])
    assert "1 of 2 classes matched by name" in line
    detector = redetr.load(path, device="cpu")
    torch.testing.assert_close(detector.model.state_dict(), weights, rtol=0, atol=0)
    assert detector.category_ids == (1, 2)


def test_a_mask_head_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "masks.pt"
    run_file("detr_r50_panoptic", path)
    content = torch.load(path, weights_only=True)
    del content["model"]["mask_head.gn2.bias"]
    torch.save(content, path)
    with pytest.raises(redetr.InputError, match=r"lacks 1 tensor .* mask_head\.gn2\.bias"):
        started(path)
