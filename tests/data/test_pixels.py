"""Pixels of any depth and with transparency: they keep their contrast, the same everywhere."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from redetr.app.uploads import read_image as read_upload
from redetr.data.headers import read_header
from redetr.data.images import read_image
from redetr.data.pixels import one_colour, scaled_to_8_bits
from redetr.detector.detector import as_image
from redetr.errors import InputError

HEIGHT, WIDTH = 24, 36


def scene(seed: int = 1) -> np.ndarray:
    """Coloured clouds of all brightnesses, uint8 `[H, W, 3]`."""
    random = np.random.default_rng(seed)
    clouds = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    pixels = np.array(clouds.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    pixels[0, :2] = ((0, 0, 0), (255, 255, 255))
    return pixels


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def deep_png(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits, which PIL cannot write; `kind` is 2 = RGB, 4 = grey, alpha, 6 = RGBA."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def deep_tiff(values: np.ndarray, *extra: tuple[int, int]) -> bytes:
    """An uncompressed TIFF of 16 bits with 1, 3 or 4 bands; `extra` are further tags of one short
    number."""
    height, width, bands = values.shape
    data = values.astype("<u2").tobytes()
    photometric = 2 if bands > 2 else 1
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: bands, 278: height}
    tags |= {258: 16, 273: 0, 279: len(data)} | dict(extra)
    bits_at = 8 + 2 + 12 * len(tags) + 4
    body = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in sorted(tags.items()):
        kind, count = (4, 1) if tag in (273, 279) else (3, 1)
        if tag == 273:
            value = bits_at + 2 * bands
        if tag == 258:
            count = bands
            value = bits_at if bands > 2 else 16
        body += struct.pack("<HHII", tag, kind, count, value)
    return body + struct.pack("<I", 0) + struct.pack(f"<{bands}H", *[16] * bands) + data


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def everywhere(content: bytes, folder: Path) -> np.ndarray:
    """The image as training reads it, `[H, W, 3]`; prediction and the app read the same."""
    path = folder / "image"
    path.write_bytes(content)
    trained: Tensor = read_image(path)
    assert torch.equal(as_image(path), trained)
    assert torch.equal(read_upload(io.BytesIO(content)), trained)
    with Image.open(path) as opened:
        assert torch.equal(as_image(opened), trained)
    assert not read_header(path).problem
    return trained.permute(1, 2, 0).numpy()


RGB = scene()
WIDE = RGB.astype(np.uint16)
GREY = RGB[..., 0]
FOUR_BANDS = np.concatenate([WIDE * 257, WIDE[..., :1] * 100], 2)
GREYS = {
    "8 bits in 16": encoded(Image.fromarray(GREY.astype(np.uint16)), "PNG"),
    "12 bits in 16": encoded(Image.fromarray(GREY.astype(np.uint16) * 16), "PNG"),
    "16 bits": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "8 bits in 32": encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
    "floats to 1": encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "floats to 255": encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "degrees": encoded(Image.fromarray((GREY / 10 - 12).astype(np.float32)), "TIFF"),
    "thermal camera": encoded(Image.fromarray(28_000 + 16 * GREY.astype(np.uint16)), "PNG"),
    "JPEG 2000": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"),
    "white is zero": deep_tiff(65_535 - WIDE[..., :1] * 257, (262, 0)),
}
COLOURS = {
    "RGB PNG": deep_png(WIDE * 257, 2),
    "8 bits in 16, PNG": deep_png(WIDE, 2),
    "12 bits in 16, PNG": deep_png(WIDE * 16, 2),
    "RGB TIFF": deep_tiff(WIDE * 257),
    "8 bits in 16, TIFF": deep_tiff(WIDE),
    "four bands": deep_tiff(FOUR_BANDS, (338, 0)),
    "four bands of no stated meaning": deep_tiff(FOUR_BANDS),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_keeps_its_contrast(name, tmp_path):
    pixels = everywhere(GREYS[name], tmp_path)
    assert np.abs(pixels.astype(int) - GREY[..., None]).max() <= 1
    assert read_header(tmp_path / "image").plain == ""


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_16_bits(name, tmp_path):
    pixels = everywhere(COLOURS[name], tmp_path)
    assert np.abs(pixels.astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiff_of_16_bits(compression, tmp_path):
    grey = Image.fromarray(GREY.astype(np.uint16) * 16)
    pixels = everywhere(encoded(grey, "TIFF", compression=compression), tmp_path)
    assert np.abs(pixels.astype(int) - GREY[..., None]).max() <= 1


def test_the_rule():
    """Worked by hand: the smallest scale that holds the values, or their own range."""
    short = np.uint16
    cases = [
        (np.array([0, 51, 255], short), [0, 51, 255]),
        (np.array([10, 20], short), [10, 20]),  # 8 bits are taken as they are
        (np.array([0, 341, 1023], short), [0, 85, 255]),
        (np.array([0, 16383], short), [0, 255]),
        (np.array([28_000, 29_000, 32_000], short), [0, 64, 255]),  # under a quarter of 32,767
        (np.array([0, 70_000, 140_000], np.int32), [0, 128, 255]),  # more than 16 bits
        (np.array([-5, 0, 5], np.int32), [0, 128, 255]),
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 0.05, 0.1], np.float32), [0, 128, 255]),
        (np.array([np.nan, 0, 0.5, np.inf, 1], np.float32), [0, 0, 128, 0, 255]),
        (np.array([7, 7], short), [7, 7]),
        (np.array([-3.0, -3.0]), [0, 0]),
    ]
    for values, expected in cases:
        assert scaled_to_8_bits(values).tolist() == expected
    with pytest.raises(ValueError, match="finite"):
        scaled_to_8_bits(np.array([np.nan]))


def test_hot_and_dead_pixels_do_not_choose_the_scale():
    values = np.full((100, 200), 1000, np.uint16)
    values[:50] = 4000
    values[0, 0] = 65_535  # one in 20,000
    levels = scaled_to_8_bits(values)
    assert [levels[0, 0], levels[0, 1], levels[99, 0]] == [255, 249, 62]  # of 4,095
    values[0, :5] = 65_535
    assert scaled_to_8_bits(values)[99, 0] == 4  # one in 4,000 may be an object
    celsius = np.linspace(20, 40, 20_000)
    celsius[7] = -273
    assert np.abs(scaled_to_8_bits(celsius) - np.linspace(0, 255, 20_000))[8:].max() < 0.6


def test_what_few_pixels_show_on_a_plain_ground_is_kept():
    values = np.zeros((200, 200), np.uint16)
    values[3, 4] = 4000
    assert scaled_to_8_bits(values)[3, 4] == 249


def test_pixels_without_a_value_do_not_count(tmp_path):
    """Elevation models state a number that means none."""
    metres = 200 + GREY.astype(np.float32)
    metres[:4] = -9999
    image = Image.fromarray(metres)
    content = encoded(image, "TIFF", tiffinfo={42113: "-9999"})
    pixels = everywhere(content, tmp_path)
    assert not pixels[:4].any()
    assert pixels[4:].std() > 30


def transparent(colour: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    alpha = np.where(opaque, 255, 0).astype(np.uint8)
    return np.concatenate([colour, alpha[..., None]], axis=2)


OPAQUE = np.zeros((HEIGHT, WIDTH), bool)
OPAQUE[8:20, 10:30] = True
RGBA = transparent(RGB, OPAQUE)
WITH_ALPHA = {
    "RGBA": encoded(Image.fromarray(RGBA), "PNG"),
    "WebP": encoded(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True),
    "16 bits": deep_png(RGBA.astype(np.uint16) * 257, 6),
    "TIFF": encoded(Image.fromarray(RGBA), "TIFF"),
}


@pytest.mark.parametrize("name", WITH_ALPHA)
def test_what_is_transparent_is_white(name, tmp_path):
    pixels = everywhere(WITH_ALPHA[name], tmp_path)
    assert (pixels[~OPAQUE] == 255).all()
    assert (pixels[OPAQUE] == RGB[OPAQUE]).all()


def test_transparent_grey(tmp_path):
    pair = transparent(RGB[..., :1], OPAQUE)
    for content in (
        encoded(Image.fromarray(pair), "PNG"),
        deep_png(pair.astype(np.uint16) * 257, 4),
    ):
        pixels = everywhere(content, tmp_path)
        assert (pixels[~OPAQUE] == 255).all()
        assert (pixels[OPAQUE] == GREY[OPAQUE][:, None]).all()


def test_half_transparent_pixels_are_blended(tmp_path):
    half = np.full((HEIGHT, WIDTH, 4), (200, 100, 0, 128), np.uint8)
    pixels = everywhere(encoded(Image.fromarray(half), "PNG"), tmp_path)
    assert np.abs(pixels[0, 0].astype(int) - (227, 177, 127)).max() <= 1


def test_a_colour_that_stands_for_transparency(tmp_path):
    grey = np.full((HEIGHT, WIDTH), 60, np.uint8)
    grey[5:9, 5:9] = 9
    pixels = everywhere(encoded(Image.fromarray(grey), "PNG", transparency=9), tmp_path)
    assert (pixels[5:9, 5:9] == 255).all() and (pixels[:5] == 60).all()


def test_a_fourth_band_is_not_transparency_unless_the_file_says_so(tmp_path):
    """Aerial images have infrared there."""
    content = encoded(Image.fromarray(RGBA), "TIFF")
    with Image.open(io.BytesIO(content)) as image:
        assert image.tag_v2[338] == (2,)
    silent = content.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 50_000, 3, 1))
    assert (everywhere(silent, tmp_path) == RGB).all()


def test_the_first_of_several_pages(tmp_path):
    first, *others = [Image.fromarray(scene(seed)) for seed in range(3)]
    content = encoded(first, "TIFF", save_all=True, append_images=others)
    assert (everywhere(content, tmp_path) == np.asarray(first)).all()
    assert read_header(tmp_path / "image").frames == 3
    for kind in ("GIF", "PNG", "WEBP"):
        (tmp_path / kind).write_bytes(encoded(first, kind, save_all=True, append_images=others))
        assert read_header(tmp_path / kind).frames == 3


def test_the_photograph_of_an_mpo_file(tmp_path):
    if int(PIL.__version__.partition(".")[0]) < 12:
        pytest.skip("other versions than those of constraints.txt: they write damaged MPO files")
    first, *others = [Image.fromarray(scene(seed)) for seed in range(3)]
    photograph = encoded(first, "MPO", save_all=True, append_images=others)
    pixels = everywhere(photograph, tmp_path)
    assert np.abs(pixels.astype(int) - np.asarray(first)).mean() < 12
    assert read_header(tmp_path / "image").frames == 1


def test_a_page_that_is_shown_is_read_in_full_depth():
    """An open image at its second page gives that page."""
    pages = deep_png(WIDE * 257, 2)
    with Image.open(io.BytesIO(pages)) as image:
        assert image.tell() == 0
        assert (as_image(image).permute(1, 2, 0).numpy() == RGB).all()
    first, second = Image.fromarray(scene(2)), Image.fromarray(scene(3))
    animation = encoded(first, "TIFF", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(animation)) as image:
        image.seek(1)
        assert (as_image(image).permute(1, 2, 0).numpy() == np.asarray(second)).all()


def test_bytes_after_the_end(tmp_path):
    content = encoded(Image.fromarray(RGB), "JPEG", quality=98) + b"SEFT" + bytes(range(200))
    pixels = everywhere(content, tmp_path)
    assert np.abs(pixels.astype(int) - RGB).mean() < 12


def test_nearly_one_colour():
    plain = np.full((40, 50, 3), (10, 20, 30), np.uint8)
    assert one_colour(plain) == "(10, 20, 30)"
    plain[::2] += 2  # noise
    assert one_colour(plain)
    plain[3, 4] = 255  # a dead pixel, of 2,000
    assert one_colour(plain) == "(12, 22, 32)"
    plain[3, 4:8] = 255
    assert one_colour(plain) == ""
    assert one_colour(RGB) == ""
    large = np.zeros((1000, 1000, 3), np.uint8)
    large[1:800:7, 1:800:7] = 255  # on none of the sampled rows
    assert one_colour(large) == ""


def test_no_finite_pixel_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(path)
    with pytest.raises(InputError, match=r"a\.tif: cannot decode the image \(no pixel is a finite"):
        read_image(path)
    assert "finite" in read_header(path).problem


def test_damaged_tiffs_that_pillow_leaves_to_tifffile_are_refused(tmp_path):
    """Planes of 16 bits that state one strip for three, and float64 of half its bytes."""
    planes = deep_tiff(WIDE * 257, (284, 2))
    doubles = encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF")
    doubles = doubles.replace(
        struct.pack("<HHIH", 258, 3, 1, 32), struct.pack("<HHIH", 258, 3, 1, 64)
    )
    for content, says in ((planes, "incorrect StripByteCounts"), (doubles, "failed to read")):
        path = tmp_path / "a.tif"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot decode the image .*{says}"):
            read_image(path)
        assert says in read_header(path).problem
