"""Images inside a page."""

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def data_uri(image: Image.Image) -> str:
    """A data URI with the image as JPEG."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=88)
        code = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{code}"


def figure_image(figure: "Figure") -> Image.Image:
    """A figure of matplotlib as an image."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")
