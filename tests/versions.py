"""Prints the versions that the tests are about to run with, in one line."""

import platform
from importlib.metadata import version

PACKAGES = ("torch", "torchvision", "numpy", "scipy")

if __name__ == "__main__":
    installed = [f"{package} {version(package)}" for package in PACKAGES]
    print(", ".join([f"Python {platform.python_version()}", *installed]))
