"""Images in tar archives: the same data set as the folder of them, or refused in one line."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from redetr.cli import main
from redetr.data import archives, open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.shard_writing import parse_bytes
from redetr.data.formats.writing import convert
from redetr.data.images import read_image
from redetr.data.inventory import inventory
from redetr.data.loader import Samples, load_batches, watching_workers
from redetr.data.sampler import TrainSampler
from redetr.data.tar_index import index_folder
from redetr.data.transforms import Sample, augmentation
from redetr.data.unclaimed import unclaimed_files
from redetr.data.views import Fit
from redetr.detector.sources import find_sources
from redetr.distributed import Dist
from redetr.errors import InputError
from tests.command_line import train_arguments
from tests.forked import run_ranks
from tests.replacing import replace_in_time

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
LIMIT = 8_000  # bytes: two or three of the small images


def image_bytes(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], **header: Any) -> Path:
    """An archive of these files; `header` are fields of the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (name, content) in enumerate(members.items(), start=1):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in header.items() if number == len(members) else ():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


def scene(*boxes: list[float], **more: Any) -> bytes:
    rows = [{"bbox": box, "category_id": 9} for box in boxes]
    return json.dumps({"annotations": rows, **more}).encode()


def web_dataset(root: Path, **changes: bytes) -> Path:
    """Two archives for train, one for val; `changes` are further files of the first."""
    first = {"b.png": image_bytes(1), "b.json": scene([1, 2, 3, 4]), **changes}
    write_tar(root / "train-000.tar", first)
    write_tar(root / "train-001.tar", {"a.json": scene(), "a.png": image_bytes(2)})
    write_tar(
        root / "val" / "0.tar", {"in/c.png": image_bytes(3), "in/c.json": scene([0, 0, 5, 5])}
    )
    (root / "categories.json").write_text(json.dumps(CATEGORIES))
    return root


def refused(root: Path | str, *fragments: str) -> None:
    with pytest.raises(InputError) as caught:
        open_dataset(root, "train")
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.fixture(scope="module")
def shards(shared_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set, packed."""
    root = tmp_path_factory.mktemp("packed") / "shards"
    convert(shared_coco, root, "coco", shard_bytes=LIMIT)
    return root


def batches(
    root: Path | str, first_step: int = 0, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> list[list[Sample]]:
    """The samples of the steps from `first_step` to 6, of 4 images each, on one rank."""
    samples = Samples(open_dataset(root, "train"), augmentation("strong", Fit(64)), seed=3)
    sampler = TrainSampler(8, 4, 3, first_step, 6, rank, world_size, size_of=samples.size)
    with watching_workers():
        return list(load_batches(samples, sampler, num_workers, False))


def assert_same(some: list[list[Sample]], others: list[list[Sample]]) -> None:
    assert len(some) == len(others) > 0
    for batch, expected in zip(some, others, strict=True):
        for (image, target), (other, meant) in zip(batch, expected, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(target["boxes"], meant["boxes"])
            assert torch.equal(target["labels"], meant["labels"])
            assert target["seed"] == meant["seed"]


def test_batches_are_those_of_the_folder_bit_for_bit(shared_coco, shards):
    """From any step on, on any number of ranks."""
    assert len(list(shards.glob("train-*.tar"))) > 2
    of_folder = batches(shared_coco)
    assert_same(batches(shards), of_folder)
    assert_same(batches(shards, first_step=4), of_folder[4:])
    of_ranks = [batches(shards, rank=rank, world_size=2) for rank in range(2)]
    joined = [first + second for first, second in zip(*of_ranks, strict=True)]
    assert_same(joined, of_folder)
    ids = [target["image_id"] for batch in joined[:2] for _, target in batch]
    assert len(set(ids)) == 8  # an epoch has each image once


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_is_lost_on_the_way_there_and_back(shared_coco, shards, tmp_path, split):
    convert(shards, tmp_path / "back", "coco")
    for number in range(len(open_dataset(shared_coco, split))):
        datasets = [open_dataset(root, split) for root in (shared_coco, shards, tmp_path / "back")]
        original, packed, unpacked = datasets
        assert torch.equal(packed.image(number), original.image(number))
        assert packed.path(number).name == original.path(number).name
        content = original.path(number).read_bytes()
        assert unpacked.path(number).read_bytes() == content
        for dataset in (packed, unpacked):
            assert dataset.image_id(number) == original.image_id(number)
            assert torch.equal(dataset.target(number)["boxes"], original.target(number)["boxes"])


def test_two_ranks_train_as_one_does_from_the_folder(shared_coco, shards, tmp_path):
    flags = {"steps": 2, "eval_every": 2, "precision": "fp64"}
    main([str(word) for word in train_arguments(shared_coco, tmp_path / "folder", **flags)])
    for code, _, errors in run_ranks(2, train_arguments(shards, tmp_path / "shards", **flags)):
        assert code == 0, errors
    states = []
    for name in ("folder", "shards"):
        states.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["model"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-12)


def test_archives_are_equal_byte_for_byte(shared_coco, shards, tmp_path):
    convert(shared_coco, tmp_path / "again", "coco", shard_bytes=LIMIT)
    for archive in sorted(shards.glob("*.tar")):
        content = archive.read_bytes()
        assert (tmp_path / "again" / archive.name).read_bytes() == content
        assert len(content) <= LIMIT + tarfile.RECORDSIZE
    with tarfile.open(shards / "train-00000.tar") as tar:  # as any program reads it
        assert tar.getnames()[0] == "train-0.jpg"


def test_only_coco_names_images_in_archives(shared_coco, tmp_path):
    with pytest.raises(InputError, match="YOLO cannot name images in archives"):
        convert(shared_coco, tmp_path / "new", "yolo", shard_bytes=LIMIT)
    assert not (tmp_path / "new").exists()


def test_sizes():
    assert parse_bytes("1GB") == 10**9
    assert parse_bytes("1.5 mb") == 1_500_000
    assert parse_bytes("700") == 700
    for text in ("", "GB", "-1GB", "0", "1XB", "1 GB 2", "nan"):
        with pytest.raises(InputError, match="is not a size"):
            parse_bytes(text)


def test_each_image_has_its_json(tmp_path):
    root = web_dataset(tmp_path)
    assert splits_of(root) == ["train", "val"]
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert [os.fsdecode(name) for name in train.annotations.names] == [
        "train-000.tar/b.png",
        "train-001.tar/a.png",
    ]
    assert train.class_names == val.class_names == ("cat", "dog")
    assert train.target(0)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert train.target(0)["labels"].tolist() == [1]
    assert train.target(0)["orig_size"] == (24, 32)
    assert len(train.target(1)["boxes"]) == 0
    assert val.path(0) == root / "val" / "0.tar" / "in" / "c.png"
    assert torch.equal(
        val.image(0),
        torch.tensor(np.array(Image.open(io.BytesIO(image_bytes(3))))).permute(2, 0, 1),
    )


def test_classes_may_be_names_and_images_have_ids(tmp_path):
    rows = [{"bbox": [1, 1, 2, 2], "category": "cat", "iscrowd": 1, "area": 3.5}]
    content = json.dumps({"id": 77, "width": 32, "height": 24, "annotations": rows}).encode()
    train = open_dataset(
        web_dataset(tmp_path, **{"x.png": image_bytes(), "x.json": content}), "train"
    )
    assert train.image_id(1) == 77
    target = train.target(1)
    assert (target["labels"].tolist(), target["area"].tolist()) == ([0], [3.5])
    assert target["iscrowd"].tolist() == [True]


def of_class(category: Any) -> dict[str, bytes]:
    """An image with an object that names its category."""
    rows = [{"bbox": [1, 1, 2, 2], "category": category}]
    return {"x.png": image_bytes(), "x.json": json.dumps({"annotations": rows}).encode()}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"x.png": b""}, ("'x.png'", "no x.json is beside it", "if the image shows no object")),
        ({"x.png": b"", "x.cls": b"4"}, ("only x.cls", "no boxes")),
        ({"x.json": b"{}"}, ("'x.json'", "no image of this name")),
        ({"x.png": b"", "x.json": b"{}"}, ("'x.json'", '"annotations" is missing')),
        ({"x.png": b"", "x.json": b"[1"}, ("'x.json'", "not JSON")),
        ({"x.png": b"", "x.json": b"[" * 100_000}, ("'x.json'", "not JSON")),
        ({"b.jpg": b""}, ("'b.jpg' has the same",)),
        ({"x.png": image_bytes(), "x.json": scene([0, 0, 99, 9])}, ("leaves its image",)),
        (of_class("bird"), ("000.tar: 'x.json': no category of", "has the name 'bird'; add it")),
        (of_class(["cat"]), ("'x.json'", "has the name ['cat']")),
        (of_class({"id": 3}), ("'x.json'", "has the name {'id': 3}")),
        (of_class(None), ("'x.json'", "has the name None")),
        ({"x.png": b"no image", "x.json": scene()}, ("train-000.tar/x.png", "size")),
    ],
)
def test_what_is_missing_beside_an_image(tmp_path, changes, fragments):
    refused(web_dataset(tmp_path, **changes), *fragments)


def test_classes_have_to_be_named(tmp_path):
    root = web_dataset(tmp_path)
    (root / "categories.json").write_text('{"a": 1}')
    refused(root, "categories.json", "not a list of categories")
    (root / "categories.json").unlink()
    refused(root, "categories.json: is missing", '[{"id": 1, "name": "cat"}]')


def cut_in_a_file(content: bytes) -> bytes:
    return content[:1000]


def cut_between_files(content: bytes) -> bytes:
    return content.rstrip(b"\0").ljust(len(content.rstrip(b"\0")) + 511 & ~511, b"\0")


def damage_a_header(content: bytes) -> bytes:
    start = content.index(b"b.json")
    return content[:start] + b"#" + content[start + 1 :]


def join(content: bytes) -> bytes:
    return content + content


def compress(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_in_a_file, "unexpected end of data"),
        (cut_between_files, "cut short: it has no end after"),
        (damage_a_header, "damaged at byte"),
        (join, "holds more data after its end"),
        (compress, "compressed"),
        (lambda content: b"", "empty file"),
        (lambda content: b"x" * 5000, "not a complete tar archive"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, damage, text):
    root = web_dataset(tmp_path)
    archive = root / "train-000.tar"
    archive.write_bytes(damage(archive.read_bytes()))
    refused(root, str(archive), text)


@pytest.mark.parametrize(
    ("name", "header", "text"),
    [
        ("../x.png", {}, "leads outside the archive"),
        ("/x.png", {}, "leads outside the archive"),
        ("in/../../x.png", {}, "leads outside the archive"),
        ("b.png", {}, "occurs twice"),
        ("in/../b.png", {}, "occurs twice"),
        ("x.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "is a link"),
        ("x.png", {"type": tarfile.LNKTYPE, "linkname": "b.png", "size": 0}, "is a link"),
        ("x.png", {"type": tarfile.FIFOTYPE, "size": 0}, "is not a plain file"),
    ],
)
def test_members_that_are_no_files_of_the_archive(tmp_path, name, header, text):
    root = web_dataset(tmp_path)
    path = root / "train-000.tar"
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        for field, value in header.items():
            setattr(member, field, value)
        tar.addfile(member)
    refused(root, str(path), Path(name).name, text)


def test_names_of_any_bytes_and_length(tmp_path):
    """Directories and what macOS adds are passed over."""
    long = "folder/" + 130 * "é" + "\udcff.png"
    content = image_bytes(5)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        directory = tarfile.TarInfo("folder")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name in ("._a.png", long):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert archives.open_archive(path).read(long) == content
    assert archives.names_below(path) == {"folder", "._a.png"}
    assert archives.names_below(path / "folder") == {long.removeprefix("folder/")}
    assert find_sources([str(path)]) == [f"{path}/{long}"]


def test_an_archive_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"x": b"first"})
    assert archives.open_archive(path).read("x") == b"first"

    def is_another_process() -> None:
        archives._OPENED.clear()

    is_another_process()
    with monkeypatch.context() as context:
        context.setattr(archives, "read_index", None)  # would fail if it were called
        assert archives.open_archive(path).read("x") == b"first"
    (stored,) = index_folder(str(path)).iterdir()
    write_tar(path, {"y": b"second", "x": b"third"})
    assert archives.open_archive(path).read("x") == b"third"
    (stored_again,) = set(index_folder(str(path)).iterdir()) - {stored}
    is_another_process()
    stored_again.write_bytes(b"damaged")
    assert archives.open_archive(path).read("y") == b"second"


def test_without_a_cache_the_index_is_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write_tar(tmp_path / "a.tar", {"x": b"content"})
    assert archives.open_archive(path).read("x") == b"content"


def test_an_archive_cut_during_a_run(shards, tmp_path):
    """The image is refused, not half of it."""
    path = tmp_path / "train-00000.tar"
    path.write_bytes((shards / path.name).read_bytes())
    archive = archives.open_archive(path)
    name = archive.names()[0]
    with open(path, "r+b") as file:
        file.truncate(archive.span(name)[0] + 10)
    with pytest.raises(OSError, match="cut short: 10 of"):
        archive.read(name)
    with pytest.raises(InputError, match="unexpected end"):
        read_image(path / name)


def test_an_archive_of_the_same_size_and_time_is_indexed_again(tmp_path):
    small, large = image_bytes(1), image_bytes(2) + bytes(600)
    path = write_tar(tmp_path / "a.tar", {"1.png": small, "2.png": large})
    assert archives.open_archive(path).read("2.png") == large
    stamp = archives.stamp_of_file(path / "2.png")
    other = write_tar(tmp_path / "b.tar", {"1.png": large, "2.png": small})
    replace_in_time(path, other.read_bytes())
    assert archives.open_archive(path).read("2.png") == small
    archives._OPENED.clear()  # as in another process
    assert archives.open_archive(path).read("2.png") == small
    assert archives.stamp_of_file(path / "1.png") != stamp
    assert archives.stamp_of_file(path / "1.png")[1] == len(large)


def test_a_folder_may_be_called_as_an_archive(tmp_path):
    image = tmp_path / "a.tar" / "b.png"
    image.parent.mkdir()
    image.write_bytes(image_bytes())
    assert read_image(image).shape == (3, 24, 32)
    assert archives.stamp_of_file(image)[1] == len(image_bytes())
    for missing in (tmp_path / "no.tar" / "b.png", image.parent / "c.png"):
        with pytest.raises(FileNotFoundError):
            archives.open_data_file(missing)


def coco_of(names: list[str]) -> str:
    images = [{"id": i, "file_name": n, "width": 32, "height": 24} for i, n in enumerate(names)]
    return json.dumps({"images": images, "annotations": [], "categories": CATEGORIES})


def test_file_names_of_coco_need_not_name_the_archive(tmp_path):
    file = tmp_path / "annotations" / "instances_train.json"
    file.parent.mkdir()
    file.write_text(coco_of(["b.png", "in/a.png"]))
    write_tar(tmp_path / "x.tar", {"in/a.png": image_bytes(1), "in/more.png": image_bytes(4)})
    write_tar(tmp_path / "y.tar", {"b.png": image_bytes(2)})
    train = open_dataset(tmp_path, "train")
    assert train.annotations.names.tolist() == [b"x.tar/in/a.png", b"y.tar/b.png"]
    (unused,) = unclaimed_files({"train": read_annotations(tmp_path, "train")})
    assert (unused.code, unused.where) == ("image-unused", "x.tar/in/more.png")
    write_tar(tmp_path / "y.tar", {"b.png": image_bytes(2), "in/a.png": image_bytes(2)})
    refused(tmp_path, "in/a.png", "its file is not in")  # it could be either


def test_a_changed_image_is_another_data_set(tmp_path):
    alone = Dist(0, 1, torch.device("cpu"))
    root = web_dataset(tmp_path)
    before = inventory(open_dataset(root, "train"), alone).images
    write_tar(root / "train-001.tar", {"a.json": scene(), "a.png": image_bytes(7)})
    after = inventory(open_dataset(root, "train"), alone).images
    assert before.first_change(after) == "train-001.tar/a.png"


def test_images_in_archives_are_sources_of_predictions(tmp_path):
    path = write_tar(tmp_path / "some" / "a.tar", {"x.png": b"", "x.json": b"", "y.JPG": b""})
    images = [f"{path}/x.png", f"{path}/y.JPG"]
    assert find_sources([str(path)]) == images
    assert find_sources([str(path.parent)]) == images
    assert find_sources([str(path.parent / "*.tar")]) == images
    assert find_sources([images[1]]) == images[1:]
    (path.parent / "photo.jpg").touch()  # then the archive may be a copy of anything
    assert find_sources([str(path.parent)]) == [str(path.parent / "photo.jpg")]
    empty = write_tar(tmp_path / "empty.tar", {"x.txt": b""})
    with pytest.raises(InputError, match=r"empty\.tar: no images in this archive"):
        find_sources([str(empty)])


def test_archives_that_are_not_read_are_reported(tmp_path):
    """At any depth, beside images and beside archives that are read."""
    first = write_tar(tmp_path / "a.tar", {"x.png": b""})
    for name in ("deep/b.tar", "deep/c.tar", ".hidden.tar"):
        write_tar(tmp_path / name, {"y.png": b""})
    (tmp_path / "c.tar.gz").touch()
    faults = []
    assert find_sources([str(tmp_path)], faults) == [f"{first}/x.png"]
    (fault,) = faults
    assert (fault.severity, fault.code, fault.count) == ("warning", "archive-passed-over", 2)
    (tmp_path / "deep/photo.jpg").touch()
    faults = []
    assert find_sources([str(tmp_path)], faults) == [str(tmp_path / "deep/photo.jpg")]
    (fault,) = faults
    assert (fault.where, fault.count) == ("a.tar", 3)
    assert str(fault) == (
        f"{tmp_path}: a.tar: is a tar archive, and is skipped; name it to read its images (and 2 "
        "more like it)"
    )
    faults = []
    assert len(find_sources([str(tmp_path), f"{tmp_path}/**/*.tar"], faults)) == 4


def test_archives_below_a_folder_without_images_are_named(tmp_path):
    write_tar(tmp_path / "deep/b.tar", {"y.png": b""})
    with pytest.raises(InputError, match=r"no images in this folder .*deep/b\.tar"):
        find_sources([str(tmp_path)])


def test_suffixes_may_be_in_capitals(tmp_path):
    root = web_dataset(tmp_path, **{"X.PNG": image_bytes(), "X.JSON": scene()})
    names = open_dataset(root, "train").annotations.names.tolist()
    assert b"train-000.tar/X.PNG" in names


def test_hosts_with_a_copy_each_keep_their_indices(tmp_path, monkeypatch):
    """Copies at one path differ in their times, and hosts may share a home folder."""
    path = write_tar(tmp_path / "a.tar", {"x": b"content"})
    archives.open_archive(path)
    (first,) = index_folder(str(path)).iterdir()
    os.utime(path, (1, 1))
    archives.open_archive(path)
    assert first.exists()
    monkeypatch.setattr("redetr.data.tar_index._MOST_STATES", 2)
    os.utime(first, (1, 1))
    os.utime(path, (2, 2))
    archives.open_archive(path)
    assert not first.exists()
    assert len(list(index_folder(str(path)).iterdir())) == 2


def test_there_may_be_more_archives_than_a_shell_allows_open_files(tmp_path):
    for number in range(120):
        write_tar(tmp_path / f"{number}.tar", {"x": b"content"})
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from redetr.data.archives import open_archive\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.tar')):\n"
        "    assert open_archive(path).read('x') == b'content'\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
