"""Large annotations on disk: read once, mapped by every process, read again after any change."""

import json
import multiprocessing
import os
import pickle
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from forked import free_ports
from replacing import replace_in_time
from test_coco import DOCUMENT, write

from redetr.data import open_dataset, store
from redetr.data.formats import folder
from redetr.data.formats.listing import contents_of
from redetr.data.inventory import inventory
from redetr.data.open import open_on_ranks
from redetr.distributed import Dist, process_group
from redetr.doctor import check
from redetr.doctor.check import essential_faults
from redetr.errors import InputError

COLUMNS = ("names", "ids", "sizes", "first", "boxes", "labels", "iscrowd", "area", "object_ids")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data set that counts as large, and a cache of its own."""
    monkeypatch.setattr(store, "WORTH", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    write(root, DOCUMENT)
    write(root, DOCUMENT, "annotations/instances_val.json", "val")
    return root


def forbid(monkeypatch, module, name: str) -> None:
    def called(*_, **__):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(module, name, called)


def assert_same(first, second) -> None:
    for field in fields(first):
        values = getattr(first, field.name), getattr(second, field.name)
        if field.name in COLUMNS:
            np.testing.assert_array_equal(*values)
            assert values[0].dtype == values[1].dtype
        elif field.name != "stored":
            assert values[0] == values[1], field.name


def test_is_read_once_and_then_mapped(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "WORTH", 10**9)
        plain = open_dataset(root, "train")
        assert plain.annotations.stored is None
        assert not store._stores(root, "train", 0.0).exists()
    first = open_dataset(root, "train")
    forbid(monkeypatch, folder, "read_annotations")
    second = open_dataset(root, "train")
    assert isinstance(second.annotations.boxes, np.memmap)
    for dataset in (first, second):
        assert_same(dataset.annotations, plain.annotations)
        assert (dataset.notes, dataset.hints) == (plain.notes, plain.hints)
        assert torch.equal(dataset.target(0)["boxes"], plain.target(0)["boxes"])


def turn_a_box(root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    text = file.read_text()
    replace_in_time(file, text.replace("[10, 20,", "[20, 10,").encode())


CHANGES = {
    "annotations": lambda root: os.utime(root / "annotations" / "instances_train.json", (1, 1)),
    "an image": lambda root: os.utime(root / "train" / "a.png", (1, 1)),
    "annotations in time": turn_a_box,
    "a new file": lambda root: (root / "train" / "new.png").touch(),
    "a file gone": lambda root: (root / "val" / "a.png").unlink(),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_is_read_again_after_a_change(root, kind, monkeypatch):
    before = open_dataset(root, "train").annotations.stored
    CHANGES[kind](root)
    after = open_dataset(root, "train").annotations.stored
    assert before != after
    assert not before.exists()
    assert len(list(after.parent.iterdir())) == 1
    monkeypatch.setattr(store, "_code", lambda: "another version")
    assert open_dataset(root, "train").annotations.stored != after


def test_a_store_that_is_open_is_kept(root):
    """A loader process of a run that goes on may open it by its path, on another host too."""
    dataset = open_dataset(root, "train")
    store_of_the_run = dataset.annotations.stored
    sent = pickle.dumps(dataset.annotations)
    CHANGES["a new file"](root)
    changed = open_dataset(root, "train").annotations.stored
    assert changed != store_of_the_run
    assert_same(pickle.loads(sent), dataset.annotations)
    del dataset
    CHANGES["annotations"](root)
    open_dataset(root, "train")
    assert not store_of_the_run.exists()


def test_a_file_that_cannot_be_opened_keeps_no_store(root):
    """Such as one that another process is just removing: the new store is used all the same."""
    before = open_dataset(root, "train").annotations.stored
    (before / "boxes.npy").unlink()
    (before / "boxes.npy").mkdir()
    CHANGES["a new file"](root)
    after = open_dataset(root, "train").annotations.stored
    assert after is not None and after != before
    assert not before.exists()


def test_a_run_inside_the_data_folder_is_no_data(root):
    before = store.stamp_of(root)
    faults = essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))
    run = root / "train" / "runs" / "mine"
    (run / "pictures").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "predictions.png", "pictures/step-3.png"):
        (run / name).write_text("{}")
    assert store.stamp_of(root) == before
    again = essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))
    assert again == faults
    assert "pictures/step-3.png" not in " ".join(contents_of(root).files)
    (root / "metrics.jsonl").touch()
    (root / "config.json").touch()  # the folder of the data itself is looked into
    assert store.stamp_of(root) != before
    assert len(contents_of(root).files) == 6


@pytest.mark.parametrize("file", ["about.json", "boxes.npy", "first.npy"])
def test_a_damaged_store_is_written_again(root, file):
    first = open_dataset(root, "train").annotations
    path = first.stored / file
    content = path.read_bytes()
    path.unlink()  # `first` keeps what it has mapped
    path.write_bytes(content[:-9])
    again = open_dataset(root, "train").annotations
    assert_same(again, first)
    assert again.stored == first.stored
    assert len(list(again.stored.parent.iterdir())) == 2  # `first` has files of the damaged one


@pytest.mark.parametrize("moment", ["reads", "writes"])
def test_the_store_of_a_quicker_process_is_kept(root, moment, monkeypatch):
    """Two start at the same time, and one has the store open before the other has read or written
    the same."""
    quicker: list[Any] = []

    def inode(annotations) -> int:
        return (annotations.stored / "boxes.npy").stat().st_ino

    def overtaken(function):
        def slow(*arguments):
            result = function(*arguments)
            if not quicker:
                quicker.append(None)  # the quicker one is not overtaken
                annotations = open_dataset(root, "train").annotations
                quicker[:] = [annotations, inode(annotations)]
            return result

        return slow

    module, name = (store, "_write") if moment == "writes" else (folder, "read_annotations")
    monkeypatch.setattr(module, name, overtaken(getattr(module, name)))
    slower = open_dataset(root, "train").annotations
    first, number = quicker
    assert slower.stored == first.stored
    assert inode(slower) == number
    assert len(list(first.stored.parent.iterdir())) == 1
    assert_same(slower, first)


def test_errors_are_not_stored(root):
    document = json.loads(json.dumps(DOCUMENT))
    document["annotations"][0]["category_id"] = 1234
    write(root, document)
    for _ in range(2):
        with pytest.raises(InputError, match="category_id 1234"):
            open_dataset(root, "train")


def test_a_cache_that_cannot_be_written_is_no_failure(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_dataset(root, "train").annotations.stored is None


def test_a_held_out_split_has_a_store_of_its_own(root):
    (root / "annotations" / "instances_val.json").unlink()
    stores = set()
    for split in ("train", "val"):
        annotations = open_dataset(root, split, val_fraction=0.4).annotations
        again = open_dataset(root, split, val_fraction=0.4).annotations
        assert_same(again, annotations)
        stores.add(annotations.stored)
    assert len(stores) == 2


def test_a_process_that_is_not_forked_is_sent_a_path(root):
    annotations = open_dataset(root, "train").annotations
    sent = pickle.dumps(annotations)
    assert annotations.boxes.tobytes() not in sent
    received = pickle.loads(sent)
    assert isinstance(received.boxes, np.memmap)
    assert_same(received, annotations)
    part = annotations.only(np.array([True, False, True]), np.ones(4, bool))
    assert_same(pickle.loads(pickle.dumps(part)), part)


def test_the_check_of_images_and_their_hashes_are_remembered(root, monkeypatch):
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    alone = Dist(0, 1, torch.device("cpu"))
    faults = essential_faults(train, val)
    hashes = inventory(train, alone)
    assert set(hashes.images.to_json()) == {"a.png", "b.png", "c.png"}
    forbid(monkeypatch, check, "read_headers")
    monkeypatch.setattr("redetr.data.inventory.read_headers", None)
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert essential_faults(train, val) == faults
    again = inventory(train, alone)
    assert again.annotations == hashes.annotations
    assert again.images.to_json() == hashes.images.to_json()
    (root / "train" / "d.png").touch()
    with pytest.raises(AssertionError, match="read_headers"):
        essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))


def _rank(rank: int, root: Path, results: Path, port: int) -> None:
    """One of two ranks; the second one may not read."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "WORTH", 5)
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in environment.items():
            patch.setenv(name, str(value))
        if rank > 0:
            forbid(patch, folder, "read_annotations")
            forbid(patch, store, "stamp_of")
            forbid(patch, check, "read_headers")
        with process_group("cpu") as dist:
            train, _, faults = open_on_ranks(str(root), 0.0, dist, essential_faults)
            if rank == 0:
                (root / "annotations" / "instances_val.json").write_text("{")
            dist.barrier()
            message = ""
            try:
                open_on_ranks(str(root), 0.0, dist, essential_faults)
            except InputError as error:
                message = str(error)
        is_mapped = str(train.annotations.stored) in Path("/proc/self/maps").read_text()
        codes = [fault.code for fault in faults]
        torch.save((is_mapped, codes, message), results / f"{rank}.pt")


def test_the_first_rank_of_a_host_reads_for_the_others(root, tmp_path):
    (port,) = free_ports(1)
    multiprocessing.set_forkserver_preload(["redetr.training"])  # imported once
    mp.start_processes(_rank, (root, tmp_path, port), nprocs=2, start_method="forkserver")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert results[0] == results[1]
    is_mapped, codes, message = results[0]
    assert is_mapped
    assert codes
    assert "instances_val.json: not JSON" in message


def test_what_a_killed_process_left_is_removed_a_day_later(root):
    stores = open_dataset(root, "train").annotations.stored.parent
    for name, age_s in ((".unfinished-old", 2 * 86_400), (".unfinished-new", 60)):
        (stores / name).mkdir()
        moment = time.time() - age_s
        os.utime(stores / name, (moment, moment))
    CHANGES["a new file"](root)
    open_dataset(root, "train")
    names = {path.name for path in stores.iterdir()}
    assert ".unfinished-new" in names
    assert ".unfinished-old" not in names
