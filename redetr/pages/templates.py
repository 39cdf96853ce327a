"""Jinja2 templates, which lie in the rooms of the tools that fill them in."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from redetr.errors import InputError
from redetr.files import write_whole

_MARK = '<meta name="generator" content="redetr'
_HEAD_CHARACTERS = 1000  # of a page, which say who wrote it
_PACKAGE = Path(__file__).parents[1]


def render(template: str, **values: Any) -> str:
    """The page that a template gives with these values.

    `template` is its path in the package, such as "explain/loss.html". Text is escaped unless it is
    `Markup`. Raises UndefinedError if the template needs a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def require_redetr_page(folder: Path, *others: str) -> None:
    """Raises InputError if a tool would replace an `index.html` in the folder that redetr has not
    written, or where there is no page, files with the names of those that it writes beside it."""
    page = folder / "index.html"
    remedy = "give another folder"
    if page.exists():
        with open(page, encoding="utf-8", errors="replace") as content:
            is_redetr_page = _MARK in content.read(_HEAD_CHARACTERS)
        if not is_redetr_page:
            raise InputError("is a page that redetr did not write", where=page, remedy=remedy)
        return
    for name in others:
        if (folder / name).exists():
            text = "already exists, without a redetr page beside it"
            raise InputError(text, where=folder / name, remedy=remedy)


def write_page(path: Path, html: str) -> None:
    """Writes the page, whole or not at all. Names of files need not be UTF-8: their other bytes are
    shown as Python does."""
    content = html.encode("utf-8", "backslashreplace")
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def inline(file: str) -> Markup:
    """A script or style file of the package, for templates that hold it as it is."""
    return Markup((_PACKAGE / file).read_text(encoding="utf-8"))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_PACKAGE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["inline"] = inline
