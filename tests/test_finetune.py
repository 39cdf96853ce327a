"""Training runs that start from weights: what is said, where they start, and that exactness is
kept."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from command_line import SMALL, lines_of
from rich.console import Console

import redetr
from redetr.config import TrainConfig
from redetr.distributed import check_norms, process_group
from redetr.training import train
from redetr.verification import verify

QUICK = TrainConfig(
    model_options=tuple(SMALL),
    batch_size=4,
    image_size=64,
    augment="plain",
    device="cpu",
    precision="fp32",
    num_workers=0,
    log_every=1,
    lr=3e-3,
    ema_decay=0.0,
)


def run(config: TrainConfig) -> str:
    """Trains and returns what was said, without line breaks."""
    said = io.StringIO()
    train(config, Console(file=said, width=400))
    return said.getvalue()


def first_loss(folder: Path) -> float:
    return next(line["loss"] for line in lines_of(folder) if "loss" in line)


@pytest.fixture(scope="module")
def before(shared_coco, tmp_path_factory) -> TrainConfig:
    """A run that has learned a little."""
    folder = tmp_path_factory.mktemp("runs") / "before"
    config = replace(QUICK, data=str(shared_coco), output=str(folder), steps=40, eval_every=40)
    train(config)
    return config


def test_a_run_starts_from_the_weights_of_another(before, tmp_path):
    new = replace(before, steps=2, output=str(tmp_path / "new"))
    said = run(replace(new, weights=before.output))
    run(replace(new, output=str(tmp_path / "random")))
    last = [line["loss"] for line in lines_of(Path(before.output)) if "loss" in line][-1]
    assert first_loss(tmp_path / "new") < 0.7 * first_loss(tmp_path / "random")
    assert first_loss(tmp_path / "new") < 1.5 * last
    assert "loaded" in said and f"tensors from {before.output}/best.pt\n" in said
    begun = torch.load(tmp_path / "new/last.pt", weights_only=True)
    # Two steps of this run, without the 40 of the other.
    assert {
        float(state["step"]) for state in begun["optimizer"]["state"].values() if "step" in state
    } == {2}
    assert begun["config"]["weights"] == before.output


def test_a_resumed_run_needs_them_no_more(before, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((Path(before.output) / "best.safetensors").read_bytes())
    config = replace(
        before, steps=4, eval_every=2, output=str(tmp_path / "run"), weights=str(weights)
    )
    run(config)
    whole = torch.load(tmp_path / "run/last.pt", weights_only=True)
    # As if the run had been killed after step 2.
    (tmp_path / "run/previous.pt").rename(tmp_path / "run/last.pt")
    weights.unlink()
    said = run(replace(config, resume=True))
    assert "resumed from" in said
    assert "loaded" not in said
    resumed = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert all(
        torch.equal(resumed["model"][name], tensor) for name, tensor in whole["model"].items()
    )


def test_lists_and_paths_from_python_are_no_other_settings(before, tmp_path):
    """A checkpoint has them as tuples and texts."""
    config = replace(
        before,
        steps=2,
        eval_every=1,
        output=str(tmp_path / "run"),
        weights=Path(before.output),
        freeze=["backbone"],
        model_options=list(before.model_options),
    )
    run(config)
    (tmp_path / "run/previous.pt").rename(tmp_path / "run/last.pt")  # as if killed after step 1
    said = run(replace(config, resume=True))
    assert "resumed from" in said and "ended at step 2 of 2" in said
    with pytest.raises(redetr.InputError, match="saved with freeze="):
        run(replace(config, resume=True, freeze=["backbone", "encoder"]))


def test_weights_that_do_not_fit_leave_no_folder(before, tmp_path):
    with pytest.raises(redetr.InputError, match="hidden_dim is 32 there and 64 here"):
        run(replace(before, weights=before.output, model_options=(), output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def mobilenet(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "mobilenet_v2.pth")
    return tmp_path / "mobilenet_v2.pth"


@pytest.mark.long
def test_the_mobile_recipe_trains_from_a_file(before, mobilenet, tmp_path):
    config = replace(
        redetr.get_recipe("redetr_mobile"),
        data=before.data,
        output=str(tmp_path / "run"),
        steps=2,
        batch_size=4,
        image_size=64,
        num_workers=0,
        device="cpu",
        weights=str(mobilenet),
        model_options=("backbone=mobilenet_v2",),
    )
    said = run(config)
    assert f"tensors of the backbone mobilenet_v2 from {mobilenet}" in said
    given, saved = (torch.load(p, weights_only=True) for p in (mobilenet, tmp_path / "run/last.pt"))
    trained = {
        name: tensor
        for name, tensor in saved["model"].items()
        if name.startswith("backbone.0.body.")
    }
    same = {
        name
        for name, tensor in trained.items()
        if torch.equal(tensor, given[name.removeprefix("backbone.0.body.")])
    }
    early = {name for name in trained if name.split(".")[4] in ("0", "1", "2", "3")}
    norms = {name for name in trained if trained[name].dim() == 1}
    # The norms and all that comes before stride 8 are frozen; everything else has changed.
    assert same == early | norms
    redetr.load(tmp_path / "run", device="cpu")


@pytest.mark.long
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mobilenet_v3_small", "timm:lcnet_050"])
def test_a_pretrained_backbone_keeps_training_exact(backbone):
    """As `redetr verify`: micro-batches against the whole batch."""
    config = replace(
        QUICK,
        data="random",
        batch_size=0,
        accumulate=2,
        model_options=(f"backbone={backbone}", *SMALL[1:]),
    )
    assert not verify(config).failed
    model = redetr.build("redetr_mobile", 3, backbone=backbone)
    with process_group("cpu") as dist:
        assert check_norms(model.train(), replace(dist, world_size=8), accumulate=4) == []
