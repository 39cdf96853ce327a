"""A run resumes on the data it began with, images and annotations, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from redetr.data import open_dataset
from redetr.data.inventory import (
    ImageHashes,
    Inventory,
    copied_images,
    inventory,
    require_unchanged,
    was_trained_on,
    write_inventories,
)
from redetr.distributed import Dist
from redetr.errors import InputError

ALONE = Dist(0, 1, torch.device("cpu"))


def inventories(root: Path, val_fraction: float = 0.0) -> dict[str, Inventory]:
    of_split = {}
    for split in ("train", "val"):
        of_split[split] = inventory(open_dataset(root, split, val_fraction), ALONE)
    return of_split


@pytest.fixture(scope="module")
def recorded(shared_coco, tmp_path_factory) -> Path:
    """The data.json of a run."""
    file = tmp_path_factory.mktemp("run") / "data.json"
    write_inventories(file, inventories(shared_coco))
    return file


def move_a_box(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"][0] += 1


def delete_a_box(document: dict[str, Any]) -> None:
    document["annotations"].pop()


def rename_a_class(document: dict[str, Any]) -> None:
    document["categories"][0]["name"] = "mug"


def swap_classes(document: dict[str, Any]) -> None:
    first, second, _ = document["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def mark_a_crowd(document: dict[str, Any]) -> None:
    document["annotations"][0]["iscrowd"] = 1


def change_a_label(document: dict[str, Any]) -> None:
    label = document["annotations"][0]["category_id"]
    document["annotations"][0]["category_id"] = 12 if label == 7 else 7


def renumber(document: dict[str, Any]) -> None:
    """The objects, in another order: training sees nothing of that."""
    for annotation in document["annotations"]:
        annotation["id"] += 1000


def changed(
    root: Path, split: str, change: Callable[[dict[str, Any]], None]
) -> dict[str, Inventory]:
    file = root / "annotations" / f"instances_{split}.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return inventories(root)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (move_a_box, "the boxes"),
        (delete_a_box, "the boxes"),
        (mark_a_crowd, "the crowds and areas"),
        (change_a_label, "the labels"),
    ],
)
def test_changed_annotations_are_noticed(tiny_coco, recorded, split, change, said):
    now = changed(tiny_coco, split, change)
    with pytest.raises(InputError, match=rf"data.json: {said}.* of {split} have changed"):
        require_unchanged(recorded, now)


@pytest.mark.parametrize("change", [rename_a_class, swap_classes])
def test_changed_classes_are_noticed(tiny_coco, recorded, change):
    changed(tiny_coco, "val", change)
    now = changed(tiny_coco, "train", change)
    with pytest.raises(InputError, match="the classes of train have changed"):
        require_unchanged(recorded, now)


def remove_an_image(document: dict[str, Any]) -> None:
    image = document["images"].pop()
    rows = document["annotations"]
    document["annotations"] = [row for row in rows if row["image_id"] != image["id"]]


def test_an_image_that_was_added_or_removed_is_named(tiny_coco, recorded, tmp_path):
    whole = inventories(tiny_coco)
    fewer = changed(tiny_coco, "train", remove_an_image)
    with pytest.raises(InputError, match=r"\.jpg has been removed from train since the run began"):
        require_unchanged(recorded, fewer)
    write_inventories(tmp_path / "data.json", fewer)
    with pytest.raises(InputError, match=r"\.jpg has been added to train since the run began"):
        require_unchanged(tmp_path / "data.json", whole)


def test_what_training_does_not_see_may_change(tiny_coco, recorded):
    assert require_unchanged(recorded, changed(tiny_coco, "train", renumber)) == []


def test_a_changed_image_is_named(tiny_coco, recorded):
    shutil.copy(tiny_coco / "train" / "train-0.jpg", tiny_coco / "train" / "train-3.jpg")
    with pytest.raises(InputError, match=r"train-3.jpg of train has changed"):
        require_unchanged(recorded, inventories(tiny_coco))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_on_the_other_side_is_named(tiny_coco, tmp_path, split):
    """As after an update that holds out others: the data need not have changed."""
    (tiny_coco / "annotations" / "instances_val.json").unlink()
    before = inventories(tiny_coco, 0.2)
    write_inventories(tmp_path / "data.json", before)
    now = inventories(tiny_coco, 0.4)
    with pytest.raises(InputError) as error:
        require_unchanged(tmp_path / "data.json", {split: now[split], **now})
    message = str(error.value)
    assert "was in another split when the run began; restore the data; if it is" in message
    assert "an earlier version of redetr held out other images: give another" in message


def test_whether_a_run_was_trained_on_images(tiny_coco, tmp_path):
    (tiny_coco / "annotations" / "instances_val.json").unlink()
    file = tmp_path / "data.json"
    few = open_dataset(tiny_coco, "val", 0.2)
    assert not was_trained_on(file, few)
    write_inventories(file, inventories(tiny_coco, 0.2))
    assert not was_trained_on(file, few)
    assert was_trained_on(file, open_dataset(tiny_coco, "val", 0.4))


def test_the_hashes_of_many_images_are_an_array(tiny_coco, tmp_path, monkeypatch):
    monkeypatch.setattr("redetr.data.inventory._MOST_IN_TEXT", 2)
    file = tmp_path / "data.json"
    now = inventories(tiny_coco)
    write_inventories(file, now)
    assert require_unchanged(file, now) == []
    assert "images" not in json.loads(file.read_text())["train"]
    (tiny_coco / "val" / "val-1.jpg").write_bytes((tiny_coco / "val" / "val-0.jpg").read_bytes())
    with pytest.raises(InputError, match=r"val-1.jpg of val has changed"):
        require_unchanged(file, inventories(tiny_coco))
    hashes = tmp_path / "data-val.npz"
    hashes.write_bytes(hashes.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"data.json: cut short or damaged"):
        require_unchanged(file, now)


def test_copies_in_one_split_and_in_two():
    def hashed(**contents: str) -> Inventory:
        texts = {name: 64 * digit if digit else "" for name, digit in contents.items()}
        return Inventory("", len(texts), (), {}, ImageHashes.from_json(texts))

    train = hashed(a="1", b="2", c="1", d="", e="", f="1")
    val = hashed(a="3", g="2", h="3", i="")
    leaked, twice = copied_images({"train": train, "val": val})
    assert leaked.startswith("warning: g of val is the same image as b of train; remove it")
    assert leaked.endswith("on unseen images")
    assert twice == (
        "warning: c of train is the same image as a; keep one, with all boxes (and 2 more like it)"
    )
    assert copied_images({"val": hashed(a="1", b="", c="")}) == []


def test_what_an_earlier_version_recorded(shared_coco, tmp_path):
    """It did not have hashes of annotations: the run resumes with a note."""
    now = inventories(shared_coco)
    file = tmp_path / "data.json"
    write_inventories(file, now)
    old = json.loads(file.read_text())
    for inventory_of_split in old.values():
        del inventory_of_split["annotations"]
    file.write_text(json.dumps(old))
    notes = require_unchanged(file, now)
    assert [note.rpartition(", so")[2] for note in notes] == [
        " those of train could not be checked for changes",
        " those of val could not be checked for changes",
    ]


def test_a_record_that_is_gone(tmp_path):
    (note,) = require_unchanged(tmp_path / "data.json", {})
    assert "data.json is missing, so the data could not be checked for changes" in note


@pytest.mark.parametrize("content", [b"", b'{"train": {"na', b"[]", b'{"train": 3}', b"\0" * 9])
def test_a_damaged_record(tmp_path, content):
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"cut short or damaged: .*delete it to resume"):
        require_unchanged(file, {})
