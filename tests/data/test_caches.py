"""Arrays that Ultralytics leaves beside images (`cache=disk`) are no images of their own."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sound_data import WRITERS

from redetr.data import open_dataset
from redetr.data.images import cached_copies
from redetr.detector.sources import find_sources
from redetr.doctor.check import check
from redetr.errors import InputError


def add_caches(root: Path) -> int:
    """Writes what `cache=disk` writes: BGR beside each image. Returns the number of arrays."""
    images = [file for file in root.rglob("*") if file.suffix in (".jpg", ".png")]
    for file in images:
        with Image.open(file) as image:
            np.save(file.with_suffix(".npy"), np.array(image.convert("RGB"))[..., ::-1])
    return len(images)


@pytest.mark.parametrize("form", WRITERS)
def test_they_are_skipped_with_a_note(tmp_path, form):
    root = WRITERS[form](tmp_path / "data")
    before = [open_dataset(root, split) for split in ("train", "val")]
    count = add_caches(root)
    folder = root / "labels" if form == "yolo" else root
    np.save(folder / "val.cache.npy", {"version": "1.0.3"}, allow_pickle=True)
    after = [open_dataset(root, split) for split in ("train", "val")]
    for first, second in zip(before, after, strict=True):
        assert len(first) == len(second)
        assert first.annotations.names.tolist() == second.annotations.names.tolist()
    (note,) = [fault for fault in check(str(root)).faults if fault.severity != "warning"]
    assert (note.severity, note.code, note.count) == ("note", "cache-passed-over", count + 1)
    assert "is a cache of Ultralytics (cache=disk)" in str(note)
    codes = {fault.code for fault in check(str(root)).faults}
    assert not codes & {"annotation-shared", "image-unused", "image-twice"}


def test_a_png_is_read_rather_than_its_array_in_voc(tmp_path):
    """The suffix .npy sorts before .png."""
    root = WRITERS["voc"](tmp_path / "data")
    for file in list(root.rglob("*.jpg")):
        with Image.open(file) as image:
            image.save(file.with_suffix(".png"))
        file.unlink()
    add_caches(root)
    names = open_dataset(root, "train").annotations.names.tolist()
    assert all(name.endswith(b".png") for name in names)


def test_arrays_alone_are_images(tmp_path):
    root = WRITERS["yolo"](tmp_path / "data")
    add_caches(root)
    for file in list(root.rglob("*.png")):
        file.unlink()
    assert len(open_dataset(root, "train")) == 14
    assert "cache-passed-over" not in {fault.code for fault in check(str(root)).faults}
    assert len(find_sources([str(root / "images")])) == 24


def test_predict_skips_them_too(tmp_path):
    root = WRITERS["yolo"](tmp_path / "data") / "images"
    add_caches(root)
    for source in (str(root), f"{root}/**/*"):
        faults = []
        names = find_sources([source], faults)
        assert len(names) == 24
        assert {os.path.splitext(name)[1] for name in names} == {".png"}
        (note,) = faults
        assert (note.code, note.count) == ("cache-passed-over", 24)
    assert len(find_sources([f"{root}/*/*.npy"])) == 24  # asked for
    array = str(next(root.rglob("*.npy")))
    assert find_sources([array]) == [array]
    np.save(tmp_path / "val.cache.npy", np.zeros(3))
    with pytest.raises(InputError, match="matches only caches of Ultralytics"):
        find_sources([f"{tmp_path}/*.npy"])


def test_predict_skips_them_in_archives(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.jpg", "a.npy", "b.npy"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    faults = []
    assert find_sources([str(tmp_path / "a.tar")], faults) == [
        f"{tmp_path}/a.tar/a.jpg",
        f"{tmp_path}/a.tar/b.npy",
    ]
    (note,) = faults
    assert (note.code, note.where) == ("cache-passed-over", "a.npy")


def test_what_counts_as_a_cache():
    names = [
        "a.jpg",
        "a.npy",
        "b.npy",
        "c.JPG",
        "c.NPY",
        "d/a.npy",
        "x.cache.npy",
        "e.txt",
        "e.npy",
    ]
    assert cached_copies(names) == {"a.npy", "c.NPY", "x.cache.npy"}
