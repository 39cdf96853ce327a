"""Compiling: one graph for the whole model, and none for each image size."""

from dataclasses import replace

import pytest
import torch
from command_line import lines_of
from torch._dynamo.testing import CompileCounter

import redetr
from redetr.config import TrainConfig
from redetr.training import train

FORMS = {
    "detr_r50": {
        "backbone": "resnet18",
        "hidden_dim": 32,
        "nheads": 4,
        "enc_layers": 1,
        "dec_layers": 2,
    },
    "redetr_n": {"hidden_dim": 32, "nheads": 4, "dec_layers": 2},
}


@pytest.mark.parametrize("name", FORMS)
def test_no_graph_breaks_and_one_graph_for_all_sizes(name):
    """Dynamo traces as for any compiler; the graphs it finds are counted and run as they are."""
    torch._dynamo.reset()
    model = redetr.build(name, 3, **FORMS[name]).eval()
    counted = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counted)
    for height, width in ((64, 96), (96, 64), (128, 160)):
        images, mask = (
            torch.randn(2, 3, height, width),
            torch.zeros(2, height, width, dtype=torch.bool),
        )
        mask[1, :, 50:] = True
        with torch.no_grad():
            expected, given = model(images, mask), compiled(images, mask)
        torch.testing.assert_close(given["pred_logits"], expected["pred_logits"])
        torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"])
    assert counted.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_compiled_training_takes_the_same_steps(name, shared_coco, tmp_path):
    """Without dropout, whose random numbers a compiled graph draws in its own order."""
    options = tuple(f"{key}={value}" for key, value in FORMS[name].items())
    config = TrainConfig(
        model=name,
        model_options=options + (("dropout=0",) if name == "detr_r50" else ()),
        data=str(shared_coco),
        steps=4,
        eval_every=4,
        batch_size=4,
        accumulate=2,
        image_size=64,
        augment="plain",
        device="cpu",
        precision="fp32",
        num_workers=0,
        log_every=1,
        num_queries=10,
        output=str(tmp_path / "plain"),
    )
    train(config)
    train(replace(config, compile=True, output=str(tmp_path / "compiled")))
    plain, compiled = (
        [line["loss"] for line in lines_of(tmp_path / name) if "loss" in line]
        for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-3)
