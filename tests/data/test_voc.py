"""Reading data sets in Pascal VOC form: layouts of folders, pixels from 1, and the message for each
fault."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_coco import HEIGHT, WIDTH, refused, save_image

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.data.unclaimed import unclaimed_files
from redetr.errors import InputError, NoMasksError


def element(name: str, box: str, extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{extra}<bndbox>{bndbox}</bndbox></object>"


def scene(
    *objects: str, size: str = f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>"
) -> str:
    return f"<annotation><filename>other.jpg</filename><size>{size}</size>{''.join(objects)}</annotation>"


PART = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
SCENES = {
    "a": scene(
        element("bee", "1 1 100 80", "<difficult>1</difficult>" + PART),
        element("tooth", "11 21 40 60"),
    ),
    "b": scene(),
    "c": scene(element("ant", "10.5 20.25 30 40", "<difficult>0</difficult>"), size=""),
}


def write(root: Path, lists: dict[str, str] | None = None) -> Path:
    """Three images of 100 x 80 px in the devkit's folders."""
    for seed, (stem, text) in enumerate(SCENES.items()):
        save_image(root / "JPEGImages" / f"{stem}.{'jpg' if seed else 'PNG'}", seed)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, content in ({"train": "c\nb\na\n"} if lists is None else lists).items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(content)
    return root


def test_reads_boxes_labels_and_images(tmp_path):
    dataset = open_dataset(write(tmp_path), "train")
    assert (len(dataset), dataset.class_names, dataset.category_ids) == (
        3,
        ("ant", "bee", "tooth"),
        (1, 2, 3),
    )
    assert dataset.notes == ()
    image, target = dataset[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert target["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT], [10, 20, 40, 60]]
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([1, 2], [True, False])
    assert target["area"].tolist() == [8000, 1200]
    assert dataset.target(1)["boxes"].shape == (0, 4)
    assert dataset.target(2)["boxes"].tolist() == [[9.5, 19.25, 30, 40]]
    assert [dataset.target(i)["image_id"] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ({"train": "a\nb\n", "val": "c"}, "ab", "c"),
        ({"trainval": "a\nc\n"}, "ac", ""),
        ({"trainval": "a\nb\nc\n", "train": "b", "val": "a\n\n"}, "b", "a"),
        ({"trainval": "a\nb\nc\n", "val": "a"}, "", "a"),
        ({"test": "a"}, "abc", ""),  # the doctor finds that training sees it
        ({"trainval": "b\nc\n", "test": "a"}, "bc", ""),
        ({}, "abc", ""),
    ],
)
def test_lists_of_images(tmp_path, lists, train, val):
    write(tmp_path, lists)
    expected = {split: stems for split, stems in (("train", train), ("val", val)) if stems}
    expected |= {"test": "a"} if "test" in lists else {}
    assert splits_of(tmp_path) == list(expected)
    for split, stems in expected.items():
        dataset = open_dataset(tmp_path, split)
        assert "".join(dataset.path(i).stem for i in range(len(dataset))) == stems
        assert dataset.class_names == ("ant", "bee", "tooth")  # whatever the split holds


def test_lists_of_other_tasks_are_not_passed_over_in_silence(tmp_path):
    write(tmp_path, {})
    for name in ("train", "val"):
        (tmp_path / "ImageSets/Segmentation").mkdir(exist_ok=True)
        (tmp_path / f"ImageSets/Segmentation/{name}.txt").write_text("a\n")
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.code, fault.severity, fault.count) == ("list-unread", "warning", 2)


@pytest.mark.parametrize("tag", ["name", "bndbox"])
def test_an_object_with_several_boxes_or_names_is_an_error(tmp_path, tag):
    """Only the first of them would be read."""
    write(tmp_path)
    file = tmp_path / "Annotations/c.xml"
    text = file.read_text()
    whole = re.search(f"<{tag}>.*?</{tag}>", text)[0]
    file.write_text(text.replace(whole, 2 * whole))
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.code, fault.severity) == ("object-several", "error")
    assert f"has several {tag} elements" in fault.text


def test_images_and_annotations_side_by_side(tmp_path):
    for folder, stems in (("train", "ab"), ("valid", "c")):
        for stem in stems:
            save_image(tmp_path / folder / f"{stem}.jpg")
            (tmp_path / folder / f"{stem}.xml").write_text(SCENES[stem])
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val), train.class_names) == (2, 1, val.class_names)
    assert val.image(0).shape == (3, HEIGHT, WIDTH)


def test_an_image_with_two_files_is_an_error(tmp_path):
    """On disks that tell capitals apart, and with a name that two files state."""
    for stem in "ab":
        save_image(tmp_path / f"train/{stem}.jpg")
        (tmp_path / f"train/{stem}.xml").write_text(SCENES[stem])
    (tmp_path / "train/a.XML").write_text(SCENES["c"])
    refused(tmp_path, "train/a.xml: a.XML beside it is the file of the same image; keep one")
    (tmp_path / "train/a.XML").unlink()
    other = SCENES["c"].replace("other.jpg", "a.jpg")
    (tmp_path / "train/c.xml").write_text(other)
    refused(tmp_path, "train/c.xml: its image a.jpg has another file as well; keep one of them")


def capitals(text: str) -> str:
    return re.sub(r"<(/?)([a-z])", lambda tag: f"<{tag[1]}{tag[2].upper()}", text)


@pytest.mark.parametrize("folders", [("train", "train"), ("images", "labels")])
@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        lambda text: text.replace("object>", "Object>").replace("bndbox>", "BndBox>"),
        lambda text: re.sub("<(/?)", r"<\1v:", text).replace(
            ":annotation>", ':annotation xmlns:v="x">', 1
        ),
        capitals,
        lambda text: re.sub("<[^>]*>", lambda tag: tag[0].upper(), text),
    ],
    ids=["namespace", "bndbox", "prefix", "first letters", "all letters"],
)
def test_other_spellings_of_tags(tmp_path, spell, folders):
    images, annotations = folders
    save_image(tmp_path / images / "a.jpg")
    (tmp_path / annotations).mkdir(exist_ok=True)
    (tmp_path / annotations / "a.xml").write_text(spell(SCENES["a"]))
    dataset = open_dataset(tmp_path, "train")
    assert dataset.class_names == ("bee", "tooth")
    target = dataset.target(0)
    assert target["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT], [10, 20, 40, 60]]
    assert target["iscrowd"].tolist() == [True, False]


def test_no_file_can_be_read(tmp_path):
    save_image(tmp_path / "train/a.jpg")
    (tmp_path / "train/a.xml").write_text(f"<annotations>{SCENES['a']}{SCENES['b']}</annotations>")
    refused(tmp_path, "train/a.xml: holds several annotations")


def test_pixels_counted_from_0_by_other_tools_are_clipped(tmp_path):
    write(tmp_path)
    (tmp_path / "Annotations/b.xml").write_text(scene(element("ant", "0 0 100 80")))
    assert open_dataset(tmp_path, "train").target(1)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
FAULTS = {
    "not XML": ("<annotation>", "b.xml: not XML in UTF-8"),
    "not UTF-8": (b"\xff\xfe<\x00", "b.xml: not XML in UTF-16"),
    "another encoding": (SCENES["a"].replace("bee", "bête").encode("latin-1"), "not XML in UTF-8"),
    "entities": (LAUGHS, "declares a document type"),
    "empty": ("", "b.xml: not XML"),
    "xyxy swapped": (
        scene(element("ant", "50 50 10 60")),
        "object 1 ('ant')",
        "zero or negative size",
    ),
    "outside": (
        scene(element("ant", "1 1 9 9"), element("bee", "5 5 300 9")),
        "object 2 ('bee')",
        "leaves its image",
    ),
    "text in the box": (
        scene(element("ant", "1 x 9 9")),
        "has no bndbox of 4 finite numbers xmin ymin xmax ymax",
    ),
    "NaN in the box": (scene(element("ant", "1 nan 9 9")), "no bndbox of 4 finite numbers"),
    "infinite box": (scene(element("ant", "1 1 9 inf")), "no bndbox of 4 finite numbers"),
    "no box": (scene("<object><name>ant</name></object>"), "no bndbox of 4 finite numbers"),
    "another name of the box": (
        scene(element("ant", "1 1 9 9").replace("bndbox", "bbox")),
        "no bndbox of 4 finite numbers",
    ),
    "a comma in a number": (
        scene(element("ant", "1,5 1 9 9")),
        "write elements such as <xmin>12.5</xmin>",
    ),
    "several images": (f"<annotations>{scene()}{scene()}</annotations>", "several annotations"),
    "no name": (scene("<object></object>"), "object 1 ('')", "has no name"),
    "blank name": (scene(element(" ", "1 1 9 9")), "has no name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(tmp_path, fault):
    text, *fragments = FAULTS[fault]
    write(tmp_path)
    (tmp_path / "Annotations/b.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(tmp_path, f"{tmp_path}/Annotations/b.xml: ", *fragments)
    assert "more" not in message


def test_files_that_are_not_there(tmp_path):
    write(tmp_path, {"train": "a\nlost\n"})
    refused(tmp_path, "Annotations/lost.xml: cannot be read: No such file")
    (tmp_path / "Annotations/lost.xml").write_text(scene())
    refused(tmp_path, "Annotations/lost.xml: ", "JPEGImages has no such image")
    (tmp_path / "JPEGImages/lost.jpg").write_bytes(b"damaged")
    (tmp_path / "Annotations/lost.xml").write_text(scene(size=""))
    refused(tmp_path, "Annotations/lost.xml: states no size, and its image cannot be read")


def test_no_path_leads_out_of_the_folder(tmp_path):
    write(tmp_path / "data", {"train": "a\n../../secret\n/etc/passwd\n"})
    (tmp_path / "secret.xml").write_text(SCENES["a"])
    refused(
        tmp_path / "data",
        "train.txt: line 2: '../../secret' is not a path inside",
        "(and 1 more like it)",
    )
    assert len(read_annotations(tmp_path / "data", "train")) == 1


def test_a_null_byte_in_a_list_is_no_path(tmp_path):
    write(tmp_path, {"train": "a\nx\0y/lost\n"})
    refused(tmp_path, "train.txt: line 2: ")


def test_nothing_to_read(tmp_path):
    write(tmp_path, {"train": "\n"})
    refused(tmp_path, "train.txt: lists no images")
    (tmp_path / "ImageSets/Main/train.txt").write_text("b")
    for stem in SCENES:
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(scene())
    refused(tmp_path, "no XML file contains an object")


def test_missing_split_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(
        InputError, match=r"no val split \(looked for ImageSets/Main/val\.txt.*--val-fraction"
    ):
        open_dataset(tmp_path, "val")


ENCODINGS = {
    "gb2312": ("猫", "gb2312"),
    "GBK": ("镕", "gbk"),
    "iso-8859-1": ("Käfer", "iso-8859-1"),
    "windows-1252": ("Œuvre", "windows-1252"),
    "utf-16": ("猫", "utf-16"),
    "Shift_JIS": ("猫", "shift-jis"),
}


@pytest.mark.parametrize("stated", ENCODINGS)
def test_the_encoding_that_a_file_states(tmp_path, stated):
    name, encoding = ENCODINGS[stated]
    write(tmp_path)
    text = f'<?xml version="1.0" encoding="{stated}"?>\n' + scene(element(name, "1 1 9 9"))
    (tmp_path / "Annotations/b.xml").write_bytes(text.encode(encoding))
    dataset = open_dataset(tmp_path, "train")
    assert [dataset.class_names[label] for label in dataset.target(1)["labels"]] == [name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_encoding_that_the_first_bytes_show(tmp_path, encoding):
    """Whatever is stated: .NET states UTF-16 of text that it saves as UTF-8."""
    write(tmp_path)
    text = '<?xml version="1.0" encoding="utf-16"?>' + scene(element("猫", "1 1 9 9"))
    (tmp_path / "Annotations/b.xml").write_bytes(text.encode(encoding))
    assert "猫" in open_dataset(tmp_path, "train").class_names


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("martian", "states an unknown encoding, martian"),
        ("hex", "states an unknown encoding, hex"),
        ("utf-8", "not XML in utf-8"),
        ("ascii", "not XML in ascii"),
    ],
)
def test_an_encoding_that_is_not_the_one_stated(tmp_path, stated, says):
    write(tmp_path)
    text = f"<?xml version='1.0' encoding='{stated}'?>" + SCENES["a"].replace("bee", "bête")
    (tmp_path / "Annotations/b.xml").write_bytes(text.encode("latin-1"))
    refused(tmp_path, f"Annotations/b.xml: {says}", "save it as UTF-8, or state its encoding")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_with_a_byte_order_mark(tmp_path, encoding):
    write(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("a\r\nc\r\n".encode(encoding))
    assert len(open_dataset(tmp_path, "train")) == 2


# ----------------------------------------------------------------------------- masks


def with_masks(root: Path) -> Path:
    """The devkit's masks: in a.png, a void edge around both objects."""
    write(root)
    a = np.zeros((HEIGHT, WIDTH), np.uint8)
    a[20:60, 10:40] = 255
    a[22:58, 12:38] = 2
    a[2:18, 2:98] = 1
    c = np.zeros((HEIGHT, WIDTH), np.uint8)
    c[20:40, 10:30] = 1
    for stem, numbers in (("a", a), ("b", 0 * a), ("c", c)):
        save_numbers(root, stem, numbers)
    return root


def save_numbers(root: Path, stem: str, numbers: np.ndarray) -> None:
    """A mask of VOC, whose pixels are indices of a palette."""
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([channel for i in range(256) for channel in (i, 255 - i, i // 2)])
    (root / "SegmentationObject").mkdir(exist_ok=True)
    image.save(root / "SegmentationObject" / f"{stem}.png")


def test_masks(tmp_path):
    dataset = open_dataset(with_masks(tmp_path), "train", masks=True)
    masks = dataset.target(0)["masks"]
    expected = np.zeros((2, HEIGHT, WIDTH), bool)
    expected[0, 2:18, 2:98] = True
    expected[1, 22:58, 12:38] = True
    assert np.array_equal(masks, expected)
    assert dataset.target(1)["masks"].shape == (0, HEIGHT, WIDTH)
    assert dataset.target(2)["masks"].sum() == 400
    assert dataset.target(0)["boxes"].tolist()[1] == [10, 20, 40, 60]  # with the void edge
    assert not unclaimed_files({"train": dataset.annotations})
    assert "masks" not in open_dataset(tmp_path, "train").target(0)


# The devkit's palette, from its documentation: background, three objects and void.
PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 255: (224, 224, 192)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_the_colours_of_the_palette(tmp_path, mode):
    """As CVAT and Datumaro write them."""
    plain = with_masks(tmp_path / "plain")
    coloured = with_masks(tmp_path / "coloured")
    for file in (coloured / "SegmentationObject").iterdir():
        numbers = np.asarray(Image.open(file))
        colours = np.zeros((*numbers.shape, 3), np.uint8)
        for number, colour in PALETTE.items():
            colours[numbers == number] = colour
        Image.fromarray(colours).convert(mode).save(file)
    expected, actual = (open_dataset(root, "train", masks=True) for root in (plain, coloured))
    assert actual.notes == expected.notes
    for i in range(len(expected)):
        assert torch.equal(actual.target(i)["masks"], expected.target(i)["masks"])


def test_boxes_without_masks(tmp_path):
    with pytest.raises(NoMasksError, match="has only boxes"):
        open_dataset(write(tmp_path), "train", masks=True)


@pytest.mark.parametrize(
    ("code", "text", "change"),
    [
        ("mask-missing", "as 1 of 3 objects", lambda file, _: file.unlink()),
        ("mask-invalid", "not an image", lambda file, _: file.write_bytes(b"no image")),
        ("mask-size", "is 50x40 px", lambda file, image: image.resize((50, 40)).save(file)),
        ("mask-empty", "no pixel", lambda file, image: image.point(lambda _: 0).save(file)),
        ("segment-unlisted", "7 has pixels", lambda file, image: image.point(_7_below).save(file)),
        ("outline-differs", "outline", lambda file, image: image.rotate(180).save(file)),
    ],
)
def test_faults_of_masks(tmp_path, code, text, change):
    file = with_masks(tmp_path) / "SegmentationObject" / "c.png"
    with Image.open(file) as image:
        change(file, image.copy())
    faults = read_annotations(tmp_path, "train", "train").faults
    severity = "warning" if code == "mask-missing" else "error"
    assert [(fault.code, fault.severity) for fault in faults] == [(code, severity)]
    assert text in str(faults[0]) and "c." in str(faults[0])
    for fault in read_annotations(tmp_path, "train", "check").faults:
        assert fault.severity != "error"
    assert not read_annotations(tmp_path, "train").faults


def _7_below(number: int) -> int:
    """Object 1 stays, and background becomes an object that the XML file does not list."""
    return number or 7
