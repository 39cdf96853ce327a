"""Groups, schedule, clipping and averaging: by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import redetr
from redetr.ema import ModelEma
from redetr.optim import build_optimizer, clip_gradients, lr_factor, param_groups, set_lr


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return redetr.build("detr_r50", 3, enc_layers=1, dec_layers=1)


def names_by_group(model: nn.Module) -> dict[tuple[float, float], set[str]]:
    """The names of the parameters by (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_group = {}
    for group in param_groups(model, lr=1e-4, lr_backbone=1e-5, weight_decay=0.02):
        key = (group["lr"], group["weight_decay"])
        by_group[key] = {names[id(parameter)] for parameter in group["params"]}
    return by_group


def decaying_names(model: nn.Module) -> set[str]:
    """The names of the parameters with weight decay."""
    decaying = set()
    for (_, decay), names in names_by_group(model).items():
        if decay:
            decaying |= names
    return decaying


def test_every_trainable_parameter_is_in_one_group(model):
    grouped = []
    for group in param_groups(model, 1e-4, 1e-5, 0.02):
        grouped += group["params"]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}


def test_backbone_learns_at_its_own_rate(model):
    groups = names_by_group(model)
    backbone = set()
    for (lr, _), names in groups.items():
        if lr == 1e-5:
            backbone |= names
    # The stem and layer1 are frozen.
    prefixes = tuple(f"backbone.0.body.layer{i}." for i in (2, 3, 4))
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert backbone == expected
    assert "input_proj.weight" in groups[1e-4, 0.02]


def test_norms_biases_and_embeddings_do_not_decay(model):
    decaying = decaying_names(model)
    assert "transformer.encoder.layers.0.self_attn.in_proj_weight" in decaying
    assert "class_embed.weight" in decaying  # a matrix, in spite of its name
    assert "query_embed.weight" not in decaying
    for name in decaying:
        assert "norm" not in name
        assert not name.endswith("bias")


def test_learned_positions_do_not_decay():
    with torch.device("meta"):
        learned = redetr.build("detr_r50", 3, enc_layers=1, dec_layers=1, position="learned")
    trained = {name for name, parameter in learned.named_parameters() if parameter.requires_grad}
    spared = trained - decaying_names(learned)
    assert {"backbone.1.row_embed.weight", "backbone.1.col_embed.weight"} <= spared


def rates(steps: int, schedule: str, warmup_steps: int = 0, drop_at: float = 0.5):
    """The settings of a run that decide its learning rates."""
    return SimpleNamespace(
        steps=steps, schedule=schedule, warmup_steps=warmup_steps, drop_at=drop_at
    )


def test_cosine_schedule_by_hand():
    factors = [lr_factor(rates(12, "cosine", warmup_steps=4), step) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    half_wave = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert factors[4:] == pytest.approx(half_wave)
    assert factors[4] == 1
    assert factors[8] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.05


def test_step_schedule_by_hand():
    factors = [lr_factor(rates(9, "step", drop_at=2 / 3), step) for step in range(9)]
    assert factors == [1.0] * 6 + [0.1] * 3


def test_constant_schedule_with_warm_up():
    factors = [lr_factor(rates(6, "constant", warmup_steps=2), step) for step in range(6)]
    assert factors == [0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_very_short_runs(steps):
    for schedule in ("cosine", "step", "constant"):
        for step in range(steps):
            assert 0 < lr_factor(rates(steps, schedule, warmup_steps=1), step) <= 1


def test_the_schedule_multiplies_the_rate_of_each_group():
    torch.manual_seed(0)
    small = redetr.build("redetr_n", 2)
    optimizer = build_optimizer(small, lr=1e-2, lr_backbone=1e-3, weight_decay=0.1)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.1)  # of the base rate, not of the last one
    rates = {group["lr"] for group in optimizer.param_groups}
    assert sorted(rates) == pytest.approx([1e-4, 1e-3])


@pytest.mark.parametrize(
    ("max_norm", "expected"), [(10.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (0.0, [3.0, 4.0])]
)
def test_clipping_by_hand(max_norm, expected):
    """A gradient of (3, 4) has norm 5, over all parameters together; 0 means no limit."""
    model = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    model[0].grad = torch.tensor([3.0])
    model[1].grad = torch.tensor([4.0])
    assert clip_gradients(model, max_norm).item() == pytest.approx(5)
    assert [p.grad.item() for p in model] == pytest.approx(expected, rel=1e-5)


def test_moving_average_by_hand():
    """Decays min(0.5, (1 + n) / (10 + n)): 0.1, 2/11, 3/12, ... and 0.5 from n = 8 on."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = ModelEma(model, decay=0.5)
    nn.init.constant_(model.weight, 1.0)
    expected = 0.0
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12]):
        ema.update(step)
        expected = decay * expected + (1 - decay)
        assert ema.model.weight.item() == pytest.approx(expected)
    nn.init.constant_(model.weight, 0.0)
    ema.update(100)
    assert ema.model.weight.item() == pytest.approx(expected / 2)


def test_without_averaging_the_copy_follows_at_once():
    model = nn.Linear(2, 2)
    ema = ModelEma(model, decay=0.0)
    nn.init.constant_(model.weight, 3.0)
    ema.update(0)
    assert torch.equal(ema.model.weight, model.weight)


def test_the_average_is_a_copy_that_is_not_trained():
    model = redetr.build("redetr_n", 2)
    ema = ModelEma(model, decay=0.9)
    before = [p.clone() for p in ema.model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for parameter, kept in zip(ema.model.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
        assert not parameter.requires_grad
    assert not ema.model.training


def test_frozen_parts_of_the_average_stay_exactly_as_they_are():
    model = redetr.build("redetr_n", 2, backbone="resnet18", hidden_dim=32, dec_layers=1)
    ema = ModelEma(model, decay=0.9)
    for step in range(3):
        ema.update(step)
    averaged = ema.model.backbone[0].body.conv1.weight
    trained = model.backbone[0].body.conv1.weight
    assert torch.equal(averaged, trained)
