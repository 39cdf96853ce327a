"""What `redetr explain` computes is what the model did."""

import json
import re
import shlex
from copy import deepcopy
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.checkpoint import save_weights
from redetr.cli import parse_command
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.explain import Points, explain, explain_loss, query_habits
from redetr.explain.attention import attention_weights
from redetr.models import build
from redetr.models.deformable import DeformableAttention
from redetr.models.fast import STRIDES
from redetr.models.transformer import MultiheadAttention
from redetr.structures import DetectionModel, Outputs
from tests.conftest import write_tiny_coco
from tests.forked import Fork

CLASSES = ("cup", "plate", "spoon")
IDS = (7, 12, 90)
OPTIONS = {
    "detr_r50": {
        "backbone": (16, 32, 64),
        "hidden_dim": 32,
        "nheads": 4,
        "enc_layers": 2,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "num_queries": 7,
    },
    "redetr_n": {
        "backbone": (16, 32, 64),
        "hidden_dim": 32,
        "nheads": 4,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "num_queries": 9,
    },
    "rtdetr_r18": {
        "width": 16,
        "enc_hidden_dim": 32,
        "enc_dim_feedforward": 64,
        "hidden_dim": 32,
        "nheads": 4,
        "dec_layers": 3,
        "dim_feedforward": 64,
        "num_queries": 9,
    },
    "dfine_n": {
        "width": 8,
        "enc_hidden_dim": 32,
        "block_width": 16,
        "hidden_dim": 32,
        "nheads": 4,
        "dec_layers": 2,
        "dim_feedforward": 64,
        "num_queries": 9,
    },
}
# Its mask head wants 8 heads.
OPTIONS["detr_r50_panoptic"] = OPTIONS["detr_r50"] | {"hidden_dim": 64, "nheads": 8}
FORMS = ("detr_r50", "redetr_n", "rtdetr_r18")


def small_detector(form: str, **options) -> Detector:
    """Random weights, no layer without effect: heads that start at zero are given values."""
    torch.manual_seed(0)
    model = build(form, len(CLASSES), **(OPTIONS.get(form, {}) | options))
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return Detector(model, CLASSES, IDS, 64, "cpu")


def picture(height: int = 60, width: int = 90) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def test_attention_weights_are_those_of_pytorch():
    torch.manual_seed(0)
    ours, reference = MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(ours.state_dict())
    query, key, padding = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.rand(2, 5) <= 0.3
    _, expected = reference(query, key, key, key_padding_mask=padding, average_attn_weights=False)
    torch.testing.assert_close(attention_weights(ours, query, key, key, padding), expected)


def test_sampling_points_by_hand():
    """At first, head 0 of four looks to the right: point k lies k/2 of half the box's width beside
    its centre."""
    module = DeformableAttention(8, nheads=4, points=[2, 2, 2], sampling="bilinear")
    where, weights = module.samples(torch.zeros(1, 1, 8), torch.tensor([[[0.5, 0.5, 0.4, 0.2]]]))
    expected = torch.tensor([[0.6, 0.5], [0.7, 0.5]])
    torch.testing.assert_close(where[0, 0, 0], expected.repeat(3, 1))
    torch.testing.assert_close(weights, torch.full((1, 1, 4, 6), 1 / 6))


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_predict(form):
    """The best class and box of each query, best first, are the detections; of the fast form, the
    first."""
    detector, image = small_detector(form), picture()
    found = explain(detector, image)
    predicted = detector.predict(image, threshold=0.0)
    ranked = found.scores[-1].argsort(descending=True)
    boxes = (found.boxes[-1, ranked] * torch.tensor([90, 60, 90, 60])).clamp(
        torch.zeros(4), torch.tensor([90, 60] * 2)
    )
    first = len(ranked) if form == "detr_r50" else 1
    torch.testing.assert_close(predicted.scores[:first], found.scores[-1, ranked][:first])
    assert predicted.labels[:first].tolist() == found.labels[-1, ranked][:first].tolist()
    torch.testing.assert_close(predicted.boxes[:first], boxes[:first])


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_distributed_over_everything(form):
    found = explain(small_detector(form), picture())
    assert len(found.boxes) == len(found.scores) == len(found.self_attention) == 3
    torch.testing.assert_close(
        found.self_attention.sum(-1), torch.ones(3, OPTIONS[form]["num_queries"])
    )
    torch.testing.assert_close(
        found.encoder_attention.sum((-2, -1)), torch.ones(found.encoder_attention.shape[:2])
    )
    cross = found.cross_attention
    total = cross.weights.sum((-2, -1))
    torch.testing.assert_close(total, torch.ones_like(total))
    if isinstance(cross, Points):
        cells = 64 // found.encoder_stride
        assert found.encoder_stride == (16 if form == "redetr_n" else 32)
        assert found.encoder_attention.shape == (cells, cells, cells, cells)
        assert found.strides == (8, 16, 32)
        assert cross.where.shape == (*cross.weights.shape, 2) == (3, 9, 4, 3, 4, 2)
    else:
        assert cross.weights.shape == (3, 7, 4, 4, 6)  # 64 x 96 px, stride 16


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_weights_give_what_the_layers_returned(form):
    """With one head: weights shown, times the values, through the output projection, are the output
    of the layer."""
    detector, image = small_detector(form, nheads=1), picture()
    model, calls = detector.model, {}
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.register_forward_hook(
                lambda module, args, out: calls.__setitem__(module, (args[2][0], out[0]))
            )
    found = explain(detector, image)
    layers, encoder = {
        "detr_r50": lambda: (
            model.transformer.decoder.layers,
            model.transformer.encoder.layers[-1],
        ),
        "redetr_n": lambda: (model.decoder, model.neck.encoder),
        "rtdetr_r18": lambda: (model.decoder.decoder["layers"], model.encoder.attention_layer),
    }[form]()
    shown = {encoder.self_attn: found.encoder_attention.flatten(2).flatten(0, 1)}
    shown |= {
        layer.self_attn: weights
        for layer, weights in zip(layers, found.self_attention, strict=True)
    }
    if form == "detr_r50":
        maps = found.cross_attention.weights[:, :, 0].flatten(-2)
        shown |= {
            layer.multihead_attn: weights for layer, weights in zip(layers, maps, strict=True)
        }
    assert len(shown) == (7 if form == "detr_r50" else 4)
    for module, weights in shown.items():
        value, out = calls[module]
        projected = value @ module.in_proj_weight.chunk(3)[2].T + module.in_proj_bias.chunk(3)[2]
        torch.testing.assert_close(module.out_proj(weights @ projected), out)


@torch.no_grad()
def test_points_are_those_of_each_layer():
    detector, image = small_detector("redetr_n"), picture()
    cross = explain(detector, image).cross_attention
    calls: list[tuple] = []
    for layer in detector.model.decoder:
        layer.cross_attn.register_forward_pre_hook(
            lambda module, args: calls.append((module, *args[:2]))
        )
    detector.predict(image)
    for where, weights, (module, query, boxes) in zip(
        cross.where, cross.weights, calls, strict=True
    ):
        offsets = module.sampling_offsets(query).view(9, 4, 3, 4, 2)
        centers, sizes = boxes[0, :, None, None, None, :2], boxes[0, :, None, None, None, 2:]
        # 4 points reach half of the box.
        torch.testing.assert_close(where, centers + offsets * sizes / 8)
        torch.testing.assert_close(
            weights.flatten(-2), module.attention_weights(query).view(9, 4, 12).softmax(-1)
        )


@torch.no_grad()
def test_points_of_levels_with_different_counts():
    """D-FINE reads 3, 6 and 3 points; what fills up a level is outside of the image."""
    options = OPTIONS["rtdetr_r18"] | {"points": (1, 2, 1), "dec_layers": 2}
    detector, image = small_detector("dfine_s", **options), picture()
    found = explain(detector, image)
    assert len(found.boxes) == len(found.self_attention) == 2  # without the first proposal
    cross = found.cross_attention
    assert cross.weights.shape == (2, 9, 4, 3, 2)
    total = cross.weights.sum((-2, -1))
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (cross.where[..., ::2, 1, :] == -1).all() and not cross.weights[..., ::2, 1].any()
    calls: list[tuple] = []
    for layer in detector.model.decoder.decoder["layers"]:
        layer.cross_attn.register_forward_pre_hook(
            lambda module, args: calls.append((module, *args[:2]))
        )
    detector.predict(image)
    for where, weights, (module, query, boxes) in zip(
        cross.where, cross.weights, calls, strict=True
    ):
        points, expected = module.samples(query, boxes)
        first, *second = points[0].split((1, 2, 1), 2)
        torch.testing.assert_close(where[:, :, 0, :1], first)
        torch.testing.assert_close(where[:, :, 1], second[0])
        torch.testing.assert_close(weights[:, :, 2, 0], expected[0, :, :, 3])


@torch.no_grad()
def test_only_layers_that_answer_are_shown():
    detector = small_detector("rtdetr_r18", eval_idx=1)
    found = explain(detector, picture())
    assert len(found.boxes) == len(found.self_attention) == len(found.cross_attention.where) == 2


@torch.no_grad()
def test_picks_of_rtdetr_are_where_its_queries_start():
    """The feature of each cell, in order, is the content of a query."""
    detector, image = small_detector("rtdetr_r18"), picture()
    decoder, seen = detector.model.decoder, {}
    for name, module in (("scores", decoder.enc_score_head), ("boxes", decoder.enc_bbox_head)):
        module.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args}))
    found = explain(detector, image)
    ((features,), (content,)) = seen["scores"], seen["boxes"]
    sizes = [64 // stride for stride in found.strides]
    starts = [0, sizes[0] ** 2, sizes[0] ** 2 + sizes[1] ** 2]
    for query, (level, (x, y)) in enumerate(
        zip(found.picks.level, found.picks.centers, strict=True)
    ):
        column, row = x * sizes[level] - 0.5, y * sizes[level] - 0.5
        cell = starts[level] + int(row.round()) * sizes[level] + int(column.round())
        assert torch.equal(features[0, cell], content[0, query])


def test_picks_are_the_proposals_that_became_queries():
    detector, image = small_detector("redetr_n"), picture()
    found, seen = explain(detector, image), []
    detector.model.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    detector.predict(image)
    logits, boxes = (seen[0]["enc_outputs"][name][0] for name in ("pred_logits", "pred_boxes"))
    sizes = [64 // stride for stride in STRIDES]
    starts = [0, sizes[0] ** 2, sizes[0] ** 2 + sizes[1] ** 2]
    scores = []
    for level, (x, y), box in zip(
        found.picks.level, found.picks.centers, found.picks.boxes, strict=True
    ):
        column, row = x * sizes[level] - 0.5, y * sizes[level] - 0.5
        place = starts[level] + int(row.round()) * sizes[level] + int(column.round())
        torch.testing.assert_close(box, box_cxcywh_to_xyxy(boxes[place]))
        scores.append(logits[place].max())
    assert scores == sorted(scores, reverse=True)
    assert min(scores) == logits.amax(-1).topk(9).values[-1]


@pytest.mark.parametrize("form", FORMS)
def test_models_are_left_as_they_are(form):
    detector, image = small_detector(form), picture()
    before = detector.predict(image, 0.0)
    explain(detector, image)
    assert not any(module._forward_pre_hooks for module in detector.model.modules())
    assert torch.equal(detector.predict(image, 0.0).boxes, before.boxes)


@pytest.mark.parametrize("form", [*FORMS, "detr_r50_panoptic"])
def test_a_model_that_is_ready_to_answer_is_explained_in_full(form, shared_coco):
    detector, image = small_detector(form), picture()
    whole, ready = explain(detector, image), explain(detector.optimize(), image)
    torch.testing.assert_close(ready.boxes, whole.boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ready.self_attention, whole.self_attention, rtol=1e-4, atol=1e-4)
    assert not detector.model.aux_loss
    dataset = open_dataset(shared_coco, "val")
    query_habits(detector, dataset, 1)
    explain_loss(detector, dataset, 101)
    assert not detector.model.aux_loss


def tensors_of(value: object) -> list[Tensor]:
    """The tensors in dataclasses and in the dataclasses that they hold."""
    if isinstance(value, Tensor):
        return [value]
    tensors = []
    for item in vars(value).values() if is_dataclass(value) else ():
        tensors += tensors_of(item)
    return tensors


@pytest.mark.parametrize("form", ["detr_r50", "redetr_n", "dfine_n", "rtdetr_r18"])
def test_a_detector_in_fp64_is_explained_in_fp32(form, shared_coco):
    """What it computes is that of fp32, but for rounding."""
    options = {} if form == "detr_r50" else {"masks": True}
    if form == "rtdetr_r18":
        options["denoising"] = 2
    detector = small_detector(form, **options)
    precise = Detector(deepcopy(detector.model), CLASSES, IDS, 64, "cpu", precision="fp64")
    dataset = open_dataset(shared_coco, "val")
    for results in (
        lambda detector: explain(detector, picture()),
        lambda detector: query_habits(detector, dataset, 1),
        lambda detector: explain_loss(detector, dataset, 104),
    ):
        expected, found = tensors_of(results(detector)), tensors_of(results(precise))
        assert all(tensor.dtype != torch.float64 for tensor in found)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_habits_are_what_queries_do_on_each_image(form, shared_coco):
    detector, dataset = small_detector(form), open_dataset(shared_coco, "val")
    steps: list[int] = []
    habits = query_habits(detector, dataset, 2, lambda: steps.append(1))
    assert len(steps) == len(habits.boxes) == 2
    for i, index in enumerate((0, 2)):  # 2 of 5, evenly
        found = explain(detector, dataset.image(index))
        torch.testing.assert_close(box_cxcywh_to_xyxy(habits.boxes[i]), found.boxes[-1])
        torch.testing.assert_close(habits.scores[i], found.scores[-1])
        if found.picks:
            assert torch.equal(habits.level[i], found.picks.level)
            assert torch.equal(habits.centers[i], found.picks.centers)
        else:
            assert habits.level is None


def test_numbers_as_json():
    found = explain(small_detector("detr_r50"), picture())
    content = json.loads(json.dumps(found.to_dict()))
    assert content["image_size"] == [60, 90]
    best = content["queries"][0]
    assert best["query"] == int(found.scores[-1].argmax())
    assert len(best["layers"]) == 3
    box = found.boxes[-1, best["query"]] * torch.tensor([90, 60, 90, 60])
    assert best["layers"][-1]["box"] == pytest.approx(box.tolist(), abs=1e-3)


class Unknown(DetectionModel):
    num_classes, num_queries, resize, image_size, max_size = 3, 1, "aspect", 64, None

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        return Outputs(pred_logits=torch.zeros(1, 1, 4), pred_boxes=torch.zeros(1, 1, 4))


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(InputError, match="Unknown: explain shows models with"):
        explain(Detector(Unknown(), CLASSES, IDS, 64, "cpu"), picture())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights of a small fast form, as training leaves them."""
    return save_small(tmp_path_factory.mktemp("run") / "best.safetensors")


def save_small(path: Path, **more) -> Path:
    """Writes the weights of a small fast form with `more` options; returns `path`."""
    model_options = OPTIONS["redetr_n"] | more
    options = tuple(f"{name}={json.dumps(value)}" for name, value in model_options.items())
    config = replace(TrainConfig(model="redetr_n"), image_size=64, model_options=options)
    about = {
        "config": config.to_dict(),
        "class_names": CLASSES,
        "category_ids": IDS,
        "step": 0,
        "best": {},
    }
    save_weights(path, small_detector("redetr_n", **more).model.state_dict(), about)
    return path


def test_the_command(checkpoint, shared_coco, tmp_path):
    """In a process of its own: both pages, and the numbers."""
    arguments = [
        "explain",
        checkpoint,
        "--data",
        shared_coco,
        "--image-id",
        101,
        "--world-size",
        2,
        "--device",
        "cpu",
    ]
    process = Fork([*arguments, "--output", tmp_path / "pages", "--json"])
    output, errors = process.communicate(timeout=120)
    origin, threshold = errors.splitlines()
    assert (process.returncode, origin) == (0, "weights: a run of redetr from random weights")
    assert threshold.startswith("threshold: 0.5 (")
    numbers = json.loads(output)
    assert len(numbers["queries"]) == 9
    assert [gpu["image_id"] for gpu in numbers["loss"]["gpus"]] == [101, 102]
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"index.html", "loss.html"}
    document = json.loads((shared_coco / "annotations" / "instances_val.json").read_text())
    (name,) = [image["file_name"] for image in document["images"] if image["id"] == 101]
    for page in ("index.html", "loss.html"):
        assert name in (tmp_path / "pages" / page).read_text()


def test_the_command_explains_an_image_of_the_test_split(checkpoint, tmp_path, capsys):
    data = write_tiny_coco(tmp_path / "data")
    (data / "val").rename(data / "test")
    annotations = data / "annotations"
    (annotations / "instances_val.json").rename(annotations / "instances_test.json")
    pages = tmp_path / "pages"
    flags = ["--split=test", "--image-id=101", "--samples=2", "--device=cpu", "--json"]
    arguments = ["explain", str(checkpoint), f"--data={data}", f"--output={pages}", *flags]
    parse_command(arguments).run()
    losses = json.loads(capsys.readouterr().out)["loss"]
    assert [gpu["image_id"] for gpu in losses["gpus"]] == [101]
    assert (pages / "loss.html").exists()


def test_the_command_judges_masks_where_the_data_has_them(tmp_path, capsys):
    data = write_tiny_coco(tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(document))
    checkpoint = save_small(tmp_path / "best.safetensors", masks=True)
    flags = ["--image-id=101", "--samples=0", "--device=cpu", "--json"]
    pages = tmp_path / "pages"
    arguments = ["explain", str(checkpoint), f"--data={data}", f"--output={pages}", *flags]
    parse_command(arguments).run()
    losses = json.loads(capsys.readouterr().out)["loss"]["gpus"][0]["losses"]
    assert losses["loss_mask"] > 0 and losses["loss_dice"] > 0
    assert "<th>dice</th>" in (pages / "loss.html").read_text()


def test_the_loss_page_of_an_earlier_image_is_removed(checkpoint, shared_coco, tmp_path):
    pages = tmp_path / "pages"
    arguments = ["explain", str(checkpoint), f"--output={pages}", "--device=cpu"]
    flags = [f"--data={shared_coco}", "--image-id=101", "--samples=0"]
    parse_command([*arguments, *flags]).run()
    assert (pages / "loss.html").exists()
    image = min((shared_coco / "val").iterdir())
    parse_command([*arguments, str(image)]).run()
    assert {path.name for path in pages.iterdir()} == {"index.html"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to explain"),
        (["IMAGE", "--image-id=1"], "give either an image or --image-id, not both"),
        (["IMAGE", "--world-size=2"], "--world-size only affects the loss page"),
        (["IMAGE", "--threshold=2"], "--threshold 2.0 is not between 0 and 1"),
        (["IMAGE", "--samples=-1"], "--samples -1 must not be below 0"),
        (["IMAGE"], "IMAGE: "),
        (["--image-id=1", "--data=nowhere"], "nowhere: no such folder"),
        (["--image-id=1", "--data=s3://b/x"], "s3://b/x: s3 URLs are not supported; give the http"),
        (["ftp://x/a.jpg"], "ftp://x/a.jpg: ftp URLs are not supported; download it"),
        (["IMAGE", "--split=test"], "--split has no effect without --data: add it"),
        (["IMAGE", "--val-fraction=0.2"], "--val-fraction has no effect without --data: add it"),
        (["--image-id=0", "--data=digits", "--split=test"], "digits: has no test split; use val"),
    ],
)
def test_what_the_command_refuses(flags, message, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        parse_command(["explain", str(checkpoint), *flags]).run()
    assert not (tmp_path / "explained").exists()


def test_the_page_in_the_docs(checkpoint, tmp_path, monkeypatch):
    """Its commands are understood, its Python runs."""
    root = Path(__file__).parent.parent
    text = (root / "docs" / "explain.md").read_text()
    commands = re.findall(r"^redetr (explain .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        parse_command(shlex.split(command))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("runs/demo/best.pt", str(checkpoint)).replace(
        "examples/", f"{root}/examples/"
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "page.html").exists()
