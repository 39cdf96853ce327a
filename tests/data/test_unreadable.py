"""Damaged images, left out on request: the list, the numbers, and what happens without the flag."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from command_line import train_arguments
from PIL import Image
from sound_data import IMAGES, WRITERS

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.unreadable import read_list
from redetr.errors import InputError


def damaged(root: Path, form: str) -> dict[str, str]:
    """Cuts three training images and one val image short, each in another way; their names by
    split."""
    WRITERS[form](root)
    files = {}
    for path in root.rglob("*"):
        if path.suffix in (".jpg", ".png"):
            files[path.stem] = path
    in_the_middle = files["train-03"]
    content = bytearray(in_the_middle.read_bytes())
    half = len(content) // 2
    content[half : half + 200] = bytes(200)
    if in_the_middle.suffix == ".jpg":  # which has no sums to check
        content = content[:half]
    in_the_middle.write_bytes(content)
    files["train-05"].write_bytes(files["train-05"].read_bytes()[:300])
    files["train-07"].write_bytes(b"")
    files["val-02"].write_text("no image")
    return {
        "train": [files[f"train-{n}"].name for n in ("03", "05", "07")],
        "val": [files["val-02"].name],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("damaged") / "yolo"
    return root, damaged(root, "yolo")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """The folder of a run that left them out."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(command(data[0], folder, "--skip-unreadable"))
    return folder


def command(root: Path, folder: Path, *more: str, **flags) -> list[str]:
    arguments = train_arguments(root, folder, steps=2, eval_every=2, **flags)
    return [*map(str, arguments), *more]


def test_a_run_leaves_them_out_and_keeps_the_list(data, tmp_path, capsys):
    root, names = data
    folder = tmp_path / "run"
    main(command(root, folder, "--skip-unreadable"))
    said = capsys.readouterr().err
    assert "warning: 3 images of train left out, because they cannot be read: train-03" in said
    assert "warning: 1 image of val left out, because they cannot be read: val-02" in said
    assert "no annotation names" not in said
    lists = json.loads((folder / "unreadable.json").read_text())
    assert {split: sorted(of_split) for split, of_split in lists.items()} == names
    assert all(lists["train"].values())
    about = json.loads((folder / "data.json").read_text())
    assert about["train"]["count"] == IMAGES["train"] - 3
    assert about["val"]["count"] == IMAGES["val"] - 1

    # One that was repaired since stays out of the resumed run.
    again = tmp_path / "again"
    shutil.copytree(root, again)
    whole = next(path for path in again.rglob("train-04.*") if path.suffix in (".jpg", ".png"))
    broken = next(path for path in again.rglob(names["train"][0]))
    shutil.copyfile(whole, broken)
    main(["train", str(folder), "--resume", "--data", str(again)])
    assert json.loads((folder / "unreadable.json").read_text()) == lists


def test_evaluate_leaves_them_out(data, run, capsys):
    _, names = data
    capsys.readouterr()
    arguments = ["evaluate", str(run), "--device", "cpu", "--json"]
    main([*arguments, "--skip-unreadable"])
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["images"] == IMAGES["val"] - 1
    assert list(result["unreadable"]) == names["val"]
    assert "1 image of val left out" in said.err
    main(arguments)  # as its run did
    said = capsys.readouterr()
    assert json.loads(said.out)["AP"] == result["AP"]
    assert "1 image of val left out" in said.err
    root, _ = data
    with pytest.raises(SystemExit):
        main([*arguments, "--data", str(root)])
    assert "(train --skip-unreadable leaves it out)" in capsys.readouterr().err


def test_an_export_is_compared_on_the_images_of_its_run(run, tmp_path, capsys):
    main(["export", str(run), "--format", "torch", "--output", str(tmp_path / "a.pt2")])
    assert "1 image of val left out" in capsys.readouterr().err


def test_without_the_flag_the_error_names_it(data, tmp_path, capsys):
    root, _ = data
    with pytest.raises(SystemExit):
        main(command(root, tmp_path / "run"))
    assert "(train --skip-unreadable leaves it out)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_every_format(form, tmp_path):
    root = tmp_path / form
    names = damaged(root, form)
    for split, count in IMAGES.items():
        dataset = open_dataset(root, split, leave_out="unreadable")
        assert len(dataset) == count - len(names[split])
        assert sorted(dataset.annotations.unreadable) == names[split]
        assert all(len(dataset.target(i)["labels"]) == 3 for i in range(len(dataset)))
        again = open_dataset(root, split, leave_out=dataset.annotations.unreadable)
        assert [again.image_id(i) for i in range(len(again))] == [
            dataset.image_id(i) for i in range(len(dataset))
        ]


def with_many_pixels() -> bytes:
    """A PNG whose header states more pixels than are read."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


CAUSES = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "but HEIC"),
    "pixels": (with_many_pixels(), "3600000000 pixels"),
    "empty": (b"", "the file is empty"),
}


def without_size(root: Path, form: str) -> Path:
    """A data set whose annotations state no sizes of images, or cannot. Returns an image."""
    if form == "yolo":
        return WRITERS["yolo"](root) / "images/train/train-00.png"
    if form == "voc":
        WRITERS["voc"](root)
        file = root / "Annotations/train-00.xml"
        start, _, rest = file.read_text().partition("<size>")
        file.write_text(start + rest.partition("</size>")[2])
        return root / "JPEGImages/train-00.jpg"
    if form == "labelme":
        (root / "train").mkdir(parents=True)
        shape = {"label": "cup", "points": [[1, 2], [9, 9]], "shape_type": "rectangle"}
        content = json.dumps({"shapes": [shape], "imagePath": "a.png"})
        (root / "train/a.json").write_text(content)
        return root / "train/a.png"
    if form in ("coco", "via"):
        root.mkdir()
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 7]}
        document: dict = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [row]}
        document["categories"] = [{"id": 1, "name": "cup"}]
        if form == "via":
            shape = {"name": "rect", "x": 1, "y": 2, "width": 8, "height": 7}
            region = {"shape_attributes": shape, "region_attributes": {"label": "cup"}}
            document = {"a": {"filename": "a.png", "regions": [region], "file_attributes": {}}}
        text = json.dumps(document)
        (root / "annotations").mkdir()
        (root / "annotations" / "train.json").write_text(text)
        return root / "a.png"
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True)
    Image.new("L", (9, 9), 1).save(root / "masks/train/a.png")
    return root / "images/train/a.png"


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("form", ["yolo", "voc", "labelme", "label images", "coco", "via"])
def test_the_cause_is_named(tmp_path, form, cause):
    content, words = CAUSES[cause]
    image = without_size(tmp_path / "data", form)
    image.write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path / "data", "train")


@pytest.mark.parametrize("cause", CAUSES)
def test_the_list_names_the_cause(tmp_path, cause):
    content, words = CAUSES[cause]
    without_size(tmp_path, "yolo").write_bytes(content)
    dataset = open_dataset(tmp_path, "train", leave_out="unreadable")
    (reason,) = dataset.annotations.unreadable.values()
    assert words in reason


def test_a_file_that_broke_later_is_an_error_again(tmp_path):
    root = WRITERS["yolo"](tmp_path / "yolo")
    assert not open_dataset(root, "train", leave_out="unreadable").annotations.unreadable
    (root / "images/train/train-00.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-00.png: not an image: the file is empty"):
        open_dataset(root, "train", leave_out={})


def test_nothing_is_left(tmp_path):
    root = WRITERS["coco"](tmp_path / "coco")
    for path in (root / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 14 images can be read, such as train-00"):
        open_dataset(root, "train", leave_out="unreadable")


def test_what_has_no_files_says_so():
    with pytest.raises(InputError, match="hf:mine: --skip-unreadable applies to image files"):
        open_dataset("hf:mine", "train", leave_out="unreadable")


def test_a_damaged_list_is_not_taken_for_an_empty_one(tmp_path):
    file = tmp_path / "unreadable.json"
    for text in ("", "[]", '{"train": 1}'):
        file.write_text(text)
        with pytest.raises(
            InputError, match="lists the images that the run leaves out; restore it"
        ):
            read_list(file)
