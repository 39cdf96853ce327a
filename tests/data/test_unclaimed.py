"""Files that nothing claims are reported, by `check` and by what `train` does first: images without
annotation, annotations without image, endings, folders and links that are passed over, and files
that are claimed twice."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import train_arguments
from PIL import Image, features
from sound_data import WRITERS, scenes

from redetr.cli import main
from redetr.data import open_dataset, store
from redetr.data.faults import Fault
from redetr.data.formats import listing
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.data.unclaimed import unclaimed_beside
from redetr.detector import sources
from redetr.detector.sources import find_sources
from redetr.doctor.check import check, essential_faults
from redetr.errors import InputError

LINE = "0 0.5 0.5 0.25 0.25\n"
# What macOS puts into archives beside each file.
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(range(160, 250))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {form: write(root / form) for form, write in WRITERS.items()}


@pytest.fixture
def data(sound, tmp_path):
    """A copy of the sound data set in a format."""
    return lambda form: Path(shutil.copytree(sound[form], tmp_path / "data"))


def save(path: Path, number: int = 0, **options) -> None:
    """Another image of 64 x 48 px than those of the data set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.fromarray(scenes("val")[number].pixels[::-1].copy())
    pixels.save(path, **options)


def voc_xml(name: str = "cup", more: str = "") -> str:
    box = "<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax>"
    size = "<size><width>64</width><height>48</height></size>"
    objects = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation>{more}{size}{objects}</annotation>"


def faults_of(root: Path) -> dict[str, Fault]:
    """The faults that `check` reports, by code; `train` reports the same, or is refused."""
    by_code = {fault.code: fault for fault in check(str(root)).faults}
    errors = [fault for fault in by_code.values() if fault.severity == "error"]
    try:
        train, val = open_dataset(root, "train"), open_dataset(root, "val")
        said = [*train.notes, *val.notes, *map(str, essential_faults(train, val))]
    except InputError as error:
        assert errors and str(error) == str(errors[0])
    else:
        assert not errors
        for code, fault in by_code.items():
            if code not in ("image-twice", "image-leak"):  # of which training hashes the images
                assert str(fault) in said
    return by_code


def summary(fault: Fault) -> tuple[str, str, int]:
    return fault.severity, os.path.join(fault.file.name, fault.where), fault.count


def test_images_of_every_format_that_is_read(data):
    root = data("yolo")
    endings = ["jfif", "jpe", "mpo", "gif", "jp2", "JPG", "ppm", "pgm", "apng", "bmp"]
    if features.check("avif"):  # or by a plugin, from Pillow 11.3 on
        endings.append("avif")
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "mpo": "JPEG", "pgm": "PPM", "apng": "PNG"}
    for number, ending in enumerate(endings):
        path = root / f"images/train/odd{number}.{ending}"
        save(path, number % 10, format=kinds.get(ending))
        (root / f"labels/train/odd{number}.txt").write_text(LINE)
    report = check(str(root))
    assert report.figures()["train"]["images"] == 14 + len(endings)
    assert report.figures()["train"]["objects"] == 3 * 14 + len(endings)


def test_an_ending_that_is_not_read_is_reported_with_its_label(data):
    root = data("yolo")
    for name in ("a.heic", "b.HEIC", "c.psd"):
        (root / "images/train" / name).write_bytes(b"\0\0\0\x18ftypheic")
    (root / "labels/train/a.txt").write_text(LINE)
    (root / "images/train/notes.txt").write_text("beautiful")
    faults = faults_of(root)
    assert faults.keys() == {"file-passed-over", "label-unclaimed"}
    assert summary(faults["file-passed-over"]) == ("warning", "data/images/train/a.heic", 3)
    assert "1 .heic, 1 .HEIC, 1 .psd" in faults["file-passed-over"].text
    assert summary(faults["label-unclaimed"]) == ("warning", "a.txt/", 1)
    assert "images/train/a.heic is not read" in faults["label-unclaimed"].text


@pytest.mark.parametrize(
    ("form", "folder", "ending", "count"),
    [("coco", "train", ".xml", 1), ("yolo", "images/train", ".txt", 2)]
    + [("voc", "JPEGImages", ".json", 1)],
)
def test_annotations_of_another_kind_beside_the_images(data, form, folder, ending, count):
    root = data(form)
    first, *others = sorted((root / folder).glob("train-*"))
    for image in [first, *others[: count - 1]]:
        image.with_suffix(ending).write_text("")
    (root / folder / f"notes{ending}").write_text("of no image")
    faults = faults_of(root)
    assert faults.keys() == {"annotation-unread"}
    place = f"data/{folder}/{first.stem}{ending}"
    assert summary(faults["annotation-unread"]) == ("warning", place, count)
    assert len(faults["annotation-unread"].items) == count


@pytest.mark.parametrize("stem", ["a_jpg.rf.x1", "2024.01.05_1"])
def test_labels_beside_images_whose_names_have_dots_are_read(tmp_path, stem):
    """As Roboflow exports them for Darknet."""
    save(tmp_path / f"train/{stem}.png")
    (tmp_path / f"train/{stem}.txt").write_text(LINE)
    (tmp_path / "train/_darknet.labels").write_text("cup\n")
    annotations = read_annotations(tmp_path, "train")
    assert len(annotations.boxes) == 1
    assert unclaimed_beside(annotations) == []


def test_label_files_with_a_suffix_in_capitals_are_not_read(tmp_path):
    """Also if others beside them are."""
    for name in ("a.txt", "b.TXT"):
        save(tmp_path / f"train/{name[0]}.png")
        (tmp_path / f"train/{name}").write_text(LINE)
    (tmp_path / "train/_darknet.labels").write_text("cup\n")
    (fault,) = unclaimed_beside(read_annotations(tmp_path, "train"))
    assert (fault.code, fault.where, fault.count) == ("annotation-unread", "train/b.TXT", 1)


def test_a_file_in_coco_format_that_no_split_reads(data):
    root = data("coco")
    annotations = root / "annotations"
    shutil.copy(annotations / "instances_train.json", annotations / "train2.json")
    (annotations / "licence.json").write_text('{"text": "free"}')
    faults = faults_of(root)
    assert faults.keys() == {"json-unread"}
    assert summary(faults["json-unread"]) == ("note", "annotations/train2.json", 1)


NAMES = {
    "photo.webp.jpg": "photo.txt",  # stem taken up to the first dot
    "1a2b3c4d-street.png": "street.txt",  # a prefix of an upload
    "my picture.png": "my%20picture.txt",
    "lane#3.png": "lane_3.txt",
    "upper.png": "upper.TXT",
    "x.png": "x.png.txt",
}


def test_label_files_whose_names_are_not_those_of_their_images(data):
    root = data("yolo")
    for image, label in NAMES.items():
        save(root / "images/train" / image)
        (root / "labels/train" / label).write_text(LINE)
    fault = faults_of(root)["label-unclaimed"]
    assert summary(fault) == ("error", "lane_3.txt/", 6)
    labels = root / "labels/train"
    assert fault.items == tuple(str(labels / name) for name in sorted(NAMES.values()))
    assert fault.others(4) == "also my%20picture.txt, photo.txt, street.txt, upper.TXT and 1 more"
    assert fault.text.startswith("belongs to no image; does it belong to images/train/lane#3.png")
    assert fault.remedy.startswith("call it lane#3.txt")


def test_label_files_of_no_image_are_a_warning(data):
    root = data("yolo")
    (root / "labels/train/classes.txt").write_text("cup\nplate\n")  # as labelImg writes
    (root / "labels/train/gone_1.txt").write_text(LINE)
    (root / "labels/train/gone_2.txt").write_text(LINE)
    save(root / "images/train/gone_10.png")  # a background, with a name that begins in the same way
    faults = faults_of(root)
    assert summary(faults["label-unclaimed"]) == ("warning", "gone_1.txt/", 2)


def test_a_list_need_not_name_all_images_of_a_folder(data):
    root = data("yolo")
    names = sorted(path.name for path in (root / "images/train").iterdir())
    (root / "train.txt").write_text("".join(f"images/train/{name}\n" for name in names[:12]))
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("train: images/train", "train: train.txt"))
    faults = faults_of(root)
    assert faults.keys() == {"image-unused"}
    assert summary(faults["image-unused"]) == ("warning", "data/images/train/train-12.png", 2)


def test_images_that_share_an_annotation(data, tmp_path):
    root = data("yolo")
    save(root / "images/train/train-00.jpg")
    faults = faults_of(root)
    assert summary(faults["annotation-shared"]) == ("warning", "train-00.txt/", 1)
    assert "train-00.jpg and images/train/train-00.png share this file" in str(faults.values())
    shutil.rmtree(root)
    root = data("voc")
    save(root / "JPEGImages/train-00.png")
    xml = root / "Annotations/train-00.xml"
    assert faults_of(root).keys() == {"image-unused"}  # the XML file names its image
    xml.write_text(xml.read_text().replace("<filename>train-00.jpg</filename>", ""))
    faults = faults_of(root)
    assert summary(faults["annotation-shared"]) == ("warning", "train-00.xml/", 1)
    assert faults.keys() == {"annotation-shared", "image-unused"}


def test_the_image_that_an_xml_file_names(data):
    root = data("voc")
    (root / "JPEGImages/train-00.jpg").rename(root / "JPEGImages/other.jpg")
    xml = root / "Annotations/train-00.xml"
    xml.write_text(xml.read_text().replace("train-00.jpg", "C:\\photos\\other.jpg"))
    assert faults_of(root) == {}
    assert open_dataset(root, "train").path(0).name == "other.jpg"


def test_xml_files_in_folders_and_of_other_programs(tmp_path):
    for split in ("train", "val"):
        for number in range(10):
            below = ("", "day1/", "day2/night/")[number % 3]
            save(tmp_path / f"{split}/{below}{number}.png", number)
            path = tmp_path / f"{split}/{below}{number}.xml"
            path.write_text(voc_xml(more="<folder>x</folder>"))
    (tmp_path / "train/0.png.aux.xml").write_text("<PAMDataset></PAMDataset>")  # as QGIS writes
    report = check(str(tmp_path))
    assert [row["images"] for row in report.figures().values()] == [10, 10]
    assert [row["objects"] for row in report.figures().values()] == [10, 10]
    assert summary(faults_of(tmp_path)["xml-other"]) == ("note", "0.png.aux.xml/", 1)


@pytest.mark.parametrize("form", WRITERS)
def test_files_that_a_mac_puts_into_archives(data, form):
    root = data(form)
    for path in [*root.rglob("*.*")]:
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX/._data").write_bytes(APPLE_DOUBLE)
    faults = faults_of(root)
    assert faults.keys() == {"system-file"}
    assert (faults["system-file"].severity, faults["system-file"].count > 24) == ("note", True)
    assert [row["images"] for row in check(str(root)).figures().values()] == [14, 10]


def test_hidden_folders_and_thumbnails_are_no_data(data):
    root = data("yolo")
    for folder in (".ipynb_checkpoints", "@eaDir/a.jpg", ".thumbnails"):
        save(root / f"images/train/{folder}/train-00-checkpoint.png")
    faults = faults_of(root)
    assert len(open_dataset(root, "train")) == 14
    assert summary(faults["system-file"]) == ("note", "data/images/train/.ipynb_checkpoints", 3)


def test_links_to_folders_are_not_followed(data, tmp_path):
    root = data("yolo")
    save(tmp_path / "elsewhere/a.png")
    (root / "images/train/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    faults = faults_of(root)
    assert summary(faults["link-passed-over"]) == ("warning", "data/images/train/more", 1)
    assert len(open_dataset(root, "train")) == 14


def test_a_split_that_is_a_link_is_sound(data, tmp_path):
    for form in ("coco", "yolo"):
        root = data(form)
        split = root / "train" if form == "coco" else root / "images/train"
        shutil.move(split, tmp_path / form)
        split.symlink_to(tmp_path / form, target_is_directory=True)
        assert faults_of(root) == {}
        shutil.rmtree(root)


@pytest.mark.parametrize("form", WRITERS)
def test_images_that_no_split_names(data, form):
    root = data(form)
    folder = {"coco": "train", "yolo": "images/train", "voc": "JPEGImages"}[form]
    save(root / "extra/a.png", 1)
    save(root / "extra/b.png", 2)
    if form != "yolo":
        save(root / folder / "more.png", 3)
    faults = faults_of(root)
    assert summary(faults["folder-unused"]) == ("note", "data/extra", 1)
    assert faults["folder-unused"].text.startswith("no split has 2 images in this folder")
    if form != "yolo":  # where it is an image without objects
        assert summary(faults["image-unused"]) == ("warning", f"data/{folder}/more.png", 1)


def test_images_of_the_test_split_are_claimed(data):
    root = data("voc")
    lists = root / "ImageSets/Main"
    stems = (lists / "train.txt").read_text().split()
    (lists / "train.txt").write_text("\n".join(stems[:11]))
    (lists / "test.txt").write_text("\n".join(stems[11:]))
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert essential_faults(train, val) == []
    (lists / "test.txt").write_text("\n".join(stems[12:]))
    (fault,) = essential_faults(train, val)
    assert summary(fault) == ("warning", "data/JPEGImages/train-11.jpg", 1)


@pytest.mark.parametrize("same", [True, False])
def test_an_image_that_is_listed_twice(data, same):
    root = data("coco")
    file = root / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["images"] += [row | {"id": 900 + row["id"]} for row in document["images"][:2]]
    copies = [
        row | {"id": 9000 + row["id"], "image_id": 900 + row["image_id"]}
        for row in document["annotations"][: 6 if same else 5]
    ]
    document["annotations"] += copies
    file.write_text(json.dumps(document))
    fault = faults_of(root)["image-listed-twice"]
    assert (fault.severity, fault.count) == ("warning" if same else "error", 2)
    assert "16 entries for 14 files" in fault.text
    assert ("lacks objects" in fault.text) != same


def test_images_that_predict_wrote_are_no_data(data):
    root = data("yolo")
    save(root / "images/train/predictions/a.png")
    lines = [{"image": "a.jpg", "picture": "a.png"}, {"image": "b.jpg"}, ["picture"]]
    record = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "images/train/predictions/predictions.jsonl").write_text(record + '{"image": "c')
    save(root / "images/train/checked/sheet.png")
    (root / "images/train/checked/index.html").touch()
    faults = faults_of(root)
    assert len(open_dataset(root, "train")) == 14
    where = "data/images/train/checked/sheet.png"
    assert summary(faults["output-passed-over"]) == ("note", where, 2)


def test_training_reports_what_check_reports(data, tmp_path, capsys):
    root = data("coco")
    shutil.copy(root / "train/train-03.jpg", root / "val/val-04.jpg")
    shutil.copy(root / "train/train-03.jpg", root / "train/train-05.jpg")
    (root / "train/._train-00.jpg").write_bytes(APPLE_DOUBLE)
    save(root / "extra/a.png")
    main(train_arguments(root, tmp_path / "run", steps=1, eval_every=1))
    said = capsys.readouterr().err
    assert (
        "warning: val-04.jpg of val is the same image as train-03.jpg of train; remove it"
    ) in said
    assert "warning: train-05.jpg of train is the same image as train-03.jpg; keep one" in said
    assert f"note: {root}: extra: no split has 1 image in this folder, such as a.png" in said
    assert f"note: {root}: train/._train-00.jpg: is hidden or a system file" in said
    assert faults_of(root).keys() == {"image-leak", "image-twice", "folder-unused", "system-file"}


def test_what_cvat_calls_the_default_subset(data):
    root = data("coco")
    (root / "annotations/instances_train.json").rename(root / "annotations/instances_default.json")
    (root / "images").mkdir()
    (root / "train").rename(root / "images/default")
    assert len(open_dataset(root, "train")) == 14
    assert len(open_dataset(root, "train", 0.2)) == 14  # there is a val split
    shutil.rmtree(root)
    root = data("voc")
    shutil.rmtree(root / "ImageSets")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/default.txt").write_text("train-01\ntrain-02\ntrain-01\n")
    train = open_dataset(root, "train")
    assert len(train) == 2
    assert "default.txt: line 3: 'train-01' is listed twice, and read once" in str(train.notes)


def test_the_yaml_that_fiftyone_writes(data):
    root = data("yolo")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").unlink()
    (root / "dataset.yaml").write_text(f"path: {root}\n{text}")
    assert faults_of(root) == {}


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_two_data_sets_in_one_folder(data, sound, form):
    """Which one is read is said, and how to read the other one."""
    root = data(form)
    other = "yolo" if form == "coco" else "voc"
    shutil.copytree(sound[other], root, dirs_exist_ok=True)
    fault = faults_of(root)["layout-unused"]
    name = {"coco": "COCO", "yolo": "YOLO"}[form]
    unread = {"coco": "data.yaml", "yolo": "JPEGImages"}[form]
    assert fault.text == f"the folder is read in {name} format, and {unread} is not read"
    if form == "coco":
        assert len(open_dataset(root / "data.yaml", "train")) == 14
        (root / "annotations/instances_train.json").unlink()  # then only YOLO has all splits
        assert open_dataset(root, "train").annotations.source == root / "data.yaml"


def test_a_data_set_one_folder_below_is_named(data):
    root = data("yolo")
    (root.parent / "outer").mkdir()
    root.rename(root.parent / "outer/data")
    with pytest.raises(InputError, match=r"give .*/outer/data, which holds one"):
        open_dataset(root.parent / "outer", "train")


def test_lines_that_are_listed_twice(data):
    root = data("yolo")
    names = sorted(path.name for path in (root / "images/train").iterdir())
    (root / "train.txt").write_text(
        "".join(f"images/train/{name}\n" for name in [*names, names[3]])
    )
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("train: images/train", "train: train.txt"))
    assert summary(faults_of(root)["line-twice"]) == ("note", "train.txt/line 15", 1)


def test_convert_does_not_write_into_a_linked_folder_of_its_source(data, tmp_path):
    root = data("yolo")
    (root / "images").rename(tmp_path / "store")
    (root / "images").symlink_to(tmp_path / "store", target_is_directory=True)
    with pytest.raises(InputError, match=r"is inside .*images/train, which must not change"):
        convert(root, tmp_path / "store/train/new", "coco", follow_links=True)
    assert len(open_dataset(root, "train")) == 14


def test_convert_reports_what_it_does_not_write(data, tmp_path, capsys):
    root = data("yolo")
    Image.new("RGB", (9, 9)).save(root / "images/train/odd.xyz", format="png")
    notes = convert(root, tmp_path / "new", "coco")
    assert any("odd.xyz: has a suffix that is not read" in note for note in notes)


def test_a_single_split_reports_what_lies_beside_its_images(data):
    """As `evaluate` does; the images of other splits in the same folder are claimed by these."""
    root = data("coco")
    val = read_annotations(root, "val")
    assert unclaimed_beside(val) == []
    save(val.folder / "more.png")
    save(val.folder / "train-0.png")
    (fault,) = unclaimed_beside(val)
    assert (fault.code, fault.count) == ("image-unused", 2)
    file = root / "annotations/instances_train.json"
    file.write_text(file.read_text() + "damaged")
    (fault,) = unclaimed_beside(val)
    assert (fault.code, fault.severity) == ("split-unreadable", "warning")


def test_a_folder_with_far_more_other_files_is_not_walked_to_its_end(data, monkeypatch, tmp_path):
    """As `/` or a home folder is: predict refuses it, and check says that it has not seen all."""
    for number in range(40):
        (tmp_path / f"{number:02}.log").touch()
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos/a.png")
    for module in (listing, sources):
        monkeypatch.setattr(module, "MOST_OTHERS", 20)
    with pytest.raises(InputError) as caught:
        find_sources([str(tmp_path)])
    assert "files in it are not images, and 0 images and videos so far; give" in str(caught.value)
    assert find_sources([str(tmp_path / "photos")]) == [str(tmp_path / "photos/a.png")]
    root = data("yolo")
    for number in range(600):
        (root / f"{number}.log").touch()
    assert faults_of(root)["folder-wide"].severity == "warning"


def test_no_folder_without_data_set_is_walked(monkeypatch, tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    walked = []
    monkeypatch.setattr(store, "stamp_of", walked.append)
    with pytest.raises(InputError, match="no data set found"):
        open_dataset(tmp_path, "train")
    assert walked == []


def test_training_reports_what_was_found_in_val(data, tmp_path, capsys):
    root = data("yolo")
    (root / "labels/val/gone_1.txt").write_text(LINE)
    arguments = train_arguments(root, tmp_path / "run", steps=1, eval_every=1)
    main([str(word) for word in arguments])
    assert "gone_1.txt: belongs to no image" in " ".join(capsys.readouterr().err.split())
