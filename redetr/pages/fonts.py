"""Fonts for the names of classes and files, in whatever script they are written."""

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TEXTS = 1000  # whose fonts are remembered


@cache
def standard_font() -> Path:
    """The file of matplotlib's own font, DejaVu Sans: Latin, Greek and Cyrillic letters."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@cache
def _installed_fonts() -> list[Path]:
    """The fonts of this system, in the order of their paths."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(Path(file) for file in findSystemFonts())


@cache
def letters_of(font: Path) -> frozenset[int]:
    """The code points of the letters that a font has; none if it cannot be drawn at any size, such
    as emoji made of pixels, or cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(str(font))
    except RuntimeError:
        return frozenset()
    return frozenset(opened.get_charmap()) if opened.scalable else frozenset()


@lru_cache(maxsize=_MOST_TEXTS)
def font_for(text: str) -> Path:
    """The file of the standard font, or of the installed font that has most of the letters of
    `text` if the standard one lacks any."""
    wanted = {ord(letter) for letter in text if not letter.isspace()}
    best = standard_font()
    lacking = len(wanted - letters_of(best))
    if not lacking:
        return best
    for font in _installed_fonts():
        lacks = len(wanted - letters_of(font))
        if lacks < lacking:
            best, lacking = font, lacks
    return best


def drawing_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font for `text` in drawings, `size` px high."""
    return _opened(font_for(text), size)


@cache
def _opened(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)


def use_fonts(figure: "Figure") -> None:
    """Gives each text of a figure the font for its letters."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        font = font_for(text.get_text())
        if font != standard_font():
            text.set_fontproperties(FontProperties(fname=font, size=text.get_fontsize()))
