"""Chooses the images that are held out for validation, for data sets without a val split.

Shapes: N images, A objects, C classes.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redetr.bounds import require_in_bounds
from redetr.data.annotations import Annotations, Split
from redetr.errors import InputError
from redetr.wording import counted

Bools = NDArray[np.bool_]


def for_a_single_image(source: str | Path) -> str:
    """The remedy for a data set at `source` with a single image, which cannot be divided."""
    convert = f"redetr convert {source} {source}-tiles --tile 640 --overlap 0"
    return (
        f"cut it into tiles ({convert}), some of which can be held out (--val-fraction 0.2), or "
        "annotate a second image"
    )


def hold_out(
    annotations: Annotations, split: Split, fraction: float, source: str | Path
) -> tuple[Annotations, str]:
    """The train or val split of annotations that have the images of both, and a sentence on it.

    The split depends only on names, classes and the fraction, so it is the same for every seed,
    rank and format. `source` is the user's name for the data set. Raises InputError if one of the
    two splits would be empty, which names the first error if there are any: images with errors are
    left out.
    """
    if len(annotations) == 1:
        annotations.require_sound()
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
    """Whether each image is held out, bool `[N]`: `fraction` of all images, rounded, and as far as
    possible, of the images of each class.

    Images are taken in the order of a hash of their names. Classes are processed one after another,
    those with the fewest images first, and images without objects last. Then single images change
    sides until the number is right, those of frequent classes first. Raises InputError if a side
    would be empty, if all images have errors, or for a fraction out of `BOUNDS`.

    Source: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD
    2011, for the order of classes. Deviation: all images of a class are assigned at once, in time
    linear in N instead of quadratic.
    """
    require_in_bounds("val_fraction", fraction)
    num_images = len(annotations)
    if num_images == 0:
        annotations.require_sound()  # raises: all images have errors
    wanted = int(fraction * num_images + 0.5)
    if wanted in (0, num_images):
        annotations.require_sound()
        raise InputError(
            f"--val-fraction {fraction} holds out {wanted:,} of {counted(num_images, 'image')}",
            where=annotations.source,
            remedy="choose a fraction that leaves images on both sides",
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
    """Which images are held out to have the fraction of each class, bool `[N]`, and the number of
    images with the rarest class in each image, `[N]`, which is 0 for images without objects."""
    rank = np.argsort(order)
    is_val = np.zeros(len(order), bool)
    frequency = np.zeros(len(order), np.int64)
    for images in sorted(_images_by_class(annotations, rank), key=len):
        wanted = int(fraction * len(images) + 0.5)
        if len(images) > 1:  # at least one image on each side
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
    """Whether a name belongs to this `fraction` of all names. Depends only on the name."""
    return _hash(name) < fraction * 2**64


def _hash(name: bytes) -> int:
    """A number of 64 bits that depends only on the name."""
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "big")
