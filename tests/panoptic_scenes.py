"""A small panoptic data set: balls and crates (things) before sky and grass (stuff)."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from redetr.panoptic import id2rgb

CATEGORIES = [
    {"id": 1, "name": "ball", "isthing": 1},
    {"id": 3, "name": "crate", "isthing": 1},
    {"id": 92, "name": "sky", "isthing": 0},
    {"id": 95, "name": "grass", "isthing": 0},
]
_COLOURS = {1: (220, 40, 40), 3: (150, 100, 50), 92: (120, 170, 240), 95: (60, 160, 60)}
_SIDE = 64  # px


def write_scenes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes so many scenes of each split in COCO's panoptic layout; returns `root`."""
    random = np.random.default_rng(seed)
    for split, count in counts.items():
        name = f"panoptic_{split}2017"
        pngs = root / "annotations" / name
        folder = root / f"{split}2017"
        pngs.mkdir(parents=True)
        folder.mkdir()
        images = []
        annotations = []
        for number in range(1, count + 1):
            ids, segments = _scene(random)
            pixels = np.zeros((_SIDE, _SIDE, 3))
            for segment in segments:
                pixels[ids == segment["id"]] = _COLOURS[segment["category_id"]]
            pixels += random.normal(0, 12, pixels.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{number:06}.png")
            Image.fromarray(id2rgb(ids)).save(pngs / f"{number:06}.png")
            file = {"file_name": f"{number:06}.png"}
            images.append({"id": number, "height": _SIDE, "width": _SIDE, **file})
            annotations.append({"image_id": number, "segments_info": segments, **file})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return root


def _scene(random: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Ids `[H, W]` and the segments of a scene; a strip at the horizon is void."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    horizon = random.integers(20, 44)
    ids = np.where(y < horizon, 7, 300)
    ids[horizon] = 0
    categories = {7: 92, 300: 95}
    for number, half in enumerate((0, 1), start=70000):
        if random.random() < 0.2:
            continue
        center = random.integers(10, 22) + half * 32
        middle = random.integers(12, 52)
        radius = random.integers(6, 10)
        if half == 0:
            inside = (x - center) ** 2 + (y - middle) ** 2 < radius**2
            categories[number] = 1
        else:
            inside = np.maximum(abs(x - center), abs(y - middle)) < radius
            categories[number] = 3
        ids[inside] = number
    segments = []
    for id_, category_id in categories.items():
        rows, columns = np.nonzero(ids == id_)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        segment = {"id": id_, "category_id": category_id, "iscrowd": 0, "bbox": box}
        segments.append(segment | {"area": len(rows)})
    return ids, segments
