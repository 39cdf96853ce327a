"""Imported first by the GPU benchmarks. Replaces packages that redetr imports but that these
benchmarks never call by mocks, if they are missing.

A GPU machine without a network often has PyTorch, torchvision, numpy, scipy and a copy of this
checkout, and no more.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

PACKAGES = ("hotcoco", "rich", "safetensors", "matplotlib", "yaml", "filelock", "tyro")


class _StandIns(MetaPathFinder, Loader):
    """Asked after all other finders, so it only finds packages that are not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in PACKAGES else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(_StandIns())
