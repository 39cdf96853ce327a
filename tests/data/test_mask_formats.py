"""Masks as every format states them: equal to those of pycocotools, kept through every change."""

import base64
import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from redetr.data import open_dataset, store
from redetr.data.formats.segmentations import decompressed, parse_segmentation
from redetr.data.mask_columns import MaskBuilder, MaskProblem
from redetr.data.mask_faults import _crossing
from redetr.errors import InputError
from redetr.masks import boxes_of_masks, decode
from redetr.truth import TruthObjects

WIDTH, HEIGHT = 60, 40
TRIANGLE = [5.5, 4.0, 30.25, 9.5, 12.0, 33.0]
TWO_PARTS = [[2.0, 2.0, 10.5, 2.0, 10.5, 12.0], [20.0, 20.0, 40.0, 20.0, 40.0, 35.0, 20.0, 35.0]]


def rle_of(mask: np.ndarray, form: str = "text") -> dict[str, Any]:
    """A mask as COCO's files hold it: with its counts as text or as numbers."""
    if form == "text":
        rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(mask.shape), "counts": rle["counts"].decode()}
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    ends = np.concatenate([[0], changes, [pixels.size]])
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def disc(row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def pixels_of(segmentation: Any) -> np.ndarray:
    """The mask that pycocotools makes of it."""
    if isinstance(segmentation, list):
        parts = pycocotools.mask.frPyObjects(segmentation, HEIGHT, WIDTH)
        rle = pycocotools.mask.merge(parts)
    elif isinstance(segmentation["counts"], list):
        rle = pycocotools.mask.frPyObjects(segmentation, HEIGHT, WIDTH)
    else:
        rle = segmentation
    return decoded(rle)


def decoded(rle: dict[str, Any]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its arrays, in NumPy 2
        return pycocotools.mask.decode(rle).astype(bool)


def box_of(mask: np.ndarray) -> list[float]:
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return pycocotools.mask.toBbox(rle).tolist()


SEGMENTATIONS = [
    [TRIANGLE],
    TWO_PARTS,
    rle_of(disc(20, 30, 11)),
    rle_of(disc(10, 12, 7), "numbers"),
]


def write_coco(root: Path, segmentations: list[Any], **keys: Any) -> Path:
    """Two images with the same objects, and one without any; both splits are the same."""
    annotations = []
    for image_id in (1, 3):
        for segmentation in segmentations:
            annotation = {
                "id": 10 + len(annotations),
                "image_id": image_id,
                "category_id": 1,
                "segmentation": segmentation,
                **keys,
            }
            if "bbox" not in keys and segmentation:
                annotation["bbox"] = box_of(pixels_of(segmentation))
            annotations.append(annotation)
    images = []
    for number in (1, 2, 3):
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (root / split).mkdir()
        for number in (1, 2, 3):
            pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
    return root


def test_masks_of_coco_are_those_of_pycocotools(tmp_path):
    root = write_coco(tmp_path, SEGMENTATIONS)
    dataset = open_dataset(root, "train", masks=True)
    assert dataset.has_masks
    assert dataset.notes == ()
    expected = torch.from_numpy(np.stack([pixels_of(value) for value in SEGMENTATIONS]))
    assert torch.equal(dataset.target(0)["masks"], expected)
    assert torch.equal(dataset.target(2)["masks"], expected)
    assert dataset.target(1)["masks"].shape == (0, HEIGHT, WIDTH)
    plain = open_dataset(root, "train")
    assert plain.annotations.masks is None
    assert "masks" not in plain.target(0)
    assert torch.equal(plain.target(0)["boxes"], dataset.target(0)["boxes"])


def test_a_crowd_has_its_own_mask_or_its_box(tmp_path):
    crowd = rle_of(disc(20, 30, 11), "numbers")
    root = write_coco(tmp_path / "own", [crowd], iscrowd=1)
    assert torch.equal(
        open_dataset(root, "train", masks=True).target(0)["masks"][0],
        torch.from_numpy(disc(20, 30, 11)),
    )
    root = write_coco(tmp_path / "box", [[]], iscrowd=1, bbox=[3, 4, 10, 20])
    mask = open_dataset(root, "train", masks=True).target(0)["masks"][0]
    assert mask[4:24, 3:13].all()
    assert mask.sum() == 200


def test_boxes_only_is_one_line(tmp_path):
    root = write_coco(tmp_path, [[]], bbox=[3, 4, 10, 20])
    with pytest.raises(InputError, match="has only boxes, no masks; draw outlines"):
        open_dataset(root, "train", masks=True)


@given(st.integers(0, 10**6))
def test_counts_are_decompressed_as_pycocotools_does(seed):
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 50, 2)) < random.random()
    rle = rle_of(mask)
    assert decompressed(rle["counts"].encode()).tolist() == rle_of(mask, "numbers")["counts"]
    assert parse_segmentation(rle) == rle["counts"].encode()
    assert parse_segmentation(rle_of(mask, "numbers")) == rle["counts"].encode()


@given(st.binary(max_size=30))
def test_any_text_is_counts_or_says_why_not(text):
    size = [7, 9]
    parsed = parse_segmentation({"size": size, "counts": text})
    if isinstance(parsed, bytes):
        assert parsed == text
        assert decompressed(text).sum() == 63
        assert decoded({"size": size, "counts": text}).shape == (7, 9)
    else:
        assert parsed.text.startswith(("its RLE", "the counts of its RLE"))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_value_is_a_mask_or_says_why_not(value):
    parsed = parse_segmentation(value)
    if isinstance(parsed, list):
        for polygon in parsed:
            assert len(polygon) >= 6
            assert np.isfinite(polygon).all()


@pytest.mark.parametrize("counts", [[10**10], [0, 10**10]])
def test_a_mask_has_at_most_as_many_pixels_as_32_bits_count(counts):
    problem = parse_segmentation({"size": [10**5, 10**5], "counts": counts})
    assert isinstance(problem, MaskProblem)
    assert "its RLE is of 100000x100000 px, and masks have at most" in problem.text


def test_columns_keep_polygons_apart():
    builder = MaskBuilder(for_training=True)
    values = [[TRIANGLE], None, b"abc", TWO_PARTS, None, [TRIANGLE]]
    for value in values:
        builder.add(value)
    columns = builder.columns()
    assert columns.has_mask.tolist() == [True, False, True, True, False, True]
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3, 3, 0], [2], []):
        taken = columns.take(np.array(rows, np.int64))
        assert len(taken) == len(rows)
        for number, row in enumerate(rows):
            polygons = [part.ravel().tolist() for part in taken.polygons(number)]
            assert polygons == (values[row] if isinstance(values[row], list) else [])
    kept = columns.only(np.array([False, True, True, True, True, True]))
    assert kept.has_mask.tolist() == [False, False, True, True, False, True]
    assert [part.ravel().tolist() for part in kept.polygons(3)] == TWO_PARTS
    assert kept.rle(2, (1, 1)) == b"abc"


def crosses_by_hand(points: np.ndarray) -> bool:
    """Whether two sides of a polygon cross: solved as linear equations."""
    count = len(points)
    for first in range(count):
        for second in range(first + 1, count):
            a, b = points[first], points[(first + 1) % count]
            c, d = points[second], points[(second + 1) % count]
            matrix = np.stack([b - a, c - d], axis=1)
            if abs(np.linalg.det(matrix)) < 1e-9:
                continue
            s, t = np.linalg.solve(matrix, c - a)
            if 1e-9 < s < 1 - 1e-9 and 1e-9 < t < 1 - 1e-9:
                return True
    return False


def test_crossing_sides_are_those_of_a_plain_search():
    random = np.random.default_rng(0)
    builder = MaskBuilder(for_training=True)
    expected = []
    for _ in range(150):
        polygons = []
        for _ in range(random.integers(0, 3)):
            count = random.integers(3, 8)
            angles = np.sort(random.random(count)) * 6
            if random.random() < 0.3:
                random.shuffle(angles)
            points = 20 + np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(3, 9)
            polygons.append(points)
        builder.add([points.ravel().tolist() for points in polygons] or None)
        expected.append(any(crosses_by_hand(points) for points in polygons))
    assert _crossing(builder.columns()).tolist() == expected
    assert 10 < sum(expected) < 140


def test_masks_are_stored_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WORTH", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_coco(tmp_path / "data", SEGMENTATIONS)
    first = open_dataset(root, "train", masks=True)
    again = open_dataset(root, "train", masks=True)
    assert isinstance(again.annotations.masks.points, np.memmap)
    assert torch.equal(again.target(2)["masks"], first.target(2)["masks"])
    sent = pickle.dumps(again)
    assert again.annotations.masks.points.tobytes() not in sent
    assert torch.equal(pickle.loads(sent).target(2)["masks"], first.target(2)["masks"])
    plain = open_dataset(root, "train")
    assert plain.annotations.masks is None
    assert plain.annotations.stored.parent != again.annotations.stored.parent
    held_out = open_dataset(root, "val", masks=True)
    assert torch.equal(held_out.target(0)["masks"], first.target(0)["masks"])


def panoptic_numbers() -> np.ndarray:
    """The ids of four segments, and a border that is none."""
    numbers = np.zeros((HEIGHT, WIDTH), np.int64)
    numbers[:20, :50] = 300
    numbers[20:, :50] = 70_000
    numbers[disc(20, 30, 11)] = 7
    numbers[disc(10, 12, 7)] = 16_777_215
    return numbers


def as_colours(numbers: np.ndarray) -> np.ndarray:
    """Red, green and blue of numbers, uint8."""
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], 2).astype(np.uint8)


CLASS_OF = {300: 200, 70_000: 150, 7: 3, 16_777_215: 3}


def write_panoptic(root: Path, with_boxes: bool = True) -> Path:
    """Two images with the same segments, of things (3) and stuff (150, 200); the last one is a
    crowd."""
    numbers = panoptic_numbers()
    segments = []
    for id_, category in CLASS_OF.items():
        segment = {"id": id_, "category_id": category, "iscrowd": int(id_ > 10**6)}
        if with_boxes:
            segment |= {"bbox": box_of(numbers == id_), "area": int((numbers == id_).sum())}
        segments.append(segment)
    document: dict[str, list] = {"images": [], "annotations": []}
    for number in (1, 2):
        document["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        )
        document["annotations"].append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        )
    document["categories"] = [
        {"id": id_, "name": name, "isthing": isthing}
        for id_, name, isthing in ((200, "sky", 0), (3, "car", 1), (150, "road", 0))
    ]
    for split in ("train", "val"):
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir(parents=True)
        folder.with_suffix(".json").write_text(json.dumps(document))
        (root / split).mkdir()
        for number in (1, 2):
            Image.fromarray(as_colours(numbers)).save(folder / f"{number}.png")
            pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
    return root


@pytest.mark.parametrize("with_boxes", [True, False])
def test_panoptic_segments_are_objects(tmp_path, with_boxes):
    root = write_panoptic(tmp_path, with_boxes)
    dataset = open_dataset(root, "train", masks=True)
    assert dataset.class_names == ("car", "road", "sky")
    assert dataset.category_ids == (3, 150, 200)
    assert dataset.is_thing == (True, False, False)
    assert dataset.notes == ()
    target = dataset.target(1)
    assert [dataset.category_ids[label] for label in target["labels"]] == list(CLASS_OF.values())
    assert target["iscrowd"].tolist() == [False, False, False, True]
    numbers = torch.from_numpy(panoptic_numbers())
    expected = numbers == torch.tensor(list(CLASS_OF))[:, None, None]
    assert torch.equal(target["masks"], expected)
    assert torch.equal(target["boxes"], boxes_of_masks(expected))
    if with_boxes:
        assert target["area"].tolist() == expected.sum((1, 2)).tolist()
    assert "masks" not in open_dataset(root, "val").target(0)


@pytest.mark.parametrize(
    ("ids", "references"),
    [
        (["000000000139", "000000000140"], ["000000000139", "000000000140"]),
        (["aachen_000000_000019", "aachen_000001_000019"],) * 2,
        ([139, 140], ["000000000139", "140"]),
        ([139, 140.0], [139, 140]),
    ],
)
def test_panoptic_images_find_their_png_by_any_id(tmp_path, ids, references):
    """As they are written: as text that becomes a number, or in two ways. Annotations are in
    another order than images."""
    root = write_panoptic(tmp_path, with_boxes=False)
    file = root / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    for rows, key, values in (("images", "id", ids), ("annotations", "image_id", references)):
        for row, value in zip(document[rows], values, strict=True):
            row[key] = value
    document["annotations"].reverse()
    file.write_text(json.dumps(document))
    numbers = panoptic_numbers()
    Image.fromarray(as_colours(numbers[::-1])).save(file.with_suffix("") / "2.png")
    dataset = open_dataset(root, "train", masks=True)
    for index, shown in enumerate((numbers, numbers[::-1].copy())):
        expected = torch.from_numpy(shown) == torch.tensor(list(CLASS_OF))[:, None, None]
        assert torch.equal(dataset.target(index)["masks"], expected)


def test_a_panoptic_file_is_read_where_instances_are_too(tmp_path):
    root = write_panoptic(write_coco(tmp_path / "a", [[TRIANGLE]]).parent / "b")
    for split in ("train", "val"):
        source = tmp_path / "a" / "annotations" / f"instances_{split}.json"
        source.rename(root / "annotations" / source.name)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / split / "3.png")
    assert open_dataset(root, "train").class_names == ("thing",)
    file = root / "annotations" / "panoptic_train.json"
    for split in ("train", "val"):
        dataset = open_dataset(file, split, masks=True)
        assert dataset.class_names == ("car", "road", "sky")
        assert dataset.name == "b"
        assert len(dataset.target(0)["masks"]) == 4


def test_panoptic_masks_are_stored_and_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WORTH", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_panoptic(tmp_path / "data")
    first, again = (open_dataset(root, "train", masks=True) for _ in range(2))
    assert isinstance(again.annotations.masks.segment_ids, np.memmap)
    assert again.is_thing == first.is_thing
    assert torch.equal(again.target(1)["masks"], first.target(1)["masks"])
    part = again.annotations.only(np.array([False, True]), np.array([True, False] * 4))
    counts = part.masks.rles(part.objects_of(0), (HEIGHT, WIDTH))
    assert torch.equal(decode(counts, (HEIGHT, WIDTH)), first.target(1)["masks"][::2])


def write_yolo(root: Path, lines: list[str], settings: str = "") -> Path:
    """One image of each split with these lines."""
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("\n".join(lines))
    text = f"train: images/train\nval: images/val\nnames: [thing]\n{settings}"
    (root / "data.yaml").write_text(text)
    return root


def line_of(polygon: list[float]) -> str:
    """A polygon in pixels as a line of YOLO."""
    fractions = np.reshape(polygon, (-1, 2)) / (WIDTH, HEIGHT)
    return "0 " + " ".join(repr(float(value)) for value in fractions.ravel())


def test_masks_of_yolo_are_its_outlines(tmp_path):
    polygons = [TRIANGLE, [3.0, 3.0, 17.0, 3.5, 19.0, 15.0, 10.0, 22.0, 3.0, 12.0], TWO_PARTS[1]]
    root = write_yolo(tmp_path, [line_of(polygon) for polygon in polygons])
    masks = open_dataset(root, "train", masks=True).target(0)["masks"].numpy()
    for mask, polygon in zip(masks, polygons, strict=True):
        np.testing.assert_array_equal(mask, pixels_of([polygon]))


def test_stored_masks_are_measured_without_decoding_them(tmp_path, monkeypatch):
    root = write_yolo(tmp_path, [line_of(TRIANGLE), line_of(TWO_PARTS[1])])
    dataset = open_dataset(root, "train", masks=True)
    decoded = TruthObjects.from_targets([dataset.target(0)], dataset.class_names)
    monkeypatch.setattr("redetr.data.formats.folder.decode", None)
    objects = TruthObjects.from_dataset(dataset)
    assert objects.masks is not None
    pixels = decode(objects.masks, (HEIGHT, WIDTH))
    assert torch.equal(pixels, decode(decoded.masks, (HEIGHT, WIDTH)))


def test_oriented_boxes_are_no_masks(tmp_path):
    root = write_yolo(tmp_path, [line_of(TWO_PARTS[1])], "task: obb\n")
    with pytest.raises(InputError, match="has only boxes"):
        open_dataset(root, "train", masks=True)


def test_a_box_among_outlines_is_kept_and_reported(tmp_path):
    """Its mask is not known, which an empty one means."""
    root = write_yolo(tmp_path, [line_of(TRIANGLE), "0 0.5 0.5 0.2 0.2"])
    dataset = open_dataset(root, "train", masks=True)
    expected = "line 2: has a box but no mask, as 1 of 2 objects; only its box is used"
    assert [note for note in dataset.notes if expected in note]
    target = dataset.target(0)
    assert len(target["boxes"]) == 2
    assert target["masks"].flatten(1).any(1).tolist() == [True, False]
    assert torch.equal(
        decode(dataset.compact_target(0)["mask_counts"], (HEIGHT, WIDTH)), target["masks"]
    )


def test_masks_of_label_images_are_the_pixels_of_a_number(tmp_path):
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[disc(20, 30, 11)] = 7
    numbers[disc(12, 40, 6)] = 2
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / split / "a.png")
        Image.fromarray(numbers).save(tmp_path / "masks" / split / "a.png")
    masks = open_dataset(tmp_path, "train", masks=True).target(0)["masks"].numpy()
    np.testing.assert_array_equal(masks, np.stack([numbers == 2, numbers == 7]))


def test_masks_of_labelme_are_its_shapes(tmp_path):
    """A polygon, two parts of one object, a circle, and a mask with a hole, stored as an image."""
    ring = disc(20, 30, 9) & ~disc(20, 30, 3)
    rows, columns = np.nonzero(ring)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    content = io.BytesIO()
    Image.fromarray(ring[top : bottom + 1, left : right + 1]).save(content, "png")
    shapes: list[dict[str, Any]] = [{"points": np.reshape(TRIANGLE, (-1, 2)).tolist()}]
    for part in TWO_PARTS:
        shapes.append({"points": np.reshape(part, (-1, 2)).tolist(), "group_id": 1})
    shapes.append({"points": [[30, 20], [40, 20]], "shape_type": "circle"})
    shapes.append(
        {
            "points": [[int(left), int(top)], [int(right), int(bottom)]],
            "shape_type": "mask",
            "mask": base64.b64encode(content.getvalue()).decode(),
        }
    )
    shapes = [{"label": "thing", "shape_type": "polygon"} | shape for shape in shapes]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / "a.png")
        text = {"imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
        (tmp_path / split / "a.json").write_text(json.dumps(text))
    masks = open_dataset(tmp_path, "train", masks=True).target(0)["masks"].numpy()
    np.testing.assert_array_equal(masks[0], pixels_of([TRIANGLE]))
    np.testing.assert_array_equal(masks[1], pixels_of(TWO_PARTS))
    assert masks[2].sum() == pytest.approx(np.pi * 100, rel=0.02)
    np.testing.assert_array_equal(masks[3], ring)
    shapes[0]["shape_type"] = "rectangle"
    shapes[0]["points"] = [[1, 1], [9, 9]]
    text["shapes"] = shapes
    (tmp_path / "train" / "a.json").write_text(json.dumps(text))
    dataset = open_dataset(tmp_path, "train", masks=True)
    notes = "\n".join(dataset.notes)
    assert re.search(r"shape 1 .* has a box but no mask, as 1 of 4 objects", notes)
    assert dataset.target(0)["masks"].flatten(1).any(1).tolist().count(False) == 1
