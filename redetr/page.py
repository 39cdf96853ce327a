"""Pages put together from HTML, for the tools that have no templates yet."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from redetr.files import write_whole
from redetr.pages.images import data_uri
from redetr.pages.templates import inline

__all__ = ["data_uri", "document", "table", "write_page"]


def write_page(
    path: Path, title: str, parts: Iterable[str], script: str = "", style: str = ""
) -> None:
    """Writes the document, whole or not at all."""
    page = document(title, parts, script, style)
    write_whole(path, lambda place: place.write_text(page, encoding="utf-8"))


def document(title: str, parts: Iterable[str], script: str = "", style: str = "") -> str:
    """An HTML document. `parts` are HTML, `title` is text; `script` runs at the end."""
    common_style = inline("pages/page.css")
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{common_style}{style}</style>"
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
