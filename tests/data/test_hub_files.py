"""Rows of Hugging Face data sets that name files: a stranger's row may name any file of this
machine."""

from pathlib import Path
from typing import Any

import pytest
from test_coco import save_image
from test_hub import BOX, LABEL, fields, image_folder

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.formats.writing import convert
from redetr.errors import InputError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows_with(*files: Path) -> Any:
    """Rows with the paths of images instead of images."""
    images = [{"bytes": None, "path": str(file)} for file in files]
    objects = [{"bbox": [[5, 4, 30, 22]], "category": [1]} for _ in files]
    features = datasets.Features({"image": datasets.Image(), "objects": fields()})
    return datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)


def secret_of(folder: Path) -> Path:
    file = folder / "private" / "secret.png"
    save_image(file)
    return file


@pytest.fixture
def on_hub(monkeypatch):
    """Returns a function that puts rows on the hub as me/cups."""

    def put(rows: Any) -> str:
        loaded = datasets.DatasetDict({"train": rows})
        monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: loaded)
        return "hf:me/cups"

    return put


def test_a_row_on_the_hub_that_names_a_file_is_refused(tmp_path, on_hub):
    inside = tmp_path / "cache" / "downloads" / "a.png"
    save_image(inside)
    source = on_hub(rows_with(inside, secret_of(tmp_path)))
    words = r"row 1 of train: names the file .*secret\.png, outside the data; do not use this data"
    with pytest.raises(InputError, match=words):
        open_dataset(source, "train")
    for follow_links in (False, True):
        with pytest.raises(InputError, match=words):
            convert(source, tmp_path / "new", "coco", follow_links=follow_links)
    assert not (tmp_path / "new").exists()


def test_rows_on_the_hub_may_name_files_in_the_caches(tmp_path, on_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    unpacked = tmp_path / "cache" / "downloads" / "a.png"
    blob = tmp_path / "hub" / "datasets--me--cups" / "blobs" / "0f"
    snapshot = tmp_path / "hub" / "datasets--me--cups" / "snapshots" / "b.png"
    save_image(unpacked)
    save_image(snapshot, seed=1)
    blob.parent.mkdir()
    snapshot.rename(blob)
    snapshot.symlink_to(blob)
    source = on_hub(rows_with(unpacked, snapshot))
    convert(source, tmp_path / "new", "coco")
    assert len(open_dataset(tmp_path / "new", "train")) == 2


def test_a_row_of_a_folder_that_names_a_file_elsewhere_is_not_copied(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    rows_with(secret_of(tmp_path)).to_parquet(folder / "train.parquet")
    source = f"hf:{folder}"
    assert len(open_dataset(source, "train")) == 1  # which writes it nowhere
    words = r"row 0 of train: names the file .*secret\.png, outside the data; .*--follow-links"
    with pytest.raises(InputError, match=words):
        convert(source, tmp_path / "new", "yolo")
    assert not (tmp_path / "new").exists()
    main(["convert", source, str(tmp_path / "new"), "--to", "yolo", "--follow-links"])
    assert "train has 1 image" in capsys.readouterr().out


def test_links_out_of_a_folder_are_not_copied(tmp_path):
    folder = image_folder(tmp_path / "folder")
    image = folder / "train" / "1.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match=r"row 1 of train: names the file .*elsewhere\.png"):
        convert(f"hf:{folder}", tmp_path / "new", "yolo")
    convert(f"hf:{folder}", tmp_path / "new", "yolo", follow_links=True)


def test_masks_that_are_files_elsewhere_are_not_copied(tmp_path):
    objects = [{"bbox": [5, 4, 30, 22], "category": 1, "mask": str(secret_of(tmp_path))}]
    thing = {"bbox": BOX, "category": LABEL, "mask": datasets.Image()}
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(thing)})
    folder = tmp_path / "folder"
    image = folder / "a.png"
    save_image(image)
    rows = datasets.Dataset.from_dict({"image": [str(image)], "objects": [objects]}, features)
    rows.to_parquet(folder / "train.parquet")
    with pytest.raises(InputError, match=r"row 0 of train: names the file .*secret\.png"):
        convert(f"hf:{folder}", tmp_path / "new", "coco")
    convert(f"hf:{folder}", tmp_path / "new", "coco", follow_links=True)


def test_a_folder_may_itself_be_a_link(tmp_path):
    folder = image_folder(tmp_path / "folder")
    link = tmp_path / "link"
    link.symlink_to(folder)
    convert(f"hf:{link}", tmp_path / "new", "yolo")
