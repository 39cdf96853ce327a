"""Random damage of annotation files: whatever is in them, they are read, or refused in one line."""

import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from conftest import write_tiny_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from redetr.data.annotations import Annotations
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.errors import InputError
from tests.tiers import cases

FORMS = ("coco", "yolo", "voc", "pose", "labelme", "cvat", "via", "datumaro", "darknet")
TOKEN = re.compile(rb'"[^"]*"|-?\d+(?:\.\d+)?|\w+|[][{}<>/:,]')
ODD = [
    b"",
    b"0",
    b"-1",
    b"1.5",
    b"-0.0",
    b"1e308",
    b"1e400",
    b"NaN",
    b"nan",
    b"inf",
    b"Infinity",
    b"9" * 30,
    b"9" * 5000,
    b"2026-13-45",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"[[1]]",
    b"[1, [2]]",
    b'{"id": 1}',
    b"&a [*a]",
    b"*a",
    b"<<: 1",
    b'""',
    b'"x"',
    b"'",
    b'"',
    b'"../../../etc"',
    b"/etc",
    b"..",
    b".",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\u000a"',
    b"\0",
    b"\xff",
    b"\xc3\xa9",
    b"\n",
    b"\t",
    b"#",
    b"a" * 300,
    b"b/" * 200,
    b"!!python/object:os.system",
    b"!!int x",
    b"<object>",
    b"</object>",
    b"<object/>",
    b"&lt;",
    b"&#0;",
    b"&x;",
    b"<!DOCTYPE x>",
    b"<![CDATA[x]]>",
    b"---",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict[Path, bytes]]:
    """The annotation files of the tiny data set in each form."""
    root = tmp_path_factory.mktemp("fuzz")
    write_tiny_coco(root / "coco")
    for form in ("yolo", "voc"):
        convert(root / "coco", root / form, form)
    (root / "yolo/all.txt").write_text("images/train/train-0.jpg\n./images/train/train-1.jpg\n")
    (root / "yolo/data.yaml").write_text(
        "path: .\ntrain: [images/train, all.txt]\nval: images/val\nnames: [a, b, c]\n"
    )
    write_pose(root / "yolo", root / "pose")
    write_labelme(root / "coco", root / "labelme")
    write_exports(root / "coco", root)
    shutil.copytree(root / "yolo", root / "darknet")
    (root / "darknet/data.yaml").unlink()
    (root / "darknet/obj.data").write_text("classes = 3\ntrain = all.txt\nnames = obj.names\n")
    (root / "darknet/obj.names").write_text("a\nb\nc\n")
    add_outlines(root)
    kinds = (".json", ".yaml", ".txt", ".xml", ".data", ".names")
    return {
        form: {p: p.read_bytes() for p in sorted((root / form).rglob("*")) if p.suffix in kinds}
        for form in FORMS
    }


def write_pose(yolo: Path, root: Path) -> None:
    """The same boxes with two keypoints each, some without, and a shape for them."""
    shutil.copytree(yolo, root)
    for file in root.glob("labels/*/*.txt"):
        lines = file.read_text().splitlines()
        longer = [f"{line} {' '.join(line.split()[1:3])} 0 0" for line in lines[:2]]
        file.write_text("\n".join([*longer, *lines[2:]]))
    with (root / "data.yaml").open("a") as config:
        config.write("kpt_shape: [2, 2]\n")


def write_labelme(coco: Path, root: Path) -> None:
    """The same boxes as rectangles, polygons and circles."""
    for split in ("train", "val"):
        shutil.copytree(coco / split, root / split)
        a = read_annotations(coco, split)
        for number in range(len(a)):
            shapes = []
            for x1, y1, x2, y2 in a.boxes[a.objects_of(number)].tolist():
                kind = ("rectangle", "polygon", "circle")[len(shapes) % 3]
                points = [[x1, y1], [x2, y2], [x1, y2]][: 3 if kind == "polygon" else 2]
                if kind == "circle":
                    points = [[20.0, 20.0], [24.0, 23.0]]
                shapes.append({"label": "cup", "points": points, "shape_type": kind, "group_id": 1})
            height, width = a.sizes[number].tolist()
            path = a.path(number)
            content = {"shapes": shapes, "imagePath": path.name, "imageData": None}
            content |= {"imageHeight": height, "imageWidth": width}
            (root / split / f"{path.stem}.json").write_text(json.dumps(content))


def write_exports(coco: Path, root: Path) -> None:
    """The same boxes in files of CVAT, VIA and Datumaro, with other shapes among them."""
    a = read_annotations(coco, "train")
    cvat = []
    via = {}
    items: list[dict[str, Any]] = []
    for number in range(len(a)):
        name = a.path(number).name
        height, width = a.sizes[number].tolist()
        tags = ["<polygon label='a' points='1,1;9,1;9,9'/><ellipse label='b' cx='9' cy='9' rx='3' "
                "ry='4'/><mask label='a' rle='0,6' left='2' top='3' width='3' height='2'/>"]  # fmt: skip
        regions = []
        annotations: list[dict[str, Any]] = [
            {"type": "polygon", "points": [1, 1, 9, 1, 9, 9], "label_id": 0}
        ]
        annotations.append({"type": "rotated_bbox", "points": [20, 20, 9, 5, 30], "label_id": 1})
        for x1, y1, x2, y2 in a.boxes[a.objects_of(number)].tolist():
            tags.append(f"<box label='a' xtl='{x1}' ytl='{y1}' xbr='{x2}' ybr='{y2}'/>")
            box = [x1, y1, x2 - x1, y2 - y1]
            shape = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"name": "rect"}
            regions.append({"shape_attributes": shape, "region_attributes": {"label": "a"}})
            annotations.append({"type": "bbox", "bbox": box, "label_id": 0})
        size = f"width='{width}' height='{height}'"
        cvat.append(f"<image id='{number}' name='{name}' {size}>{''.join(tags)}</image>")
        via[name] = {"filename": name, "regions": regions, "file_attributes": {}}
        image = {"path": name, "size": [height, width]}
        items.append({"id": name, "image": image, "annotations": annotations})
    labels = {"label": {"labels": [{"name": "a"}, {"name": "b"}]}}
    texts = {
        "cvat/annotations.xml": f"<annotations><meta></meta>{''.join(cvat)}</annotations>",
        "via/images/via.json": json.dumps(via),
        "datumaro/annotations/train.json": json.dumps({"categories": labels, "items": items}),
    }
    for file, content in texts.items():
        folder = root / file.split("/")[0]
        shutil.copytree(coco / "train", folder / "images")
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(content)


def add_outlines(root: Path) -> None:
    """Polygons, masks, areas and turned boxes in the files of COCO and VOC."""
    for file in (root / "coco/annotations").glob("*.json"):
        document = json.loads(file.read_text())
        for number, row in enumerate(document["annotations"]):
            x, y, w, h = row["bbox"]
            outlines = [
                [[x, y, x + w, y, x + w, y + h, x, y + h]],
                {"size": [48, 64], "counts": [3000, 50, 22]},
                [],
            ]
            row["segmentation"] = outlines[number % 3]
            row["area"] = w * h / 2
            row["attributes"] = {"rotation": 30.0 * (number % 2)}
        file.write_text(json.dumps(document))
    polygon = "<polygon><x1>9</x1><y1>9</y1><x2>20</x2><y2>9</y2><x3>20</x3><y3>20</y3></polygon>"
    turned = "<robndbox><cx>20</cx><cy>20</cy><w>9</w><h>5</h><angle>0.5</angle></robndbox>"
    for number, file in enumerate(sorted((root / "voc/Annotations").glob("*.xml"))):
        more = (polygon, turned)[number % 2]
        file.write_text(file.read_text().replace("</name>", f"</name>{more}", 1))


def damaged(content: bytes, random: Random) -> bytes:
    """The content with one to three damages."""
    for _ in range(random.randint(1, 3)):
        start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
        tokens = [match.span() for match in TOKEN.finditer(content)] or [(0, len(content))]
        kind = random.randrange(8)
        if kind < 4:  # a word or number is another one
            start, end = random.choice(tokens)
            content = content[:start] + random.choice(ODD) + content[end:]
        elif kind == 4:  # two are swapped
            (a, b), (c, d) = sorted([random.choice(tokens), random.choice(tokens)])
            content = (
                content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]
                if b <= c
                else content
            )
        elif kind == 5:  # cut out, or short
            content = content[:start] + content[end:] if random.random() < 0.7 else content[:start]
        elif kind == 6:  # there twice
            content = content[:end] + content[start:]
        else:
            content = content[:start] + random.randbytes(random.randint(1, 4)) + content[start:]
    return content


def require_consistent(a: Annotations) -> None:
    """What the rest of the library relies on."""
    assert len(a.names) == len(a.ids) == len(a.sizes) == len(a.first) - 1
    assert (
        len(a.boxes)
        == len(a.labels)
        == len(a.iscrowd)
        == len(a.area)
        == len(a.object_ids)
        == a.first[-1]
    )
    assert (np.diff(a.first) >= 0).all()
    assert a.first[0] == 0
    width, height = np.repeat(a.sizes, np.diff(a.first), axis=0)[:, ::-1].T
    x1, y1, x2, y2 = a.boxes.T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
    assert ((a.labels >= 0) & (a.labels < len(a.class_names))).all()
    assert (a.area >= 0).all()
    assert np.isfinite(a.area).all()
    assert len(set(a.category_ids)) == len(a.category_ids) == len(a.class_names)
    assert all(
        ".." not in name.decode().split("/") and not name.startswith(b"/") for name in a.names
    )
    assert not any("\n" in str(fault) for fault in a.faults)


def attack(files: dict[Path, bytes], form: str, seed: int) -> None:
    """Damages one or two files, reads the data set and puts them back."""
    random = Random(seed)
    root = next(p for p in next(iter(files)).parents if p.name == form)
    chosen = random.sample(list(files), random.randint(1, min(2, len(files))))
    try:
        for file in chosen:
            file.write_bytes(damaged(files[file], random))
        for split in splits_of(root):
            require_consistent(read_annotations(root, split))
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        for file in chosen:
            file.write_bytes(files[file])


@pytest.mark.parametrize("form", cases(FORMS, ["coco", "yolo"]))
@settings(max_examples=130)
@given(seed=st.integers(0, 2**32))
def test_damage_is_read_or_refused(whole, form, seed):
    attack(whole[form], form, seed)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10_000)
@given(seed=st.integers(0, 2**32))
def test_much_damage_is_read_or_refused(whole, form, seed):
    attack(whole[form], form, seed)


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_of_many_kinds(whole, form):
    """The attacks are no good if all files are refused at once, or none."""
    outcomes = []
    root = next(p for p in next(iter(whole[form])).parents if p.name == form)
    for seed in range(60):
        random = Random(seed)
        file = random.choice(list(whole[form]))
        file.write_bytes(damaged(whole[form][file], random))
        try:
            faults = read_annotations(root, "train").faults
            outcomes.append(any(fault.severity == "error" for fault in faults))
        except InputError:
            outcomes.append(None)
        file.write_bytes(whole[form][file])
    assert len(set(outcomes)) > 1
