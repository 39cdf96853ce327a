"""Names of classes and files in letters that the standard font lacks."""

import warnings
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from PIL import Image

from redetr.pages import fonts
from redetr.pages.drawing import draw_boxes, grid
from redetr.pages.fonts import font_for, letters_of, standard_font
from redetr.pages.images import figure_image, figure_text

UNITS = 1000  # per letter


def write_font(path: Path, letters: str) -> Path:
    """A font whose letters are bars, each of a width of its own."""
    builder = FontBuilder(UNITS)
    names = [f"letter{number}" for number in range(len(letters))]
    builder.setupGlyphOrder([".notdef", *names])
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for number, name in enumerate(names, 1):
        pen = TTGlyphPen(None)
        right = UNITS * number // (len(letters) + 1)
        pen.moveTo((0, 0))
        for corner in ((0, UNITS), (right, UNITS), (right, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupCharacterMap(dict(zip(map(ord, letters), names, strict=True)))
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (UNITS, 0)))
    builder.setupHorizontalHeader(ascent=UNITS, descent=0)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Installs fonts with the given letters, and returns their files."""

    def install(**letters_by_name: str) -> dict[str, Path]:
        files = {}
        for name, letters in letters_by_name.items():
            files[name] = write_font(tmp_path / f"{name}.ttf", letters)
        monkeypatch.setattr(fonts, "_installed_fonts", lambda: list(files.values()))
        return files

    font_for.cache_clear()
    yield install
    font_for.cache_clear()


def test_the_standard_font_writes_all_that_it_can(installed):
    installed(other="abcäß")
    assert font_for("Größe 5 µm, αβγ, бгд") == standard_font()


def test_the_font_with_most_letters_writes_the_rest(installed):
    files = installed(few="汉a", most="汉字ab 9%", none="xyz")
    assert font_for("汉字 9%") == files["most"]
    assert font_for("汉") == files["few"]
    assert font_for("한국") == standard_font()


def test_a_damaged_font_has_no_letters(installed, tmp_path):
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    assert letters_of(damaged) == frozenset()


class Pixels:
    """An opened font whose letters are pixels, as of some emoji, which Pillow refuses."""

    scalable = False

    def __init__(self, file: str):
        pass

    def get_charmap(self) -> dict[int, int]:
        return {ord("犬"): 1}


def test_letters_of_pixels_are_not_used(installed, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.ft2font.FT2Font", Pixels)
    assert letters_of(tmp_path / "pixels.ttf") == frozenset()


def tag(name: str) -> bytes:
    """The pixels of a box with this class name."""
    canvas = Image.new("RGB", (200, 200))
    return draw_boxes(
        canvas, torch.tensor([[20.0, 50, 90, 90]]), [name], None, [(255, 255, 255)]
    ).tobytes()


@pytest.mark.parametrize(
    "picture",
    [tag, lambda name: grid([(Image.new("RGB", (90, 1)), name)], columns=1).tobytes()],
    ids=["tag", "caption"],
)
def test_pictures_have_the_letters_of_installed_fonts(picture, installed):
    installed(other="汉字")
    assert picture("汉") != picture("字")
    font_for.cache_clear()
    installed()
    assert picture("汉") == picture("字")  # the sign for a missing letter


def chart(name: str) -> bytes:
    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    axes.set_title(figure_text(name))
    return figure_image(figure).tobytes()


def test_charts_have_the_letters_of_installed_fonts(installed):
    installed(other="汉字lp")  # older releases of matplotlib measure the height of a line by "lp"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib warns of letters that it lacks
        assert chart("汉") != chart("字")
    font_for.cache_clear()
    installed()
    assert chart("汉") == chart("字")  # a square
