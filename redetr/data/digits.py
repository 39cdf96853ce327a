"""Scenes of handwritten digits, drawn on demand: a data set that is always there.

A scene is a textured background, a few strokes that are no digits, 1 to 8 digits and noise. The digits are scans of
handwriting (the 1,797 of scikit-learn, 8x8 px), each turned, sheared, stretched and inked anew. Scans that appear in
validation never appear in training.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from redetr.data.dataset import DetectionDataset, Hints, Split
from redetr.structures import Target

_SIDE = 128  # px of a scene
_MOST_DIGITS = 8
_GLYPH_HEIGHT_PX = (16, 44)
_INKED = 72  # of 255: fainter pixels do not count for the box
_MOST_HIDDEN = 0.35  # share of a digit's ink that others may cover
_PLACES_TRIED = 6

_CELL = 8  # px of the bank per px of a scan
_BORDER = 8  # px of the bank around a scan, free of ink
_BANK_SIDE = 8 * _CELL + 2 * _BORDER

_TEXTURE_SIDE = 256
_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass
class _Glyph:
    """A digit in a scene."""

    label: int
    ink: np.ndarray  # [h, w] uint8, cut to the inked pixels
    left: int
    top: int

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.ink.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        height, width = self.ink.shape
        return self.left, self.top, self.left + width, self.top + height


class DigitsDataset(DetectionDataset):
    """`size` scenes of 128x128 px; scene `i` depends on (seed, split, i) only. A box is tight around a digit's ink."""

    name = "digits"
    class_names = tuple("0123456789")
    category_ids = tuple(range(10))
    hints = Hints(image_size=_SIDE, augment="plain")

    def __init__(self, split: Split, seed: int = 0, size: int | None = None):
        """By default 20,000 scenes to train on, 300 to validate on."""
        self.split, self.seed = split, seed
        self.size = size if size is not None else {"train": 20_000, "val": 300}[split]
        _scans(split)  # drawn once, before worker processes are forked

    def __len__(self) -> int:
        return self.size

    def target(self, index: int) -> Target:
        return _target(_arranged(self._random(index), self.split), self._position(index))

    def image(self, index: int) -> Tensor:
        return self.sample(index)[0]

    def sample(self, index: int) -> tuple[Tensor, Target]:
        random = self._random(index)
        glyphs = _arranged(random, self.split)
        return torch.from_numpy(_painted(random, glyphs)), _target(glyphs, self._position(index))

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _SPLITS.index(self.split), self._position(index)])


def _target(glyphs: list[_Glyph], image_id: int) -> Target:
    boxes = torch.tensor([glyph.box for glyph in glyphs], dtype=torch.float32)
    return Target(
        boxes=boxes,
        labels=torch.tensor([glyph.label for glyph in glyphs]),
        image_id=image_id,
        orig_size=(_SIDE, _SIDE),
        size=(_SIDE, _SIDE),
        iscrowd=torch.zeros(len(glyphs), dtype=torch.bool),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
    )


def _arranged(random: np.random.Generator, split: Split) -> list[_Glyph]:
    """The digits of a scene from the lowest to the topmost, none hidden by more than `_MOST_HIDDEN`."""
    bank, labels = _scans(split)
    owner = np.zeros((_SIDE, _SIDE), np.int8)  # whose ink is on top: digit + 1, or 0
    ink_px = np.zeros(_MOST_DIGITS + 1)
    glyphs: list[_Glyph] = []
    for scan in random.integers(len(bank), size=random.integers(1, _MOST_DIGITS + 1)):
        ink = _warped(random, bank[scan])
        inked = ink >= _INKED
        visible_px = np.bincount(owner.ravel(), minlength=_MOST_DIGITS + 1)
        for x, y in random.random((_PLACES_TRIED, 2)).tolist():
            glyph = _Glyph(
                int(labels[scan]),
                ink,
                int(x * (_SIDE + 1 - ink.shape[1])),
                int(y * (_SIDE + 1 - ink.shape[0])),
            )
            covered = np.bincount(owner[glyph.window][inked], minlength=_MOST_DIGITS + 1)
            if (visible_px - covered >= (1 - _MOST_HIDDEN) * ink_px)[1:].all():
                glyphs.append(glyph)
                owner[glyph.window][inked] = len(glyphs)
                ink_px[len(glyphs)] = inked.sum()
                break
    return glyphs


def _warped(random: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """The scan `[_BANK_SIDE, _BANK_SIDE]` at a random size, stretch, slant and angle: ink uint8 `[h, w]`, cut tight."""
    u = random.random(4).tolist()
    low, high = _GLYPH_HEIGHT_PX
    height = low * (high / low) ** u[0]
    width = height * (0.8 + 0.4 * u[1])
    angle, shear = (u[2] - 0.5) * np.pi / 6, (u[3] - 0.5) * 0.4
    cos, sin = np.cos(angle), np.sin(angle)
    to_scene = np.array([[cos, -sin], [sin, cos]]) @ np.array([[width, shear * height], [0, height]]) / (8 * _CELL)
    half_x, half_y = np.abs(to_scene).sum(1) * 4 * _CELL
    (xx, xy), (yx, yy) = np.linalg.inv(to_scene).tolist()
    x = np.arange(-half_x, half_x, dtype=np.float32)
    y = np.arange(-half_y, half_y, dtype=np.float32)[:, None]
    columns = _rounded_inside(x * xx + y * xy + _BANK_SIDE / 2)
    rows = _rounded_inside(x * yx + y * yy + _BANK_SIDE / 2)
    return _cut_tight(scan.ravel()[rows * _BANK_SIDE + columns])


def _rounded_inside(places: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(places, 0), _BANK_SIDE - 1).astype(np.intp)


def _cut_tight(ink: np.ndarray) -> np.ndarray:
    inked = ink >= _INKED
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _painted(random: np.random.Generator, glyphs: list[_Glyph]) -> np.ndarray:
    """The scene as uint8 `[3, 128, 128]`."""
    scene = _background(random)
    for _ in range(random.integers(2, 7)):
        _paint_stroke(random, scene)
    for glyph in glyphs:
        rows, columns = glyph.window
        _paint(random, scene[:, rows, columns], glyph.ink * np.float32(1 / 255), (70, 150), 50)
    y, x = random.integers(_TEXTURE_SIDE - _SIDE, size=2)
    scene += _noise()[:, y : y + _SIDE, x : x + _SIDE] * np.float32(random.uniform(2, 10))
    return np.minimum(np.maximum(scene, 0), 255).astype(np.uint8)


def _paint(
    random: np.random.Generator,
    window: np.ndarray,
    ink: np.ndarray,
    contrast: tuple[float, float],
    tint: float,
) -> None:
    """Draws `ink` (`[h, w]`, 0 to 1) into the window `[3, h, w]`, darker or lighter than what is there by `contrast`."""
    ground = window.mean(axis=(1, 2))
    step = random.uniform(*contrast)
    darker = ground.mean() - step
    lighter = ground.mean() + step
    go_darker = darker >= 0 and (lighter > 255 or random.random() < 0.5)
    color = ground + (-step if go_darker else step) + tint * (random.random(3) - 0.5)
    window += ink * (color.astype(np.float32)[:, None, None] - window)


def _background(random: np.random.Generator) -> np.ndarray:
    """Two colours blended by a texture, float32 `[3, 128, 128]` in 0..255."""
    textures = _textures()
    y, x = random.integers(_TEXTURE_SIDE - _SIDE, size=2)
    texture = textures[random.integers(len(textures)), y : y + _SIDE, x : x + _SIDE]
    if random.random() < 0.5:
        texture = texture.T
    color = random.uniform(20, 235) + random.uniform(-30, 30, 3)
    depth = random.uniform(5, 22) * random.uniform(0.6, 1.2, 3)
    return color.astype(np.float32)[:, None, None] + texture * depth.astype(np.float32)[:, None, None]


def _paint_stroke(random: np.random.Generator, scene: np.ndarray) -> None:
    strokes = _strokes()
    ink = strokes[random.integers(len(strokes))]
    height, width = ink.shape
    x, y = random.integers(_SIDE + 1 - width), random.integers(_SIDE + 1 - height)
    _paint(random, scene[:, y : y + height, x : x + width], ink, (20, 80), 60)


@lru_cache
def _scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The scans of a split, enlarged and inked, uint8 `[N, _BANK_SIDE, _BANK_SIDE]`, and their digits `[N]`."""
    from sklearn.datasets import load_digits  # slow to import

    data = load_digits()
    mine = in_validation(data.target) == (split == "val")
    enlarge = _cubic_weights()
    smooth = enlarge @ data.images[mine].astype(np.float32) @ enlarge.T / 16
    ink = np.clip((smooth - 0.15) / 0.5, 0, 1)
    return (255 * ink).astype(np.uint8), data.target[mine]


def in_validation(digits: np.ndarray) -> np.ndarray:
    """Which of scikit-learn's scans are kept for validation, bool `[N]`: a fixed fifth of each digit `[N]`."""
    random = np.random.default_rng(0)
    held_out = np.zeros(len(digits), bool)
    for digit in range(10):
        own = np.flatnonzero(digits == digit)
        held_out[random.permutation(own)[: len(own) // 5]] = True
    return held_out


def _cubic_weights() -> np.ndarray:
    """The matrix `[_BANK_SIDE, 8]` that enlarges 8 samples by cubic convolution (Keys 1981, a = -0.5), zero outside."""
    places = (np.arange(_BANK_SIDE) - _BORDER + 0.5) / _CELL - 0.5
    t = np.abs(places[:, None] - np.arange(8))
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0)).astype(np.float32)


@lru_cache
def _textures() -> np.ndarray:
    """Grounds of many kinds, float32 `[24, 256, 256]`, mean 0 and deviation 1: clouds, grain, and stripes of both."""
    random = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE_SIDE)[:, None], np.fft.rfftfreq(_TEXTURE_SIDE)[None, :])
    frequency[0, 0] = np.inf
    y, x = np.mgrid[:_TEXTURE_SIDE, :_TEXTURE_SIDE] / _TEXTURE_SIDE
    textures = []
    for kind in range(24):
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
    """Noise, float32 `[3, 256, 256]`, the same in all colours by half."""
    random = np.random.default_rng(2)
    shape = (_TEXTURE_SIDE, _TEXTURE_SIDE)
    return (0.7 * random.standard_normal((1, *shape)) + 0.7 * random.standard_normal((3, *shape))).astype(np.float32)


@lru_cache
def _strokes() -> list[np.ndarray]:
    """Bows float32 `[h, w]` that nobody takes for a digit: thin and long, or shorter than any digit."""
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
