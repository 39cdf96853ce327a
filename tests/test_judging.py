"""Which evaluation of a run is the best: by which number, and in which words."""

from dataclasses import replace

import pytest
import torch

import redetr
from redetr.commands.train import Train
from redetr.config import TrainConfig
from redetr.data import Hints
from redetr.judging import by_importance, is_better, judge_of
from redetr.models.freezing import freeze, trains_only_masks
from redetr.state import State

CONFIG = TrainConfig(
    model="redetr_n",
    masks=True,
    steps=100,
    eval_every=5,
    patience=0.1,
    schedule="constant",
    image_size=64,
)


def state_with(*frozen: str) -> State:
    """A new run that trains masks, with these parts frozen."""
    with torch.device("meta"):
        model = redetr.build("redetr_n", 3, masks=True)
    if frozen:
        freeze(model, frozen)
    settings = replace(CONFIG, freeze=frozen).resolved(model, Hints(), 4)
    return State(settings, model, None, None, (), (), 4)


def recorded(state: State, *numbers: tuple[float | None, float | None]) -> list[bool]:
    """Whether each evaluation with these (AP, mask AP) was the best so far."""
    were_best = []
    for ap, mask_ap in numbers:
        state.step += 5
        were_best.append(state.record(ap, None, None, mask_ap))
    return were_best


@pytest.mark.parametrize("frozen", [
    ["detector"],
    ["backbone", "neck", "memory_norm", "enc_class_embed", "enc_bbox_embed", "query_embed",
     "query_pos", "decoder", "class_embed", "bbox_embed"],
])  # fmt: skip
def test_where_boxes_cannot_change_mask_ap_decides(frozen):
    state = state_with(*frozen)
    rising = [(0.364, 0.434), (0.364, 0.53), (0.364, 0.624), (0.364, 0.6)]
    assert recorded(state, *rising) == [True, True, True, False]
    assert state.best == {"AP": 0.364, "mask_AP": 0.624, "step": 15, "by": "mask_AP"}


def test_patience_follows_the_number_that_decides():
    state = state_with("detector")
    recorded(state, (0.364, 0.4), (0.364, 0.5), (0.364, 0.6))
    assert state.end_reason() == ""
    recorded(state, (0.364, 0.59), (0.364, 0.58))
    ended = "ended early at step 25 of 100: mask AP has not improved for 10 steps (2 eval"
    assert state.end_reason().startswith(ended)


@pytest.mark.parametrize("frozen", [[], ["backbone", "decoder"]])
def test_where_boxes_are_trained_their_ap_decides_and_mask_ap_breaks_ties(frozen):
    state = state_with(*frozen)
    numbers = [(0.3, 0.5), (0.4, 0.4), (0.4, 0.45), (0.4, 0.45), (0.39, 0.9)]
    assert recorded(state, *numbers) == [True, True, True, False, False]
    assert state.best == {"AP": 0.4, "mask_AP": 0.45, "step": 15, "by": "AP"}


def test_where_nothing_that_is_measured_can_change_the_last_evaluation_is_the_best():
    """Boxes are frozen, and an object of val lacks its mask."""
    state = state_with("detector")
    assert recorded(state, *[(0.364, None)] * 8) == [True] * 8
    assert state.best == {"AP": 0.364, "step": 40}
    assert state.end_reason() == ""


def test_a_run_of_an_earlier_version_whose_masks_are_not_measured():
    """It counted evaluations without a better AP."""
    state = state_with("detector")
    state.best, state.step, state.last_evaluated_step, state.evaluations_since_best = (
        {"AP": 0.3, "step": 5},
        40,
        40,
        7,
    )
    assert recorded(state, (0.3, None)) == [True]
    assert state.end_reason() == ""


def test_undefined_numbers_are_not_compared():
    """Without objects, the last evaluation is the best, also of a masks-only run."""
    state = state_with("detector")
    numbers = [(None, None), (None, None), (0.3, 0.2), (None, None)]
    assert recorded(state, *numbers) == [True, True, True, False]
    assert state.best["step"] == 15


def test_panoptic_quality_comes_first():
    numbers = {"AP": 0.5, "mask_AP": 0.4, "PQ": 0.3}
    assert by_importance(numbers, boxes_are_fixed=False) == ["PQ", "AP", "mask_AP"]
    assert by_importance(numbers, boxes_are_fixed=True) == ["PQ", "mask_AP", "AP"]
    assert is_better(numbers, numbers | {"PQ": 0.2, "AP": 0.9}, ["PQ", "AP"])


def test_the_best_of_an_earlier_version():
    """It has no "by", and where masks were measured no mask AP."""
    assert judge_of({"AP": 0.3, "step": 5}) == "AP"
    assert judge_of({"AP": 0.3, "PQ": 0.4, "step": 5}) == "PQ"
    state = state_with("detector")
    state.best, state.step, state.last_evaluated_step = {"AP": 0.364, "step": 5}, 5, 5
    assert recorded(state, (0.364, 0.1)) == [True]


def test_a_panoptic_model_without_its_detector_trains_only_masks():
    with torch.device("meta"):
        model = redetr.build("detr_r50_panoptic", 3)
    assert not trains_only_masks(model)
    freeze(model, ["detr"])
    assert trains_only_masks(model)


def test_the_command_names_the_number(monkeypatch, capsys):
    state = state_with("detector")
    recorded(state, (0.364, 0.624), (0.364, 0.5))
    monkeypatch.setattr("redetr.commands.train.print_results", lambda results: None)
    Train(state.config)._report({"step": 10, "best": state.best})
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "final evaluation (step 10); best.pt is from step 5, mask AP 62.4"
