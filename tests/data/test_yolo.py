"""Reading data sets in YOLO form: layouts of folders, lines of labels, and the message for each
fault."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_coco import HEIGHT, WIDTH, refused, save_image

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.doctor.check import check
from redetr.errors import InputError

CONFIG = {"train": "images/train", "val": "images/val", "names": ["ant", "bee", "tooth"]}
LABELS = {
    "c": "2 0.25 0.5 0.3 0.5\n\n0 0.5 0.5 1 1\n",
    "a": "1 .1 .1 .2 .1 .2 .3\r\n",  # a triangle
}


def write(
    root: Path, config: object = CONFIG, images: str = "images/train", labels: str = "labels/train"
) -> Path:
    """Three images of 100 x 80 px, of which `b` has no label file."""
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        save_image(root / images / name, seed)
    (root / labels).mkdir(parents=True, exist_ok=True)
    for stem, text in LABELS.items():
        (root / labels / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return root


def test_reads_boxes_labels_and_images(tmp_path):
    dataset = open_dataset(write(tmp_path), "train")
    assert (len(dataset), dataset.class_names, dataset.category_ids) == (
        3,
        ("ant", "bee", "tooth"),
        (0, 1, 2),
    )
    assert [dataset.target(i)["image_id"] for i in range(3)] == [0, 1, 2]
    image, target = dataset[2]
    np.testing.assert_allclose(
        target["boxes"], [[10, 20, 40, 60], [0, 0, WIDTH, HEIGHT]], rtol=1e-6
    )
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2, 0], [False, False])
    np.testing.assert_allclose(target["area"], [1200, 8000], rtol=1e-6)
    assert image.shape == (3, HEIGHT, WIDTH)
    assert len(dataset.target(1)["boxes"]) == 0
    np.testing.assert_allclose(dataset.target(0)["boxes"], [[10, 8, 20, 24]], rtol=1e-6)
    (note,) = dataset.notes
    assert note == f"{tmp_path}/labels/train/a.txt: line 1: is an outline; its bounding box is used"


@pytest.mark.parametrize(
    ("config", "images", "labels"),
    [
        ({"train": "images/train"}, "images/train", "labels/train"),
        ({"train": "images"}, "images/train", "labels/train"),
        ({"train": ["images/train"]}, "images/train", "labels/train"),
        ({"train": "train", "path": "images"}, "images/train", "labels/train"),
        (
            {"train": "images/train", "path": "../datasets/elsewhere"},
            "images/train",
            "labels/train",
        ),
        ({"train": "images/train", "path": "/home/someone/mine"}, "images/train", "labels/train"),
        ({"train": "/content/mine/images/train/"}, "images/train", "labels/train"),
        ({"train": "C:\\mine\\images\\train"}, "images/train", "labels/train"),
        ({"train": "../train/images", "val": "../valid/images"}, "train/images", "train/labels"),
        ({"train": "./images/train"}, "images/train", "labels/train"),
        ({"train": "pictures"}, "pictures", "pictures"),
        ({"train": "."}, "images/train", "labels/train"),
        ({"train": "all.txt"}, "images/train", "labels/train"),
        ({"train": ["all.txt"], "path": "."}, "images/train", "labels/train"),
    ],
)
def test_layouts(tmp_path, config, images, labels):
    write(tmp_path, {"names": {0: "ant", 1: "bee", 2: "tooth"}, **config}, images, labels)
    (tmp_path / "all.txt").write_text(
        f"./{images}/b.png\n/elsewhere/{images}/a.png\n\n{images}/c.png\n"
    )
    dataset = open_dataset(tmp_path, "train")
    assert [len(dataset.target(i)["boxes"]) for i in range(len(dataset))] == [1, 0, 2]
    assert dataset.path(2) == tmp_path / images / "c.png"
    assert dataset.image(0).shape == (3, HEIGHT, WIDTH)


def test_several_folders(tmp_path):
    write(tmp_path, CONFIG | {"train": ["images/one", "images/train"]})
    save_image(tmp_path / "images/one/z.png")
    dataset = open_dataset(tmp_path, "train")
    # The images are one/z, train/a, train/b and train/c.
    assert [len(dataset.target(i)["boxes"]) for i in range(4)] == [
        0,
        1,
        0,
        2,
    ]


@pytest.mark.parametrize(
    "train", ["/etc", "..", "../..", "/", "images/../../..", "images/nowhere", "nowhere.txt", "\0"]
)
def test_no_path_leads_out_of_the_folder(tmp_path, train):
    save_image(tmp_path / "secret.png")
    write(tmp_path / "data", CONFIG | {"train": train})
    try:
        names = {
            Path(name.decode()).name for name in read_annotations(tmp_path / "data", "train").names
        }
        assert names == {"a.png", "b.png", "c.png"}
    except InputError as error:
        assert "is not in" in str(error) or "is outside" in str(error)


def test_sizes_and_boxes_are_those_of_the_stored_image(tmp_path):
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to show
    save_image(tmp_path / "images/train/c.png", exif=exif)
    assert open_dataset(tmp_path, "train").target(2)["size"] == (HEIGHT, WIDTH)


def test_small_overshoot_is_clipped(tmp_path):
    write(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text("0 0.5 0.5 1.02 1.02\n")
    assert open_dataset(tmp_path, "train").target(1)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_names_are_texts_whatever_they_look_like(tmp_path):
    write(tmp_path, "train: images/train\nnames: [no, 1, 2024-01-01]\n")
    assert open_dataset(tmp_path, "train").class_names == ("no", "1", "2024-01-01")


@pytest.mark.parametrize("null", ["~", "null", "Null", "NULL", "", "# later"])
def test_null_settings_are_absent(tmp_path, null):
    """As with `yaml.safe_load`, which Ultralytics uses."""
    keys = ("path", "val", "test", "kpt_shape", "nc", "task")
    settings = "".join(f"{key}: {null}\n" for key in keys)
    write(tmp_path, f"{settings}train: images/train\nnames: [ant, bee, tooth]\n")
    assert splits_of(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    assert [len(dataset.target(i)["boxes"]) for i in range(3)] == [1, 0, 2]
    assert not any("path:" in note for note in dataset.notes)


def test_null_is_text_in_quotes_and_among_names(tmp_path):
    write(tmp_path, 'path: "null"\ntrain: images/train\nnames: {0: ~, 1: null, 2: tooth}\n')
    dataset = open_dataset(tmp_path, "train")
    assert dataset.class_names == ("~", "null", "tooth")
    assert any("path: null does not exist" in note for note in dataset.notes)


def test_a_null_setting_still_counts_as_one_that_occurs_twice(tmp_path):
    write(tmp_path, "train: ~\ntrain: images/train\nnames: [ant, bee, tooth]\n")
    refused(tmp_path, "data.yaml: not YAML", "'train' occurs twice")


@pytest.mark.parametrize("folder", ["", "data/"])
def test_empty_lines_of_a_list_are_no_images(tmp_path, folder):
    """Also if all paths begin with a folder that is not there, such as CVAT's `data/`."""
    write(tmp_path, CONFIG | {"train": "all.txt"})
    paths = [f"{folder}images/train/{name}.png" for name in "abc"]
    (tmp_path / "all.txt").write_text("\n".join(["", paths[0], "", "  ", *paths[1:], "", ""]))
    annotations = read_annotations(tmp_path, "train")
    assert [Path(name.decode()).name for name in annotations.names] == ["a.png", "b.png", "c.png"]
    assert {fault.code for fault in annotations.faults} <= {"outline", "path-foreign"}


def test_class_numbers_may_have_gaps(tmp_path):
    write(tmp_path, CONFIG | {"names": {0: "ant", 1: "bee", 2: "cat", 7: "dog"}})
    (tmp_path / "labels/train/b.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    dataset = open_dataset(tmp_path, "train")
    assert (dataset.category_ids, dataset.target(1)["labels"].tolist()) == ((0, 1, 2, 7), [3])


def test_classes_of_one_name_are_told(tmp_path):
    write(tmp_path, CONFIG | {"names": ["ant", "bee", "ant"]})
    assert any(
        "2 classes are called 'ant'" in note for note in open_dataset(tmp_path, "train").notes
    )


def test_no_label_file_at_all_is_told(tmp_path):
    write(tmp_path, labels="labels/trian")
    text = "no image of train has a label file"
    refused(tmp_path, text, "labels/trian/a.txt may be one: move its folder there")
    shutil.rmtree(tmp_path / "labels")
    assert any(text in note for note in open_dataset(tmp_path, "train").notes)


LINES = {
    "pixels": ("1 50 40 10 10", "'1 50 40 10 10' leaves its image b.png of 100x80 px", "fractions"),
    "outside": ("1 0.1 0.5 0.4 0.1", "leaves its image b.png"),
    "empty": ("1 0.5 0.5 0 0.1", "zero or negative size"),
    "negative": ("1 0.5 0.5 0.1 -0.1", "zero or negative size"),
    "unknown class": (
        "3 0.5 0.5 0.1 0.1",
        "does not begin with a class",
        "data.yaml",
        "one of its numbers (0, 1, 2)",
    ),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "does not begin with a class"),
    "half a class": ("0.5 0.5 0.5 0.1 0.1", "does not begin with a class"),
    "short": ("1 0.5 0.5 0.1", "neither a box nor an outline"),
    "with a score": ("1 0.5 0.5 0.1 0.1 0.9", "neither a box nor an outline"),
    "underscore": ("1 0.5 0.5 0.1 0.2_5", "'0.2_5' is not a number"),
    "text": ("bee 0.5 0.5 0.1 0.1", "'bee 0.5", "neither a box nor an outline"),
    "commas": ("1,0.5,0.5,0.1,0.1", "neither a box nor an outline"),
    "NaN": ("1 0.5 nan 0.1 0.1", "neither a box nor an outline"),
    "NaN in an outline": ("1 0.5 0.5 nan 0.1 0.2 0.1", "neither a box nor an outline"),
    "infinite": ("1 0.5 inf 0.1 0.1", "neither a box nor an outline"),
    "huge": ("1 0.5 1e300 0.1 0.1", "neither a box nor an outline"),
}


@pytest.mark.parametrize("line", LINES)
def test_fault_of_a_line_is_named(tmp_path, line):
    text, *fragments = LINES[line]
    write(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text(f"1 0.5 0.5 0.1 0.1\n{text}\n")
    message = refused(tmp_path, "labels/train/b.txt: line 2: ", *fragments)
    assert "more" not in message


CONFIGS = {
    "not YAML": ("names: [ant", "data.yaml: not YAML", "line 1"),
    "not text": (b"\xff\xfe\x00\xd8", "data.yaml: not a text", "save it in UTF-8"),
    "Latin-1": (b"names: [caf\xe9]", "data.yaml: not a text", "save it in UTF-8"),
    "deep": ("[" * 1000, "data.yaml: not YAML"),
    "a list": ("- 1", "holds no settings"),
    "empty": ("", "holds no settings"),
    "no names": ("train: images/train", "names is missing"),
    "names of another kind": (
        "train: images/train\nnames: {0: [1]}",
        "names is missing or not a list of strings",
    ),
    "names without number": (
        "train: images/train\nnames: {ant: ant}",
        "'ant' in names is not a class number",
    ),
    "one name": ("train: images/train\nnames: ant", "names is 'ant', not a list; write the names"),
    "path of another kind": ("train: [{a: b}]\nnames: [ant]", "train is not a path"),
    "no such folder": ("train: images/tarin\nnames: [ant]", "train: 'images/tarin' is not in"),
    "no images": ("train: labels\nnames: [ant]", "train holds no images"),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_fault_of_the_configuration_is_named(tmp_path, config):
    text, *fragments = CONFIGS[config]
    write(tmp_path)
    (tmp_path / "data.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, f"{tmp_path}/data.yaml: ", *fragments)


def test_image_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "images/train/b.png").write_bytes(b"<html>")
    refused(tmp_path, "images/train/b.png: not an image that is read")


def test_image_that_a_list_names_in_vain(tmp_path):
    write(tmp_path, CONFIG | {"train": "all.txt"})
    (tmp_path / "all.txt").write_text("images/train/a.png\nimages/train/lost.png\n")
    refused(tmp_path, "all.txt: line 2: 'images/train/lost.png' is not in")


def test_all_kinds_of_faults_are_collected(tmp_path):
    write(tmp_path)
    lines = ["9 .5 .5 .1 .1", "1 .5 .5 .1 .1", "x", "1 5 5 1 1", "8 .5 .5 .1 .1"]
    (tmp_path / "labels/train/b.txt").write_text("\n".join(lines))
    annotations = read_annotations(tmp_path, "train")
    told = {fault.code: (fault.severity, fault.where, fault.count) for fault in annotations.faults}
    assert told == {
        "class-unknown": ("error", "line 1", 2),
        "line-invalid": ("error", "line 3", 1),
        "box-outside": ("error", "line 4", 1),
        "outline": ("note", "line 1", 1),
    }
    assert np.diff(annotations.first).tolist() == [1, 1, 2]  # what is sound can be looked at
    refused(tmp_path, "; 2 more kinds of faults: redetr check reports them")


def test_missing_split_is_named(tmp_path):
    write(tmp_path, {"train": "images/train", "names": ["ant", "bee", "tooth"]})
    assert splits_of(tmp_path) == ["train"]
    with pytest.raises(
        InputError, match=r"no val split \(looked for val or valid in data\.yaml\).*--val-fraction"
    ):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("name", ["data.yaml", "mine.yml", "DATA.YAML"])
def test_the_yaml_file_stands_for_its_folder(tmp_path, name):
    root = write(tmp_path / "mine", CONFIG | {"names": ["what", "another", "file says"]})
    (root / name).write_text(yaml.safe_dump(CONFIG | {"val": "images/train"}))
    given, expected = (
        open_dataset(root / name, "train"),
        open_dataset(write(tmp_path / "expected"), "train"),
    )
    assert (given.name, given.class_names, len(given)) == ("mine", expected.class_names, 3)
    assert given.notes == (
        f"{root}/labels/train/a.txt: line 1: is an outline; its bounding box is used",
    )
    assert given.target(2)["boxes"].tolist() == expected.target(2)["boxes"].tolist()
    assert given.image(2).equal(expected.image(2))
    assert convert(root / name, tmp_path / "new", "coco")[0] == (
        f"{tmp_path}/new: train has 3 images, 3 objects, val has 3 images, 3 objects"
    )
    with pytest.raises(InputError, match="is inside"):
        convert(root / name, root / "new", "coco")
    assert not [
        fault for fault in check(str(root / name)).faults if fault.code == "split-unreadable"
    ]


def test_a_yaml_file_in_capitals_is_named(tmp_path):
    root = write(tmp_path)
    (root / "data.yaml").rename(root / "data.YAML")
    with pytest.raises(InputError, match=r"no data set found; give .*data\.YAML itself"):
        open_dataset(root, "train")


def test_the_yaml_file_is_named_in_messages(tmp_path):
    file = write(tmp_path) / "other.yaml"
    refused(file, "other.yaml: no such folder", "its data.yaml")
    file.write_text("names: [ant]")
    refused(file, "other.yaml: lists no images; write train and val into it")
    file.write_text("train: ../../outside\nnames: [ant]")
    refused(file, "other.yaml: train: '../../outside' is not in")
    with pytest.raises(
        InputError, match=r"other\.yaml: no val split \(looked for val or valid in other\.yaml\)"
    ):
        open_dataset(file, "val")
    refused(tmp_path / "images/train/a.png", "is a file", "its data.yaml")


def write_elsewhere(root: Path) -> Path:
    """The tiny data set in store/mine, and another one of a single image in project."""
    write(root / "store/mine", CONFIG | {"val": "images/train"})
    save_image(root / "project/images/train/z.png")
    return root / "project/new.yaml"


@pytest.mark.parametrize("path", ["{root}/store/mine", "../store/mine", "project/../store/mine"])
def test_a_path_that_leaves_the_folder_of_the_yaml_is_refused(tmp_path, path, monkeypatch):
    """Another data set beside the file is not taken in its place."""
    monkeypatch.chdir(tmp_path)  # tools write paths relative to the working directory too
    file = write_elsewhere(tmp_path)
    file.write_text(yaml.safe_dump(CONFIG | {"path": path.format(root=tmp_path)}))
    says = f"is outside {tmp_path}/project, the folder of this file; move this file to "
    refused(file, f"{file}: path: ", says + f"{tmp_path}/store/mine, without path")


@pytest.mark.parametrize("train", ["{root}/store/mine/images/train", "../store/mine/images/train"])
def test_a_split_outside_of_the_folder_is_refused(tmp_path, train):
    file = write_elsewhere(tmp_path)
    file.write_text(yaml.safe_dump(CONFIG | {"train": train.format(root=tmp_path)}))
    refused(file, f"{file}: train: ", f"is outside {tmp_path}/project, the folder of this file")


@pytest.mark.parametrize("path", ["mine", "./mine/", "{root}/store/mine", "store/mine"])
def test_a_path_inside_the_folder_of_the_yaml(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_elsewhere(tmp_path)
    file = tmp_path / "store/inner.yaml"
    file.write_text(yaml.safe_dump(CONFIG | {"path": path.format(root=tmp_path)}))
    annotations = read_annotations(file, "train")
    assert len(annotations) == 3
    assert {fault.code for fault in annotations.faults} == {"outline"}


def test_the_folder_itself_may_be_named_and_linked(tmp_path):
    """`path` is the folder of the file, which holds another one of its name."""
    root = write(tmp_path / "real/mine", CONFIG | {"path": f"{tmp_path}/link/mine"})
    save_image(root / "mine/images/train/z.png")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert [len(open_dataset(folder, "train")) for folder in (root, tmp_path / "link/mine")] == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"path": "/home/someone/else"}, ["warning", "path: /home/someone/else does not exist"]),
        ({"path": "datasets/other"}, ["warning", "path: datasets/other does not exist"]),
        ({"path": "/home/someone/data"}, []),  # the name of the folder itself
        ({"train": "D:\\mine\\images\\train"}, ["note", "does not exist"]),
        ({"train": "../images/train"}, []),  # as Roboflow writes
    ],
)
def test_a_path_of_another_machine_is_reported(tmp_path, config, said):
    root = write(tmp_path / "data", CONFIG | config)
    faults = read_annotations(root, "train").faults
    lines = [f"{fault.severity}: {fault}" for fault in faults if fault.code == "path-foreign"]
    assert len(lines) == (1 if said else 0)
    assert all(words in line for line in lines for words in said)


def test_images_of_a_list_that_are_elsewhere(tmp_path):
    """What is where a line says is not replaced by an image of the same name."""
    root = write(tmp_path / "data", CONFIG | {"train": "all.txt"})
    save_image(tmp_path / "other/images/train/a.png")
    inside = f"{root}/images/train/c.png"
    (root / "all.txt").write_text(f"{tmp_path}/other/images/train/a.png\n{inside}\n")
    refused(root, "all.txt: line 1: ", f"is outside {root}")
    (root / "all.txt").write_text(f"{tmp_path}/other/images/train/a.png\n")
    refused(root, "all.txt: line 1: ", f"is outside {root}")
    (root / "all.txt").write_text(f"/nowhere/images/train/a.png\n{inside}\n", encoding="utf-16")
    annotations = read_annotations(root, "train")
    assert annotations.names.tolist() == [b"images/train/a.png", b"images/train/c.png"]
    (fault,) = [fault for fault in annotations.faults if fault.code == "path-foreign"]
    assert (fault.severity, fault.where, fault.count) == ("note", "line 1", 1)


def test_a_val_split_that_was_not_exported_can_be_held_out(tmp_path):
    config = CONFIG | {"train": "../train/images", "val": "../valid/images"}
    write(tmp_path, config, "train/images", "train/labels")
    with pytest.raises(InputError, match=r"delete the line, and hold out .* --val-fraction 0\.1"):
        open_dataset(tmp_path, "val", 0.3)
