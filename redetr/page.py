"""Pages that need no other file: HTML with its style, pictures and script inside."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from redetr.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #212529 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; padding: .3em 1em .3em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td { overflow-wrap: anywhere } .error { color: #c92a2a } .warning { color: #a15c00 }
img { max-width: 100%; border: 1px solid #ddd }
"""


def write_page(
    path: Path, title: str, parts: Iterable[str], script: str = "", style: str = ""
) -> None:
    """Writes the document, whole or not at all."""
    page = document(title, parts, script, style)
    write_whole(path, lambda place: place.write_text(page, encoding="utf-8"))


def document(title: str, parts: Iterable[str], script: str = "", style: str = "") -> str:
    """An HTML document. `parts` are HTML, `title` is text; `script` runs at the end."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}{style}</style>"
    tail = f"<script>{script}</script>" if script else ""
    return (
        "<!DOCTYPE html>\n<html "
        f"lang='en'><head>{head}</head><body>{''.join(parts)}{tail}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of texts; rows are of the class that their first cell names. Nothing if there
    are no rows."""
    lines = [
        f"<tr class='{escape(str(row[0]))}'>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in rows
    ]
    return (
        f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{''.join(lines)}</table>"
        * any(lines)
    )


def picture(image: Image.Image, text: str) -> str:
    """An `<img>` that holds its picture; `text` says what it shows to those who cannot see it."""
    return f"<img alt='{escape(text)}' src='{data_uri(image)}'>"


def data_uri(image: Image.Image) -> str:
    """The picture as an address, JPEG inside."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def drawn(figure: "Figure") -> Image.Image:
    """A figure of matplotlib as a picture."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")
