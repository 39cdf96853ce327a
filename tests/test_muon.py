"""Orthogonal steps: singular values, one step by hand, AdamW for what is no matrix."""

import copy

import pytest
import torch
from torch import nn

import redetr
from redetr import muon
from redetr.muon import Muon, orthogonalized
from redetr.optim import build_optimizer, param_groups


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 32, 288), (2, 96, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_come_near_one_and_vectors_stay(shape, dtype):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=dtype)
    left_vectors, values, right_vectors = torch.linalg.svd(matrices, full_matrices=False)
    turned = left_vectors.mT @ orthogonalized(matrices) @ right_vectors.mT
    new_values = turned.diagonal(dim1=-2, dim2=-1)
    near_one = (new_values > 0.6) & (new_values < 1.3)
    not_tiny = values > 0.1 * values.amax(-1, keepdim=True)  # the tiniest need more iterations
    assert near_one[not_tiny].all()
    assert (turned - torch.diag_embed(new_values)).abs().max() < 1e-4
    assert orthogonalized(matrices).dtype == dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_wide_matrices_take_the_shorter_way_to_the_same_result(dtype, tolerance):
    """Also where some directions have next to no gradient."""
    torch.manual_seed(0)
    scales = torch.logspace(0, -6, 32, dtype=dtype)
    wide = torch.randn(2, 32, 288, dtype=dtype) * scales[:, None]
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True)
    difference = muon._iterated_wide(wide) - muon._iterated(wide)
    assert difference.abs().max() < tolerance


def test_the_scale_of_a_gradient_does_not_matter_and_nothing_stays_nothing():
    torch.manual_seed(0)
    matrices = torch.randn(2, 32, 40)
    plain = orthogonalized(matrices)
    scaled = orthogonalized(1000 * matrices)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
    assert orthogonalized(torch.zeros(1, 32, 40)).abs().max() == 0


def test_a_first_step_by_hand():
    """Nesterov's momentum of one gradient g is 0.05 * 0.95 g + 0.05 g, along g.

    The scale does not matter.
    """
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(32, 64))
    before = weight.detach().clone()
    weight.grad = torch.randn(32, 64)
    Muon([{"params": [weight], "lr": 0.5, "weight_decay": 0.1, "orthogonal": True}]).step()
    step = 0.5 * 0.2 * 8 * orthogonalized(weight.grad[None])[0]  # 8: root of the longer side
    expected = (1 - 0.5 * 0.1) * before - step
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_is_stepped_like_the_matrix_of_its_outputs():
    torch.manual_seed(0)
    conv = nn.Parameter(torch.randn(32, 8, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(conv.detach().reshape(32, 72).clone())
    group = {"params": [conv, matrix], "lr": 0.1, "weight_decay": 0.0, "orthogonal": True}
    optimizer = Muon([group])
    for _ in range(3):
        conv.grad = torch.randn(32, 8, 3, 3)
        matrix.grad = conv.grad.reshape(32, 72)
        optimizer.step()
    torch.testing.assert_close(conv.detach().reshape(32, 72), matrix.detach())


def test_vectors_take_the_steps_of_adamw():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((5,), (3, 4), (2,))]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = Muon([{"params": ours, **settings}]), torch.optim.AdamW(theirs, **settings)
    for _ in range(4):
        for mine, other in zip(ours[:2], theirs, strict=False):  # the last one never has a gradient
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_saved_optimizer_resumes_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = redetr.build("redetr_n", 2, backbone=[32, 32, 64], hidden_dim=32, dec_layers=1)
    optimizer = build_optimizer(model, 1e-3, 1e-3, 0.01, "muon")
    gradients = [torch.randn_like(p) for p in model.parameters()]

    def step(net: nn.Module, its_optimizer: torch.optim.Optimizer) -> None:
        for p, gradient in zip(net.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        its_optimizer.step()

    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(model)
    other = build_optimizer(resumed, 1e-3, 1e-3, 0.01, "muon")
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    step(model, optimizer)
    step(resumed, other)
    for continued, loaded in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(continued, loaded)


def test_a_loaded_count_of_steps_goes_to_the_device_of_the_weights():
    """Checkpoints are read to the host; the fused AdamW of a GPU wants the count on the GPU."""
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    before = Muon([{"params": [p], "lr": 0.1, "weight_decay": 0.0}])
    before.step()
    on_device = nn.Parameter(torch.zeros(3, device="meta"))
    after = Muon([{"params": [on_device], "lr": 0.1, "weight_decay": 0.0}])
    after.load_state_dict(before.state_dict())
    assert {value.device.type for value in after.state[on_device].values()} == {"meta"}


def test_which_parameters_are_matrices():
    with torch.device("meta"):
        model = redetr.build("redetr_mobile", 40)
    names = {id(p): name for name, p in model.named_parameters()}
    orthogonal = set()
    for group in param_groups(model, 1e-3, 1e-4, 0.01, "muon"):
        if group["orthogonal"]:
            orthogonal |= {names[id(p)] for p in group["params"]}
    assert "decoder.0.self_attn.in_proj_weight" in orthogonal
    assert "decoder.2.linear1.weight" in orthogonal
    assert "decoder.1.cross_attn.sampling_offsets.weight" in orthogonal
    assert "neck.fuse8.0.weight" in orthogonal
    assert "bbox_embed.0.layers.2.weight" not in orthogonal  # 4 rows
    for name in orthogonal:
        assert "class_embed" not in name
        assert "query_embed" not in name
        assert "norm" not in name
        assert not name.endswith("bias")

    depthwise = set()
    for name, module in model.backbone[0].named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            depthwise.add(f"backbone.0.{name}.weight")
    assert depthwise & set(names.values())
    assert not depthwise & orthogonal

    for group in param_groups(model, 1e-3, 1e-4, 0.01, "adamw"):
        assert not group["orthogonal"]
