"""Scenes of handwritten digits, drawn on demand: a data set that is always there.

A scene is a textured background, a few strokes that are no digits, 1 to 8 digits and noise. The
digits are scans of handwriting (1,797 of 8x8 px, see `scans/ATTRIBUTION.md`), each turned, slanted,
stretched and inked anew. Scans that appear in validation never appear in training.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redetr.data.annotations import Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.structures import StoredTarget

_SCANS_FILE = Path(__file__).parent / "scans" / "digits.npz"
_SIDE = 128  # px of a scene
_MOST_DIGITS = 8
_GLYPH_HEIGHT_PX = (16, 44)
_INKED = 72  # of 255: fainter pixels do not count for the box
_MOST_HIDDEN = 0.3  # share of a digit's ink that others may cover
_PLACES_TRIED = 6
_CONTRAST = 65  # least difference in brightness, of 255, between a digit and the ground
_CONTRAST_BETWEEN = 45  # and between two digits that overlap
_SHADES_TRIED = 12
_TINT = 60  # how far the channels of a colour may be apart

# The scans are enlarged once into a bank, which is sampled at the nearest pixel.
_CELL = 8  # px of the bank per px of a scan
_BORDER = 8  # px of the bank around a scan, free of ink
_SCAN_SIDE = 8 * _CELL
_BANK_SIDE = _SCAN_SIDE + 2 * _BORDER

_TEXTURE_SIDE = 192
_TEXTURES = 16
_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass
class _Glyph:
    """A digit in a scene."""

    label: int
    ink: np.ndarray  # [h, w] uint8, cut to the inked pixels
    left: int
    top: int
    over: list[int]  # which earlier digits it covers in part

    @property
    def box(self) -> tuple[int, int, int, int]:
        height, width = self.ink.shape
        return self.left, self.top, self.left + width, self.top + height


class DigitsDataset(DetectionDataset):
    """Scenes of 128x128 px; scene `i` depends on (seed, split, i) only. A box is tight around a
    digit's ink."""

    name = "digits"
    class_names = tuple("0123456789")
    category_ids = tuple(range(10))
    hints = Hints(image_size=_SIDE, augment="plain", num_queries=25)

    def __init__(self, split: Split, seed: int = 0, size: int | None = None):
        """`size` scenes; by default 20,000 to train on, 300 to validate on."""
        self.split, self.seed = split, seed
        self.size = size if size is not None else {"train": 20_000, "val": 300}[split]
        _scans(split)  # drawn once, before worker processes are forked

    def __len__(self) -> int:
        return self.size

    def max_objects(self) -> int:
        return _MOST_DIGITS

    def target(self, index: int) -> StoredTarget:
        return _target(_arranged(self._random(index), self.split), self._position(index))

    def image_id(self, index: int) -> int:
        return self._position(index)

    def image(self, index: int) -> Tensor:
        return self.sample(index)[0]

    def sample(self, index: int) -> tuple[Tensor, StoredTarget]:
        random = self._random(index)
        glyphs = _arranged(random, self.split)
        return torch.from_numpy(_painted(random, glyphs)), _target(glyphs, self._position(index))

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _SPLITS.index(self.split), self._position(index)])


def _target(glyphs: list[_Glyph], image_id: int) -> StoredTarget:
    boxes = np.array([glyph.box for glyph in glyphs], np.float32)
    areas = np.array([glyph.ink.size for glyph in glyphs], np.float32)
    return StoredTarget(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(np.array([glyph.label for glyph in glyphs], np.int64)),
        image_id=image_id,
        orig_size=(_SIDE, _SIDE),
        size=(_SIDE, _SIDE),
        iscrowd=torch.zeros(len(glyphs), dtype=torch.bool),
        area=torch.from_numpy(areas),
    )


def _arranged(random: np.random.Generator, split: Split) -> list[_Glyph]:
    """The digits of a scene from the lowest to the topmost, none hidden by more than
    `_MOST_HIDDEN`."""
    bank, labels = _scans(split)
    owner = np.zeros((_SIDE, _SIDE), np.int8)  # number of the glyph whose ink is on top, from 1
    spare_px = np.zeros(_MOST_DIGITS + 1)  # how much more of each glyph may be covered
    spare_px[0] = np.inf  # the ground
    glyphs: list[_Glyph] = []
    for _ in range(1 + int(_MOST_DIGITS * random.random())):
        scan = int(len(bank) * random.random())
        ink = _warped(random, bank[scan])
        inked = ink >= _INKED
        height, width = ink.shape
        for x, y in random.random((_PLACES_TRIED, 2)).tolist():
            left, top = int(x * (_SIDE + 1 - width)), int(y * (_SIDE + 1 - height))
            below = owner[top : top + height, left : left + width]
            covered_px = np.bincount(below[inked], minlength=_MOST_DIGITS + 1)
            if (covered_px <= spare_px).all():
                over = [i for i, count in enumerate(covered_px[1:].tolist()) if count]
                glyphs.append(_Glyph(int(labels[scan]), ink, left, top, over))
                below[inked] = len(glyphs)
                spare_px -= covered_px
                spare_px[len(glyphs)] = _MOST_HIDDEN * np.count_nonzero(inked)
                break
    return glyphs


def _warped(random: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """The scan `[_BANK_SIDE, _BANK_SIDE]` at a random size, stretch, slant and angle: `[h, w]`, cut
    tight."""
    u = random.random(4).tolist()
    low, high = _GLYPH_HEIGHT_PX
    height = low * (high / low) ** u[0] / _SCAN_SIDE
    width = height * (0.8 + 0.4 * u[1])
    angle, slant = (u[2] - 0.5) * math.pi / 6, (u[3] - 0.5) * 0.4
    cos, sin = math.cos(angle), math.sin(angle)
    # Scene = rotation @ [[width, slant * height], [0, height]] @ scan, both from their centres.
    xx, xy = cos * width, (cos * slant - sin) * height
    yx, yy = sin * width, (sin * slant + cos) * height
    half_x, half_y = (abs(xx) + abs(xy)) * _SCAN_SIDE / 2, (abs(yx) + abs(yy)) * _SCAN_SIDE / 2
    x = np.arange(-half_x, half_x, dtype=np.float32) / (width * height)
    y = np.arange(-half_y, half_y, dtype=np.float32)[:, None] / (width * height)
    columns, rows = yy * x - xy * y, xx * y - yx * x  # the inverse of the 2 x 2 matrix
    places = _BANK_SIDE * _bank_place(rows) + _bank_place(columns)
    return _cut_tight(scan.take(places))


def _bank_place(from_center: np.ndarray) -> np.ndarray:
    """The nearest row or column of the bank, intp; whatever is outside falls on the border, which
    has no ink."""
    half = (_BANK_SIDE - 1) / 2
    np.maximum(from_center, -half, out=from_center)
    np.minimum(from_center, half, out=from_center)
    from_center += half + 0.5
    return from_center.astype(np.intp)


def _cut_tight(ink: np.ndarray) -> np.ndarray:
    inked = ink >= _INKED
    top, bottom = _extent(np.logical_or.reduce(inked, axis=1))
    left, right = _extent(np.logical_or.reduce(inked, axis=0))
    return ink[top:bottom, left:right]


def _extent(inked: np.ndarray) -> tuple[int, int]:
    """From the first to behind the last that is True."""
    return int(inked.argmax()), len(inked) - int(inked[::-1].argmax())


def _painted(random: np.random.Generator, glyphs: list[_Glyph]) -> np.ndarray:
    """The scene as uint8 `[3, 128, 128]`."""
    ground = 20 + 215 * random.random()
    scene = _background(random, ground)
    for _ in range(2 + int(5 * random.random())):
        _paint_stroke(random, scene, ground)
    brightness: list[float] = []
    for glyph in glyphs:
        below = [brightness[i] for i in glyph.over]
        brightness.append(_brightness(random, ground, below))
        _paint(
            scene,
            glyph.ink * np.float32(1 / 255),
            glyph.left,
            glyph.top,
            _color(random, brightness[-1]),
        )
    y, x = _corner(random)
    grain = _noise()[:, y : y + _SIDE, x : x + _SIDE]
    scene += grain * np.float32(2 + 8 * random.random())
    return np.clip(scene, 0, 255, out=scene).astype(np.uint8)


def _brightness(random: np.random.Generator, ground: float, below: list[float]) -> float:
    """A brightness in 0..255 that stands out from the ground and the digits below, if a few draws
    find one."""
    for value in (255 * random.random(_SHADES_TRIED)).tolist():
        apart = abs(value - ground) >= _CONTRAST
        if apart and all(abs(value - other) >= _CONTRAST_BETWEEN for other in below):
            break
    return value


def _color(random: np.random.Generator, brightness: float) -> np.ndarray:
    """A colour float32 `[3]` of about that brightness."""
    return np.array([brightness + _TINT * (u - 0.5) for u in random.random(3).tolist()], np.float32)


def _paint(scene: np.ndarray, ink: np.ndarray, left: int, top: int, color: np.ndarray) -> None:
    """Blends `color` `[3]` into the scene `[3, H, W]` by `ink` `[h, w]`, 0 to 1."""
    height, width = ink.shape
    window = scene[:, top : top + height, left : left + width]
    window += ink * (color[:, None, None] - window)


def _paint_stroke(random: np.random.Generator, scene: np.ndarray, ground: float) -> None:
    strokes = _strokes()
    pick, x, y, contrast = random.random(4).tolist()
    ink = strokes[int(pick * len(strokes))]
    left, top = int(x * (_SIDE + 1 - ink.shape[1])), int(y * (_SIDE + 1 - ink.shape[0]))
    _paint(scene, ink, left, top, _color(random, ground + 160 * (contrast - 0.5)))


def _background(random: np.random.Generator, brightness: float) -> np.ndarray:
    """A colour and its shades by a texture, float32 `[3, 128, 128]`."""
    textures = _textures()
    y, x = _corner(random)
    texture = textures[int(random.random() * len(textures)), y : y + _SIDE, x : x + _SIDE]
    depth = ((5 + 17 * random.random()) * (0.6 + 0.6 * random.random(3))).astype(np.float32)
    scene = texture * depth[:, None, None]
    scene += _color(random, brightness)[:, None, None]
    return scene


def _corner(random: np.random.Generator) -> list[int]:
    """Where a scene is cut out of a texture."""
    return [int((_TEXTURE_SIDE - _SIDE) * part) for part in random.random(2).tolist()]


@lru_cache
def _scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The scans of a split, enlarged and inked, uint8 `[N, _BANK_SIDE, _BANK_SIDE]`, and their
    digits `[N]`."""
    scans, digits = read_scans()
    of_split = in_validation(digits) == (split == "val")
    enlarge = _cubic_weights()
    smooth = enlarge @ scans[of_split].astype(np.float32) @ enlarge.T / 16
    ink = np.clip((smooth - 0.2) / 0.5, 0, 1)
    return (255 * ink).astype(np.uint8), digits[of_split]


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans, uint8 `[N, 8, 8]` with ink from 0 to 16, and their digits, uint8 `[N]`."""
    with np.load(_SCANS_FILE, allow_pickle=False) as file:
        return file["images"], file["labels"]


def in_validation(digits: np.ndarray) -> np.ndarray:
    """Which scans are kept for validation, bool `[N]`: a fixed fifth of each digit `[N]`."""
    random = np.random.default_rng(0)
    held_out = np.zeros(len(digits), bool)
    for digit in range(10):
        own = np.flatnonzero(digits == digit)
        held_out[random.permutation(own)[: len(own) // 5]] = True
    return held_out


def _cubic_weights() -> np.ndarray:
    """The matrix `[_BANK_SIDE, 8]` that enlarges 8 samples by cubic convolution (Keys 1981, a =
    -0.5)."""
    places = (np.arange(_BANK_SIDE) - _BORDER + 0.5) / _CELL - 0.5
    t = np.abs(places[:, None] - np.arange(8))
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0)).astype(np.float32)


@lru_cache
def _textures() -> np.ndarray:
    """Grounds, float32 `[16, 192, 192]` of mean 0 and deviation 1: clouds, grain, and stripes bent
    by them."""
    random = np.random.default_rng(1)
    frequency = np.hypot(
        np.fft.fftfreq(_TEXTURE_SIDE)[:, None], np.fft.rfftfreq(_TEXTURE_SIDE)[None, :]
    )
    frequency[0, 0] = np.inf
    y, x = np.mgrid[:_TEXTURE_SIDE, :_TEXTURE_SIDE] / _TEXTURE_SIDE
    textures = []
    for kind in range(_TEXTURES):
        white = np.fft.rfft2(random.standard_normal((_TEXTURE_SIDE, _TEXTURE_SIDE)))
        texture = _standard(np.fft.irfft2(white / frequency ** random.uniform(0.8, 2.2)))
        if kind % 3 == 0:
            angle, waves = random.uniform(0, np.pi), random.uniform(6, 30)
            phase = 2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle))
            texture = _standard(texture + random.uniform(0.5, 1.5) * np.sin(phase + texture))
        textures.append(texture)
    return np.stack(textures).astype(np.float32)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


@lru_cache
def _noise() -> np.ndarray:
    """Noise, float32 `[3, 192, 192]` of deviation 1, half of its power shared by the colours."""
    random = np.random.default_rng(2)
    shared, own = (random.standard_normal((n, _TEXTURE_SIDE, _TEXTURE_SIDE)) for n in (1, 3))
    return ((shared + own) / math.sqrt(2)).astype(np.float32)


@lru_cache
def _strokes() -> list[np.ndarray]:
    """Bows float32 `[h, w]` that nobody takes for a digit: thin and long, or shorter than any
    digit."""
    random = np.random.default_rng(3)
    lengths = np.where(np.arange(96) % 3, random.uniform(60, 110, 96), random.uniform(3, 9, 96))
    return [_bow(random, length) for length in lengths]


def _bow(random: np.random.Generator, length: float) -> np.ndarray:
    """A stroke of about `length` px, float32 `[h, w]`, bent by up to a fifth of its length."""
    angle, bend = random.uniform(0, np.pi), random.uniform(-0.2, 0.2) * length
    t = np.linspace(-1, 1, max(8, int(length)))
    along, across = t * length / 2, bend * (1 - t**2)
    x = along * np.cos(angle) - across * np.sin(angle)
    y = along * np.sin(angle) + across * np.cos(angle)
    radius = random.uniform(0.5, 1.2)
    x, y = x - x.min() + radius + 1, y - y.min() + radius + 1
    rows, columns = np.mgrid[: int(y.max() + radius + 2), : int(x.max() + radius + 2)]
    distance = np.hypot(columns[..., None] - x, rows[..., None] - y).min(-1)
    return np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
