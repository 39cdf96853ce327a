"""Renders Jinja2 templates, which are in the folders of the tools that use them."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from redetr.errors import InputError
from redetr.files import require_folder, write_whole

_MARK = '<meta name="generator" content="redetr'
_HEAD_CHARACTERS = 1000  # of a page, which show the program that wrote it
_PACKAGE = Path(__file__).parents[1]


def render(template: str, **values: Any) -> str:
    """The page from a template with these values.

    `template` is a path in the package, such as "explain/loss.html". Text is escaped unless it is
    `Markup`. Raises UndefinedError if a value is missing.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def require_redetr_page(folder: Path, *others: str) -> None:
    """Raises InputError if a page cannot be written to the folder, or if a tool would replace files
    there that redetr did not write: an `index.html` and pages among `others`, which the tool writes
    next to it, or if there is no `index.html`, any of `others`."""
    require_folder(folder)
    page = folder / "index.html"
    remedy = "give another folder"
    if page.exists():
        pages = [folder / name for name in others if name.endswith(".html")]
        for path in (page, *pages):
            if path.exists() and not _is_redetr_page(path):
                raise InputError("is a page that redetr did not write", where=path, remedy=remedy)
        return
    for name in others:
        if (folder / name).exists():
            text = "already exists, without a redetr page next to it"
            raise InputError(text, where=folder / name, remedy=remedy)


def _is_redetr_page(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as content:
        return _MARK in content.read(_HEAD_CHARACTERS)


def write_page(path: Path, html: str) -> None:
    """Writes the page, completely or not at all. File names need not be UTF-8: other bytes are
    escaped as in Python."""
    content = html.encode("utf-8", "backslashreplace")
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def inline(file: str) -> Markup:
    """A script or style file of the package, for templates that include it unescaped."""
    return Markup((_PACKAGE / file).read_text(encoding="utf-8"))


def environment_of(folder: Path) -> Environment:
    """The templates of a folder. Text that is not `Markup` is escaped, and a missing value is an
    error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_ENVIRONMENT = environment_of(_PACKAGE)
_ENVIRONMENT.globals["inline"] = inline
