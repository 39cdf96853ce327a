"""Random damage of annotation files: whatever is in them, they are read, or refused in one line."""

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import write_tiny_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from redetr.data.annotations import Annotations
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.formats.writing import convert
from redetr.errors import InputError

FORMS = ("coco", "yolo", "voc")
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
    kinds = (".json", ".yaml", ".txt", ".xml")
    return {
        form: {p: p.read_bytes() for p in sorted((root / form).rglob("*")) if p.suffix in kinds}
        for form in FORMS
    }


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


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300)
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
            outcomes.append(bool(read_annotations(root, "train").faults))
        except InputError:
            outcomes.append(None)
        file.write_bytes(whole[form][file])
    assert set(outcomes) == {True, False, None} if form != "voc" else {True, False}
