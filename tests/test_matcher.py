"""Matching against brute force, and the cases with too few, too many or no objects."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redetr.losses import SetCriterion
from redetr.matcher import assign, cost_matrix, match
from redetr.structures import LossConfig


def cheapest(cost: np.ndarray) -> float:
    """The least sum of `cost` `[Q, T]` over all ways to give the objects different queries.

    With fewer queries than objects, all ways to give the queries different objects.
    """
    queries, objects = cost.shape
    if queries < objects:
        return cheapest(cost.T)
    columns = np.arange(objects)
    totals = []
    for rows in permutations(range(queries), objects):
        totals.append(cost[list(rows), columns].sum())
    return min(totals)


@pytest.mark.parametrize("objects", [1, 2, 3, 6])
@pytest.mark.parametrize("queries", [1, 2, 5, 7])
def test_no_assignment_is_cheaper(queries, objects):
    random = np.random.default_rng(queries * 10 + objects)
    cost = random.normal(size=(2, 3, queries, objects))
    chosen = assign(cost, [objects] * 3)
    assert chosen.shape == (2, 3, objects)
    for layer in range(2):
        for image in range(3):
            rows = chosen[layer, image]
            matched = rows < queries
            assert matched.sum() == min(queries, objects)
            assert len(set(rows[matched])) == matched.sum()  # no query answers for two objects
            assert (rows[~matched] == queries).all()
            columns = np.flatnonzero(matched)
            total = cost[layer, image, rows[matched], columns].sum()
            assert total == pytest.approx(cheapest(cost[layer, image]))


def test_by_hand():
    # Query 1 is best for both objects; the cheapest sum is 1 + 2 = 3, not 0 + 9.
    cost = np.array([[[[1.0, 9.0], [0.0, 2.0], [5.0, 9.0]]]])
    assert assign(cost, [2]).tolist() == [[[0, 1]]]


def test_padded_objects_are_not_matched():
    cost = np.zeros((1, 2, 4, 3))
    # The first image has one object; its other two columns are padding of cost 0.
    cost[0, 0, :, 0] = [3, 1, 2, 3]
    assert assign(cost, [1, 3])[0, 0].tolist() == [1, 4, 4]


def test_more_objects_than_queries_matches_the_cheapest_ones():
    cost = np.array([[[[5.0, 1.0, 3.0], [5.0, 3.0, 2.0]]]])
    assert assign(cost, [3]).tolist() == [[[2, 0, 1]]]  # 2 stands for "no query"


def test_images_without_objects():
    cost = torch.rand(2, 3, 4, 2)
    (chosen,) = match([cost], [0, 2, 0])
    assert (chosen[:, [0, 2]] == 4).all()
    assert (chosen[:, 1] < 4).all()
    (nothing,) = match([torch.rand(2, 3, 4, 0)], [0, 0, 0])
    assert nothing.shape == (2, 3, 0)


def test_several_sets_of_predictions_are_matched_together():
    costs = [torch.rand(3, 2, 5, 4), torch.rand(1, 2, 9, 4)]
    together = match(costs, [4, 2])
    apart = [match([cost], [4, 2])[0] for cost in costs]
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert [chosen.shape for chosen in together] == [(3, 2, 4), (1, 2, 4)]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_predictions_that_are_not_finite_do_not_stop_the_matcher(broken, scores):
    config = LossConfig(scores=scores)
    logits = torch.zeros(1, 1, 3, 4)
    boxes = torch.full((1, 1, 3, 4), 0.5)
    logits[0, 0, 0] = broken
    boxes[0, 0, 1] = broken
    labels = torch.zeros(1, 2, dtype=torch.long)
    target_boxes = torch.full((1, 2, 4), 0.5)
    cost = cost_matrix(logits, boxes, labels, target_boxes, config)
    assert cost.isfinite().all()
    (chosen,) = match([cost], [2])
    assert len(set(chosen.flatten().tolist())) == 2


def test_costs_by_hand():
    # Probabilities (0.25, 0.75) for (class 0, no object); the boxes are those of the GIoU example
    # "apart".
    logits = torch.tensor([0.0, np.log(3.0)]).expand(1, 1, 1, 2)
    boxes = torch.tensor([1.0, 1.0, 2.0, 2.0]).expand(1, 1, 1, 4)
    labels = torch.zeros(1, 1, dtype=torch.long)
    target_boxes = torch.tensor([5.0, 1.0, 2.0, 2.0]).expand(1, 1, 4)
    cost = cost_matrix(logits, boxes, labels, target_boxes, LossConfig())
    assert cost.item() == pytest.approx(-0.25 + 5 * 4 + 2 * 4 / 12)

    # p = 0.5: focal cost 0.25 * 0.25 * ln 2 - 0.75 * 0.25 * ln 2 = -0.125 ln 2
    config = LossConfig(scores="sigmoid", cost_class=2, cost_bbox=0, cost_giou=0)
    cost = cost_matrix(torch.zeros(1, 1, 1, 1), boxes, labels, target_boxes, config)
    assert cost.item() == pytest.approx(-2 * 0.125 * np.log(2), rel=1e-5)


class HostReads(TorchDispatchMode):
    """Collects the operations, other than copies, that wait for an accelerator.

    These are the ones that read values out of tensors.
    """

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        operation = func.overloadpacket
        waits = operation in (
            aten._local_scalar_dense,
            aten.nonzero,
            aten.masked_select,
            aten.is_nonzero,
            aten.equal,
            aten._unique2,
            aten.unique_dim,
            aten.bincount,
        )
        if operation in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            indices = [index for index in args[1] if index is not None]
            waits = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if waits:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[x > 1],
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: x.nonzero(),
    ],
)
def test_host_reads_are_noticed(read):
    with HostReads() as reads:
        read(torch.arange(4.0))
    assert reads.names


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_step_reads_the_device_once(monkeypatch, scores):
    """One `.cpu()` for all layers and images; nothing else would wait for an accelerator."""
    copies = []
    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.shape) or to_host(self))
    config = LossConfig(scores=scores, proposals=scores == "sigmoid")
    layers = []
    for _ in range(4):
        logits = torch.randn(2, 6, 4, requires_grad=True)
        layers.append({"pred_logits": logits, "pred_boxes": torch.rand(2, 6, 4)})
    outputs = {**layers[-1], "aux_outputs": layers[:-1], "enc_outputs": layers[0]}
    targets = [
        {"labels": torch.tensor([0, 2]), "boxes": torch.rand(2, 4)},
        {"labels": torch.tensor([1]), "boxes": torch.rand(1, 4)},
    ]
    criterion = SetCriterion(config, num_classes=4 if scores == "sigmoid" else 3, num_queries=6)
    with HostReads() as reads:
        criterion(outputs, targets)["loss"].backward()
    assert len(copies) == 1
    assert reads.names == []
