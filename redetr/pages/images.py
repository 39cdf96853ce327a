"""Images inside a page."""

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

from redetr.pages.fonts import font_for, letters_of, use_fonts

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
    no font of this system has, which it would warn of on the terminal."""
    available = letters_of(font_for(text))
    letters = []
    for letter in text:
        letters.append(letter if ord(letter) in available else _SQUARE)
    return "".join(letters).replace("$", r"\$")


def figure_image(figure: "Figure") -> Image.Image:
    """A figure of matplotlib as an image."""
    use_fonts(figure)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")
