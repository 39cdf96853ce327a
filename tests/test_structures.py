"""The contract of `collate` and of a `Batch`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import redetr
from redetr.data.loader import canvas_of, images_to_batch, to_batch
from redetr.data.transforms import normalize
from redetr.structures import DatasetDetections


def test_images_are_padded_with_zeros_at_the_right_and_bottom():
    first, second = torch.full((3, 2, 4), 5.0), torch.full((3, 3, 1), 7.0)
    batch = redetr.collate([first, second])
    assert batch.images.shape == (2, 3, 3, 4)
    assert batch.images[0, 1].tolist() == [[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 0, 0]]
    assert batch.images[1, 2].tolist() == [[7, 0, 0, 0]] * 3
    assert len(batch) == 2


def test_the_mask_is_true_where_there_is_padding():
    batch = redetr.collate([torch.zeros(3, 2, 4), torch.zeros(3, 3, 1)])
    assert batch.mask.dtype == torch.bool
    assert batch.mask[0].tolist() == [[False] * 4, [False] * 4, [True] * 4]
    assert batch.mask[1].tolist() == [[False, True, True, True]] * 3


def test_a_canvas_may_be_larger_but_not_smaller():
    assert redetr.collate([torch.zeros(3, 2, 4)], canvas=(5, 6)).images.shape == (1, 3, 5, 6)
    for canvas in ((1, 9), (9, 3)):
        with pytest.raises(ValueError, match="2x4 does not fit"):
            redetr.collate([torch.zeros(3, 2, 4)], canvas=canvas)


def test_padding_is_none_where_every_image_fills_the_canvas():
    images = [torch.zeros(3, 2, 4), torch.zeros(3, 2, 4)]
    assert redetr.collate(images).padding is None
    in_canvas = redetr.collate(images, canvas=(3, 4))
    assert in_canvas.padding is in_canvas.mask
    smaller = redetr.collate([*images, torch.zeros(3, 2, 3)])
    assert smaller.padding is smaller.mask
    assert smaller.sizes == [(2, 4), (2, 4), (2, 3)]


def test_padding_is_the_mask_where_sizes_are_unknown():
    batch = redetr.Batch(torch.zeros(1, 3, 2, 4), torch.zeros(1, 2, 4, dtype=torch.bool))
    assert batch.padding is batch.mask


@pytest.mark.parametrize("second", [torch.ones(1, 4, 4), torch.ones(4, 4)])
def test_images_of_other_shapes_are_not_repeated_to_fit(second):
    with pytest.raises(ValueError, match=r"image 1 is \[.*4, 4\], expected \[3, h, w\]"):
        redetr.collate([torch.ones(3, 4, 4), second])


def test_nothing_to_collate():
    with pytest.raises(ValueError, match="at least one image"):
        redetr.collate([])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_kind_of_number_is_kept(dtype):
    images = [torch.ones(3, 2, 2, dtype=dtype), torch.ones(3, 1, 3, dtype=dtype)]
    assert redetr.collate(images).images.dtype == dtype
    assert images[0].shape == (3, 2, 2)  # the images themselves are left alone


def samples(*sizes: tuple[int, int]) -> list:
    return [
        (torch.full((3, *size), 128, dtype=torch.uint8), {"size": size, "image_id": 0})
        for size in sizes
    ]


def test_padding_is_known_without_looking_at_the_mask():
    cpu = torch.device("cpu")
    assert to_batch(samples((4, 6), (4, 6)), cpu).padding is None
    some = to_batch(samples((4, 6), (3, 6)), cpu)
    assert torch.equal(some.padding, some.mask)
    in_canvas = to_batch(samples((4, 6)), cpu, canvas=(8, 8))
    assert in_canvas.padding.sum() == 8 * 8 - 4 * 6


def test_padding_is_zero_after_normalisation():
    batch = to_batch(samples((4, 6), (3, 6)), torch.device("cpu"))
    assert (batch.images[1, :, 3] == 0).all()
    assert (batch.images[1, :, :3] != 0).all()
    assert [target["size"] for target in batch.targets] == batch.sizes == [(4, 6), (3, 6)]


def test_images_without_targets_are_batched_in_the_same_way():
    with_targets = to_batch(samples((4, 6), (3, 6)), torch.device("cpu"), dtype=torch.float64)
    images = [image for image, _ in samples((4, 6), (3, 6))]
    batch = images_to_batch(images, torch.device("cpu"), dtype=torch.float64)
    assert torch.equal(batch.images, with_targets.images)
    assert torch.equal(batch.padding, with_targets.padding)
    assert batch.targets == []
    assert images_to_batch(images[:1], torch.device("cpu")).padding is None


def test_canvas_of_samples():
    assert canvas_of(samples((4, 6), (7, 2))) == (7, 6)


def test_images_are_normalised_with_the_statistics_of_imagenet():
    # black is (0 - mean) / std, white (1 - mean) / std
    black, white = (
        torch.zeros(3, 1, 1, dtype=torch.uint8),
        torch.full((3, 1, 1), 255, dtype=torch.uint8),
    )
    assert normalize(black).flatten().tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )
    assert normalize(white).flatten().tolist() == pytest.approx(
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]
    )


def detections(count: int, start: int = 0) -> DatasetDetections:
    return DatasetDetections(
        image_index=np.arange(start, start + count),
        labels=np.arange(count) % 2,
        scores=np.linspace(0.1, 0.9, count, dtype=np.float32),
        boxes=np.arange(4 * count, dtype=np.float32).reshape(count, 4),
    )


def test_detections_of_data_sets_are_joined_and_selected():
    joined = DatasetDetections.concatenate([detections(3), detections(2, start=3)])
    assert len(joined) == 5
    assert joined.image_index.tolist() == [0, 1, 2, 3, 4]
    assert joined.boxes[3].tolist() == [0, 1, 2, 3]
    kept = joined.keep(joined.labels == 1)
    assert kept.image_index.tolist() == [1, 4]
    assert kept.boxes.shape == (2, 4)
    assert joined.keep(np.array([4, 0])).image_index.tolist() == [4, 0]


def test_no_detections_have_the_shapes_of_some():
    nothing = DatasetDetections.concatenate([])
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.labels.dtype == nothing.image_index.dtype == np.int64
    assert nothing.scores.dtype == nothing.boxes.dtype == np.float32


@pytest.mark.parametrize("name", ["image_index", "labels", "scores", "boxes"])
def test_arrays_of_different_lengths_are_refused(name):
    whole = detections(3)
    with pytest.raises(ValueError, match="do not fit together"):
        replace(whole, **{name: getattr(whole, name)[:2]})


def test_masks_stay_with_their_detections():
    first = replace(detections(2), masks=[b"a", b"b"])
    second = replace(detections(1, start=2), masks=[b"c"])
    none = detections(0)
    joined = DatasetDetections.concatenate([first, none, second])
    assert joined.masks == [b"a", b"b", b"c"]
    assert joined.keep(np.array([2, 0])).masks == [b"c", b"a"]
    assert joined.keep(np.array([False, True, True])).masks == [b"b", b"c"]
    assert detections(2).keep(np.array([0])).masks is None
    assert DatasetDetections.concatenate([detections(2)]).masks is None
    with pytest.raises(ValueError, match="2 masks for 3 detections"):
        DatasetDetections.concatenate([first, detections(1)])
