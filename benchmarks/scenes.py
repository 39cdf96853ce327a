"""Two synthetic data sets for comparisons: many small cells of one class, and six classes of
shapes.

    python benchmarks/scenes.py dense FOLDER
    python benchmarks/scenes.py shapes FOLDER

Images of 128x128 px with labels in YOLO format, so that every trainer reads the same files. `dense`
has 15 to 45 soft, overlapping ellipses of 6 to 22 px on a noisy ground. `shapes` has 1 to 7 filled
shapes of 10 to 56 px, turned and coloured at random, among others that are not to be found: lines,
letters, outlines and polygons of five edges. Each image is drawn from (split, index).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 128
SCALE = 4  # shapes are drawn so many times larger, and then reduced, which makes soft edges
COUNTS = {"train": 2000, "val": 300}
_SEEDS = {"train": 1, "val": 2}

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in px
Scene = tuple[Image.Image, list[tuple[int, Box]]]


def _ground(generator: np.random.Generator) -> Image.Image:
    """Colours that change smoothly, with noise."""
    coarse = generator.uniform(40, 200, (4, 4, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    noise = generator.normal(0, 12, (SIDE_PX, SIDE_PX, 3))
    pixels = np.asarray(smooth, dtype=np.float64) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(generator: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = generator.integers(20, 256, 3).tolist()
    return red, green, blue


def _paste(image: Image.Image, large: Image.Image, colour: tuple[int, int, int]) -> Box | None:
    """Colours `image` where `large`, an 8-bit mask of SCALE times its size, is white.

    Returns the box of the visible pixels, in px of the mask; None if there are none.
    """
    mask = large.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    image.paste(colour, mask=mask)
    return large.getbbox()


def _turned(
    points: list[tuple[float, float]], centre: np.ndarray, angle: float, radius: float
) -> list[tuple[float, float]]:
    """Points of a shape of radius 1 around 0, turned, enlarged and moved, in px of the mask."""
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = []
    for x, y in points:
        turned_x = (x * cosine - y * sine) * radius + centre[0]
        turned_y = (x * sine + y * cosine) * radius + centre[1]
        turned.append((turned_x * SCALE, turned_y * SCALE))
    return turned


def _regular(edges: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """The corners of a polygon; with an `inner` radius, those of a star."""
    corners = []
    count = edges if inner == 1.0 else 2 * edges
    for i in range(count):
        radius = inner if inner != 1.0 and i % 2 else 1.0
        angle = 2 * math.pi * i / count
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


_PLUS = [
    (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
    (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
]  # fmt: skip
CLASSES: dict[str, list[tuple[float, float]]] = {
    "disk": _regular(24),
    "square": _regular(4),
    "triangle": _regular(3),
    "hexagon": _regular(6),
    "plus": _PLUS,
    "star": _regular(5, inner=0.45),
}


def _is_near(centre: np.ndarray, radius: float, taken: list[tuple[np.ndarray, float]]) -> bool:
    """Whether a disk overlaps one of those `taken`."""
    return any(math.dist(centre, other) < radius + size for other, size in taken)


def _blank() -> Image.Image:
    return Image.new("L", (SIDE_PX * SCALE, SIDE_PX * SCALE))


def _distract(image: Image.Image, generator: np.random.Generator) -> None:
    """Adds something that is no object: a line, a letter, an outline or a pentagon."""
    mask = _blank()
    draw = ImageDraw.Draw(mask)
    centre = generator.uniform(0, SIDE_PX, 2)
    angle = generator.uniform(0, 2 * math.pi)
    radius = generator.uniform(5, 25)
    kind = generator.integers(4)
    if kind == 0:
        ends = _turned([(-1, 0), (1, 0)], centre, angle, 2 * radius)
        draw.line(ends, fill=255, width=int(generator.integers(4, 12)))
    elif kind == 1:
        letter = chr(int(generator.integers(ord("A"), ord("Z") + 1)))
        draw.text(tuple(centre * SCALE), letter, fill=255, font_size=radius * SCALE)
    elif kind == 2:
        name = list(CLASSES)[generator.integers(len(CLASSES))]
        draw.polygon(_turned(CLASSES[name], centre, angle, radius), outline=255, width=6)
    else:
        draw.polygon(_turned(_regular(5), centre, angle, radius), fill=255)
    _paste(image, mask, _colour(generator))


def shapes(generator: np.random.Generator) -> Scene:
    """An image of six classes. Objects do not overlap each other by much."""
    image = _ground(generator)
    for _ in range(generator.integers(2, 8)):
        _distract(image, generator)
    objects: list[tuple[int, Box]] = []
    taken: list[tuple[np.ndarray, float]] = []
    for _ in range(generator.integers(1, 8)):
        radius = generator.uniform(5, 28)
        centre = generator.uniform(radius, SIDE_PX - radius, 2)
        if _is_near(centre, 0.8 * radius, taken):
            continue
        taken.append((centre, 0.8 * radius))
        label = int(generator.integers(len(CLASSES)))
        mask = _blank()
        corners = list(CLASSES.values())[label]
        angle = generator.uniform(0, 2 * math.pi)
        ImageDraw.Draw(mask).polygon(_turned(corners, centre, angle, radius), fill=255)
        box = _paste(image, mask, _colour(generator))
        if box is not None:
            objects.append((label, _in_pixels(box)))
    return image, objects


def dense(generator: np.random.Generator) -> Scene:
    """An image of one class: soft ellipses, some over others."""
    image = _ground(generator)
    colour = np.array(_colour(generator))
    objects: list[tuple[int, Box]] = []
    taken: list[tuple[np.ndarray, float]] = []
    for _ in range(generator.integers(15, 46)):
        radius = generator.uniform(3, 11)
        radii = radius * np.array([1.0, generator.uniform(0.6, 1.0)])
        centre = generator.uniform(4, SIDE_PX - 4, 2)
        if _is_near(centre, 0.6 * radius, taken):
            continue
        taken.append((centre, 0.6 * radius))
        angle = generator.uniform(0, math.pi)
        ellipse = [(x * radii[0], y * radii[1]) for x, y in _regular(24)]
        mask = _blank()
        ImageDraw.Draw(mask).polygon(_turned(ellipse, centre, angle, 1.0), fill=255)
        shade = np.clip(colour * generator.uniform(0.7, 1.2), 0, 255).astype(int).tolist()
        box = _paste(image, mask, tuple(shade))
        if box is not None:
            objects.append((0, _in_pixels(box)))
    blurred = image.filter(ImageFilter.GaussianBlur(0.7))
    return blurred, objects


def _in_pixels(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return x1 / SCALE, y1 / SCALE, x2 / SCALE, y2 / SCALE


SCENES: dict[str, tuple[Callable[[np.random.Generator], Scene], list[str]]] = {
    "dense": (dense, ["cell"]),
    "shapes": (shapes, list(CLASSES)),
}


def write_scenes(name: str, folder: Path) -> Path:
    """Writes a data set of `SCENES` in YOLO format; returns the YAML file that describes it."""
    draw, names = SCENES[name]
    for split, count in COUNTS.items():
        images = folder / "images" / split
        images.mkdir(parents=True)
        for index in range(count):
            generator = np.random.default_rng([_SEEDS[split], index])
            image, objects = draw(generator)
            image.save(images / f"{index:05}.png", compress_level=1)
            write_labels(folder / "labels" / split / f"{index:05}.txt", objects)
    return write_description(folder, names)


def write_labels(file: Path, objects: Sequence[tuple[int, Sequence[float]]]) -> None:
    """Writes the labels and boxes (x1, y1, x2, y2 in px) of an image in YOLO format."""
    lines = []
    for label, (x1, y1, x2, y2) in objects:
        numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        fractions = [f"{number / SIDE_PX:.6f}" for number in numbers]
        lines.append(" ".join([str(label), *fractions]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))


def write_description(folder: Path, names: Sequence[str]) -> Path:
    """Writes the YAML file of a data set in YOLO format; returns its path."""
    lines = [f"path: {folder.resolve()}", "train: images/train", "val: images/val", "names:"]
    for label, name in enumerate(names):
        lines.append(f"  {label}: '{name}'")
    file = folder / "data.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SCENES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_scenes(arguments.name, arguments.folder))


if __name__ == "__main__":
    main()
