"""Chooses the images that are held out for validation, for data sets without a val split.

Shapes: N images, P photographs, A objects, C classes.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redetr.bounds import require_in_bounds
from redetr.data.annotations import Annotations, Split
from redetr.data.faults import Fault
from redetr.data.formats.photographs import photographs
from redetr.errors import InputError
from redetr.wording import counted

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

_FRACTION_UNUSED = "has its own val split, so --val-fraction is not used"


def for_a_single_image(source: str | Path) -> str:
    """The remedy for a data set at `source` with a single image, which cannot be divided."""
    convert = f"redetr convert {source} {source}-tiles --tile 640 --overlap 0"
    return (
        f"cut it into tiles ({convert}), some of which can be held out (--val-fraction 0.2), or "
        "annotate a second image"
    )


def fraction_unused(source: str | Path) -> str:
    """The sentence on a data set at `source` that has a val split of its own."""
    return f"{source}: {_FRACTION_UNUSED}"


def fraction_fault(source: Path) -> Fault:
    """The same as a note among the faults of the data set."""
    return Fault("note", "fraction-unused", source, "", _FRACTION_UNUSED, "leave it out")


def hold_out(
    annotations: Annotations, split: Split, fraction: float, source: str | Path
) -> tuple[Annotations, str]:
    """The train or val split of annotations that have the images of both, and a sentence on it.

    The split depends only on names, classes and the fraction, so it is the same for every seed and
    rank, and for every format in which images have the same paths below their folder. `source` is
    the user's name for the data set. Raises InputError if one of the two splits would be empty,
    which names the first error if there are any: images with errors are left out.
    """
    if len(annotations) == 1:
        annotations.require_sound()
        raise InputError(
            f"--val-fraction {fraction} cannot divide a single image",
            where=annotations.source,
            remedy=for_a_single_image(source),
        )
    photograph_of = photographs(annotations.names.tolist())
    is_val = _held_out(annotations, _divisible(photograph_of), fraction)
    images = is_val if split == "val" else ~is_val
    every_object = np.ones(len(annotations.boxes), bool)
    part = annotations.only(images, every_object)
    share = f"{is_val.sum():,} of {counted(len(is_val), 'image')}"
    note = (
        f"no val split: {share} are held out for validation, chosen by a hash of their names, with "
        "about that share of each class"
    )
    return part, note + _on_photographs(photograph_of)


def _divisible(photograph_of: Indices) -> Indices:
    """The number of the photograph in each image, or of the image itself if they all show the same
    photograph, which could not be divided otherwise."""
    is_single = photograph_of.max(initial=0) == 0
    return np.arange(len(photograph_of)) if is_single else photograph_of


def _on_photographs(photograph_of: Indices) -> str:
    """The end of the sentence on a split if some images show the same photograph."""
    counts = np.bincount(photograph_of)
    if len(counts) == len(photograph_of):
        return ""
    if len(counts) == 1:
        return "; all come from one photograph, so both splits show parts of it"
    num_shared = int((counts[photograph_of] > 1).sum())
    return (
        f"; {num_shared:,} are tiles, versions or copies of the same photographs, each of which is "
        "on one side"
    )


def held_out(annotations: Annotations, fraction: float) -> Bools:
    """Whether each image is held out, bool `[N]`: `fraction` of all images, rounded, and as far as
    possible, of the images of each class.

    Images of one photograph are on the same side, see `photographs`, so the numbers are then only
    as near as possible. Photographs are taken in the order of a hash of their names. Classes are
    processed one after another, those with the fewest images first, and images without objects
    last. Then single photographs change sides until the number is right, those of frequent classes
    first. Raises InputError if a side would be empty, if all images have errors, or for a fraction
    out of `BOUNDS`.

    Source: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD
    2011, for the order of classes. Deviation: all images of a class are assigned at once, in time
    linear in N instead of quadratic.
    """
    photograph_of = photographs(annotations.names.tolist())
    return _held_out(annotations, _divisible(photograph_of), fraction)


def _held_out(annotations: Annotations, photograph_of: Indices, fraction: float) -> Bools:
    """The images that are held out, bool `[N]`, with these photographs."""
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
    sizes = np.bincount(photograph_of)  # [P], the number of images of each photograph
    order = _hashed_order(annotations.names.tolist(), photograph_of)
    is_val, frequency = _deal(annotations, photograph_of, order, fraction)
    without_objects = order[frequency[order] == 0]
    missing = wanted - int(sizes[is_val].sum())
    added = without_objects[_first(sizes[without_objects], missing)]
    is_val[added] = True
    surplus = int(sizes[is_val].sum()) - wanted
    candidates = order[is_val[order] == (surplus > 0)]  # of the side with too many images
    frequent_first = candidates[np.argsort(-frequency[candidates], kind="stable")]
    moved = frequent_first[_first(sizes[frequent_first], abs(surplus))]
    is_val[moved] = surplus < 0
    _fill_empty_side(is_val, sizes, order)
    return is_val[photograph_of]


def _hashed_order(names: list[bytes], photograph_of: Indices) -> Indices:
    """The photographs in the order of the hash of the first of their names, int64 `[P]`."""
    first_name: dict[int, bytes] = {}
    for name, photograph in zip(names, photograph_of.tolist(), strict=True):
        earlier = first_name.get(photograph)
        first_name[photograph] = name if earlier is None else min(earlier, name)
    hashes = np.array([_hash(first_name[i]) for i in range(len(first_name))], np.uint64)
    return np.argsort(hashes, kind="stable")


def _first(sizes: Indices, wanted: int) -> Bools:
    """Which photographs, taken in this order, have together as nearly as possible the `wanted`
    number of images, bool `[P]`; those that are too large are passed over."""
    if (sizes == 1).all():
        return np.arange(len(sizes)) < wanted
    is_taken = np.zeros(len(sizes), bool)
    for number, size in enumerate(sizes.tolist()):
        if size < 2 * wanted:
            is_taken[number] = True
            wanted -= size
    return is_taken


def _fill_empty_side(is_val: Bools, sizes: Indices, order: Indices) -> None:
    """Moves the smallest photograph if all are on one side, as large ones may be."""
    if is_val.all() or not is_val.any():
        smallest = order[sizes[order].argmin()]
        is_val[smallest] = not is_val[smallest]


def _deal(
    annotations: Annotations, photograph_of: Indices, order: Indices, fraction: float
) -> tuple[Bools, Indices]:
    """Which photographs are held out to have the fraction of each class, bool `[P]`, and the number
    of images with the rarest class in each, `[P]`, which is 0 for those without objects."""
    rank = np.argsort(order)
    is_val = np.zeros(len(order), bool)
    frequency = np.zeros(len(order), np.int64)
    classes = _photographs_by_class(annotations, photograph_of, rank)
    for of_class, sizes in sorted(classes, key=lambda pair: pair[1].sum()):
        num_images = int(sizes.sum())
        wanted = int(fraction * num_images + 0.5)
        if num_images > 1:  # at least one image on each side
            wanted = min(max(wanted, 1), num_images - 1)
        is_new = frequency[of_class] == 0
        remaining = of_class[is_new]
        missing = wanted - int(sizes[is_val[of_class]].sum())
        is_taken = _first(sizes[is_new], missing)
        if missing > 0 and len(of_class) > 1 and len(remaining):
            _divide_class(is_taken, sizes[is_new], is_val[of_class[~is_new]])
        is_val[remaining[is_taken]] = True
        frequency[remaining] = num_images
    return is_val, frequency


def _divide_class(is_taken: Bools, sizes: Indices, others: Bools) -> None:
    """Moves the smallest of the photographs of a class if the class is on one side only, as large
    ones may be. `others` are those of its photographs that had a side before."""
    smallest = sizes.argmin()
    if not others.any() and not is_taken.any():
        is_taken[smallest] = True
    elif others.all() and is_taken.all():
        is_taken[smallest] = False


def _photographs_by_class(
    annotations: Annotations, photograph_of: Indices, rank: Indices
) -> list[tuple[Indices, Indices]]:
    """The photographs of each class that has objects, in the order of `rank` `[P]`, and the number
    of images with the class in each."""
    # Pairs as single numbers, which are sorted in less time. Without counts, NumPy would hash them,
    # which takes longer.
    num_images = len(photograph_of)
    num_photographs = len(rank)
    pairs = annotations.labels * num_images + annotations.image_of()
    in_images, _ = np.unique(pairs, return_counts=True)
    labels, images = np.divmod(in_images, num_images)
    ranks = rank[photograph_of[images]]
    # sorted by class, then by rank
    in_photographs, sizes = np.unique(labels * num_photographs + ranks, return_counts=True)
    labels, ranks = np.divmod(in_photographs, num_photographs)
    of_pair = np.argsort(rank)[ranks]
    ends = np.flatnonzero(np.diff(labels)) + 1
    parts = zip(np.split(of_pair, ends), np.split(sizes, ends), strict=True)
    return [(part, counts) for part, counts in parts if len(part)]


def is_chosen(name: bytes, fraction: float) -> bool:
    """Whether a name belongs to this `fraction` of all names. Depends only on the name."""
    return _hash(name) < fraction * 2**64


def _hash(name: bytes) -> int:
    """A number of 64 bits that depends only on the name."""
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "big")
