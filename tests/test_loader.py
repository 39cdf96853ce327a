"""Samples on their way to the device: the same from any number of processes, with and without a
cache."""

import gc
import math
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import lines_of
from forked import in_fork

from redetr.config import TrainConfig
from redetr.data import DetectionDataset, loader, open_dataset
from redetr.data.cache import ImageCache, host, spare_bytes
from redetr.data.cgroups import group_memory
from redetr.data.images import decode, read_image
from redetr.data.loader import (
    Sample,
    Samples,
    load_batches,
    padded_share,
    to_batch,
    watching_workers,
)
from redetr.data.sampler import TrainSampler
from redetr.data.transforms import augmentation, derived_rng, normalize
from redetr.data.views import Fit
from redetr.errors import InputError, LostError
from redetr.models.detr import DETR
from redetr.structures import Batch, StoredTarget, collate
from redetr.training import train

MEGABYTE = 2**20


def samples_of(folder: Path, cache: ImageCache | None = None, mosaic_epochs: int = 2) -> Samples:
    data = open_dataset(folder, "train")
    return Samples(
        data,
        augmentation("detr", Fit(64, 100)),
        seed=1,
        cache=cache,
        mosaic_epochs=mosaic_epochs,
    )


def loaded(
    samples: Samples, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> list[Sample]:
    """The samples of six steps of four images: three epochs."""
    sampler = TrainSampler(8, 4, 0, 0, 6, rank, world_size, size_of=samples.size)
    return [
        sample for batch in load_batches(samples, sampler, num_workers, False) for sample in batch
    ]


def assert_same(some: list[Sample], others: list[Sample]) -> None:
    assert len(some) == len(others) > 0
    for (image, target), (other, expected) in zip(some, others, strict=True):
        assert torch.equal(image, other)
        assert target.keys() == expected.keys()
        for key, value in target.items():
            assert (
                torch.equal(value, expected[key])
                if isinstance(value, torch.Tensor)
                else value == expected[key]
            )


def test_samples_do_not_depend_on_workers_and_ranks(shared_coco):
    alone = loaded(samples_of(shared_coco))
    assert_same(loaded(samples_of(shared_coco), num_workers=2), alone)
    ranks = [loaded(samples_of(shared_coco), rank=rank, world_size=2) for rank in range(2)]
    together = [
        sample for step in range(6) for rank in ranks for sample in rank[2 * step : 2 * step + 2]
    ]
    assert_same(together, alone)


@pytest.mark.parametrize("augment", ["plain", "detr", "photo", "strong"])
def test_the_size_of_a_sample_is_known_without_its_boxes(shared_coco, augment):
    dataset = open_dataset(shared_coco, "train")
    transform = augmentation(augment, Fit(64, 100))
    samples = Samples(dataset, transform, seed=3)
    for epoch in range(12):
        for index in range(len(dataset)):
            view = transform.view(derived_rng(3, epoch, index), dataset.target(index))
            assert samples.size((epoch, index)) == view.size


def test_a_damaged_image_is_told_by_any_worker(tiny_coco):
    samples = samples_of(tiny_coco)
    path = samples.dataset.path(3)
    path.write_bytes(path.read_bytes()[:600])
    for num_workers in (0, 2):
        with pytest.raises(InputError, match=rf"{path}: cannot decode the image"):
            loaded(samples, num_workers)


def test_loader_processes_end_with_the_error(tiny_coco):
    """Not 5 s each later, when the garbage collector comes by."""
    samples = samples_of(tiny_coco)
    samples.dataset.path(3).write_bytes(b"no image")
    gc.collect()
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        with pytest.raises(InputError) as raised:
            loaded(samples, num_workers=2)
        del raised
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def test_a_file_of_another_size_is_told_even_if_it_is_decoded_small(tiny_coco):
    samples = samples_of(tiny_coco)
    path = samples.dataset.path(0)
    path.write_bytes(samples.dataset.path(1).read_bytes())
    with pytest.raises(
        InputError, match=r"restore the file that was annotated|as its EXIF tag rotates it"
    ):
        samples[0, 0]


def test_a_smaller_decoding_leaves_what_is_needed(shared_coco):
    path = open_dataset(shared_coco, "train").path(0)
    whole = read_image(path)
    assert decode(path)[1] == tuple(whole.shape[1:]) == (48, 64)
    for needed, expected in (
        ((48, 64), (48, 64)),
        ((25, 30), (48, 64)),
        ((24, 32), (24, 32)),
        ((1, 1), (6, 8)),
    ):
        image, stored = decode(path, needed)
        assert (tuple(image.shape[1:]), stored) == (expected, (48, 64))


# The cache.


@pytest.mark.parametrize("limit", [0, 20_000, MEGABYTE])  # nothing, a few, all of the 8 images
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_do_not_depend_on_the_cache(shared_coco, tmp_path, limit, on_disk, num_workers):
    plain = loaded(samples_of(shared_coco))
    cache = ImageCache(8, limit, str(tmp_path) if on_disk else None)
    assert_same(loaded(samples_of(shared_coco, cache), num_workers), plain)
    kept = sum(cache.get(i) is not None for i in range(8))
    assert kept == 0 if limit == 0 else kept == 8 if limit == MEGABYTE else 0 < kept < 8
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_kept_image_is_not_decoded_again(tiny_coco):
    samples = samples_of(tiny_coco, ImageCache(8, MEGABYTE))
    first = loaded(samples)
    for index in range(8):
        samples.dataset.path(index).write_bytes(b"gone")
    assert_same(loaded(samples, num_workers=2), first)


def test_processes_share_a_cache():
    cache = ImageCache(4, MEGABYTE)
    image = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    assert cache.get(2) is None
    sent = pickle.loads(pickle.dumps(cache))  # as if processes were not forked
    process = multiprocessing.get_context("fork").Process(target=sent.put, args=(2, image))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(cache.get(2), image)
    assert cache.get(1) is cache.get(3) is None


def _fill(cache: ImageCache, first: int) -> None:
    for index in range(first, 400, 4):
        cache.put(index, torch.full((3, 5, 7), index % 251, dtype=torch.uint8))


def test_processes_that_write_at_the_same_time_do_not_mix_images():
    cache = ImageCache(400, MEGABYTE)
    workers = [
        multiprocessing.get_context("fork").Process(target=_fill, args=(cache, first))
        for first in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index in range(400):
        assert torch.equal(cache.get(index), torch.full((3, 5, 7), index % 251, dtype=torch.uint8))


def test_a_cache_ends_with_the_object_that_made_it():
    cache = ImageCache(4, MEGABYTE)
    path = cache.path
    cache.put(0, torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert os.path.exists(path)
    del cache
    assert not os.path.exists(path)


def test_a_full_disk_is_no_failure(monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    cache = ImageCache(4, MEGABYTE)
    cache.put(0, torch.zeros(3, 2, 2, dtype=torch.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        cache.put(1, torch.zeros(3, 2, 2, dtype=torch.uint8))
    monkeypatch.setattr(cache, "_take", lambda count: 10_000)
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: 3)  # cut short
    cache.put(2, torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert [cache.get(i) is None for i in range(4)] == [False, True, True, True]


def test_there_is_memory_to_spare(tmp_path):
    assert 0 < spare_bytes() < 2**50
    assert 0 < spare_bytes(str(tmp_path)) < 2**60
    assert host() == host()


SLURM_V1 = "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
SYSTEMD_V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
DOCKER_V1 = "31 23 0:28 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
GB = 10**9


@pytest.mark.parametrize(
    ("mounts", "own", "groups", "left"),
    [
        # The job has the limit, and its step none; a number near 2^63 is none.
        (SLURM_V1, "4:memory:/slurm/job/step", {"slurm/job": (2, 1), "slurm/job/step": (9e9, 1)}, 1),
        (SLURM_V1, "4:memory:/slurm/job/step", {"slurm/job": (4, 1), "": (2, 1.5)}, 0.5),
        (DOCKER_V1, "4:cpu,memory:/docker/ab/x", {"x": (3, 1)}, 2),
        (SYSTEMD_V2, "0::/user.slice/run.scope", {"user.slice": (8, 2), "user.slice/run.scope": (5, 1)}, 4),
        (SYSTEMD_V2, "0::/user.slice/run.scope", {"user.slice": (8, 2)}, 6),
        (SYSTEMD_V2, "0::/../other", {"": (2, 0.5)}, 1.5),  # outside of what a container sees
        (SYSTEMD_V2, "0::/a", {}, math.inf),
        (SLURM_V1, "0::/a", {"": (2, 1)}, math.inf),
        ("1 0 8:1 / / rw - ext4 /dev/sda rw\n", "0::/", {}, math.inf),
    ],
)  # fmt: skip
def test_memory_that_groups_leave(tmp_path, mounts, own, groups, left):
    """A limit counts for all groups inside; memory that holds unused files is free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    others = "2 1 0:5 / /dev rw - tmpfs tmpfs rw\n"
    others += "3 1 0:9 / /Docker/host rw - 9p drvfs rw;path=C:\\Program Files\\Docker rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(others + mounts)
    (tmp_path / "proc/self/cgroup").write_text(f"7:pids:/elsewhere\n{own}\n")
    is_v1 = mounts != SYSTEMD_V2
    for path, (limit, used) in groups.items():
        folder = tmp_path / ("sys/fs/cgroup/memory" if is_v1 else "sys/fs/cgroup") / path
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_v1 else (
            "memory.max", "memory.current")  # fmt: skip
        (folder / names[0]).write_text(f"{int(limit * GB)}\n")
        (folder / names[1]).write_text(f"{int(used * GB) + 7}\n")
        unused = "total_inactive_file" if is_v1 else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 3\n{unused} 7\n")
    assert group_memory(tmp_path) == left * GB


def _spare_bytes_within(group: Path) -> int:
    """`spare_bytes` of this process, from now on in a control group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return spare_bytes()


def test_a_limit_of_the_kernel_is_kept_to():
    """In a group of a gigabyte, made for a process of its own."""
    folders = {}  # by controllers; the second version has a single line, without any
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, folder = line.split(":", 2)
        for controller in controllers.split(","):
            folders[controller] = folder.lstrip("/")
    if "memory" in folders:
        parent = Path("/sys/fs/cgroup/memory") / folders["memory"]
        limit = "memory.limit_in_bytes"
    else:
        parent = Path("/sys/fs/cgroup") / folders.get("", "")
        limit = "memory.max"
    group = parent / f"redetr-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(10**9))
    except OSError as error:
        pytest.skip(f"no control groups can be made here: {error}")
    try:
        spare = in_fork(_spare_bytes_within, group)
    finally:
        group.rmdir()
    assert 0 < spare <= 0.25 * 10**9


# The batch.


def test_batches_are_those_of_collate(shared_coco):
    samples = loaded(samples_of(shared_coco))[:4]
    batch = to_batch(samples, torch.device("cpu"), canvas=(120, 130))
    plain = collate([image for image, _ in samples], (120, 130))
    assert torch.equal(batch.mask, plain.mask)
    expected = normalize(plain.images).masked_fill(plain.mask[:, None], 0)
    assert torch.equal(batch.images, expected)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert to_batch(samples, torch.device("cpu"), dtype=torch.float64).images.dtype == torch.float64


def test_the_padded_share_by_hand():
    sizes = [(2, 4), (3, 2)]
    batch = Batch(torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool), sizes=sizes)
    assert padded_share([batch]) == pytest.approx(1 - 14 / 24)
    assert padded_share([batch, batch]) == pytest.approx(1 - 14 / 24)


# In training.


@pytest.fixture(scope="module")
def run_with(shared_coco, tmp_path_factory):
    """Trains a small faithful form for six steps, three epochs; returns the lines of its losses."""
    options = (
        "backbone=[16, 32, 64]",
        "hidden_dim=32",
        "nheads=4",
        "enc_layers=1",
        "dec_layers=1",
        "dim_feedforward=32",
    )
    config = TrainConfig(
        model="detr_r50",
        model_options=options,
        num_queries=10,
        data=str(shared_coco),
        steps=6,
        batch_size=4,
        image_size=96,
        mosaic_until=0.7,
        device="cpu",
        precision="fp32",
        log_every=1,
        eval_every=6,
        cache_mb=0,
        num_workers=0,
    )

    def lines(**changed):
        folder = tmp_path_factory.mktemp("runs") / "run"
        train(replace(config, output=str(folder), **changed))
        return [line for line in lines_of(folder) if "loss" in line]

    return lines


@pytest.mark.long
def test_a_run_does_not_depend_on_workers_and_cache(run_with, tmp_path):
    timings = {"images_per_s", "data_wait", "time_s"}
    first, *others = (
        [
            {name: value for name, value in line.items() if name not in timings}
            for line in run_with(**changed)
        ]
        for changed in (
            {},
            {"cache_mb": None, "num_workers": 2},
            {"cache_mb": 1, "cache_dir": str(tmp_path)},
        )
    )
    assert others == [first, first]
    assert list(tmp_path.iterdir()) == []


def test_a_loader_process_that_dies_while_it_gives_a_sample_is_told():
    """Killed for real, with what else it may do at that moment, in
    tests/distributed/test_loader_failures.py."""
    worker = multiprocessing.get_context("fork").Process(target=os._exit, args=(9,))
    worker.start()
    loader._WORKERS.add(worker)
    with (
        pytest.raises(
            LostError, match=r"^a loader process died.*lower --num-workers \(\[Errno 104\]"
        ),
        watching_workers(),
    ):
        raise ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(RuntimeError, match="of another kind"), watching_workers():
        raise RuntimeError("of another kind")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "by a server"), EOFError("no more")])
def test_an_error_of_a_broken_connection_is_not_always_that_of_a_loader_process(error):
    """A callback may report to a server, and own data may come from one."""
    with pytest.raises(type(error), match=str(error.args[-1])), watching_workers():
        raise error


class Remote(DetectionDataset):
    """Images that cannot be fetched."""

    name, class_names, category_ids = "remote", ("thing",), (1,)

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self):
        return 2

    def target(self, index):
        return StoredTarget(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            iscrowd=torch.zeros(0, dtype=torch.bool),
            area=torch.zeros(0),
            image_id=index,
            orig_size=(32, 32),
            size=(32, 32),
        )

    def image(self, index):
        raise self.error


@pytest.mark.parametrize(
    "error", [ConnectionError("no route to host"), RuntimeError("no route to")]
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_own_data_is_raised_as_it_is(error, num_workers):
    samples = Samples(Remote(error), augmentation("plain", Fit(32, 64)), seed=0)
    with pytest.raises(type(error), match="no route to"), watching_workers():
        list(load_batches(samples, [[(0, 0), (0, 1)]], num_workers, pin_memory=False))


def test_a_second_error_does_not_hide_that_a_process_was_silent():
    """PyTorch raises wherever the main process is, also while the reason is being raised."""
    with pytest.raises(LostError, match="did not respond within 3 s"), watching_workers():
        loader._TIMED_OUT.append(3)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed")
    assert loader._TIMED_OUT == []
    with pytest.raises(LostError, match="a loader process died"), watching_workers():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed")


@pytest.mark.parametrize(
    ("device", "cores", "computing", "expected"),
    [
        ("cpu", 1, 1, 0),
        ("cpu", 2, 2, 0),
        ("cpu", 2, 1, 1),  # the other core is free
        ("cpu", 1, 4, 0),
        ("cpu", 4, 4, 3),
        ("cpu", 64, 64, 8),
        ("cuda", 1, 1, 1),
        ("cuda", 2, 2, 1),
        ("cuda", 6, 6, 5),
    ],
)
def test_few_cores_that_compute_have_no_loader_process(
    device, cores, computing, expected, monkeypatch
):
    monkeypatch.setattr(loader, "rank_cores", lambda: cores)
    monkeypatch.setattr(loader.torch, "get_num_threads", lambda: computing)
    assert loader.spare_workers(torch.device(device)) == expected


def test_more_loader_processes_than_cores_are_not_warned_of(shared_coco, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (batch,) = load_batches(samples_of(shared_coco), [[(0, 0), (0, 1)]], 2, pin_memory=False)
    assert len(batch) == 2


OUT_OF_MEMORY = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "host": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("memory", OUT_OF_MEMORY)
def test_exhausted_memory_is_told(memory, run_with, monkeypatch):
    def step(*_):
        raise OUT_OF_MEMORY[memory]

    monkeypatch.setattr("redetr.training.train_step", step)
    with pytest.raises(InputError, match=f"^out of {memory} memory: raise --accumulate "):
        run_with()


def test_an_evaluation_takes_as_many_images_at_once_as_is_said(run_with, monkeypatch):
    sizes = []
    forward = DETR.forward

    def watched(self, images, *rest):
        sizes.append(len(images))
        return forward(self, images, *rest)

    monkeypatch.setattr(DETR, "forward", watched)
    run_with(steps=1, eval_every=1, eval_batch_size=2)
    assert sizes == [4, 2, 2, 1]


def test_blocks_computed_twice_change_nothing(run_with):
    first, second = (
        [line["loss"] for line in run_with(recompute=again) if "loss" in line]
        for again in (False, True)
    )
    assert first == second


def test_runs_say_how_much_is_padding(run_with):
    grouped, plain = run_with(), run_with(group_by_size=False)
    assert all(0 <= line["padding"] < 1 for line in grouped + plain)
    assert sum(line["padding"] for line in grouped) < sum(line["padding"] for line in plain)


@pytest.mark.parametrize(
    ("flag", "changed"),
    [
        ("--mosaic-until 1.5", {"mosaic_until": 1.5}),
        ("--cache-mb -1", {"cache_mb": -1}),
        ("--cache-dir nowhere: no such folder", {"cache_dir": "nowhere"}),
        ("--steps -5", {"steps": -5}),
        ("--epochs -1", {"epochs": -1.0}),
        ("--warmup 2", {"warmup": 2.0}),
        ("--drop-at -1", {"drop_at": -1.0}),
        ("--weight-decay -1", {"weight_decay": -1.0}),
        ("--seed -1", {"seed": -1}),
        ("--eval-batch-size 0", {"eval_batch_size": 0}),
        ("--log-every 0", {"log_every": 0}),
    ],
)
def test_wrong_settings_are_told(flag, changed):
    with pytest.raises(InputError, match=flag):
        replace(TrainConfig(), **changed).check(world_size=1)
