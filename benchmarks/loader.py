"""How many images per second does one core prepare for training, from JPEG files to the data that
is sent to the GPU?

    python benchmarks/loader.py

`redetr` is compared with the original DETR (PIL, torchvision's first transforms, floats on the
host) with its training augmentation, and with Transformers' image processors, which resize the
whole image. The data are 200 synthetic photographs of 640x480 with the spectrum of real ones, at
quality 90, with 155 kB each, as large as COCO's. Each side uses one thread; sides take turns in
runs of 20 images. Results are images per second of processor time, since other programs may be
running. Then the same is measured in a loader process, which adds the cost of transferring batches
of two. Also reports the share of a batch that is padding, with and without grouping by size, for
images of COCO's most common sizes. Writes results/DATE-loader.json.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F
from transformers import DetrImageProcessor
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from redetr.data import DetectionDataset
from redetr.data.cache import ImageCache
from redetr.data.images import read_image
from redetr.data.loader import Samples, load_batches
from redetr.data.sampler import EvalSampler, TrainSampler
from redetr.data.transforms import augmentation, derived_rng, resizer
from redetr.data.views import Fit
from redetr.structures import Batch, StoredTarget, collate

IMAGES, ROUNDS, RUN, BOXES = 200, 5, 20, 7
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# The most common sizes (height, width) of COCO's images, and roughly how many of 100 images have
# them.
SIZES = {
    (480, 640): 26,
    (427, 640): 18,
    (640, 480): 10,
    (426, 640): 7,
    (640, 427): 6,
    (425, 640): 6,
    (375, 500): 9,
    (500, 375): 4,
    (360, 640): 5,
    (640, 640): 4,
    (333, 500): 5,
}

Side = Callable[[int], object]


class Photographs(DetectionDataset):
    """JPEG files with a few boxes each."""

    name, class_names, category_ids = "photographs", ("thing",), (1,)

    def __init__(self, folder: Path):
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def file_to_decode(self, index: int) -> Path:
        return self.files[index]

    def image(self, index: int) -> Tensor:
        return read_image(self.files[index])

    def target(self, index: int) -> StoredTarget:
        corners = (
            np.random.default_rng(index).uniform(0, [640, 480], (BOXES, 2, 2)).astype(np.float32)
        )
        boxes = torch.from_numpy(np.concatenate([corners.min(1), corners.max(1)], 1))
        return StoredTarget(
            boxes=boxes,
            labels=torch.zeros(BOXES, dtype=torch.long),
            image_id=index,
            orig_size=(480, 640),
            size=(480, 640),
            iscrowd=torch.zeros(BOXES, dtype=torch.bool),
            area=boxes[:, 2],
        )


def photograph(seed: int, height: int = 480, width: int = 640) -> Image.Image:
    """Noise whose amplitude falls with frequency as in photographs, mostly grey."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)
    )
    waves = (
        np.exp(2j * np.pi * draw.random((4, *frequency.shape))) / np.maximum(1, frequency) ** 1.2
    )
    fields = np.fft.irfft2(waves, s=(height, width))
    fields /= fields.std((1, 2), keepdims=True)
    pixels = 128 + 55 * (fields[0] + 0.35 * fields[1:])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def original_way(path: Path, draw: random.Random) -> Tensor:
    """The augmentation of the original DETR on PIL images, up to normalised floats. It is not
    applied to boxes, in favour of the original."""
    image = Image.open(path).convert("RGB")
    if draw.random() < 0.5:
        image = F.hflip(image)
    if draw.random() < 0.5:
        image = resized(image, draw.choice([400, 500, 600]))
        width, height = (draw.randint(384, min(side, 600)) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        image = F.crop(image, top, left, height, width)
    image = resized(image, draw.choice(range(480, 801, 32)), 1333)
    return F.normalize(F.to_tensor(image), MEAN, STD)


def resized(image: Image.Image, shorter: int, longest: int | None = None) -> Image.Image:
    return F.resize(image, shorter, max_size=longest)


class OriginalWay(Dataset[Tensor]):
    """Loads like the original: a worker makes padded batches of floats."""

    def __init__(self, data: Photographs):
        self.data, self.draw = data, random.Random(0)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return original_way(self.data.files[index], self.draw)


def measure(sides: dict[str, Side]) -> dict[str, list[float]]:
    """Images per second of each side, one number per round; within a round the sides take turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        seconds = dict.fromkeys(sides, 0.0)
        for start in range(0, IMAGES, RUN):
            for name, side in sides.items():
                started = time.process_time()
                for index in range(start, start + RUN):
                    side(index)
                seconds[name] += time.process_time() - started
        for name, spent in seconds.items():
            rates[name] += [IMAGES / spent] if round_ else []
    return rates


def in_this_process(data: Photographs) -> dict[str, list[float]]:
    detr, whole = augmentation("detr", Fit(800, 1333)), resizer(Fit(800, 1333))
    ours, ours_whole = Samples(data, detr, 0), Samples(data, whole, 0)
    kept = Samples(data, detr, 0, ImageCache(len(data), 10**9))
    fast, slow = DetrImageProcessor(), DetrImageProcessorPil()
    draw = random.Random(0)
    return measure(
        {
            "redetr": lambda i: ours[0, i],
            "redetr, decoded images kept": lambda i: kept[0, i],
            "original": lambda i: original_way(data.files[i], draw),
            "redetr, whole": lambda i: ours_whole[0, i],
            "transformers (torchvision), whole": lambda i: fast(
                read_image(data.files[i]), return_tensors="pt"
            ),
            "transformers (PIL), whole": lambda i: slow(
                Image.open(data.files[i]), return_tensors="pt"
            ),
        }
    )


def in_a_loader_process(data: Photographs) -> dict[str, list[float]]:
    """Images per second of the processor time of one worker, from its start to its end."""
    samples, floats = Samples(data, augmentation("detr", Fit(800, 1333)), 0), OriginalWay(data)
    loaders = {
        "redetr": lambda: load_batches(samples, EvalSampler(IMAGES, 2), 1, False),
        "original": lambda: DataLoader(floats, batch_size=2, num_workers=1, collate_fn=padded),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            for _batch in loader():
                pass
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rates[name].append(IMAGES / spent)
    return rates


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    batch: Batch = collate(images)
    return batch.images, batch.mask


def padding(batch_size: int, num_images: int = 20_000) -> dict[str, float]:
    """The share of the canvases of an epoch that is padding, in the original's augmentation."""
    stored = random.Random(0).choices(list(SIZES), list(SIZES.values()), k=num_images)
    draw = augmentation("detr", Fit(800, 1333)).draw

    def size_of(key: tuple[int, int]) -> tuple[int, int]:
        return draw(derived_rng(0, *key), *stored[key[1]], np.zeros((0, 4))).size

    shares = {}
    for name, grouped in (("any order", None), ("grouped by size", size_of)):
        seen = canvases = 0
        steps = num_images // batch_size
        for keys in TrainSampler(num_images, batch_size, 0, 0, steps, size_of=grouped):
            sizes = [size_of(key) for key in keys]
            seen += sum(height * width for height, width in sizes)
            canvases += (
                batch_size * max(height for height, _ in sizes) * max(width for _, width in sizes)
            )
        shares[name] = round(1 - seen / canvases, 4)
    return shares


def summary(rates: dict[str, list[float]]) -> dict[str, object]:
    return {
        name: {
            "images_per_s": round(statistics.median(values), 1),
            "n": len(values),
            "spread": [round(min(values), 1), round(max(values), 1)],
        }
        for name, values in rates.items()
    }


def ratio(rates: dict[str, list[float]], ours: str, others: list[str]) -> float:
    """How many times as fast as the fastest of the others `ours` is."""
    return round(
        statistics.median(rates[ours]) / max(statistics.median(rates[other]) for other in others), 2
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(IMAGES):
            photograph(i).save(Path(folder, f"{i:03}.jpg"), quality=90)
        data = Photographs(Path(folder))
        kilobytes = sum(file.stat().st_size for file in data.files) / len(data) / 1000
        here, apart = in_this_process(data), in_a_loader_process(data)
    record(
        "loader",
        {
            "images": IMAGES,
            "kB": round(kilobytes),
            "rounds": ROUNDS,
            "unit": "images per second of processor time",
            "in process": summary(here),
            "in a loader process": summary(apart),
            "ratios": {
                "to the original": ratio(here, "redetr", ["original"]),
                "to the original, in a loader process": ratio(apart, "redetr", ["original"]),
                "to transformers, whole images": ratio(
                    here, "redetr, whole", [name for name in here if "transf" in name]
                ),
            },
            "padding": {f"batches of {size}": padding(size) for size in (2, 16, 64)},
        },
    )


if __name__ == "__main__":
    main()
