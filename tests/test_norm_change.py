"""A model may take up the training of BatchNorm where its weights had it frozen."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import redetr
from redetr.checkpoint import save_weights
from redetr.config import TrainConfig
from redetr.weights.starting import starting_point

SMALL = ("hidden_dim=32", "nheads=4", "dec_layers=2", "dim_feedforward=64")
RTDETR = ("width=16", "enc_hidden_dim=32", "enc_dim_feedforward=64", *SMALL)
CLASSES = ("cup", "plate", "spoon")
CONFIGS = {
    "rtdetr_r18": TrainConfig(model="rtdetr_r18", model_options=RTDETR, num_queries=10),
    "dfine_n": TrainConfig(model="dfine_n", model_options=SMALL, num_queries=10),
    "redetr_mobile": TrainConfig(model="redetr_mobile", model_options=SMALL, num_queries=10),
    "detr_r50": TrainConfig(
        model="detr_r50", model_options=("backbone=resnet18", "enc_layers=1", *SMALL)
    ),
}


def built(config: TrainConfig, seed: int) -> nn.Module:
    """Random weights, and random statistics."""
    torch.manual_seed(seed)
    model = redetr.build(config.model, len(CLASSES), **config.model_kwargs())
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
    return model


def saved(model: nn.Module, config: TrainConfig, path: Path) -> Path:
    about = {"config": config.to_dict(), "class_names": CLASSES, "category_ids": (1, 2, 3)}
    save_weights(path, model.state_dict(), about)
    return path


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_move_from_where_frozen_ones_were(name, tmp_path):
    frozen_config = CONFIGS[name]
    options = (*frozen_config.model_options, "norm=sync_batch")
    config = replace(frozen_config, model_options=options)
    frozen = built(frozen_config, seed=1).eval()
    path = saved(frozen, frozen_config, tmp_path / "frozen.safetensors")
    model = built(config, seed=2)
    (said,) = starting_point(model, replace(config, weights=str(path)), CLASSES)
    count = len(frozen.state_dict())
    assert said == f"loaded {count} of {count} tensors from {path}"

    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, given = frozen(images), model.eval()(images)
    torch.testing.assert_close(given["pred_logits"], expected["pred_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"], rtol=1e-4, atol=1e-4)

    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    model.train()(images)  # in one process, where nothing is to be synchronised
    assert norms and not any(map(torch.equal, before, (norm.running_mean for norm in norms)))
    assert all(norm.weight.requires_grad for norm in norms)

    # And back: what it has learned can be frozen, and a checkpoint of it loads on a CPU.
    path = saved(model, config, tmp_path / "trained.safetensors")
    again = built(frozen_config, seed=3)
    starting_point(again, replace(frozen_config, weights=str(path)), CLASSES)
    with torch.no_grad():
        expected, given = model.eval()(images), again.eval()(images)
    torch.testing.assert_close(given["pred_logits"], expected["pred_logits"], rtol=1e-4, atol=1e-4)
    loaded = redetr.load(path, device="cpu").optimize(precision="fp32")
    assert len(loaded.predict(torch.zeros(3, 64, 96, dtype=torch.uint8), threshold=0.0)) > 0


def test_group_norm_has_no_use_for_statistics(tmp_path):
    frozen_config = CONFIGS["rtdetr_r18"]
    options = (*frozen_config.model_options, "norm=group")
    config = replace(frozen_config, model_options=options)
    path = saved(built(frozen_config, 1), frozen_config, tmp_path / "frozen.safetensors")
    message = "its norm is frozen_batch, which norm=group cannot use; use --model-options norm=fr"
    with pytest.raises(redetr.InputError, match=message):
        starting_point(built(config, 2), replace(config, weights=str(path)), CLASSES)
    path = saved(built(config, 1), config, tmp_path / "group.safetensors")
    with pytest.raises(
        redetr.InputError, match=r"which norm=frozen_batch cannot use; use .*=group"
    ):
        starting_point(built(frozen_config, 2), replace(frozen_config, weights=str(path)), CLASSES)
