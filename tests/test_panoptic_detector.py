"""Masks and segments of images by a panoptic detector."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import redetr
from redetr.data.transforms import normalize, resizer
from redetr.masks import boxes_of_masks
from redetr.panoptic import panoptic_segments, rgb2id
from redetr.postprocess import original_masks
from tests.test_panoptic_model import OPTIONS

SIZES = ((90, 120), (64, 50))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Untrained masks are nearly equal. On eight threads, masks of few queries are rounded otherwise
    than those of all, and half a percent of the pixels go to another one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector():
    """One with random weights whose queries are of all classes, and sure enough of them."""
    torch.manual_seed(0)
    model = redetr.build("detr_r50_panoptic", 3, **OPTIONS, max_size=128)
    with torch.no_grad():
        model.detr.class_embed.weight.normal_(0, 1)
        model.detr.query_embed.weight.normal_(0, 3)
        model.detr.class_embed.weight[3] = 0.0  # of "no object", which no query is then
        model.detr.class_embed.bias[3] = -20.0
        model.mask_head.out_lay.weight.mul_(10)
        model.bbox_attention.q_linear.weight.mul_(20)
    model.is_thing = (True, True, False)
    return redetr.Detector(model, ("cup", "fork", "sky"), (1, 7, 92), image_size=64, device="cpu")


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(3)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def whole(detector, images):
    """Outputs with the masks of all queries, of the batch that the detector makes."""
    resized = [resizer(redetr.data.transforms.final_size(detector.model, 64))(x) for x in images]
    batch = redetr.collate([normalize(image) for image in resized])
    with torch.no_grad():
        return batch, detector.model(batch.images, batch.mask)


def test_masks_are_those_of_the_original_rule(detector, images, whole):
    batch, outputs = whole
    scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
    threshold = float(scores.median())
    found = detector.predict(images, threshold)
    canvas = tuple(batch.images.shape[-2:])
    for i, detections in enumerate(found):
        order = scores[i].argsort(descending=True, stable=True)[: len(detections)]
        assert 0 < len(detections) < 20
        masks = original_masks(outputs["pred_masks"][i, order], canvas, batch.sizes[i], SIZES[i])
        assert detections.masks.shape == (len(detections), *SIZES[i])
        assert 0.01 < masks.float().mean() < 0.99
        # Those of chosen queries are the same but for rounding, which may turn single pixels.
        assert (detections.masks != masks).float().mean() < 1e-3
        assert torch.equal(detections.labels, labels[i, order])


def test_segments_are_those_of_the_rule(detector, images, whole):
    batch, outputs = whole
    scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
    threshold = float(scores.median())
    canvas = tuple(batch.images.shape[-2:])
    found = detector.predict_panoptic(images, threshold)
    assert len(found) == 2
    for i, segments in enumerate(found):
        (kept,) = torch.nonzero(scores[i] > threshold, as_tuple=True)
        maps = torch.nn.functional.interpolate(
            outputs["pred_masks"][i, kept][:, None], canvas, mode="bilinear"
        )[:, 0]
        height, width = batch.sizes[i]
        expected = panoptic_segments(
            maps[:, :height, :width],
            labels[i, kept].tolist(),
            scores[i, kept].tolist(),
            detector.model.is_thing,
            SIZES[i],
        )
        assert (segments.ids != expected.ids).float().mean() < 1e-3
        assert len(segments) == len(expected.segments) > 1
        names = [detector.class_names[segment.label] for segment in expected.segments]
        assert segments.detections.names == names


def test_segments_of_one_image(detector, images):
    segments = detector.predict_panoptic(images[0], threshold=0.3)
    detections = segments.detections
    assert torch.equal(detections.masks.sum(0) + (segments.ids == 0), torch.ones(SIZES[0]))
    areas = [segment.area for segment in segments.panoptic.segments]
    assert detections.masks.sum((1, 2)).tolist() == areas
    entry = segments.to_coco(17, "a.png")
    assert entry["image_id"] == 17 and entry["file_name"] == "a.png"
    assert [info["id"] for info in entry["segments_info"]] == list(range(1, len(segments) + 1))
    ids = rgb2id(np.array(segments.to_png()))
    for info, label in zip(entry["segments_info"], detections.labels.tolist(), strict=True):
        assert info["area"] == (ids == info["id"]).sum()
        assert info["category_id"] == (1, 7, 92)[label]
        assert info["isthing"] == (label < 2)
    assert segments.draw().width >= SIZES[0][1]
    assert f"{len(segments)} segments in an image of 120x90 px" in repr(segments)
    nothing = detector.predict_panoptic(images[0], threshold=1.0)
    assert len(nothing) == 0 and not nothing.ids.any()
    assert detector.predict_panoptic([]) == []


def test_segments_without_their_masks(detector, images):
    whole = detector.predict_panoptic(images[0], threshold=0.3)
    segments = detector.predict_panoptic(images[0], threshold=0.3, masks=False)
    assert segments.detections.masks is None
    assert torch.equal(segments.ids, whole.ids)
    assert torch.equal(segments.detections.boxes, boxes_of_masks(whole.detections.masks))
    assert segments.to_dict() == whole.to_dict("none")


def test_other_models_have_no_segments(images):
    torch.manual_seed(0)
    model = redetr.build("redetr_n", 1, backbone=(8, 8, 8), hidden_dim=16, nheads=2, dec_layers=1)
    detector = redetr.Detector(model, ("cup",), (1,), image_size=64, device="cpu")
    with pytest.raises(redetr.InputError, match=r"no panoptic segmentation.*detr_r50_panoptic"):
        detector.predict_panoptic(images)


def test_segments_of_images_with_five_bands():
    model = redetr.build("detr_r50_panoptic", 3, **OPTIONS, max_size=128, channels=5)
    detector = redetr.Detector(model, ("cup", "fork", "sky"), (1, 7, 92), 64, device="cpu")
    bands = torch.randint(0, 256, (5, 64, 50), dtype=torch.uint8)
    single = detector.predict_panoptic(bands)
    (of_list,) = detector.predict_panoptic([bands.permute(1, 2, 0).numpy()])
    assert torch.equal(single.ids, of_list.ids)
    assert torch.equal(single.detections.image, bands)
    with pytest.raises(redetr.InputError, match="this model takes uint8 images of 5 channels"):
        detector.predict_panoptic(bands[:3])


def test_segments_of_a_class_by_its_name(detector, images):
    segments = detector.predict_panoptic(images[0], 0.0)
    assert set(segments.of_classes("cup").detections.names) <= {"cup"}
    assert len(segments.of_classes("cup")) == segments.detections.names.count("cup")
    with pytest.raises(
        redetr.InputError, match="no class is called 'cu': the model knows cup, for"
    ):
        segments.of_classes("cu")


def test_masks_and_segments_can_be_changed(detector, images):
    for found in detector.predict(images, threshold=0.5):
        found.masks.logical_not_()
        found.boxes[:, 0] += 1
    for found in detector.predict_panoptic(images):
        found.detections.masks.logical_not_()
        found.detections.scores.mul_(0.5)
        found.panoptic.ids.zero_()
