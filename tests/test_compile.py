"""Compiling: one graph for the whole model, and none for each image size."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lines_of
from rich.console import Console
from torch._dynamo.testing import CompileCounter

import redetr
from redetr.config import TrainConfig
from redetr.training import train

# Dynamo traces each layer again: few of them.
SMALL: dict[str, Any] = {
    "backbone": [16, 32, 64],
    "dec_layers": 1,
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "detr_r50": {**SMALL, "enc_layers": 1},
    "redetr_n": SMALL,
}


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_no_graph_breaks_and_one_graph_for_all_sizes(name):
    """Dynamo traces as for any compiler; its graphs are counted and run as they are."""
    torch._dynamo.reset()
    model = redetr.build(name, 3, **VARIANTS[name]).eval()
    counted = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counted)
    for height, width in ((64, 96), (96, 64), (128, 160)):
        images = torch.randn(2, 3, height, width)
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[1, :, 50:] = True
        with torch.no_grad():
            expected = model(images, mask)
            outputs = compiled(images, mask)
        torch.testing.assert_close(outputs["pred_logits"], expected["pred_logits"])
        torch.testing.assert_close(outputs["pred_boxes"], expected["pred_boxes"])
    assert counted.frame_count == 1


def small_config(name: str, data: Path, output: Path) -> TrainConfig:
    options = tuple(f"{key}={value}" for key, value in VARIANTS[name].items())
    return TrainConfig(
        model=name,
        model_options=options + (("dropout=0",) if name == "detr_r50" else ()),
        data=str(data),
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
        output=str(output),
    )


@pytest.mark.parametrize("compiles", [True, False])
def test_a_run_on_a_cpu_says_that_compiling_costs_time(
    compiles, shared_coco, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    config = small_config("redetr_n", shared_coco, tmp_path / "run")
    text = StringIO()
    train(replace(config, compile=compiles), Console(file=text, width=1000))
    assert ("--compile made steps of redetr_n slower on a CPU" in text.getvalue()) == compiles


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_training_takes_the_same_steps(name, shared_coco, tmp_path):
    """Without dropout, whose random numbers a compiled graph draws in its own order."""
    config = small_config(name, shared_coco, tmp_path / "plain")
    train(config)
    train(replace(config, compile=True, output=str(tmp_path / "compiled")))
    losses = {}
    for run in ("plain", "compiled"):
        losses[run] = [line["loss"] for line in lines_of(tmp_path / run) if "loss" in line]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-3)
