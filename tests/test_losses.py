"""The set loss: values worked by hand, and counts that are right before the forward pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redetr.losses import SetCriterion
from redetr.structures import LossConfig

SOFTMAX = LossConfig()
SIGMOID = LossConfig(scores="sigmoid", cost_class=2.0)
PREDICTIONS = ("pred_logits", "pred_boxes")
TERMS = ("loss_ce", "loss_bbox", "loss_giou")


def criterion_of(
    config: LossConfig = SOFTMAX, num_classes: int = 3, num_queries: int = 4, **options
) -> SetCriterion:
    return SetCriterion(config, num_classes, num_queries, **options)


def target(
    labels: list[int], boxes: list[tuple[float, ...]] | None = None, dtype=torch.float32
) -> dict[str, Tensor]:
    """The objects of an image; by default they are all at the same position."""
    if boxes is None:
        boxes = [(0.5, 0.5, 0.2, 0.2)] * len(labels)
    return {
        "labels": torch.tensor(labels, dtype=torch.long),
        "boxes": torch.tensor(boxes, dtype=dtype).view(-1, 4),
    }


def random_outputs(
    batch: int, queries: int, columns: int, layers: int = 1, dtype=torch.float32
) -> dict:
    """Outputs of a model whose logits and boxes are leaves."""
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(layers):
        scores = torch.rand(batch, queries, columns, generator=generator, dtype=dtype)
        boxes = torch.rand(batch, queries, 4, generator=generator, dtype=dtype)
        layer = {
            "pred_logits": (4 * scores - 2).requires_grad_(),
            "pred_boxes": (0.2 + 0.3 * boxes).requires_grad_(),
        }
        outputs.append(layer)
    return {**outputs[-1], "aux_outputs": outputs[:-1]}


@pytest.mark.parametrize(
    ("labels", "boxes", "said"),
    [
        ([3], [[0.5] * 4], "labels range from 0 to 3, but a model with 3 classes takes 0 to 2"),
        ([-1, 2], [[0.5] * 4] * 2, "labels range from -1 to 2"),
        (
            [1],
            [[10.0, 20.0, 30.0, 480.0]],
            "a box has the coordinate 480: boxes must be cxcywh as fractions",
        ),
        ([1, 2], [[0.5] * 4], r"target 1: labels \[2\] and boxes \[1, 4\], expected \[T\] and"),
        ([], [], r"target 1: labels \[0\] and boxes \[0\]"),
        ([1.0], [[0.5] * 4], "target 1: labels are torch.float32, expected int64"),
    ],
)
@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID])
def test_targets_that_cannot_be_meant_are_refused(config, labels, boxes, said):
    """The label 3 would count as "no object", or as class 0 of the next query."""
    odd = {"labels": torch.tensor(labels), "boxes": torch.tensor(boxes)}
    if not labels:
        odd["labels"] = odd["labels"].long()
    outputs = random_outputs(2, 4, 3 + (config is SOFTMAX))
    with pytest.raises(ValueError, match=said):
        criterion_of(config)(outputs, [target([0]), odd])


def test_outputs_without_the_proposals_that_are_judged_are_refused():
    criterion = criterion_of(LossConfig(scores="sigmoid", proposals=True))
    with pytest.raises(ValueError, match="set aux_loss of the model to True"):
        criterion(random_outputs(1, 4, 3), [target([1])])


def test_labels_of_any_whole_numbers_and_boxes_of_whole_numbers():
    outputs = random_outputs(1, 4, 4)
    labels, boxes = torch.tensor([1, 2]), torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]])
    expected = criterion_of()(outputs, [{"labels": labels, "boxes": boxes.float()}])
    losses = criterion_of()(outputs, [{"labels": labels.int(), "boxes": boxes}])
    assert losses["loss"] == expected["loss"]


def random_targets(counts: list[int], dtype=torch.float32) -> list[dict[str, Tensor]]:
    """Objects of classes 0 to 2, that many in each image."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        labels = torch.randint(3, (count,), generator=generator)
        boxes = 0.2 + 0.3 * torch.rand(count, 4, generator=generator, dtype=dtype)
        targets.append({"labels": labels, "boxes": boxes})
    return targets


def leaves(outputs: dict) -> list[Tensor]:
    """All tensors of `random_outputs`."""
    tensors = []
    for layer in [*outputs["aux_outputs"], outputs]:
        tensors += [layer["pred_logits"], layer["pred_boxes"]]
    return tensors


class TestWorkedExample:
    """Two objects; queries 17 and 33 of 100 answer for them, at L1 distances of 0.25 and 0.30."""

    targets = [target([0, 1], [(0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)])]
    counts_elsewhere = target([0, 0, 1, 1])

    def outputs(self) -> dict:
        boxes = torch.tensor([0.05, 0.95, 0.02, 0.02]).repeat(1, 100, 1)
        boxes[0, 17] = torch.tensor([0.3 + 0.10, 0.3 - 0.05, 0.2 + 0.06, 0.2 - 0.04])  # 0.25
        boxes[0, 33] = torch.tensor([0.7 - 0.10, 0.7 + 0.10, 0.2 + 0.05, 0.2 + 0.05])  # 0.30
        return {"pred_logits": torch.zeros(1, 100, 4), "pred_boxes": boxes.requires_grad_()}

    def test_alone(self):
        losses = criterion_of(num_queries=100)(self.outputs(), self.targets)
        assert losses["loss_bbox"].item() == pytest.approx(0.55 / 2)
        assert 0.55 / 2 == 0.275

    def test_beside_a_rank_with_four_objects(self):
        criterion = criterion_of(num_queries=100)
        here = criterion.counts(self.targets)
        there = criterion.counts([self.counts_elsewhere])
        divisors = criterion.denominators(here, here + there, world_size=2)
        losses = criterion(self.outputs(), self.targets, divisors)
        assert losses["loss_bbox"].item() == pytest.approx(0.55 / 3)

    def test_the_mean_over_ranks_is_the_loss_of_all_six_objects(self):
        criterion = criterion_of(num_queries=100)
        outputs = self.outputs()
        here = criterion.counts(self.targets)
        there = criterion.counts([self.counts_elsewhere])
        divisors = criterion.denominators(here, here + there, world_size=2)
        losses = criterion(outputs, self.targets, divisors)
        losses["loss_bbox"].backward()
        averaged_over_ranks = outputs["pred_boxes"].grad / 2
        # the raw sum of |difference| has a slope of 1 per coordinate, divided by six objects
        assert averaged_over_ranks[0, 17].tolist() == pytest.approx([1 / 6, -1 / 6, 1 / 6, -1 / 6])
        assert averaged_over_ranks[0, 0].tolist() == [0, 0, 0, 0]


def test_class_loss_by_hand():
    """Every query counts; unmatched ones as 0.1. Query 1 is at the object, of class 2 of 3."""
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]]])
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    losses = criterion_of(num_queries=3)(outputs, [target([2])])
    matched = math.log(3 + math.e) - 1
    unmatched = math.log(4) + math.log(3 + math.e**2) - 2
    assert losses["loss_ce"].item() == pytest.approx((matched + 0.1 * unmatched) / (1 + 0.2))
    assert losses["loss_bbox"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-6)


def test_every_query_counts_also_where_there_are_fewer_than_the_model_has():
    """With equal scores, the loss is log 4 for any number of queries."""
    outputs = {"pred_logits": torch.zeros(1, 5, 4), "pred_boxes": torch.full((1, 5, 4), 0.5)}
    losses = criterion_of(num_queries=100)(outputs, [target([2])])
    assert losses["loss_ce"].item() == pytest.approx(math.log(4))


def test_box_losses_and_total_by_hand():
    """Boxes (0, 0, 0.2, 0.2) and (0.4, 0, 0.6, 0.2): L1 0.4; union 0.08, hull 0.12, GIoU -1/3."""
    outputs = {
        "pred_logits": torch.zeros(1, 1, 4),
        "pred_boxes": torch.tensor([[[0.1, 0.1, 0.2, 0.2]]]),
    }
    wanted = target([0], [(0.5, 0.1, 0.2, 0.2)])
    losses = criterion_of(num_queries=1)(outputs, [wanted])
    loss_ce, loss_bbox, loss_giou = math.log(4), 0.4, 1 + 1 / 3
    assert losses["loss_bbox"].item() == pytest.approx(loss_bbox)
    assert losses["loss_giou"].item() == pytest.approx(loss_giou)
    total = loss_ce + 5 * loss_bbox + 2 * loss_giou
    assert losses["loss"].item() == pytest.approx(total, rel=1e-6)


def test_sigmoid_loss_by_hand():
    """Towards IoU^1.5 at the matched score; the rest towards 0, weighted by p^1.5.

    The sum is divided by the number of boxes.
    """
    logits = torch.tensor([[[1.0, -1.0], [0.5, -3.0]]])
    # overlap 0.1 x 0.2, union 0.08 - 0.02: IoU 1/3
    boxes = torch.tensor([[[0.4, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    criterion = criterion_of(SIGMOID, num_classes=2, num_queries=2)
    losses = criterion({"pred_logits": logits, "pred_boxes": boxes}, [target([0])])

    def softplus(x):
        return math.log1p(math.exp(x))

    def pushed_down(x):
        score = 1 / (1 + math.exp(-x))
        return score**1.5 * softplus(x)

    goal = (1 / 3) ** 1.5
    matched = goal * softplus(-1.0) + (1 - goal) * softplus(1.0)
    expected = matched + pushed_down(-1.0) + pushed_down(0.5) + pushed_down(-3.0)
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_varifocal_loss_by_hand():
    """Two of three queries are left over; the IoU of the third is 1/2, its goal and its weight."""
    logits = torch.tensor([[[0.0, -9.0], [1.0, -9.0], [-1.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]]])
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    config = LossConfig(scores="sigmoid", class_loss="varifocal")
    criterion = criterion_of(config, num_classes=2, num_queries=3)
    losses = criterion(outputs, [target([0], [(0.5, 0.5, 0.2, 0.1)])])
    p = 1 / (1 + math.exp(-1))
    unmatched = 0.75 * (p**2 * -math.log(1 - p) + (1 - p) ** 2 * -math.log(p))
    assert losses["loss_ce"].item() == pytest.approx(0.5 * math.log(2) + unmatched, rel=1e-5)


def test_the_goal_of_the_sigmoid_loss_is_no_reason_to_move_boxes():
    outputs = random_outputs(1, 4, 3)
    criterion_of(SIGMOID)(outputs, random_targets([2]))["loss_ce"].backward()
    assert outputs["pred_logits"].grad.abs().sum() > 0
    assert outputs["pred_boxes"].grad is None or not outputs["pred_boxes"].grad.any()


def test_encoder_proposals_are_matched_as_well():
    """Four identical proposals lie around an object: one of them answers for it."""
    config = LossConfig(scores="sigmoid", proposals=True, loss_ce=0.0)
    proposals = {
        "pred_logits": torch.zeros(1, 4, 2),
        "pred_boxes": torch.full((1, 4, 4), 0.5).requires_grad_(),
    }
    outputs = {**random_outputs(1, 2, 2), "enc_outputs": proposals}
    wanted = target([0], [(0.5, 0.5, 0.5, 0.4)])
    losses = criterion_of(config, 2, num_queries=2)(outputs, [wanted])
    assert losses["loss_bbox_enc"].item() == pytest.approx(0.1)
    losses["loss_bbox_enc"].backward()
    moved = proposals["pred_boxes"].grad[0].abs().sum(-1) > 0
    assert moved.sum() == 1


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("proposals", [False, True])
def test_names_and_total(layers, proposals):
    config = LossConfig(
        scores="sigmoid", proposals=proposals, loss_ce=1.5, loss_bbox=3.0, loss_giou=0.5
    )
    outputs = random_outputs(2, 4, 3, layers)
    outputs["enc_outputs"] = random_outputs(2, 9, 3)
    losses = criterion_of(config)(outputs, random_targets([2, 1]))
    suffixes = [""]
    suffixes += [f"_{i}" for i in range(layers - 1)]
    if proposals:
        suffixes.append("_enc")
    names = {"loss"}
    total = torch.zeros(())
    for term, weight in {"loss_ce": 1.5, "loss_bbox": 3.0, "loss_giou": 0.5}.items():
        for suffix in suffixes:
            names.add(term + suffix)
            total = total + weight * losses[term + suffix]
    assert losses.keys() == names
    torch.testing.assert_close(losses["loss"], total)


def test_each_layer_is_matched_and_measured_on_its_own():
    outputs = random_outputs(2, 4, 4, layers=3)
    targets = random_targets([3, 2])
    together = criterion_of()(outputs, targets)
    layers = [*outputs["aux_outputs"], outputs]
    for layer, suffix in zip(layers, ["_0", "_1", ""], strict=True):
        predictions = {name: layer[name] for name in PREDICTIONS}
        alone = criterion_of()(predictions, targets)
        for term in TERMS:
            torch.testing.assert_close(together[term + suffix], alone[term])


@pytest.mark.parametrize(
    "config", [SOFTMAX, SIGMOID, LossConfig(eos_coef=0.0)], ids=["softmax", "sigmoid", "no eos"]
)
@pytest.mark.parametrize(
    "counts", [[0, 0], [0, 2], [9, 0]], ids=["no objects", "one empty image", "too many objects"]
)
def test_finite_and_connected_whatever_the_objects(config, counts):
    columns = 4 if config.scores == "softmax" else 3
    outputs = random_outputs(2, 4, columns, layers=2)
    losses = criterion_of(config)(outputs, random_targets(counts))
    losses["loss"].backward()
    assert torch.stack(list(losses.values())).isfinite().all()
    for leaf in leaves(outputs):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    if sum(counts) == 0:
        assert losses["loss_bbox"] == losses["loss_giou"] == 0


def test_more_objects_than_queries_are_all_counted():
    """Six objects at one position, four queries 0.1 beside it.

    The loss is four L1 distances, divided by six boxes.
    """
    outputs = {
        "pred_logits": torch.zeros(1, 4, 4),
        "pred_boxes": torch.tensor([0.6, 0.5, 0.2, 0.2]).repeat(1, 4, 1),
    }
    losses = criterion_of()(outputs, [target([0] * 6)])
    assert losses["loss_bbox"].item() == pytest.approx(4 * 0.1 / 6)
    # All four queries are matched, with weights of 1.
    assert losses["loss_ce"].item() == pytest.approx(math.log(4))


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_counts_are_known_before_the_forward_pass(counts):
    """Uniform scores cost ln(C + 1) each.

    So the weighted mean is that exactly if the weights add up to the count.
    """
    criterion = criterion_of(num_queries=4)
    targets = random_targets(counts)
    matched = sum(min(4, n) for n in counts)
    unmatched = 4 * len(counts) - matched
    assert criterion.counts(targets).tolist() == [sum(counts), matched, unmatched]
    outputs = {
        "pred_logits": torch.zeros(len(counts), 4, 4),
        "pred_boxes": torch.rand(len(counts), 4, 4),
    }
    assert criterion(outputs, targets)["loss_ce"].item() == pytest.approx(math.log(4), rel=1e-5)


@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_clamped_after_the_sum_over_ranks(config):
    """Three boxes on eight ranks are 3/8 of a box per rank, not one."""
    criterion = criterion_of(config)
    here = criterion.counts(random_targets([1]))
    window = criterion.counts(random_targets([1, 1, 1, 0, 0, 0, 0, 0]))
    assert criterion.denominators(here, window, world_size=8)[0].item() == pytest.approx(3 / 8)
    nothing = criterion.counts(random_targets([0]))
    divisors = criterion.denominators(nothing, 8 * nothing, world_size=8)
    assert divisors[0].item() == pytest.approx(1 / 8)
    if config.scores == "softmax":
        class_count = 8 * 4 * 0.1  # 8 images of 4 queries, all unmatched
    else:
        class_count = 1  # boxes, at least 1
    assert divisors[1].item() == pytest.approx(class_count / 8)


COUNTS = [0, 3, 1, 0, 6, 2]


@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID, LossConfig(scores="sigmoid", proposals=True)])
@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 1), (1, 3), (3, 2)])
def test_losses_of_the_parts_add_up_to_that_of_the_whole(config, world_size, accumulate):
    """The mean over ranks of the sum over micro-batches, for every term."""
    columns = 4 if config.scores == "softmax" else 3
    outputs = random_outputs(6, 4, columns, dtype=torch.float64)
    proposals = random_outputs(6, 7, 3, dtype=torch.float64)
    targets = random_targets(COUNTS, torch.float64)
    criterion = criterion_of(config)
    whole = criterion({**outputs, "enc_outputs": proposals}, targets)
    window = criterion.counts(targets)

    size = 6 // (world_size * accumulate)
    sums = dict.fromkeys(whole, torch.zeros((), dtype=torch.float64))
    for start in range(0, 6, size):
        part = slice(start, start + size)
        counts = criterion.counts(targets[part])
        divisors = criterion.denominators(counts, window, world_size, accumulate)
        part_outputs = {name: outputs[name][part] for name in PREDICTIONS}
        part_outputs["enc_outputs"] = {name: proposals[name][part] for name in PREDICTIONS}
        losses = criterion(part_outputs, targets[part], divisors)
        for name, loss in losses.items():
            sums[name] = sums[name] + loss / world_size
    torch.testing.assert_close(sums, whole, rtol=1e-12, atol=0)


def test_per_rank_normalisation_is_the_original_mean_of_weighted_means():
    """Two ranks have two micro-batches each.

    The class loss is the mean of the four local weighted means; box losses stay global.
    """
    criterion = criterion_of(class_normalization="per_rank")
    micro_batches = [random_targets([n]) for n in (0, 3, 1, 6)]
    window = sum(criterion.counts(targets) for targets in micro_batches)
    loss_ce = loss_bbox = 0.0
    local_means = l1_sum = 0.0
    for targets in micro_batches:
        outputs = random_outputs(1, 4, 4)
        counts = criterion.counts(targets)
        divisors = criterion.denominators(counts, window, world_size=2, accumulate=2)
        losses = criterion(outputs, targets, divisors)
        loss_ce += losses["loss_ce"] / 2  # the mean over ranks
        loss_bbox += losses["loss_bbox"] / 2

        alone = criterion_of()(outputs, targets)
        num_boxes = counts[0].item()
        local_means += alone["loss_ce"]
        l1_sum += alone["loss_bbox"] * max(1, num_boxes)
    torch.testing.assert_close(loss_ce, local_means / 4)
    torch.testing.assert_close(loss_bbox, l1_sum / 10)


def test_per_rank_sigmoid_scores_are_divided_by_the_boxes_of_the_rank():
    criterion = criterion_of(SIGMOID, class_normalization="per_rank")
    counts = criterion.counts(random_targets([2]))
    window = criterion.counts(random_targets([2, 6]))
    divisors = criterion.denominators(counts, window, world_size=2, accumulate=3)
    assert divisors[:2].tolist() == [8 / 2, 2 * 3]


def test_fp64_stays_fp64():
    """To the last digits: a weight of 0.1 rounded to fp32 would be off by 1e-8."""
    outputs = random_outputs(1, 4, 4, dtype=torch.float64)
    losses = criterion_of()(outputs, [target([], dtype=torch.float64)])
    assert all(loss.dtype == torch.float64 for loss in losses.values())
    logits = outputs["pred_logits"][0]
    expected = F.cross_entropy(logits, torch.full((4,), 3))  # all "no object": the weights cancel
    torch.testing.assert_close(losses["loss_ce"], expected, rtol=1e-12, atol=0)


def test_half_precision_is_computed_in_fp32():
    outputs = {
        "pred_logits": torch.randn(2, 4, 4).bfloat16(),
        "pred_boxes": torch.rand(2, 4, 4).bfloat16(),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion_of()(outputs, random_targets([2, 1]))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    fp32_outputs = {name: value.float() for name, value in outputs.items()}
    upcast = criterion_of()(fp32_outputs, random_targets([2, 1]))
    torch.testing.assert_close(losses, upcast)
