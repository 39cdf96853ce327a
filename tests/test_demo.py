"""The demo: what it leaves behind and what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from redetr.commands.demonstration import _MARK, demo, demo_config
from redetr.data import open_dataset
from redetr.data.formats.folder import FolderDataset
from redetr.errors import InputError
from redetr.outlook import outlook
from redetr.pages.curves import read_metrics


@pytest.mark.long
def test_demo_shows_what_it_learned(tmp_path):
    folder, console = tmp_path / "my demo", Console(record=True, width=120)
    demo("crowns", folder, 2, console)
    for name in ("best.pt", "best.safetensors", "last.pt", "config.json", "metrics.jsonl"):
        assert (folder / name).stat().st_size > 0
    for name in ("curves.png", "predictions.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    said = console.export_text()
    # The command can be pasted into a shell.
    assert "AP50" in said and f"redetr predict '{folder}/best.pt' IMAGE" in said
    assert read_metrics(folder)[-1]["step"] == 2


def test_scenes_that_are_drawn_have_no_usual_length(tmp_path):
    """A demo is as long as it should be."""
    config = demo_config("digits", tmp_path, 720)
    val = open_dataset("digits", "val")
    train = open_dataset("digits", "train")
    assert outlook(config, train, val) == []


def test_few_images_of_many_objects_are_no_reason_for_doubt(shared_coco, tmp_path):
    """Tiles of one image with hundreds of nuclei teach as much as hundreds of photographs."""
    config = demo_config("digits", tmp_path, 2_000)
    few = open_dataset(shared_coco, "train")
    assert isinstance(few, FolderDataset)
    source = few.annotations
    copies = np.repeat(np.arange(len(source.boxes)), 100)
    crowd = replace(
        source,
        first=source.first * 100,
        boxes=source.boxes[copies],
        labels=source.labels[copies],
        iscrowd=source.iscrowd[copies],
        area=source.area[copies],
        object_ids=np.arange(len(copies)),
    )
    many = FolderDataset(crowd, "nuclei", few.hints)
    assert outlook(config, many, many) == []
    (poor, chance) = outlook(config, few, few)
    assert (
        "8 images with 9 objects, 2,000 steps, no pretrained weights: little to learn from" in poor
    )
    assert "the val split has only 8 images with 9 objects, so AP" in chance


@pytest.mark.long
def test_demo_on_photographs_from_imagenet_weights(tmp_path):
    """`redetr demo --data crowns --recipe redetr_mobile`"""
    console = Console(record=True, width=120)
    demo("crowns", tmp_path / "demo", 1, console, "redetr_mobile")
    assert "redetr train redetr_mobile --data FOLDER" in console.export_text()
    config = json.loads((tmp_path / "demo/config.json").read_text())
    assert (config["model"], config["weights"], config["steps"]) == ("redetr_mobile", "imagenet", 1)


def test_what_fails_at_once_leaves_the_earlier_demo(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "demo").write_text(_MARK)
    for data, steps in ((str(tmp_path / "nothing"), 2), ("digits", -1)):
        with pytest.raises(InputError):
            demo(data, folder, steps, Console(quiet=True))
        assert (folder / "demo").exists()


def test_an_interrupted_demo_is_replaced(tmp_path, monkeypatch):
    left = []

    def interrupted(config, console, **_):
        left.append({path.name for path in (tmp_path / "demo").iterdir()})
        (tmp_path / "demo" / "last.pt").touch()
        (tmp_path / "demo" / "tensorboard").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("redetr.commands.demonstration.train", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo("digits", tmp_path / "demo", 2, Console(quiet=True))
    assert left == [{"demo"}, {"demo"}]


def test_demo_does_not_delete_what_is_no_demo(tmp_path):
    """Nor a folder that holds demos, or a file that happens to have the name of the mark."""
    (tmp_path / "precious").touch()
    with_folder = tmp_path / "runs"
    (with_folder / "demo").mkdir(parents=True)
    with_file = tmp_path / "program"
    with_file.mkdir()
    (with_file / "demo").touch()
    for folder in (tmp_path, with_folder, with_file):
        with pytest.raises(InputError, match="not an earlier demo"):
            demo("digits", folder, 2, Console(quiet=True))
    assert (tmp_path / "precious").exists()
    assert (with_folder / "demo").is_dir()
    assert (with_file / "demo").is_file()
    with pytest.raises(InputError, match="no such folder"):
        demo(str(tmp_path / "nothing"), tmp_path / "new", 2, Console(quiet=True))
    assert not (tmp_path / "new").exists()
