"""Names of images that Windows and macOS do not distinguish: no image of the source is written
to, and none replaces another."""

import json
import os
from pathlib import Path

import pytest
from test_coco import HEIGHT, WIDTH, save_image

from redetr.data.formats import writing
from redetr.data.formats.cutting import Cut
from redetr.data.formats.layouts import read_annotations
from redetr.data.formats.writing import convert
from redetr.errors import InputError

COMPOSED = "caf\u00e9.png"
DECOMPOSED = "cafe\u0301.png"


def coco(root: Path, **names_of: list[str]) -> Path:
    """COCO with images of these names, one object in each."""
    for split, names in names_of.items():
        images = []
        annotations = []
        for number, name in enumerate(names, start=1):
            save_image(root / split / name, seed=len(split) * number)
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            box = [number, 2, 20, 30]
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
        categories = [{"id": 1, "name": "ant"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    return root


@pytest.fixture
def ignoring_capitals(monkeypatch):
    """A disk where a new file has the name in small letters, whatever its capitals are."""
    link = os.link

    def linked(source, destination):
        folder, name = os.path.split(destination)
        link(source, os.path.join(folder, name.lower()))

    monkeypatch.setattr(os, "link", linked)


def images_of(root: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in root.rglob("*.png")}


@pytest.mark.parametrize("names", [("a.png", "A.png"), (COMPOSED, DECOMPOSED), ("a.png", "A.PNG")])
def test_voc_tells_names_of_two_splits_apart_by_prefixes(tmp_path, names):
    train, val = names
    source = coco(tmp_path / "source", train=[train, "b.png"], val=[val, "c.png"])
    notes = convert(source, tmp_path / "voc", "voc")
    assert any("2 images with names that are in several splits" in note for note in notes)
    written = {file.name for file in (tmp_path / "voc" / "JPEGImages").iterdir()}
    assert written == {f"train_{train}", f"val_{val}", "b.png", "c.png"}
    for split, name in (("train", train), ("val", val)):
        before = (source / split / name).read_bytes()
        after = read_annotations(tmp_path / "voc", split)
        index = after.names.tolist().index(f"{split}_{name}".encode())
        assert after.path(index).read_bytes() == before


@pytest.mark.parametrize("form", ["yolo", "voc"])
@pytest.mark.parametrize("names", [("A.png", "a.png"), (DECOMPOSED, COMPOSED)])
def test_label_files_that_other_disks_do_not_distinguish_are_refused(tmp_path, form, names):
    source = coco(tmp_path / "source", train=list(names))
    words = "would share one label file on Windows and macOS, .*; rename one of them"
    with pytest.raises(InputError, match=words):
        convert(source, tmp_path / "new", form)
    assert not (tmp_path / "new").exists()


def test_coco_keeps_such_names_where_the_disk_does(tmp_path):
    source = coco(tmp_path / "source", train=["A.png", "a.png"])
    for cut, count in ((None, 2), (Cut(WIDTH), 2), (Cut(60), 8)):
        new = tmp_path / f"of-{count}-{cut is None}"
        convert(source, new, "coco", cut=cut)
        assert len(set(images_of(new).values())) == count


@pytest.mark.usefixtures("ignoring_capitals")
@pytest.mark.parametrize("cut", [None, Cut(WIDTH)])
def test_a_link_never_replaces_an_image_of_the_source(tmp_path, cut):
    source = coco(tmp_path / "source", train=["A.png", "a.png"])
    before = images_of(source)
    with pytest.raises(InputError, match=r"a\.png: .*rename one of them"):
        convert(source, tmp_path / "new", "coco", cut=cut)
    assert images_of(source) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("ignoring_capitals")
def test_a_tile_never_replaces_an_image_of_the_source(tmp_path):
    """`A_x00000_y00000.png` is no larger than a tile, so it is a link. Its name precedes that of
    `a.png`, of which a tile has the same name."""
    source = coco(tmp_path / "source", train=["A_x00000_y00000.png", "a.png"])
    save_image(source / "train" / "a.png", size=(2 * WIDTH, HEIGHT))
    file = source / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["images"][1]["width"] = 2 * WIDTH
    file.write_text(json.dumps(document))
    before = images_of(source)
    with pytest.raises(InputError, match=r"a_x00000_y00000\.png: .*rename one of them"):
        convert(source, tmp_path / "new", "coco", cut=Cut(WIDTH))
    assert images_of(source) == before


@pytest.mark.parametrize("put", ["_link", "_copy"])
@pytest.mark.parametrize("has_links", [True, False])
def test_nothing_is_written_into_a_file_that_is_there(tmp_path, monkeypatch, put, has_links):
    first = tmp_path / "first.png"
    second = tmp_path / "second.png"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    target = tmp_path / "target.png"
    os.link(first, target)
    if not has_links:

        def refuse(*_):
            raise OSError("no hard links")

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match="rename one of them"):
        getattr(writing, put)(second, target)
    assert first.read_bytes() == b"first"


def test_a_small_image_that_is_listed_twice_is_refused_before_it_is_written(tmp_path):
    source = coco(tmp_path / "source", train=["a.png", "b.png"])
    file = source / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["images"].append(document["images"][0] | {"id": 3})
    document["annotations"] = document["annotations"][1:]  # neither entry has objects
    file.write_text(json.dumps(document))
    words = r"two entries of image 'a\.png' would share the tile 'a\.png'; merge them into one"
    with pytest.raises(InputError, match=words):
        convert(source, tmp_path / "new", "coco", cut=Cut(WIDTH))
