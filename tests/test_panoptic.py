"""Post-processing of the panoptic DETR against the original's rules, written out and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from redetr.panoptic import (
    Panoptic,
    Segment,
    id2rgb,
    panoptic_of_batch,
    panoptic_segments,
    rgb2id,
)
from redetr.postprocess import original_masks

IS_THING = (True, True, False, False)


def logits_of(rows: list[str]) -> torch.Tensor:
    """Maps from rows of digits: the map of query k is high where the digit is k."""
    digits = torch.tensor([[int(digit) for digit in row] for row in rows])
    queries = torch.arange(int(digits.max()) + 1)
    return torch.where(digits == queries[:, None, None], 5.0, -5.0)


def ids(panoptic: Panoptic) -> list[str]:
    return ["".join(str(value) for value in row) for row in panoptic.ids.tolist()]


def test_each_pixel_belongs_to_the_best_query():
    maps = logits_of(["000111", "000111", "222222", "222222"])
    found = panoptic_segments(maps, [0, 1, 2], [0.9, 0.95, 0.99], IS_THING, (4, 6))
    assert ids(found) == ["111222", "111222", "333333", "333333"]
    assert found.segments == (
        Segment(1, 0, 0.9, 6, True),
        Segment(2, 1, 0.95, 6, True),
        Segment(3, 2, 0.99, 12, False),
    )


def test_raw_logits_compete_even_below_zero():
    """No pixel is empty, however low the best logit is: scores play no part."""
    maps = torch.tensor([[[-9.0] * 6], [[-8.0] * 6]])
    found = panoptic_segments(maps, [0, 1], [0.99, 0.86], IS_THING, (1, 6))
    assert ids(found) == ["111111"]
    assert found.segments == (Segment(1, 1, 0.86, 6, True),)


def test_segments_of_four_pixels_are_dropped_and_their_pixels_given_away():
    maps = logits_of(["0000111111", "2222211111"])
    maps[2, 0, :4] = 0.0  # the second best where the first query is
    found = panoptic_segments(maps, [0, 1, 1], [0.9, 0.9, 0.9], IS_THING, (2, 10))
    assert ids(found) == ["2222111111", "2222211111"]
    assert [segment.area for segment in found.segments] == [11, 9]


def test_dropping_goes_on_until_nothing_is_small():
    """Three of three pixels each: all are dropped at once, and nothing is left."""
    maps = logits_of(["000111222"])
    found = panoptic_segments(maps, [0, 1, 1], [0.9, 0.9, 0.9], IS_THING, (1, 9))
    assert ids(found) == ["000000000"]
    assert found.segments == ()


def test_stuff_is_merged_and_the_merged_segment_is_dropped_again():
    """The quirk: what was merged has no pixels left, so it is dropped, and its pixels are given
    away without merging: here to the thing, which is second best there."""
    maps = logits_of(["00000011111122222"])
    maps[0, 0, 12:] = -4.0
    found = panoptic_segments(maps, [0, 2, 2], [0.9, 0.9, 0.9], IS_THING, (1, 17))
    assert ids(found) == ["11111122222211111"]
    assert [(segment.label, segment.area) for segment in found.segments] == [(0, 11), (2, 6)]
    # Things of one class are never merged.
    things = panoptic_segments(maps, [0, 1, 1], [0.9, 0.9, 0.9], IS_THING, (1, 17))
    assert ids(things) == ["11111122222233333"]


def plain(maps, labels, orig_size):
    """The original's loop, with its own names and order: ids from 0, as a list of labels."""
    masks, kept = maps.clone(), list(labels)
    equivalents: dict[int, list[int]] = {}
    for i, label in enumerate(kept):
        if not IS_THING[label]:
            equivalents.setdefault(label, []).append(i)

    def areas(masks, merge):
        if len(masks) == 0:
            owner = np.zeros(masks.shape[1:], np.uint8)
        else:
            owner = masks.flatten(1).T.argmax(-1).view(masks.shape[1:]).numpy().copy()
        if merge:
            for same in equivalents.values():
                for other in same:
                    owner[owner == other] = same[0]
        image = Image.fromarray(id2rgb(owner)).resize(orig_size[::-1], Image.Resampling.NEAREST)
        owner = rgb2id(np.array(image))
        return owner, [int((owner == i).sum()) for i in range(len(masks))]

    owner, area = areas(masks, merge=True)
    while kept and min(area) <= 4:
        large = [i for i, value in enumerate(area) if value > 4]
        masks, kept = masks[large], [kept[i] for i in large]
        owner, area = areas(masks, merge=False)
    return owner, kept, area


@pytest.mark.parametrize("seed", range(12))
def test_the_whole_rule_written_out(seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 9, (1,), generator=generator))
    coarse = torch.randn(count, 5, 7, generator=generator)
    maps = F.interpolate(coarse[:, None], (40, 56), mode="bilinear")[:, 0] if count else coarse
    labels = torch.randint(0, 4, (count,), generator=generator).tolist()
    orig_size = [(33, 61), (80, 112), (9, 11), (40, 56)][seed % 4]
    owner, kept, area = plain(maps, labels, orig_size)
    found = panoptic_segments(maps, labels, [0.9] * count, IS_THING, orig_size)
    assert [segment.label for segment in found.segments] == kept
    assert [segment.area for segment in found.segments] == area
    if kept:
        assert np.array_equal(found.ids.numpy(), owner + 1)
    else:
        assert not found.ids.any()


def test_masks_are_computed_for_confident_queries_only():
    """Above 0.85, and not "no object"; the padding of the canvas is cut off first."""
    maps = torch.full((2, 3, 2, 4), -1.0)
    maps[1, 0, :, 2:] = 1.0
    maps[1, 2] = 0.0
    probabilities = torch.tensor(
        [
            [[0.84, 0.06, 0.05, 0.05], [0.05, 0.86, 0.05, 0.04], [0.02, 0.02, 0.02, 0.94]],
            [[0.90, 0.05, 0.03, 0.02], [0.32, 0.10, 0.10, 0.48], [0.02, 0.88, 0.05, 0.05]],
        ]
    )
    asked = []

    def masks_of(images: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        asked.append((images.tolist(), queries.tolist()))
        return maps[images, queries]

    outputs = {"pred_logits": probabilities.log(), "canvas": (8, 16), "masks_of": masks_of}
    sizes = [(8, 8), (4, 16)]
    first, second = panoptic_of_batch(outputs, sizes, [(8, 8), (8, 32)], IS_THING)
    assert asked == [([0], [1]), ([1, 1], [0, 2])]
    assert ids(first) == ["1" * 8] * 8
    assert first.segments == (Segment(1, 1, pytest.approx(0.86), 64, True),)
    # Between the centres at 5.5 and 9.5 the first logit rises from -1 to 1.
    assert ids(second) == ["2" * 16 + "1" * 16] * 8
    panoptic_of_batch(outputs, sizes, sizes, IS_THING, threshold=0.3)
    assert asked[2:] == [([0, 0], [0, 1]), ([1, 1], [0, 2])]


def test_an_instance_is_decided_where_the_model_saw_it():
    """Bilinear to the padded canvas, above 0, cut, and to the nearest pixel from the corners."""
    logits = torch.tensor([[[3.0, -1.0, -9.0], [3.0, -1.0, -9.0]]])
    # On 12 columns, the logit falls from 3 at 1.5 to -1 at 5.5: it is above 0 up to column 4.
    same = original_masks(logits, (8, 12), (8, 8), (8, 8))
    assert same[0, 0].tolist() == [True] * 5 + [False] * 3
    # Columns 0, 2, 4, 6. By the centres they would be 1, 3, 5, 7.
    smaller = original_masks(logits, (8, 12), (8, 8), (4, 4))
    assert smaller[0].tolist() == [[True, True, True, False]] * 4
    larger = original_masks(logits, (8, 12), (8, 8), (16, 16))
    assert larger[0].tolist() == [[True] * 10 + [False] * 6] * 16
    assert original_masks(logits[:0], (8, 12), (8, 8), (5, 7)).shape == (0, 5, 7)


def test_colours_are_digits_of_ids():
    values = np.array([[0, 1, 255, 256, 65536, 16777215, 7000]])
    colours = id2rgb(values)
    assert colours.dtype == np.uint8
    expected = [[0, 0, 0], [1, 0, 0], [255, 0, 0], [0, 1, 0], [0, 0, 1], [255] * 3, [88, 27, 0]]
    assert colours[0].tolist() == expected
    assert np.array_equal(rgb2id(colours), values)
    with pytest.raises(ValueError, match="16777216"):
        id2rgb(np.array([[1 << 24]]))


def test_a_png_and_its_list():
    maps = logits_of(["000111", "222222"])
    found = panoptic_segments(maps, [0, 1, 3], [0.9, 0.95, 0.99], IS_THING, (4, 12))
    assert np.array_equal(rgb2id(np.array(found.to_png())), found.ids.numpy())
    assert found.segments_info([7, 8, 92, 93])[2] == {
        "id": 3, "category_id": 93, "isthing": 0, "area": 24, "score": 0.99,
    }  # fmt: skip
