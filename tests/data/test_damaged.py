"""Data sets with one fault each: all are found and named, and none is trained on that would spoil
training."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sound_data import HEIGHT, IMAGES, WIDTH, WRITERS

from redetr.cli import main
from redetr.data import open_dataset
from redetr.doctor.check import essential_faults
from redetr.errors import InputError
from redetr.recipes import redetr_n
from redetr.training import train

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Damage:
    """What is done to a sound data set, and what is said of it."""

    severity: str
    code: str
    do: Callable[[Path], Any]
    says: tuple[str, ...]
    form: str = "coco"
    options: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # codes of faults that come with it


def document(change: Change, split: str = "train") -> Callable[[Path], None]:
    """The annotation file of a split after `change` of what it holds."""

    def do(root: Path) -> None:
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return do


def both(change: Change) -> Callable[[Path], None]:
    return lambda root: [document(change, split)(root) for split in IMAGES]


def annotation(**values: Any) -> Callable[[Path], None]:
    """Annotation 1004 says this: the plate of image 101 in train."""
    return document(lambda d: d["annotations"][4].update(values))


def image(**values: Any) -> Callable[[Path], None]:
    """Image 103 of train says this: train-03.jpg."""
    return document(lambda d: d["images"][3].update(values))


def category(**values: Any) -> Callable[[Path], None]:
    """Category 12 of both splits says this: the plate."""
    return both(lambda d: d["categories"][1].update(values))


def boxes(change: Callable[[list], list]) -> Callable[[Path], None]:
    """All boxes of both splits are others."""
    return both(lambda d: [row.update(bbox=change(row["bbox"])) for row in d["annotations"]])


def moved(row: dict[str, Any]) -> list[float]:
    """Its box, a little to the left."""
    x, y, w, h = row["bbox"]
    return [x - 0.05, y, w, h]


def without(key: str, row: str, number: int) -> Callable[[Path], None]:
    return document(lambda d: d[row][number].pop(key))


def content(
    change: Callable[[bytes], bytes], name: str = "train/train-03.jpg"
) -> Callable[[Path], None]:
    """The bytes of a file are others."""
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


def text(change: Callable[[str], str], name: str) -> Callable[[Path], None]:
    return content(lambda old: change(old.decode()).encode(), name)


def resaved(
    change: Callable[[Image.Image], Image.Image], name: str = "train/train-03.jpg", **options: Any
) -> Change:
    def do(root: Path) -> None:
        with Image.open(root / name) as old:
            new = change(old.convert("RGB"))
        new.save(root / name, **options)

    return do


def as_other_kind(pixels: Image.Image, name: str) -> Change:
    """Image 103 is another file."""

    def do(root: Path) -> None:
        (root / "train" / "train-03.jpg").unlink()
        pixels.save(root / "train" / name)
        image(file_name=name)(root)

    return do


def cut(kind: str) -> Change:
    """Image 103 in another format, without its last part."""

    def do(root: Path) -> None:
        resaved(lambda old: old, format=kind)(root)
        content(lambda old: old[: len(old) * 2 // 3])(root)

    return do


def flipped(old: bytes) -> bytes:
    """One byte in the middle is another."""
    return old[: len(old) // 2] + bytes([old[len(old) // 2] ^ 255]) + old[len(old) // 2 + 1 :]


def spiked() -> np.ndarray:
    """16-bit grey of a few levels, and one pixel that is much brighter."""
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) % 100
    grey[5, 5] = 0xFFFF
    return grey


def speckled() -> Image.Image:
    white = Image.new("RGB", (WIDTH, HEIGHT), "white")
    white.putpixel((5, 5), (0, 0, 0))
    return white


def as_pages(path: Path) -> None:
    """The image as the first page of a TIFF of three."""
    with Image.open(path) as old:
        pixels = old.convert("RGB")
    blank = Image.new("RGB", (WIDTH, HEIGHT))
    pixels.save(path, format="TIFF", save_all=True, append_images=[blank, blank])


def turned(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def copied(source: str, target: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / source, root / target)


def only_in(split: str, label: int = 12) -> Callable[[Path], None]:
    """The boxes of a category are taken out of the other split."""
    other = "val" if split == "train" else "train"
    return document(
        lambda d: d.update(annotations=[a for a in d["annotations"] if a["category_id"] != label]),
        other,
    )


def few(count: int) -> Callable[[Path], None]:
    """The plates of train after the first few become cups."""
    return document(
        lambda d: [row.update(category_id=7) for row in d["annotations"][1 + 3 * count :: 3]]
    )


def thinned(count: int, split: str) -> Callable[[Path], None]:
    """Only the first images are left."""

    def do(root: Path) -> None:
        document(
            lambda d: d.update(
                images=d["images"][:count], annotations=d["annotations"][: 3 * count]
            ),
            split,
        )(root)
        for path in sorted((root / split).iterdir())[count:]:
            path.unlink()

    return do


def line(new: str) -> Callable[[Path], None]:
    """The first label of train-03 in YOLO form is another."""
    return text(lambda old: old.replace(old.splitlines()[0], new, 1), "labels/train/train-03.txt")


def as_corner(lines: str) -> str:
    rows = [[float(word) for word in row.split()] for row in lines.splitlines()]
    return "".join(f"{c:.0f} {x - w / 2} {y - h / 2} {w} {h}\n" for c, x, y, w, h in rows)


def labels(change: Callable[[str], str]) -> Callable[[Path], None]:
    """All label files in YOLO form are others."""
    return lambda root: [
        file.write_text(change(file.read_text())) for file in root.glob("labels/*/*.txt")
    ]


def xml(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """The first `old` in train-03 in VOC form is `new`."""
    return text(lambda content: content.replace(old, new, count), "Annotations/train-03.xml")


def zero_based(root: Path) -> None:
    """The first box of train-03 in VOC form begins at the border."""
    file = root / "Annotations/train-03.xml"
    file.write_text(re.sub("<xmin>[^<]*", "<xmin>0", file.read_text(), count=1))


def corners_with_outlines(document: Any) -> None:
    """Corners in place of width and height, in the upper left, where nothing leaves its image."""
    for number, row in enumerate(document["annotations"]):
        x1, y1, x2, y2 = ((5, 4, 24, 20), (26, 20, 36, 26), (14, 16, 33, 30))[number % 3]
        outline = [x1, y1, x2, y1, x2, y2, x1, y2]
        row.update(bbox=[x1, y1, x2, y2], segmentation=[outline])


def transposed(document: Any) -> None:
    """Boxes y x height width beside outlines of x y."""
    for row in document["annotations"]:
        row.update(bbox=[2, 30, 8, 10], segmentation=[[30, 2, 40, 2, 40, 10, 30, 10]])


def with_columns(more: str) -> Callable[[Path], None]:
    """Every line of YOLO labels is longer."""
    return labels(lambda old: "".join(f"{line} {more}\n" for line in old.splitlines()))


def mask(height: int, width: int) -> dict[str, Any]:
    """The mask of the box 2 3 20 16 in an image of this size."""
    counts = [2 * height + 3, *[16, height - 16] * 19, 16]
    counts.append(height * width - sum(counts))
    return {"size": [height, width], "counts": counts}


POLYGON = "<polygon><x1>1</x1><y1>1</y1><x2>9</x2><y2>1</y2><x3>9</x3><y3>5</y3></polygon>"
HERE = ("instances_train.json", "annotation 1004")
ALONE = ("mask-missing",)  # the object that is damaged is the only one with a mask
THERE = ("instances_train.json", "image 103", "train-03.jpg")
SPLIT, TRAIN, THOROUGH = "split-unreadable", ("instances_train.json",), ("--thorough",)
LINE = ("train-03.txt", "line 1")
FILE = "annotations/instances_train.json"
ORPHANS = ("image-unknown",)  # the annotations of an image that is left out


def error(code: str, do: Change, *says: str, **more: Any) -> Damage:
    return Damage("error", code, do, says, **more)


def warning(code: str, do: Change, *says: str, **more: Any) -> Damage:
    return Damage("warning", code, do, says, **more)


def note(code: str, do: Change, *says: str, **more: Any) -> Damage:
    return Damage("note", code, do, says, **more)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGED = {
    # the annotation file as a whole
    "not JSON": error(SPLIT, text(lambda old: "<html>", FILE), *TRAIN, "not JSON"),
    "JSON cut short": error(SPLIT, text(lambda old: old[:500], FILE), *TRAIN, "not JSON"),
    "empty file": error(SPLIT, text(lambda old: "", FILE), *TRAIN, "not JSON"),
    "compressed": error(SPLIT, content(lambda old: gzip.compress(old), FILE), *TRAIN, "gunzip"),
    "a pointer": error(SPLIT, content(lambda old: POINTER, FILE), *TRAIN, "git lfs pull"),
    "another JSON": error(
        SPLIT, text(lambda old: "[1, 2]", FILE), *TRAIN, 'a list without "images"'
    ),
    "not text": error(SPLIT, content(lambda old: b"\xff\xfe\xfd", FILE), *TRAIN, "not JSON"),
    "no images": error(SPLIT, document(lambda d: d.pop("images")), *TRAIN, '"images" is missing'),
    "images is empty": error(
        SPLIT, document(lambda d: d.update(images=[])), *TRAIN, '"images" is empty'
    ),
    "no annotations": error(
        SPLIT, document(lambda d: d.pop("annotations")), *TRAIN, '"annotations" is missing'
    ),
    "no categories": error(
        SPLIT, document(lambda d: d.pop("categories")), *TRAIN, '"categories" is missing'
    ),
    "rows are numbers": error(
        SPLIT, document(lambda d: d.update(annotations=[1])), *TRAIN, "list of objects"
    ),
    "no train split": error(SPLIT, lambda root: (root / FILE).unlink(), "no train split"),
    "no val split": error(
        SPLIT,
        lambda root: (root / "annotations/instances_val.json").unlink(),
        "no val split",
        "hold out",
    ),
    # images in it
    "image without id": error(
        "id-invalid", without("id", "images", 3), "train-03.jpg", "id None", also=ORPHANS
    ),
    "image id is text": note("id-text", image(id="103"), "image_ids", "'103' is read as 103"),
    "image id is a word": error("id-invalid", image(id="a"), "'a'", "train-03.jpg", also=ORPHANS),
    "image id twice": error(
        "id-twice", image(id=101), "train-03.jpg", "id 101 occurs twice", also=ORPHANS
    ),
    "no file name": error("path-outside", without("file_name", "images", 3), "image 103", "None"),
    "file name climbs out": error(
        "path-outside", image(file_name="../a.jpg"), "image 103", "../a.jpg"
    ),
    "file name is absolute": error(
        "path-outside", image(file_name="/etc/passwd"), "image 103", "/etc/passwd"
    ),
    "no width": error("size-invalid", without("width", "images", 3), *THERE, "Nonex48"),
    "height of zero": error("size-invalid", image(height=0), *THERE, "64x0"),
    "file is missing": error(
        "image-missing", lambda root: (root / "train/train-03.jpg").unlink(), *THERE
    ),
    # annotations
    "unknown image": error("image-unknown", annotation(image_id=9), *HERE, "image_id 9"),
    "unknown category": error(
        "category-unknown", annotation(category_id=8), *HERE, "category_id 8"
    ),
    "no bbox": error("box-invalid", without("bbox", "annotations", 4), *HERE, "bbox None"),
    "bbox of three": error("box-invalid", annotation(bbox=[1, 2, 3]), *HERE, "[1, 2, 3]"),
    "NaN in bbox": error("box-invalid", annotation(bbox=[1, 2, float("nan"), 4]), *HERE, "nan"),
    "infinity in bbox": error(
        "box-invalid", annotation(bbox=[1, 2, float("inf"), 4]), *HERE, "inf"
    ),
    "text in bbox": error("box-invalid", annotation(bbox=[1, 2, "3", 4]), *HERE, "'3'"),
    "no width in bbox": error(
        "box-empty", annotation(bbox=[1, 2, 0, 4]), *HERE, "zero or negative"
    ),
    "negative height in bbox": error(
        "box-empty", annotation(bbox=[9, 9, 5, -5]), *HERE, "zero or negative"
    ),
    "box beyond the right border": error(
        "box-outside", annotation(bbox=[50, 9, 20, 9]), *HERE, "64x48 px"
    ),
    "box beyond the upper border": error(
        "box-outside", annotation(bbox=[9, -9, 20, 20]), *HERE, "64x48 px"
    ),
    "box in another image's pixels": error(
        "box-outside", annotation(bbox=[500, 300, 90, 80]), *HERE
    ),
    # categories
    "category id twice": error(
        "id-twice", category(id=7), "plate", "id 7 occurs twice", also=("category-unknown",)
    ),
    "category id is text": note("id-text", category(id="12"), "category_ids", "'12' is read as 12"),
    "category id is a word": error(
        "id-invalid", category(id="a"), "'a'", "plate", also=("category-unknown",)
    ),
    "name that cannot be written": error(
        "name-invalid", category(name="\x1b[31m"), "category 12", "control characters"
    ),
    "all objects are crowds": error(
        "no-objects",
        document(lambda d: [row.update(iscrowd=1) for row in d["annotations"]]),
        *TRAIN,
        "42 objects, all of them crowds",
        "iscrowd",
        also=("class-only-val",),
    ),
    "most objects are crowds": warning(
        "object-ignored",
        document(lambda d: [row.update(iscrowd=1) for row in d["annotations"][:38]]),
        *HERE[:1],
        "annotation 1000",
        "38 of 42 objects (90%)",
        also=("class-rare",),
    ),
    "category without name": error(
        "name-invalid", both(lambda d: d["categories"][1].pop("name")), "category 12"
    ),
    "name is a number": error("name-invalid", category(name=12), "category 12"),
    "categories differ": error(
        "category-differs",
        document(lambda d: d["categories"].append({"id": 3, "name": "jar"}), "val"),
        "instances_val.json",
        "3 ('jar') is only in val",
    ),
    "names differ": error(
        "category-differs",
        document(lambda d: d["categories"][1].update(name="dish"), "val"),
        "12 ('dish') is only in val",
    ),
    "name in other letters": warning(
        "class-alike", category(name="Cup "), "category 12", "'Cup '", "'cup'"
    ),
    "name twice": warning("class-twice", category(name="cup"), "2 classes are called 'cup'"),
    "background": warning(
        "class-background", category(name="background"), "category 12 ('background')"
    ),
    "unused category": note(
        "class-unused",
        both(lambda d: d["categories"].append({"id": 0, "name": "things"})),
        "category 0 ('things')",
    ),
    "class in val only": warning(
        "class-only-val", only_in("val"), "category 12 ('plate')", "10 boxes"
    ),
    "class in train only": warning(
        "class-only-train", only_in("train"), "category 12 ('plate')", "14 boxes"
    ),
    "rare class": warning(
        "class-rare",
        few(3),
        "category 12 ('plate')",
        "3 boxes in train; the most common class has 25; collect more objects of this class",
    ),
    # image files
    "JPEG cut short": error(
        "image-unreadable", content(lambda old: old[:-300]), *THERE, "cannot decode"
    ),
    "PNG cut short": error(
        "image-unreadable",
        lambda root: [
            as_other_kind(Image.new("RGB", (WIDTH, HEIGHT)), "b.png")(root),
            content(lambda old: old[:-30], "train/b.png")(root),
        ],
        "image 103 ('b.png')",
        "cannot decode",
    ),
    "PNG flipped in the middle": error(
        "image-unreadable",
        lambda root: [resaved(lambda old: old, format="PNG")(root), content(flipped)(root)],
        *THERE,
        "cannot decode",
        options=THOROUGH,
    ),
    "file is a web page": error(
        "image-unreadable",
        content(lambda old: b"<html>404"),
        *THERE,
        "not an image that is read, but text such as a web page",
    ),
    "file is a pointer": error(
        "image-unreadable", content(lambda old: POINTER), *THERE, "git lfs pull"
    ),
    "file is HEIC": error(
        "image-unreadable", content(lambda old: b"\0\0\0\x18ftypheic" + bytes(99)), *THERE, "HEIC"
    ),
    "file is empty": error(
        "image-unreadable", content(lambda old: b""), *THERE, "not an image: the file is empty"
    ),
    "header is noise": error(
        "image-unreadable", content(lambda old: old[:2] + bytes(200) + old[202:]), *THERE
    ),
    "no pixel is a number": error(
        "image-unreadable",
        as_other_kind(Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32)), "b.tif"),
        "image 103 ('b.tif')",
        "no pixel is a finite number",
    ),
    "a few values hide the others": warning(
        "image-plain",
        as_other_kind(Image.fromarray(spiked()), "b.png"),
        "image 103 ('b.png')",
        "(0, 0, 0)",
        "clip its extreme values",
    ),
    "black": warning(
        "image-plain",
        as_other_kind(Image.new("RGB", (WIDTH, HEIGHT)), "b.png"),
        "image 103 ('b.png')",
        "(0, 0, 0)",
    ),
    "white, with a dead pixel": warning(
        "image-plain",
        resaved(lambda old: speckled(), format="PNG"),
        *THERE,
        "(255, 255, 255)",
        options=THOROUGH,
    ),
    "pages": note(
        "image-frames",
        lambda root: as_pages(root / "train/train-03.jpg"),
        *THERE,
        "holds 3 images",
        "only the first",
    ),
    "file is a folder": error(
        "image-unreadable",
        lambda root: [
            (root / "train/train-03.jpg").unlink(),
            (root / "train/train-03.jpg").mkdir(),
        ],
        *THERE,
    ),
    "file of another size": error(
        "image-size",
        resaved(lambda old: old.resize((32, 24))),
        *THERE,
        "is 32x24 px, but annotated as 64x48",
    ),
    "size by mistake": error(
        "image-size", image(width=65), *THERE, "is 64x48 px, but annotated as 65x48"
    ),
    "file on its side": error(
        "image-sideways",
        resaved(lambda old: old.transpose(Image.Transpose.ROTATE_90)),
        *THERE,
        "is 48x64",
        "restore the file",
    ),
    "file on its side, with a tag": error(
        "image-turned",
        resaved(lambda old: old.transpose(Image.Transpose.ROTATE_90), exif=turned(6)),
        *THERE,
        "is 48x64",
        "EXIF",
    ),
    "EXIF tag": warning(
        "image-orientation", resaved(lambda old: old, exif=turned(6)), *THERE, "orientation 6"
    ),
    "EXIF tag, upside down": warning(
        "image-orientation", resaved(lambda old: old, exif=turned(3)), *THERE
    ),
    "image that nothing names": warning(
        "image-unused",
        lambda root: Image.new("RGB", (9, 9)).save(root / "train/extra.jpg"),
        "train",
        "extra.jpg",
    ),
    "image twice": warning(
        "image-twice",
        copied("train/train-02.jpg", "train/train-03.jpg"),
        *THERE,
        "image 102",
        "train-02.jpg",
    ),
    "image in both splits": warning(
        "image-leak",
        copied("train/train-02.jpg", "val/val-05.jpg"),
        "instances_val.json",
        "image 105",
        "image 102",
    ),
    "image in both splits, saved again": warning(
        "image-leak",
        lambda root: [
            copied("train/train-02.jpg", "val/val-05.jpg")(root),
            resaved(lambda old: old, "val/val-05.jpg", quality=60)(root),
        ],
        "image 105",
        "image 102",
        options=THOROUGH,
    ),
    # what boxes say together
    "xyxy": error(
        "format-xyxy",
        boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
        *TRAIN,
        "fit as xyxy",
        also=("box-outside",),
    ),
    "fractions": error(
        "format-fractions",
        boxes(lambda b: [b[0] / 64, b[1] / 48, b[2] / 64, b[3] / 48]),
        *TRAIN,
        "annotation 1000",
        also=("object-small",),
    ),
    "centres": warning(
        "format-center",
        boxes(lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]]),
        *TRAIN,
        "corner",
        also=("box-outside",),
    ),
    "box twice": warning(
        "box-twice",
        document(lambda d: d["annotations"].append({**d["annotations"][4], "id": 5000})),
        *TRAIN,
        "annotation 5000",
        "annotation 1004",
    ),
    "nearly the same box": warning(
        "box-twice",
        document(
            lambda d: d["annotations"].append(
                {**d["annotations"][4], "id": 5000, "bbox": moved(d["annotations"][4])}
            )
        ),
        "annotation",
        "1004",
        "5000",
    ),
    "no objects": error(
        "no-objects",
        document(lambda d: d.update(annotations=[])),
        *TRAIN,
        "14 images",
        also=("class-only-val",),
    ),
    "no objects in val": error(
        "no-objects",
        document(lambda d: d.update(annotations=[]), "val"),
        "instances_val.json",
        "10 images",
        also=("class-only-train",),
    ),
    "image without objects": note(
        "image-empty",
        document(lambda d: d.update(annotations=d["annotations"][3:])),
        *TRAIN,
        "image 100",
    ),
    # what does not suit the model
    "more objects than queries": warning(
        "image-crowded",
        lambda root: None,
        *TRAIN,
        "image 100",
        "3 objects",
        "2 queries",
        options=("--num-queries", "2"),
    ),
    "small objects": warning(
        "object-small",
        boxes(lambda b: [b[0], b[1], 3, 3]),
        *TRAIN,
        "100% of the boxes",
        "--image-size",
    ),
    "small val split": warning("val-small", thinned(4, "val"), "val has 4 images"),
    # YOLO
    "YOLO: no images": error(
        SPLIT,
        lambda root: shutil.rmtree(root / "images/train"),
        "data.yaml",
        "images/train",
        form="yolo",
    ),
    "YOLO: no labels": error(
        "no-objects",
        lambda root: shutil.rmtree(root / "labels/train"),
        "data.yaml",
        form="yolo",
        also=("labels-missing", "class-only-val"),
    ),
    "YOLO: unknown class": error(
        "class-unknown",
        line("3 0.5 0.5 0.2 0.2"),
        *LINE,
        "3 0.5",
        "one of its numbers (0, 1, 2)",
        form="yolo",
    ),
    "YOLO: class is a name": error(
        "line-invalid", line("cup 0.5 0.5 0.2 0.2"), *LINE, "cup", form="yolo"
    ),
    "YOLO: a number is missing": error("line-invalid", line("0 0.5 0.5 0.2"), *LINE, form="yolo"),
    "YOLO: not a number": error(
        "line-invalid", line("0 0.5 nan 0.2 0.2"), *LINE, "nan", form="yolo"
    ),
    "YOLO: pixels": error("box-outside", line("0 32 24 16 12"), *LINE, "64x48 px", form="yolo"),
    "YOLO: no width": error("box-empty", line("0 0.5 0.5 0 0.2"), *LINE, "zero", form="yolo"),
    "YOLO: corners": warning(
        "format-center",
        labels(as_corner),
        "data.yaml",
        "corner instead of the centre",
        form="yolo",
        also=("box-outside",),
    ),
    "YOLO: image cut short": error(
        "image-unreadable",
        content(lambda old: old[:-30], "images/train/train-03.png"),
        "train-03.png",
        form="yolo",
    ),
    "YOLO: not an image": error(
        "image-unreadable",
        content(lambda old: b"<html>", "images/train/train-03.png"),
        "train-03.png",
        form="yolo",
    ),
    "YOLO: box twice": warning(
        "box-twice",
        text(lambda old: old + old, "labels/train/train-03.txt"),
        "labels/train/train-03.txt: line 4: is the same box as line 1;",
        form="yolo",
    ),
    # parts of one annotation that contradict each other
    "areas of zero": warning(
        "area-differs",
        both(lambda d: [row.update(area=0) for row in d["annotations"]]),
        *TRAIN,
        "annotation 1000",
        "area 0 cannot be that of bbox",
    ),
    "area of another unit": warning(
        "area-differs", annotation(area=1e6), *HERE, "area 1000000 cannot be that of bbox"
    ),
    "outline of another object": warning(
        "outline-differs",
        annotation(bbox=[2, 3, 20, 16], segmentation=[[40, 30, 60, 30, 60, 44]]),
        *HERE,
        "[40.0, 30.0, 60.0, 44.0] as xyxy",
        also=ALONE,
    ),
    "boxes are whole images": warning(
        "box-whole",
        both(lambda d: [row.update(bbox=[0, 0, 64, 48]) for row in d["annotations"]]),
        *TRAIN,
        "42 of 42 boxes cover the whole image",
    ),
    "category of a blank": error("name-invalid", category(name=" "), *TRAIN, "is blank"),
    "outlines of other objects": error(
        "outline-differs",
        both(transposed),
        *TRAIN,
        "most boxes contradict their outlines",
    ),
    "box and mask of another size": error(
        "mask-size",
        annotation(bbox=[2, 3, 20, 16], segmentation=mask(24, 32)),
        *HERE,
        "its mask is 32x24 px",
        "64x48 px",
        also=ALONE,
    ),
    "mask of another size": warning(
        "mask-size",
        annotation(bbox=[4, 6, 40, 32], segmentation=mask(24, 32)),
        *HERE,
        "its mask is 32x24 px",
        also=("outline-differs", *ALONE),
    ),
    "corners beside outlines": error(
        "format-xyxy", both(corners_with_outlines), *TRAIN, "annotation 1000", "write xywh"
    ),
    # columns of YOLO that may mean two things
    "YOLO: keypoints without a shape": error(
        "line-ambiguous",
        labels(
            lambda old: "".join(
                f"{line} {' '.join(line.split()[1:3])} 0 0\n" for line in old.splitlines()
            )
        ),
        "train-00.txt",
        "line 1",
        "kpt_shape: [2, 2]",
        form="yolo",
    ),
    "YOLO: scores": error(
        "line-invalid", with_columns("0.9"), "train-00.txt", "'0.9', may be a score", form="yolo"
    ),
    "YOLO: tracks": error(
        "line-ambiguous", with_columns("0.9 1"), "train-00.txt", "a track id?", form="yolo"
    ),
    "YOLO: a shape of other keypoints": error(
        "line-invalid",
        lambda root: [
            with_columns("0.5 0.5 2")(root),
            text(lambda old: old + "kpt_shape: [17, 3]\n", "data.yaml")(root),
        ],
        "train-00.txt",
        "8 columns, and kpt_shape: [17, 3] of data.yaml makes 56",
        form="yolo",
    ),
    # Pascal VOC
    "VOC: file name of another image": warning(
        "filename-differs",
        xml("train-03.jpg", "train-04.jpg"),
        "train-03.xml",
        "train-03.jpg is used",
        form="voc",
    ),
    "YOLO: a second YAML file": warning(
        "layout-unused",
        lambda root: shutil.copy(root / "data.yaml", root / "dataset.yaml"),
        "dataset.yaml is not read",
        form="yolo",
    ),
    "YOLO: digits of other scripts": error(
        "line-invalid", line("\uff11 0.5 0.5 0.2 0.2"), *LINE, "are not ASCII", form="yolo"
    ),
    "VOC: pixels from 0": note(
        "pixels-from-0", zero_based, "train-03.xml", "VOC counts from 1", form="voc"
    ),
    "VOC: outline of another object": warning(
        "outline-differs",
        xml("<name>cup</name>", f"<name>cup</name>{POLYGON}"),
        "train-03.xml",
        "is not the box around its outline",
        form="voc",
    ),
    "VOC: width and height": error(
        "box-empty",
        xml("<xmax>", "<xmax>0."),
        "train-03.xml",
        "object 1",
        "if it is xywh, write its corners",
        form="voc",
    ),
    "VOC: not XML": error(
        "xml-invalid", xml("<annotation>", "<annotation"), "train-03.xml", form="voc"
    ),
    "VOC: no XML": error(
        "annotation-missing",
        lambda root: (root / "Annotations/train-03.xml").unlink(),
        "train-03.xml",
        form="voc",
    ),
    "VOC: document type": error(
        "xml-invalid", xml("<annotation>", "<!DOCTYPE a><annotation>"), "refused", form="voc"
    ),
    "VOC: no class": error(
        "class-missing", xml("<name>cup</name>", ""), "train-03.xml", "object 1", form="voc"
    ),
    "VOC: no box": error(
        "box-invalid", xml("xmin", "left", 2), "train-03.xml", "object 1", form="voc"
    ),
    "VOC: box outside": error(
        "box-outside",
        xml("</xmax>", "0</xmax>"),
        "train-03.xml",
        "object 1",
        "64x48 px",
        form="voc",
    ),
    "VOC: image is missing": error(
        "image-missing",
        lambda root: (root / "JPEGImages/train-03.jpg").unlink(),
        "train-03.xml",
        form="voc",
    ),
    "VOC: another size": error(
        "image-size",
        xml("<width>64", "<width>80"),
        "train-03.jpg",
        "annotated as 80x48",
        form="voc",
    ),
    "VOC: list names nothing": error(
        SPLIT,
        text(lambda old: "", "ImageSets/Main/train.txt"),
        "train.txt",
        "lists no images",
        form="voc",
    ),
    "VOC: class in two spellings": warning(
        "class-alike",
        xml("<name>cup</name>", "<name>Cup</name>"),
        "'Cup'",
        "'cup'",
        form="voc",
        also=("class-only-train", "class-rare"),
    ),
    # further forms of the same kinds
    "annotations is a dict": error(
        SPLIT, document(lambda d: d.update(annotations={})), *TRAIN, '"annotations" is missing'
    ),
    "an image is null": error(
        SPLIT, document(lambda d: d["images"].append(None)), *TRAIN, "list of objects"
    ),
    "categories is empty": error(
        SPLIT, document(lambda d: d.update(categories=[])), *TRAIN, '"categories" is empty'
    ),
    "image id is a list": error("id-invalid", image(id=[1]), "id [1]", also=ORPHANS),
    "image id is a fraction": error("id-invalid", image(id=1.5), "id 1.5", also=ORPHANS),
    "image id is too large": error("id-invalid", image(id=2**70), "train-03.jpg", also=ORPHANS),
    "image id is not a number": error("id-invalid", image(id=float("nan")), "id nan", also=ORPHANS),
    "annotation lists no images": error(
        "image-unknown", without("image_id", "annotations", 4), *HERE, "image_id None"
    ),
    "annotation names no category": error(
        "category-unknown", without("category_id", "annotations", 4), *HERE, "category_id None"
    ),
    "bbox of texts": error("box-invalid", annotation(bbox=["1", "2", "3", "4"]), *HERE, "'1'"),
    "bbox by names": error(
        "box-invalid", annotation(bbox={"x": 1, "y": 2, "width": 3, "height": 4}), *HERE, "'width'"
    ),
    "bbox of two points": error("box-invalid", annotation(bbox=[[1, 2], [3, 4]]), *HERE),
    "bbox of five": error("box-invalid", annotation(bbox=[1, 2, 3, 4, 5]), *HERE),
    "bbox is a number": error("box-invalid", annotation(bbox=7), *HERE, "bbox 7"),
    "bbox infinite": error("box-invalid", annotation(bbox=[1, 2, float("inf"), 4]), *HERE),
    "bbox of true": error("box-invalid", annotation(bbox=[True, 2, 3, 4]), *HERE),
    "bbox as large as a number can be": error(
        "box-invalid", annotation(bbox=[1, 2, 1e300, 4]), *HERE
    ),
    "width is text": error("size-invalid", image(width="64"), *THERE, "'64'x48"),
    "width is a fraction": error("size-invalid", image(width=64.5), *THERE, "64.5x48"),
    "width is larger than that of any image": error(
        "size-invalid", image(width=10**10), *THERE, "10000000000x48"
    ),
    "height is negative": error("size-invalid", image(height=-48), *THERE, "64x-48"),
    "width and height exchanged": error(
        "image-sideways",
        image(width=48, height=64),
        *THERE,
        "swap width and height",
        also=("box-outside",),
    ),
    "file name is a number": error("path-outside", image(file_name=7), "image 103", "7"),
    "file name is empty": error("path-outside", image(file_name=""), "image 103"),
    "file name with a zero": error("path-outside", image(file_name="a\0.jpg"), "image 103"),
    "file name is the folder": error("path-outside", image(file_name="."), "image 103"),
    "file name in capitals": error(
        "image-missing", image(file_name="TRAIN-03.JPG"), "image 103", "write 'train-03.jpg'"
    ),
    "file name without suffix": error(
        "image-missing", image(file_name="train-03"), "image 103", "write 'train-03.jpg'"
    ),
    "file name of another folder": error(
        "image-missing", image(file_name="old/train-03.jpg"), "write 'train-03.jpg'"
    ),
    "path of another machine, lost": error(
        "path-outside",
        image(file_name="/content/lost.jpg"),
        "image 103",
        "write the path of its file",
    ),
    "link to nowhere": error(
        "image-unreadable",
        lambda root: [
            (root / "train/train-03.jpg").unlink(),
            (root / "train/train-03.jpg").symlink_to("lost.jpg"),
        ],
        *THERE,
        "missing",
    ),
    "mark that is no mark": warning(
        "flag-invalid", annotation(iscrowd="maybe"), *HERE, "'maybe'", "counts as 0"
    ),
    "name is null": error("name-invalid", category(name=None), "category 12", "None"),
    "name is a list": error("name-invalid", category(name=["plate"]), "category 12"),
    "GIF cut short": error("image-unreadable", cut("GIF"), *THERE, "cannot decode"),
    "TIFF cut short": error("image-unreadable", cut("TIFF"), *THERE, "cannot decode"),
    "WebP cut short": error("image-unreadable", cut("WEBP"), *THERE),
    "BMP cut short": error("image-unreadable", cut("BMP"), *THERE, "cannot decode"),
    "JPEG without its end": error(
        "image-unreadable", content(lambda old: old[:-40]), *THERE, "cannot decode"
    ),
    "file is an SVG": error(
        "image-unreadable", content(lambda old: b"<svg/>"), *THERE, "not an image"
    ),
    "EXIF tag, mirrored": warning(
        "image-orientation", resaved(lambda old: old, exif=turned(2)), *THERE, "orientation 2"
    ),
    "YOLO: negative class": error("class-unknown", line("-1 0.5 0.5 0.2 0.2"), *LINE, form="yolo"),
    "YOLO: fraction of a class": error(
        "class-unknown", line("0.5 0.5 0.5 0.2 0.2"), *LINE, form="yolo"
    ),
    "YOLO: commas": error("line-invalid", line("0,0.5,0.5,0.2,0.2"), *LINE, form="yolo"),
    "YOLO: infinite": error("line-invalid", line("0 0.5 0.5 inf 0.2"), *LINE, form="yolo"),
    "YOLO: negative width": error("box-empty", line("0 0.5 0.5 -0.2 0.2"), *LINE, form="yolo"),
    "YOLO: beyond the border": error("box-outside", line("0 0.95 0.5 0.4 0.2"), *LINE, form="yolo"),
    "VOC: xmin is text": error(
        "box-invalid", xml("<xmin>", "<xmin>x"), "train-03.xml", "object 1", form="voc"
    ),
    "VOC: empty XML": error(
        "xml-invalid",
        text(lambda old: "", "Annotations/train-03.xml"),
        "train-03.xml",
        form="voc",
    ),
    "VOC: mark that is no mark": warning(
        "flag-invalid",
        xml("<bndbox>", "<difficult>2</difficult><bndbox>"),
        "train-03.xml",
        "object 1",
        "'2'",
        form="voc",
    ),
    "VOC: list names an image that is not there": error(
        "annotation-missing",
        text(lambda old: old + "lost\n", "ImageSets/Main/train.txt"),
        "lost.xml",
        form="voc",
    ),
    "VOC: list leads out": error(
        "path-outside",
        text(lambda old: old + "../../lost\n", "ImageSets/Main/train.txt"),
        "train.txt",
        "line 15",
        form="voc",
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    return {form: write(root / form) for form, write in WRITERS.items()}


def checked(root: Path, capsys: pytest.CaptureFixture, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `redetr check`."""
    code = 0
    try:
        main(["check", str(root), "--json", *options])
    except SystemExit as end:
        code = end.code
    report = json.loads(capsys.readouterr().out)
    for fault in report["faults"]:
        if fault["count"] > 1 and fault["code"] != "object-small":  # a share of all
            assert len(fault["items"]) == fault["count"], fault
    return code, report


def first_look(root: Path) -> None:
    """What `redetr train` does first."""
    essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))


def refused(root: Path) -> str:
    """What `redetr train` says instead of training; it leaves nothing behind."""
    output = root.parent / "run"
    with pytest.raises(InputError) as caught:
        train(
            replace(
                redetr_n(), data=str(root), output=str(output), steps=1, device="cpu", num_workers=0
            )
        )
    assert not output.exists()
    return str(caught.value)


NO_DATA = {
    "no such folder": ("coco", shutil.rmtree, "no such folder"),
    "empty folder": (
        "coco",
        lambda root: [shutil.rmtree(root), root.mkdir()],
        "the folder is empty",
    ),
    "unknown layout": (
        "coco",
        lambda root: shutil.rmtree(root / "annotations"),
        "no data set found",
    ),
    "not YAML": ("yolo", text(lambda old: "names: [", "data.yaml"), "data.yaml: not YAML"),
    "a key twice": (
        "yolo",
        text(lambda old: f"{old}\nnames: [cup, bowl, dish]\n", "data.yaml"),
        "'names' occurs twice",
    ),
    "YAML of another kind": (
        "yolo",
        text(lambda old: "- 1", "data.yaml"),
        "data.yaml: holds no settings",
    ),
    "YAML without classes": (
        "yolo",
        text(lambda old: old.replace("names", "nc"), "data.yaml"),
        "data.yaml: names is",
    ),
    "keypoints of no shape": (
        "yolo",
        text(lambda old: old + "kpt_shape: 17\n", "data.yaml"),
        "data.yaml: kpt_shape '17' is not",
    ),
    "class of no number": (
        "yolo",
        text(lambda old: old.split("[")[0] + "{a: b}", "data.yaml"),
        "not a class number",
    ),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_no_data_set_at_all(name, sound, tmp_path, capsys):
    form, do, says = NO_DATA[name]
    root = Path(shutil.copytree(sound[form], tmp_path / "data"))
    do(root)
    with pytest.raises(SystemExit) as end:
        main(["check", str(root)])
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (1, 1)
    assert f"redetr: {root}" in said and says in said
    assert said == f"redetr: {refused(root)}\n"


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_is_wrong_with_sound_data(form, sound, capsys):
    code, report = checked(sound[form], capsys, "--thorough")
    assert (code, report["faults"], report["errors"]) == (0, [], 0)
    assert report["verdict"].startswith("ready to train: redetr train redetr_n --data ")
    first_look(sound[form])


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_and_not_trained_on(name, sound, tmp_path, capsys):
    damage = DAMAGED[name]
    root = Path(shutil.copytree(sound[damage.form], tmp_path / "data"))
    damage.do(root)
    code, report = checked(root, capsys, *damage.options)
    assert {fault["code"] for fault in report["faults"]} == {damage.code, *damage.also}
    fault = next(fault for fault in report["faults"] if fault["code"] == damage.code)
    line = f"{fault['file']}: {fault['where']}: {fault['text']}; {fault['remedy']}"
    assert [says for says in damage.says if says not in line] == []
    assert fault["remedy"] and "\n" not in line
    assert fault["severity"] == damage.severity
    spoiled = any(fault["severity"] == "error" for fault in report["faults"])
    assert code == spoiled
    if not spoiled:
        first_look(root)
    elif not damage.options:  # what only --thorough finds, training meets when it reads the image
        said = refused(root)
        errors = [fault["text"] for fault in report["faults"] if fault["severity"] == "error"]
        assert any(text in said for text in errors)
