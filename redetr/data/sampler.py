"""Which image is in which batch: a function of (seed, step) alone, whatever the ranks,
micro-batches and workers.

The data order is one endless sequence, epoch after epoch, each a permutation of all images. Global
batch `k` is the `k`-th run of `batch_size` images of it, so no image is dropped at the end of an
epoch and none comes twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch.utils.data import Sampler

from redetr.data.transforms import drawn_from, draws_of
from redetr.data.views import Size

Key = tuple[int, int]  # (epoch, index of the image in the data set)
SizeOf = Callable[[Key], Size]

_POOL = 64  # batches among which images of like size are brought together


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(drawn_from(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


def global_batch(
    step: int, batch_size: int, num_images: int, seed: int, size_of: SizeOf | None = None
) -> list[Key]:
    """The (epoch, index) pairs of optimizer step `step`, counted from 0.

    With `size_of`, images have changed places within epochs and runs of 64 batches, so that those
    of a batch have nearly the same size. Of COCO's images in the original's multi-scale form,
    padding is 54% of a batch of 16, and then 9%. Each image still comes once an epoch; that its
    size is drawn independently of the others' in its batch is lost.
    """
    if size_of:
        return _pool(step // _POOL, batch_size, num_images, seed, size_of)[step % _POOL]
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [
        (p // num_images, _permutation(num_images, seed, p // num_images)[p % num_images])
        for p in positions
    ]


@lru_cache(maxsize=2)
def _pool(
    number: int, batch_size: int, num_images: int, seed: int, size_of: SizeOf
) -> list[list[Key]]:
    """The batches of run `number`, grouped by size."""
    steps = range(number * _POOL, (number + 1) * _POOL)
    order = [
        (i, key)
        for i, step in enumerate(steps)
        for key in global_batch(step, batch_size, num_images, seed)
    ]
    grouped: list[list[Key]] = [[] for _ in steps]
    for epoch, run in groupby(order, key=lambda place: place[1][0]):
        places, keys = zip(*run, strict=True)
        rooms = list(
            Counter(places).items()
        )  # batches, and how many images of this epoch each takes
        draws_of(seed, number, epoch).shuffle(rooms)  # so that sizes come in any order
        for batch, like in _dealt(rooms, [(size_of(key), key) for key in keys]):
            grouped[batch] += like
    return grouped


def _dealt(
    rooms: list[tuple[int, int]], images: list[tuple[Size, Key]]
) -> Iterator[tuple[int, list[Key]]]:
    """Which images each batch takes: halves by the side in which they differ most, halves of these,
    and so on."""
    if len(rooms) == 1:
        yield rooms[0][0], [key for _, key in images]
        return
    sides = list(zip(*(size for size, _ in images), strict=True))
    side = max((0, 1), key=lambda i: max(sides[i]) / min(sides[i]))
    images = sorted(images, key=lambda image: image[0][side])
    half = len(rooms) // 2
    count = sum(room for _, room in rooms[:half])
    yield from _dealt(rooms[:half], images[:count])
    yield from _dealt(rooms[half:], images[count:])


def slice_of(batch_size: int, micro: int, accumulate: int, rank: int, world_size: int) -> slice:
    """Where micro-batch `micro` of `rank` lies in the global batch."""
    part, parts = micro * world_size + rank, accumulate * world_size
    return slice(part * batch_size // parts, (part + 1) * batch_size // parts)


@dataclass
class TrainSampler(Sampler[list[Key]]):
    """The micro-batches of one rank, `accumulate` per optimizer step, from `first_step` to
    `last_step`.

    Micro-batch m of rank r is slice `m * world_size + r` of the global batch. Slices differ by at
    most one image, if their number does not divide the batch: losses are sums over global counts,
    so equal sizes are not needed. With `size_of`, which tells the size of a sample, images of like
    size come together, see `global_batch`.
    """

    num_images: int
    batch_size: int
    seed: int
    first_step: int
    last_step: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    size_of: SizeOf | None = None

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        try:
            for step in range(self.first_step, self.last_step):
                keys = global_batch(step, self.batch_size, self.num_images, self.seed, self.size_of)
                for micro in range(self.accumulate):
                    yield keys[
                        slice_of(
                            self.batch_size, micro, self.accumulate, self.rank, self.world_size
                        )
                    ]
        finally:
            # `size_of` belongs to the data set: it and its cached images would stay
            _pool.cache_clear()


@dataclass
class EvalSampler(Sampler[list[Key]]):
    """Every image once over all ranks. Whole batches are dealt out, so padding does not depend on
    the ranks."""

    num_images: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(
            self.rank * self.batch_size, self.num_images, self.world_size * self.batch_size
        ):
            yield [(0, i) for i in range(start, min(start + self.batch_size, self.num_images))]

    def __len__(self) -> int:
        return len(
            range(self.rank * self.batch_size, self.num_images, self.world_size * self.batch_size)
        )
