"""Linear layers as convolutions: the same numbers and gradients, and where they are not used."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import linear as matrix_product
from torch.profiler import ProfilerActivity, profile

from redetr.models.linear import Linear, linear


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def is_convolution(layer: Any, x: torch.Tensor) -> bool:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        layer(x)
    return any(event.key == "aten::convolution" for event in profiler.key_averages())


def inputs() -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Linear(24, 40), torch.randn(2, 50, 24)


def test_the_same_numbers_and_gradients_as_a_matrix_product():
    layer, x = inputs()
    x.requires_grad_()
    assert is_convolution(layer, x) == torch.backends.mkldnn.is_available()
    given = layer(x)
    expected = matrix_product(x, layer.weight, layer.bias)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert given.is_contiguous() and given.shape == (2, 50, 40)
    cotangent = torch.randn(2, 50, 40)
    leaves = (x, layer.weight, layer.bias)
    gradients = torch.autograd.grad(given, leaves, cotangent)
    expected_gradients = torch.autograd.grad(expected, leaves, cotangent)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-4)


def test_without_a_bias():
    layer, x = inputs()
    expected = matrix_product(x, layer.weight)
    torch.testing.assert_close(linear(x, layer.weight), expected, rtol=0, atol=1e-5)


def test_other_precisions_and_shapes_are_matrix_products():
    layer, x = inputs()
    assert not is_convolution(layer.double(), x.double())
    layer.float()
    assert not is_convolution(layer, x[0])
    assert not is_convolution(layer, torch.randn(2, 24, 50).mT)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_convolution(layer, x)
    torch.set_num_threads(1)
    assert not is_convolution(layer, x)


def test_nothing_makes_nothing():
    layer, x = inputs()
    assert layer(x[:, :0]).shape == (2, 0, 40)
    assert layer(x[:0]).shape == (0, 50, 40)


def test_an_exported_layer_is_a_matrix_product():
    layer, x = inputs()
    program = torch.export.export(layer, (x,))
    operators = {str(node.target) for node in program.graph.nodes}
    assert "aten.linear.default" in operators and not any("conv" in name for name in operators)
