"""Small data sets without any fault, in every form that is read; tests damage copies of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {7: "cup", 12: "plate", 90: "spoon"}  # ids with gaps, as in COCO
IMAGES = {"train": 14, "val": 10}
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Scene:
    """An image and one box of each class, x y width height in pixels."""

    name: str
    pixels: np.ndarray
    boxes: list[list[int]]


def scenes(split: str) -> list[Scene]:
    """Rectangles on coloured clouds; no two scenes look alike."""
    random = np.random.default_rng(list(IMAGES).index(split))
    found = []
    for number in range(IMAGES[split]):
        clouds = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        pixels = np.array(clouds.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        boxes = []
        for shade in (20, 120, 240):
            w, h = (int(side) for side in random.integers(12, 24, 2))
            x, y = int(random.integers(0, WIDTH - w + 1)), int(random.integers(0, HEIGHT - h + 1))
            pixels[y : y + h, x : x + w] = shade
            boxes.append([x, y, w, h])
        found.append(Scene(f"{split}-{number:02d}", pixels, boxes))
    return found


def write_coco(root: Path) -> Path:
    """`annotations/instances_SPLIT.json`, images in `SPLIT/`. Annotation ids begin at 1000, image
    ids at 100."""
    for split in IMAGES:
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number, scene in enumerate(scenes(split)):
            Image.fromarray(scene.pixels).save(root / split / f"{scene.name}.jpg", quality=90)
            images.append(
                {
                    "id": 100 + number,
                    "file_name": f"{scene.name}.jpg",
                    "width": WIDTH,
                    "height": HEIGHT,
                }
            )
            for category, box in zip(CLASSES, scene.boxes, strict=True):
                id_ = 1000 + len(annotations)
                annotations.append(
                    {"id": id_, "image_id": 100 + number, "category_id": category, "bbox": box}
                )
        categories = [{"id": id_, "name": name} for id_, name in CLASSES.items()]
        (root / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def write_yolo(root: Path) -> Path:
    """`data.yaml`, `images/SPLIT/*.png`, `labels/SPLIT/*.txt`."""
    for split in IMAGES:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for scene in scenes(split):
            Image.fromarray(scene.pixels).save(root / "images" / split / f"{scene.name}.png")
            lines = [
                f"{label} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n"
                for label, (x, y, w, h) in enumerate(scene.boxes)
            ]
            (root / "labels" / split / f"{scene.name}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnames: [cup, plate, spoon]\n"
    )
    return root


def write_voc(root: Path) -> Path:
    """The layout of the devkit; pixels count from 1."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in IMAGES:
        names = []
        for scene in scenes(split):
            Image.fromarray(scene.pixels).save(
                root / "JPEGImages" / f"{scene.name}.jpg", quality=90
            )
            objects = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
                f"<ymax>{y + h}</ymax></bndbox></object>"
                for name, (x, y, w, h) in zip(CLASSES.values(), scene.boxes, strict=True)
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{scene.name}.jpg</filename>{size}{objects}</annotation>"
            (root / "Annotations" / f"{scene.name}.xml").write_text(text)
            names.append(f"{scene.name}\n")
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(names))
    return root


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
