"""Which image is in which batch: the same for any number of ranks, micro-batches and stops."""

import gc
import os
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redetr.data.loader import pools_ahead, watching_workers
from redetr.data.sampler import EvalSampler, TrainSampler, global_batch

sizes = st.integers(1, 40)


def size_of(key: tuple[int, int]) -> tuple[int, int]:
    """Made-up sizes of samples, which differ from epoch to epoch."""
    epoch, index = key
    height = 48 + 7 * (index * 31 + epoch * 17) % 33
    width = 48 + 5 * (index * 13 + epoch * 29) % 47
    return height, width


def batches(steps, batch_size, num_images, seed, size_of) -> list[list[tuple[int, int]]]:
    """The global batches of the first steps."""
    sampler = TrainSampler(num_images, batch_size, seed, 0, steps, size_of=size_of)
    return list(sampler)


size_ofs = st.sampled_from([None, size_of])


@given(num_images=sizes, batch_size=sizes, seed=st.integers(0, 3), size_of=size_ofs)
def test_every_image_comes_once_an_epoch(num_images, batch_size, seed, size_of):
    steps_of_three_epochs = -(-3 * num_images // batch_size)  # rounded up
    order = []
    for batch in batches(steps_of_three_epochs, batch_size, num_images, seed, size_of):
        assert len(batch) == batch_size
        order += batch
    epochs = [epoch for epoch, _ in order]
    assert epochs == sorted(epochs)
    for epoch in range(3):
        indices = [index for key_epoch, index in order if key_epoch == epoch]
        assert sorted(indices) == list(range(num_images))


def test_the_data_set_may_go_when_the_run_is_over():
    class Sizes:
        def of(self, key):
            return (1 + key[1] % 3, 2)

    sizes = Sizes()
    gone = weakref.ref(sizes)
    steps = iter(TrainSampler(20, 4, seed=0, first_step=0, last_step=5, size_of=sizes.of))
    assert len(list(steps)) == 5
    del sizes, steps
    gc.collect()
    assert gone() is None


def test_orders_differ_between_epochs_and_between_seeds():
    orders = set()
    for epoch in range(3):
        for seed in range(3):
            whole_epoch = global_batch(epoch, 30, 30, seed)
            orders.add(tuple(index for _, index in whole_epoch))
    assert len(orders) == 9
    assert global_batch(5, 4, 30, seed=1) == global_batch(5, 4, 30, seed=1)


@pytest.mark.parametrize("size_of", [None, size_of])
@pytest.mark.parametrize(
    ("world_size", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 2), (3, 4)]
)
def test_ranks_and_micro_batches_share_the_global_batch(world_size, accumulate, size_of):
    ranks = []
    for rank in range(world_size):
        sampler = TrainSampler(
            17,
            12,
            0,
            first_step=2,
            last_step=5,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            size_of=size_of,
        )
        ranks.append(list(sampler))

    expected = batches(5, 12, 17, 0, size_of)
    size = 12 // (world_size * accumulate)
    for i, step in enumerate(range(2, 5)):
        keys = []
        for micro in range(accumulate):
            for micro_batches in ranks:
                micro_batch = micro_batches[i * accumulate + micro]
                assert len(micro_batch) == size
                keys += micro_batch
        assert keys == expected[step]


@pytest.mark.parametrize("size_of", [None, size_of])
def test_a_resumed_run_sees_what_the_stopped_one_would_have_seen(size_of):
    whole = list(TrainSampler(10, 4, 0, first_step=0, last_step=9, accumulate=2, size_of=size_of))
    rest = TrainSampler(10, 4, 0, first_step=5, last_step=9, accumulate=2, size_of=size_of)
    assert list(rest) == whole[10:]
    assert len(rest) == 8


def padded_share(batches: list[list[tuple[int, int]]]) -> float:
    """How much of the canvases of all batches is padding."""
    canvas_px = 0
    image_px = 0
    for batch in batches:
        batch_sizes = [size_of(key) for key in batch]
        largest_height = max(height for height, _ in batch_sizes)
        largest_width = max(width for _, width in batch_sizes)
        canvas_px += len(batch) * largest_height * largest_width
        image_px += sum(height * width for height, width in batch_sizes)
    return 1 - image_px / canvas_px


@pytest.mark.parametrize("batch_size", [2, 8, 16])
def test_images_of_similar_size_come_together(batch_size):
    steps = 3000 // batch_size
    plain = [global_batch(step, batch_size, 1000, 0) for step in range(steps)]
    grouped = batches(steps, batch_size, 1000, 0, size_of)
    assert padded_share(grouped) < padded_share(plain) / 2


def test_batches_of_all_sizes_come_in_any_order():
    """Neither small ones first, nor in each run of batches the same way."""
    areas = []
    for batch in batches(128, 4, 10_000, 0, size_of):
        batch_sizes = [size_of(key) for key in batch]
        areas.append(sum(height * width for height, width in batch_sizes))
    for start in range(0, 128, 32):  # quarters of the steps, two in each run of 64 batches
        share = sum(areas[start : start + 32]) / sum(areas)
        assert share < 0.3
    assert areas[:64] != areas[64:]


@given(num_images=st.integers(0, 50), batch_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_evaluation_sees_every_image_once(num_images, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        sampler = EvalSampler(num_images, batch_size, rank, world_size)
        batches = list(sampler)
        assert len(sampler) == len(batches)
        for batch in batches:
            seen += batch
    assert sorted(seen) == [(0, i) for i in range(num_images)]


def test_batches_of_evaluation_do_not_depend_on_the_ranks():
    """Images of one batch are padded together, so they must stay together."""
    alone = sorted(EvalSampler(11, 3))
    together = [*EvalSampler(11, 3, rank=0, world_size=2), *EvalSampler(11, 3, 1, world_size=2)]
    expected = [
        [(0, 0), (0, 1), (0, 2)],
        [(0, 3), (0, 4), (0, 5)],
        [(0, 6), (0, 7), (0, 8)],
        [(0, 9), (0, 10)],
    ]
    assert alone == expected
    assert sorted(together) == expected


class SizesElsewhere:
    """Sizes that are refused to the process that made this."""

    def __init__(self):
        self.process = os.getpid()

    def of(self, key: tuple[int, int]) -> tuple[int, int]:
        assert os.getpid() != self.process
        return size_of(key)


@pytest.mark.parametrize(("first_step", "last_step"), [(0, 130), (70, 128), (3, 5)])
def test_pools_are_computed_ahead_in_another_process(first_step, last_step):
    options = {"rank": 1, "world_size": 2, "accumulate": 2}
    expected = TrainSampler(100, 8, 0, first_step, last_step, size_of=size_of, **options)
    sizes = SizesElsewhere()
    sampler = TrainSampler(100, 8, 0, first_step, last_step, size_of=sizes.of, **options)
    with watching_workers():
        sampler.pools = pools_ahead(sampler)
        assert list(sampler) == list(expected)
