"""Jinja2 templates, which lie in the rooms of the tools that fill them in."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from redetr.files import write_whole

_PACKAGE = Path(__file__).parents[1]


def render(template: str, **values: Any) -> str:
    """The page that a template gives with these values.

    `template` is its path in the package, such as "explain/loss.html". Text is escaped unless it is
    `Markup`. Raises UndefinedError if the template needs a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


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
