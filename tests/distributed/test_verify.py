"""`redetr verify`: alone and on several ranks, and that it can fail."""

import json

import pytest
from forked import run_ranks

import redetr
from redetr.cli import main
from redetr.recipes import get_recipe

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
