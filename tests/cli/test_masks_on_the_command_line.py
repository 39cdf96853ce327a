"""`--masks` from training to prediction: on digits, with a small model and few steps."""

import json

import pytest
import torch
from command_line import train_arguments

import redetr
from redetr.cli import main
from redetr.errors import InputError
from redetr.verification import verify


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory):
    """Three steps with masks."""
    folder = tmp_path_factory.mktemp("masks") / "run"
    main([str(word) for word in [*train_arguments("digits", folder, steps=3), "--masks"]])
    return folder


def test_masks_are_learned_measured_and_recorded(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_mask", "loss_dice"} < lines[0].keys()
    assert {"AP", "masks", "val_loss_mask"} < lines[-1].keys()
    assert {"AP", "AP50"} < lines[-1]["masks"].keys()
    assert json.loads((run / "config.json").read_text())["masks"] is True


def test_the_detector_gives_masks_of_the_image(run):
    detector = redetr.load(run, device="cpu")
    image = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8)
    detections = detector.predict(image, threshold=0.0)
    assert detections.masks.shape == (len(detections), 90, 70)
    assert detections.masks.dtype == torch.bool


def test_the_head_alone_is_trained_from_boxes(run, tmp_path, capsys):
    """From a checkpoint without masks, the detector frozen: it stays bit for bit as it was."""
    boxes, both = tmp_path / "boxes", tmp_path / "both"
    arguments = train_arguments("digits", boxes, steps=1, eval_every=1)
    main([str(word) for word in arguments])
    arguments = train_arguments("digits", both, steps=1, eval_every=1, weights=boxes)
    main([str(word) for word in [*arguments, "--masks", "--freeze", "detector"]])
    shown = " ".join(capsys.readouterr().err.split())
    assert "the mask head starts at random" in shown
    before = torch.load(boxes / "last.pt", weights_only=True)["ema"]
    after = torch.load(both / "last.pt", weights_only=True)["model"]
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert any(name.startswith("mask_head.") for name in after)
    best = torch.load(both / "best.pt", weights_only=True)["best"]
    assert best["by"] == "mask_AP"  # that of boxes does not change
    assert "best.pt is from step 1, with the highest mask AP: mask AP " in shown


def test_the_split_of_a_step_with_masks_is_verified():
    options = ("backbone=[16,32,64]", "hidden_dim=32", "nheads=4", "dim_feedforward=64")
    config = redetr.TrainConfig(
        data="random",
        batch_size=0,
        accumulate=2,
        device="cpu",
        precision="fp32",
        image_size=64,
        model_options=options,
        masks=True,
    )
    result = verify(config)
    assert result.failed == []
    assert "mask_head" in result.parameters


def test_data_without_masks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"crowns.*no masks"):
        redetr.train(redetr.TrainConfig(data="crowns", masks=True, output=str(tmp_path / "run")))
