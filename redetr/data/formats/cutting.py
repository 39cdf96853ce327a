"""Cuts large images and their annotations into tiles for training.

An object is kept in each tile that shows at least `min_visible` of its area, and always in the tile
that shows most of it, so that none is lost. Its box and area are those of the visible part. If the
object has a mask, its area is the number of its pixels, or the visible share of the area that its
source states, and a box that is cut ends at the visible pixels. Crowds are also kept in all tiles
that show a pixel of them. Tiles are named after their image and their offset in px:
`a_x00512_y00000.png`, or `.npy` for images with other channels than RGB. An image that is no larger
than a tile is not changed.
"""

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from redetr.data.annotations import Annotations, Split
from redetr.data.formats.folder import FolderDataset
from redetr.data.formats.holdout import is_chosen
from redetr.data.formats.paths import name_taken
from redetr.data.images import JPEG_SUFFIXES, describe
from redetr.data.mask_columns import MaskBuilder, MaskColumns
from redetr.data.transforms import MIN_VISIBLE
from redetr.data.windows import Window, tile_windows
from redetr.errors import InputError
from redetr.launch import rank_cores
from redetr.masks import MaskCrop, boxes_of_masks, decode, encode
from redetr.wording import counted

RGB = 3
_WHOLE = 1 - 1e-6  # an object with this visible share is whole, up to rounding
_QUALITY = 95  # of tiles of a JPEG; tiles of other images are PNG, which is lossless

Link = Callable[[Path, Path], object]  # makes an image (first) appear at another path (second)


@dataclass(frozen=True)
class Cut:
    """How images are cut. Raises InputError for values that are out of range."""

    tile: int  # px
    overlap: float = 0.2  # at least this share of a tile's side is also in the next tile
    min_visible: float = MIN_VISIBLE  # a tile keeps an object if it shows this share of its area
    empty_tiles: float = 1.0  # share of the training tiles without objects that are kept
    channels: int | None = None  # bands of the tiles; None = those of the images

    def __post_init__(self) -> None:
        tile_windows(1, 1, self.tile, self.overlap)
        if not 0 < self.min_visible <= 1:
            raise InputError(f"--min-visible {self.min_visible} must be above 0 and at most 1")
        if not 0 <= self.empty_tiles <= 1:
            raise InputError(f"--empty-tiles {self.empty_tiles} must be from 0 to 1")


# The argument of `MaskBuilder.add`: polygons, a compressed RLE, or None.
_Mask = Sequence[Sequence[float]] | bytes | None


@dataclass
class _Shape:
    """The pixels of an object, cut to the box around them."""

    left: int  # px of the image
    top: int
    pixels: NDArray[np.bool_]  # [h, w]

    def seen(self, window: Window) -> NDArray[np.bool_]:
        """The part of `pixels` that is in the window, `[h, w]`; empty if there is none."""
        left, top, right, bottom = window
        start_row = max(0, top - self.top)
        stop_row = max(0, bottom - self.top)
        start_column = max(0, left - self.left)
        stop_column = max(0, right - self.left)
        return self.pixels[start_row:stop_row, start_column:stop_column]

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """The mask of the object in the tile, bool `[H, W]` of the size of the window."""
        left, top, right, bottom = window
        mask = np.zeros((bottom - top, right - left), bool)
        seen = self.seen(window)
        height, width = seen.shape
        start_row = max(0, self.top - top)
        start_column = max(0, self.left - left)
        stop_row = start_row + height
        stop_column = start_column + width
        mask[start_row:stop_row, start_column:stop_column] = seen
        return mask


@dataclass
class _Tile:
    """A tile, and the objects in it."""

    name: str
    window: Window
    objects: NDArray[np.int64]  # rows of the annotations
    boxes: NDArray[np.float32]  # xyxy px of the tile
    shares: NDArray[np.float64]  # of their area that is visible
    masks: list[_Mask] = field(default_factory=list)  # of them, if the annotations have masks


@dataclass
class _Tiles:
    """The tiles of a split, and the numbers to report about them."""

    kept: list[_Tile] = field(default_factory=list)
    num_whole: int = 0  # images that are no larger than a tile
    num_deep: int = 0  # images of more than 8 bits
    num_left_out: int = 0  # tiles without objects


def cut_images(
    annotations: Annotations, split: Split, cut: Cut, folder: Path, link: Link
) -> tuple[Annotations, list[str]]:
    """Writes the tiles of a split to `folder`, and returns their annotations, and sentences on
    them.

    Images of more than 8 bits are converted to 8, by the rule of `data/pixels.py` for the whole
    image. `link` is called for images that are not changed. Raises InputError if an image cannot be
    read, or if two tiles would have the same name.
    """
    images = FolderDataset(annotations, split)
    images = images.with_channels(cut.channels or images.channels)
    tiles = _Tiles()
    image_of: dict[str, str] = {}  # the image of each tile so far, by the name of the tile
    for index in range(len(annotations)):
        of_image = list(_tiles_of(annotations, index, cut, images.channels))
        kept = [tile for tile in of_image if split != "train" or _is_kept(tile, annotations, cut)]
        _require_distinct(annotations, index, kept, image_of)
        tiles.num_left_out += len(of_image) - len(kept)
        tiles.kept += kept
        if len(of_image) == 1:
            tiles.num_whole += 1
            for tile in kept:
                _put(link, images.path(index), folder / tile.name)
        elif kept:
            tiles.num_deep += describe(images.path(index)).is_deep
            _write_tiles(images, index, kept, folder)
    return _annotations(annotations, tiles.kept, folder), _sentences(annotations, split, cut, tiles)


def _tiles_of(
    annotations: Annotations, index: int, cut: Cut, channels: int = RGB
) -> Iterator[_Tile]:
    """All tiles of an image. If it is no larger than a tile, the only one has its name."""
    name = os.fsdecode(annotations.names[index])
    height, width = annotations.sizes[index].tolist()
    windows = tile_windows(height, width, cut.tile, cut.overlap)
    is_whole = len(windows) == 1  # the image is not changed, nor are its objects and their masks
    objects = annotations.objects_of(index)
    boxes = annotations.boxes[objects].astype(np.float64)
    iscrowd = annotations.iscrowd[objects]
    shapes = [] if is_whole else _shapes_of(annotations, index)
    shares = _shares(windows, boxes, shapes)
    fullest = _fullest(shares)
    for number, window in enumerate(windows):
        parts = _cut_boxes(window, boxes)
        sides = parts[:, 2:] - parts[:, :2]
        is_object = (shares[number] >= cut.min_visible) | (fullest == number)
        is_crowd_here = (sides >= 1).all(1) & (shares[number] > 0)
        # The fullest tile also keeps a crowd that is thinner than a pixel.
        is_crowd_kept = is_crowd_here | (fullest == number)
        is_kept = np.where(iscrowd, is_crowd_kept, is_object)
        if is_whole:
            is_kept[:] = True
        rows = np.flatnonzero(is_kept)
        left, top, _, _ = window
        shifted = parts - (left, top, left, top)
        masks: list[_Mask] = []
        if is_whole:
            masks = _whole_masks(annotations, index)
        elif shapes:
            is_cut = (parts != boxes).any(1) | (shares[number] < _WHOLE)
            masks = _cut_masks([shapes[row] for row in rows], window, shifted, rows, is_cut)
        yield _Tile(
            name=name if is_whole else _tile_name(name, left, top, channels),
            window=window,
            objects=objects.start + rows,
            boxes=shifted[rows].astype(np.float32),
            shares=shares[number][rows],
            masks=masks,
        )


def _shapes_of(annotations: Annotations, index: int) -> list[_Shape | None]:
    """The pixels of the T objects of an image, None for objects without a mask; empty if the
    annotations have no masks. Raises InputError if a mask cannot be read."""
    if annotations.masks is None:
        return []
    height, width = annotations.sizes[index].tolist()
    size = (height, width)
    shapes: list[_Shape | None] = []
    for counts in annotations.masks.rles(annotations.objects_of(index), size):
        shape = None
        if counts:
            crop = MaskCrop.of(decode([counts], size)[0])
            if crop.pixels.numel():
                shape = _Shape(crop.left, crop.top, crop.pixels.numpy())
        shapes.append(shape)
    return shapes


def _whole_masks(annotations: Annotations, index: int) -> list[_Mask]:
    """The masks of an image that is not changed, as they are stored."""
    masks = annotations.masks
    if masks is None:
        return []
    height, width = annotations.sizes[index].tolist()
    objects = annotations.objects_of(index)
    whole: list[_Mask] = []
    for row, counts in enumerate(masks.rles(objects, (height, width)), start=objects.start):
        polygons = masks.polygons(row) if isinstance(masks, MaskColumns) else []
        whole.append([polygon.ravel().tolist() for polygon in polygons] or counts or None)
    return whole


def _cut_masks(
    shapes: list[_Shape | None],
    window: Window,
    boxes: NDArray,
    rows: NDArray[np.int64],
    is_cut: NDArray[np.bool_],
) -> list[_Mask]:
    """The masks of T objects in a tile, whose indices are `rows`.

    If an object `is_cut`, its box in `boxes` `[T, 4]` (xyxy, px of the tile) is replaced by the box
    around its visible pixels.
    """
    masks: list[_Mask] = []
    for shape, row in zip(shapes, rows.tolist(), strict=True):
        if shape is None:
            masks.append(None)
            continue
        mask = torch.from_numpy(shape.mask(window))[None]
        masks += encode(mask)
        if is_cut[row]:
            boxes[row] = boxes_of_masks(mask)[0].numpy()
    return masks


def _shares(
    windows: list[Window], boxes: NDArray, shapes: list[_Shape | None]
) -> NDArray[np.float64]:
    """The share of each object's area that is in each window, `[windows, T]`. The area is that of
    its pixels if it has a mask, or else of its box."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    shares = np.zeros((len(windows), len(boxes)))
    for number, window in enumerate(windows):
        parts = _cut_boxes(window, boxes)
        part_areas = (parts[:, 2:] - parts[:, :2]).prod(1)
        shares[number] = part_areas / areas
        for row, shape in enumerate(shapes):
            if shape is not None:
                shares[number, row] = shape.seen(window).sum() / shape.pixels.sum()
    return shares


def _fullest(shares: NDArray) -> NDArray[np.int64]:
    """For each object, the window that shows most of it, int64 `[T]`; the first of several."""
    best = np.zeros(shares.shape[1])
    number_of_best = np.zeros(shares.shape[1], np.int64)
    for number, of_window in enumerate(shares):
        is_better = of_window > best + 1e-9  # more than rounding
        best = np.where(is_better, of_window, best)
        number_of_best[is_better] = number
    return number_of_best


def _cut_boxes(window: Window, boxes: NDArray) -> NDArray:
    """The part of each box `[T, 4]` that is in the window."""
    left, top, right, bottom = window
    return boxes.clip((left, top, left, top), (right, bottom, right, bottom))


def _tile_name(name: str, left: int, top: int, channels: int) -> str:
    stem, suffix = posixpath.splitext(name)
    kind = suffix if suffix.lower() in JPEG_SUFFIXES else ".png"
    if channels != RGB:
        kind = ".npy"
    return f"{stem}_x{left:05}_y{top:05}{kind}"


def _is_kept(tile: _Tile, annotations: Annotations, cut: Cut) -> bool:
    """Whether a training tile is kept: it has an object, or is drawn, by its name, from those
    without."""
    has_object = not annotations.iscrowd[tile.objects].all()
    # The draw differs from that of --val-fraction, which would otherwise hold out exactly these
    # tiles.
    return has_object or is_chosen(b"empty " + os.fsencode(tile.name), cut.empty_tiles)


def _put(put: Link, source: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    put(source, file)


def _write_tiles(images: FolderDataset, index: int, tiles: list[_Tile], folder: Path) -> None:
    """Writes the tiles of an image, which is decoded once. The tiles are encoded on all cores."""
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
    try:
        opened = file.open("xb")
    except FileExistsError:
        raise name_taken(file) from None
    with opened:
        if file.suffix == ".npy":
            np.save(opened, part)
            return
        image = Image.fromarray(part)
        if file.suffix.lower() in JPEG_SUFFIXES:
            image.save(opened, "JPEG", quality=_QUALITY, subsampling=0)
        else:
            image.save(opened, "PNG")


def _require_distinct(
    annotations: Annotations, index: int, tiles: list[_Tile], image_of: dict[str, str]
) -> None:
    """Adds the tiles of image `index` to `image_of`, which has the name of the image of each tile.

    Raises InputError if another image, or another entry of this one, has such a tile, which would
    be written over: it may be a link to an image of the source.
    """
    name = os.fsdecode(annotations.names[index])
    for tile in tiles:
        if tile.name not in image_of:
            image_of[tile.name] = name
            continue
        text = f"two images would share the tile {tile.name!r}"
        remedy = "rename one of them"
        if image_of[tile.name] == name:
            text = f"two entries of image {name!r} would share the tile {tile.name!r}"
            remedy = "merge them into one, with all objects"
        raise InputError(text, where=annotations.source, remedy=remedy)


def _annotations(annotations: Annotations, tiles: list[_Tile], folder: Path) -> Annotations:
    """The annotations of the tiles, whose images are in `folder`."""
    tiles = sorted(tiles, key=lambda tile: os.fsencode(tile.name))
    sizes = []
    for tile in tiles:
        left, top, right, bottom = tile.window
        sizes.append((bottom - top, right - left))
    # The empty arrays determine the types, even if there are no tiles.
    rows = np.concatenate([np.zeros(0, np.int64), *(tile.objects for tile in tiles)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(tile.boxes for tile in tiles)])
    shares = np.concatenate([np.zeros(0), *(tile.shares for tile in tiles)])
    counts = [len(tile.objects) for tile in tiles]
    builder = MaskBuilder(for_training=False)
    for tile in tiles:
        for mask in tile.masks:
            builder.add(mask)
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
        area=(annotations.area[rows] * shares).astype(np.float32),
        object_ids=annotations.object_ids[rows],
        faults=annotations.faults,
        masks=None if annotations.masks is None else builder.columns(),
        is_thing=annotations.is_thing,
    )


def _sentences(annotations: Annotations, split: Split, cut: Cut, tiles: _Tiles) -> list[str]:
    """Sentences on how a split was cut."""
    num_cut = len(annotations) - tiles.num_whole
    whole = ""
    if tiles.num_whole:
        is_are = counted(tiles.num_whole, "image is", "images are")
        whole = f"; {is_are} no larger than that, and not cut"
    # The empty arrays determine the types, even if there are no tiles.
    rows = np.concatenate([np.zeros(0, np.int64), *(tile.objects for tile in tiles.kept)])
    shares = np.concatenate([np.zeros(0), *(tile.shares for tile in tiles.kept)])
    num_tiles = np.bincount(rows)  # of each object
    num_several = int((num_tiles > 1).sum())
    num_parts = int((shares < _WHOLE).sum())
    sentences = [
        f"{split}: {counted(num_cut, 'image')} cut into tiles of {cut.tile} px{whole}",
        f"{split}: {counted(num_several, 'object')} in several tiles, "
        f"{counted(num_parts, 'box', 'boxes')} cut at an edge; a tile gets an object if it shows "
        f"{100 * cut.min_visible:g}% of its area, or more than any other tile",
    ]
    if tiles.num_left_out:
        sentences.append(f"{split}: {counted(tiles.num_left_out, 'empty tile')} left out")
    if tiles.num_deep:
        deep = counted(tiles.num_deep, "image")
        sentences.append(f"{split}: {deep} of more than 8 bits; tiles have 8")
    return sentences
