"""Loading samples in worker processes, and putting them on the device as one padded batch."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
from redetr.data.transforms import Sample, Transform, draws_of, normalize
from redetr.data.views import Size
from redetr.errors import InputError, LostError
from redetr.structures import Batch

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
        """The uint8 image `[3, h, w]` and its target as the model sees it: a function of (seed,
        epoch, index).

        Not of the image's id, which differs between the forms of a data set.
        """
        epoch, index = key
        image, target = self._stored(index)
        random = draws_of(self.seed, epoch, index)
        view = self.transform.view(random, target)
        if epoch >= self.mosaic_epochs:
            return self.transform.show(random, view, image, target)
        return combined(
            random,
            self.transform,
            view,
            (image, target),
            lambda: self._stored(random.randrange(len(self))),
        )

    def __getitems__(self, keys: list[Key]) -> list[Sample] | InputError:
        """The samples of a batch, or what is wrong with one: `load_batches` raises it, workers
        would garble it."""
        try:
            return [self[key] for key in keys]
        except InputError as error:
            return error

    def size(self, key: Key) -> Size:
        """Height and width of the sample, without decoding an image; some 50 us."""
        epoch, index = key
        target = self.dataset.target(index)
        return self.transform.view(draws_of(self.seed, epoch, index), target).size

    def _stored(self, index: int) -> Sample:
        """An image and its target as stored; the image may be decoded smaller, see
        `Transform.closest`."""
        image = self.cache.get(index) if self.cache else None
        if image is not None:
            return image, self.dataset.target(index)
        image, target = self._decoded(index)
        if self.cache:
            self.cache.put(index, image)
        return image, target

    def _decoded(self, index: int) -> Sample:
        path, closest = getattr(self.dataset, "path", None), self.transform.closest
        if path and closest:
            target = self.dataset.target(index)
            image, stored = decode(path(index), closest(*target["orig_size"]))
            if stored == target["orig_size"]:
                return image, target
        return self.dataset.sample(index)  # or what is wrong with the file


def _pack(samples: list[Sample] | InputError) -> Any:
    """Targets as arrays on their way between processes: each tensor would cost a file descriptor,
    0.3 ms."""
    if isinstance(samples, InputError):
        return samples
    return [
        (image, {k: v.numpy() if isinstance(v, Tensor) else v for k, v in t.items()})
        for image, t in samples
    ]


def _unpack(packed: list[tuple[Tensor, dict[str, Any]]]) -> list[Sample]:
    def tensors(target: dict[str, Any]) -> Any:
        return {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in target.items()
        }

    return [(image, tensors(target)) for image, target in packed]


def _start_worker(number: int) -> None:
    torch.set_num_threads(
        1
    )  # workers run side by side; more threads each would fight for the same cores
    # A signal to all processes of a run is for the main one, which still needs its workers to end
    # the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


def load_batches(
    samples: Samples, sampler: Sampler[list[Key]], num_workers: int, pin_memory: bool
) -> Iterator[list[Sample]]:
    """Lists of samples in the sampler's order. Padding waits for the canvas, which all ranks agree
    on.

    Raises InputError for an image that cannot be read.
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
    """Tells of a loader process that died in one line. PyTorch raises wherever the main process
    happens to be; while that takes a sample from the dead one, the connection breaks before PyTorch
    has noticed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise LostError(
            "a loader process died, most often for want of memory: lower --num-workers "
            f"({str(error).strip()[:160]})"
        ) from error


def canvas_of(samples: list[Sample]) -> tuple[int, int]:
    """The smallest (H, W) that holds every image."""
    sizes = [image.shape[-2:] for image, _ in samples]
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def to_batch(
    samples: list[Sample],
    device: torch.device,
    canvas: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Samples as a normalised, padded `Batch` on `device`. Only their bytes travel; nothing waits
    if they are pinned.

    Padding is zero after normalisation, as in the original.
    """
    height, width = canvas or canvas_of(samples)
    images = torch.zeros(len(samples), height, width, 3, dtype=dtype, device=device).permute(
        0, 3, 1, 2
    )
    mask = torch.ones(len(samples), height, width, dtype=torch.bool, device=device)
    for i, (image, _) in enumerate(samples):
        h, w = image.shape[-2:]
        images[i, :, :h, :w] = normalize(image.to(device, non_blocking=True))
        mask[i, :h, :w] = False
    return Batch(images, mask, [target for _, target in samples])


def padded_share(batches: list[Batch]) -> float:
    """How much of the canvases of all batches is padding, from 0 to 1; known on the host."""
    canvases = sum(batch.mask.numel() for batch in batches)
    return (
        1
        - sum(h * w for batch in batches for h, w in (target["size"] for target in batch.targets))
        / canvases
    )
