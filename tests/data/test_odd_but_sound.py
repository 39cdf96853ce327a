"""Data sets that look odd and are sound: nothing is said against them, and all objects are read."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sound_data import WRITERS

from redetr.doctor.check import check

Change = Callable[[Path], Any]
OBJECTS = {"train": 42, "val": 30}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {form: write(root / form) for form, write in WRITERS.items()}


def documents(change: Callable[[dict[str, Any]], Any], **options: Any) -> Change:
    """Both annotation files in COCO format after `change`, written as `options` of JSON say."""

    def do(root: Path) -> None:
        for file in (root / "annotations").glob("*.json"):
            document = json.loads(file.read_text())
            change(document)
            file.write_text(json.dumps(document, **options), encoding="utf-8")

    return do


def rows(key: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    return documents(lambda d: [change(row) for row in d[key]])


def contents(pattern: str, change: Callable[[bytes], bytes]) -> Change:
    """Other bytes in the files that the pattern matches."""

    def do(root: Path) -> None:
        for file in sorted(root.glob(pattern)):
            file.write_bytes(change(file.read_bytes()))

    return do


def images(change: Callable[[Image.Image], Image.Image], **options: Any) -> Change:
    """The images of train in COCO format, saved as others under the same names."""

    def do(root: Path) -> None:
        for file in (root / "train").iterdir():
            with Image.open(file) as old:
                new = change(old.convert("RGB"))
            new.save(file, **options)

    return do


def deep(image: Image.Image) -> Image.Image:
    """The image as grey of 12 bits in 16."""
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 16)


def with_folder(root: Path) -> None:
    """File names of train are relative to the data folder."""
    file = root / "annotations/instances_train.json"
    file.write_text(file.read_text().replace('"train-', '"train/train-'))


def extended(row: dict[str, Any]) -> None:
    row.update(score=0.5, attributes={"occluded": False}, segmentation=[], keypoints=[])


# Format, change, and codes of the notes, if there are any.
SOUND: dict[str, tuple[str, Change, set[str]]] = {
    # text and JSON
    "byte order mark": (
        "coco",
        contents("annotations/*.json", lambda old: b"\xef\xbb\xbf" + old),
        set(),
    ),
    "indented": ("coco", documents(lambda d: None, indent=4), set()),
    "letters as they are": (
        "coco",
        documents(lambda d: d["categories"][0].update(name="Größe"), ensure_ascii=False),
        set(),
    ),
    "further lists": (
        "coco",
        documents(lambda d: d.update(info={}, licenses=[], videos=[{"id": 1}])),
        set(),
    ),
    "keys in another order": (
        "coco",
        documents(lambda d: d.update({key: d.pop(key) for key in sorted(d)})),
        set(),
    ),
    "further keys": ("coco", rows("annotations", extended), set()),
    # ids and names
    "ids of annotations from 0": (
        "coco",
        documents(lambda d: [a.update(id=i) for i, a in enumerate(d["annotations"])]),
        set(),
    ),
    "one id for all annotations": ("coco", rows("annotations", lambda a: a.update(id=1)), set()),
    "no ids of annotations": ("coco", rows("annotations", lambda a: a.pop("id")), set()),
    "ids as floats": (
        "coco",
        rows("annotations", lambda a: a.update(image_id=float(a["image_id"]))),
        set(),
    ),
    "negative ids": (
        "coco",
        documents(
            lambda d: (
                [r.update(id=-r["id"]) for r in d["images"]]
                + [r.update(image_id=-r["image_id"]) for r in d["annotations"]]
            )
        ),
        set(),
    ),
    "large ids": (
        "coco",
        documents(
            lambda d: (
                [r.update(id=r["id"] + 10**15) for r in d["images"]]
                + [r.update(image_id=r["image_id"] + 10**15) for r in d["annotations"]]
            )
        ),
        set(),
    ),
    "ids as text": (
        "coco",
        rows("annotations", lambda a: a.update(category_id=str(a["category_id"]))),
        {"id-text"},
    ),
    "images in reverse": ("coco", documents(lambda d: d["images"].reverse()), set()),
    "annotations in reverse": ("coco", documents(lambda d: d["annotations"].reverse()), set()),
    "categories in reverse": ("coco", documents(lambda d: d["categories"].reverse()), set()),
    "supercategories": (
        "coco",
        rows("categories", lambda c: c.update(supercategory=c["name"])),
        set(),
    ),
    "numbers as names": ("coco", rows("categories", lambda c: c.update(name=str(c["id"]))), set()),
    "names of files with blanks": (
        "coco",
        lambda root: [
            *(path.rename(path.with_name(f"my {path.name}")) for path in root.glob("*/*.jpg")),
            rows("images", lambda i: i.update(file_name=f"my {i['file_name']}"))(root),
        ],
        set(),
    ),
    "names with a dot and a slash": (
        "coco",
        rows("images", lambda i: i.update(file_name=f"./{i['file_name']}")),
        set(),
    ),
    "names with the folder": ("coco", with_folder, set()),
    "paths of Windows": (
        "coco",
        rows("images", lambda i: i.update(file_name=f"C:\\data\\{i['file_name']}")),
        {"path-foreign"},
    ),
    # boxes
    "crowds as null": ("coco", rows("annotations", lambda a: a.update(iscrowd=None)), set()),
    "crowds as false": ("coco", rows("annotations", lambda a: a.update(iscrowd=False)), set()),
    "areas as NaN": ("coco", rows("annotations", lambda a: a.update(area=float("nan"))), set()),
    "boxes with many digits": (
        "coco",
        rows("annotations", lambda a: a.update(bbox=[value + 1e-7 for value in a["bbox"]])),
        set(),
    ),
    "boxes a pixel over the border": (
        "coco",
        rows("annotations", lambda a: a.update(bbox=[a["bbox"][0] - 0.5, *a["bbox"][1:]])),
        set(),
    ),
    # images
    "PNG under the ending of JPEG": ("coco", images(lambda old: old, format="PNG"), set()),
    "grey": ("coco", images(lambda old: old.convert("L"), format="JPEG"), set()),
    "CMYK": ("coco", images(lambda old: old.convert("CMYK"), format="JPEG"), set()),
    "palette": ("coco", images(lambda old: old.quantize(64), format="PNG"), set()),
    "12 bits in 16": ("coco", images(deep, format="PNG"), set()),
    "opaque alpha": ("coco", images(lambda old: old.convert("RGBA"), format="PNG"), set()),
    "progressive": ("coco", images(lambda old: old, format="JPEG", progressive=True), set()),
    "bytes after the end": (
        "coco",
        contents("train/*.jpg", lambda old: old + b"SEFT" + bytes(100)),
        set(),
    ),
    "EXIF that says upright": (
        "coco",
        images(lambda old: old, format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        set(),
    ),
    # folders
    "images in a folder of images": (
        "coco",
        lambda root: [
            (root / "images").mkdir(),
            *((root / split).rename(root / "images" / split) for split in OBJECTS),
        ],
        set(),
    ),
    "names of 2017": (
        "coco",
        lambda root: [
            *((root / split).rename(root / f"{split}2017") for split in OBJECTS),
            *(
                (root / f"annotations/instances_{split}.json").rename(
                    root / f"annotations/instances_{split}2017.json"
                )
                for split in OBJECTS
            ),
        ],
        set(),
    ),
    "compressed copies beside": (
        "coco",
        lambda root: (root / "annotations/instances_train.json.gz").write_bytes(
            gzip.compress(b"{}")
        ),
        set(),
    ),
    # YOLO and Pascal VOC
    "YOLO: lines of Windows": (
        "yolo",
        contents("labels/*/*.txt", lambda old: old.replace(b"\n", b"\r\n")),
        set(),
    ),
    "YOLO: tabs": ("yolo", contents("labels/*/*.txt", lambda old: old.replace(b" ", b"\t")), set()),
    "YOLO: blank lines": (
        "yolo",
        contents("labels/*/*.txt", lambda old: old.replace(b"\n", b"\n\n")),
        set(),
    ),
    "YOLO: no line end": ("yolo", contents("labels/*/*.txt", bytes.rstrip), set()),
    "YOLO: classes as floats": (
        "yolo",
        contents("labels/*/*.txt", lambda old: old.replace(b"\n1 ", b"\n1.0 ")),
        set(),
    ),
    "YOLO: names by number": (
        "yolo",
        contents(
            "data.yaml",
            lambda old: old.replace(b"[cup, plate, spoon]", b"{0: cup, 1: plate, 2: spoon}"),
        ),
        set(),
    ),
    "VOC: quotes": (
        "voc",
        contents(
            "ImageSets/Main/*.txt",
            lambda old: b"".join(b'"%s"\n' % line for line in old.splitlines()),
        ),
        set(),
    ),
    "VOC: no sizes": (
        "voc",
        contents("Annotations/*.xml", lambda old: old.replace(b"size>", b"unknown>")),
        set(),
    ),
    "VOC: latin-1": (
        "voc",
        contents(
            "Annotations/*.xml",
            lambda old: (
                b'<?xml version="1.0" encoding="ISO-8859-1"?>'
                + old.replace(b"<name>cup", b"<name>Gr\xf6\xdfe")
            ),
        ),
        set(),
    ),
    "VOC: fractions of pixels": (
        "voc",
        contents("Annotations/*.xml", lambda old: old.replace(b"</xmin>", b".0</xmin>")),
        set(),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_odd_data_is_called_sound(name, sound, tmp_path):
    form, change, notes = SOUND[name]
    root = Path(shutil.copytree(sound[form], tmp_path / "data"))
    change(root)
    report = check(str(root))
    assert {split: row["objects"] for split, row in report.figures().items()} == OBJECTS
    assert [str(fault) for fault in report.faults if fault.severity != "note"] == []
    assert {fault.code for fault in report.faults} == notes
    assert report.verdict.startswith("ready to train")
