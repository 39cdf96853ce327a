"""Scenes of handwritten digits, drawn on demand: a data set that needs no download.

A scene has a textured background, a few strokes that are not digits, 1 to 8 digits, and noise. The
digits are scans of handwriting (1,797 of 8x8 px, see `scans/ATTRIBUTION.md`), which are rotated,
slanted, stretched and coloured at random. Scans that appear in validation never appear in training.

The order of the random draws is part of the data set: recorded results depend on the scenes.
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
_GLYPH_HEIGHTS_PX = (16, 44)
_INKED = 72  # of 255: fainter pixels do not count for the box
_MOST_HIDDEN = 0.3  # share of a digit's ink that others may cover
_POSITIONS_TRIED = 6
_CONTRAST = 65  # least difference in brightness, of 255, between a digit and the background
_CONTRAST_BETWEEN = 45  # and between two digits that overlap
_SHADES_TRIED = 12
_TINT = 60  # how far the channels of a colour may be apart

# The scans are enlarged once, into a bank that is then sampled at the nearest pixel.
_CELL = 8  # px of the bank per px of a scan
_BORDER = 8  # px of the bank around a scan, free of ink
_SCAN_SIDE = 8 * _CELL
_BANK_SIDE = _SCAN_SIDE + 2 * _BORDER

_TEXTURE_SIDE = 192
_TEXTURES = 16
_STROKES = 96
_SPLITS: tuple[Split, ...] = ("train", "val")
_DEFAULT_SIZES: dict[Split, int] = {"train": 20_000, "val": 300}


@dataclass
class _Glyph:
    """A digit in a scene."""

    label: int
    ink: np.ndarray  # [h, w] uint8, cut to the inked pixels
    left: int  # px, as all positions in a scene
    top: int
    over: list[int]  # indices of the earlier digits that it covers in part

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box around the ink, xyxy."""
        height, width = self.ink.shape
        return self.left, self.top, self.left + width, self.top + height


class DigitsDataset(DetectionDataset):
    """Scenes of 128x128 px; scene `i` depends on (seed, split, i) only.

    Boxes (xyxy, px) are tight around the ink of a digit, and areas are those of the boxes. A mask
    has the pixels in which the ink of its digit is on top. So if other digits cover a part, it is
    missing in the mask, but not in the box. Ink fainter than `_INKED` belongs to neither.
    """

    name = "digits"
    has_masks = True
    class_names = tuple("0123456789")
    category_ids = tuple(range(10))
    hints = Hints(image_size=_SIDE, augment="plain", num_queries=25)

    def __init__(self, split: Split, seed: int = 0, size: int | None = None, masks: bool = False):
        """A split of `size` scenes; by default, 20,000 for training and 300 for validation. With
        `masks`, targets have masks."""
        if size is None:
            size = _DEFAULT_SIZES[split]
        self.split: Split = split
        self.seed = seed
        self.size = size
        self.masks = masks
        _scans(split)  # enlarged once, before worker processes are forked

    def __len__(self) -> int:
        return self.size

    def max_objects(self) -> int:
        return _MOST_DIGITS

    def target(self, index: int) -> StoredTarget:
        glyphs = _arranged(self._random(index), self.split)
        return self._target_of(glyphs, index)

    def image_id(self, index: int) -> int:
        return self._position(index)

    def image(self, index: int) -> Tensor:
        image, _ = self.sample(index)
        return image

    def sample(self, index: int) -> tuple[Tensor, StoredTarget]:
        random = self._random(index)
        glyphs = _arranged(random, self.split)  # drawn first, so that `target` need not paint
        scene = _painted(random, glyphs)
        return torch.from_numpy(scene), self._target_of(glyphs, index)

    def _target_of(self, glyphs: list[_Glyph], index: int) -> StoredTarget:
        target = _target(glyphs, self._position(index))
        if self.masks:
            target["masks"] = _visible(glyphs)
        return target

    def _random(self, index: int) -> np.random.Generator:
        """Returns the random generator of a scene."""
        split_number = _SPLITS.index(self.split)
        return np.random.default_rng([self.seed, split_number, self._position(index)])


def _target(glyphs: list[_Glyph], image_id: int) -> StoredTarget:
    """Returns the objects of a scene."""
    boxes = np.array([glyph.box for glyph in glyphs], np.float32)
    labels = np.array([glyph.label for glyph in glyphs], np.int64)
    areas = np.array([glyph.ink.size for glyph in glyphs], np.float32)
    return StoredTarget(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        image_id=image_id,
        orig_size=(_SIDE, _SIDE),
        size=(_SIDE, _SIDE),
        iscrowd=torch.zeros(len(glyphs), dtype=torch.bool),
        area=torch.from_numpy(areas),
    )


def _visible(glyphs: list[_Glyph]) -> Tensor:
    """Returns where the ink of each digit is on top, bool `[T, 128, 128]`."""
    owner = np.zeros((_SIDE, _SIDE), np.uint8)  # number of the digit on top, from 1
    for number, glyph in enumerate(glyphs, start=1):
        left, top, right, bottom = glyph.box
        owner[top:bottom, left:right][glyph.ink >= _INKED] = number
    numbers = np.arange(1, len(glyphs) + 1)
    return torch.from_numpy(owner == numbers[:, None, None])


def _arranged(random: np.random.Generator, split: Split) -> list[_Glyph]:
    """Draws the digits of a scene, from the lowest to the topmost.

    No digit is hidden by more than `_MOST_HIDDEN`. A digit for which no position is free is left
    out.
    """
    bank, labels = _scans(split)
    owner = np.zeros((_SIDE, _SIDE), np.int8)  # number of the glyph whose ink is on top, from 1
    spare_px = np.zeros(_MOST_DIGITS + 1)  # how much more of each glyph may be covered
    spare_px[0] = np.inf  # the ground
    glyphs: list[_Glyph] = []
    num_digits = 1 + int(_MOST_DIGITS * random.random())
    for _ in range(num_digits):
        scan = int(len(bank) * random.random())
        ink = _warped(random, bank[scan])
        inked = ink >= _INKED
        height, width = ink.shape
        for x, y in random.random((_POSITIONS_TRIED, 2)).tolist():
            left = int(x * (_SIDE + 1 - width))
            top = int(y * (_SIDE + 1 - height))
            below = owner[top : top + height, left : left + width]
            covered_px = np.bincount(below[inked], minlength=_MOST_DIGITS + 1)
            if (covered_px > spare_px).any():
                continue
            over = np.flatnonzero(covered_px[1:]).tolist()
            glyphs.append(_Glyph(int(labels[scan]), ink, left, top, over))
            number = len(glyphs)
            below[inked] = number  # a view: this writes to `owner`
            spare_px -= covered_px
            spare_px[number] = _MOST_HIDDEN * np.count_nonzero(inked)
            break
    return glyphs


def _warped(random: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """Draws a size, stretch, slant and angle for a scan `[_BANK_SIDE, _BANK_SIDE]` of the bank.

    Returns its ink, uint8 `[h, w]`, without empty borders.
    """
    u = random.random(4).tolist()
    least_px, most_px = _GLYPH_HEIGHTS_PX
    height = least_px * (most_px / least_px) ** u[0] / _SCAN_SIDE  # px of the scene per px of bank
    width = height * (0.8 + 0.4 * u[1])
    angle = (u[2] - 0.5) * math.pi / 6
    slant = (u[3] - 0.5) * 0.4
    cos = math.cos(angle)
    sin = math.sin(angle)

    # The matrix [[xx, xy], [yx, yy]] maps offsets from the centre of the scan to offsets in the
    # scene: rotation @ [[width, slant * height], [0, height]].
    xx = cos * width
    xy = (cos * slant - sin) * height
    yx = sin * width
    yy = (sin * slant + cos) * height
    determinant = width * height

    # The pixels of the scene that the rotated square of the scan can reach.
    half_x = (abs(xx) + abs(xy)) * _SCAN_SIDE / 2
    half_y = (abs(yx) + abs(yy)) * _SCAN_SIDE / 2
    x = np.arange(-half_x, half_x, dtype=np.float32) / determinant
    y = np.arange(-half_y, half_y, dtype=np.float32)[:, None] / determinant

    # The inverse matrix maps these back to the scan; both [h, w].
    columns = yy * x - xy * y
    rows = xx * y - yx * x
    flat_indices = _BANK_SIDE * _bank_index(rows) + _bank_index(columns)
    return _cut_tight(scan.take(flat_indices))


def _bank_index(from_center: np.ndarray) -> np.ndarray:
    """Returns the nearest row or column of the bank, intp; `from_center` is overwritten.

    Positions outside get an index on the border, which has no ink.
    """
    half = (_BANK_SIDE - 1) / 2
    np.maximum(from_center, -half, out=from_center)
    np.minimum(from_center, half, out=from_center)
    from_center += half + 0.5
    return from_center.astype(np.intp)


def _cut_tight(ink: np.ndarray) -> np.ndarray:
    """Returns the part of `ink` `[h, w]` that is inked."""
    inked = ink >= _INKED
    inked_rows = np.logical_or.reduce(inked, axis=1)
    inked_columns = np.logical_or.reduce(inked, axis=0)
    top, bottom = _extent(inked_rows)
    left, right = _extent(inked_columns)
    return ink[top:bottom, left:right]


def _extent(inked: np.ndarray) -> tuple[int, int]:
    """Returns the index of the first True, and the index after the last one."""
    start = int(inked.argmax())
    after = int(inked[::-1].argmax())
    return start, len(inked) - after


def _painted(random: np.random.Generator, glyphs: list[_Glyph]) -> np.ndarray:
    """Paints the scene, uint8 `[3, 128, 128]`."""
    ground = 20 + 215 * random.random()
    scene = _background(random, ground)
    num_strokes = 2 + int(5 * random.random())
    for _ in range(num_strokes):
        _paint_stroke(random, scene, ground)

    all_brightness: list[float] = []
    for glyph in glyphs:
        below = [all_brightness[i] for i in glyph.over]
        brightness = _brightness(random, ground, below)
        all_brightness.append(brightness)
        ink = glyph.ink * np.float32(1 / 255)
        color = _color(random, brightness)
        _paint(scene, ink, glyph.left, glyph.top, color)

    y, x = _corner(random)
    grain = _noise()[:, y : y + _SIDE, x : x + _SIDE]
    scene += grain * np.float32(2 + 8 * random.random())
    np.clip(scene, 0, 255, out=scene)
    return scene.astype(np.uint8)


def _brightness(random: np.random.Generator, ground: float, below: list[float]) -> float:
    """Draws a brightness from 0 to 255 that stands out from the background and the digits below.

    If several draws do not, the last one is returned.
    """
    for value in (255 * random.random(_SHADES_TRIED)).tolist():
        stands_out = abs(value - ground) >= _CONTRAST
        for other in below:
            if abs(value - other) < _CONTRAST_BETWEEN:
                stands_out = False
        if stands_out:
            break
    return value


def _color(random: np.random.Generator, brightness: float) -> np.ndarray:
    """Draws a colour, float32 `[3]`, of about this brightness."""
    channels = [brightness + _TINT * (u - 0.5) for u in random.random(3).tolist()]
    return np.array(channels, np.float32)


def _paint(scene: np.ndarray, ink: np.ndarray, left: int, top: int, color: np.ndarray) -> None:
    """Blends `color` `[3]` into the scene `[3, H, W]` by `ink` `[h, w]`, 0 to 1."""
    height, width = ink.shape
    part = scene[:, top : top + height, left : left + width]
    part += ink * (color[:, None, None] - part)


def _paint_stroke(random: np.random.Generator, scene: np.ndarray, ground: float) -> None:
    """Paints a random stroke at a random position, darker or brighter than the background."""
    strokes = _strokes()
    pick, x, y, contrast = random.random(4).tolist()
    ink = strokes[int(pick * len(strokes))]
    height, width = ink.shape
    left = int(x * (_SIDE + 1 - width))
    top = int(y * (_SIDE + 1 - height))
    color = _color(random, ground + 160 * (contrast - 0.5))
    _paint(scene, ink, left, top, color)


def _background(random: np.random.Generator, brightness: float) -> np.ndarray:
    """Draws a colour, shaded by a texture: float32 `[3, 128, 128]`."""
    textures = _textures()
    y, x = _corner(random)
    pick = int(random.random() * len(textures))
    texture = textures[pick, y : y + _SIDE, x : x + _SIDE]
    depth = 5 + 17 * random.random()
    depths = (depth * (0.6 + 0.6 * random.random(3))).astype(np.float32)  # per channel
    scene = texture * depths[:, None, None]
    scene += _color(random, brightness)[:, None, None]
    return scene


def _corner(random: np.random.Generator) -> list[int]:
    """Draws the (top, left) of a scene in a texture."""
    room = _TEXTURE_SIDE - _SIDE
    return [int(room * u) for u in random.random(2).tolist()]


@lru_cache
def _scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bank of a split, and the digits `[N]`.

    The bank has the scans enlarged and inked, uint8 `[N, _BANK_SIDE, _BANK_SIDE]`.
    """
    scans, digits = read_scans()
    of_split = in_validation(digits) == (split == "val")
    enlarge = _cubic_weights()  # [_BANK_SIDE, 8]
    smooth = enlarge @ scans[of_split].astype(np.float32) @ enlarge.T / 16
    # Edges are sharper than in the scans, as if drawn with a pen.
    ink = np.clip((smooth - 0.2) / 0.5, 0, 1)
    return (255 * ink).astype(np.uint8), digits[of_split]


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """Reads all scans, uint8 `[N, 8, 8]` with ink from 0 to 16, and their digits, uint8 `[N]`."""
    with np.load(_SCANS_FILE, allow_pickle=False) as file:
        return file["images"], file["labels"]


def in_validation(digits: np.ndarray) -> np.ndarray:
    """Returns which scans are held out for validation, bool `[N]`: a fifth of each digit `[N]`."""
    random = np.random.default_rng(0)  # always the same fifth
    held_out = np.zeros(len(digits), bool)
    for digit in range(10):
        of_digit = np.flatnonzero(digits == digit)
        shuffled = random.permutation(of_digit)
        num_held_out = len(of_digit) // 5
        held_out[shuffled[:num_held_out]] = True
    return held_out


def _cubic_weights() -> np.ndarray:
    """Returns the matrix `[_BANK_SIDE, 8]` that enlarges 8 samples.

    Source: cubic convolution of Keys 1981, with a = -0.5.
    """
    pixels = np.arange(_BANK_SIDE) - _BORDER
    positions = (pixels + 0.5) / _CELL - 0.5  # in px of the scan
    samples = np.arange(8)
    distance = np.abs(positions[:, None] - samples)
    square = distance**2
    cube = distance**3
    near = 1.5 * cube - 2.5 * square + 1
    far = -0.5 * cube + 2.5 * square - 4 * distance + 2
    weights = np.where(distance < 2, far, 0)
    weights = np.where(distance <= 1, near, weights)
    return weights.astype(np.float32)


@lru_cache
def _textures() -> np.ndarray:
    """Draws the textures of backgrounds, float32 `[16, 192, 192]` of mean 0 and deviation 1.

    They range from clouds to grain: noise whose power falls with the frequency. A third of them
    have stripes that the noise bends.
    """
    random = np.random.default_rng(1)
    frequency_y = np.fft.fftfreq(_TEXTURE_SIDE)[:, None]
    frequency_x = np.fft.rfftfreq(_TEXTURE_SIDE)[None, :]
    frequency = np.hypot(frequency_y, frequency_x)
    frequency[0, 0] = np.inf  # removes the mean
    y, x = np.mgrid[:_TEXTURE_SIDE, :_TEXTURE_SIDE] / _TEXTURE_SIDE
    textures = []
    for number in range(_TEXTURES):
        noise = random.standard_normal((_TEXTURE_SIDE, _TEXTURE_SIDE))
        spectrum = np.fft.rfft2(noise)
        exponent = random.uniform(0.8, 2.2)  # from grain to clouds
        texture = _standardized(np.fft.irfft2(spectrum / frequency**exponent))
        if number % 3 == 0:
            angle = random.uniform(0, np.pi)
            num_stripes = random.uniform(6, 30)
            phase = 2 * np.pi * num_stripes * (x * np.cos(angle) + y * np.sin(angle))
            strength = random.uniform(0.5, 1.5)
            texture = _standardized(texture + strength * np.sin(phase + texture))
        textures.append(texture)
    return np.stack(textures).astype(np.float32)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Returns `values` shifted and scaled to mean 0 and deviation 1."""
    return (values - values.mean()) / values.std()


@lru_cache
def _noise() -> np.ndarray:
    """Draws noise, float32 `[3, 192, 192]` of deviation 1; the channels share half of its power."""
    random = np.random.default_rng(2)
    shared = random.standard_normal((1, _TEXTURE_SIDE, _TEXTURE_SIDE))
    per_channel = random.standard_normal((3, _TEXTURE_SIDE, _TEXTURE_SIDE))
    noise = (shared + per_channel) / math.sqrt(2)
    return noise.astype(np.float32)


@lru_cache
def _strokes() -> list[np.ndarray]:
    """Draws curved strokes, float32 `[h, w]`, that cannot be mistaken for digits.

    They are longer than any digit, or, for a third of them, shorter.
    """
    random = np.random.default_rng(3)
    long = random.uniform(60, 110, _STROKES)
    short = random.uniform(3, 9, _STROKES)
    is_long = np.arange(_STROKES) % 3 > 0
    lengths = np.where(is_long, long, short)
    return [_bow(random, length) for length in lengths]


def _bow(random: np.random.Generator, length: float) -> np.ndarray:
    """Draws a stroke of `length` px, float32 `[h, w]`, bent by up to a fifth of its length."""
    angle = random.uniform(0, np.pi)
    bend = random.uniform(-0.2, 0.2) * length
    # Points on the centre line: a parabola, rotated by `angle`.
    t = np.linspace(-1, 1, max(8, int(length)))
    along = t * length / 2
    across = bend * (1 - t**2)
    x = along * np.cos(angle) - across * np.sin(angle)
    y = along * np.sin(angle) + across * np.cos(angle)
    # Shifted so that the stroke begins a pixel from the border.
    radius = random.uniform(0.5, 1.2)
    x = x - x.min() + radius + 1
    y = y - y.min() + radius + 1
    height = int(y.max() + radius + 2)
    width = int(x.max() + radius + 2)
    rows, columns = np.mgrid[:height, :width]
    gaps_x = columns[..., None] - x  # [h, w, points]
    gaps_y = rows[..., None] - y
    distance = np.hypot(gaps_x, gaps_y).min(-1)
    ink = np.clip(radius + 0.5 - distance, 0, 1)  # a soft edge, a pixel wide
    return ink.astype(np.float32)
