"""GroupNorm in bf16."""

import torch
import torch.nn.functional as F

import redetr
from redetr.models.group_norm import GroupNorm


def maps(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 6, 5, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def test_bf16_has_the_gradients_of_fp32():
    norm = GroupNorm(8, 16)
    x = maps(torch.bfloat16).requires_grad_()
    y = norm(x)
    in_fp32 = F.group_norm(x.float(), 8, norm.weight, norm.bias, norm.eps)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, in_fp32.bfloat16())
    upstream = maps(torch.bfloat16).cos()
    inputs = (x, norm.weight, norm.bias)
    gradients = torch.autograd.grad(y, inputs, upstream)
    of_fp32 = torch.autograd.grad(in_fp32, inputs, upstream.float())
    for gradient, expected in zip(gradients, of_fp32, strict=True):
        assert torch.equal(gradient, expected)


def test_bf16_is_computed_in_fp32(monkeypatch):
    dtypes = []

    def watched(x: torch.Tensor, *settings: object) -> torch.Tensor:
        dtypes.append(x.dtype)
        return x

    monkeypatch.setattr(F, "group_norm", watched)
    GroupNorm(8, 16)(maps(torch.bfloat16))
    assert dtypes == [torch.float32]


def test_bf16_is_close_to_that_of_pytorch():
    norm = GroupNorm(8, 16)
    x = maps(torch.bfloat16)
    of_pytorch = F.group_norm(x, 8, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), of_pytorch)


def test_fp32_is_that_of_pytorch():
    norm = GroupNorm(8, 16)
    x = maps(torch.float32)
    assert torch.equal(norm(x), F.group_norm(x, 8, norm.weight, norm.bias, norm.eps))


def test_models_have_no_other_group_norm():
    models = [
        redetr.build("redetr_n", 3),
        redetr.build("redetr_n", 3, masks=True),
        redetr.build("detr_r50_panoptic", 3),
    ]
    for model in models:
        norms = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert norms
        assert all(isinstance(norm, GroupNorm) for norm in norms)
