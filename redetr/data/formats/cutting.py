"""Large images and their boxes, cut into tiles for training.

An object is kept in each tile that shows at least `min_visible` of its area, and always in the one
that shows the most of it, so none is lost; its box and its area are those of the visible part.
Crowds are kept wherever a pixel of them is visible. Boxes alone are cut, no masks. Tiles have the
name of their image with their offset in px behind it: `a_x00512_y00000.png`, or `.npy` for images
of other channels than RGB. An image that is no
larger than a tile stays as it is.
"""

import os
import posixpath
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.folder import FolderDataset
from redetr.data.formats.holdout import is_chosen
from redetr.data.images import describe
from redetr.data.transforms import MIN_VISIBLE
from redetr.data.windows import Window, tile_windows
from redetr.distributed import rank_cores
from redetr.errors import InputError
from redetr.wording import counted

RGB = 3
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
_WHOLE = 1 - 1e-6  # a visible share from which nothing is cut off but by rounding
_QUALITY = 95  # of tiles of a JPEG; those of other images are PNG, which loses nothing

Link = Callable[[Path, Path], object]  # makes an image (first) appear at another path (second)


@dataclass(frozen=True)
class Cut:
    """How images are cut. Raises InputError for what cannot be."""

    tile: int  # px
    overlap: float = 0.2  # at least this share of a tile's side is in the next one, too
    min_visible: float = MIN_VISIBLE  # share of an object's area that a tile must show to have it
    empty_tiles: float = 1.0  # share of the training tiles without objects that are kept
    channels: int | None = None  # bands of the images that tiles have; None = those found in them

    def __post_init__(self) -> None:
        tile_windows(1, 1, self.tile, self.overlap)
        if not 0 < self.min_visible <= 1:
            raise InputError(f"--min-visible {self.min_visible} must be above 0 and at most 1")
        if not 0 <= self.empty_tiles <= 1:
            raise InputError(f"--empty-tiles {self.empty_tiles} must be from 0 to 1")


@dataclass
class _Tile:
    """A tile, and which objects of its image it has."""

    name: str
    window: Window
    objects: NDArray[np.int64]  # rows of the annotations
    boxes: NDArray[np.float32]  # xyxy px of the tile
    shares: NDArray[np.float32]  # of their area that is visible


@dataclass
class _Tiles:
    """The tiles of a split, and what there is to say about them."""

    kept: list[_Tile] = field(default_factory=list)
    num_whole: int = 0  # images that are no larger than a tile
    num_deep: int = 0  # images of more than 8 bits
    num_left_out: int = 0  # tiles without objects


def cut_images(
    annotations: Annotations, split: Split, cut: Cut, folder: Path, link: Link
) -> tuple[Annotations, list[str]]:
    """Writes the tiles of a split to `folder`, and returns their annotations with sentences on
    them.

    Images of more than 8 bits have 8 afterwards, by the rule of `data/pixels.py`, which sees the
    whole image. `link` is for images that stay as they are. Raises InputError for an image that
    cannot be read, or tiles that would share a name.
    """
    images = FolderDataset(annotations, split)
    images = images.with_channels(cut.channels or images.channels)
    tiles = _Tiles()
    for index in range(len(annotations)):
        of_image = list(_tiles_of(annotations, index, cut, images.channels))
        kept = [tile for tile in of_image if split != "train" or _is_kept(tile, annotations, cut)]
        tiles.num_left_out += len(of_image) - len(kept)
        tiles.kept += kept
        if len(of_image) == 1:
            tiles.num_whole += 1
            for tile in kept:
                _put(link, images.path(index), folder / tile.name)
        elif kept:
            tiles.num_deep += describe(images.path(index)).is_deep
            _write_tiles(images, index, kept, folder)
    _require_distinct(annotations, tiles.kept)
    return _annotations(annotations, tiles.kept, folder), _sentences(annotations, split, cut, tiles)


def _tiles_of(
    annotations: Annotations, index: int, cut: Cut, channels: int = RGB
) -> Iterator[_Tile]:
    """All tiles of an image; one that has its name if it is no larger than a tile."""
    name = os.fsdecode(annotations.names[index])
    height, width = annotations.sizes[index].tolist()
    windows = tile_windows(height, width, cut.tile, cut.overlap)
    objects = annotations.objects_of(index)
    boxes = annotations.boxes[objects].astype(np.float64)
    iscrowd = annotations.iscrowd[objects]
    fullest = _fullest(windows, boxes)
    for number, window in enumerate(windows):
        parts, shares = _visible(window, boxes)
        extent = parts[:, 2:] - parts[:, :2]
        is_object = (shares >= cut.min_visible) | (fullest == number)
        is_kept = np.where(iscrowd, (extent >= 1).all(1), is_object)
        left, top, _, _ = window
        shifted = parts[is_kept] - (left, top, left, top)
        yield _Tile(
            name=name if len(windows) == 1 else _tile_name(name, left, top, channels),
            window=window,
            objects=objects.start + np.flatnonzero(is_kept),
            boxes=shifted.astype(np.float32),
            shares=shares[is_kept].astype(np.float32),
        )


def _fullest(windows: list[Window], boxes: NDArray) -> NDArray[np.int64]:
    """The window that shows the most of each box, int64 `[T]`; the first of equals."""
    best = np.zeros(len(boxes))
    number_of_best = np.zeros(len(boxes), np.int64)
    for number, window in enumerate(windows):
        _, shares = _visible(window, boxes)
        is_better = shares > best + 1e-9  # not by rounding alone
        best = np.where(is_better, shares, best)
        number_of_best[is_better] = number
    return number_of_best


def _visible(window: Window, boxes: NDArray) -> tuple[NDArray, NDArray]:
    """The part of each box `[T, 4]` that is in the window, and its share of the area `[T]`."""
    left, top, right, bottom = window
    parts = boxes.clip((left, top, left, top), (right, bottom, right, bottom))
    visible = (parts[:, 2:] - parts[:, :2]).prod(1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return parts, visible / whole


def _tile_name(name: str, left: int, top: int, channels: int) -> str:
    stem, suffix = posixpath.splitext(name)
    kind = suffix if suffix.lower() in _JPEG else ".png"
    if channels != RGB:
        kind = ".npy"
    return f"{stem}_x{left:05}_y{top:05}{kind}"


def _is_kept(tile: _Tile, annotations: Annotations, cut: Cut) -> bool:
    """Whether a training tile has an object, or is drawn by its name from those without."""
    has_object = not annotations.iscrowd[tile.objects].all()
    # Other draws than those of --val-fraction, which would hold out just these.
    return has_object or is_chosen(b"empty " + os.fsencode(tile.name), cut.empty_tiles)


def _put(put: Link, source: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    put(source, file)


def _write_tiles(images: FolderDataset, index: int, tiles: list[_Tile], folder: Path) -> None:
    """Writes the tiles of an image, which is decoded once, on all cores: PIL's encoders run side by
    side."""
    pixels = images.image(index).permute(1, 2, 0).numpy()  # [H, W, C]
    write = partial(_write_tile, pixels, folder)
    with ThreadPoolExecutor(rank_cores()) as pool:
        for _ in pool.map(write, tiles):
            pass


def _write_tile(pixels: NDArray[np.uint8], folder: Path, tile: _Tile) -> None:
    left, top, right, bottom = tile.window
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    file = folder / tile.name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, part)
        return
    image = Image.fromarray(part)
    if file.suffix.lower() in _JPEG:
        image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    else:
        image.save(file, "PNG")


def _require_distinct(annotations: Annotations, tiles: list[_Tile]) -> None:
    """Raises InputError if two images would share tiles."""
    seen = set()
    for tile in tiles:
        if tile.name in seen:
            text = f"two images would share the tile {tile.name!r}"
            raise InputError(text, where=annotations.source, remedy="rename one of them")
        seen.add(tile.name)


def _annotations(annotations: Annotations, tiles: list[_Tile], folder: Path) -> Annotations:
    """The annotations of the tiles, whose images are in `folder`."""
    tiles = sorted(tiles, key=lambda tile: os.fsencode(tile.name))
    sizes = []
    for tile in tiles:
        left, top, right, bottom = tile.window
        sizes.append((bottom - top, right - left))
    # The empty arrays give the types, also where there is no tile.
    rows = np.concatenate([np.zeros(0, np.int64), *(tile.objects for tile in tiles)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(tile.boxes for tile in tiles)])
    shares = np.concatenate([np.zeros(0, np.float32), *(tile.shares for tile in tiles)])
    counts = [len(tile.objects) for tile in tiles]
    return Annotations(
        source=annotations.source,
        folder=folder,
        names=np.array([os.fsencode(tile.name) for tile in tiles], "S"),
        ids=np.arange(1, len(tiles) + 1),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        category_ids=annotations.category_ids,
        class_names=annotations.class_names,
        first=np.cumsum([0, *counts]),
        boxes=boxes,
        labels=annotations.labels[rows],
        iscrowd=annotations.iscrowd[rows],
        area=annotations.area[rows] * shares,
        object_ids=annotations.object_ids[rows],
        faults=annotations.faults,
    )


def _sentences(annotations: Annotations, split: Split, cut: Cut, tiles: _Tiles) -> list[str]:
    """What was done to a split, in words."""
    num_cut = len(annotations) - tiles.num_whole
    rows = [tile.objects for tile in tiles.kept]
    times = np.bincount(np.concatenate([np.zeros(0, np.int64), *rows]))
    num_several = int((times > 1).sum())
    shares = [tile.shares for tile in tiles.kept]
    num_parts = int((np.concatenate([np.zeros(0), *shares]) < _WHOLE).sum())
    sentences = [
        f"{split}: {counted(num_cut, 'image')} cut into tiles of {cut.tile} px; "
        f"{counted(tiles.num_whole, 'image')} no larger than that",
        f"{split}: {counted(num_several, 'object')} in several tiles, "
        f"{counted(num_parts, 'box', 'boxes')} cut at an edge; a tile has the objects of which it "
        f"shows {100 * cut.min_visible:g}% of the area, or more than any other tile",
    ]
    if tiles.num_left_out:
        sentences.append(f"{split}: {counted(tiles.num_left_out, 'empty tile')} left out")
    if tiles.num_deep:
        deep = counted(tiles.num_deep, "image")
        sentences.append(f"{split}: {deep} of more than 8 bits, whose tiles have 8")
    return sentences
