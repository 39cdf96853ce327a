"""Answers in JSON, which may hold file names that are not UTF-8."""

from typing import Any

from starlette.responses import JSONResponse


class JSONAnswer(JSONResponse):
    """An answer in JSON. File names need not be UTF-8: other bytes are escaped as in Python."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except UnicodeEncodeError:  # rare: searching all contents for such names would take longer
            return super().render(_escaped(content))


def _escaped(content: Any) -> Any:
    """The same content with texts that UTF-8 can hold."""
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(content, dict):
        return {_escaped(name): _escaped(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_escaped(value) for value in content]
    return content
