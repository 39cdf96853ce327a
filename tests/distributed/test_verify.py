"""`redetr verify`: alone and on several ranks, and that it can fail."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from torch import nn

import redetr
from redetr import verification
from redetr.cli import main
from redetr.commands import verify as verify_command
from redetr.data import open_dataset
from redetr.distributed import process_group
from redetr.monitor import SilentMonitor
from redetr.preparation import prepare
from redetr.recipes import get_recipe
from redetr.training import _Run
from redetr.verification import first_batch

TINY = (
    "backbone=[16,32,64]",
    "hidden_dim=32",
    "nheads=4",
    "enc_layers=1",
    "dec_layers=2",
    "dim_feedforward=64",
)


def flags(**chosen) -> list[str]:
    settings = {"device": "cpu", "precision": "fp32", "image_size": 64} | chosen
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()] + [
        "--model-options",
        *TINY,
    ]


def test_alone_with_accumulation(capsys):
    main(["verify", "detr_tiny", *flags(accumulate=3, batch_size=14), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["world_size"], result["accumulate"], result["batch_size"]) == (1, 3, 14)
    assert result["failed"] == []
    assert result["parameters"]["all"] == sum(
        n for part, n in result["parameters"].items() if part != "all"
    )
    assert {
        "backbone",
        "transformer.encoder",
        "transformer.decoder",
        "class_embed",
        "all",
    } <= result["parameters"].keys()
    assert 0 < result["errors"]["fp64"]["all"] < 1e-12
    assert result["errors"]["fp32"]["all"] < 1e-6


def test_a_layout_that_is_not_exact_fails(capsys):
    """The original's class loss is a mean over each micro-batch's own images. The box head is not
    to blame."""
    with pytest.raises(SystemExit) as ended:
        main(["verify", "detr_tiny", *flags(accumulate=2, class_normalization="per_rank")])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "redetr: the gradient of this layout is not that of one process: "
    )
    assert "all in fp32 by" in captured.err
    errors = {
        line.split()[0]: float(line.split()[2])
        for line in captured.out.splitlines()
        if "e-" in line or "e+" in line
    }
    assert errors["class_embed"] > 0.01
    assert errors["bbox_embed"] < 1e-12


def test_compressed_gradients_are_those_of_the_run():
    """bf16 has 8 bits: a relative error of 2e-3, also in fp64."""
    config = redetr.TrainConfig(
        data="random",
        batch_size=0,
        accumulate=2,
        image_size=64,
        device="cpu",
        precision="fp32",
        model_options=(*TINY[:3], *TINY[4:]),
        gradient_compression="bf16",
    )
    result = redetr.verify(config)
    for precision in ("fp64", "fp32"):
        assert 2**-11 < result.errors[precision]["all"] < 2**-8
    assert len(result.failed) >= 2


def test_on_own_data_as_training_augments_it(shared_coco):
    config = redetr.TrainConfig(
        **{
            **get_recipe("redetr_n").to_dict(),
            "data": str(shared_coco),
            "batch_size": 6,
            "accumulate": 2,
            "image_size": 64,
            "device": "cpu",
            "precision": "bf16",
            "augment": "photo",
            "model_options": (*TINY[:3], *TINY[4:]),
        }
    )
    result = redetr.verify(config)
    assert result.failed == []
    assert result.errors["bf16"]["all"] < 0.02


def test_noise_of_five_channels(capsys):
    arguments = [word for word in flags(accumulate=2, channels=5) if "enc_layers" not in word]
    main(["verify", "redetr_n", *arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["failed"] == []


@pytest.mark.parametrize(("grouped", "mosaic_until"), [(True, 0.0), (True, 1.0), (False, 0.0)])
def test_the_first_batch_is_that_of_training(grouped, mosaic_until, shared_coco):
    """Images of similar size, and mosaics."""
    config = redetr.TrainConfig(
        model="detr_r50",
        data=str(shared_coco),
        steps=50,
        batch_size=3,
        image_size=64,
        device="cpu",
        precision="fp32",
        num_workers=0,
        model_options=TINY,
        group_by_size=grouped,
        mosaic_until=mosaic_until,
    )
    data = open_dataset(config.data, "train")
    with process_group("cpu") as dist:
        state, criterion = prepare(config, dist, data)
        run = _Run(state, criterion, dist, data, data, Path(), None, SilentMonitor(), None, "")
        ((trained,),) = islice(run._micro_batches(), 1)
        verified = first_batch(data, state)
    for (image, target), (expected, of_training) in zip(verified, trained, strict=True):
        assert target["image_id"] == of_training["image_id"]
        assert torch.equal(image, expected)


@pytest.mark.parametrize(
    ("recipe", "freezing", "options"),
    [
        ("redetr_n", ["--masks", "--freeze", "detector"], [*TINY[:3], *TINY[4:]]),
        ("detr_r50_panoptic", [], ["backbone=[16,32,64]", "hidden_dim=64", *TINY[3:]]),
    ],
)
def test_a_frozen_detector_may_be_random(recipe, freezing, options, capsys):
    """To train it would be of no use, and is refused."""
    usual = ["--accumulate=2", "--precision=fp64", "--device=cpu", "--image-size=64", "--json"]
    main(["verify", recipe, *freezing, *usual, "--model-options", *options])
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] == []
    assert not {"backbone", "detr"} & result["parameters"].keys()


@pytest.mark.parametrize(
    ("norm", "precision", "expected"),
    [
        (nn.GroupNorm(2, 8), "fp32", 6),
        (nn.SyncBatchNorm(8), "fp32", 2),  # one mean over the three ranks
        (nn.SyncBatchNorm(8).eval(), "fp32", 6),
        (nn.GroupNorm(2, 8), "fp64", 1),
        (nn.SyncBatchNorm(8), "fp64", 1),
    ],
)
def test_the_parts_of_the_reference(norm, precision, expected):
    dtype = verification.PRECISIONS[precision]
    parts = verification._parts_of_whole(norm, dtype, accumulate=2, world_size=3)
    assert parts == expected


def test_the_set_up_has_its_own_time_limit(monkeypatch):
    class Met(Exception):
        pass

    def noted(device, timeout_s, setup_timeout_s):
        raise Met(device, timeout_s, setup_timeout_s)

    monkeypatch.setattr(verification, "process_group", noted)
    with pytest.raises(Met) as met:
        redetr.verify(redetr.TrainConfig(device="cpu", timeout_s=7.0, setup_timeout_s=77.0))
    assert met.value.args == ("cpu", 7.0, 77.0)


def test_a_compiled_model_is_refused(tmp_path):
    with pytest.raises(redetr.InputError, match=r"--compile: .* are not compared; leave it out"):
        redetr.verify(verify_command.parse(["redetr_n", "--compile"]).config)
    settings = redetr.TrainConfig(compile=True).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert not verify_command.parse([str(tmp_path)]).config.compile


def test_on_two_ranks():
    arguments = ["verify", "redetr_n", *flags(precision="fp64")[:-1]]
    arguments = [word for word in arguments if not word.startswith("enc_layers")]
    (code, output, errors), (other, *_) = run_ranks(
        2, [*arguments, TINY[-1], "--freeze", "encoder"]
    )
    assert (code, other) == (0, 0), errors
    assert "2 x cpu with 1 micro-batch each" in output
    assert "exact: equal up to the order of floating-point sums" in output


def test_refused(capsys):
    for arguments, said in (
        (["verify", "redetr_n", "--data", "nowhere"], "nowhere"),
        (
            ["verify", "--batch-size", "1", "--accumulate", "2"],
            "--batch-size 1 is too small for 1 rank with 2 micro-batches each",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 1
        assert said in capsys.readouterr().err


def test_a_layout_that_splits_nothing_proves_nothing(capsys):
    result = {"batch_size": 12, "world_size": 1, "accumulate": 1, "device": "cpu"}
    result |= {"parameters": {"all": 5}, "errors": {"fp64": {"all": 0.0}}, "failed": []}
    verify_command._print_verification(result)
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing was split, so this proves nothing" in said
