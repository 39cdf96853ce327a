"""Trials of a model's own work."""

from types import SimpleNamespace

import pytest
import torch

import redetr
from redetr import trial
from redetr.models.freezing import freeze
from redetr.trial import times_faster, trial_pass


@pytest.fixture
def model():
    torch.manual_seed(0)
    options = {"hidden_dim": 32, "dim_feedforward": 32, "num_queries": 5, "backbone": [8, 16, 16]}
    return redetr.build("redetr_n", 2, **options).train()


def test_the_gain_is_the_median_of_what_each_round_says(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(trial, "_MOST_S", 0.5)
    ours = iter([9.0, 0.01, 0.01, 0.1, 0.01, 0.01])
    other = iter([9.0, 0.02, 0.03, 0.02, 0.02, 0.02])

    def pass_time(durations):
        clock.now += next(durations)

    gain = times_faster(lambda: pass_time(ours), lambda: pass_time(other))
    assert gain == pytest.approx(2)  # 2, 3, 0.2, 2, 2; the first of each warms up


def test_a_trial_of_slow_rounds_ends(monkeypatch):
    clock = SimpleNamespace(now=0.0, rounds=0)
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(trial, "_MOST_S", 5.0)

    def slow():
        clock.now += 2
        clock.rounds += 1

    times_faster(slow, slow)
    assert clock.rounds == 2 + 2 * 2  # to warm up, and rounds that begin after 0 and 4 s


@pytest.mark.parametrize(
    ("image_size", "batch_size", "shape"),
    [
        (128, 1, (1, 3, 128, 128)),
        (128, 16, (16, 3, 128, 128)),
        (128, 64, (16, 3, 128, 128)),
        ((800, 96), 8, (8, 3, 320, 96)),
        (640, 4, (2, 3, 320, 320)),
    ],
)
def test_the_images_of_a_trial(image_size, batch_size, shape, model, monkeypatch):
    shapes = []
    monkeypatch.setattr(model, "forward", lambda images: shapes.append(tuple(images.shape)))
    with trial_pass(model, image_size, gradient=False, batch_size=batch_size) as run:
        run()
    assert shapes == [shape]


@pytest.mark.parametrize(
    ("name", "frozen"), [("redetr_n", "detector"), ("detr_r50_panoptic", "detr")]
)
def test_a_trial_of_a_model_whose_boxes_are_frozen(name, frozen):
    """Its gradient is that of the masks."""
    options = {"hidden_dim": 64, "nheads": 8, "dim_feedforward": 32, "num_queries": 5}
    if name == "redetr_n":
        options |= {"masks": True, "backbone": [8, 16, 16]}
    else:
        options |= {"backbone": [8, 16, 16], "enc_layers": 1, "dec_layers": 1}
    model = redetr.build(name, 2, **options).train()
    freeze(model, (frozen,))
    passed_back = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: passed_back.append(gradient.shape))
    with trial_pass(model, 64, gradient=True) as run:
        run()
    assert passed_back


@pytest.mark.parametrize("gradient", [False, True])
def test_a_trial_leaves_the_model_and_random_numbers_as_they_are(gradient, model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with trial_pass(model, (64, 96), gradient) as run:
        assert not model.training
        run()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
