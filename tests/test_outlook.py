"""What a run that cannot end well is told."""

from dataclasses import replace

import pytest

import redetr
from redetr.data import DetectionDataset, Hints, open_dataset
from redetr.outlook import outlook
from redetr.recipes import get_recipe


@pytest.fixture(scope="module")
def crowns() -> DetectionDataset:
    return open_dataset("crowns", "train")


@pytest.mark.parametrize(
    ("recipe", "options", "advice"),
    [
        ("detr_r50", (), "use redetr_n, or --weights facebook/detr-resnet-50"),
        ("detr_r50", ("dropout=0.0",), "use redetr_n, or --weights facebook/detr-resnet-50"),
        ("detr_r101", (), "use redetr_n, or --weights facebook/detr-resnet-101"),
        ("detr_r50_dc5", (), "use redetr_n, or --weights facebook/detr-resnet-50-dc5"),
        ("detr_table", (), "use redetr_n, or --weights microsoft/table-transformer-detection"),
        ("detr_r50", ("enc_layers=3",), "use redetr_n"),
        ("detr_tiny", (), "use redetr_n"),
    ],
)
def test_published_weights_are_named_where_they_fit(recipe, options, advice, crowns):
    config = get_recipe(recipe)
    config = replace(config, steps=100, model_options=(*config.model_options, *options))
    model = redetr.build("redetr_n", 1)
    warning, *_ = outlook(config.resolved(model, Hints(), len(crowns)), crowns, crowns)
    assert warning.endswith(f": results of {config.model} will be poor; {advice}")
