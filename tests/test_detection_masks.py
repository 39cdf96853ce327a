"""Masks of `Detections`: selected, drawn and converted."""

import json
from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reciting import reciting

from redetr.cli import main
from redetr.data.formats.digits import DigitsDataset
from redetr.detector.detections import Detections
from redetr.errors import InputError
from redetr.masks import CroppedMasks, MaskCrop, crops_of
from tests.test_explain import picture, small_detector


def two_squares():
    """In an image of 20x30 px: one of 6x6 px, and one of 8x4 px with a hole, which it overlaps."""
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:8, 3:9] = True
    masks[1, 6:10, 5:13] = True
    masks[1, 8, 8] = False
    return Detections(
        scores=torch.tensor([0.9, 0.6]),
        labels=torch.tensor([1, 0]),
        boxes=torch.tensor([[3.0, 2.0, 9.0, 8.0], [5.0, 6.0, 13.0, 10.0]]),
        class_names=("cat", "dog"),
        category_ids=(3, 18),
        image_size=(20, 30),
        masks=masks,
    )


@pytest.fixture(scope="module")
def scenes():
    return DigitsDataset("val", size=3, masks=True)


def test_selections_keep_their_masks():
    detections = two_squares()
    assert torch.equal(detections[1:].masks, detections.masks[1:])
    assert torch.equal(detections[[1, 0]].masks, detections.masks.flip(0))
    assert torch.equal(detections.above(0.7).masks, detections.masks[:1])
    assert torch.equal(detections.of_classes(["cat"]).masks, detections.masks[1:])
    assert detections.above(0.95).masks.shape == (0, 20, 30)
    assert "2 with masks in an image of 30x20 px" in repr(detections)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_files_of_coco_hold_the_pixels():
    detections = two_squares()
    for content in (detections.to_dict()["detections"], detections.to_coco(5)):
        for entry, mask in zip(json.loads(json.dumps(content)), detections.masks, strict=True):
            assert (pycocotools.mask.decode(entry["segmentation"]) == mask.numpy()).all()
    for entry, mask in zip(detections.to_coco(5, "polygons"), detections.masks, strict=True):
        parts = pycocotools.mask.frPyObjects(entry["segmentation"], 20, 30)
        assert (pycocotools.mask.decode(pycocotools.mask.merge(parts)) == mask.numpy()).all()
    for content in (detections.to_dict("none")["detections"], detections.to_coco(5, "none")):
        assert all("segmentation" not in entry for entry in content)
    assert [detection.name for detection in detections] == ["dog", "cat"]


def test_one_image_of_all_masks():
    detections = two_squares()
    numbers = np.asarray(detections.mask_image())
    assert numbers.dtype == np.uint8
    assert (numbers == 1).sum() == 36 and (numbers == 2).sum() == 31 - 8
    many = detections[[1] * 300]
    assert np.asarray(many.mask_image()).max() == 1 and many.mask_image().mode == "I;16"
    boxes_alone = Detections(**(vars(detections) | {"masks": None}))
    with pytest.raises(InputError, match="only boxes"):
        boxes_alone.mask_image()


def test_supervision_gets_masks():
    supervision = pytest.importorskip("supervision")
    converted = two_squares().to_supervision()
    assert isinstance(converted, supervision.Detections)
    assert (converted.mask == two_squares().masks.numpy()).all()


def test_masks_are_drawn_in_a_color_for_each_object():
    detections = two_squares()[[1]]
    drawn = np.asarray(detections.draw(Image.new("RGB", (30, 20)), scale=10, labels="none"))
    inside, hole, outside = drawn[72, 100], drawn[85, 85], drawn[130, 100]
    assert inside.max() > 60 and not outside.any() and not hole.any()
    edge = drawn[80, 85]  # of the hole
    assert edge.max() > inside.max()
    both = detections[[0, 0]]
    pixels = np.asarray(both[[1]].draw(Image.new("RGB", (30, 20)), scale=10, labels="none"))
    assert (pixels == drawn).all()
    assert (np.asarray(both.draw(Image.new("RGB", (30, 20)), scale=10)) != drawn).any()


def test_a_detector_finds_masks_in_pixels_of_the_image(scenes):
    image, target = scenes.sample(0)
    detections = reciting(scenes).predict(image)
    count = len(target["labels"])
    assert detections.masks.shape == (count, 128, 128)
    sums = target["masks"].sum((1, 2))
    for mask, box in zip(detections.masks, detections.boxes, strict=True):
        shared = (mask & target["masks"]).sum((1, 2))
        iou = shared / (mask.sum() + sums - shared)
        best = int(iou.argmax())
        assert iou[best] > 0.6
        torch.testing.assert_close(box, target["boxes"][best], atol=1e-3, rtol=0)


def test_masks_can_be_left_out(scenes):
    image = scenes.image(0)
    with_masks = reciting(scenes).predict([image])[0]
    (boxes_alone,) = reciting(scenes).predict([image], masks=False)
    assert with_masks.masks is not None and boxes_alone.masks is None
    assert torch.equal(with_masks.boxes, boxes_alone.boxes)


def test_masks_of_tiles_are_those_of_their_images(scenes):
    """Two images side by side, each of which is a tile."""
    image = torch.cat([scenes.image(0), scenes.image(1)], 2)
    in_tiles = reciting(scenes).predict(image, tile=128, overlap=0.0)
    alone = reciting(scenes).predict([scenes.image(0), scenes.image(1)])
    masks = []
    boxes = []
    for detections, left in zip(alone, (0, 128), strict=True):
        masks.append(F.pad(detections.masks, (left, 128 - left)))
        boxes.append(detections.boxes + torch.tensor([left, 0, left, 0]))
    by_box = torch.cat(boxes).sum(1).argsort()
    assert isinstance(in_tiles.masks, CroppedMasks)
    assert in_tiles.masks.shape == (len(by_box), 128, 256)
    assert torch.equal(
        in_tiles.masks.dense()[in_tiles.boxes.sum(1).argsort()], torch.cat(masks)[by_box]
    )
    assert reciting(scenes).predict(image, tile=128, masks=False).masks is None


def cropped(detections):
    crops = tuple(crops_of(detections.masks))
    return replace(detections, masks=CroppedMasks(crops, detections.image_size))


def test_cropped_masks_are_used_as_whole_ones():
    dense = two_squares()  # of which one mask becomes empty
    dense = replace(dense, masks=torch.cat([dense.masks[:1], torch.zeros_like(dense.masks[1:])]))
    grey = Image.new("RGB", (30, 20), (90, 90, 90))
    for whole in (two_squares(), dense):
        crops = cropped(whole)
        assert torch.equal(crops.masks.dense(), whole.masks)
        assert torch.equal(crops.masks[1], whole.masks[1])
        assert torch.equal(torch.stack(list(crops.masks)), whole.masks)
        assert torch.equal(crops[[1]].masks.dense(), whole.masks[[1]])
        for masks in ("rle", "polygons"):
            assert crops.to_coco(1, masks) == whole.to_coco(1, masks)
        assert np.array_equal(crops.mask_image(), whole.mask_image())
        assert np.array_equal(crops.to_supervision().mask, whole.masks)
        for within_px in (None, 15):
            drawn = [d.draw(grey, within_px=within_px) for d in (crops, whole)]
            assert np.array_equal(*drawn)


def test_crops_of_parts_together():
    left = MaskCrop(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    right = MaskCrop(torch.eye(2, dtype=torch.bool), 5, 7)
    empty = MaskCrop(torch.zeros(0, 0, dtype=torch.bool), 0, 0)
    whole = MaskCrop.union([left, empty, right])
    assert (whole.top, whole.left) == (4, 5)
    assert whole.pixels.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert MaskCrop.union([empty]) == empty and MaskCrop.union([empty, left]) == left


@pytest.fixture
def known(scenes, monkeypatch, tmp_path):
    """Where images of the scenes are, which the checkpoint "known" recites."""
    monkeypatch.setattr("redetr.detector.detector.load", lambda *_, **__: reciting(scenes))
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        pixels = scenes.image(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def predict(known, *flags):
    output = known.parent / "out"
    flags = [*map(str, flags), "--device=cpu", "--precision=fp32"]
    main(["predict", "known", str(known), "--output", str(output), *flags])
    return output


def test_predict_writes_masks_in_every_format(known, scenes, capsys):
    output = predict(known, "--save", "png", "masks", "json", "coco")
    written = json.loads((output / "predictions.json").read_text())
    entries = json.loads((output / "predictions.coco.json").read_text())
    entry_of = iter(entries)
    for index in range(2):
        line = written[str(known / f"{index}.png")]
        assert line["mask_picture"] == f"{index}.masks.png"
        numbers = np.asarray(Image.open(output / line["mask_picture"]))
        free = np.ones_like(numbers, bool)
        for number, detection in enumerate(line["detections"], start=1):
            mask = pycocotools.mask.decode(detection["segmentation"]).astype(bool)
            assert ((numbers == number) == (mask & free)).all()
            free &= ~mask
            assert next(entry_of)["segmentation"] == detection["segmentation"]
        assert (output / f"{index}.png").exists()
    # What redetr wrote is no source, and is deleted with its record.
    with pytest.raises(SystemExit):
        main(["predict", "known", str(output), "--output", str(known.parent / "again")])
    assert "0.masks.png is an image that redetr wrote" in capsys.readouterr().err
    predict(known, "--overwrite", "--save", "json", "--masks", "polygons")
    assert not (output / "0.masks.png").exists()
    line = json.loads((output / "predictions.jsonl").read_text().splitlines()[0])
    assert isinstance(line["detections"][0]["segmentation"][0][0], int)
    assert "mask_picture" not in line


def test_predict_writes_masks_of_tiles(known):
    output = predict(known, "--save", "png", "masks", "json", "--tile", 128)
    line = json.loads((output / "predictions.jsonl").read_text().splitlines()[0])
    mask = pycocotools.mask.decode(line["detections"][0]["segmentation"]).astype(bool)
    numbers = np.asarray(Image.open(output / line["mask_picture"]))
    assert mask.any() and np.array_equal(numbers == 1, mask)


def test_detections_in_a_smaller_copy_of_the_image():
    detector = small_detector("redetr_n", masks=True)
    image = picture()
    whole = detector.predict(image, threshold=0.0)
    small = detector.predict_at_size(image, (30, 45), threshold=0.0)
    assert small.image_size == (30, 45)
    assert torch.equal(small.scores, whole.scores)
    torch.testing.assert_close(2 * small.boxes, whole.boxes)
    assert small.masks.shape == (len(whole), 30, 45)
    assert 0.01 < small.masks.float().mean() < 0.99
    assert (small.masks == whole.masks[:, ::2, ::2]).float().mean() > 0.95
