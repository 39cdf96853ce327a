"""Writes results of benchmarks to dated files, with the machine, the versions and the commit."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from redetr.files import write_json

RESULTS = Path(os.environ.get("REDETR_RESULTS") or Path(__file__).parent / "results")


def record(name: str, content: dict[str, Any]) -> Path:
    """Writes `content` with its circumstances to `results/DATE-NAME.json` and prints the path."""
    path = dated(name)
    write(path, name, content)
    print(json.dumps(content, indent=2))
    print(path)
    return path


def dated(name: str) -> Path:
    """The file for today's result."""
    return RESULTS / f"{datetime.date.today().isoformat()}-{name}.json"


def write(path: Path, name: str, content: dict[str, Any]) -> None:
    """Writes `content` with its circumstances to `path`, which is replaced."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(path, circumstances(name) | content)


def circumstances(name: str) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": name,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    return about


def unfinished(name: str, setting: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The file in which a measurement of several parts continues, and its content.

    It is the last result with the same setting and circumstances, or else a new one of today, which
    replaces another result of the same day.
    """
    wanted = circumstances(name) | {"setting": setting}
    for path in sorted(RESULTS.glob(f"*-{name}.json"), reverse=True):
        content = json.loads(path.read_text())
        if all(content.get(key) == value for key, value in wanted.items()):
            return path, {key: part for key, part in content.items() if key not in wanted}
    return dated(name), {}


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")),
        platform.machine(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def versions() -> dict[str, str]:
    names = ("torch", "torchvision", "numpy", "scipy", "hotcoco", "transformers")
    installed = {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions()
    }
    cuda = {"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        **cuda,
        **{name: installed[name] for name in names if name in installed},
    }


def commit() -> str:
    """The commit of the checkout, with "+" if files differ from it. In a copy without git,
    REDETR_COMMIT states it."""
    if named := os.environ.get("REDETR_COMMIT"):
        return named
    command = ["git", "describe", "--always", "--dirty=+"]
    here = Path(__file__).parent
    try:
        run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return "unknown"
    return run.stdout.strip() or "unknown"
