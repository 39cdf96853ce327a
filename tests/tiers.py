"""Which cases of a test run by default, and which only with the long tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def cases(names: Iterable[str], by_default: Collection[str]) -> list[Any]:
    """The cases of a parametrized test; those that are not in `by_default` are marked as long."""
    parameters = []
    for name in names:
        marks = () if name in by_default else pytest.mark.long
        parameters.append(pytest.param(name, marks=marks))
    return parameters
