"""Contrastive denoising: noise and masks by hand, and nothing that depends on the rest of a batch.

tests/distributed/test_exactness.py compares its gradients over ranks and micro-batches.
"""

import json
import math
from typing import Any

import pytest
import torch
from command_line import train_arguments
from original_files import original_tensors, saved
from test_rtdetr_model import SMALL, small, start_config
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_map_only

import redetr
from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.loader import Samples
from redetr.data.transforms import resizer
from redetr.denoising import (
    NoisyQueries,
    ignored_queries,
    known_objects,
    noisy_queries,
    with_moved_edges,
    with_other_labels,
)
from redetr.distributed import Dist
from redetr.evaluation import _LossSums
from redetr.losses import NUM_DENOMINATORS, SetCriterion
from redetr.step import training_outputs
from redetr.weights.reading import read_weights
from redetr.weights.starting import start_from

GROUPS = 2
NUM_CLASSES = 3


def target(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(count)
    boxes = 0.2 + 0.4 * torch.rand(count, 4, generator=generator, dtype=dtype)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return {"labels": labels, "boxes": boxes, "seed": seed}


def test_edges_move_by_hand():
    """A positive query is off by up to half of a side, a negative one by a half to a whole."""
    box = torch.tensor([[0.5, 0.5, 0.2, 0.4]])  # edges at x 0.4 and 0.6, y 0.3 and 0.7
    outwards_and_inwards = torch.tensor([0.0, 0.9, 0.9, 0.0])  # left, top, right, bottom: - + + -
    distances = torch.tensor([0.5, 0.25, 0.0, 0.5])
    draws = torch.cat([outwards_and_inwards, distances]).repeat(1, 2, 1, 1)
    positive, negative = with_moved_edges(box, draws)[0, :, 0]
    # Left: 0.4 - 0.5 * 0.1, top: 0.3 + 0.25 * 0.2, right: 0.6, bottom: 0.7 - 0.5 * 0.2.
    torch.testing.assert_close(positive, torch.tensor([0.475, 0.475, 0.25, 0.25]))
    # One half more: left 0.25, top 0.55, right 0.7, bottom 0.4: above the top, so it has no height.
    torch.testing.assert_close(negative, torch.tensor([0.475, 0.475, 0.45, 1e-5]))


def test_edges_stay_in_the_image():
    box = torch.tensor([[0.1, 0.9, 0.2, 0.2]])
    outwards = torch.tensor([0.0, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    moved = with_moved_edges(box, outwards.repeat(1, 2, 1, 1))[0, 1, 0]
    # Right at 0.2 + 1.9 * 0.1, top at 0.8 - 1.9 * 0.1; left and bottom end at the border.
    torch.testing.assert_close(moved, torch.tensor([0.195, 0.805, 0.39, 0.39]))


def test_labels_change_by_hand():
    draws = torch.tensor([[0.1, 0.99], [0.24, 0.0], [0.25, 0.99]])  # changes below a quarter
    labels = with_other_labels(torch.tensor([0, 2, 1]), draws[None, None], num_classes=3)
    assert labels.tolist() == [[[2, 0, 1]]]


def test_how_much_noise_there_is():
    """1,000 objects in 2 groups: a quarter of the labels is drawn, of which a third stays."""
    many = target(1000, seed=1)
    many["boxes"] = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1000, 4)
    labels, boxes = noisy_queries([many], GROUPS, NUM_CLASSES)
    labels = labels.view(GROUPS, 2, 1000)
    assert (labels != many["labels"]).float().mean().item() == pytest.approx(1 / 6, abs=0.02)
    centers, sizes = boxes.view(GROUPS, 2, 1000, 4).split(2, -1)
    distance = (centers - sizes / 2 - 0.4).abs()  # of the left and the top edge
    positive, negative = distance.unbind(1)
    assert positive.max() <= 0.1
    assert positive.mean().item() == pytest.approx(0.05, abs=0.003)
    has_size = (sizes[:, 1] > 1e-5).all(-1)  # edges that crossed are no longer where they moved
    assert negative[has_size].min() >= 0.1 - 1e-6
    assert negative[has_size].max() <= 0.2


def test_noise_depends_on_the_seed_of_the_image_alone():
    two, five = target(2, seed=11), target(5, seed=12)
    labels, boxes = noisy_queries([two], GROUPS, NUM_CLASSES)
    batch_labels, batch_boxes = noisy_queries([five, two], GROUPS, NUM_CLASSES)
    labels_in_batch = batch_labels[1].view(GROUPS, 2, 5)
    assert torch.equal(labels_in_batch[..., :2].flatten(), labels[0])
    assert (labels_in_batch[..., 2:] == NUM_CLASSES).all()  # padding
    assert torch.equal(batch_boxes[1].view(GROUPS, 2, 5, 4)[:, :, :2].flatten(0, 2), boxes[0])
    other = noisy_queries([two | {"seed": 13}], GROUPS, NUM_CLASSES)
    assert not torch.equal(other.boxes, boxes)


def test_the_seed_of_an_image_follows_from_run_and_epoch(shared_coco):
    data = open_dataset(str(shared_coco), "train")
    transform = resizer(lambda height, width: (64, 64))
    seeds = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            for index in (0, 1):
                _, sample = Samples(data, transform, seed)[(epoch, index)]
                seeds.add(sample["seed"])
                _, again = Samples(data, transform, seed)[(epoch, index)]
                assert again["seed"] == sample["seed"]
    assert len(seeds) == 8


def test_who_sees_whom_by_hand():
    """One ordinary query, and two groups of two objects, of which the second is padding."""
    is_padding = torch.tensor([[False, True] * 4])
    ignored = ignored_queries(is_padding, groups=2, num_queries=1)[0]
    seen = [row.nonzero().flatten().tolist() for row in ~ignored]
    assert seen[0] == [0]
    assert seen[1:5] == [[0, 1, 3]] * 4  # positive and negative of the first object
    assert seen[5:] == [[0, 5, 7]] * 4


def test_which_query_is_to_find_which_object_by_hand():
    """Images of 2 objects and 1: in each of 2 groups, two positive queries, then two negative."""
    queries, is_padding = known_objects([2, 1], groups=2, num_noisy=8)
    assert queries.tolist() == [[0, 1, 4, 5], [0, 8, 4, 8]]
    assert is_padding.tolist() == [[False] * 8, [False, True] * 4]
    queries, is_padding = known_objects([0, 0], groups=2, num_noisy=4)
    assert queries.shape == (2, 0) and is_padding.all()
    queries, _ = known_objects([1], groups=2, num_noisy=8)  # padded to 2, as beside another image
    assert queries.tolist() == [[0, 4]]
    with pytest.raises(
        ValueError, match=r"8 noisy queries do not match images with \[3, 1\] objects"
    ):
        known_objects([3, 1], groups=2, num_noisy=8)


def answers(batch: int, queries: int, dtype: torch.dtype = torch.float32) -> Any:
    """Undecided about every class, in the middle of the image."""
    logits = torch.zeros(batch, queries, NUM_CLASSES, dtype=dtype, requires_grad=True)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2], dtype=dtype).repeat(batch, queries, 1)
    return {"pred_logits": logits, "pred_boxes": boxes.requires_grad_()}


def random_answers(images: int, queries: int, columns: int, generator: torch.Generator) -> Any:
    return {
        "pred_logits": torch.randn(images, queries, columns, generator=generator),
        "pred_boxes": 0.2 + 0.4 * torch.rand(images, queries, 4, generator=generator),
    }


@pytest.mark.parametrize(("scores", "groups"), [("softmax", 0), ("sigmoid", 0), ("sigmoid", 1)])
def test_losses_of_a_data_set_are_those_of_one_batch(scores, groups):
    """Sums of unequal batches, divided at the end by the counts of all."""
    generator = torch.Generator().manual_seed(0)
    columns = NUM_CLASSES + (scores == "softmax")
    targets = []
    for count in (3, 1, 2):
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        boxes = 0.2 + 0.4 * torch.rand(count, 4, generator=generator)
        targets.append({"labels": labels, "boxes": boxes})
    outputs = random_answers(3, 4, columns, generator)
    if groups:  # two queries for each of at most 3 objects
        outputs["denoising"] = random_answers(3, 6, columns, generator)
    config = redetr.LossConfig(scores=scores, denoising=groups)
    criterion = SetCriterion(config, NUM_CLASSES, 4)
    counts = criterion.counts(targets)
    assert len(criterion.denominators(counts, counts)) == NUM_DENOMINATORS

    sums = _LossSums(criterion)
    for part in (slice(0, 2), slice(2, 3)):
        of_part = tree_map_only(torch.Tensor, lambda tensor, part=part: tensor[part], outputs)
        sums.add(of_part, targets[part])
    losses = sums.losses(Dist(0, 1, torch.device("cpu")))

    whole = criterion(outputs, targets)
    assert losses.keys() == whole.keys()
    for name, value in losses.items():
        assert value == pytest.approx(whole[name].item(), rel=1e-5), name


@pytest.mark.parametrize("groups", [1, 3])
def test_loss_by_hand(groups):
    """One object of class 1, which the positive queries overlap by a half; no class is certain."""
    objects = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.1]])}
    outputs = {**answers(1, 2), "denoising": answers(1, 2 * groups)}
    config = redetr.LossConfig(scores="sigmoid", denoising=groups)
    losses = SetCriterion(config, NUM_CLASSES, 2)(outputs, [objects])
    # In each group: one score towards 0.5^1.5, and five of 0.5 that are to be 0.
    by_group = math.log(2) * (1 + 5 * 0.5**1.5)
    assert losses["loss_ce_dn"].item() == pytest.approx(by_group, rel=1e-5)
    assert losses["loss_bbox_dn"].item() == pytest.approx(0.1)
    assert losses["loss_giou_dn"].item() == pytest.approx(0.5, rel=1e-5)
    assert losses["loss_ce"].item() == pytest.approx(by_group, rel=1e-5)  # of two queries as well
    total = sum(
        weight * (losses[name] + losses[f"{name}_dn"]).item()
        for name, weight in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2))
    )
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)


def test_padding_is_not_judged():
    """The second image has one object less: two queries of each group learn nothing."""
    targets = [target(2, seed=0), target(1, seed=1)]
    noisy = answers(2, 8)
    config = redetr.LossConfig(scores="sigmoid", denoising=2)
    outputs = {**answers(2, 4), "denoising": noisy}
    SetCriterion(config, NUM_CLASSES, 4)(outputs, targets)["loss"].backward()
    learns = noisy["pred_logits"].grad.abs().sum(-1) > 0
    assert learns.tolist() == [[True] * 8, [True, False] * 4]
    moves = noisy["pred_boxes"].grad.abs().sum(-1) > 0
    assert moves.tolist() == [[True, True, False, False] * 2, [True, False, False, False] * 2]


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()


def noisy_model() -> Any:
    return small(denoising=GROUPS, num_queries=12).double().train()


def test_ordinary_queries_answer_as_without_noise():
    model = noisy_model()
    noisy = noisy_queries([target(3, seed=1), target(1, seed=2)], GROUPS, NUM_CLASSES)
    alone = model(images(2))
    together = model(images(2), None, noisy)
    assert together["denoising"]["pred_boxes"].shape == (2, GROUPS * 2 * 3, 4)
    assert "denoising" not in alone
    layers = zip([*alone["aux_outputs"], alone], [*together["aux_outputs"], together], strict=True)
    for expected, actual in layers:
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-10)


def test_noisy_queries_answer_the_same_beside_any_image():
    model = noisy_model()
    two, five = target(2, seed=1), target(5, seed=2)
    alone = model(images(2)[:1], None, noisy_queries([two], GROUPS, NUM_CLASSES))
    batch = model(images(2), None, noisy_queries([two, five], GROUPS, NUM_CLASSES))
    for name in ("pred_logits", "pred_boxes"):
        expected = alone["denoising"][name][0].unflatten(0, (GROUPS, 2, 2))
        actual = batch["denoising"][name][0].unflatten(0, (GROUPS, 2, 5))[:, :, :2]
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_the_answer_to_noise_tells_groups_and_classes_apart():
    """What the comparisons above hold equal does depend on noise and labels."""
    model = noisy_model()
    noisy = noisy_queries([target(2, seed=1)], GROUPS, NUM_CLASSES)
    expected = model(images(1), None, noisy)["denoising"]["pred_logits"]
    others = NoisyQueries((noisy.labels + 1) % NUM_CLASSES, noisy.boxes)
    assert not torch.allclose(model(images(1), None, others)["denoising"]["pred_logits"], expected)
    first, second = expected[0].unflatten(0, (GROUPS, 4))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_every_parameter_has_a_gradient(counts):
    """Also without objects: a rank that lacks one would wait for the others for ever."""
    model = noisy_model()
    targets = [target(count, seed) for seed, count in enumerate(counts)]
    batch = redetr.collate(list(images(2)))
    batch.targets = targets
    criterion = SetCriterion.for_model(model)
    losses = criterion(training_outputs(model, criterion, batch), targets)
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    embedding = model.decoder.denoising_class_embed.weight.grad
    assert bool(embedding.any()) == (sum(counts) > 0)
    assert not embedding[NUM_CLASSES].any()  # padding


def test_classes_of_noisy_queries_start_from_published_weights(tmp_path):
    there = small("rtdetrv2_r18", num_classes=80)
    tensors = original_tensors(there)
    published = tensors["decoder.denoising_class_embed.weight"]
    weights = read_weights(saved(tensors, tmp_path / "model.pth"))
    here = small("rtdetrv2_r18", denoising=5)
    fresh = here.decoder.denoising_class_embed.weight.detach().clone()
    said = start_from(weights, here, start_config(denoising=5), ["dog", "tree", "person"])
    rows = here.decoder.denoising_class_embed.weight
    assert torch.equal(rows[0], published[16]) and torch.equal(rows[2], published[0])
    assert torch.equal(rows[1], fresh[1])
    assert torch.equal(rows[3], published[80])  # of padding
    assert "random" not in said


def test_weights_without_classes_of_noisy_queries(tmp_path):
    """They start at random, and this is reported; a model without noise leaves them out."""
    there = small("rtdetrv2_r18", num_classes=80)
    tensors = original_tensors(there)
    path = saved(tensors, tmp_path / "with.pth")
    assert not hasattr(redetr.load(path, device="cpu").model.decoder, "denoising_class_embed")
    del tensors["decoder.denoising_class_embed.weight"]
    weights = read_weights(saved(tensors, tmp_path / "without.pth"))
    here = small("rtdetrv2_r18", num_classes=2, denoising=5)
    said = start_from(weights, here, start_config(denoising=5), ["dog", "tree"])
    assert said.endswith("decoder.denoising_class_embed.weight starts at random")
    here = small("rtdetrv2_r18", num_classes=2)
    assert "random" not in start_from(weights, here, start_config(), ["dog", "tree"])


def test_damaged_classes_of_noisy_queries_are_named(tmp_path):
    tensors = original_tensors(small("rtdetrv2_r18", num_classes=80))
    tensors["decoder.denoising_class_embed.weight"] = torch.rand(3, 32)
    weights = read_weights(saved(tensors, tmp_path / "model.pth"))
    here = small("rtdetrv2_r18", num_classes=2, denoising=5)
    with pytest.raises(redetr.InputError, match=r"such as decoder.denoising_class_embed"):
        start_from(weights, here, start_config(denoising=5), ["dog", "tree"])


def test_a_model_without_noise_is_told_apart():
    with pytest.raises(redetr.InputError, match="model detr_r50 has no denoising"):
        redetr.build("detr_r50", 2, denoising=5)
    with pytest.raises(redetr.InputError, match="denoising must be at least 0"):
        redetr.build("rtdetr_r18", 2, denoising=-1)


@pytest.mark.long
def test_compiled_for_any_number_of_objects():
    """After the first two, more objects need no more graphs."""
    torch._dynamo.reset()
    decoder = small(denoising=GROUPS, num_queries=12, dec_layers=1).decoder.train()
    counted = CompileCounter()
    compiled = torch.compile(decoder, fullgraph=True, backend=counted)
    levels = [torch.randn(1, SMALL["enc_hidden_dim"], side, side) for side in (8, 4, 2)]
    graphs = []
    for count in (3, 4, 6, 7):
        noisy = noisy_queries([target(count, seed=1)], GROUPS, NUM_CLASSES)
        arguments = (levels, torch.ones(1, 2), True, noisy)
        actual = compiled(*arguments)["denoising"]["pred_boxes"]
        torch.testing.assert_close(actual, decoder(*arguments)["denoising"]["pred_boxes"])
        graphs.append(counted.frame_count)
    assert graphs[1:] == [graphs[1]] * 3


OPTIONS = [f"{name}={value}" for name, value in SMALL.items()]
FLAGS: dict[str, Any] = {"weights": "none", "denoising": 2, "num_queries": 20}


def test_a_run_repeats_and_is_saved_with_its_noise(shared_coco, tmp_path, capsys):
    lines = {}
    for name in ("first", "second"):
        arguments = train_arguments(
            shared_coco, tmp_path / name, "rtdetr_r18_finetune", OPTIONS, steps=2, **FLAGS
        )
        main(arguments)
        text = (tmp_path / name / "metrics.jsonl").read_text()
        lines[name] = [json.loads(line) for line in text.splitlines()]
    training = [line for line in lines["first"] if "loss_ce_dn_1" in line]
    assert len(training) == 2
    again = [line["loss"] for line in lines["second"] if "loss_ce_dn_1" in line]
    assert again == [line["loss"] for line in training]
    evaluation = lines["first"][-1]
    assert "AP" in evaluation and not any("_dn" in name for name in evaluation)
    detector = redetr.load(tmp_path / "first", device="cpu")
    assert detector.model.loss_config.denoising == 2
    capsys.readouterr()


def test_verify(capsys):
    """Micro-batches of 2 or 3 images, some without objects, have the gradient of the whole batch."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    main(
        ["verify", "rtdetr_r18_finetune", *flags, "--accumulate=5", "--image-size=64"]
        + ["--device=cpu", "--precision=fp32", "--json", "--model-options", *OPTIONS]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] == []
    assert 0 < result["errors"]["fp64"]["decoder"] < 1e-12
