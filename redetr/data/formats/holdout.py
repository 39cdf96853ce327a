"""A val split for data sets without one: which images are held out.

Shapes: N images, A objects, C classes.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redetr.data.annotations import Annotations, Split
from redetr.errors import InputError
from redetr.wording import counted

Bools = NDArray[np.bool_]


def for_a_single_image(source: str | Path) -> str:
    """The remedy if the data set at `source` cannot be divided."""
    convert = f"redetr convert {source} {source}-tiles --tile 640 --overlap 0"
    return (
        f"cut it into tiles ({convert}), some of which can be held out (--val-fraction 0.2), or "
        "annotate a second image"
    )


def hold_out(
    annotations: Annotations, split: Split, fraction: float, source: str | Path
) -> tuple[Annotations, str]:
    """A train or val split of the images of both, which the user calls `source`, and a sentence
    about it.

    The split depends on names, classes and the fraction alone, so it is the same for every seed,
    rank and format. Raises InputError if one of the two would be empty.
    """
    if len(annotations) == 1:
        raise InputError(
            f"--val-fraction {fraction} cannot divide a single image",
            where=annotations.source,
            remedy=for_a_single_image(source),
        )
    is_val = held_out(annotations, fraction)
    images = is_val if split == "val" else ~is_val
    every_object = np.ones(len(annotations.boxes), bool)
    part = annotations.only(images, every_object)
    share = f"{is_val.sum():,} of {counted(len(is_val), 'image')}"
    return part, (
        f"no val split: {share} are held out for validation, chosen by a hash of their names, with "
        "about that share of each class"
    )


def held_out(annotations: Annotations, fraction: float) -> Bools:
    """Whether each of the N images is held out: `fraction` of them, rounded, and of the images of
    each class, as far as possible.

    Images are taken in the order of a hash of their names. Classes are dealt with one after the
    other, those of the fewest images first; images without objects come last. Then single images
    change sides until the number is right, those of frequent classes first. Raises InputError if
    a side would be empty, or no image is sound.

    Source: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD
    2011, for the order of classes. Deviation: each class is dealt with at once, in time that grows
    with N and not with its square.
    """
    num_images = len(annotations)
    if num_images == 0:
        annotations.require_sound()  # what is wrong with all of them
    wanted = int(fraction * num_images + 0.5)
    if wanted in (0, num_images):
        raise InputError(
            f"--val-fraction {fraction} holds out {wanted:,} of {counted(num_images, 'image')}",
            where=annotations.source,
            remedy="choose another one",
        )
    hashes = np.array([_hash(name) for name in annotations.names.tolist()], np.uint64)
    order = np.argsort(hashes, kind="stable")
    is_val, frequency = _deal(annotations, order, fraction)
    without_objects = order[frequency[order] == 0]
    is_val[without_objects[: max(0, wanted - int(is_val.sum()))]] = True
    surplus = int(is_val.sum()) - wanted
    candidates = order[is_val[order] == (surplus > 0)]
    frequent_first = candidates[np.argsort(-frequency[candidates], kind="stable")]
    is_val[frequent_first[: abs(surplus)]] = surplus < 0
    return is_val


def _deal(
    annotations: Annotations, order: NDArray[np.int64], fraction: float
) -> tuple[Bools, NDArray[np.int64]]:
    """Which images are held out so that their classes are, `[N]`, and how many images have the
    rarest class of each, `[N]`; 0 where there is no object."""
    rank = np.argsort(order)
    is_val = np.zeros(len(order), bool)
    frequency = np.zeros(len(order), np.int64)
    for images in sorted(_images_by_class(annotations, rank), key=len):
        wanted = int(fraction * len(images) + 0.5)
        if len(images) > 1:  # one on each side, if there are two
            wanted = min(max(wanted, 1), len(images) - 1)
        remaining = images[frequency[images] == 0]
        missing = max(0, wanted - int(is_val[images].sum()))
        is_val[remaining[:missing]] = True
        frequency[remaining] = len(images)
    return is_val, frequency


def _images_by_class(annotations: Annotations, rank: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The images of each class that has objects, in the order of `rank` `[N]`."""
    pairs = np.column_stack([annotations.labels, rank[annotations.image_of()]])
    pairs = np.unique(pairs, axis=0)  # sorted by class, then by rank
    image_of_rank = np.argsort(rank)
    images = image_of_rank[pairs[:, 1]]
    ends = np.flatnonzero(np.diff(pairs[:, 0])) + 1
    return [part for part in np.split(images, ends) if len(part)]


def is_chosen(name: bytes, fraction: float) -> bool:
    """Whether a name is of a `fraction` of all; nothing but the name decides."""
    return _hash(name) < fraction * 2**64


def _hash(name: bytes) -> int:
    """A number of 64 bits that only the name decides."""
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "big")
