"""How much memory does it take to evaluate masks?

    python benchmarks/mask_memory.py

5,000 images of 480x640 px with 100 predicted masks each and 7 objects each: masks are ragged blobs,
decoded from logits at stride 4 as evaluation does, a batch of 16 images at a time, and kept
compressed. One batch is decoded; the others repeat it as copies, so that each mask has its own
memory. All are evaluated: of 80 classes and of a single one, by one process and by two. Peaks are
those of whole processes, with PyTorch and the detections. The digits are compared. Writes
results/DATE-mask-memory.json.
"""

import resource
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ranks import in_ranks
from record import record
from torch import Tensor

from redetr.class_shares import shared_metrics
from redetr.distributed import process_group
from redetr.masks import encode
from redetr.metrics import TruthObjects
from redetr.postprocess import decode_masks
from redetr.structures import DatasetDetections

IMAGES, MASKS, OBJECTS, BATCH = 5_000, 100, 7, 16
SIZE = (480, 640)
DECODED = 1  # batches


def blobs(seed: int) -> Tensor:
    """Logits of masks `[16, 100, 120, 160]` with ragged edges, a tenth of an image on average."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(BATCH, MASKS, 2, 1, 1, generator=generator)
    radii = 0.05 + 0.25 * torch.rand(BATCH, MASKS, 2, 1, 1, generator=generator)
    y = torch.linspace(0, 1, 120)[:, None]
    x = torch.linspace(0, 1, 160)
    distance = ((y - centers[:, :, 0]) / radii[:, :, 0]) ** 2
    distance = distance + ((x - centers[:, :, 1]) / radii[:, :, 1]) ** 2
    coarse = torch.randn(BATCH, MASKS, 30, 40, generator=generator)
    return 1 - distance + 0.3 * F.interpolate(coarse, (120, 160), mode="bilinear")


def compressed_masks() -> list[list[bytes]]:
    """The masks of some images, compressed as in evaluation."""
    of_images = []
    queries = torch.arange(MASKS)
    for batch in range(DECODED):
        outputs: Any = {"pred_masks": blobs(batch)}
        for image in range(BATCH):
            masks: list[bytes] = []
            for some in decode_masks(outputs, image, queries, SIZE, SIZE, SIZE):
                masks += encode(some)
            of_images.append(masks)
    return of_images


def truth(known: list[list[bytes]], classes: int) -> TruthObjects:
    rng = np.random.default_rng(0)
    count = IMAGES * OBJECTS
    image = np.repeat(np.arange(IMAGES), OBJECTS)
    masks = [known[index % len(known)][row % OBJECTS] for row, index in enumerate(image)]
    return TruthObjects(
        image_ids=np.arange(IMAGES),
        class_names=tuple(f"class {label}" for label in range(classes)),
        image=image,
        labels=rng.integers(0, classes, count),
        boxes=np.zeros((count, 4)),
        area=np.full(count, 3000.0),
        iscrowd=np.zeros(count, bool),
        masks=masks,
        image_sizes=np.tile(SIZE, (IMAGES, 1)),
    )


def detections(known: list[list[bytes]], classes: int, rank: int, ranks: int) -> DatasetDetections:
    """The detections in the images of this rank. Every mask has its own memory."""
    parts = []
    for index in range(rank, IMAGES, ranks):
        rng = np.random.default_rng(index)
        part = DatasetDetections(
            image_index=np.full(MASKS, index),
            labels=rng.integers(0, classes, MASKS),
            scores=rng.random(MASKS, np.float32),
            boxes=np.zeros((MASKS, 4), np.float32),
            masks=[bytes(bytearray(mask)) for mask in known[index % len(known)]],
        )
        parts.append(part)
    return DatasetDetections.concatenate(parts)


def evaluate(rank: int, ranks: int, classes: int) -> dict[str, Any]:
    known = compressed_masks()
    objects = truth(known, classes)
    share = detections(known, classes, rank, ranks)
    with process_group("cpu") as dist:
        started = time.process_time()
        result = shared_metrics(objects, share, dist).to_dict()
        seconds = time.process_time() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    mask_bytes = sum(map(len, share.masks or [])) / max(1, len(share))
    return {
        "processor_s": seconds,
        "peak_mb": peak_mb,
        "bytes_per_mask": mask_bytes,
        "result": result,
    }


def main() -> None:
    content: dict[str, Any] = {"images": IMAGES, "masks": IMAGES * MASKS, "image_size": SIZE}
    for classes in (80, 1):
        ways = {ranks: in_ranks(ranks, evaluate, classes) for ranks in (1, 2)}
        expected = ways[1][0]["result"]
        measured: dict[str, Any] = {"mask_AP": expected["masks"]["AP"]}
        for ranks, processes in ways.items():
            same = all(process.pop("result") == expected for process in processes)
            measured[f"{ranks}_ranks"] = {"same_digits": same, "processes": processes}
        content[f"{classes}_classes"] = measured
    record("mask-memory", content)


if __name__ == "__main__":
    main()
