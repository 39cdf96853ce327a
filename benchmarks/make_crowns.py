"""Cuts the tiles of the `crowns` data set out of the two Yellowstone photographs in the
`deepforest` 2.1.0 wheel.

    pip download --no-deps deepforest==2.1.0
    python benchmarks/make_crowns.py deepforest-2.1.0-py3-none-any.whl

Training: the left three quarters of the large photograph and the whole small one, in overlapping
tiles. Validation: the right quarter of the large one, in tiles of 128 px that do not overlap. No
pixel is in both.
"""

import argparse
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

LARGE = "2019_YELL_2_528000_4978000_image_crop2"
SMALL = "2019_YELL_2_541000_4977000_image_crop"
TRAIN_SHARE = 0.75  # of the large photograph's width
TILE_PX, OVERLAP_PX = 640, 64  # largest side of a training tile, and what neighbours share
VAL_PX = 128
MIN_VISIBLE = 0.6  # a box of which a tile shows less is marked to be ignored
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Photograph:
    name: str
    image: Image.Image
    boxes: np.ndarray  # [T, 4] xyxy pixels


@dataclass(frozen=True)
class Tile:
    name: str
    image: Image.Image
    boxes: np.ndarray  # [T, 4] xyxy pixels of the tile
    ignored: np.ndarray  # [T] bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "redetr/data/crowns"
    )
    arguments = parser.parse_args()
    with ZipFile(arguments.wheel) as wheel:
        large, small = (read(wheel, name) for name in (LARGE, SMALL))
    border = int(TRAIN_SHARE * large.image.width)
    train = tiles(large, train_windows(border, large.image.height)) + tiles(
        small, train_windows(*small.image.size)
    )
    val = tiles(large, val_windows(border, *large.image.size))
    write(arguments.output, "train", train)
    write(arguments.output, "val", [tile for tile in val if not tile.ignored.all()])


def read(wheel: ZipFile, name: str) -> Photograph:
    image = Image.open(io.BytesIO(wheel.read(f"deepforest/data/{name}.png"))).convert("RGB")
    annotation = ElementTree.fromstring(wheel.read(f"deepforest/data/{name}.xml"))
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[int(box.findtext(side, "")) for side in sides] for box in annotation.iter("bndbox")]
    return Photograph(name.removesuffix("2").removesuffix("_image_crop"), image, np.array(boxes))


def train_windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Windows (xyxy) that cover the area from its top left corner, equal in size up to a pixel."""
    return [(x1, y1, x2, y2) for y1, y2 in spans(height) for x1, x2 in spans(width)]


def spans(length: int) -> list[tuple[int, int]]:
    count = math.ceil((length - OVERLAP_PX) / (TILE_PX - OVERLAP_PX))
    side = math.ceil((length + (count - 1) * OVERLAP_PX) / count)
    starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def val_windows(left: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Windows (xyxy) side by side, right of `left`."""
    rows, columns = range(0, height - VAL_PX + 1, VAL_PX), range(left, width - VAL_PX + 1, VAL_PX)
    return [(x, y, x + VAL_PX, y + VAL_PX) for y in rows for x in columns]


def tiles(photograph: Photograph, windows: list[tuple[int, int, int, int]]) -> list[Tile]:
    return [cut(photograph, window) for window in windows]


def cut(photograph: Photograph, window: tuple[int, int, int, int]) -> Tile:
    x1, y1, x2, y2 = window
    clipped = photograph.boxes.clip((x1, y1, x1, y1), (x2, y2, x2, y2))
    visible = area(clipped) / area(photograph.boxes)
    inside = visible > 0
    name = f"{photograph.name}_x{x1:04}_y{y1:04}.jpg"
    boxes = clipped[inside] - (x1, y1, x1, y1)
    return Tile(name, photograph.image.crop(window), boxes, visible[inside] < MIN_VISIBLE)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def write(output: Path, split: str, chosen: list[Tile]) -> None:
    """Replaces the images of a split and its annotations."""
    folder = output / split
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for tile in chosen:
        tile.image.save(folder / tile.name, quality=JPEG_QUALITY, optimize=True)
    document = coco(chosen)
    file = output / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    ignored = sum(int(tile.ignored.sum()) for tile in chosen)
    size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    total = len(document["annotations"])
    print(
        f"{split}: {len(chosen)} tiles, {total - ignored} boxes, {ignored} ignored, {size_mb:.2f} "
        "MB"
    )


def coco(chosen: list[Tile]) -> dict[str, list[dict]]:
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, tile in enumerate(chosen, start=1):
        width, height = tile.image.size
        images.append({"id": image_id, "file_name": tile.name, "width": width, "height": height})
        for (x1, y1, x2, y2), ignored in zip(
            tile.boxes.tolist(), tile.ignored.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignored),
                    "ignore": int(ignored),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree crown"}],
    }


if __name__ == "__main__":
    main()
