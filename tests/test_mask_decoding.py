"""From mask logits of a model to masks of the original image, and through evaluation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reciting import Reciting

from redetr.data.formats.digits import DigitsDataset
from redetr.evaluation import evaluate
from redetr.postprocess import decode_masks, masks_of_size


def smooth_logits(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 4, 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic")[0]


@pytest.mark.parametrize("size", [(37, 91), (200, 60), (24, 32), (10, 9)])
def test_masks_of_a_whole_canvas_are_interpolated_once(size):
    logits = smooth_logits(6, 24, 32)
    logits[0] = -1  # no pixel at all
    logits[1] = 1
    expected = F.interpolate(logits.double()[None], size, mode="bilinear")[0]
    masks = masks_of_size(logits, (1, 1), size)
    assert masks.dtype == torch.bool and masks.shape == (6, *size)
    unsure = expected.abs() < 1e-5
    assert torch.equal(masks | unsure, (expected > 0) | unsure)
    assert not masks[0].any() and masks[1].all()


def test_padding_is_cut_off():
    """The image fills 12 of 16 rows and 20 of 32 columns of the canvas, at twice its stored size."""
    logits = smooth_logits(3, 16, 32)
    masks = masks_of_size(logits, (12 / 16, 20 / 32), (6, 10))
    # A stored pixel is two by two of the model's: its middle is where four of them meet.
    pooled = F.avg_pool2d(logits[None, :, :12, :20], 2)[0]
    assert torch.equal(masks, pooled > 0)


def test_interpolation_reaches_beyond_the_cells_inside():
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, 1, 2] = 9.0
    masks = masks_of_size(logits, (1, 1), (40, 40))[0]
    rows = masks.any(1).nonzero().flatten()
    # From the middle of the cell, at 15, the logit falls to 0 within 0.9 cells.
    assert rows.tolist() == list(range(6, 24))


def test_a_few_masks_at_a_time_in_the_order_of_the_queries():
    outputs = {"pred_masks": smooth_logits(50, 8, 8).view(2, 25, 8, 8)}
    queries = torch.tensor([*range(24, 0, -1), 3, 3])
    groups = list(decode_masks(outputs, 1, queries, (32, 32), (32, 32), (50, 60)))
    assert [len(group) for group in groups] == [16, 10]
    expected = masks_of_size(outputs["pred_masks"][1, queries], (1, 1), (50, 60))
    assert torch.equal(torch.cat(groups), expected)
    (none,) = decode_masks(outputs, 0, queries[:0], (32, 32), (32, 32), (5, 6))
    assert none.shape == (0, 5, 6)


def test_evaluation_measures_masks_where_the_data_states_them():
    dataset = DigitsDataset("val", size=24, masks=True)
    result = evaluate(Reciting(dataset), dataset, image_size=128, batch_size=5)
    assert result.ap > 0.99
    assert result.masks is not None
    # Strokes are a few pixels wide, masks a fourth of the image's resolution.
    assert 0.3 < result.masks.ap < 0.95 and result.masks.ap50 > 0.9
    boxes_alone = DigitsDataset("val", size=24)
    again = evaluate(Reciting(dataset), boxes_alone, image_size=128, batch_size=5)
    assert again.masks is None and again.metrics == result.metrics


def test_a_model_without_masks_is_measured_by_boxes():
    dataset = DigitsDataset("val", size=6, masks=True)
    model = Reciting(dataset)
    model.has_masks = False
    assert evaluate(model, dataset, image_size=128).masks is None
    assert np.isfinite(evaluate(Reciting(dataset), dataset, image_size=128).ap)
