"""The images that the page of a check shows, and whether they can be decoded."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from redetr.data.annotations import Annotations, Split
from redetr.data.dataset import spread_indices
from redetr.data.header_cache import Header, Headers
from redetr.errors import InputError

_SAMPLES: dict[Split, int] = {"train": 8, "val": 4, "test": 4}
_AUGMENTED_SAMPLES = 3

Sample = tuple[Split, int]  # image `i` of a split
Pixels = Callable[[Split, int], Tensor]  # image `i` of a split, uint8 [channels, H, W]


def samples_of(
    splits: Mapping[Split, Annotations], headers: Mapping[Split, Headers]
) -> list[Sample]:
    """Some images of each split, evenly spread over those with objects and a sound header."""
    samples: list[Sample] = []
    for split, annotations in splits.items():
        usable = annotations.object_counts() > 0
        if split in headers:
            usable &= headers[split].is_sound()
        for index in _spread(np.flatnonzero(usable), _SAMPLES[split]):
            samples.append((split, index))
    return samples


def augmented_samples(num_images: int) -> list[int]:
    """Some images of train, to be shown as training sees them."""
    return _spread(np.arange(num_images), _AUGMENTED_SAMPLES)


def decode_samples(
    samples: list[Sample],
    splits: Mapping[Split, Annotations],
    headers: Mapping[Split, Headers],
    pixels: Pixels,
) -> list[Sample]:
    """The samples that can be decoded. Of the others, and of `augmented_samples` that cannot, the
    headers are replaced by the reason, as those of other files that cannot be read.

    Images without headers are not decoded: they are drawn.
    """
    to_decode = list(samples)
    if "train" in splits:
        num_images = len(splits["train"])
        to_decode += [("train", index) for index in augmented_samples(num_images)]
    for split, index in to_decode:
        if split not in headers or not _is_readable(split, index, headers):
            continue
        try:
            pixels(split, index)
        except InputError as error:
            headers[split].put(index, Header(problem=error.text))
    return [(split, index) for split, index in samples if _is_readable(split, index, headers)]


def _is_readable(split: Split, index: int, headers: Mapping[Split, Headers]) -> bool:
    return split not in headers or index not in headers[split].problems


def _spread(indices: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices, evenly spread."""
    return indices[spread_indices(count, len(indices))].tolist()
