"""Names of files as other tools and other machines write them: found, with a note, or refused with
what would make this very file work."""

import json
import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sound_data import write_coco, write_voc
from test_tools import BNDBOX, BOX, FRACTIONS, HEIGHT, WIDTH, image, labelme, text
from test_tools import coco as tool_coco

from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.formats.foreign import foreign_ends
from redetr.data.formats.layouts import splits_of
from redetr.doctor.check import check
from redetr.errors import InputError

TRAIN = "annotations/instances_train.json"
VAL = "annotations/instances_val.json"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def coco(tmp_path) -> Path:
    return write_coco(tmp_path / "coco")


def with_prefix(root: Path, prefix: str) -> None:
    file = root / TRAIN
    document = json.loads(file.read_text())
    for row in document["images"]:
        row["file_name"] = prefix + row["file_name"]
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "prefix",
    [
        "..\\..\\label-studio\\media\\upload\\4\\",
        "/content/drive/MyDrive/data/train/",
        "C:\\Users\\me\\data\\",
        "../train/",
        "https://storage.example.com/bucket/train/",
        "s3://bucket/some%20folder/",
        "/data/local-files/?d=mine/train/",
    ],
)
def test_paths_of_another_machine(prefix, coco):
    with_prefix(coco, prefix)
    report = check(str(coco))
    [fault] = report.faults
    assert (fault.severity, fault.code, fault.count) == ("note", "path-foreign", 14)
    assert f"'train-00.jpg' in {coco}/train is used" in fault.text
    assert open_dataset(coco, "train").image(0).shape == (3, 48, 64)


def test_the_longest_end_that_is_there(coco):
    (coco / "train" / "b").mkdir()
    (coco / "train" / "train-03.jpg").rename(coco / "train" / "b" / "train-00.jpg")
    document = json.loads((coco / TRAIN).read_text())
    document["images"][3]["file_name"] = "/content/a/b/train-00.jpg"
    (coco / TRAIN).write_text(json.dumps(document))
    names = open_dataset(coco, "train").annotations.names.tolist()
    assert b"b/train-00.jpg" in names and b"train-00.jpg" in names


@pytest.mark.parametrize("folder", ["extra", "images", "train"])
def test_the_file_that_shares_most_of_the_path(folder, tmp_path):
    """The folder of the split has a file of that name as well."""
    tool_coco()(tmp_path)
    for other in ("extra", "images", "train"):
        image(tmp_path, f"{other}/1.png")
    document = json.loads((tmp_path / TRAIN).read_text())
    document["images"][0]["file_name"] = f"/content/set/{folder}/1.png"
    (tmp_path / TRAIN).write_text(json.dumps(document))
    annotations = open_dataset(tmp_path, "train").annotations
    assert annotations.path(0) == tmp_path / folder / "1.png"


def test_a_file_outside_is_neither_read_nor_replaced(coco, tmp_path):
    """There is a file where the path leads: another of its name need not be the same."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "train-00.jpg").touch()
    document = json.loads((coco / TRAIN).read_text())
    document["images"][0]["file_name"] = str(outside / "train-00.jpg")
    (coco / TRAIN).write_text(json.dumps(document))
    with pytest.raises(
        InputError, match=f"not a path inside the data folder; write the path .*{coco}"
    ):
        open_dataset(coco, "train")


def test_ends_of_paths():
    assert foreign_ends("a/b.jpg") == []
    assert foreign_ends("/a/b.jpg") == ["a/b.jpg", "b.jpg"]
    assert foreign_ends("D:\\a\\b.jpg") == ["a/b.jpg", "b.jpg"]
    assert foreign_ends("../../b.jpg") == ["b.jpg"]
    assert foreign_ends("https://x.org/a%20b.jpg?key=1#top") == ["x.org/a b.jpg", "a b.jpg"]
    assert foreign_ends("..") == []


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),  # macOS takes letters and accents apart
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
    ],
)
def test_other_spellings_of_the_same_name(written, stored, coco):
    (coco / "train/train-03.jpg").rename(coco / "train" / stored)
    document = json.loads((coco / TRAIN).read_text())
    document["images"][3]["file_name"] = written
    (coco / TRAIN).write_text(json.dumps(document))
    [fault] = check(str(coco)).faults
    assert (fault.severity, fault.code) == ("note", "path-foreign")
    assert f"{stored!r} in {coco}/train is used" in fault.text


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("train-03.jpg", "TRAIN-03.JPG"),
        ("train-03.jpg", "train-03.jpeg"),
        ("train-03", "train-03.jpg"),
        (" train-03.jpg ", "train-03.jpg"),
        ("images/upload/train-03.jpg", "train-03.jpg"),
    ],
)
def test_a_similar_name_is_proposed(written, stored, coco):
    (coco / "train/train-03.jpg").rename(coco / "train" / stored)
    document = json.loads((coco / TRAIN).read_text())
    document["images"][3]["file_name"] = written
    (coco / TRAIN).write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"is not in .*; write '{stored}', if that is the file"):
        open_dataset(coco, "train")


def renamed(root: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)


@pytest.mark.parametrize(
    "names",
    [
        {TRAIN: "annotations/instances_Train.json", VAL: "annotations/instances_Validation.json"},
        {TRAIN: "annotations/train.json", VAL: "annotations/val.json"},
        {TRAIN: "annotations/train2017.json", VAL: "annotations/Val2017.json"},
        {TRAIN: "train/labels.json", VAL: "val/labels.json"},
        {TRAIN: "train/labels.json", VAL: "valid/labels.json", "val": "valid/data"},
        {VAL: "annotations/instances_Val.json"},
        {VAL: "annotations/instances_valid.json", "val": "valid"},
        {VAL: "validation/_annotations.coco.json", "val": "validation/images"},
    ],
)
def test_names_of_annotation_files(names, coco):
    renamed(coco, names)
    report = check(str(coco))
    assert report.faults == []
    assert [split["objects"] for split in report.figures().values()] == [42, 30]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_default.json", "images"),
        ("_annotations.coco.json", "images"),
        ("result.json", "images"),
    ],
)
def test_all_of_the_data_in_one_file(file, images, coco):
    (coco / VAL).unlink()
    renamed(coco, {TRAIN: file, "train": images})
    report = check(str(coco), val_fraction=0.5)
    assert report.errors == 0
    assert sum(split["images"] for split in report.figures().values()) == 14


@pytest.mark.parametrize("name", ["annotations/mine.json", "mine.json", "all_train.json"])
def test_files_with_other_names_are_read(name, coco):
    (coco / VAL).unlink()
    renamed(coco, {TRAIN: name})
    assert splits_of(coco) == ["train"]
    assert open_dataset(coco, "train").max_objects() > 0


def test_of_several_files_with_other_names_none_is_taken(coco):
    renamed(coco, {TRAIN: "mine.json", VAL: "other.json"})
    with pytest.raises(InputError, match=r"several files for the train split .mine.json, other"):
        open_dataset(coco, "train")


def test_other_names_are_named_in_the_error(coco, capsys):
    """JSON of something else: whether it is COCO's does not show in its first bytes."""
    (coco / VAL).unlink()
    (coco / TRAIN).write_text("{}")
    renamed(coco, {TRAIN: "annotations/mine.json"})
    with pytest.raises(SystemExit):
        main(["check", str(coco)])
    said = capsys.readouterr().err
    assert (
        "if annotations/mine.json is in COCO format, rename it to annotations/instances_train"
    ) in said


def listed(root: Path, line: str) -> Path:
    """The list of train with every line as `line` says, `{}` being the name without ending."""
    file = root / "ImageSets/Main/train.txt"
    stems = file.read_text().split()
    file.write_text("".join(line.format(stem) + "\n" for stem in stems))
    return root


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ('"{}"', []),
        ("'{}'", []),
        ("{}.jpg", []),
        ("{}.xml", []),
        ("JPEGImages/{}.jpg", []),
        ("{}  1", []),
        ("{} -1", []),
        ("/home/me/VOC/JPEGImages/{}.jpg", ["path-foreign"]),
        ("..\\JPEGImages\\{}.jpg", ["path-foreign"]),
    ],
)
def test_lines_of_a_list_in_pascal_voc(line, codes, tmp_path):
    report = check(str(listed(write_voc(tmp_path / "voc"), line)))
    assert [fault.code for fault in report.faults] == codes
    assert report.figures()["train"]["objects"] == 42


def test_names_with_blanks_in_quotes(tmp_path):
    root = write_voc(tmp_path / "voc")
    for folder in ("JPEGImages", "Annotations"):
        for path in list((root / folder).glob("train*")):
            path.rename(path.with_name(path.name.replace("train-", "my photo ")))
    file = root / "ImageSets/Main/train.txt"
    file.write_text(file.read_text().replace("train-", "my photo "))
    quoted = "".join(f'"{line}"\n' for line in file.read_text().splitlines())
    file.write_text(quoted)
    report = check(str(root))
    assert report.faults == []
    assert report.figures()["train"]["objects"] == 42


def test_a_list_does_not_take_another_image(tmp_path):
    root = listed(write_voc(tmp_path / "voc"), "other/{}")
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(root, "train")


MULLER = {form: unicodedata.normalize(form, "M\u00fcller") for form in ("NFC", "NFD")}


def accents_in_yolo(root: Path) -> None:
    write_yolo_of(root, f"images/{MULLER['NFD']}.jpg", f"labels/{MULLER['NFC']}.txt")
    text(root, "data.yaml", {"train": "train.txt", "names": ["cat"]})
    text(root, "train.txt", f"images/{MULLER['NFC']}.jpg\n")


def accents_in_voc(root: Path) -> None:
    image(root, f"JPEGImages/{MULLER['NFD']}.jpg")
    text(root, f"Annotations/{MULLER['NFC']}.xml", voc_scene(f"{MULLER['NFC']}.jpg"))
    text(root, "ImageSets/Main/train.txt", f"{MULLER['NFD']}\n")


def accents_in_labelme(root: Path) -> None:
    labelme()(root)
    (root / "a.jpg").rename(root / f"{MULLER['NFD']}.jpg")
    (root / "a.json").rename(root / f"{MULLER['NFC']}.json")


def accents_in_label_images(root: Path) -> None:
    image(root, f"images/{MULLER['NFD']}.jpg")
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[16:48, 24:60] = 1
    (root / "masks").mkdir()
    Image.fromarray(numbers).save(root / f"masks/{MULLER['NFC']}.png")


def write_yolo_of(root: Path, image_name: str, label_name: str) -> None:
    image(root, image_name)
    text(root, label_name, f"0 {FRACTIONS}\n")


def capitals_in_yolo(root: Path) -> None:
    write_yolo_of(root, "images/Train/A.JPG", "labels/Train/A.txt")
    text(root, "data.yaml", {"train": "lists/train.txt", "names": ["cat"]})
    text(root, "Lists/Train.txt", "images/train/a.jpg\n")


def capitals_in_coco(root: Path) -> None:
    tool_coco(folder="Train")(root)


def capitals_in_voc(root: Path) -> None:
    image(root, "JPEGimages/a.jpg")
    image(root, "JPEGimages/b.jpg")
    for name in "ab":
        text(root, f"annotations/{name}.xml", voc_scene(f"{name}.jpg"))
    text(root, "imagesets/main/train.txt", "a\n")


def capitals_of_other_folders_in_voc(root: Path) -> None:
    image(root, "Images/a.jpg")
    text(root, "annotations/a.xml", voc_scene("a.jpg"))


def voc_scene(file: str) -> str:
    thing = f"<object><name>cat</name>{BNDBOX}</object>"
    return f"<annotation><filename>{file}</filename>{thing}</annotation>"


OTHER_SPELLINGS = (
    *(accents_in_yolo, accents_in_voc, accents_in_labelme, accents_in_label_images),
    *(capitals_in_yolo, capitals_in_coco, capitals_in_voc, capitals_of_other_folders_in_voc),
)


@pytest.mark.parametrize("write", OTHER_SPELLINGS)
def test_accents_and_capitals_of_other_systems(write, tmp_path):
    """macOS stores letters apart from their accents; Windows takes Train for train."""
    write(tmp_path)
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset) == 1
    np.testing.assert_allclose(dataset.target(0)["boxes"], [BOX], atol=1e-3)


def test_of_two_files_that_differ_in_capitals_none_is_a_guess(tmp_path):
    capitals_in_yolo(tmp_path)
    image(tmp_path, "images/Train/a.JPG")
    with pytest.raises(InputError, match=r"'images/train/a\.jpg' is not in"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("archives", [("train", "val"), ("images", "images")])
def test_folders_in_archives(archives, coco):
    """Both splits have images of the same names, and train has two that val has not."""
    for split, archive in zip(("train", "val"), archives, strict=True):
        file = coco / f"annotations/instances_{split}.json"
        file.write_text(file.read_text().replace(f'"{split}-', '"'))
        for path in (coco / split).iterdir():
            path.rename(path.with_name(path.name.removeprefix(f"{split}-")))
        with tarfile.open(coco / f"{archive}.tar", "a") as tar:
            tar.add(coco / split, split)
        shutil.rmtree(coco / split)
    for split, archive, count in zip(("train", "val"), archives, (14, 10), strict=True):
        dataset = open_dataset(coco, split)
        paths = {str(dataset.path(i).parent.relative_to(coco)) for i in range(len(dataset))}
        assert (len(dataset), paths) == (count, {f"{archive}.tar/{split}"})
        assert f"'{archive}.tar/{split}/00.jpg' in" in " ".join(dataset.notes)


@pytest.mark.parametrize("others", [[], ["train-00.jpg"]])
def test_a_folder_of_images_does_not_hide_an_archive(others, coco):
    """It is empty, or has fewer of the files."""
    with tarfile.open(coco / "train.tar", "w") as tar:
        tar.add(coco / "train", "train")
    (coco / "images").mkdir()
    for name in others:
        shutil.copy(coco / "train" / name, coco / "images")
    shutil.rmtree(coco / "train")
    dataset = open_dataset(coco, "train")
    paths = {str(dataset.path(i).parent.relative_to(coco)) for i in range(len(dataset))}
    assert (len(dataset), paths) == (14, {"train.tar/train"})


def test_a_file_that_is_called_like_an_address_is_that_file(coco):
    (coco / "train/train-00.jpg").rename(coco / "train/?d=1.jpg")
    file = coco / TRAIN
    file.write_text(file.read_text().replace("train-00.jpg", "?d=1.jpg"))
    assert open_dataset(coco, "train").notes == ()


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (
            "Annotations",
            "if Annotations/instances_train.json is in COCO format, rename it to annotat",
        ),
        ("VALID", "rename VALID to valid: names of folders are case-sensitive"),
    ],
)
def test_capitals_that_are_not_read_are_named(folder, words, tmp_path):
    if folder == "Annotations":
        tool_coco(f"{folder}/instances_train.json")(tmp_path)
    else:
        text(tmp_path, f"{folder}/a.xml", voc_scene("a.jpg"))
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path, "train")
