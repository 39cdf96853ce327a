"""Images inside a page."""

import base64
import io
from collections.abc import Container
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SQUARE = "□"


def data_uri(image: Image.Image) -> str:
    """A data URI with the image as JPEG."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=88)
        code = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{code}"


def figure_text(text: str) -> str:
    """A text for matplotlib as it stands: no formula between dollars, and squares for letters that
    its font lacks, which it would warn of on the terminal."""
    letters = []
    for letter in text:
        letters.append(letter if ord(letter) in _letters() else _SQUARE)
    return "".join(letters).replace("$", r"\$")


@cache
def _letters() -> Container[int]:
    """The letters of matplotlib's own font."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    return FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap()


def figure_image(figure: "Figure") -> Image.Image:
    """A figure of matplotlib as an image."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")
