"""Masks with one fault each: all are found and named, with the file, the annotation and what to do,
and none is learned without a word."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_mask_formats import (
    HEIGHT,
    SEGMENTATIONS,
    TRIANGLE,
    TWO_PARTS,
    WIDTH,
    disc,
    line_of,
    rle_of,
    write_coco,
    write_panoptic,
    write_yolo,
)

from redetr.cli import main
from redetr.data import open_dataset
from redetr.doctor.check import check
from redetr.errors import InputError

TEXT, NUMBERS = 2, 3  # which of the annotations has an RLE of this kind
POLYGONS = [TRIANGLE, TWO_PARTS[0], TWO_PARTS[1]]


@dataclass(frozen=True)
class Damage:
    """What is done to sound masks, and what is said of it."""

    code: str
    do: Callable[[Path], Any]
    says: str
    where: str = "annotation 10"
    form: str = "coco"
    boxes_are_sound: bool = True  # so that training without masks may begin
    is_learned: bool = False  # with a warning


def rewrite(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        document = json.loads((root / "annotations" / file).read_text())
        change(document)
        (root / "annotations" / file).write_text(json.dumps(document))

    return do


def annotation(number: int = 0, **values: Any) -> Callable[[Path], None]:
    """An annotation of the first image says this."""
    return rewrite("instances_train.json", lambda d: d["annotations"][number].update(values))


def image(**values: Any) -> Callable[[Path], None]:
    """The first image says this."""
    return rewrite("instances_train.json", lambda d: d["images"][0].update(values))


def segmentation(value: Any, number: int = 0) -> Callable[[Path], None]:
    return annotation(number, segmentation=value)


def polygon(*numbers: Any) -> Callable[[Path], None]:
    return segmentation([list(numbers)])


def rle(number: int = TEXT, **values: Any) -> Callable[[Path], None]:
    """Parts of an RLE are others."""
    return segmentation(SEGMENTATIONS[number] | values, number)


def counts(change: Callable[[Any], Any], number: int = TEXT) -> Callable[[Path], None]:
    return rle(number, counts=change(SEGMENTATIONS[number]["counts"]))


def without_segmentation(root: Path) -> None:
    rewrite("instances_train.json", lambda d: d["annotations"][0].pop("segmentation"))(root)


def lines(*texts: str) -> Callable[[Path], None]:
    """The label file of YOLO."""
    content = "\n".join([line_of(TWO_PARTS[1]), *texts])
    return lambda root: (root / "labels" / "train" / "a.txt").write_text(content)


def segments(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """The annotation of the first image in a panoptic file."""
    return rewrite("panoptic_train.json", lambda d: change(d["annotations"][0]))


def png(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        file = root / "annotations" / "panoptic_train" / "1.png"
        with Image.open(file) as image:
            pixels = np.array(image)
        Image.fromarray(change(pixels)).save(file)

    return do


def half_transparent(pixels: np.ndarray) -> np.ndarray:
    opacity = np.full((*pixels.shape[:2], 1), 128, np.uint8)
    return np.concatenate([pixels, opacity], axis=2)


def repainted(color: tuple[int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The segment at the upper left has this colour."""

    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[(pixels == pixels[0, 0]).all(2)] = color
        return pixels

    return change


def of_png(root: Path) -> Path:
    return root / "annotations" / "panoptic_train" / "1.png"


X1, Y1, X2, Y2 = 5.5, 4.0, 30.25, 33.0  # around the triangle
RLE_AT, NUMBERS_AT = "annotation 12", "annotation 13"

DAMAGES = {
    # polygons
    "an odd number": Damage(
        "mask-invalid", polygon(5.5, 4, 30, 9, 12, 33, 7), "has 7 numbers, not x and y"
    ),
    "two points": Damage("mask-invalid", polygon(5, 4, 30, 9), "has 2 points, but an area needs "
                                                               "three"),
    "one point": Damage("mask-invalid", polygon(5, 4), "has 1 points, but an area needs three"),
    "no point": Damage("mask-invalid", segmentation([[]]), "has 0 points, but an area needs three"),
    "NaN": Damage(
        "mask-invalid", polygon(5.5, 4, 30, float("nan"), 12, 33), "holds nan, which is not a "
                                                                   "finite"
    ),
    "infinity": Damage(
        "mask-invalid", polygon(5.5, 4, 30, float("inf"), 12, 33), "holds inf, which is not a "
                                                                   "finite"
    ),
    "minus infinity and infinity": Damage(
        "mask-invalid", polygon(float("-inf"), 4, float("inf"), 9, 12, 33), "holds -inf, which"
    ),
    "an enormous number": Damage(
        "mask-invalid", polygon(5.5, 4, 1e300, 9, 12, 33), "holds 1e+300, which is not a finite"
    ),
    "more than any float": Damage(
        "mask-invalid", polygon(5.5, 4, 10**400, 9, 12, 33), "000, which is not a finite"
    ),
    "text": Damage(
        "mask-invalid", polygon(5.5, 4, "30", 9, 12, 33), "holds '30', which is not a finite number"
    ),
    "null": Damage("mask-invalid", polygon(5.5, 4, None, 9, 12, 33), "holds None, which is no"),
    "true": Damage("mask-invalid", polygon(5.5, 4, True, 9, 12, 33), "holds True, which is no"),
    "not nested": Damage(
        "mask-invalid", segmentation(TRIANGLE), "is a list of numbers, not of polygons"
    ),
    "pairs": Damage(
        "mask-invalid", polygon([5.5, 4], [30, 9], [12, 33]), "holds [5.5, 4], which is no"
    ),
    "points as objects": Damage(
        "mask-invalid", segmentation([{"x": 5, "y": 4}]), "is {'x': 5, 'y': 4}, not [x, y"
    ),
    "a text instead": Damage("mask-invalid", segmentation("0 1 2"), "is neither polygons nor RLE"),
    "a number instead": Damage("mask-invalid", segmentation(7), "7 is neither polygons nor RLE"),
    "a second part of two points": Damage(
        "mask-invalid", segmentation([TRIANGLE, [5, 4, 6, 5]]), "polygon 2 of its 2 has 2 points"
    ),
    "right of the image": Damage(
        "mask-outside", polygon(X1, Y1, X2 + 60, Y1, X2, Y2), "its polygons span [5.5, 4.0, 90.25"
    ),
    "left of the image": Damage(
        "mask-outside", polygon(-20, Y1, X2, Y1, X2, Y2), "its polygons span [-20.0, 4.0"
    ),
    "above the image": Damage(
        "mask-outside", polygon(X1, -9, X2, Y1, X2, Y2), "in an image of 60x40 px"
    ),
    "below the image": Damage(
        "mask-outside", polygon(X1, Y1, X2, Y1, X2, 55), "draw the outline again, or clip it"
    ),
    "of an image twice as large": Damage(
        "mask-outside", segmentation([[2 * v for v in TRIANGLE]]), "was the image resized?"
    ),
    "another place": Damage(
        "outline-differs", polygon(40, 20, 58, 20, 58, 38), "is not the box around its outline"
    ),
    "fractions": Damage(
        "mask-empty", polygon(0.1, 0.1, 0.5, 0.2, 0.2, 0.8), "its mask covers no pixel"
    ),
    "x and y swapped": Damage(
        "outline-differs", lambda root: annotation(
            bbox=[2, 10, 36, 10], segmentation=[[10, 2, 10, 38, 20, 38, 20, 2]]
        )(root), "is not the box around its outline"
    ),
    "one point many times": Damage(
        "mask-empty", lambda root: annotation(
            segmentation=[[5.0, 4, 5, 4, 5, 4]], bbox=[4.5, 3.5, 1, 1]
        )(root), "its mask covers no pixel; draw it again"
    ),
    "points on a line": Damage(
        "mask-empty", lambda root: annotation(
            bbox=[5, 9.5, 25, 1], segmentation=[[5, 10, 20, 10, 30, 10]]
        )(root), "its mask covers no pixel"
    ),
    "less than a pixel": Damage(
        "mask-empty", lambda root: annotation(
            segmentation=[[5.1, 4.1, 5.3, 4.1, 5.3, 4.3]], bbox=[5.1, 4.1, 0.2, 0.2]
        )(root), "its mask covers no pixel"
    ),
    "a bow tie": Damage(
        "mask-crossing", polygon(X1, Y1, X2, Y2, X2, Y1, X1, Y2), "its outline crosses itself",
        is_learned=True,
    ),
    "points out of order": Damage(
        "mask-crossing", polygon(X1, Y1, X2, Y2, X2, Y1, 15, Y2, X1, Y2),
        "draw it again, with its points in order", is_learned=True,
    ),
    "a second part that crosses itself": Damage(
        "mask-crossing", segmentation([TRIANGLE, [8, 8, 20, 20, 20, 8, 8, 20]]),
        "what it encloses twice is not part of the mask", is_learned=True,
    ),
    "two specks in a large box": Damage(
        "mask-thin", lambda root: annotation(
            segmentation=[[0, 0, 2, 0, 0, 2], [60, 40, 58, 40, 60, 38]], bbox=[0, 0, 60, 40]
        )(root), "its box 2,400", is_learned=True,
    ),
    "no segmentation": Damage(
        "mask-missing", without_segmentation, "has a box but no mask, as 1 of 8 objects",
        is_learned=True,
    ),
    "null segmentation": Damage(
        "mask-missing", segmentation(None), "draw its outline, or train", is_learned=True
    ),
    "empty segmentation": Damage(
        "mask-missing", segmentation([]), "has a box but no mask", is_learned=True
    ),
    # RLE
    "empty object": Damage("mask-invalid", segmentation({}), "has the size None, not [height"),
    "width before height": Damage(
        "mask-size", rle(size=[WIDTH, HEIGHT]), "its mask is 40x60 px, its image 1 60x40 px",
        RLE_AT,
    ),
    "mask of another image": Damage(
        "mask-size", segmentation(rle_of(np.eye(20, 30) > 0), TEXT), "its mask is 30x20 px",
        RLE_AT,
    ),
    "crowd of another size": Damage(
        "mask-size", annotation(TEXT, segmentation=rle_of(np.eye(20, 30) > 0), iscrowd=1),
        "its mask is 30x20 px", RLE_AT,
    ),
    "no size": Damage(
        "mask-invalid", segmentation({"counts": [2400]}, TEXT), "has the size None", RLE_AT
    ),
    "three sides": Damage(
        "mask-invalid", rle(size=[HEIGHT, WIDTH, 3]), "has the size [40, 60, 3]", RLE_AT
    ),
    "no height": Damage("mask-invalid", rle(size=[0, WIDTH]), "has the size [0, 60]", RLE_AT),
    "negative width": Damage(
        "mask-invalid", rle(size=[HEIGHT, -WIDTH]), "has the size [40, -60]", RLE_AT
    ),
    "size as text": Damage(
        "mask-invalid", rle(size=["40", "60"]), "has the size ['40', '60']", RLE_AT
    ),
    "no counts": Damage(
        "mask-invalid", segmentation({"size": [HEIGHT, WIDTH]}, TEXT), "has the counts None",
        RLE_AT,
    ),
    "counts are an object": Damage(
        "mask-invalid", rle(counts={"0": 5}), "neither numbers nor text", RLE_AT
    ),
    "counts that are too few": Damage(
        "mask-invalid", counts(lambda old: old[:-1], NUMBERS), "add up to", NUMBERS_AT
    ),
    "counts that are too many": Damage(
        "mask-invalid", counts(lambda old: [*old, 5], NUMBERS), "add up to 2405 pixels", NUMBERS_AT
    ),
    "a negative count": Damage(
        "mask-invalid", counts(lambda old: [-5, 5, *old], NUMBERS), "has a count of -5 pixels",
        NUMBERS_AT,
    ),
    "half a pixel": Damage(
        "mask-invalid", counts(lambda old: [0.5, *old], NUMBERS), "holds 0.5, which is not a count",
        NUMBERS_AT,
    ),
    "text among the counts": Damage(
        "mask-invalid", counts(lambda old: ["7", *old], NUMBERS), "holds '7', which is not a count",
        NUMBERS_AT,
    ),
    "true among the counts": Damage(
        "mask-invalid", counts(lambda old: [True, *old], NUMBERS), "holds True, which is not a "
                                                                   "count",
        NUMBERS_AT,
    ),
    "an enormous count": Damage(
        "mask-invalid", counts(lambda old: [2**70, *old], NUMBERS), "which is not a "
                                                                    "count", NUMBERS_AT
    ),
    "text that is cut": Damage(
        "mask-invalid", counts(lambda old: old[: len(old) // 2]), "its RLE", RLE_AT
    ),
    "text that is cut in a number": Damage(
        "mask-invalid", rle(counts="0P"), "has counts that are cut off", RLE_AT
    ),
    "text that goes on": Damage(
        "mask-invalid", counts(lambda old: old + "5"), "add up to", RLE_AT
    ),
    "a blank in the text": Damage(
        "mask-invalid", counts(lambda old: f"{old[:5]} {old[5:]}"), "not compressed counts", RLE_AT
    ),
    "letters of no ASCII": Damage(
        "mask-invalid", counts(lambda old: f"{old}é"), "which are not compressed counts", RLE_AT
    ),
    "no text": Damage("mask-invalid", rle(counts=""), "add up to 0 pixels, not to", RLE_AT),
    "a number without end": Damage(
        "mask-invalid", rle(counts="o" * 40 + "0"), "a count of more than 40 bits", RLE_AT
    ),
    "one letter is another": Damage(
        "mask-invalid", counts(lambda old: "h" + old[1:]), "add up to", RLE_AT
    ),
    "an empty mask": Damage(
        "mask-empty", segmentation(rle_of(np.zeros((HEIGHT, WIDTH), bool)), TEXT),
        "its mask covers no pixel", RLE_AT,
    ),
    "inside out": Damage(
        "outline-differs", segmentation(rle_of(~disc(20, 30, 11)), TEXT),
        "is not the box around its outline", RLE_AT,
    ),
    "along the rows": Damage(
        "outline-differs",
        segmentation(
            rle_of(disc(10, 12, 7).ravel().reshape((HEIGHT, WIDTH), order="F"), "numbers"), NUMBERS
        ),
        "is not the box around its outline", NUMBERS_AT,
    ),
    "shifted": Damage(
        "outline-differs", segmentation(rle_of(disc(20, 45, 11)), TEXT), "is not the box", RLE_AT
    ),
    "the same object twice": Damage(
        "box-twice",
        rewrite(
            "instances_train.json",
            lambda d: d["annotations"].append(d["annotations"][0] | {"id": 99}),
        ),
        "", "annotation 99", is_learned=True,
    ),
    # YOLO
    "an odd number in a line": Damage(
        "line-invalid", lines("0 0.1 0.1 0.5 0.2 0.3 0.8 0.4"), "neither a box nor an outline",
        "line 2", "yolo", boxes_are_sound=False,
    ),
    "NaN in a line": Damage(
        "line-invalid", lines("0 0.1 0.1 0.5 nan 0.3 0.8"), "nan is not a finite fraction",
        "line 2", "yolo", boxes_are_sound=False,
    ),
    "a line outside of the image": Damage(
        "box-outside", lines("0 0.1 0.1 1.5 0.2 0.3 0.8"), "leaves its image", "line 2", "yolo",
        boxes_are_sound=False,
    ),
    "a box among outlines": Damage(
        "mask-missing", lines("0 0.5 0.5 0.2 0.2"), "as 1 of 2 objects", "line 2", "yolo",
        is_learned=True,
    ),
    "a line that crosses itself": Damage(
        "mask-crossing", lines("0 0.1 0.1 0.5 0.5 0.5 0.1 0.1 0.5"), "crosses itself", "line 2",
        "yolo", is_learned=True,
    ),
    "a line without area": Damage(
        "mask-empty", lines("0 0.1 0.1 0.2 0.2 0.3 0.3"), "covers no pixel", "line 2", "yolo"
    ),
    # panoptic
    "a PNG that is gone": Damage(
        "panoptic-png", lambda root: of_png(root).unlink(), "1.png: is missing", "", "panoptic"
    ),
    "a PNG that is none": Damage(
        "panoptic-png", lambda root: of_png(root).write_bytes(b"?"), "1.png: is not an image", "",
        "panoptic",
    ),
    "a PNG of another size": Damage(
        "mask-size", png(lambda old: old[:-3, :-5]), "is 55x37 px, its image 1.png 60x40 px", "",
        "panoptic",
    ),
    "a PNG that is turned": Damage(
        "mask-size", png(lambda old: old.transpose(1, 0, 2)), "is 40x60 px", "", "panoptic"
    ),
    "a PNG with transparent pixels": Damage(
        "panoptic-png", png(half_transparent), "numbers are not certain", "", "panoptic"
    ),
    "a segment without pixels": Damage(
        "segment-missing", png(repainted((0, 0, 0))), "segment 300 has no pixels", "", "panoptic"
    ),
    "pixels that no segment lists": Damage(
        "segment-unlisted",
        segments(lambda row: row["segments_info"].pop()),
        "has pixels, but is not listed", "", "panoptic",
    ),
    "a segment listed twice": Damage(
        "segment-id", segments(lambda row: row["segments_info"][1].update(id=300)),
        "segment 300 is listed twice", "annotation of image 1", "panoptic", boxes_are_sound=False,
    ),
    "segment 0": Damage(
        "segment-id", segments(lambda row: row["segments_info"][0].update(id=0)),
        "has the id 0, which is not a colour", "annotation of image 1", "panoptic",
        boxes_are_sound=False,
    ),
    "an id that no colour holds": Damage(
        "segment-id", segments(lambda row: row["segments_info"][0].update(id=2**24)),
        "has the id 16777216", "annotation of image 1", "panoptic", boxes_are_sound=False,
    ),
    "an id that is text": Damage(
        "segment-id", segments(lambda row: row["segments_info"][0].update(id="300")),
        "has the id '300'", "annotation of image 1", "panoptic", boxes_are_sound=False,
    ),
    "no list of segments": Damage(
        "segments-invalid", segments(lambda row: row.pop("segments_info")),
        "segments_info is not a list", "annotation of image 1", "panoptic", boxes_are_sound=False,
    ),
    "a PNG elsewhere": Damage(
        "segments-invalid", segments(lambda row: row.update(file_name="../../1.png")),
        "is not a path inside panoptic_train", "annotation of image 1", "panoptic",
        boxes_are_sound=False,
    ),
    "an image without segments": Damage(
        "panoptic-missing",
        rewrite("panoptic_train.json", lambda d: d["annotations"].pop(0)),
        "has no annotation of the image 1.png", "", "panoptic",
    ),
    "a bbox elsewhere": Damage(
        "outline-differs",
        segments(lambda row: row["segments_info"][2].update(bbox=[0, 0, 5, 5])),
        "its bbox is not", "", "panoptic",
    ),
}  # fmt: skip


def write_sound(root: Path, form: str) -> Path:
    if form == "coco":
        return write_coco(root, SEGMENTATIONS)
    if form == "yolo":
        return write_yolo(root, [line_of(polygon) for polygon in POLYGONS[1:]])
    return write_panoptic(root)


@pytest.mark.parametrize("form", ["coco", "yolo", "panoptic"])
def test_sound_masks_have_no_fault(form, tmp_path):
    root = write_sound(tmp_path / "data", form)
    for masks in (False, True):
        codes = {fault.code for fault in check(str(root), masks=masks).faults}
        codes = {code for code in codes if code.startswith(("mask", "segment", "outline", "pan"))}
        assert codes <= {"outline"}  # the note on boxes of YOLO
    assert open_dataset(root, "train", masks=True).target(0)["masks"].any()


def test_panoptic_ids_may_be_text(tmp_path):
    root = write_sound(tmp_path / "panoptic", "panoptic")
    file = root / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["image_id"] = str(row["image_id"])
    file.write_text(json.dumps(content))
    dataset = open_dataset(root, "train", masks=True)
    assert all(dataset.target(i)["masks"].any() for i in range(len(dataset)))


def test_there_are_many():
    assert len(DAMAGES) >= 60


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_mask_is_found_and_not_learned_in_silence(name, tmp_path):
    damage = DAMAGES[name]
    root = write_sound(tmp_path / "data", damage.form)
    damage.do(root)
    faults = [fault for fault in check(str(root)).faults if fault.code == damage.code]
    faults = [fault for fault in faults if fault.where.startswith(damage.where)]
    assert faults, name
    fault = faults[0]
    assert damage.says in str(fault)
    assert fault.remedy
    assert fault.file.exists() or damage.code == "panoptic-png"
    assert (fault.severity == "error") != damage.boxes_are_sound
    try:
        dataset = open_dataset(root, "train", masks=True)
        notes = dataset.notes
        for index in range(len(dataset)):
            dataset.target(index)
    except InputError as error:
        assert not damage.is_learned
        assert fault.text in str(error)
    else:
        assert damage.is_learned
        is_of_boxes = damage.code == "box-twice"
        assert is_of_boxes or any(fault.text in note for note in notes)
    if damage.boxes_are_sound:
        assert "masks" not in open_dataset(root, "train").target(0)


@pytest.mark.parametrize("size", [(70_000, 70_000), (2**16, 2**16), (10**8, 1), (10**9, 10**9)])
def test_an_image_that_is_too_large_for_masks(size, tmp_path):
    width, height = size
    root = write_coco(tmp_path, [[[0.0, 0, 0.9, 0, 0.9, 0.9]]])
    image(width=width, height=height)(root)
    line = f"annotation 10: its image is {width}x{height} px, and masks have at most 262,143 px"
    for masks, severity in ((False, "warning"), (True, "error")):
        faults = check(str(root), masks=masks).faults
        [fault] = [fault for fault in faults if fault.code == "mask-invalid"]
        assert fault.severity == severity
        assert line in str(fault)
    with pytest.raises(InputError, match="correct the size of the image"):
        open_dataset(root, "train", masks=True)
    assert len(open_dataset(root, "train")) == 3


def test_training_on_masks_makes_errors_of_them(tmp_path, capsys):
    root = write_sound(tmp_path / "data", "coco")
    DAMAGES["two points"].do(root)
    main(["check", str(root)])
    assert "warning" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(root), "--masks", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["masks"] == 7
    assert report["errors"] == 1
