"""Which image is in which batch: a function of (seed, step) alone, whatever the ranks, micro-batches and workers.

The data order is one endless sequence, epoch after epoch, each a permutation of all images. Global batch `k` is the
`k`-th run of `batch_size` images of it, so no image is dropped at the end of an epoch and none comes twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import Sampler

from redetr.data.transforms import drawn_from

Key = tuple[int, int]  # (epoch, index of the image in the data set)


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(drawn_from(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


def global_batch(step: int, batch_size: int, num_images: int, seed: int) -> list[Key]:
    """The (epoch, index) pairs of optimizer step `step`, counted from 0."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [(p // num_images, _permutation(num_images, seed, p // num_images)[p % num_images]) for p in positions]


def slice_of(batch_size: int, micro: int, accumulate: int, rank: int, world_size: int) -> slice:
    """Where micro-batch `micro` of `rank` lies in the global batch."""
    part, parts = micro * world_size + rank, accumulate * world_size
    return slice(part * batch_size // parts, (part + 1) * batch_size // parts)


@dataclass
class TrainSampler(Sampler[list[Key]]):
    """The micro-batches of one rank, `accumulate` per optimizer step, from `first_step` to `last_step`.

    Micro-batch m of rank r is slice `m * world_size + r` of the global batch. Slices differ by at most one image, if
    their number does not divide the batch: losses are sums over global counts, so equal sizes are not needed.
    """

    num_images: int
    batch_size: int
    seed: int
    first_step: int
    last_step: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.last_step):
            keys = global_batch(step, self.batch_size, self.num_images, self.seed)
            for micro in range(self.accumulate):
                yield keys[slice_of(self.batch_size, micro, self.accumulate, self.rank, self.world_size)]


@dataclass
class EvalSampler(Sampler[list[Key]]):
    """Every image once over all ranks. Whole batches are dealt out, so padding does not depend on the ranks."""

    num_images: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(self.rank * self.batch_size, self.num_images, self.world_size * self.batch_size):
            yield [(0, i) for i in range(start, min(start + self.batch_size, self.num_images))]

    def __len__(self) -> int:
        return len(range(self.rank * self.batch_size, self.num_images, self.world_size * self.batch_size))
