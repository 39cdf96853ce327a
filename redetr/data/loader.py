"""Loads samples in worker processes, and puts them on the device as one padded batch."""

import math
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from redetr.data.cache import ImageCache
from redetr.data.custom_augmentation import CustomAugmentation
from redetr.data.dataset import DetectionDataset
from redetr.data.images import decode
from redetr.data.mosaic import combined
from redetr.data.sampler import Key, TrainSampler
from redetr.data.transforms import (
    Sample,
    StoredSample,
    Transform,
    derived_rng,
    derived_seed,
    normalize,
)
from redetr.data.views import Random
from redetr.errors import InputError, LostError, RedetrError, first_line
from redetr.launch import rank_cores
from redetr.structures import Batch, Size, collate

ANSWER_S = 120.0  # how long a batch may take to arrive, by default
_NO_BOXES = np.zeros((0, 4), np.float32)
_GRACE_S = 60  # how long a worker continues after a signal to end
_FEW_CORES = 2  # of a rank
_MOST_WORKERS = 8  # of a rank, by default
_DEATH_S = 1.0  # until the system reports the end of a process whose connection broke
_SHARED_FOLDER = Path("/dev/shm")  # shared memory on Linux
_QUEUES_BYTES = 2**15  # of shared memory, at most, for the queues of a loader process
_SHARED_MEMORY = (
    "shared memory (/dev/shm) may be too small: start the container with --shm-size 1g or more, "
    "or use --num-workers 0"
)

# The loader processes of this process; processes that have ended are removed automatically.
_WORKERS: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
# The time limit, s, after which they were ended because they did not respond; empty otherwise.
_TIMED_OUT: list[float] = []


class Samples(Dataset[Sample]):
    """A data set seen through a transform, addressed by (epoch, index).

    In the first `mosaic_epochs` epochs, some samples are mosaics or mixtures with other images.
    `custom` is applied to all samples at the end.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transform: Transform,
        seed: int,
        cache: ImageCache | None = None,
        mosaic_epochs: int = 0,
        custom: CustomAugmentation | None = None,
    ):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.cache = cache
        self.mosaic_epochs = mosaic_epochs
        self.custom = custom

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The uint8 image `[C, h, w]` and its target as the model sees it.

        A function of (seed, epoch, index), not of the image's id, which differs between the formats
        of a data set.
        """
        seed = derived_seed(self.seed, *key)
        image, target = self._shown(key, Random(seed))
        if self.custom:
            image, target = self.custom(seed, (image, target))
        target["seed"] = seed
        return image, target

    def _shown(self, key: Key, rng: Random) -> Sample:
        """The sample before `custom` is applied."""
        epoch, index = key
        image, target = self._stored(index)
        view = self.transform.view(rng, target)
        if epoch >= self.mosaic_epochs:
            return self.transform.show(rng, view, image, target)

        def another() -> StoredSample:
            return self._stored(rng.randrange(len(self)))

        return combined(rng, self.transform, view, (image, target), another)

    def __getitems__(self, keys: list[Key]) -> list[Sample] | InputError:
        """The samples of a batch, or the error of one of them.

        `load_batches` raises the error, because one that is raised in a worker process would be
        garbled.
        """
        try:
            return [self[key] for key in keys]
        except InputError as error:
            return error

    def size(self, key: Key) -> Size:
        """Height and width of the sample, without decoding an image. Takes about 20 us, or 50 if
        the view depends on the boxes."""
        epoch, index = key
        rng = derived_rng(self.seed, epoch, index)
        draw = self.transform.draw
        if draw.sees_boxes:
            return self.transform.view(rng, self.dataset.objects(index)).size
        return draw(rng, *self.dataset.stored_size(index), _NO_BOXES).size

    def _stored(self, index: int) -> StoredSample:
        """An image and its target as stored; the image may be decoded smaller, see
        `Transform.least_decoded`."""
        image = self.cache.get(index) if self.cache else None
        if image is not None:
            return image, self.dataset.compact_target(index)
        image, target = self._decoded(index)
        if self.cache:
            self.cache.put(index, image)
        return image, target

    def _decoded(self, index: int) -> StoredSample:
        least_decoded = self.transform.least_decoded
        file = self.dataset.file_to_decode(index) if least_decoded else None
        if file and least_decoded:
            target = self.dataset.compact_target(index)
            smallest = least_decoded(*target["orig_size"])
            image, stored_size = decode(file, smallest, channels=self.dataset.channels)
            if stored_size == target["orig_size"]:
                return image, target
        return self.dataset.compact_sample(index)  # raises the error of its file, if any


class _PackedMasks(NamedTuple):
    """Masks as bits."""

    bits: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, masks: np.ndarray) -> "_PackedMasks":
        return cls(np.packbits(masks).tobytes(), masks.shape)

    def unpacked(self) -> np.ndarray:
        """The masks, bool."""
        bits = np.frombuffer(self.bits, np.uint8)
        values = np.unpackbits(bits, count=math.prod(self.shape))
        return values.view(np.bool_).reshape(self.shape)


def _pack(samples: list[Sample] | InputError) -> Any:
    """Packs samples for the transfer between processes, with arrays in their targets.

    Each tensor would cost a file descriptor, and 0.3 ms.
    """
    if isinstance(samples, InputError):
        return samples
    is_worker = get_worker_info() is not None
    packed = []
    for image, target in samples:
        arrays: dict[str, Any] = {}
        for name, value in target.items():
            arrays[name] = value.numpy() if isinstance(value, Tensor) else value
        if "masks" in target:  # the largest part, packed as eight pixels per byte
            arrays["masks"] = _PackedMasks.of(arrays["masks"])
        packed.append((_shared(image) if is_worker else image, arrays))
    return packed


def _shared(image: Tensor) -> Tensor | np.ndarray:
    """The image in shared memory, or as an array `[h, w, C]` if half of the shared memory is used.
    The array is sent through a pipe, which is slower but needs none.

    PyTorch would move it to shared memory when the batch is sent, in a thread whose failure loses
    the batch. The other half is left for the queues of further loaders, and for NCCL.
    """
    if _SHARED_FOLDER.is_dir():
        total, _, free = shutil.disk_usage(_SHARED_FOLDER)
        if free - image.nbytes < total / 2:
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return image.share_memory_()


def _unpack(packed: list[tuple[Tensor | np.ndarray, dict[str, Any]]]) -> list[Sample]:
    samples = []
    for image, arrays in packed:
        target: Any = {}
        for name, value in arrays.items():
            if isinstance(value, _PackedMasks):
                value = value.unpacked()
            target[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image).permute(2, 0, 1)
        samples.append((image, target))
    return samples


def _start_worker(number: int) -> None:
    # Workers run side by side: with more threads they would compete for the same cores.
    torch.set_num_threads(1)
    # A signal to all processes of a run is meant for the main process, which still needs its
    # workers to complete the step.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


def spare_workers(device: torch.device) -> int:
    """The number of loader processes that a rank should start, from the cores of the host.

    With two cores or fewer, a rank that computes on them loads in its own process: whenever a
    loader process takes a core, the compute threads on the others wait
    (`benchmarks/workers.py`).
    """
    cores = rank_cores()
    if device.type == "cpu" and cores <= _FEW_CORES:
        return max(0, cores - torch.get_num_threads())
    return min(_MOST_WORKERS, max(1, cores - 1))


class _PoolsByNumber(Dataset[np.ndarray]):
    """The pools of a sampler, as arrays `[64, batch, 2]`."""

    def __init__(self, sampler: TrainSampler):
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler.pool_numbers())

    def __getitem__(self, number: int) -> np.ndarray:
        return np.array(self.sampler.pool(number), np.int64)


def _unchanged(pool: Any) -> Any:
    return pool  # PyTorch would convert it to a tensor in shared memory


def pools_ahead(sampler: TrainSampler) -> Iterator[list[list[Key]]]:
    """The pools of `sampler`. Each is computed in a separate process while the previous one is
    trained on, because the sizes of 64 global batches take seconds, and every rank needs all of
    them."""
    loader = DataLoader(
        _PoolsByNumber(replace(sampler)),
        batch_size=None,
        sampler=sampler.pool_numbers(),
        num_workers=1,
        prefetch_factor=1,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
    )
    for pool in _started(loader):
        batches = []
        for batch in pool.tolist():
            batches.append([(epoch, index) for epoch, index in batch])
        yield batches


class _Loader(DataLoader):
    def check_worker_number_rationality(self) -> None:
        """Suppresses PyTorch's two warnings about more processes than cores, whose number the user
        chose."""


def load_batches(
    samples: Samples,
    sampler: Sampler[list[Key]],
    num_workers: int,
    pin_memory: bool,
    timeout_s: float = ANSWER_S,
) -> Iterator[list[Sample]]:
    """Lists of samples in the sampler's order.

    They are padded later, after all ranks have agreed on a canvas. Raises InputError if an image
    cannot be read. Within `watching_workers`, raises LostError if a process dies, or if its batch
    does not arrive within `timeout_s`.
    """
    loader = _Loader(
        samples,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_pack,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        # This limit has no effect if a process hangs while it sends, so `_next` has a limit as
        # well.
        timeout=timeout_s + _DEATH_S if num_workers else 0,
    )
    batches = _started(loader)
    while (batch := _next(batches, timeout_s)) is not None:
        if isinstance(batch, InputError):
            try:
                raise batch
            finally:
                # The error refers to this frame. If the frame referred to the error, both would
                # stay until a garbage collection, which closes the queues to the loader processes
                # before it asks these to end, and then waits 5 s for each.
                del batch
        yield _unpack(batch)


def _started(loader: DataLoader) -> Iterator[Any]:
    """The batches of `loader`, whose processes are started here and recorded in `_WORKERS`."""
    if loader.num_workers and _SHARED_FOLDER.is_dir():
        needed = (1 + loader.num_workers) * _QUEUES_BYTES
        if shutil.disk_usage(_SHARED_FOLDER).free < needed:
            text = f"{loader.num_workers} loader processes cannot be started"
            raise InputError(text, remedy=_SHARED_MEMORY)
    before = set(active_children())
    _TIMED_OUT.clear()
    batches = iter(loader)
    _WORKERS.update(set(active_children()) - before)
    return batches


def _next(batches: Iterator[Any], timeout_s: float) -> Any:
    """The next batch; None after the last.

    If it does not arrive in time, ends the loader processes, so that nothing waits for them any
    more, and raises LostError.
    """
    if not _WORKERS:
        return next(batches, None)

    def end() -> None:
        alive = [worker for worker in _WORKERS if worker.is_alive()]
        if alive:
            _TIMED_OUT.append(timeout_s)  # before they end, when PyTorch raises
        for worker in alive:
            worker.kill()

    limit = threading.Timer(timeout_s, end)
    limit.daemon = True
    limit.start()
    try:
        return next(batches, None)
    except Exception as error:
        if not _TIMED_OUT and "DataLoader timed out" not in str(error):
            raise
        raise LostError(_text_of_silence(timeout_s)) from error
    finally:
        limit.cancel()


@contextmanager
def watching_workers() -> Iterator[None]:
    """A context that raises LostError, with one line, if a loader process dies or does not respond.
    It ends the remaining processes at its end.

    PyTorch raises wherever the main process happens to be. If that is receiving a sample from the
    dead process, the connection breaks before PyTorch has noticed, in one of many ways.
    """
    try:
        yield
    except Exception as error:
        reason = _worker_problem(error)
        if not reason:
            raise
        raise LostError(reason) from error
    finally:
        _end_workers()
        _WORKERS.clear()  # errors after this are not theirs
        _TIMED_OUT.clear()


def _worker_problem(error: Exception) -> str:
    """The problem of loader processes that caused `error`, in words; empty if there is none."""
    if isinstance(error, LostError):
        return ""
    if _TIMED_OUT:
        # PyTorch raised late, or a second time, because of a process that was ended here.
        return _text_of_silence(_TIMED_OUT[0])
    cause: BaseException | None = error
    while cause is not None:
        # Not "in DataLoader worker process 0", where an error of a data set came from.
        if isinstance(cause, RuntimeError) and "DataLoader worker (pid" in str(cause):
            return _text_of_death(cause)
        cause = cause.__cause__
    if isinstance(error, RedetrError):
        return ""
    # Whatever the error is: a callback or a data set of the user's own may raise any.
    return _text_of_death(error) if _a_worker_has_died() else ""


def _text_of_silence(timeout_s: float) -> str:
    return (
        f"loader processes did not respond within {timeout_s:g} s: a disk hangs, or "
        f"{_SHARED_MEMORY}; if images take that long to read, raise --loader-timeout-s"
    )


def _text_of_death(error: BaseException) -> str:
    return (
        "a loader process died, most often because memory ran out: lower --num-workers "
        f"({first_line(error)[:160]})"
    )


def _a_worker_has_died() -> bool:
    """Whether a loader process has ended by a signal or an error, perhaps only just."""
    deadline = time.monotonic() + _DEATH_S
    while _WORKERS:
        if any(worker.exitcode for worker in _WORKERS):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return False


def _end_workers() -> None:
    """Kills the remaining loader processes, including those that hang or wait for an alarm."""
    workers = [worker for worker in _WORKERS if worker.is_alive()]
    if not workers:
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = None
    if sys.platform != "win32" and in_main_thread:  # PyTorch's handler raises if a worker is killed
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_DEATH_S)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def canvas_of(samples: list[Sample]) -> Size:
    """The smallest (H, W) that holds every image."""
    sizes = [image.shape[-2:] for image, _ in samples]
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def to_batch(
    samples: list[Sample],
    device: torch.device,
    canvas: Size | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Samples as a normalised, padded `Batch` on `device`, with their targets."""
    images = [image for image, _ in samples]
    targets = [target for _, target in samples]
    batch = images_to_batch(images, device, canvas, dtype)
    return replace(batch, targets=targets)


def images_to_batch(
    images: list[Tensor],
    device: torch.device,
    canvas: Size | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Images, uint8 `[C, h, w]`, as a normalised, padded `Batch` on `device`.

    They are copied as bytes; nothing waits if they are pinned. Padding is zero after normalisation,
    as in the original.
    """
    return collate(
        images,
        canvas,
        device=device,
        dtype=dtype,
        memory_format=torch.channels_last,
        convert=normalize,
    )


def padded_share(batches: list[Batch]) -> float:
    """The share of the canvases of all batches that is padding, from 0 to 1. Does not
    synchronise."""
    canvases = 0
    shown = 0
    for batch in batches:
        canvases += batch.mask.numel()
        shown += sum(height * width for height, width in batch.sizes)
    return 1 - shown / canvases
