"""Loading samples in worker processes, and putting them on the device as one padded batch."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from redetr.data.cache import ImageCache
from redetr.data.dataset import DetectionDataset
from redetr.data.images import decode
from redetr.data.mosaic import combined
from redetr.data.sampler import Key
from redetr.data.transforms import Sample, StoredSample, Transform, drawn_from, draws_of, normalize
from redetr.errors import InputError, LostError
from redetr.structures import Batch, Size, collate

_GRACE_S = 60  # how long a worker outlives a signal to end


class Samples(Dataset[Sample]):
    """A data set seen through a transform, addressed by (epoch, index).

    In the first `mosaic_epochs` epochs, some samples are mosaics and mixtures with other images.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transform: Transform,
        seed: int,
        cache: ImageCache | None = None,
        mosaic_epochs: int = 0,
    ):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.cache = cache
        self.mosaic_epochs = mosaic_epochs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The uint8 image `[3, h, w]` and its target as the model sees it.

        A function of (seed, epoch, index), not of the image's id, which differs between the formats
        of a data set.
        """
        image, target = self._shown(key)
        target["seed"] = drawn_from(self.seed, *key)
        return image, target

    def _shown(self, key: Key) -> Sample:
        epoch, index = key
        image, target = self._stored(index)
        random = draws_of(self.seed, epoch, index)
        view = self.transform.view(random, target)
        if epoch >= self.mosaic_epochs:
            return self.transform.show(random, view, image, target)

        def another() -> StoredSample:
            return self._stored(random.randrange(len(self)))

        return combined(random, self.transform, view, (image, target), another)

    def __getitems__(self, keys: list[Key]) -> list[Sample] | InputError:
        """The samples of a batch, or the error of one of them.

        `load_batches` raises the error: a worker process would garble it.
        """
        try:
            return [self[key] for key in keys]
        except InputError as error:
            return error

    def size(self, key: Key) -> Size:
        """Height and width of the sample, without decoding an image; some 50 us."""
        epoch, index = key
        target = self.dataset.target(index)
        return self.transform.view(draws_of(self.seed, epoch, index), target).size

    def _stored(self, index: int) -> StoredSample:
        """An image and its target as stored; the image may be decoded smaller.

        See `Transform.closest`.
        """
        image = self.cache.get(index) if self.cache else None
        if image is not None:
            return image, self.dataset.target(index)
        image, target = self._decoded(index)
        if self.cache:
            self.cache.put(index, image)
        return image, target

    def _decoded(self, index: int) -> StoredSample:
        path = getattr(self.dataset, "path", None)
        closest = self.transform.closest
        if path and closest:
            target = self.dataset.target(index)
            smallest = closest(*target["orig_size"])
            image, stored_size = decode(path(index), smallest)
            if stored_size == target["orig_size"]:
                return image, target
        return self.dataset.sample(index)  # or the error that its file has


def _pack(samples: list[Sample] | InputError) -> Any:
    """Samples as they travel between processes, with arrays in their targets.

    Each tensor would cost a file descriptor, 0.3 ms.
    """
    if isinstance(samples, InputError):
        return samples
    packed = []
    for image, target in samples:
        arrays: dict[str, Any] = {}
        for name, value in target.items():
            arrays[name] = value.numpy() if isinstance(value, Tensor) else value
        packed.append((image, arrays))
    return packed


def _unpack(packed: list[tuple[Tensor, dict[str, Any]]]) -> list[Sample]:
    samples = []
    for image, arrays in packed:
        target: Any = {}
        for name, value in arrays.items():
            target[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        samples.append((image, target))
    return samples


def _start_worker(number: int) -> None:
    # Workers run side by side: with more threads they would compete for the same cores.
    torch.set_num_threads(1)
    # A signal to all processes of a run is meant for the main one, which still needs its workers to
    # end the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


def load_batches(
    samples: Samples, sampler: Sampler[list[Key]], num_workers: int, pin_memory: bool
) -> Iterator[list[Sample]]:
    """Lists of samples in the sampler's order.

    They are padded later, when all ranks have agreed on a canvas. Raises InputError for an image
    that cannot be read.
    """
    batches = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_pack,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
    )
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield _unpack(batch)


@contextmanager
def watching_workers() -> Iterator[None]:
    """Raises LostError, one line, when a loader process dies.

    PyTorch raises wherever the main process happens to be. If that is taking a sample from the dead
    one, the connection breaks before PyTorch has noticed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise LostError(
            "a loader process died, most often for want of memory: lower --num-workers "
            f"({str(error).strip()[:160]})"
        ) from error


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
    """Images, uint8 `[3, h, w]`, as a normalised, padded `Batch` on `device`.

    Only their bytes travel; nothing waits if they are pinned. Padding is zero after normalisation,
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
    """How much of the canvases of all batches is padding, from 0 to 1; known on the host."""
    canvases = 0
    shown = 0
    for batch in batches:
        canvases += batch.mask.numel()
        shown += sum(height * width for height, width in batch.sizes)
    return 1 - shown / canvases
