"""Panoptic segmentation: every pixel of an image belongs to one thing, one kind of stuff, or none.

`panoptic_segments` is the post-processing of the original panoptic DETR, whose published PQ
contains its peculiarities:

- Segments compete at each pixel with raw logits, not with scores; a query counts if its score is
  above 0.85.
- Segments of one class of stuff are merged, and those that are then 4 pixels or less are dropped: a
  segment that was merged into another has none left, so it is always dropped.
- What remains is computed again after that, without merging, until nothing is dropped. So pixels of
  a dropped segment go to the best of the others, whatever its class.

Deviations: the padding of a batch is cut off before anything is resized, where the original
squeezes it into the image (its numbers were measured on single images, which have none); logits are
compared before their softmax over queries, which only decides ties; ids of segments start at 1, as
0 is "no segment" in the PNG format of COCO. For the masks of single objects see
`postprocess.original_masks`.

Shape letters: K queries, H W the original image, h w the maps of the model at stride 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from redetr.postprocess import best_classes
from redetr.structures import Outputs, Size

THRESHOLD = 0.85  # of scores, as published
_SMALLEST_PX = 4  # segments of as many pixels or fewer are dropped


@dataclass(frozen=True)
class Segment:
    """One thing, or all of one kind of stuff, in an image."""

    id: int  # its pixels in the map of segments, from 1
    label: int  # in [0, C)
    score: float
    area: int  # pixels of the original image
    is_thing: bool


@dataclass(frozen=True, eq=False)
class Panoptic:
    """The segments of an image."""

    ids: Tensor  # [H, W] int32, the id of the segment of each pixel, 0 = none
    segments: tuple[Segment, ...]

    def to_png(self) -> Image.Image:
        """The map in COCO's panoptic format: the colour of a pixel is the id of its segment."""
        return Image.fromarray(id2rgb(self.ids.numpy()))

    def segments_info(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The segments as COCO's panoptic JSON lists them; `category_ids` are those of labels."""
        entries = []
        for segment in self.segments:
            entry = {
                "id": segment.id,
                "category_id": category_ids[segment.label],
                "isthing": int(segment.is_thing),
                "area": segment.area,
                "score": round(segment.score, 6),
            }
            entries.append(entry)
        return entries

    def masks(self) -> Tensor:
        """The mask of each segment, in the order of `segments`, bool `[N, H, W]`."""
        numbers = torch.arange(1, len(self.segments) + 1, dtype=self.ids.dtype)
        return self.ids == numbers[:, None, None]


def id2rgb(ids: NDArray) -> NDArray[np.uint8]:
    """Colours `[H, W, 3]` of ids `[H, W]`: R + 256 G + 65536 B.

    Raises ValueError for an id that has no colour.
    """
    largest = 256**3 - 1
    if ids.size and (ids.min() < 0 or ids.max() > largest):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: colours have 0 to {largest}")
    ids = ids.astype(np.int64)
    red = ids % 256
    green = ids // 256 % 256
    blue = ids // 256**2
    return np.stack([red, green, blue], -1).astype(np.uint8)


def rgb2id(colours: NDArray) -> NDArray[np.int32]:
    """Ids `[H, W]` of colours uint8 `[H, W, 3]`, such as those of a PNG of `Panoptic.to_png`."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red + 256 * green + 256**2 * blue


def panoptic_of_batch(
    outputs: Outputs,
    sizes: Sequence[Size],
    orig_sizes: Sequence[Size],
    is_thing: Sequence[bool],
    threshold: float = THRESHOLD,
) -> list[Panoptic]:
    """The segments of each image of a batch, in pixels of the original images; masks are computed
    for the queries that count.

    `outputs` hold `pred_logits` `[B, Q, C + 1]` with "no object" last, `masks_of` and `canvas`.
    `sizes` are those of the images in the model's input, without padding, and `orig_sizes` those of
    the original images, (height, width) in px. `is_thing` `[C]` states whether each class is a
    thing. Queries whose score is not above `threshold` do not count.
    """
    all_scores, all_labels = best_classes(outputs["pred_logits"], "softmax")  # [B, Q] each
    # "No object" has to be less likely than the class, which a score above a half implies.
    no_object = outputs["pred_logits"].float().softmax(-1)[..., -1]
    all_counted = (all_scores > threshold) & (all_scores > no_object)
    panoptics = []
    for i, (size, orig_size) in enumerate(zip(sizes, orig_sizes, strict=True)):
        (queries,) = torch.nonzero(all_counted[i], as_tuple=True)
        logits = outputs["masks_of"](torch.full_like(queries, i), queries)  # [K, h, w]
        on_canvas = F.interpolate(logits[:, None].float(), size=outputs["canvas"], mode="bilinear")
        height, width = size
        masks = on_canvas[:, 0, :height, :width]
        labels = all_labels[i, queries].tolist()
        scores = all_scores[i, queries].tolist()
        panoptics.append(panoptic_segments(masks, labels, scores, is_thing, orig_size))
    return panoptics


def panoptic_segments(
    masks: Tensor,
    labels: Sequence[int],
    scores: Sequence[float],
    is_thing: Sequence[bool],
    orig_size: Size,
) -> Panoptic:
    """The segments of an image of `orig_size` (H, W), from the logits `[K, h, w]` of queries,
    without padding, at the size of the model's input.

    `labels` `[K]` are in [0, C), and `is_thing` `[C]` says which of these are things.
    """
    kept = list(range(len(masks)))
    owners = _owners(masks, orig_size, _merged(labels, is_thing))
    while kept:
        areas = np.bincount(owners.ravel(), minlength=len(kept))
        large = [i for i in range(len(kept)) if areas[i] > _SMALLEST_PX]
        if len(large) == len(kept):
            break
        kept = [kept[i] for i in large]
        owners = _owners(masks[kept], orig_size, list(range(len(kept))))
    if not kept:
        return Panoptic(torch.zeros(orig_size, dtype=torch.int32), ())
    segments = []
    for position, query in enumerate(kept):
        segment = Segment(
            id=position + 1,
            label=labels[query],
            score=scores[query],
            area=int(areas[position]),
            is_thing=is_thing[labels[query]],
        )
        segments.append(segment)
    return Panoptic(torch.from_numpy(owners + 1), tuple(segments))


def _merged(labels: Sequence[int], is_thing: Sequence[bool]) -> list[int]:
    """For each query the one that its pixels count for: of a class of stuff, the first query."""
    first_of_class: dict[int, int] = {}
    merged = []
    for query, label in enumerate(labels):
        first = query
        if not is_thing[label]:
            first = first_of_class.setdefault(label, query)
        merged.append(first)
    return merged


def _owners(masks: Tensor, orig_size: Size, merged: list[int]) -> NDArray[np.int32]:
    """The index of the mask that each pixel of the original image belongs to, `[H, W]`; all 0 if
    there are no masks."""
    if not len(masks):
        return np.zeros(orig_size, np.int32)
    best = masks.argmax(0)  # [h, w]
    best = torch.tensor(merged, device=best.device)[best]
    height, width = orig_size
    image = Image.fromarray(best.cpu().numpy().astype(np.int32))
    # The nearest pixel as Pillow rounds it: by the centres.
    return np.array(image.resize((width, height), Image.Resampling.NEAREST))
