import io
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from redetr.detector.detections import Detection, Detections, detections_of
from redetr.detector.images import as_image
from redetr.errors import DivergedError, InputError
from redetr.pages.drawing import class_color, score_color
from redetr.postprocess import decode

LN2, LN3 = math.log(2), math.log(3)


def outputs(logits, boxes):
    return {"pred_logits": torch.tensor(logits), "pred_boxes": torch.tensor(boxes)}


def random_outputs(classes, images=3, queries=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes, generator=generator)
    boxes = boxes_inside(images, queries, generator)
    return {"pred_logits": logits, "pred_boxes": boxes}


def boxes_inside(images, queries, generator=None):
    """Random boxes, cxcywh, none of which reaches beyond its image."""
    centers = 0.3 + 0.4 * torch.rand(images, queries, 2, generator=generator)
    sizes = 0.6 * torch.rand(images, queries, 2, generator=generator)
    return torch.cat([centers, sizes], -1)


def two_detections(image_size=(100, 200)):
    boxes = torch.tensor([[1.0, 2.5, 11.0, 40.0], [0.0, 2.0, 200.0, 9.0]])
    return Detections(
        torch.tensor([0.875, 0.25]),
        torch.tensor([1, 0]),
        boxes,
        ("cat", "dog"),
        (3, 18),
        image_size,
    )


def no_detections():
    return two_detections().above(1.5)


def test_softmax_by_hand():
    # e^logits of the queries: (1, 2, 1) and (1, 1, 2); the last column is "no object".
    out = outputs(
        [[[0.0, LN2, 0.0], [0.0, 0.0, LN2]]], [[[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4]]]
    )
    scores, labels, boxes, _ = (
        field[0] for field in decode(out, torch.tensor([[100, 200]]), "softmax", 100)
    )
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.25]))
    assert labels.tolist() == [1, 0] and labels.dtype == torch.int64
    # 200 wide and 100 high; the second box reaches beyond the image, and is cut off there.
    expected = torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 70.0, 60.0, 100.0]])
    torch.testing.assert_close(boxes, expected)


def test_softmax_gives_each_query_once_best_first():
    out = random_outputs(classes=5)
    scores, labels, boxes, queries_kept = decode(
        out, torch.tensor([[10, 20]] * 3), "softmax", top_k=2
    )
    assert scores.shape == labels.shape == (3, 7) and boxes.shape == (3, 7, 4)
    probabilities = out["pred_logits"].double().softmax(-1)[..., :4]
    for b in range(3):
        best = probabilities[b].max(-1)
        queries = best.values.argsort(descending=True)
        torch.testing.assert_close(scores[b], best.values[queries].float())
        assert torch.equal(labels[b], best.indices[queries])
        assert torch.equal(queries_kept[b], queries)
        widths = out["pred_boxes"][b, queries, 2] * 20
        torch.testing.assert_close(boxes[b, :, 2] - boxes[b, :, 0], widths)


def test_equal_scores_keep_their_order():
    out = {"pred_logits": torch.zeros(1, 40, 2), "pred_boxes": boxes_inside(1, 40)}
    _, _, boxes, _ = decode(out, torch.tensor([[10, 10]]), "softmax", top_k=100)
    torch.testing.assert_close((boxes[0, :, 2] + boxes[0, :, 0]) / 20, out["pred_boxes"][0, :, 0])


def test_boxes_end_at_the_edges_of_the_image():
    out = outputs([[[0.0, 0.0]] * 2], [[[0.1, 0.9, 0.4, 0.4], [0.5, 0.5, 3.0, 0.5]]])
    sizes = torch.tensor([[100, 200]])
    _, _, boxes, _ = decode(out, sizes, "softmax", 100)
    expected = torch.tensor([[[0.0, 70.0, 60.0, 100.0], [0.0, 25.0, 200.0, 75.0]]])
    torch.testing.assert_close(boxes, expected)


def test_sigmoid_by_hand():
    # A query may be taken twice: once for each class.
    boxes = [[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5]]]
    out = outputs([[[LN3, -LN3], [0.0, 2 * LN3]]], boxes)
    scores, labels, boxes, _ = (
        field[0] for field in decode(out, torch.tensor([[10, 40]]), "sigmoid", top_k=3)
    )
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.75, 0.5]))
    assert labels.tolist() == [1, 0, 0]
    whole, left = [0.0, 0.0, 40.0, 10.0], [0.0, 2.5, 20.0, 7.5]
    torch.testing.assert_close(boxes, torch.tensor([left, whole, left]))


def test_sigmoid_equals_a_sort_of_all_pairs():
    out = random_outputs(classes=4)
    sizes = [(31, 17), (64, 128), (480, 640)]
    for b, (scores, labels, boxes, queries) in enumerate(
        zip(*decode(out, torch.tensor(sizes), "sigmoid", 10), strict=True)
    ):
        pairs = [
            (1 / (1 + math.exp(-out["pred_logits"][b, q, c])), q, c)
            for q in range(7)
            for c in range(4)
        ]
        best = sorted(pairs, reverse=True)[:10]
        torch.testing.assert_close(scores, torch.tensor([score for score, _, _ in best]))
        assert labels.tolist() == [c for _, _, c in best]
        assert queries.tolist() == [q for _, q, _ in best]
        height, width = sizes[b]
        for box, (_, q, _) in zip(boxes.tolist(), best, strict=True):
            x, y, w, h = out["pred_boxes"][b, q].tolist()
            corners = [
                (x - w / 2) * width,
                (y - h / 2) * height,
                (x + w / 2) * width,
                (y + h / 2) * height,
            ]
            assert box == pytest.approx(corners, abs=1e-4)


def test_saturated_scores_keep_the_order_of_their_logits():
    out = outputs([[[30.0], [90.0], [60.0]]], [[[0.1] * 4, [0.2] * 4, [0.3] * 4]])
    scores, _, boxes, _ = (
        field[0] for field in decode(out, torch.tensor([[10, 10]]), "sigmoid", 100)
    )
    assert scores.tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(boxes[:, 2], torch.tensor([3.0, 4.5, 1.5]))


def test_fewer_pairs_than_top_k_and_no_images():
    assert decode(random_outputs(classes=2), torch.ones(3, 2), "sigmoid", 100)[0].shape == (3, 14)
    for kind in ("sigmoid", "softmax"):
        assert detections_of(random_outputs(classes=2, images=0), [], kind, ["cat"], [1], 100) == []


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_half_precision_is_decoded_in_fp32(kind):
    out = {name: tensor.bfloat16() for name, tensor in random_outputs(classes=3).items()}
    sizes = torch.tensor([[480, 640]] * 3)
    half = decode(out, sizes, kind, 100)
    full = decode({name: tensor.float() for name, tensor in out.items()}, sizes, kind, 100)
    assert half[0].dtype == half[2].dtype == torch.float32
    for a, b in zip(half, full, strict=True):
        assert torch.equal(a, b)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="softmax or sigmoid, not 'argmax'"):
        decode(random_outputs(classes=3), torch.ones(3, 2), "argmax", 100)


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_numbers_of_a_diverged_model_are_not_taken_for_an_empty_image(name):
    out = random_outputs(classes=2, images=1)
    out[name][0, 0] = float("nan")
    with pytest.raises(DivergedError, match="a score or box is not finite"):
        detections_of(out, [(10, 10)], "sigmoid", ["cat", "dog"], [1, 2], 100, threshold=0.5)


def test_detect_sorts_clips_and_filters():
    boxes = [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.1, 0.1]]
    out = outputs([[[0.0, LN2, LN2], [0.0, 2 * LN3, 0.0], [0.0, 0.0, 9.0]]], [boxes])
    (found,) = detections_of(
        out, [(100, 200)], "softmax", ["cat", "dog"], [3, 18], 100, threshold=0.1
    )
    torch.testing.assert_close(found.scores, torch.tensor([9 / 11, 0.4]))
    assert found.names == ["dog", "dog"] and found.labels.dtype == torch.int64
    assert found.boxes.tolist() == [[100, 50, 200, 100], [0, 0, 100, 50]]
    assert found.image_size == (100, 200)


def test_above_and_length():
    found = two_detections()
    assert (len(found), len(found.above(0.5)), len(found.above(0.875)), len(found.above(0.9))) == (
        2,
        1,
        1,
        0,
    )
    assert found.above(0.5).names == ["dog"]
    assert len(found[:1].above(0.9)) == 0 and len(found[:1].above(0.5)) == 1


def test_iterated_they_are_plain_values():
    first, second = two_detections()
    assert first == Detection("dog", 0.875, (1.0, 2.5, 11.0, 40.0), 1)
    assert (second.name, second.score, second.box, second.label) == (
        "cat",
        0.25,
        (0.0, 2.0, 200.0, 9.0),
        0,
    )
    assert list(no_detections()) == []


@pytest.mark.parametrize(
    ("which", "names"),
    [
        (0, ["dog"]),
        (-1, ["cat"]),
        (np.int64(1), ["cat"]),
        (slice(1), ["dog"]),
        (slice(None, None, -1), ["cat", "dog"]),
        ([1, 0], ["cat", "dog"]),
        ([], []),
        ([False, True], ["cat"]),
        (np.array([True, False]), ["dog"]),
        (torch.tensor([False, False]), []),
        (torch.tensor([1]), ["cat"]),
        (torch.tensor(0), ["dog"]),
    ],
)
def test_indexed_they_are_detections(which, names):
    found = two_detections()[which]
    assert isinstance(found, Detections) and found.names == names
    assert found.scores.shape == (len(names),) and found.boxes.shape == (len(names), 4)
    assert found.image_size == (100, 200)


@pytest.mark.parametrize("which", [2, -3, [True], torch.ones(3, dtype=torch.bool)])
def test_what_is_not_there_is_an_index_error(which):
    with pytest.raises(IndexError):
        two_detections()[which]


def test_to_dict_is_json():
    expected = {
        "image_size": [100, 200],
        "detections": [
            {"label": "dog", "category_id": 18, "score": 0.875, "box": [1.0, 2.5, 11.0, 40.0]},
            {"label": "cat", "category_id": 3, "score": 0.25, "box": [0.0, 2.0, 200.0, 9.0]},
        ],
    }
    assert json.loads(json.dumps(two_detections().to_dict())) == expected
    assert no_detections().to_dict() == {"image_size": [100, 200], "detections": []}


def test_to_coco_has_the_category_ids_of_the_files():
    expected = [
        {"image_id": 42, "category_id": 18, "bbox": [1.0, 2.5, 10.0, 37.5], "score": 0.875},
        {"image_id": 42, "category_id": 3, "bbox": [0.0, 2.0, 200.0, 7.0], "score": 0.25},
    ]
    assert json.loads(json.dumps(two_detections().to_coco(42))) == expected
    assert no_detections().to_coco(42) == []


def test_repr_counts_and_shows_the_first_few():
    lines = repr(two_detections()).splitlines()
    assert lines == [
        "Detections: 2 in an image of 200x100 px",
        "  dog 0.88 [1, 2, 11, 40]",
        "  cat 0.25 [0, 2, 200, 9]",
    ]
    many = Detections(
        torch.rand(9), torch.zeros(9).long(), torch.rand(9, 4), ("cat",), (1,), (10, 10)
    )
    assert len(repr(many).splitlines()) == 7 and repr(many).endswith("  and 4 more")
    assert repr(no_detections()) == "Detections: 0 in an image of 200x100 px"


@pytest.mark.filterwarnings(
    "ignore:OpenCV:UserWarning"
)  # supervision says that it works without OpenCV
def test_to_supervision():
    converted = two_detections().to_supervision()
    np.testing.assert_array_equal(converted.xyxy, [[1, 2.5, 11, 40], [0, 2, 200, 9]])
    np.testing.assert_array_equal(converted.confidence, np.float32([0.875, 0.25]))
    assert converted.class_id.tolist() == [1, 0]
    assert converted.data["class_name"].tolist() == ["dog", "cat"]
    assert converted[converted.confidence > 0.5].data["class_name"].tolist() == ["dog"]
    assert len(no_detections().to_supervision()) == 0


def test_missing_supervision_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r'pip install "redetr\[supervision\]"'):
        two_detections().to_supervision()


def test_draw_enlarges_and_marks_the_boxes():
    drawn = two_detections().draw(torch.zeros(3, 100, 200, dtype=torch.uint8), scale=2)
    assert drawn.size == (400, 200)
    assert np.asarray(drawn).max() > 0
    assert two_detections().draw(Image.new("L", (200, 100))).mode == "RGB"


def test_colors_tell_classes_or_of_a_single_class_the_scores():
    image = torch.zeros(3, 500, 500, dtype=torch.uint8)
    boxes = torch.tensor([[100.0, 100, 200, 200], [300, 300, 400, 400]])
    scores = torch.tensor([0.9, 0.4])
    labels = torch.tensor([0, 0])
    for names, colors in (
        (("cell",), [score_color(0.9), score_color(0.4)]),
        (("cell", "dust"), [class_color(0)] * 2),
    ):
        ids = tuple(range(len(names)))
        drawn = Detections(scores, labels, boxes, names, ids, (500, 500)).draw(image)
        assert [drawn.getpixel((100, 150)), drawn.getpixel((300, 350))] == colors


def test_only_some_classes():
    found = two_detections()
    assert found.of_classes(["cat"]).names == ["cat"]
    assert found.of_classes(["cat"]).scores.tolist() == [0.25]
    assert len(found.of_classes([])) == len(no_detections().of_classes(["cat"])) == 0


def test_a_text_is_the_name_of_one_class():
    """Its letters were names: "10" gave digits 1 and 0."""
    found = replace(two_detections(), class_names=("1", "10"))
    assert found.of_classes("10").names == ["10"]
    assert found.of_classes("1").names == ["1"]


@pytest.mark.parametrize("names", ["cow", ["cat", "cow"], ("cow",)])
def test_a_class_that_the_model_does_not_know_is_told(names):
    with pytest.raises(InputError, match="no class is called 'cow': the model knows cat, dog"):
        two_detections().of_classes(names)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photograph_is_drawn_on_as_it_was_seen(orientation):
    """PIL's image is turned as for `predict`; boxes were at the wrong place, or it was refused."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20] = 255
    photograph = Image.fromarray(pixels)
    photograph.getexif()[0x0112] = orientation
    seen = as_image(photograph)
    found = two_detections(tuple(seen.shape[1:]))[[]]
    drawn = found.draw(photograph, scale=1)
    assert (np.asarray(drawn) == seen.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("bands", [None, 2, 3, 5])
def test_arrays_and_tensors_are_drawn_on_as_they_were_given(bands):
    shape = (100, 200) if bands is None else (100, 200, bands)
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tensor = torch.from_numpy(array.reshape(100, 200, -1)).permute(2, 0, 1)
    of_array = two_detections().draw(array, scale=1)
    of_tensor = two_detections().draw(tensor, scale=1)
    assert of_array.size == (200, 100)
    assert of_array.tobytes() == of_tensor.tobytes()


NO_PICTURES = {
    "float tensor": (
        torch.zeros(3, 100, 200),
        r"must be uint8 \[3, H, W\], this one is torch.float",
    ),
    "float array": (np.zeros((100, 200, 3)), r"must be uint8 \[H, W, 3\].*this one is float64"),
    "list": ([1, 2], "an image cannot be of type list"),
    "other size": (np.zeros((3, 100, 200), np.uint8), "cannot be drawn on one of 100x3 px"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_told(name):
    image, said = NO_PICTURES[name]
    with pytest.raises(InputError, match=said):
        two_detections().draw(image)


def test_a_notebook_shows_the_picture_if_the_image_is_known():
    assert two_detections()._repr_png_() is None  # it then takes the text
    found = replace(
        two_detections((1500, 3000)), image=torch.zeros(3, 1500, 3000, dtype=torch.uint8)
    )
    with Image.open(io.BytesIO(found._repr_png_())) as shown:
        assert shown.format == "PNG" and shown.size == (1024, 512)
        assert np.asarray(shown).max() > 0
    assert found.above(0.5).image is found.image
    assert "tensor" not in repr(found)
    assert found.draw().size == (3000, 1500)
    with pytest.raises(InputError, match="give draw the image"):
        two_detections().draw()


def test_draw_refuses_an_image_of_another_size():
    with pytest.raises(
        InputError, match="an image of 200x100 px cannot be drawn on one of 100x200 px"
    ):
        two_detections().draw(Image.new("RGB", (100, 200)))
