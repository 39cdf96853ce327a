"""Pixels of any depth and with transparency: they keep their contrast, the same everywhere."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import tifffile
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torch import Tensor

from redetr.app.uploads import read_image as read_upload
from redetr.data.bands import in_channels
from redetr.data.headers import read_header
from redetr.data.images import decode, describe, image_size, read_image
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


def png_of(header: bytes, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of these rows of pixels, with `chunks` before them."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(chunks)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def deep_png(values: np.ndarray, kind: int, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits, which PIL cannot write; `kind` is 0 = grey, 2 = RGB, 4 = grey, alpha, 6 =
    RGBA. A colour may stand for transparency."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    if not transparent:
        return png_of(header, rows)
    colour = struct.pack(f">{len(transparent)}H", *transparent)
    return png_of(header, rows, png_chunk(b"tRNS", colour))


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


# Older versions of Pillow do not know this one.
OPENS_BIG_ENDIAN_INKS = (b"MM", 5, (1,), 1, (16,) * 4, ()) in TiffImagePlugin.OPEN_INFO


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"] if OPENS_BIG_ENDIAN_INKS else ["<"])
def test_inks_of_16_bits_are_those_of_8(tmp_path, order, compression):
    """All four of them: the black plate darkens, and an ink is the opposite of a light."""
    inks = np.concatenate([255 - RGB, RGB[..., :1] // 4], 2)
    low = np.random.default_rng(0).integers(0, 256, inks.shape)
    files = {8: inks, 16: (inks.astype(np.uint16) << 8 | low).astype(np.uint16)}
    pixels = {}
    for bits, values in files.items():
        file = io.BytesIO()
        tifffile.imwrite(
            file, values, photometric="separated", byteorder=order, compression=compression
        )
        pixels[bits] = everywhere(file.getvalue(), tmp_path)
    assert np.array_equal(pixels[16], pixels[8])
    lights = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB")
    assert np.array_equal(pixels[16], lights)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_inks_that_pillow_does_not_know_are_refused(tmp_path, order, channels):
    """For they would be taken for red, green and blue. A model of five channels may read them."""
    file = tmp_path / "a.tif"
    inks = np.full((20, 30, 5), 1000, np.uint16)
    tifffile.imwrite(file, inks, photometric="separated", byteorder=order, extrasamples=[0])
    with pytest.raises(InputError, match=r"a\.tif: printing inks \(CMYK\) .*; save it as RGB"):
        read_image(file, channels)
    assert read_image(file, 5).shape == (5, 20, 30)


def test_inks_of_16_bits_in_separate_planes_are_refused(tmp_path):
    """Pillow decodes them wrongly, and tifffile does not convert them to lights."""
    file = tmp_path / "a.tif"
    inks = np.zeros((4, 20, 30), np.uint16)
    tifffile.imwrite(file, inks, photometric="separated", planarconfig="separate")
    with pytest.raises(InputError, match=r"a\.tif: .*separate planes: save it with its channels"):
        read_image(file)


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


SIDE = 700
NUM_VALUES = 3 * SIDE**2
NOISE = np.random.default_rng(2).integers(0, 60_000, (SIDE, SIDE, 3), dtype=np.uint16)
ONE_ROW = NOISE.reshape(1, -1, 3)
# What is converted, and the most bytes that this may take for each value, besides the input.
LARGE = {
    "16 bits": (lambda: scaled_to_8_bits(NOISE), 3),
    "one row": (lambda: scaled_to_8_bits(ONE_ROW), 3),
    "three of four bands": (lambda: scaled_to_8_bits(np.dstack([NOISE, NOISE])[..., :3]), 9),
    "32 bits": (lambda: scaled_to_8_bits(NOISE.astype(np.int32)), 12),
    "float": (lambda: scaled_to_8_bits(NOISE.astype(np.float32)), 12),
    "one band": (lambda: in_channels(NOISE[..., :1], 3), 3),
    "brightness": (lambda: in_channels(NOISE, 1), 3),
    "brightness of 8 bits": (lambda: in_channels(NOISE.astype(np.uint8), 1), 3),
    "RGB PNG": (lambda: read_upload(io.BytesIO(deep_png(0 * NOISE, 2))), 8),
    "RGB PNG with a transparent colour": (
        lambda: read_upload(io.BytesIO(deep_png(0 * NOISE, 2, (1, 2, 3)))),
        8,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_images_take_a_few_bytes_for_each_value(name):
    """All values in 64 bits, and more than one copy of them, would take gigabytes of a small
    file."""
    convert, most_bytes = LARGE[name]
    tracemalloc.start()
    convert()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    fixed = 8 * 2**20  # blocks
    assert peak < most_bytes * NUM_VALUES + fixed


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


def test_a_colour_of_16_bits_that_stands_for_transparency(tmp_path):
    """Compared in all bits: the second pixel differs in the lowest one of blue. The other pixels
    choose the scale, of 12 bits."""
    for colour, other in (((1000, 2000, 512), (1000, 2000, 513)), ((65_535,) * 3, (4_095,) * 3)):
        values = WIDE * 16
        values[5, 5:7] = colour, other
        pixels = everywhere(deep_png(values, 2, colour), tmp_path)
        expected = RGB.copy()
        expected[5, 5] = 255
        expected[5, 6] = np.array(other) / 4095 * 255
        assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_grey_that_stands_for_transparency(tmp_path):
    """Of 16 bits, compared in all of them; and of 2 bits, which PIL scales to 8."""
    values = WIDE[..., :1] * 16
    values[5, 5:7, 0] = 65_535, 4_095
    pixels = everywhere(deep_png(values, 0, (65_535,)), tmp_path)
    expected = np.array(GREY)
    expected[5, 5:7] = 255
    assert np.abs(pixels.astype(int) - expected[..., None]).max() <= 1
    values[5, 5:7, 0] = 513, 512
    pixels = everywhere(deep_png(values, 0, (513,)), tmp_path)
    assert pixels[5, 5:7].tolist() == [[255] * 3, [32] * 3]
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    four = png_of(header, b"\0\x1b", png_chunk(b"tRNS", struct.pack(">H", 2)))
    assert everywhere(four, tmp_path)[0, :, 0].tolist() == [0, 85, 255, 255]


def test_all_is_transparent(tmp_path):
    values = np.full((HEIGHT, WIDTH, 3), 700, np.uint16)
    assert (everywhere(deep_png(values, 2, (700, 700, 700)), tmp_path) == 255).all()


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


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow rotates an image by its EXIF tag."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def jpeg_with_xmp() -> bytes:
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)
    length = struct.pack(">H", len(segment) + 2)
    content = encoded(Image.fromarray(RGB), "JPEG")
    return content[:2] + b"\xff\xe1" + length + segment + content[2:]


def png_with(before: bytes, *chunks: bytes) -> bytes:
    """A PNG with these chunks before the first chunk of this kind."""
    content = encoded(Image.fromarray(RGB), "PNG")
    start = content.index(before) - 4
    return content[:start] + b"".join(chunks) + content[start:]


PROFILE = exif_bytes(6).hex()
CHUNKS = {
    "EXIF": png_chunk(b"eXIf", exif_bytes(6).removeprefix(b"Exif\0\0")),
    "profile": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%d\n%b" % (
        len(PROFILE) // 2, PROFILE.encode())),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
}  # fmt: skip
TURNED = {"JPEG with XMP": jpeg_with_xmp()}
for kind, chunk in CHUNKS.items():
    TURNED[f"PNG, {kind} first"] = png_with(b"IDAT", chunk)
    TURNED[f"PNG, {kind} last"] = png_with(b"IEND", png_chunk(b"tEXt", b"a\0IDAT"), chunk)
TURNED["PNG, EXIF before others"] = png_with(b"IEND", CHUNKS["EXIF"], png_chunk(b"tIME", bytes(7)))
TURNED["PNG with bytes after its end"] = png_with(b"IEND", CHUNKS["XMP"]) + b"\0\0\0\4IDAT"


def require_turned(path: Path, stored: np.ndarray, orientation: int) -> None:
    """It is read as stored, reported, and shown as Pillow shows it, once."""
    height, width, _ = stored.shape
    trained = read_image(path)
    assert np.array_equal(trained.permute(1, 2, 0), stored)
    assert describe(path)[:3] == (width, height, orientation)
    assert image_size(path) == (width, height)
    header = read_header(path, looks=True)
    assert (header.width, header.height, header.orientation) == (width, height, orientation)
    shown = torch.from_numpy(turned(stored, orientation).copy()).permute(2, 0, 1)
    assert torch.equal(as_image(path), shown)
    assert torch.equal(read_upload(io.BytesIO(path.read_bytes())), shown)
    with Image.open(path) as opened:
        assert torch.equal(as_image(opened), shown)
        assert torch.equal(as_image(opened), shown)  # loaded, too


@pytest.mark.parametrize("name", TURNED)
def test_what_turns_an_image_for_viewers_is_reported(name, tmp_path):
    """By the rule of Pillow, of which older versions read fewer statements."""
    path = tmp_path / "image"
    path.write_bytes(TURNED[name])
    with Image.open(path) as image:
        image.load()
        orientation = image.getexif().get(0x0112, 1)
    if int(PIL.__version__.partition(".")[0]) >= 12:
        assert orientation == 6
    stored = RGB
    if "JPEG" in name:
        with Image.open(io.BytesIO(encoded(Image.fromarray(RGB), "JPEG"))) as image:
            stored = np.asarray(image)
    require_turned(path, stored, orientation)


def test_false_names_of_chunks_and_damaged_tags_turn_nothing(tmp_path):
    fake = 6000 * png_chunk(b"eXIf", b"")
    content = encoded(Image.fromarray(RGB), "PNG")
    path = tmp_path / "image"
    path.write_bytes(content + fake)
    require_turned(path, RGB, 1)
    path.write_bytes(png_with(b"IEND", png_chunk(b"eXIf", b"damaged")))
    require_turned(path, RGB, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_read_as_stored(orientation, tmp_path):
    """Pillow turns it when it decodes it, and forgets its tag."""
    path = tmp_path / "image"
    image = Image.fromarray(RGB)
    for options in ({}, {"compression": "tiff_lzw"}):
        path.write_bytes(encoded(image, "TIFF", tiffinfo={274: orientation}, **options))
        require_turned(path, RGB, orientation)
    path.write_bytes(deep_tiff(WIDE * 257, (274, orientation)))
    require_turned(path, RGB, orientation)
    tags = {274: orientation}
    path.write_bytes(encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF", tiffinfo=tags))
    require_turned(path, GREY[..., None].repeat(3, 2), orientation)
    pixels, stored = decode(path, needed=(2, 2))
    assert (stored, pixels.shape[1:]) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH))


def test_an_orientation_that_exif_does_not_define(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(RGB), "TIFF", tiffinfo={274: 9}))
    require_turned(path, RGB, 1)


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
