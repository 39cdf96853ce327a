"""Parts of a model that a run leaves as they are."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import SMALL
from rich.console import Console
from torch.nn.modules.batchnorm import _BatchNorm

import redetr
from redetr.config import TrainConfig
from redetr.distributed import check_norms, process_group
from redetr.models.freezing import freeze
from redetr.models.recompute import recompute_blocks
from redetr.training import train
from redetr.verification import verify

QUICK = TrainConfig(
    model_options=tuple(SMALL),
    freeze=("backbone", "encoder"),
    batch_size=4,
    steps=4,
    eval_every=2,
    image_size=64,
    device="cpu",
    precision="fp32",
    num_workers=0,
)


def built(name: str, **options):
    with torch.device("meta"):
        return redetr.build(name, 3, **options)


@pytest.mark.parametrize(
    ("model", "name", "path"),
    [
        ("detr_r50", "backbone", "backbone"),
        ("detr_r50", "encoder", "transformer.encoder"),
        ("detr_r50", "transformer.decoder", "transformer.decoder"),
        ("redetr_n", "encoder", "neck.encoder"),
        ("redetr_n", "decoder.0", "decoder.0"),
        ("rtdetr_r18", "encoder", "encoder"),
        ("rtdetr_r18", "decoder", "decoder"),
        ("dfine_n", "backbone", "backbone"),
    ],
)
def test_a_name_stands_for_a_part(model, name, path):
    model = built(model)
    frozen_before = {n for n, p in model.named_parameters() if not p.requires_grad}
    freeze(model, [name])
    assert model.frozen == (path,)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen - frozen_before
    assert frozen - frozen_before <= {n for n in frozen if n.startswith(f"{path}.")}
    assert {n for n, _ in model.named_parameters() if n.startswith(f"{path}.")} <= frozen


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["backbone", "encodr"],
            "--freeze encodr: .*; it has backbone, encoder, decoder, and their parts, "
            "such as backbone.conv1$",
        ),
        (["enc"], "--freeze enc: the model has no such part"),
        (["layers"], "--freeze layers: the model has no such part"),
        (["backbone", "encoder", "decoder"], "nothing is left to train"),
    ],
)
def test_a_name_that_the_model_does_not_have(names, message):
    with pytest.raises(redetr.InputError, match=message):
        freeze(built("rtdetr_r18"), names)


def test_frozen_batch_norm_keeps_its_statistics_and_the_run_stays_exact():
    model = redetr.build("redetr_n", 3, backbone="resnet18", norm="sync_batch")
    freeze(model, ["backbone"])
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [norm.running_mean.clone() for norm in norms]
    model.eval().train()
    assert norms and not any(norm.training for norm in norms)
    assert model.training and model.decoder[0].training
    model(torch.randn(2, 3, 64, 96))
    assert all(map(torch.equal, statistics, (norm.running_mean for norm in norms)))
    with process_group("cpu") as dist:
        assert check_norms(model, replace(dist, world_size=8), accumulate=4) == []
    recompute_blocks(model)  # nothing would be updated twice


def test_a_run_leaves_frozen_parts_as_they_are_and_resumes(shared_coco, tmp_path):
    said = io.StringIO()
    folder = tmp_path / "run"
    config = replace(QUICK, data=str(shared_coco), output=str(folder))
    train(config, Console(file=said, width=1000))
    assert re.search(
        r"^frozen: backbone, neck.encoder; [\d,]+ of [\d,]+ parameters are trained$",
        said.getvalue(),
        re.MULTILINE,
    )
    whole = torch.load(folder / "last.pt", weights_only=True)
    torch.manual_seed(0)
    start = redetr.build("redetr_n", 3, num_queries=25, **_options()).state_dict()
    moved = {
        name for name, tensor in whole["model"].items() if not torch.equal(tensor, start[name])
    }
    assert moved and not any(name.startswith(("backbone.", "neck.encoder.")) for name in moved)
    assert {name.split(".")[0] for name in moved} >= {"neck", "decoder", "class_embed"}
    trained = sum(len(group["params"]) for group in whole["optimizer"]["param_groups"])
    assert len(whole["optimizer"]["state"]) == trained < len(start)
    assert whole["config"]["freeze"] == ["backbone", "encoder"]

    (folder / "previous.pt").rename(folder / "last.pt")  # as if it had been killed after step 2
    train(replace(config, resume=True))
    resumed = torch.load(folder / "last.pt", weights_only=True)
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), name
    with pytest.raises(redetr.InputError, match="saved with freeze="):
        train(replace(config, resume=True, freeze=()))


def _options() -> dict:
    return replace(QUICK, num_queries=None).model_kwargs()


def test_a_wrong_name_leaves_no_folder(shared_coco, tmp_path):
    folder = Path(tmp_path) / "run"
    with pytest.raises(redetr.InputError, match="--freeze neck8"):
        train(replace(QUICK, data=str(shared_coco), output=str(folder), freeze=("neck8",)))
    assert not folder.exists()


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    result = verify(replace(QUICK, data="random", batch_size=0, accumulate=2))
    assert not result.failed
    assert "backbone" not in result.parameters and "neck" in result.parameters


def test_a_name_of_several_parts_names_them():
    with pytest.raises(redetr.InputError, match=r"2 such parts, \w+.input_proj and \w+.input_proj"):
        freeze(built("rtdetr_r18"), ["input_proj"])
