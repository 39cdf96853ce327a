"""Parts with random weights are not frozen: they would stay random."""

from dataclasses import replace

import pytest
import torch
from command_line import SMALL

import redetr
from redetr.checkpoint import save_weights
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.models.freezing import freeze
from redetr.weights.starting import starting_point

FAST = TrainConfig(
    model="redetr_n",
    model_options=("backbone=[16,32,64]", "hidden_dim=32", "nheads=4", "dim_feedforward=64"),
)
FAITHFUL = TrainConfig(model="detr_r50", model_options=tuple(SMALL))
THERE = ("box", "tri", "disc", "shapes")
HERE = ("cube", "pyramid", "coin", "shapes")
BY_HEADS = ("class_embed", "enc_class_embed", "decoder")


def built(config: TrainConfig, classes=HERE):
    options = replace(config, weights=None).model_kwargs()
    return redetr.build(config.model, len(classes), **options)


def started(config: TrainConfig, classes=HERE, is_training: bool = True) -> list[str]:
    """The notes at the start of a run on data with these classes."""
    model = built(config, classes)
    notes = starting_point(model, config, classes, is_training)
    freeze(model, config.freeze)
    return notes


def weights_of(config: TrainConfig, folder) -> str:
    """A file of weights that know the classes of THERE."""
    path = folder / f"{config.model}-{config.masks}.safetensors"
    about = {"config": config.to_dict(), "class_names": list(THERE), "category_ids": [0, 1, 2, 3]}
    save_weights(path, built(config, THERE).state_dict(), about)
    return str(path)


@pytest.mark.parametrize("frozen", [("detector",), BY_HEADS, ("enc_class_embed",)])
def test_heads_of_new_classes_are_not_frozen(frozen, tmp_path):
    path = weights_of(FAST, tmp_path)
    config = replace(FAST, weights=path, masks=True, freeze=frozen)
    expected = (
        rf"^{path}: does not know the classes 'cube', 'pyramid', 'coin', and --freeze "
        rf"{' '.join(frozen)} would keep \d+ tensors at random values, such as "
        r"(enc_)?class_embed\.\S+; first train a run on these classes .* out of --freeze$"
    )
    with pytest.raises(InputError, match=expected):
        started(config)


def test_many_new_classes_are_counted(tmp_path):
    config = replace(FAST, weights=weights_of(FAST, tmp_path), freeze=("class_embed",))
    with pytest.raises(InputError, match="the classes 'a', 'b', 'c' and 2 more, and"):
        started(config, ("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match="the class 'cat', and"):
        started(config, (*THERE, "cat"))


@pytest.mark.parametrize("model", ["rtdetr_r18", "dfine_n"])
def test_heads_in_the_decoder(model, tmp_path):
    """RT-DETR and D-FINE have their heads there."""
    there = TrainConfig(model=model)
    config = replace(there, weights=weights_of(there, tmp_path), freeze=("decoder",))
    with pytest.raises(InputError, match=r"such as decoder\.enc_score_head\.weight"):
        started(config)


def test_heads_of_the_faithful_variant(tmp_path):
    path = weights_of(FAITHFUL, tmp_path)
    with pytest.raises(InputError, match="'cube', 'pyramid', 'coin'"):
        started(replace(FAITHFUL, weights=path, freeze=("class_embed",)))
    started(replace(FAITHFUL, weights=path, freeze=("class_embed",)), THERE)


def test_known_classes_and_other_parts_may_be_frozen(tmp_path):
    path = weights_of(FAST, tmp_path)
    in_other_order = ("disc", "Shapes", "box")
    config = replace(FAST, weights=path, masks=True)
    started(replace(config, freeze=("detector",)), in_other_order)
    started(replace(config, freeze=("backbone", "neck", "decoder")))
    started(replace(config, freeze=("detector",)), HERE, is_training=False)  # `verify`


def test_queries_that_the_weights_lack_are_not_frozen(tmp_path):
    path = weights_of(replace(FAST, num_queries=25), tmp_path)
    config = replace(FAST, weights=path, masks=True, num_queries=40, freeze=("detector",))
    expected = r"has 25 of 40 queries, .* such as query_embed\.weight; give --num-queries 25$"
    with pytest.raises(InputError, match=expected):
        started(config, THERE)
    started(replace(config, num_queries=25), THERE)
    started(replace(config, num_queries=20), THERE)


def test_a_mask_head_that_the_weights_lack_is_not_frozen(tmp_path):
    path = weights_of(FAST, tmp_path)
    config = replace(FAST, weights=path, masks=True, freeze=("mask_head",))
    with pytest.raises(
        InputError, match=r"at random values, such as mask_head\..* out of --freeze"
    ):
        started(config, THERE)
    with_head = weights_of(replace(FAST, masks=True), tmp_path)
    started(replace(config, weights=with_head), THERE)


def test_without_weights_of_a_detector():
    """Heads of classes are refused; other parts give a warning."""
    with pytest.raises(
        InputError, match=r"heads of all classes at random values: .* give --weights"
    ):
        started(replace(FAST, freeze=BY_HEADS))
    (said,) = started(replace(FAST, freeze=("backbone", "encoder")))
    assert said.startswith(
        "warning: --freeze backbone encoder keeps backbone and neck at random values: give --weights"
    )
    assert started(replace(FAST, freeze=("backbone",)), is_training=False) == []


def test_a_backbone_file_is_for_the_backbone(tmp_path):
    path = tmp_path / "backbone.pth"
    faithful = replace(FAITHFUL, model_options=("backbone=resnet18", *SMALL[1:]))
    body = built(faithful).get_submodule("backbone")[0].body
    torch.save(body.state_dict(), path)
    config = replace(faithful, weights=str(path))
    assert not any(
        "random values" in said for said in started(replace(config, freeze=("backbone",)))
    )
    said = started(replace(config, freeze=("backbone", "encoder")))
    assert any("--freeze backbone encoder keeps transformer at random values" in n for n in said)
