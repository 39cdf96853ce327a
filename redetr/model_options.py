"""The options of a model, which a user writes as name=value."""

import json
from collections.abc import Sequence
from typing import Any

from redetr.errors import InputError

# Settings that are options of the model as well.
ALSO_SETTINGS = ("num_queries", "denoising", "masks", "weights")


def parsed_options(options: Sequence[str]) -> dict[str, Any]:
    """The values by name; a later one replaces an earlier one. Raises InputError for an option that
    is malformed, or has a flag instead."""
    values: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"model option {option!r} is not of the form name=value")
        if name == "channels":
            raise InputError(f"model option {option!r}: give --channels {value}")
        values[name] = _value(value)
    return values


def require_agreement(settings: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises InputError if an option contradicts the one of the `settings` that has its name."""
    for name, value in settings.items():
        if name not in options or options[name] == value:
            continue
        flag = "--" + name.replace("_", "-")
        said = flag if value is True else f"{flag} {value}"
        other = options[name] if isinstance(options[name], str) else json.dumps(options[name])
        instead = "" if value is True else f", or give {flag} {other}"
        raise InputError(
            f"{said} and the model option {name}={other} contradict each other",
            remedy=f"leave the option out{instead}",
        )


def _value(text: str) -> Any:
    """JSON, a list as a tuple, or else the text itself."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value
