"""The loss that `redetr explain` shows is the one that training computes, split and whole."""

import json
import re

import pytest
import torch
from torch import Tensor, nn

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.data import open_dataset
from redetr.data.dataset import DetectionDataset
from redetr.data.loader import Samples, to_batch
from redetr.data.transforms import final_size, resizer
from redetr.denoising import noisy_queries
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.explain import LossExplanation, explain, explain_loss, query_habits
from redetr.explain.loss_page import loss_data, loss_page
from redetr.losses import SetCriterion
from redetr.matcher import match
from redetr.step import training_outputs
from redetr.structures import DetectionModel, LossConfig, Outputs, Target
from tests.test_explain import CLASSES, FORMS, IDS, picture, small_detector

SIDE = 100
# Query 17 is 0.25 from object A, and query 33 is 0.30 from object B.
ANSWERS = {
    17: (0.5, 0.5, 0.5, 0.5),
    33: (0.5, 0.5, 0.5, 0.5),
    4: (0.25, 0.25, 0.2, 0.2),
    42: (0.75, 0.25, 0.2, 0.2),
    58: (0.25, 0.75, 0.2, 0.2),
    91: (0.75, 0.75, 0.2, 0.2),
}
LABELS = {17: 0, 33: 1, 4: 2, 42: 3, 58: 4, 91: 5}
OBJECTS = (
    {0: (0.40, 0.45, 0.56, 0.46), 1: (0.60, 0.40, 0.45, 0.55)},  # by label
    {
        2: (0.25, 0.25, 0.2, 0.3),
        3: (0.75, 0.25, 0.3, 0.2),
        4: (0.3, 0.75, 0.2, 0.25),
        5: (0.7, 0.7, 0.2, 0.2),
    },
)


class Fixed(DetectionModel):
    """Answers the same 100 boxes to every image, in two layers."""

    num_classes, num_queries, resize, image_size, max_size = 6, 100, "aspect", SIDE, None

    def __init__(self):
        super().__init__()
        self.loss_config = LossConfig()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        logits, boxes = torch.zeros(1, 100, 7), torch.full((1, 100, 4), 0.01)
        logits[..., 6] = 8.0
        for query, box in ANSWERS.items():
            boxes[0, query] = torch.tensor(box)
            logits[0, query] = torch.tensor([8.0 * (label == LABELS[query]) for label in range(7)])
        layer = Outputs(
            pred_logits=logits.repeat(len(images), 1, 1), pred_boxes=boxes.repeat(len(images), 1, 1)
        )
        return Outputs(**layer, aux_outputs=[layer])


@pytest.mark.parametrize(
    "run",
    [
        lambda detector, dataset: explain(detector, picture()),
        lambda detector, dataset: query_habits(detector, dataset, 1),
        lambda detector, dataset: explain_loss(detector, dataset, 101),
    ],
    ids=["explain", "query_habits", "explain_loss"],
)
def test_gpus_multiply_in_fp32_as_training_does(run, shared_coco):
    detector = small_detector("redetr_n")
    precisions = []

    def record(*_) -> None:
        precisions.append(torch.backends.cudnn.conv.fp32_precision)

    convolutions = [module for module in detector.model.modules() if isinstance(module, nn.Conv2d)]
    convolutions[0].register_forward_pre_hook(record)
    run(detector, open_dataset(shared_coco, "val"))
    assert set(precisions) == {"ieee"}


class TwoImages(DetectionDataset):
    """One with 2 objects, one with 4."""

    name, class_names, category_ids = "two images", tuple("ABCDEF"), tuple(range(6))

    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> Tensor:
        return torch.full((3, SIDE, SIDE), 100, dtype=torch.uint8)

    def target(self, index: int) -> Target:
        index = self._position(index)
        boxes = box_cxcywh_to_xyxy(torch.tensor(list(OBJECTS[index].values()))) * SIDE
        count = len(boxes)
        return Target(
            boxes=boxes,
            labels=torch.tensor(list(OBJECTS[index])),
            image_id=index + 1,
            orig_size=(SIDE, SIDE),
            size=(SIDE, SIDE),
            iscrowd=torch.zeros(count, dtype=torch.bool),
            area=torch.ones(count),
        )


def worked_example(world_size: int) -> LossExplanation:
    detector = Detector(Fixed(), TwoImages.class_names, TwoImages.category_ids, SIDE, "cpu")
    return explain_loss(detector, TwoImages(), 1, world_size)


def test_the_worked_example_alone():
    """100 queries, 2 objects at L1 distances that sum to 0.55: the loss is 0.55 / 2."""
    found = worked_example(1)
    assert found.queries.tolist() == [[17, 33], [17, 33]]
    assert found.terms[-1, :, 1].tolist() == pytest.approx([0.25, 0.30])
    (share,) = found.shares
    assert share.sums["loss_bbox"] == pytest.approx(0.55)
    assert share.losses["loss_bbox"] == pytest.approx(0.275)
    assert share.divisors == share.single_divisors
    assert share.divisors[:2] == pytest.approx((2, 11.8))  # 2 + 0.1 * 98


def test_the_worked_example_on_two_gpus():
    """The other GPU holds 4 objects: GPU 0's loss is 0.55 / 3, and the mean is that of one GPU with
    all six."""
    found = worked_example(2)
    first, second = found.shares
    assert (first.objects, second.objects) == (2, 4)
    assert first.losses["loss_bbox"] == pytest.approx(0.55 / 3)
    assert first.single_losses["loss_bbox"] == pytest.approx(0.275)
    assert first.divisors[:2] == pytest.approx((3, 12.7))  # (11.8 + 13.6) / 2
    assert second.sums["loss_bbox"] == pytest.approx(0.1 + 0.1 + 0.1 + 0.1)
    assert found.together["loss_bbox"] == pytest.approx((0.55 + 0.4) / 6)
    mean = (first.losses["loss_bbox"] + second.losses["loss_bbox"]) / 2
    assert mean == pytest.approx((0.55 + 0.4) / 6)


@pytest.mark.parametrize("form", [*FORMS, "dfine_n"])
def test_cost_parts_sum_to_what_is_matched(form, shared_coco):
    """And their values, computed in another way."""
    detector, dataset = small_detector(form), open_dataset(shared_coco, "val")
    found = explain_loss(detector, dataset, 104)
    labels, boxes = found.labels.tolist(), found.targets
    for layer, costs in enumerate(found.costs):
        assert torch.equal(
            found.queries[layer], match([costs.sum(0)[None, None]], [len(labels)])[0][0, 0]
        )
        l1 = torch.cdist(found.predicted[layer], boxes, p=1)
        torch.testing.assert_close(costs[1], 5 * l1)
        assert (costs[2].abs() <= 2).all()
    model = detector.model
    seen: list[Outputs] = []
    model.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    again = explain_loss(detector, dataset, 104)
    logits = seen[0]["pred_logits"][0]
    if form == "detr_r50":
        torch.testing.assert_close(again.costs[-1, 0], -logits.softmax(-1)[:, labels])
    else:
        p = logits.sigmoid()[:, labels]
        focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        torch.testing.assert_close(again.costs[-1, 0], 2 * focal)


@pytest.mark.parametrize("form", [*FORMS, "dfine_n"])
@pytest.mark.parametrize("image_id", [101, 102, 104])  # 2, 0 and 2 objects
def test_terms_of_pairs_sum_to_the_loss(form, image_id, shared_coco):
    found = explain_loss(small_detector(form), open_dataset(shared_coco, "val"), image_id)
    sums = found.shares[0].sums
    suffixes = ["_pre", "_0", ""] if form == "dfine_n" else ["_0", "_1", ""]
    for layer, suffix in enumerate(suffixes):
        ce, l1, giou = found.terms[layer].sum(0).tolist()
        assert ce + found.unmatched[layer].item() == pytest.approx(
            sums[f"loss_ce{suffix}"], rel=1e-5
        )
        assert l1 == pytest.approx(sums[f"loss_bbox{suffix}"], rel=1e-5)
        assert giou == pytest.approx(sums[f"loss_giou{suffix}"], rel=1e-5)


@pytest.mark.parametrize("form", [*FORMS, "dfine_n"])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_mean_over_gpus_is_the_loss_of_all_images_together(form, world_size, shared_coco):
    """Images of several sizes, one without objects; every term of every layer."""
    found = explain_loss(small_detector(form), open_dataset(shared_coco, "val"), 103, world_size)
    assert [share.image_id for share in found.shares] == [103, 104, 100, 101, 102][:world_size]
    for name, whole in found.together.items():
        mean = sum(share.losses[name] for share in found.shares) / world_size
        assert mean == pytest.approx(whole, rel=1e-5), name


def test_alone_is_what_the_criterion_says():
    detector, dataset = small_detector("redetr_n"), Renamed()
    found = explain_loss(detector, dataset, 1)
    criterion = SetCriterion.for_model(detector.model)
    seen: list[Outputs] = []
    detector.model.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    detector.predict(dataset.image(0))
    target: Target = {**dataset.target(0), "boxes": found.targets, "labels": torch.tensor([2, 1])}
    expected = criterion(seen[0], [target])
    assert found.shares[0].losses == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )


def test_denoising_is_shown_apart(shared_coco):
    """Its losses are those of training with the noise of epoch 0, and every term has its mean."""
    detector = small_detector("rtdetr_r18", denoising=2)
    dataset = open_dataset(shared_coco, "val")
    found = explain_loss(detector, dataset, 103, 3)  # 2, 2 and 1 objects or so: padded to the most
    assert {"loss_ce_dn_0", "loss_giou_dn_1", "loss_bbox_dn"} <= found.together.keys()
    for name, whole in found.together.items():
        mean = sum(share.losses[name] for share in found.shares) / 3
        assert mean == pytest.approx(whole, rel=1e-5), name

    transform = resizer(final_size(detector.model, 64))
    sample = Samples(dataset, transform, seed=0)[(0, 3)]
    batch = to_batch([sample], torch.device("cpu"))
    criterion = SetCriterion.for_model(detector.model)
    with torch.no_grad():
        outputs = training_outputs(detector.model, criterion, batch)
        expected = criterion(outputs, batch.targets)
    single_losses = found.shares[0].single_losses
    assert single_losses == pytest.approx(
        {name: x.item() for name, x in expected.items()}, rel=1e-4
    )

    noisy, count = found.noisy, len(found.labels)
    assert noisy is not None and noisy.boxes.shape == (3, 2, count, 4)
    noise = noisy_queries(batch.targets, 2, 3)
    torch.testing.assert_close(noisy.starts.flatten(0, 1), noise.boxes[0, : 2 * count])
    torch.testing.assert_close(noisy.labels.flatten(), noise.labels[0, : 2 * count])
    logits = outputs["denoising"]["aux_outputs"][1]["pred_logits"][0, : 2 * count]
    picked = logits.sigmoid().gather(1, found.labels.repeat(2)[:, None])
    torch.testing.assert_close(noisy.scores[1].flatten(), picked[:, 0], rtol=1e-4, atol=1e-6)
    described = found.to_dict()["objects"][0]["denoising"]
    assert described["negative"]["start"] == pytest.approx(noise.boxes[0, count].tolist())
    assert len(described["positive"]["boxes"]) == 3
    assert explain_loss(small_detector("rtdetr_r18"), dataset, 103).noisy is None


class Renamed(TwoImages):
    """Two classes of the model's, in another order."""

    name, class_names, category_ids = "renamed", ("spoon", "plate"), (90, 12)

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("ids", [(90, 12), (0, 1)], ids=["their ids", "ids of converted data"])
def test_labels_are_the_models(ids):
    dataset = Renamed()
    dataset.category_ids = ids
    found = explain_loss(small_detector("detr_r50"), dataset, 1)
    assert [CLASSES[label] for label in found.labels.tolist()] == ["spoon", "plate"]


class WithMasks(TwoImages):
    """The mask of each object is the left half of its box."""

    name, class_names, category_ids = "with masks", CLASSES, IDS

    def target(self, index: int) -> Target:
        target = super().target(index)
        masks = torch.zeros(len(target["boxes"]), SIDE, SIDE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, target["boxes"].int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = True
        return {**target, "labels": target["labels"] % len(CLASSES), "masks": masks}


MODELS_WITH_MASKS = {
    "redetr_n": {"masks": True},
    "rtdetr_r18": {"masks": True},
    "dfine_n": {"masks": True},
    "detr_r50_panoptic": {},
}


@pytest.mark.parametrize("form", MODELS_WITH_MASKS)
def test_models_with_masks(form):
    """Their masks are part of the loss of the image and of the page's sums, but not of a pair's."""
    detector = small_detector(form, **MODELS_WITH_MASKS[form])
    found = explain_loss(detector, WithMasks(), 1, 2)
    for name, whole in found.together.items():
        mean = sum(share.losses[name] for share in found.shares) / 2
        assert mean == pytest.approx(whole, rel=1e-5), name
    assert found.together["loss_mask"] > 0 and found.together["loss_dice"] > 0
    ce, l1, giou = found.terms[-1].sum(0).tolist()
    sums = found.shares[0].sums
    assert ce + found.unmatched[-1].item() == pytest.approx(sums["loss_ce"], rel=1e-5)
    assert l1 == pytest.approx(sums["loss_bbox"], rel=1e-5)
    assert giou == pytest.approx(sums["loss_giou"], rel=1e-5)
    page = loss_page(found, "loss")
    *rows, total = re.findall(r"<td>([-\d.e]+)</td>\s*</tr>", page[page.index("weighted sum") :])
    assert sum(map(float, rows)) == pytest.approx(float(total), rel=1e-3)


def test_the_mask_loss_is_what_the_criterion_says():
    detector = small_detector("redetr_n", masks=True)
    found = explain_loss(detector, WithMasks(), 2)
    transform = resizer(final_size(detector.model, 64))
    sample = Samples(WithMasks(), transform, seed=0)[(0, 1)]
    batch = to_batch([sample], torch.device("cpu"))
    with torch.no_grad():
        outputs = detector.model(batch.images, batch.padding)
        expected = SetCriterion.for_model(detector.model)(outputs, batch.targets)
    losses = {name: value.item() for name, value in expected.items()}
    assert found.shares[0].losses == pytest.approx(losses, rel=1e-5)


def test_more_objects_than_queries():
    found = explain_loss(small_detector("detr_r50", num_queries=1), Renamed(), 1)
    assert sorted(found.queries[-1].tolist()) == [0, 1]  # 1 means none
    without = found.queries[-1].tolist().index(1)
    assert found.terms[-1, without].tolist() == [0, 0, 0]
    assert found.to_dict()["objects"][without]["layers"][-1] == {"query": None, "cost": {}}


def test_numbers_as_json():
    content = json.loads(json.dumps(worked_example(2).to_dict()))
    assert [thing["layers"][-1]["query"] for thing in content["objects"]] == [17, 33]
    assert content["objects"][0]["layers"][-1]["loss_bbox"] == pytest.approx(0.25)
    assert content["objects"][0]["layers"][-1]["cost"]["cost_bbox"] == pytest.approx(5 * 0.25)
    assert content["gpus"][0]["losses"]["loss_bbox"] == pytest.approx(0.55 / 3)


@pytest.mark.parametrize(
    ("image_id", "world_size", "message"),
    [
        (9, 1, "two images: no image has the id 9: give another --image-id, such as 1, 2"),
        (
            1,
            3,
            "3 GPUs need an image each, and two images has 2; choose fewer GPUs .--world-size.",
        ),
        (1, 0, "--world-size 0 must be at least 1"),
    ],
)
def test_what_cannot_be_shown(image_id, world_size, message):
    detector = Detector(Fixed(), TwoImages.class_names, TwoImages.category_ids, SIDE, "cpu")
    with pytest.raises(InputError, match=message):
        explain_loss(detector, TwoImages(), image_id, world_size)


def test_classes_that_the_model_does_not_know():
    with pytest.raises(InputError, match="two images has 6, of which the model does not know A"):
        explain_loss(Detector(Fixed(), CLASSES * 2, IDS * 2, SIDE, "cpu"), TwoImages(), 1)


def page_rows(page: str) -> list[str]:
    """The rows of the last table that sums up the layers."""
    table = page[page.index("weighted sum") :]
    return table[: table.index("</table>")].split("<tr>")[1:]


def test_the_page_counts_all_that_d_fine_answers(shared_coco):
    """What its first layer proposes has a name of its own, and edges are part of the sum."""
    found = explain_loss(small_detector("dfine_n"), open_dataset(shared_coco, "val"), 104)
    assert loss_data(found)["layers"] == ["first boxes", "layer 1", "layer 2"]
    page = loss_page(found, "loss")
    *rows, total = re.findall(r"<td>([-\d.e]+)</td>\s*</tr>", page[page.index("weighted sum") :])
    assert len(rows) == 4  # with the proposals of the encoder
    assert sum(map(float, rows)) == pytest.approx(float(total), rel=1e-3)
    first, refined = (re.findall(r"<td>([^<]*)</td>", row) for row in page_rows(page)[:2])
    assert first[4:7] == ["-", "-", "-"]  # no edges yet
    weights = (1, 5, 2, 0.15, 1.5, 1.5)
    terms = [weight * float(text) for weight, text in zip(weights, refined[1:7], strict=True)]
    assert sum(terms) == pytest.approx(float(refined[7]), rel=1e-3)


def test_the_page_names_the_flag_for_two_gpus():
    """On the command line, there is nothing to choose by."""
    page = " ".join(loss_page(worked_example(1), "loss", image_link="index.html").split())
    assert "give <code>--world-size 2</code> (in the app: choose 2 GPUs)." in page
    assert 'Previous: <a href="index.html">' in page
