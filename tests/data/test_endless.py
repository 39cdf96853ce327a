"""Pipes and devices in place of files: reported at once, where a reader would wait or never end."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redetr.data.formats.writing import convert
from redetr.detector.detector import load
from redetr.doctor.check import check
from redetr.errors import InputError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs Linux: makes pipes")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A minute for each test."""

    def end(*_):
        pytest.fail("something is waited for")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [pipe, zeros])
@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_annotations_that_never_end(shared_coco, tmp_path, form, put: Callable[[Path], None]):
    root = tmp_path / form
    convert(shared_coco, root, form)
    file = {
        "coco": root / "annotations" / "instances_train.json",
        "yolo": root / "labels" / "train" / "train-0.txt",
        "voc": root / "Annotations" / "train-0.xml",
    }[form]
    put(file)
    try:
        said = [str(fault) for fault in check(str(root)).faults if fault.severity == "error"]
    except InputError as error:
        said = [str(error)]
    (line,) = [line for line in said if file.name in line]
    assert "a pipe or a device, not a file" in line


@pytest.mark.parametrize("put", [pipe, zeros])
def test_images_that_never_end(tiny_coco, put: Callable[[Path], None]):
    put(tiny_coco / "train" / "train-1.jpg")
    faults = list(check(str(tiny_coco), thorough=True).faults)
    (fault,) = [fault for fault in faults if fault.severity == "error"]
    assert fault.code == "image-unreadable"
    assert "train-1.jpg" in str(fault) and "a pipe or a device, not a file" in str(fault)


@pytest.mark.parametrize("name", ["best.pt", "best.pth", "best.safetensors"])
@pytest.mark.parametrize("put", [pipe, zeros])
def test_weights_that_never_end(tmp_path, name, put: Callable[[Path], None]):
    put(tmp_path / name)
    with pytest.raises(InputError) as refused:
        load(tmp_path / name, device="cpu")
    said = str(refused.value)
    assert f"{name}: not a " in said
    assert "a pipe or a device, not a file" in said
