"""What do users who train on boxes only pay for the support of masks?

    python benchmarks/boxes_alone.py COMMIT

The package at COMMIT, the last one without masks, and this checkout, each in a process of its own,
take turns: a round reads a data set in COCO format with polygons, of 10,000 objects, and draws
training samples of image files and of `digits`, without masks. Processor time, and the median over
rounds of the ratio within a round. Also measures the cost with masks, in this checkout. Writes
results/DATE-boxes-alone.json.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 7
IMAGES, OBJECTS = 2_000, 10_000
SAMPLES = 96
ROOT = Path(__file__).parent.parent


def write_data(root: Path) -> None:
    """Images of 640x480 px, all links to a few, with polygons of 20 points in them."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    rows = []
    for number in range(OBJECTS):
        center, radius = random.uniform((60, 60), (580, 420)), random.uniform(8, 50)
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        x1, y1, x2, y2 = *points.min(0), *points.max(0)
        rows.append(
            {
                "id": number,
                "image_id": int(random.integers(IMAGES)),
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": [points.round(2).ravel().tolist()],
            }
        )
    images = []
    (root / "train").mkdir(parents=True)
    for number in range(IMAGES):
        file = root / "train" / f"{number}.jpg"
        if number < 20:
            noise = random.integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(noise).resize((640, 480)).save(file, quality=90)
        else:
            os.link(root / "train" / f"{number % 20}.jpg", file)
        images.append({"id": number, "file_name": file.name, "width": 640, "height": 480})
    document = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "round thing"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))


def serve(data: str, masks: bool) -> None:
    """Runs a round for every line of the input, and prints its processor time."""
    from pieces import answer_rounds

    from redetr.data import open_dataset
    from redetr.data.loader import Samples
    from redetr.data.transforms import augmentation
    from redetr.data.views import Fit

    options: Any = {"masks": True} if masks else {}
    files = Samples(open_dataset(data, "train", **options), augmentation("detr", Fit(480, 800)), 0)
    digits = open_dataset("digits", "train", **options)
    scenes = Samples(digits, augmentation("photo", Fit(128)), 0, mosaic_epochs=1)

    def draw(samples: Samples) -> None:
        for index in range(SAMPLES):
            samples[0, index]

    works = {
        "reading": lambda: open_dataset(data, "train", **options),
        "samples of files": lambda: draw(files),
        "samples of digits": lambda: draw(scenes),
    }
    answer_rounds(works)


def started(package: Path, data: Path, masks: bool) -> subprocess.Popen[str]:
    """A process that serves rounds with the package in this folder."""
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "serve", str(data), "masks" if masks else "boxes"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)


def main(commit: str) -> None:
    from record import record

    with tempfile.TemporaryDirectory() as folder:
        before, data = Path(folder) / "before", Path(folder) / "data"
        archive = subprocess.run(
            ["git", "archive", commit, "redetr"], cwd=ROOT, capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
            content.extractall(before, filter="data")
        write_data(data)
        servers = {
            "before": started(before, data, masks=False),
            "boxes": started(ROOT, data, masks=False),
            "masks": started(ROOT, data, masks=True),
        }
        rounds = []
        for _ in range(1 + ROUNDS):
            seconds = {}
            for name, server in servers.items():
                assert server.stdin is not None
                assert server.stdout is not None
                server.stdin.write("\n")
                server.stdin.flush()
                seconds[name] = json.loads(server.stdout.readline())
            rounds.append(seconds)
        for server in servers.values():
            server.communicate()
    del rounds[0]  # warms up
    result: dict[str, Any] = {"commit_before": commit, "rounds": ROUNDS}
    for work in rounds[0]["before"]:
        sides: dict[str, Any] = {}
        for side in servers:
            values = [1000 * seconds[side][work] for seconds in rounds]
            sides[f"{side}_cpu_ms"] = round(median(values), 1)
            sides[f"{side}_spread"] = [round(min(values), 1), round(max(values), 1)]
        for side in ("boxes", "masks"):
            ratios = [seconds[side][work] / seconds["before"][work] for seconds in rounds]
            sides[f"{side}_ratio"] = round(median(ratios), 3)
        result[work] = sides
    record("boxes-alone", result)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3] == "masks")
    else:
        main(sys.argv[1])
