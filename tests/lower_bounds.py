"""Prints the lower bounds of `pyproject.toml` as constraints for pip: `numpy>=1.26` becomes
`numpy==1.26`.

    python tests/lower_bounds.py pyproject.toml

It runs before anything is installed, so it needs nothing but Python.
"""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+) *(\[[^]]*\])? *(?P<versions>[^;]*)")
LOWEST = re.compile(r"(>=|==|~=) *(?P<version>[\w.]+)")


def lower_bounds(pyproject: str) -> list[str]:
    """`name==version` for each package that the dependencies or an extra require. Raises ValueError
    where one has no lower bound, or two that differ.
    """
    project = tomllib.loads(pyproject)["project"]
    requirements = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        requirements += extra
    versions: dict[str, str] = {}
    for requirement in requirements:
        parts = REQUIREMENT.match(requirement)
        name = parts["name"].lower()
        if name == project["name"]:  # an extra that consists of others
            continue
        lowest = LOWEST.search(parts["versions"])
        if lowest is None:
            raise ValueError(f"{requirement}: has no lower bound")
        version = lowest["version"]
        if versions.setdefault(name, version) != version:
            raise ValueError(f"{name}: has two lower bounds, {versions[name]} and {version}")
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


if __name__ == "__main__":
    print("\n".join(lower_bounds(Path(sys.argv[1]).read_text())))
