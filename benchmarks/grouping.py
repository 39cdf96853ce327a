"""How long does grouping images by size delay a rank? Before: sizes come from whole targets, when
the first of 64 batches is needed. Now: from stored sizes, in a process ahead of the steps.

    python benchmarks/grouping.py

10,000 images with 15 boxes each, the original's augmentation. For each global batch, in one run:
processor time of the sizes of a pool both ways, and the longest wait of the loop for a batch in the
second pool, whose steps take 1.5 times as long as computing the pool, divided by 64. The order of
both is compared. Writes results/DATE-grouping.json.
"""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from redetr.data.annotations import Annotations
from redetr.data.dataset import Hints
from redetr.data.formats.folder import FolderDataset
from redetr.data.loader import Samples, pools_ahead, watching_workers
from redetr.data.sampler import Key, TrainSampler
from redetr.data.transforms import augmentation, derived_rng
from redetr.data.views import Fit, Size

IMAGES, BOXES, POOL = 10_000, 15, 64
BATCHES = (512, 4096)


def dataset() -> FolderDataset:
    """Annotations of random sizes; no image is read."""
    random = np.random.default_rng(0)
    count = IMAGES * BOXES
    corners = random.uniform(0, 100, (count, 2))
    annotations = Annotations(
        source=Path("none.json"),
        folder=Path("none"),
        names=np.array([f"{i:06d}.jpg" for i in range(IMAGES)], "S"),
        ids=np.arange(IMAGES),
        sizes=random.integers(300, 640, (IMAGES, 2)),
        category_ids=(1,),
        class_names=("thing",),
        first=np.arange(IMAGES + 1) * BOXES,
        boxes=np.concatenate([corners, corners + 50], axis=1).astype(np.float32),
        labels=np.zeros(count, np.int64),
        iscrowd=np.zeros(count, bool),
        area=np.full(count, 2500, np.float32),
        object_ids=np.arange(count),
    )
    return FolderDataset(annotations, "none", Hints())


def processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(samples: Samples, batch_size: int) -> dict[str, Any]:
    def size_from_target(key: Key) -> Size:
        epoch, index = key
        target = samples.dataset.target(index)
        return samples.transform.view(derived_rng(samples.seed, epoch, index), target).size

    before = TrainSampler(IMAGES, batch_size, 0, 0, 2 * POOL, size_of=size_from_target)
    started = processor_s()
    before_pool = before.pool(1)
    before_s = processor_s() - started
    now = TrainSampler(IMAGES, batch_size, 0, 0, 2 * POOL, size_of=samples.size)
    started, wall = processor_s(), time.perf_counter()
    now_pool = now.pool(1)
    now_s = processor_s() - started
    step_s = 1.5 * (time.perf_counter() - wall) / POOL

    waits = []
    order = []
    with watching_workers():
        now.pools = pools_ahead(now)
        batches = iter(now)
        for _ in range(2 * POOL):
            started = time.perf_counter()
            order.append(next(batches))
            waits.append(time.perf_counter() - started)
            time.sleep(step_s)
    return {
        "images_in_a_pool": POOL * batch_size,
        "processor_s_before": before_s,
        "processor_s_now": now_s,
        "stall_s_before": before_s,
        "stall_s_now": max(waits[POOL:]),
        "first_wait_s": waits[0],
        "same_order": before_pool == now_pool == order[POOL:],
    }


def main() -> None:
    samples = Samples(dataset(), augmentation("detr", Fit(800, 1333)), seed=0)
    content = {str(batch_size): measure(samples, batch_size) for batch_size in BATCHES}
    record("grouping", {"machine_is_loaded": True, "global_batch": content})


if __name__ == "__main__":
    main()
