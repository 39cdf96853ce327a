"""Edges of boxes as distributions over bins, by hand."""

import math

import pytest
import torch
from torch import Tensor

from redetr.edges import (
    Edges,
    between_values,
    bin_values,
    distillation_sums,
    localization_sums,
    move_edges,
    moves_between,
)
from redetr.losses import (
    SetCriterion,
    decoder_predictions,
    distillation_denominators,
    noisy_denominators,
)
from redetr.structures import LossConfig

CONFIG = LossConfig(
    scores="sigmoid", cost_class=2.0, loss_fgl=0.15, loss_ddf=1.5, loss_ddn=1.5, reg_scale=4.0
)
BINS = 8


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values_of_the_bins():
    """8 bins up to 2: the third power of the ratio is 3, and the ends are twice as far."""
    first, second = 3 ** (1 / 3) - 1, 3 ** (2 / 3) - 1
    expected = double(-4, -2, -second, -first, 0, first, second, 2, 4)
    torch.testing.assert_close(bin_values(double(2), 8), expected)
    published = bin_values(double(0.5 * 4), 32)
    assert len(published) == 33
    assert (published[1:] > published[:-1]).all()


def test_edges_move_outwards():
    """Moves are in sizes of the box / 4: 0.4 wide and 0.2 high, an edge moves by 0.1 or 0.05."""
    boxes = double(0.5, 0.5, 0.4, 0.2)
    torch.testing.assert_close(move_edges(boxes, torch.zeros(4).double(), 4), boxes)
    moved = move_edges(boxes, double(1, 0, -1, 2), 4)
    left, top, right, bottom = 0.3 - 0.1, 0.4, 0.7 - 0.1, 0.6 + 0.1
    width, height = right - left, bottom - top
    torch.testing.assert_close(moved, double(left + width / 2, top + height / 2, width, height))


def test_moves_between_boxes_are_what_moves_them():
    generator = torch.Generator().manual_seed(0)
    boxes, others = 0.2 + 0.6 * torch.rand(2, 50, 4, generator=generator, dtype=torch.float64)
    moves = moves_between(boxes, others, 8)
    torch.testing.assert_close(move_edges(boxes, moves, 8), others)


def test_between_values():
    values = double(-4, -2, 0, 1, 4)
    lower, share = between_values(double(-9, -4, -2.5, 0, 0.25, 3, 4, 9), values)
    assert lower.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]
    torch.testing.assert_close(share, double(0, 0, 0.75, 0, 0.25, 2 / 3, 1, 1))


def flat_edges(layers: int = 2, num_queries: int = 3) -> Edges:
    """Every bin is as likely, and all first boxes are the middle of the image."""
    logits = torch.zeros(layers, 1, num_queries, 4, BINS + 1, dtype=torch.float64)
    first_boxes = double(0.5, 0.5, 0.2, 0.2).repeat(1, num_queries, 1)
    return Edges(logits, first_boxes)


def test_localization_by_hand():
    """Only the left edge moves: by 0.05, a quarter of the width, which is 1 of the values.

    It lies between the values 0.442 and 1.080. Query 1 prefers the first of them by a logit.
    """
    edges = flat_edges()
    edges.logits[0, 0, 1, 0, BINS // 2 + 1] = 1.0
    queries = torch.tensor([[[1, 3]], [[0, 3]]])  # the second object has no query
    boxes = torch.tensor([[[0.475, 0.5, 0.25, 0.2], [0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    iou = torch.tensor([[[0.8, 0.0]], [[0.5, 0.0]]], dtype=torch.float64)
    sums = localization_sums(edges, queries, boxes, iou, reg_scale=4.0)
    smaller, larger = 3 ** (1 / 3) - 1, 3 ** (2 / 3) - 1
    right_share = (1 - smaller) / (larger - smaller)
    flat = math.log(9)
    peaked = math.log(8 + math.e)  # of a logit of 0
    left_edge = (1 - right_share) * (peaked - 1) + right_share * peaked
    expected = double(0.8 * (left_edge + 3 * flat), 0.5 * 4 * flat)
    torch.testing.assert_close(sums, expected)


def test_distillation_by_hand():
    """The last layer is sure of the left edge of query 0, which has an object with IoU 0.5 in the
    first layer, and of query 2, which has none and a best score of 0.25."""
    edges = flat_edges()
    edges.logits[1, 0, [0, 2], 0, 0] = 5 * math.log(2)  # at temperature 5, twice as likely
    queries = torch.tensor([[[0]], [[1]]])
    iou = torch.tensor([[[0.5]], [[0.9]]], dtype=torch.float64)
    class_logits = torch.full((1, 3, 2), -9.0, dtype=torch.float64)
    class_logits[0, 2, 1] = math.log(1 / 3)
    of_matched, of_others = distillation_sums(edges, class_logits, queries, iou)
    twice, once = 2 / 10, 1 / 10
    divergence = 25 * (twice * math.log(twice * 9) + 8 * once * math.log(once * 9))
    torch.testing.assert_close(of_matched, double(0.5 * divergence))
    torch.testing.assert_close(of_others, double(0.25 * divergence))


def test_the_last_layer_is_not_taught_by_the_first():
    edges = flat_edges()
    edges.logits[0, 0, 0, 0, 0] = 2.0
    edges.logits.requires_grad_()
    queries = torch.zeros(2, 1, 0, dtype=torch.int64)
    sums = distillation_sums(edges, torch.zeros(1, 3, 2).double(), queries, queries.double())
    torch.stack(sums).sum().backward()
    assert edges.logits.grad[0].any() and not edges.logits.grad[1].any()


def test_divisors_of_distillation_by_hand():
    """Means over 4 and 36 edges, weighted by 2 and 6: (A / 4 * 2 + B / 36 * 6) / 8."""
    of_matched, of_others = distillation_denominators(double(1), double(9))
    torch.testing.assert_close(1 / of_matched, double(2 / 4 / 8))
    torch.testing.assert_close(1 / of_others, double(6 / 36 / 8))
    without, everything = distillation_denominators(double(0), double(9))
    assert (without.item(), everything.item()) == (1, 36)  # a mean over all edges


def test_divisors_of_noisy_queries_by_hand():
    """As many with an object as without: half of each mean over 4 edges of 3 queries."""
    boxes, classes, of_matched, of_others = noisy_denominators(double(3, 5, 7, 9))
    assert (boxes, classes) == (3, 5)
    assert of_matched == of_others == 2 * 4 * 3
    same, _ = distillation_denominators(double(3), double(3))
    assert same == of_matched


def random_outputs(num_images: int) -> dict:
    generator = torch.Generator().manual_seed(0)

    def layer(with_edges: bool) -> dict:
        def random(*shape: int) -> Tensor:
            return torch.rand(num_images, 5, *shape, generator=generator, dtype=torch.float64)

        outputs = {"pred_logits": random(3), "pred_boxes": 0.2 + 0.4 * random(4)}
        if with_edges:
            outputs["edge_logits"] = random(4 * (BINS + 1))
            outputs["first_boxes"] = first_boxes
        return outputs

    first_boxes = 0.2 + 0.4 * torch.rand(num_images, 5, 4, generator=generator).double()
    outputs = layer(True)
    outputs["pre_outputs"] = layer(False)
    outputs["aux_outputs"] = [layer(True), layer(True)]
    return outputs


def targets_of(counts: list[int]) -> list:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        labels = torch.randint(3, (count,), generator=generator)
        boxes = 0.2 + 0.3 * torch.rand(count, 4, generator=generator, dtype=torch.float64)
        targets.append({"labels": labels, "boxes": boxes})
    return targets


def test_names_and_weights_of_the_losses():
    """Three layers, of which the last teaches the two others, and first boxes without edges."""
    outputs, targets = random_outputs(2), targets_of([2, 1])
    losses = SetCriterion(CONFIG, num_classes=3, num_queries=5)(outputs, targets)
    by_term = {}
    for name in losses:
        by_term.setdefault("_".join(name.split("_")[:2]), []).append(name)
    assert by_term["loss_ce"] == ["loss_ce_pre", "loss_ce_0", "loss_ce_1", "loss_ce"]
    assert by_term["loss_fgl"] == ["loss_fgl_0", "loss_fgl_1", "loss_fgl"]
    assert by_term["loss_ddf"] == ["loss_ddf_0", "loss_ddf_1"]
    assert by_term["loss_ddn"] == ["loss_ddn_0", "loss_ddn_1"]
    weights = {"ce": 1, "bbox": 5, "giou": 2, "fgl": 0.15, "ddf": 1.5, "ddn": 1.5}
    total = sum(weight * losses[n] for t, weight in weights.items() for n in by_term[f"loss_{t}"])
    torch.testing.assert_close(losses["loss"], total)
    assert len(decoder_predictions(outputs).edges.logits) == 3


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("counts", [[0, 3, 1, 0, 7, 2], [0] * 6])
def test_losses_of_the_parts_add_up_to_that_of_the_whole(counts, world_size, accumulate):
    outputs, targets = random_outputs(6), targets_of(counts)
    criterion = SetCriterion(CONFIG, num_classes=3, num_queries=5)
    whole = criterion(outputs, targets)
    window = criterion.counts(targets)
    size = 6 // (world_size * accumulate)
    sums = dict.fromkeys(whole, torch.zeros((), dtype=torch.float64))
    for start in range(0, 6, size):
        part = slice(start, start + size)

        def cut(layer: dict, part: slice = part) -> dict:
            tensors = {}
            for key, value in layer.items():
                if isinstance(value, Tensor):
                    tensors[key] = value[part]
            return tensors

        part_outputs = cut(outputs)
        part_outputs["pre_outputs"] = cut(outputs["pre_outputs"])
        part_outputs["aux_outputs"] = [cut(layer) for layer in outputs["aux_outputs"]]
        counts_here = criterion.counts(targets[part])
        divisors = criterion.denominators(counts_here, window, world_size, accumulate)
        for name, loss in criterion(part_outputs, targets[part], divisors).items():
            sums[name] = sums[name] + loss / world_size
    torch.testing.assert_close(sums, whole, rtol=1e-12, atol=1e-15)
