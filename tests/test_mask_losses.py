"""The losses of masks: values by hand, those of Transformers, and what adds nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.loss.loss_for_object_detection import ImageLoss

from redetr.data.loader import to_batch
from redetr.losses import SetCriterion
from redetr.mask_losses import mask_sums, points_around
from redetr.step import training_outputs
from redetr.structures import LossConfig
from tests.device_losses import assert_losses_of_the_cpu, without_objects
from tests.distributed.test_exactness import VARIANTS, build, global_samples

CANVAS = (32, 40)
SIZES = ((32, 40), (24, 30), (32, 32))
COUNTS = (3, 0, 2)


def square_target(size=(16, 16), left=4, right=12, known=True, **extra) -> dict:
    """An object whose mask is its box, all of its rows from a quarter to three quarters."""
    height, width = size
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, height // 4 : 3 * height // 4, left:right] = known
    center = (left + right) / 2 / width
    box = [[center, 0.5, (right - left) / width, 0.5]]
    return {
        "labels": torch.tensor([0]),
        "boxes": torch.tensor(box),
        "size": size,
        "masks": mask,
        **extra,
    }


def outputs_of(pred_masks: Tensor, canvas=(16, 16), **extra) -> dict:
    batch, num_queries = pred_masks.shape[:2]
    logits = torch.zeros(batch, num_queries, 2)
    return {"pred_logits": logits, "pred_masks": pred_masks, "canvas": canvas, **extra}


def random_targets(counts=COUNTS, dtype=torch.float64) -> list[dict]:
    """Objects with random masks in images of several sizes; each has a pixel at least."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for i, (count, size) in enumerate(zip(counts, SIZES, strict=True)):
        masks = torch.rand(count, *size, generator=generator) < 0.3
        masks[:, 5, 5] = True
        boxes = 0.2 + 0.3 * torch.rand(count, 4, generator=generator, dtype=dtype)
        target = {
            "labels": torch.randint(3, (count,), generator=generator),
            "boxes": boxes,
            "size": size,
            "masks": masks,
            "seed": i,
        }
        targets.append(target)
    return targets


def random_masks(dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randn(len(SIZES), 6, 8, 10, generator=generator, dtype=dtype)
    return masks.requires_grad_()


QUERIES = torch.tensor([[4, 0, 2], [0, 0, 0], [1, 5, 0]])


def peer_losses(pred_masks: Tensor, targets: list[dict]) -> dict[str, Tensor]:
    """What Transformers computes for the same matching, as sums over objects."""
    indices = []
    for target, queries in zip(targets, QUERIES, strict=True):
        rows = torch.arange(len(target["labels"]))
        indices.append((queries[: len(rows)], rows))
    peer = ImageLoss(None, num_classes=3, eos_coef=0.1, losses=["masks"])
    masks = [{"masks": target["masks"]} for target in targets]
    return peer.loss_masks({"pred_masks": pred_masks}, masks, indices, num_boxes=1)


def test_the_original_losses_are_those_of_transformers():
    """Values and gradients; images of several sizes, one without objects."""
    targets = random_targets()
    ours, theirs = random_masks(), random_masks()
    sums = mask_sums(outputs_of(ours, CANVAS), QUERIES, targets, "canvas")
    peer = peer_losses(theirs, targets)
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(sums[name][0], peer[name], rtol=1e-12, atol=0)
    (2 * sums["loss_mask"] + sums["loss_dice"]).sum().backward()
    (2 * peer["loss_mask"] + peer["loss_dice"]).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def test_a_flat_prediction_by_hand():
    """A logit of 0 everywhere is a score of 1/2; a quarter of the pixels is inked."""
    outputs = outputs_of(torch.zeros(1, 1, 4, 4))
    sums = mask_sums(outputs, torch.tensor([[0]]), [square_target()], "canvas")
    inked, others = 64, 192
    focal = (0.25 * inked + 0.75 * others) / 256 * 0.25 * math.log(2)
    assert sums["loss_mask"].item() == pytest.approx(focal)
    dice = 1 - (2 * inked / 2 + 1) / (256 / 2 + inked + 1)
    assert sums["loss_dice"].item() == pytest.approx(dice)


def test_a_flat_prediction_on_crops_by_hand():
    """The frame is 1.5 times as wide and high as the box: of 24 x 24 points, 16 x 16 are in it."""
    outputs = outputs_of(torch.zeros(1, 1, 4, 4))
    sums = mask_sums(outputs, torch.tensor([[0]]), [square_target()], "crops")
    assert sums["loss_mask"].item() == pytest.approx(math.log(2))
    inked, points = 256, 576
    dice = 1 - (inked + 1) / (points / 2 + inked + 1)
    assert sums["loss_dice"].item() == pytest.approx(dice)


def test_points_outside_of_the_image_do_not_count():
    """Half of the frame's outer ring is beyond the left edge, on a canvas twice as wide."""
    target = square_target(left=0, right=8)
    logits = torch.full((1, 1, 4, 8), -20.0)
    logits[..., 1:3, :2] = 20.0
    sums = mask_sums(outputs_of(logits, (16, 32)), torch.tensor([[0]]), [target], "crops")
    flat = mask_sums(outputs_of(0 * logits, (16, 32)), torch.tensor([[0]]), [target], "crops")
    inked, points = 256, 24 * 20
    dice = 1 - (inked + 1) / (points / 2 + inked + 1)
    assert flat["loss_mask"].item() == pytest.approx(math.log(2))
    assert flat["loss_dice"].item() == pytest.approx(dice)
    assert sums["loss_dice"].item() < 0.1  # a good mask is good where it lies


def test_points_are_drawn_once_in_each_cell_by_the_seed():
    target = square_target(seed=3)
    points = points_around(target)
    centers = points_around(square_target())
    assert torch.equal(points, points_around(target))
    assert not torch.equal(points, points_around(square_target(seed=4)))
    half_a_cell = 0.5 * 1.5 * 0.5 / 24
    distance = (points - centers).abs()
    assert distance.amax() <= half_a_cell + 1e-6
    assert distance.mean() == pytest.approx(half_a_cell / 2, rel=0.1)


def test_sharper_than_its_pixels():
    """A mask at stride 4 whose edge is between two of its pixels is learned to within a pixel of
    the image."""
    target = square_target((32, 32), left=9, right=22)
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for step in range(60):
        target["seed"] = step
        sums = mask_sums(outputs_of(logits, (32, 32)), torch.tensor([[0]]), [target], "crops")
        optimizer.zero_grad()
        (sums["loss_mask"] + sums["loss_dice"]).sum().backward()
        optimizer.step()
    predicted = F.interpolate(logits.detach(), (32, 32), mode="bilinear")[0] > 0
    predicted[:, :6] = False  # beyond the frame, nothing is learned
    predicted[:, 26:] = False
    predicted[:, :, :7] = False
    predicted[:, :, 25:] = False
    shared = (predicted & target["masks"]).sum()
    either = (predicted | target["masks"]).sum()
    assert shared / either > 0.95


@pytest.mark.parametrize("region", ["canvas", "crops"])
def test_embeddings_give_the_losses_of_their_product(region):
    targets = random_targets()
    generator = torch.Generator().manual_seed(2)
    mask_embed = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    pixel_embed = torch.randn(3, 4, 8, 10, generator=generator, dtype=torch.float64)
    product = torch.einsum("bqe,behw->bqhw", mask_embed, pixel_embed)
    whole = mask_sums(outputs_of(product, CANVAS), QUERIES, targets, region)
    outputs = outputs_of(0 * product, CANVAS, mask_embed=mask_embed, pixel_embed=pixel_embed)
    parts = mask_sums(outputs, QUERIES, targets, region)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


@pytest.mark.parametrize("region", ["canvas", "crops"])
def test_objects_without_a_mask_or_a_query_add_nothing(region):
    """Only the query of the first object is judged: of the others, one has an empty mask, one no
    query, and the last image no masks at all."""
    targets = random_targets()
    targets[0]["masks"][1] = False
    del targets[2]["masks"]
    queries = QUERIES.clone()
    queries[0, 2] = 6
    pred_masks = random_masks()
    sums = mask_sums(outputs_of(pred_masks, CANVAS), queries, targets, region)
    (sums["loss_mask"] + sums["loss_dice"]).sum().backward()
    is_judged = pred_masks.grad.flatten(2).ne(0).any(-1)
    assert is_judged.nonzero().tolist() == [[0, 4]]


def _pinned(values: Tensor) -> Tensor:
    """As `Tensor.pin_memory`, which fake tensors do not have."""
    if values.device.type != "cpu":
        raise RuntimeError("only dense CPU tensors can be pinned")
    return values.clone()


@pytest.mark.parametrize("region", ["canvas", "crops"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_targets_may_be_on_any_device(region, device, monkeypatch):
    """Fake tensors have devices that this machine lacks, and refuse to mix them."""
    monkeypatch.setattr(Tensor, "pin_memory", _pinned)
    with FakeTensorMode():
        targets = random_targets()
        for target in targets:
            for name in ("labels", "boxes", "masks"):
                target[name] = target[name].to(device)
        outputs = outputs_of(torch.zeros(3, 6, 8, 10, device="cuda"), CANVAS)
        outputs["pred_logits"] = outputs["pred_logits"].to("cuda")
        queries = torch.zeros(3, 3, dtype=torch.long, device="cuda")
        sums = mask_sums(outputs, queries, targets, region)
    assert {name: (x.device.type, len(x)) for name, x in sums.items()} == {
        "loss_mask": ("cuda", 1),
        "loss_dice": ("cuda", 1),
    }
    assert all(target["masks"].device.type == device for target in targets)  # as they were given


@pytest.mark.parametrize("region", ["canvas", "crops"])
def test_labels_boxes_and_masks_are_all_that_a_target_needs(region):
    """The masks say which size their image has."""
    outputs = outputs_of(random_masks(), CANVAS)
    outputs |= {
        "pred_boxes": torch.full((3, 6, 4), 0.5, dtype=torch.float64),
        "pred_logits": torch.zeros(3, 6, 3, dtype=torch.float64),
    }
    config = LossConfig(scores="sigmoid", loss_mask=1.0, loss_dice=1.0, mask_region=region)
    criterion = SetCriterion(config, 3, 6)
    targets = random_targets()
    expected = criterion(outputs, targets)
    for image_target in targets:
        del image_target["size"]
    assert criterion(outputs, targets) == expected
    targets[0]["masks"] = targets[0]["masks"][1:]
    with pytest.raises(ValueError, match=r"target 0: masks .*, expected \[T, h, w\]"):
        criterion(outputs, targets)
    del targets[0]["masks"]
    assert criterion(outputs, targets)["loss_mask"] < expected["loss_mask"]


@pytest.mark.parametrize("region", ["canvas", "crops"])
def test_a_batch_without_objects_stays_connected(region):
    targets = random_targets((0, 0, 0))
    mask_embed = torch.randn(3, 6, 4, requires_grad=True)
    pixel_embed = torch.randn(3, 4, 8, 10, requires_grad=True)
    outputs = {
        "pred_logits": torch.zeros(3, 6, 3, requires_grad=True),
        "pred_boxes": torch.full((3, 6, 4), 0.5),
        "mask_embed": mask_embed,
        "pixel_embed": pixel_embed,
        "canvas": CANVAS,
    }
    config = LossConfig(scores="sigmoid", loss_mask=1.0, loss_dice=1.0, mask_region=region)
    losses = SetCriterion(config, 3, 6)(outputs, targets)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    losses["loss"].backward()
    assert mask_embed.grad.abs().sum() == pixel_embed.grad.abs().sum() == 0


@pytest.mark.parametrize("form", VARIANTS)
def test_outputs_that_are_prepared_for_a_device_have_the_same_losses(form):
    """As the test on a GPU prepares them, here for the CPU."""
    assert_losses_of_the_cpu(form, torch.device("cpu"))


@pytest.mark.parametrize("form", VARIANTS)
def test_a_model_stays_connected_to_a_batch_without_objects(form):
    """With all that training computes, such as noisy queries and masks of chosen queries."""
    model, criterion = build(form)
    samples = []
    for image, target in global_samples():
        samples.append((image, without_objects(target)))
    batch = to_batch(samples, torch.device("cpu"), (96, 96))
    losses = criterion(training_outputs(model, criterion, batch), batch.targets)
    losses["loss"].backward()
    of_objects = {name for name in losses if not name.startswith(("loss_ce", "loss_dd"))}
    of_objects.remove("loss")
    assert criterion.config.has_masks == ("loss_mask" in of_objects)
    assert all(losses[name] == 0 for name in of_objects)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("region", ["canvas", "crops"])
def test_the_criterion_divides_by_all_objects_and_weighs(region):
    targets = random_targets()
    outputs = outputs_of(random_masks(), CANVAS)
    generator = torch.Generator().manual_seed(3)
    boxes = 0.2 + 0.3 * torch.rand(3, 6, 4, generator=generator, dtype=torch.float64)
    outputs |= {"pred_boxes": boxes, "pred_logits": torch.zeros(3, 6, 3, dtype=torch.float64)}
    config = LossConfig(scores="sigmoid", loss_mask=3.0, loss_dice=5.0, mask_region=region)
    losses = SetCriterion(config, 3, 6)(outputs, targets)
    without = LossConfig(scores="sigmoid")
    others = SetCriterion(without, 3, 6)(outputs, targets)
    assert losses.keys() - others.keys() == {"loss_mask", "loss_dice"}
    weighted = others["loss"] + 3 * losses["loss_mask"] + 5 * losses["loss_dice"]
    torch.testing.assert_close(losses["loss"], weighted)
    # Each image by itself, with a divisor of 1, adds up to the whole times the number of objects.
    total = 0.0
    criterion = SetCriterion(config, 3, 6)
    for i in range(3):
        part = {
            "pred_logits": outputs["pred_logits"][i : i + 1],
            "pred_boxes": outputs["pred_boxes"][i : i + 1],
            "pred_masks": outputs["pred_masks"][i : i + 1],
            "canvas": CANVAS,
        }
        ones = torch.ones(4, dtype=torch.float64)
        total = total + criterion(part, targets[i : i + 1], ones)["loss_dice"]
    torch.testing.assert_close(losses["loss_dice"] * sum(COUNTS), total)
