"""The data set doctor: figures, cache, statistics, page. What it finds in damaged data:
tests/data/test_damaged.py."""

import hashlib
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from replacing import replace_in_time
from rich.console import Console
from sound_data import CLASSES, write_coco, write_voc, write_yolo

from redetr.boxes import box_iou
from redetr.cli import main
from redetr.data import Hints, open_dataset
from redetr.data.annotations import Annotations
from redetr.data.contradictions import BoxFormat, to_corners
from redetr.data.faults import Fault, Rows
from redetr.data.header_cache import HeaderCache
from redetr.data.headers import read_header, read_headers
from redetr.doctor.boxes import box_faults, plan_faults
from redetr.doctor.check import check, essential_faults, unopened
from redetr.doctor.classes import class_faults
from redetr.doctor.images import _first_alike
from redetr.doctor.plan import Plan
from redetr.doctor.samples import augmented_samples
from redetr.doctor.sheet import _octaves, _table, _whole_numbers, sample_sheet, write_report
from redetr.doctor.tables import print_report
from redetr.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return write_coco(tmp_path / "sound")


def annotations(
    boxes: list,
    sizes: list,
    labels: list | None = None,
    images: list | None = None,
    box_format: BoxFormat = "xywh",
) -> Annotations:
    """Boxes xyxy, each on the image that `images` tells (by default the first) of these heights and
    widths."""
    count = len(boxes)
    image = np.array(images or [0] * count, int)
    return Annotations(
        Path("train.json"),
        Path("train"),
        np.array([b"%d.jpg" % i for i in range(len(sizes))]),
        np.arange(len(sizes)),
        np.array(sizes),
        (1, 2),
        ("cup", "plate"),
        np.searchsorted(image, np.arange(len(sizes) + 1)),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels or [0] * count),
        np.zeros(count, bool),
        np.ones(count, np.float32),
        np.arange(count),
        box_format=box_format,
    )


def codes(faults: list) -> list[str]:
    return [fault.code for fault in faults]


def test_a_fault_lists_all_that_it_concerns(root, tmp_path, capsys):
    """The table names a few, the page and JSON all, up to a bound."""
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    for annotation in document["annotations"][:7]:
        annotation["bbox"][0] = 5000
    file.write_text(json.dumps(document))
    ids = [1000 + number for number in range(7)]

    assert main_ends(["check", str(root), "--json", "--report", str(tmp_path / "page")]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert (fault["code"], fault["where"], fault["count"]) == ("box-outside", "annotation 1000", 7)
    assert fault["items"] == [f"annotation {id_}" for id_ in ids]
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<br>".join(fault["items"]) in page

    assert main_ends(["check", str(root)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    others = "also annotation 1001, annotation 1002, annotation 1003, annotation 1004 and 2 more"
    assert others in said


def test_the_list_of_a_fault_is_bounded():
    faults: list[Fault] = []
    rows = Rows(5000, faults, lambda i: (Path("a.json"), f"annotation {i}"))
    rows.fault("odd", np.arange(5000) > 0, lambda i: "is odd", "mend it")
    (fault,) = faults
    assert (fault.count, len(fault.items), fault.items[0]) == (4999, 1000, "annotation 1")
    assert fault.others(1) == "also annotation 2 and 4,997 more"
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault


def test_items_in_several_files_name_them():
    faults: list[Fault] = []
    rows = Rows(3, faults, lambda i: (Path(f"labels/{i // 2}.txt"), f"line {i}"))
    rows.fault("odd", np.ones(3, bool), lambda i: "is odd", "mend it")
    items = ("labels/0.txt: line 0", "labels/0.txt: line 1", "labels/1.txt: line 2")
    assert faults[0].items == items
    assert faults[0].others(4) == "also 0.txt: line 1, 1.txt: line 2"


def main_ends(arguments: list[str]) -> int | str | None:
    """The exit code of a command that does not succeed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize(
    ("source", "text"),
    [("nowhere", "no such folder"), ("empty", "the folder is empty"), ("file.txt", "")],
)
def test_data_that_cannot_be_opened_is_a_fault_in_json(
    source, text, root, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file.txt").write_text("no data")
    assert main_ends(["check", source, "--json"]) == 1
    told = capsys.readouterr()
    report = json.loads(told.out)
    (fault,) = report["faults"]
    assert (fault["severity"], fault["code"]) == ("error", "data-unreadable")
    assert text in fault["text"] and fault["text"] in told.err
    assert len(told.err.splitlines()) == 1
    assert report.keys() == check(str(root)).to_dict().keys()
    assert fault.keys() == Fault("note", "a", Path("b"), "", "", "").to_json().keys()
    assert (report["source"], report["errors"], report["splits"]) == (source, 1, {})


def test_a_url_that_cannot_be_opened_keeps_its_slashes():
    url = "https://localhost:1/shards"
    (fault,) = unopened(url, InputError("refused"))["faults"]
    assert fault["file"] == url
    (fault,) = unopened("data", InputError("refused", where=f"{url}/0.tar"))["faults"]
    assert fault["file"] == f"{url}/0.tar"
    assert Fault.from_json(fault).file == f"{url}/0.tar"


def test_what_both_splits_have_in_common_is_reported_once(root):
    (root / "annotations" / "instances_val.json").unlink()
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["categories"][1]["name"] = document["categories"][0]["name"]
    file.write_text(json.dumps(document))
    assert codes(check(str(root), val_fraction=0.5).faults).count("class-twice") == 1


def places(root: Path, code: str, **options: Any) -> list[tuple[str, str, str]]:
    """The file, the place and the first item of each fault of a kind."""
    faults = [fault for fault in check(str(root), **options).faults if fault.code == code]
    places = []
    for fault in faults:
        items = fault.items or ("",)
        places.append((fault.file.name, fault.where, items[0]))
    return places


def test_a_source_of_several_splits_does_not_hide_which_one_it_is(tmp_path):
    root = write_yolo(tmp_path / "yolo")
    for split in ("train", "val"):
        for label in (root / "labels" / split).iterdir():
            label.write_text("")
    found = places(root, "no-objects")
    assert found == [("data.yaml", f"the {split} split", "") for split in ("train", "val")]
    assert check(str(root)).verdict.startswith("2 errors")


def test_images_are_of_a_split(tmp_path):
    root = write_yolo(tmp_path / "yolo")
    for split in ("train", "val"):
        (root / "labels" / split / f"{split}-05.txt").write_text("")
        images = root / "images" / split
        shutil.copy(images / f"{split}-01.png", images / f"{split}-02.png")
    for code, number in (("image-empty", 5), ("image-twice", 2), ("image-crowded", 0)):
        expected = []
        for split in ("train", "val"):
            where = f"image {number} ('{split}-{number:02}.png') of {split}"
            expected.append(("data.yaml", where, where))
        assert places(root, code, num_queries=2) == expected


def test_objects_in_files_of_their_own_need_no_split(tmp_path):
    """A number of all objects does, whatever file it is reported for."""
    root = write_voc(tmp_path / "voc")
    for split in ("train", "val"):
        file = root / "Annotations" / f"{split}-05.xml"
        text = file.read_text()
        start, end = text.index("<object>"), text.index("</object>") + len("</object>")
        twice = text[start:end].replace("</object>", "<difficult>0</difficult></object>")
        last = text[start:end].replace("cup", "plate")
        last = last.replace("</object>", "<difficult>1</difficult></object>")
        file.write_text(text.replace("</annotation>", f"{twice}{last}</annotation>"))
    of_boxes = [
        (f"{split}-05.xml", "object 4 ('cup')", "object 4 ('cup')") for split in ("train", "val")
    ]
    assert places(root, "box-twice") == of_boxes
    of_objects = [
        (f"{split}-05.xml", f"object 5 ('plate') of {split}", "") for split in ("train", "val")
    ]
    assert places(root, "object-ignored") == of_objects


def test_sides_of_a_file_that_is_divided_are_named(root):
    (root / "annotations" / "instances_val.json").unlink()
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    for number, annotation in enumerate(document["annotations"].copy()):
        document["annotations"].append({**annotation, "id": number})
    file.write_text(json.dumps(document))
    found = places(root, "box-twice", val_fraction=0.5)
    assert [where.rpartition(" of ")[2] for _, where, _ in found] == ["train", "val"]


def test_what_readers_find_in_test_as_well_is_an_error_once(tmp_path):
    root = write_yolo(tmp_path / "yolo")
    for kind in ("images", "labels"):
        shutil.copytree(root / kind / "val", root / kind / "test")
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text().replace("plate", '"\\x01"') + "test: images/test\n")
    faults = [fault for fault in check(str(root)).faults if fault.code == "name-invalid"]
    assert [fault.severity for fault in faults] == ["error"]


def test_a_val_split_that_is_held_out(tmp_path, capsys):
    root = write_coco(tmp_path / "single")
    (root / "annotations" / "instances_val.json").unlink()
    report = check(str(root))
    assert "split-unreadable" in codes(report.faults)
    report = check(str(root), val_fraction=0.5)
    assert not report.errors
    assert set(report.splits) == {"train", "val"}
    assert sum(map(len, report.splits.values())) == len(open_dataset(root, "train"))
    assert (
        report.verdict
        == f"ready to train: redetr train redetr_n --data {root} --val-fraction 0.5 --output "
        "runs/mine"
    )
    main(["check", str(root), "--val-fraction", "0.5"])
    assert report.verdict in capsys.readouterr().out


def test_the_command_to_paste_quotes_the_path(tmp_path):
    root = write_coco(tmp_path / "a $b")
    assert (
        check(str(root)).verdict
        == f"ready to train: redetr train redetr_n --data '{root}' --output runs/mine"
    )


def test_the_command_to_paste_trains_as_planned(tmp_path):
    root = write_coco(tmp_path / "data")
    report = check(str(root), "dfine_n_finetune", num_queries=50, image_size=(64, 96))
    flags = "--num-queries 50 --image-size 64x96"
    assert report.verdict.endswith(f"--data {root} {flags} --output runs/mine")


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("redetr_n_finetune", "--weights RUN"),
        ("detr_r50_panoptic", "--weights RUN"),
        ("detr_r50_panoptic_finetune", ""),
        ("detr_r50", ""),
    ],
)
def test_the_command_to_paste_names_the_weights_that_a_recipe_demands(recipe, flags):
    words = ["redetr train", recipe, "--data digits", flags, "--output runs/mine"]
    command = " ".join(word for word in words if word)
    assert check("digits", recipe).verdict == f"ready to train: {command}"


def test_the_command_to_paste_asks_for_masks_once():
    assert "--data digits --masks --output" in check("digits", masks=True).verdict
    assert "--masks" not in check("digits", "detr_r50_panoptic_finetune", masks=True).verdict


@pytest.mark.parametrize("recipe", ["detr_r50_panoptic", "detr_r50_panoptic_finetune"])
def test_masks_are_needed_for_a_recipe_that_trains_them(root, recipe):
    report = check(str(root), recipe)
    faults = [(fault.severity, fault.code) for fault in report.faults]
    assert faults == 2 * [("error", "mask-missing")]
    assert report.verdict.startswith("2 errors")


def test_masks_for_a_model_of_boxes_are_refused_as_in_training():
    with pytest.raises(InputError, match="detr_r50 predicts only boxes"):
        check("digits", "detr_r50", masks=True)


@pytest.mark.parametrize("source", ["digits", "crowns"])
def test_embedded_data_is_sound(source, capsys):
    report = check(source)
    noted = {"digits": ["drawn"], "crowns": ["object-ignored"] * 2}
    assert codes(report.faults) == noted[source]
    essential = essential_faults(open_dataset(source, "train"), open_dataset(source, "val"))
    assert {fault.severity for fault in essential} <= {"note"}
    assert (
        report.verdict
        == f"ready to train: redetr train redetr_n --data {source} --output runs/mine"
    )


def test_figures(root):
    figures = check(str(root)).figures()
    assert figures["val"] == {
        "images": 10, "empty": 0, "objects": 30, "ignored": 0, "most per image": 3, "classes": 3, "sizes": "64x48"
    }  # fmt: skip
    assert check(str(root)).classes() == {
        name: {"train": 14, "val": 10} for name in CLASSES.values()
    }


def test_crowds_are_no_objects(root):
    file = root / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(document))
    report = check(str(root))
    assert report.figures()["val"]["objects"] == 29
    assert report.figures()["val"]["ignored"] == 1
    assert report.classes()["cup"]["val"] == 9
    [fault] = report.faults
    assert (fault.severity, fault.code) == ("note", "object-ignored")
    assert fault.text.startswith("1 of 30 objects (3%) are marked as crowds")


def test_a_path_with_a_colon_and_a_semicolon(tmp_path):
    """The parts of a fault are those of the error, however the folder is called."""
    root = write_coco(tmp_path / "a: b; c")
    val = root / "annotations" / "instances_val.json"
    val.write_text("{}")
    (root / "train" / "train-03.jpg").write_bytes(b"no image")
    unreadable, image = check(str(root)).faults
    assert (unreadable.code, unreadable.file) == ("split-unreadable", val)
    assert unreadable.text.startswith('"images" is missing')
    assert unreadable.remedy.startswith("export in COCO")
    assert image.code == "image-unreadable"
    assert image.text.startswith("not an image (") and image.text.endswith(")")
    assert read_header(root / "train" / "lost.jpg").problem == "the image file is missing"


def test_printed_tables_name_everything(root):
    (root / "train" / "train-03.jpg").write_bytes(b"")
    shutil.copy(root / "train" / "train-01.jpg", root / "train" / "train-02.jpg")
    console = Console(width=1000, record=True, file=io.StringIO())
    print_report(check(str(root)), console)
    text = console.export_text()
    for words in (
        "image-unreadable",
        "image 103 ('train-03.jpg')",
        "not an image",
        "replace the file",
        "image-twice",
        "spoon",
        "64x48",
        "1 error would spoil training. Fix it and run again.",
    ):
        assert words in text
    assert text.index("image-unreadable") < text.index("image-twice")


def test_command_line(root, capsys):
    main(["check", str(root)])
    assert f"redetr train redetr_n --data {root}" in capsys.readouterr().out.replace("\n", "")
    main(["check", str(root), "--num-queries", "2", "--recipe", "detr_tiny"])
    assert "the model has only 2 queries" in re.sub(r"\s+", " ", capsys.readouterr().out)
    for wrong, says in (
        (["--recipe", "yolo"], "unknown recipe 'yolo'"),
        (["--augment"], "--report"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["check", str(root), *wrong])
        assert end.value.code == 1 and says in capsys.readouterr().err


def test_an_unknown_recipe_is_no_fault_of_the_data(root, capsys):
    assert main_ends(["check", str(root), "--recipe", "yolo", "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "unknown recipe 'yolo'" in told.err


def test_the_rarer_classes_of_many_are_counted(root):
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}.json"
        document = json.loads(file.read_text())
        more = [{"id": 100 + number, "name": f"class {number}"} for number in range(39)]
        document["categories"] += more
        file.write_text(json.dumps(document))
    console = Console(width=1000, record=True, file=io.StringIO())
    print_report(check(str(root)), console)
    text = console.export_text()
    assert "and 12 rarer classes" in text
    (head,) = [line for line in text.splitlines() if "what is wrong, and what to do" in line]
    assert head.split()[-1] == "count"


def test_numbers_on_the_page_have_separators():
    table = _table("split", {"train": {"images": 12000, "sizes": "64x48"}})
    assert table["rows"] == [["train", "12,000", "64x48"]]


def test_essential_faults_returns_warnings_and_raises_the_first_error(root):
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"].append({**document["annotations"][0], "id": 1})
    file.write_text(json.dumps(document))
    assert codes(essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))) == [
        "box-twice"
    ]
    (root / "train" / "train-03.jpg").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"image 103 \('train-03.jpg'\): not an image.*replace the file"
    ):
        essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_headers(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(tmp_path / f"a.{ending}", exif=exif)
    header = read_header(tmp_path / f"a.{ending}")
    assert header[:3] == (30, 20, 8)
    assert (header.content, header.looks, header.problem) == ("", "", "")
    assert read_header(tmp_path / f"a.{ending}", content=True).content
    assert read_header(tmp_path / "lost.jpg").problem == "the image file is missing"


def test_headers_are_remembered(tmp_path):
    names = ["a.png", "b.png"]
    for name in names:
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    first = read_headers(tmp_path, names)
    with patch("redetr.data.headers.read_header", side_effect=AssertionError):
        assert list(read_headers(tmp_path, names)) == list(first)
    Image.new("RGB", (31, 20)).save(tmp_path / "a.png")
    assert [header.width for header in read_headers(tmp_path, names)] == [31, 30]
    assert [bool(header.content) for header in read_headers(tmp_path, names, content=True)] == [
        True,
        True,
    ]


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    """Such as one that was replaced by `cp -p` or `rsync -t`."""
    file = tmp_path / "a.bmp"
    Image.new("RGB", (40, 20)).save(file)
    assert read_headers(tmp_path, [file.name])[0][:2] == (40, 20)
    other = io.BytesIO()
    Image.new("RGB", (20, 40)).save(other, "BMP")
    replace_in_time(file, other.getvalue())
    assert read_headers(tmp_path, [file.name])[0][:2] == (20, 40)


def test_a_known_header_is_not_read_again_for_the_hash_of_its_file(tmp_path):
    """A start reads headers first, and hashes later."""
    names = ["a.png", "b.png", "c.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (30 + number, 20)).save(tmp_path / name)
    first = list(read_headers(tmp_path, names))
    assert not any(header.content for header in first)
    hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    expected = [header._replace(content=hash_) for header, hash_ in zip(first, hashes, strict=True)]
    with patch("redetr.data.headers.read_header", side_effect=AssertionError):
        assert list(read_headers(tmp_path, names, content=True)) == expected
        with patch("redetr.data.headers.open_data_file", side_effect=AssertionError):
            assert list(read_headers(tmp_path, names, content=True)) == expected
            assert list(read_headers(tmp_path, names)) == expected
    # One that can no longer be opened is read as any other, which says what is wrong with it.
    shutil.rmtree(HeaderCache(tmp_path).folder)
    read_headers(tmp_path, names)

    def opened(path):
        if str(path).endswith("b.png"):
            raise OSError
        return open(path, "rb")

    with patch("redetr.data.headers.open_data_file", opened):
        headers = read_headers(tmp_path, names, content=True)
    assert [bool(header.content) for header in headers] == [True, False, True]
    assert list(headers.problems) == [1]
    assert list(read_headers(tmp_path, names, content=True)) == expected


def test_a_hash_and_looks_of_different_starts_are_both_known(tmp_path):
    Image.effect_noise((30, 20), 90).convert("RGB").save(tmp_path / "a.png")
    (with_looks,) = read_headers(tmp_path, ["a.png"], looks=True)
    (with_hash,) = read_headers(tmp_path, ["a.png"], content=True)
    assert with_looks.looks
    assert with_hash == with_looks._replace(content=with_hash.content)
    with patch("redetr.data.headers.open_data_file", side_effect=AssertionError):
        assert list(read_headers(tmp_path, ["a.png"], content=True, looks=True)) == [with_hash]


@pytest.mark.parametrize("cut", [0, 9, 100, -9, None], ids=str)
def test_a_damaged_cache_is_ignored(tmp_path, cut):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (expected,) = read_headers(tmp_path, ["a.png"])
    (part,) = HeaderCache(tmp_path).folder.iterdir()
    whole = part.read_bytes()
    if cut is None:
        np.save(part, np.zeros(3))  # of another version
    else:
        part.write_bytes(whole[:cut])
    assert list(read_headers(tmp_path, ["a.png"])) == [expected]
    assert part.read_bytes() == whole


def test_many_small_additions_are_made_one_and_none_is_lost(tmp_path):
    """Each start adds what is new; two processes at a time may do it, and none waits."""
    names = [f"{i}.png" for i in range(40)]
    for name in names:
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    for count in range(1, 41):
        with ThreadPoolExecutor(2) as pool:
            tries = [pool.submit(read_headers, tmp_path, names[:count]) for _ in range(2)]
            for headers in tries:
                assert [header.width for header in headers.result()] == count * [30]
    assert len(list(HeaderCache(tmp_path).folder.iterdir())) <= 1 + 2 * 16
    with patch("redetr.data.headers.read_header", side_effect=AssertionError):
        assert len(read_headers(tmp_path, names)) == 40


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert read_headers(tmp_path, ["a.png"])[0].width == 30


def test_problems_are_not_remembered(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert read_headers(tmp_path, ["a.png"])[0].problem
    assert not HeaderCache(tmp_path).folder.exists()


def test_pictures_that_look_alike():
    """Against comparing all pairs: chance, copies, and the frames of a film, each near the next."""
    random = np.random.default_rng(0)
    bits = random.random((1500, 64)) < 0.5
    for i, flips in ((1400, 4), (1401, 5), (700, 0)):
        bits[i] = bits[3]
        bits[i, :flips] ^= True
    for i in range(901, 1000):
        bits[i] = bits[i - 1]
        bits[i, random.integers(0, 64, 2)] ^= True
    looks = [np.packbits(row).tobytes().hex() for row in bits]
    looks[10] = looks[11] = "plain"
    looks[12] = looks[13] = ""
    near = (bits[:, None] != bits).sum(-1) <= 4
    expected = near.argmax(1)
    expected[10:14] = range(10, 14)
    assert (expected[700], expected[1400], expected[1401]) == (3, 3, 1400)
    assert len(set(expected[900:1000])) > 20
    assert _first_alike(np.array(looks, "S16")).tolist() == expected.tolist()


def test_same_boxes_are_found_as_by_comparing_all_pairs():
    random = np.random.default_rng(1)
    corners = random.uniform(0, 80, (400, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 20, (400, 2))], axis=1)
    again = random.integers(0, 400, 60)
    boxes = np.concatenate([boxes, boxes[again] + random.uniform(-0.02, 0.02, (60, 4))]).astype(
        np.float32
    )
    images = np.sort(random.integers(0, 3, 460))
    labels = random.integers(0, 2, 460)
    order = random.permutation(460)
    a = annotations(
        boxes[order].tolist(), [(100, 100)] * 3, labels[order].tolist(), images.tolist()
    )
    iou = box_iou(torch.from_numpy(a.boxes), torch.from_numpy(a.boxes)).numpy()
    same = (iou > 0.99) & (labels[order][:, None] == labels[order]) & (images[:, None] == images)
    pairs = np.argwhere(np.triu(same, 1))
    [fault] = [fault for fault in box_faults(a) if fault.code == "box-twice"]
    assert fault.count == len(pairs) > 5  # no box is there three times


def test_many_copies_of_a_box_are_all_found():
    a = annotations([[10, 10, 30, 30]] * 50, [(100, 100)])
    [fault] = box_faults(a)
    assert (fault.code, fault.count) == ("box-twice", 49)


def scattered(count: int, shift: float, box_format: BoxFormat) -> Annotations:
    """Boxes anywhere in images of 100 px, moved to the right and down by a share of their size, and
    cut."""
    random = np.random.default_rng(2)
    sides = random.uniform(10, 40, (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * (100 - sides) + shift * sides
    boxes = np.concatenate([corners, corners + sides], axis=1).clip(0, 100)
    return annotations(boxes.tolist(), [(100, 100)], box_format=box_format)


@pytest.mark.parametrize(
    ("box_format", "shift", "says"),
    [
        ("xywh", 0, ""),
        ("xywh", 0.5, "the centre instead of the corner?"),
        ("xywh", -0.5, ""),  # no mistake that is made gives this
        ("cxcywh", 0, ""),
        ("cxcywh", 0.5, "the lower right corner instead of the centre?"),
        ("cxcywh", -0.5, "the corner instead of the centre?"),
        ("xyxy", 0, ""),
        ("xyxy", 0.5, "boxes moved by half their size?"),
        ("xyxy", -0.5, ""),
    ],
)
def test_boxes_moved_by_half_their_size_are_told(box_format, shift, says):
    faults = box_faults(scattered(150, shift, box_format))
    assert codes(faults) == (["format-center"] if says else [])
    assert not faults or (faults[0].text.startswith(says) and "1 in 1,048,576" in faults[0].text)
    assert not faults or ("centre" in faults[0].remedy) == (box_format == "cxcywh")


@pytest.mark.parametrize("box_format", ["xywh", "cxcywh"])
def test_corners_that_stay_inside_are_told(box_format):
    """Small objects in the upper left of the image, their corners read as another format."""
    random = np.random.default_rng(3)
    starts = random.uniform(5, 40, (60, 2))
    numbers = np.concatenate([starts, starts + random.uniform(3, 9, (60, 2))], axis=1)
    read = to_corners(numbers, box_format).tolist()
    [fault] = box_faults(annotations(read, [(100, 100)], box_format=box_format))
    assert (fault.severity, fault.code) == ("warning", "format-xyxy")
    assert fault.text.startswith(f"two corners given as {box_format}?")


def test_objects_that_grow_downwards_are_not_taken_for_corners():
    """As on photographs of a road: what is lower is nearer, and larger."""
    random = np.random.default_rng(4)
    y = random.uniform(30, 60, 100)
    x = random.uniform(0, 60, 100)
    height = (y - 25) * random.uniform(0.8, 1.1, 100)
    boxes = np.stack([x, y, x + height, y + height], axis=1)
    for box_format in ("xywh", "cxcywh"):
        assert box_faults(annotations(boxes.tolist(), [(100, 100)], box_format=box_format)) == []


def test_boxes_of_smaller_copies_are_told():
    random = np.random.default_rng(5)
    starts = random.uniform(0, 50, (80, 2))
    boxes = np.concatenate([starts, starts + random.uniform(2, 10, (80, 2))], axis=1)
    boxes[0] = [0, 0, 60, 60]

    def codes_of(boxes: np.ndarray, box_format: str = "xywh") -> list[str]:
        return codes(box_faults(annotations(boxes.tolist(), [(100, 100)], box_format=box_format)))

    assert codes_of(boxes) == ["boxes-scaled"]
    assert codes_of(boxes, "cxcywh") == []  # fractions have no scale
    assert codes_of(boxes[:40]) == []  # too few to be sure
    assert codes_of(boxes + 20) == []
    boxes[1] = [50, 20, 90, 40]
    assert codes_of(boxes) == []


def test_large_objects_in_the_middle_are_not_taken_for_xyxy():
    assert (
        box_faults(annotations([[5, 5 + i, 90, 95] for i in range(0, 30, 3)], [(100, 100)])) == []
    )


@pytest.mark.parametrize(
    ("recipe", "hints", "size", "expected"),
    [
        ("redetr_n", Hints(image_size=320), 320, [5 * 3.2, 5 * 320 / 800]),  # stretched to a square
        ("redetr_n", Hints(image_size=320), 640, [10 * 3.2, 10 * 320 / 800]),
        ("redetr_n", Hints(image_size=128, augment="aerial"), 128, [5, 5]),  # crops at native scale
        (
            "detr_r50",
            Hints(image_size=400),
            400,
            [5 * 4, 5 * 666.5 / 800],
        ),  # the longer side at most 1333 for 800
    ],
)
def test_sizes_as_the_model_sees_them(recipe, hints, size, expected):
    a = annotations([[0, 0, 5, 10], [0, 0, 10, 5]], [(100, 100), (800, 400)], images=[0, 1])
    plan = Plan.of(recipe, hints, None)
    if recipe == "detr_r50":
        plan = replace(plan, max_size=667)
        expected = [5 * 4, 5 * 667 / 800]
    assert np.allclose(plan.shorter_sides(a, size), expected)


def test_a_larger_image_size_is_proposed_where_it_helps():
    plan = Plan.of("redetr_n", Hints(image_size=320), None)
    for side, says in ((8, "--image-size 480 (then 0%)"), (1, "tiles, or use images of a higher")):
        [fault] = plan_faults({"train": annotations([[0, 0, side, side]] * 4, [(480, 480)])}, plan)
        assert (fault.code, fault.count) == ("object-small", 4)
        assert says in fault.remedy


@pytest.mark.parametrize(
    ("recipe", "queries"), [("redetr_n", 300), ("detr_r50", 100), ("detr_tiny", 25)]
)
def test_queries_that_training_would_take(recipe, queries):
    assert Plan.of(recipe, Hints(), None).num_queries == queries
    assert Plan.of(recipe, Hints(), 7).num_queries == 7


@pytest.mark.parametrize(("objects", "queries"), [(3, 25), (20, 40), (400, 300)])
def test_queries_follow_the_objects_of_train(objects, queries):
    assert Plan.of("redetr_n", Hints(), None, max_objects=objects).num_queries == queries
    assert Plan.of("detr_r50", Hints(), None, max_objects=objects).num_queries == 100


def crowd(root: Path, split: str, objects: int) -> None:
    """Adds objects to the first image of a split, so that it holds this many."""
    file = root / "annotations" / f"instances_{split}.json"
    document = json.loads(file.read_text())
    first = document["annotations"][0]
    for number in range(objects - len(CLASSES)):
        row, column = divmod(number, 12)
        box = [5 * column, 5 * row, 4, 4]
        document["annotations"].append({**first, "id": 1 + number, "bbox": box})
    file.write_text(json.dumps(document))


def crowded(root: Path, **options: object) -> list[tuple[Path, str]]:
    faults = check(str(root), **options).faults
    return [(fault.file, fault.text) for fault in faults if fault.code == "image-crowded"]


def test_val_is_held_against_the_queries_that_train_chooses(root):
    """25 at least, and twice as many as objects in any image of train."""
    val = root / "annotations" / "instances_val.json"
    crowd(root, "val", 28)
    assert crowded(root) == [(val, "holds 28 objects, but the model has only 25 queries")]
    assert crowded(root, num_queries=28) == []
    crowd(root, "train", 14)
    assert crowded(root) == []


def test_queries_are_not_guessed_from_a_train_split_that_is_incomplete(root):
    crowd(root, "val", 28)
    (root / "annotations" / "instances_train.json").write_text("{")
    assert crowded(root) == []


def written(source: str, folder: Path) -> str:
    write_report(check(source), folder, augmented=source == "crowns")
    return (folder / "index.html").read_text()


def test_the_page_needs_nothing_else(root, tmp_path):
    document = json.loads((root / "annotations" / "instances_train.json").read_text())
    document["categories"][0]["name"] = "<b>&'\"cup"
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    page = written(str(root), tmp_path / "page")
    assert re.findall(r"""(?:src|href)=["'](?!data:image/jpeg;base64,)""", page) == []
    assert "http" not in page
    assert "src=" in page
    assert "<b>" not in page and "&lt;b&gt;&amp;" in page
    assert "category-differs" in page and "1 error would spoil training" in page
    with Image.open(tmp_path / "page" / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert not (tmp_path / "page" / "augmented.png").exists()


def damage(file: Path) -> None:
    """Overwrites pixels in the middle of a JPEG, which shows only when it is decoded."""
    content = file.read_bytes()
    file.write_bytes(content[:700] + b"\xff\xc4\x00\x03\x00" * 8 + content[740:])


@pytest.mark.parametrize("name", ["train/train-00.jpg", "val/val-00.jpg"])
def test_a_sample_that_cannot_be_decoded_is_a_fault_in_every_output(root, tmp_path, capsys, name):
    damage(root / name)
    assert check(str(root)).faults == []  # its header looks sound
    arguments = ["check", str(root), "--report", str(tmp_path / "page")]
    assert main_ends([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (fault,) = report["faults"]
    assert (fault["severity"], fault["code"]) == ("error", "image-unreadable")
    assert fault["where"].endswith(f"({Path(name).name!r})")
    assert fault["text"].startswith("cannot decode the image (")
    (thorough,) = check(str(root), thorough=True).faults
    assert thorough.to_json() == fault

    assert main_ends(arguments) == 1
    assert "--augment" not in capsys.readouterr().err
    assert main_ends([*arguments, "--augment"]) == 1
    told = capsys.readouterr()
    reason = "because the data set has errors: fix them and run again"
    assert f"--augment: nothing was drawn, {reason}" in told.err
    said = " ".join(told.out.split())
    assert "image-unreadable" in said and report["verdict"] in said
    page = (tmp_path / "page" / "index.html").read_text()
    assert "image-unreadable" in page and report["verdict"] in page
    assert (tmp_path / "page" / "sheet.png").exists()


def test_an_augmented_sample_that_cannot_be_decoded_is_a_fault_as_well(root, tmp_path):
    """It need not be among the samples with their boxes."""
    number = augmented_samples(14)[1]
    assert ("train", number) not in check(str(root)).samples
    damage(root / "train" / f"train-{number:02}.jpg")
    assert main_ends(["check", str(root), "--report", str(tmp_path), "--augment"]) == 1
    assert "image-unreadable" in (tmp_path / "index.html").read_text()


def test_a_page_leaves_out_what_cannot_be_decoded(root, tmp_path):
    """Also that of a report whose samples were not decoded."""
    whole = sample_sheet(check(str(root)))
    for file in (root / "train").iterdir():
        damage(file)
    report = check(str(root))
    rest = sample_sheet(report)
    assert whole is not None and rest is not None
    assert rest.height < whole.height
    for file in (root / "val").iterdir():
        damage(file)
    assert sample_sheet(report) is None
    write_report(report, tmp_path / "page")
    assert (tmp_path / "page" / "index.html").exists()
    assert not (tmp_path / "page" / "sheet.png").exists()


def keep_one_image(root: Path) -> None:
    """Leaves one image in the train split."""
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["images"] = document["images"][:1]
    image_id = document["images"][0]["id"]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == image_id]
    file.write_text(json.dumps(document))


def only_error(root: Path) -> Fault:
    (fault,) = [fault for fault in check(str(root)).faults if fault.severity == "error"]
    return fault


def test_a_val_split_that_cannot_be_read_is_not_missing(root):
    """Tiles of the single image for training would not help."""
    keep_one_image(root)
    (root / "annotations" / "instances_val.json").write_text("{")
    fault = only_error(root)
    assert fault.code == "split-unreadable"
    assert "not JSON" in fault.text
    assert fault.remedy == "export or copy the annotations again"


def test_a_single_image_is_cut_into_tiles_and_not_divided(root):
    keep_one_image(root)
    (root / "annotations" / "instances_val.json").unlink()
    fault = only_error(root)
    assert fault.code == "split-unreadable"
    assert f"redetr convert {root} {root}-tiles --tile 640 --overlap 0" in fault.remedy


def test_a_single_image_beside_one_with_an_error_is_not_cut(root):
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    for row in document["images"][1:]:
        row["width"] = -1
    file.write_text(json.dumps(document))
    (root / "annotations" / "instances_val.json").unlink()
    faults = {fault.code: fault for fault in check(str(root)).faults}
    assert faults["size-invalid"].count == 13
    assert "--tile" not in faults["split-unreadable"].remedy


@pytest.mark.parametrize("source", ["train/_annotations.coco.json", "instances_train.json"])
def test_the_group_that_roboflow_adds_is_no_fault(source):
    data = annotations([[0, 0, 9, 9]], [[40, 40]], labels=[1])
    data = replace(data, source=Path(source), category_ids=(0, 1), class_names=("all", "cup"))
    is_told = "class-unused" in codes(class_faults({"train": data, "val": data}))
    assert is_told == (source == "instances_train.json")


def test_histograms_have_bins_of_whole_numbers_and_plain_scales():
    edges = _octaves({"train": np.array([20.0, 70.0]), "val": np.array([], float)})
    assert (edges[0], edges[-1]) == (16, 128)
    assert (np.diff(np.log2(edges)) > 0).all()
    assert _octaves({})[0] == 0.5
    assert _whole_numbers({"train": np.array([0, 3])}).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    widths = np.diff(_whole_numbers({"train": np.array([480])}))
    assert set(widths) == {16.0}


def test_samples_as_training_sees_them(tmp_path):
    main(["check", "crowns", "--report", str(tmp_path), "--augment"])
    with Image.open(tmp_path / "augmented.png") as sheet:
        assert sheet.width > 1000


def test_pictures_of_an_earlier_report_do_not_stay(root, tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    for name in ("sheet.png", "augmented.png"):
        (page / name).write_bytes(b"of an earlier report")
    (root / "annotations" / "instances_train.json").write_text("{")
    (root / "annotations" / "instances_val.json").write_text("[]")
    written(str(root), page)
    assert [file.name for file in page.iterdir()] == ["index.html"]


def test_a_page_of_data_that_cannot_be_read(root, tmp_path):
    (root / "annotations" / "instances_train.json").write_text("{")
    (root / "annotations" / "instances_val.json").write_text("[]")
    page = written(str(root), tmp_path / "page")
    assert "2 errors would spoil training. Fix them and run again." in page
    assert not (tmp_path / "page" / "sheet.png").exists()


def test_the_page_in_a_browser_without_network(tmp_path, browser):
    """All pictures are there, and the console stays empty."""
    written("crowns", tmp_path)
    browser.get_log("browser")  # of pages before
    browser.get((tmp_path / "index.html").as_uri())
    shown = "return [...document.images].map(i => i.complete && i.naturalWidth > 500)"
    assert browser.execute_script(shown) == [True] * 6
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("source", ["digits", "crowns"])
def test_a_fraction_beside_a_val_split_is_reported(source):
    report = check(source, val_fraction=0.5)
    assert codes(report.faults).count("fraction-unused") == 1
    assert "--val-fraction" not in report.verdict
