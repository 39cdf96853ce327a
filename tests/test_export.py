"""Exported files compute what PyTorch computes, for every batch and image size, and run without
this library."""

import json
import os
import re
import runpy
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import tifffile
import torch
import torch.nn.functional as F
from command_line import train_arguments
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from redetr import Detector, InputError, build
from redetr.cli import main, parse_command
from redetr.commands.export import print_comparison
from redetr.data import open_dataset
from redetr.data.views import Fit
from redetr.export.comparison import Comparison, detections_apart
from redetr.export.export import ExportConfig, Trial, _require_ap, describe
from redetr.export.files import SUFFIXES, open_file, write_file, write_openvino
from redetr.export.graph import Plain, Processed, resized_pixels, trace
from redetr.export.mobile import MOBILE
from redetr.structures import DetectionModel, LossConfig, Outputs, Size

opened = cache(open_file)
ROOT = Path(__file__).parent.parent
FORMS = ("onnx", "openvino", "torch")  # tests/test_mobile_export.py has the others
FAST = {
    "backbone": (16, 32, 64),
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 1,
    "dim_feedforward": 64,
}
FAST_RTDETR = {
    "width": 16,
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 64,
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 1,
    "dim_feedforward": 64,
}
FAST_DFINE = {
    "width": 8,
    "enc_hidden_dim": 32,
    "block_width": 16,
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 1,
    "dim_feedforward": 64,
}
SHAPES = ((1, 96, 128), (4, 64, 64), (3, 136, 72))  # batch, height, width
CLASSES = ("cup", "plate", "spoon"), (7, 12, 90)


def detector(name: str, num_classes: int = 3, **options) -> Detector:
    """Random weights, larger in the heads than training starts with, so that scores and boxes
    spread."""
    torch.manual_seed(3)
    model = build(name, num_classes, **options)
    for part, module in model.named_modules():
        is_head = "_embed" in part or "_head" in part
        if isinstance(module, nn.Linear) and is_head:
            nn.init.normal_(module.weight, std=1.13 / module.in_features**0.5)
    names = [f"class {label}" for label in range(num_classes)]
    return Detector(model, names, range(num_classes), 96, device="cpu")


def write_all(of: Detector, folder: Path, forms=FORMS, **settings) -> dict[str, Path]:
    """One program in several formats, with a threshold of 0.25; turned into ONNX once, which takes
    most of the time."""
    module = Processed(of.model, of.image_size) if settings.get("processing") else Plain(of.model)
    program, paths = trace(module, settings.get("mask", False)), {}
    for form in forms:
        config = ExportConfig(form, **settings)
        paths[form], about = (
            folder / f"detector{SUFFIXES[form]}",
            json.dumps(describe(of, config, 0.25)),
        )
        if form == "openvino":
            write_openvino(paths["onnx"], paths[form], about)
        else:
            write_file(program, paths[form], about, config.inputs, config.outputs, form)
    return paths


@pytest.fixture(scope="module")
def fast() -> Detector:
    return detector("redetr_n", **FAST, num_queries=50)


@pytest.fixture(scope="module")
def plain(fast, tmp_path_factory) -> dict[str, Path]:
    return write_all(fast, tmp_path_factory.mktemp("plain"))


def trace_and_convert_once(patch: pytest.MonkeyPatch) -> None:
    """For exports of one model: each of its two programs is traced once, and turned into ONNX once.

    That takes most of the time of an export.
    """
    programs: dict[tuple[type, Size | None], ExportedProgram] = {}
    convert = cache(torch.onnx.export)

    def traced(
        module: Plain | Processed, mask: bool, size: Size | None, one_image: bool
    ) -> ExportedProgram:
        assert mask == bool(size) and not one_image
        key = type(module), size
        if key not in programs:
            programs[key] = trace(module, mask, size)
        return programs[key]

    def converted(program: ExportedProgram, **options: Any) -> Any:
        hashable = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        return convert(program, **hashable)

    patch.setattr("redetr.export.export.trace", traced)
    patch.setattr(torch.onnx, "export", converted)


@pytest.fixture(scope="module")
def of_the_page(middle, tmp_path_factory) -> Path:
    """A folder with what the commands of docs/export.md write, here of the quickest of models."""
    page, folder = (ROOT / "docs/export.md").read_text(), tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = []
    for line in "".join(blocks).splitlines():
        is_mobile = any(f"--format {name}" in line for name in MOBILE)
        if line.startswith("redetr export ") and not is_mobile:
            lines.append(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trace_and_convert_once(patch)
        for line in lines:
            exported(patch, averages(middle, resize="aspect", max_size=70), *shlex.split(line)[2:])
    return folder


@pytest.fixture(scope="module")
def processed(of_the_page) -> dict[str, Path]:
    return {form: of_the_page / f"detector{SUFFIXES[form]}" for form in FORMS}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def assert_same(of: Detector, path: Path, *arrays: np.ndarray) -> None:
    """The file's logits and boxes are PyTorch's, up to 1e-4."""
    with torch.no_grad():
        expected = Plain(of.model)(*map(torch.from_numpy, arrays))
    for output, wanted in zip(opened(path)(list(arrays)), expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fast_form_at_any_batch_and_size(form, shape, fast, plain):
    batch, height, width = shape
    assert_same(fast, plain[form], noise(batch, 3, height, width))


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_fewer_positions_than_queries(form, fast, plain):
    logits, _ = opened(plain[form])([noise(1, 3, 40, 40)])
    assert logits.shape == (1, 5 * 5 + 3 * 3 + 2 * 2, 3)
    assert_same(fast, plain[form], noise(1, 3, 40, 40))


@pytest.mark.long
def test_the_faithful_form_and_padding(tmp_path):
    faithful = detector("detr_r50", **FAST, enc_layers=1, num_queries=10)
    paths = write_all(faithful, tmp_path, forms=("onnx", "openvino"), mask=True)
    for batch, height, width in SHAPES:
        mask = np.zeros((batch, height, width), bool)
        mask[-1, height // 2 :] = True
        mask[-1, :, -20:] = True
        for path in paths.values():
            assert_same(faithful, path, noise(batch, 3, height, width), mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("detr_r50", {"num_classes": 91}),
        (
            "detr_r50",
            FAST
            | {"backbone": "resnet18", "position": "learned", "pre_norm": True, "enc_layers": 1},
        ),
        ("redetr_mobile", {}),
        ("redetr_n", {"backbone": "resnet50"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_other_models(name, options, tmp_path):
    of = detector(name, **options)
    (path,) = write_all(of, tmp_path, forms=("onnx",)).values()
    for batch, height, width in SHAPES:
        assert_same(of, path, noise(batch, 3, height, width))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtdetrv2_r18", FAST_RTDETR),
        ("rtdetrv2_r18", FAST_RTDETR | {"sampling": "discrete"}),
        ("dfine_n", FAST_DFINE),
    ],
    ids=["rtdetr", "discrete", "dfine"],
)
def test_queries_from_the_encoder(name, options, tmp_path):
    """Queries of nearly the same score may change places: each is compared with its nearest.

    A model that was trained with denoising is exported without what only that needs.
    """
    of = detector(name, **options, denoising=2)
    (path,) = write_all(of, tmp_path, forms=("onnx",)).values()
    stored = onnx.load(path).graph.initializer
    assert not [tensor.name for tensor in stored if "denoising" in tensor.name]
    for shape in SHAPES:
        images = noise(shape[0], 3, *shape[1:])
        with torch.no_grad():
            expected = torch.cat(Plain(of.model)(torch.from_numpy(images)), -1)
        given = torch.cat([torch.as_tensor(array) for array in opened(path)([images])], -1)
        assert given.shape == expected.shape
        distances = torch.cdist(given, expected, p=torch.inf)  # [B, Q, Q]
        assert distances.amin(1).max() < 1e-4 and distances.amin(2).max() < 1e-4


@pytest.mark.long
def test_onnx_holds_standard_operators_and_names_its_axes(plain):
    model = onnx.load(plain["onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(each.domain, each.version >= 17) for each in model.opset_import] == [("", True)]
    session = onnxruntime.InferenceSession(plain["onnx"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("images", ["batch", 3, "height", "width"])
    ]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("logits", ["batch", "found", 3]), ("boxes", ["batch", "found", 4]),
    ]  # fmt: skip


def metadata(path: Path) -> dict:
    if path.suffix == ".onnx":
        return json.loads(
            onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["redetr"]
        )
    if path.suffix == ".xml":
        return json.loads(openvino.Core().read_model(path).get_rt_info("redetr").value)
    # Read from the archive, because torch.export.load takes long. examples/export/run_torch.py uses it.
    with ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/redetr.json"))
        return json.loads(archive.read(name))


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_metadata(form, plain):
    about = metadata(plain[form])
    assert about.pop("redetr")
    assert about == {
        "form": "FastDETR",
        "weights_from": "random weights",
        "scores": "sigmoid",
        "precision": "fp32",
        "inputs": ["images"],
        "outputs": ["logits", "boxes"],
        "class_names": ["class 0", "class 1", "class 2"],
        "category_ids": [0, 1, 2],
        "threshold": 0.25,
        "resize": "square",
        "image_size": 96,
        "max_size": None,
        "size": None,
        "channels": 3,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def picture(height: int, width: int) -> Tensor:
    """A photograph, as far as resizing cares: smooth, with a few edges. uint8 `[3, H, W]`."""
    image = Image.open(ROOT / "examples/digits.png").convert("RGB").resize((width, height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def assert_detects(
    of: Detector, path: Path, shapes=((1, 150, 200), (4, 64, 80), (1, 300, 96))
) -> None:
    """A file with processing gives what `predict` does; resized pixels may differ by one step of
    256."""
    for batch, height, width in shapes:
        images = picture(height, width).expand(batch, -1, -1, -1)
        scores, labels, boxes = opened(path)([images.numpy()])
        expected = of.predict(list(images), threshold=0.0)
        for found, *values in zip(expected, scores, labels, boxes, strict=True):
            np.testing.assert_allclose(values[0], found.scores, atol=5e-3)
            assert np.all(np.diff(values[0]) <= 0)
            clear = found.scores.diff().abs().min() > 0.01  # then the order cannot differ
            best = slice(None) if clear else slice(1)
            assert values[1].tolist()[best] == found.labels.tolist()[best]
            np.testing.assert_allclose(values[2][best], found.boxes[best], atol=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redetr_n", "detr_r50"])
def test_processing_gives_what_predict_does(name, tmp_path):
    of = detector(name, **FAST | ({"enc_layers": 1} if name == "detr_r50" else {}), num_queries=10)
    of.model.max_size = 110 if name == "detr_r50" else None
    # With random weights, a step of 256 may make the fast form choose other positions: there,
    # nothing is resized.
    shapes = {"shapes": ((1, 96, 96), (4, 96, 96))} if name == "redetr_n" else {}
    for path in write_all(of, tmp_path, processing=True).values():
        assert_detects(of, path, **shapes)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_processing_in_every_format(form, processed):
    """Sharp edges, shrunk and enlarged: each runtime resizes by code of its own."""
    assert_detects(averages(resize="aspect", max_size=70), processed[form])


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_examples_run_without_redetr(form, processed, strict_python, tmp_path):
    blocked = ["redetr"] if form == "torch" else ["redetr", "torch"]
    start = f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked})); del sys.argv[0]; "
    script, image = ROOT / f"examples/export/run_{form}.py", ROOT / "examples/digits.png"
    arguments = [script, processed[form], image, "0.0"]
    done = subprocess.run(
        [
            *strict_python,
            "-Wignore:The given buffer is not writable",  # torch 2.11 opens its own files so
            "-c",
            f"{start}runpy.run_path(sys.argv[0], None, '__main__')",
            *arguments,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    found = averages(resize="aspect", max_size=70).predict(image, threshold=0.0)
    lines = done.stdout.splitlines()
    assert len(lines) == len(found)
    name, score, box = re.fullmatch(r"(\w+) (\d\.\d\d) (\[.*\])", lines[0]).groups()
    assert name == found.names[0]
    assert float(score) == pytest.approx(float(found.scores[0]), abs=0.02)
    assert json.loads(box) == pytest.approx(found.boxes[0].tolist(), abs=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("rotated.jpg", 3, [[76, 76], [0, 0], [0, 0]]),
        ("rotated.jpg", 1, [[23, 23]]),
        ("grey.npy", 1, [[9, 9]]),
        ("bands.npy", 5, [[9, 9]] * 5),
        ("rotated.jpg", 5, "the model takes 5 channels; give them as a .npy file"),
        ("bands.npy", 3, r"holds uint8 \[2, 1, 5\]; the model takes uint8 \[H, W, 3\]"),
        ("deep.npy", 1, r"holds uint16 \[2, 1, 1\]; the model takes uint8"),
        ("clear.png", 3, "clear.png: has transparency or more than 8 bits; save it as 8-bit RGB"),
        ("deep.png", 1, "deep.png: has transparency or more than 8 bits; save it as 8-bit RGB"),
        ("deep.tif", 3, "deep.tif: has transparency or more than 8 bits; save it as 8-bit RGB"),
    ],
)
def test_examples_read_images_of_any_channels(form, name, channels, expected, tmp_path):
    """A photograph is rotated as its EXIF tag says. What redetr reads by rules of its own is
    refused."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (2, 1), (76, 0, 0)).save(tmp_path / "rotated.jpg", exif=exif, quality=100)
    np.save(tmp_path / "grey.npy", np.full((2, 1), 9, np.uint8))
    np.save(tmp_path / "bands.npy", np.full((2, 1, 5), 9, np.uint8))
    np.save(tmp_path / "deep.npy", np.full((2, 1), 9, np.uint16))
    Image.new("RGBA", (1, 2)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((2, 1), 900, np.uint16)).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", np.full((2, 1, 3), 900, np.uint16), photometric="rgb")
    read = runpy.run_path(str(ROOT / f"examples/export/run_{form}.py"))["read"]
    if isinstance(expected, str):
        with pytest.raises(SystemExit, match=expected):
            read(str(tmp_path / name), channels)
        return
    pixels = read(str(tmp_path / name), channels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (channels, 2, 1))
    np.testing.assert_allclose(pixels[..., 0].astype(int), expected, atol=1)


@pytest.mark.parametrize("channels", [1, 5])
def test_metadata_of_other_channels(channels):
    of = detector("redetr_n", **FAST, channels=channels)
    about = describe(of, ExportConfig(), 0.25)
    assert about["channels"] == len(about["mean"]) == len(about["std"]) == channels


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(0, 2000))
def test_sizes_are_those_of_training(height, width, shorter, more):
    model = Averages(resize="aspect", max_size=shorter + more)
    assert Processed(model, shorter)._size(height, width) == Fit(shorter, shorter + more)(
        height, width
    )
    model.max_size = None
    assert Processed(model, shorter)._size(height, width) == Fit(shorter)(height, width)


class Averages(DetectionModel):
    """Sees colours and edges of the whole image; quick to export. Always a cup first, in the middle
    if `blind`."""

    loss_config = LossConfig(scores="sigmoid")
    image_size = 64

    def __init__(self, resize="square", max_size=None, blind=False):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.num_queries = 3, 1
        self.resize, self.max_size = resize, max_size
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.class_embed, self.bbox_embed = nn.Linear(8, 3), nn.Linear(8, 4)
        with torch.no_grad():
            for head in (self.class_embed, self.bbox_embed):
                head.weight.mul_(0.0 if blind else 2.0)
            self.class_embed.bias.copy_(torch.tensor([2.0, 0.0, -2.0]))
            self.bbox_embed.bias.zero_()  # the middle half of the image

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
        features = self.conv(images).relu().mean((2, 3))[:, None]
        return Outputs(
            pred_logits=self.class_embed(features), pred_boxes=self.bbox_embed(features).sigmoid()
        )


@pytest.fixture(scope="module")
def middle(tmp_path_factory) -> Path:
    """A data set of images with a cup in the middle, which the blind `Averages` finds always."""
    root = tmp_path_factory.mktemp("data") / "middle"
    for split, count in (("train", 4), ("val", 5)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            width, height = (64, 48) if number % 2 else (80, 64)
            Image.fromarray(
                np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
            ).save(root / split / f"{number}.png")
            images.append(
                {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
            )
            box = [width / 4, height / 4, width / 2, height / 2]
            annotations.append({"id": number, "image_id": number, "category_id": 7, "bbox": box})
        (root / "annotations").mkdir(exist_ok=True)
        categories = [{"id": id_, "name": name} for name, id_ in zip(*CLASSES, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def averages(data: Path | None = None, **options) -> Detector:
    trained_on = str(data) if data else None
    return Detector(Averages(**options), *CLASSES, 64, device="cpu", trained_on=trained_on)


def test_measured_ap_is_that_of_pytorch():
    """In the last run of benchmarks/export.py, as docs/export.md says it."""
    measured = json.loads(max((ROOT / "benchmarks/results").glob("*-export.json")).read_text())[
        "results"
    ]
    page = (ROOT / "docs/export.md").read_text()
    assert set(measured) == {"digits", "crowns"}
    for data, rows in measured.items():
        rows = [row for row in rows if row["precision"] == "fp32"]
        ways = {
            (row["format"], row["processing"], *row["shape"], row["batch_size"]) for row in rows
        }
        assert len(ways) == 2 * 2 * 3 * 2  # wide, square and high
        for row in rows:
            assert row["AP"] == pytest.approx(row["AP_pytorch"], abs=0.1)
            height, width = row["shape"]
            what = "images into the file" if row["processing"] else "the model's input"
            assert f"| {data}, {what} {width}x{height} | {row['AP_pytorch']:.1f} |" in page


@pytest.mark.long
def test_a_trial_of_a_file_with_processing(middle, processed):
    """Images of two sizes go in by size, and come out in their places."""
    of, dataset = averages(resize="aspect", max_size=70), open_dataset(middle, "val")
    comparison = Trial(of, ExportConfig(processing=True), dataset, 100, 2).compare(
        opened(processed["onnx"])
    )
    assert comparison.images == 5
    assert comparison.differences["boxes"][0] < 0.2  # pixels
    assert comparison.ap[1] == pytest.approx(comparison.ap[0])


def test_comparison_and_threshold(middle):
    """A file that is off by a twentieth of the image, and one that is not."""
    of = averages(blind=True)
    trial = Trial(of, ExportConfig(), open_dataset(middle, "val"), images=3, batch_size=2)

    def same(arrays):
        return [
            output.numpy()
            for output in Plain(of.model.requires_grad_(False))(torch.from_numpy(arrays[0]))
        ]

    def off(arrays):
        logits, boxes = same(arrays)
        return [logits + 0.5, boxes + np.float32([0.05, 0.05, 0, 0])]

    assert trial.threshold() == 0.88  # the sigmoid of 2 is 0.8808
    comparison = trial.compare(same)
    assert (comparison.images, comparison.ap) == (3, (pytest.approx(100), pytest.approx(100)))
    # Of three labels for each image, one scores 0.88.
    assert (comparison.threshold, comparison.paired, comparison.unpaired) == (0.88, 3, 0)
    assert comparison.differences == {"scores": (0.0, 0.0), "boxes": (0.0, 0.0)}
    comparison = trial.compare(off)
    assert (comparison.paired, comparison.unpaired, comparison.same) == (3, 0, 0)
    higher = pytest.approx(1 / (1 + np.exp(-2.5)) - 1 / (1 + np.exp(-2.0)), abs=1e-6)
    assert comparison.differences["scores"] == (higher, higher)
    # Images are 80x64, 64x48 and 80x64: a twentieth is 4, 3.2 and 4 px.
    assert comparison.differences["boxes"] == (pytest.approx(4), pytest.approx(4))
    assert comparison.ap[1] < 50


def test_equal_scores_in_another_order_are_no_difference(fast, middle):
    of = Detector(fast.model, *CLASSES, 96, device="cpu")
    trial = Trial(
        of, ExportConfig(processing=True), open_dataset(middle, "val"), images=2, batch_size=1
    )
    trial.threshold = lambda: 0.0  # all of them
    gaps = []

    def swapped(arrays):
        (found,) = of.predict([torch.from_numpy(arrays[0][0])], threshold=0.0)
        order = list(range(len(found)))
        place = int(found.scores.diff().abs().argmin())
        order[place : place + 2] = place + 1, place
        gaps.append(float(found.scores[place] - found.scores[place + 1]))
        assert (found.boxes[place] - found.boxes[place + 1]).abs().max() > 1
        return [
            each.numpy()[None] for each in (found.scores, found.labels[order], found.boxes[order])
        ]

    differences = trial.compare(swapped).differences
    assert differences["boxes"][0] < 1e-3
    assert differences["scores"][0] == pytest.approx(max(gaps), abs=1e-5)

    def off(arrays):
        scores, labels, boxes = swapped(arrays)
        return [scores, labels, boxes + np.float32(3)]

    assert trial.compare(off).differences["boxes"] == (
        pytest.approx(3, abs=1e-3),
        pytest.approx(3, abs=1e-3),
    )


def exported(monkeypatch, of: Detector, *arguments: str | Path) -> None:
    monkeypatch.setattr("redetr.detector.detector.load", lambda checkpoint, device: of)
    parse_command(["export", *map(str, arguments)]).run()


def test_a_file_that_moves_ap_is_not_written(middle, tmp_path, monkeypatch):
    def turned(path):
        return lambda arrays, run=open_file(path): [
            run(arrays)[0],
            run(arrays)[1] * np.float32(0.5),
        ]

    monkeypatch.setattr("redetr.export.export.open_file", turned)
    arguments = ("best.pt", "--format", "torch", "--output", tmp_path / "d.pt2")
    with pytest.raises(
        InputError,
        match=r"AP is 0\.00, with PyTorch 100\.00, on 5 images.*drops by more than --max-ap-drop 0\.1 "
        r"\(95% interval 100\.00 to 100\.00\), so no file was written; try another --format, or "
        r"accept it with --max-ap-drop 100",
    ):
        exported(monkeypatch, averages(middle, blind=True), *arguments)
    assert not (tmp_path / "d.pt2").exists()
    exported(monkeypatch, averages(middle, blind=True), *arguments, "--max-ap-drop", "100")
    assert (tmp_path / "d.pt2").exists()


@pytest.mark.long
def test_resized_pixels_are_those_of_training(tmp_path):
    """In every format: PyTorch rounds bytes after each of its two passes, and so does the file."""

    class Resized(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return resized_pixels(images, 40, 64)

    images = np.random.default_rng(0).integers(0, 256, (1, 3, 97, 101), np.uint8)
    wanted = F.interpolate(torch.from_numpy(images), (40, 64), mode="bilinear", antialias=True)
    sample = torch.zeros(1, 3, 97, 101, dtype=torch.uint8)
    program = torch.export.export(Resized(), (sample,))
    for form in ("onnx", "openvino", "torch"):
        path = tmp_path / f"resized{SUFFIXES[form]}"
        write_file(program, path, "{}", ["images"], ["boxes"], form)
        (pixels,) = open_file(path)([images])
        apart = np.abs(pixels - wanted.numpy())
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01, form  # rounded once: 0.16


def shifted(pixels: float, images: int, every: int = 1):
    """A file whose boxes are off by `pixels` in every so many of the first images."""
    seen = []

    def opener(path):
        def run(arrays, run=open_file(path)):
            logits, boxes = run(arrays)
            seen.append(path)
            number = len(seen)
            if number <= images and number % every == 0:
                boxes = boxes + np.float32(pixels / 64)
            return [logits, boxes]

        return run

    return opener


def test_a_drop_that_chance_explains_is_a_warning(middle, tmp_path, monkeypatch, capsys):
    """One of five images is worse: five images cannot tell whether others would be."""
    path = tmp_path / "d.pt2"
    arguments = ("best.pt", "--format", "torch", "--output", path)
    monkeypatch.setattr("redetr.export.export.open_file", shifted(0.6, images=1))
    exported(monkeypatch, averages(middle, blind=True), *arguments)
    output, errors = capsys.readouterr()
    assert path.exists()
    assert "5 detections with a score of 0.88 or more, in 5 images" in output
    assert re.search(r"boxes +[\d.]+ px +0 px", output)
    drop = r"warning: AP drops by [\d.]+, more than 0\.1, but 5 images cannot tell that from chance"
    assert re.search(drop + r" \(95% interval -?0\.00 to [\d.]+\): more held-out images", errors)


@pytest.mark.parametrize("pixels", [0.5, 6])
def test_a_single_image(middle, tmp_path, monkeypatch, pixels):
    """It has no confidence interval: what is found in it must be the same up to rounding."""
    path = tmp_path / "d.pt2"
    arguments = ("best.pt", "--format", "torch", "--output", path, "--images", "1")
    arguments += ("--max-ap-drop", "-1")  # even an equal AP drops by more
    monkeypatch.setattr("redetr.export.export.open_file", shifted(pixels, images=1))
    if pixels < 1:
        exported(monkeypatch, averages(middle, blind=True), *arguments)
    else:
        with pytest.raises(InputError, match="on 1 image: it drops by more than"):
            exported(monkeypatch, averages(middle, blind=True), *arguments)
    assert path.exists() == (pixels < 1)


def test_near_ties_that_change_places_are_paired():
    """By index, the boxes of two detections of nearly the same score seem 50 px apart."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [30, 0, 40, 10]], np.float32)
    pytorch = {"scores": np.array([0.8, 0.7, 0.1]), "labels": np.array([1, 1, 0]), "boxes": boxes}
    file = {
        "scores": np.array([0.75, 0.749, 0.1]),
        "labels": np.array([1, 1, 1]),
        "boxes": boxes[[1, 0, 2]] + np.float32(0.25),
    }
    apart = detections_apart([pytorch], [file], threshold=0.5)
    assert (apart.paired, apart.unpaired, apart.same) == (2, 0, 2), "the third scores less"
    differences = apart.differences
    assert differences["boxes"] == (pytest.approx(0.25), pytest.approx(0.25))
    assert differences["scores"] == (pytest.approx(0.051), pytest.approx((0.051 + 0.05) / 2))
    apart = detections_apart([pytorch], [file], threshold=0.05)
    assert (apart.paired, apart.unpaired) == (2, 1), "another class"


@pytest.mark.long
def test_int8_and_fp16(of_the_page, middle, tmp_path, monkeypatch, capsys):
    files = {
        "int8": of_the_page / "int8.onnx",
        "fp16": of_the_page / "small.xml",
        "i8": tmp_path / "int8.xml",
    }
    exported(
        monkeypatch,
        averages(middle, blind=True),
        "c",
        "--format",
        "openvino",
        "--precision",
        "int8",
        "--output",
        files["i8"],
    )
    assert "AP 100.00 with PyTorch, 100.00 with the file" in capsys.readouterr().out
    assert [metadata(path)["precision"] for path in files.values()] == ["int8", "fp16", "int8"]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(files["int8"]).graph.node}
    for name, dtype in (("i8", "i8"), ("fp16", "f16")):
        model = openvino.Core().read_model(files[name])
        constants = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
        assert dtype in {op.output(0).get_element_type().get_type_name() for op in constants}


def test_a_file_takes_the_channels_of_the_model():
    model = Averages()
    model.channels = 5
    model.conv = nn.Conv2d(5, 8, 3, padding=1)
    program = trace(Plain(model))
    (images,), _ = program.example_inputs
    assert images.shape[1] == 5
    logits, boxes = program.module()(torch.rand(3, 5, 64, 96))
    assert logits.shape[0] == boxes.shape[0] == 3


def test_all_detections_of_a_model_with_many_queries_are_compared(middle):
    """As many as the file gives, which may be more than 100."""

    class Many(Averages):
        def forward(self, images: Tensor, mask: Tensor | None = None) -> Outputs:
            return {
                name: values.repeat(1, 150, 1)
                for name, values in super().forward(images, mask).items()
            }

    model = Many()
    model.num_queries = 150
    trial = Trial(
        Detector(model, *CLASSES, 64, device="cpu"),
        ExportConfig(),
        open_dataset(middle, "val"),
        2,
        1,
    )
    assert [len(answer["scores"]) for answer in trial._pytorch] == [150, 150]


def test_a_run_folder_gives_its_whole_name(middle, tmp_path, monkeypatch):
    (tmp_path / "v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "v1.5")
    exported(monkeypatch, averages(middle), ".", "--format", "torch", "--no-check")
    assert Path("v1.5.pt2").exists()


def test_a_file_with_another_suffix_gives_its_stem(middle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.ckpt").touch()
    exported(monkeypatch, averages(middle), "model.ckpt", "--format", "torch", "--no-check")
    assert Path("model.pt2").exists()


def test_a_hub_name_with_dots_gives_its_whole_name(middle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported(monkeypatch, averages(middle), "me/cups-v1.2", "--format", "torch", "--no-check")
    assert Path("cups-v1.2.pt2").exists()


@pytest.mark.parametrize(("precision", "is_said"), [("fp32", True), ("int8", False)])
def test_only_a_file_in_fp32_computes_as_pytorch(
    precision, is_said, middle, tmp_path, monkeypatch, capsys
):
    def write(detector, path, *_, **__):
        path.write_bytes(b"")

    monkeypatch.setattr("redetr.export.export.export", write)
    of = averages(middle)
    of.run_precision = "bf16"
    path = tmp_path / "d.onnx"
    exported(monkeypatch, of, "best.pt", "--output", path, "--precision", precision)
    said = "precision: fp32, in PyTorch as in the file" in capsys.readouterr().err
    assert said == is_said


@pytest.mark.long
def test_a_file_is_called_as_its_checkpoint_by_default(of_the_page):
    assert metadata(of_the_page / "best.onnx")["outputs"] == ["logits", "boxes"]


def test_without_data(tmp_path, monkeypatch, capsys):
    path = tmp_path / "d.pt2"
    arguments = ("best.pt", "--format", "torch", "--output", path)
    with pytest.raises(
        InputError, match="does not state its training data: give --data, or --no-check"
    ):
        exported(monkeypatch, averages(), *arguments)
    exported(monkeypatch, averages(), *arguments, "--no-check")
    assert "was not compared" in capsys.readouterr().err
    assert path.exists()


def test_no_check_compares_nothing_where_there_is_data(middle, tmp_path, monkeypatch, capsys):
    arguments = ("b", "--format", "torch", "--output", tmp_path / "d.pt2", "--no-check")
    exported(monkeypatch, averages(middle, blind=True), *arguments)
    output, errors = capsys.readouterr()
    assert "was not compared" in errors and "AP" not in output
    assert metadata(tmp_path / "d.pt2")["threshold"] == 0.5


def test_without_a_comparison_the_threshold_is_that_of_the_checkpoint(
    middle, tmp_path, monkeypatch
):
    of = averages(middle, blind=True)
    of.threshold = 0.31
    path = tmp_path / "d.pt2"
    exported(monkeypatch, of, "b", "--format", "torch", "--output", path, "--no-check")
    assert metadata(path)["threshold"] == 0.31


def test_a_file_that_is_better_is_written(middle, tmp_path, monkeypatch):
    def mended(path):
        return lambda arrays, run=open_file(path): [
            run(arrays)[0],
            np.full_like(run(arrays)[1], 0.5),
        ]

    of = averages(middle, blind=True)
    with torch.no_grad():
        of.model.bbox_embed.bias.fill_(2.0)  # not the middle half
    monkeypatch.setattr("redetr.export.export.open_file", mended)
    exported(monkeypatch, of, "best.pt", "--format", "torch", "--output", tmp_path / "d.pt2")
    assert (tmp_path / "d.pt2").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--precision", "fp16"), "fp16 needs --format openvino"),
        (("--precision", "int8", "--format", "torch"), "int8 needs --format onnx or openvino"),
        (("--mask", "--with-processing"), "leave out --mask"),
        (("--output", "detector.xml"), "must end in .onnx"),
        (("--output", "nowhere/detector.onnx"), "no folder nowhere"),
        (("--images", "0"), "--images 0 must be at least 1"),
        (("--batch-size", "0"), "--batch-size 0 must be at least 1"),
        (("--data", "nowhere"), "nowhere: no such folder"),
        (("--precision", "int8", "--no-check"), "does not state its training data: give --data$"),
    ],
)
def test_refused(arguments, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        exported(monkeypatch, averages(), "best.pt", *arguments)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(
        "redetr.export.settings.find_spec",
        lambda name: None if name == "openvino" else name,
    )
    with pytest.raises(
        InputError, match=r'--format openvino needs openvino: pip install "redetr\[export\]"'
    ):
        ExportConfig("openvino").check()
    ExportConfig("onnx").check()


@pytest.mark.slow
def test_from_training_to_a_file(shared_coco, tmp_path, capsys):
    """The real commands, one after the other."""
    options = [
        "backbone=[8,16,32]",
        "hidden_dim=16",
        "nheads=2",
        "dec_layers=1",
        "dim_feedforward=16",
    ]
    training = train_arguments(
        shared_coco, tmp_path / "run", options=options, steps=2, eval_every=2
    )
    main([str(each) for each in training])
    capsys.readouterr()
    main(
        [
            "export",
            f"{tmp_path}/run",
            "--format",
            "torch",
            "--output",
            f"{tmp_path}/tiny.pt2",
            "--batch-size",
            "2",
        ]
    )
    output, errors = capsys.readouterr()
    assert errors == "weights: a run of redetr from random weights\n"
    assert "5 images" in output and "with PyTorch" in output
    assert metadata(tmp_path / "tiny.pt2")["class_names"] == list(CLASSES[0])


@pytest.mark.parametrize("fewer", ["pytorch", "file"])
def test_a_file_with_more_or_fewer_detections(fewer):
    """As of images of a fixed size that have fewer positions than the model has queries."""
    boxes = np.array([[50, 50, 60, 60], [0, 0, 10, 10], [30, 0, 40, 10]], np.float32)
    masks = np.empty(3, object)
    masks[:] = [{"size": [1, 1], "counts": b"01"}] * 3
    all_three = {"scores": np.array([0.8, 0.7, 0.6]), "labels": np.array([1, 1, 0])}
    all_three |= {"boxes": boxes, "masks": masks}
    one = {name: rows[1:2] for name, rows in all_three.items()}
    sides = ([one], [all_three]) if fewer == "pytorch" else ([all_three], [one])
    apart = detections_apart(*sides, threshold=0.5)
    assert (apart.paired, apart.unpaired, apart.same) == (1, 2, 1)
    assert apart.mask_iou == (1, 1)
    none = {name: rows[:0] for name, rows in all_three.items()}
    apart = detections_apart([none], [none], threshold=0)
    assert (apart.paired, apart.unpaired) == (0, 0)


def _comparison(ap, interval, mask_ap, mask_interval):
    return Comparison(
        images=50,
        threshold=0.5,
        paired=100,
        unpaired=0,
        same=100,
        differences={"boxes": (0.1, 0.0), "scores": (0.1, 0.0)},
        ap=ap,
        interval=interval,
        mask_ap=mask_ap,
        mask_interval=mask_interval,
    )


@pytest.mark.parametrize(
    ("boxes", "masks", "says"),
    [
        (((50.0, 48.5), (0.5, 2.5)), ((40.0, 38.2), (-0.2, 3.8)), ": AP is 48.50"),
        (((50.0, 48.2), (-0.2, 3.8)), ((40.0, 38.5), (0.5, 2.5)), ": mask AP is 38.50"),
    ],
    ids=["boxes", "masks"],
)
def test_neither_boxes_nor_masks_may_drop_while_the_other_drops_by_chance(
    boxes, masks, says, tmp_path
):
    comparison = _comparison(*boxes, *masks)
    message = says + r".* \(95% interval 0.50 to 2.50\), so no file was written"
    with pytest.raises(InputError, match=message):
        _require_ap(tmp_path / "a.onnx", comparison, ExportConfig(precision="int8"), 1.0)


def test_a_drop_of_masks_by_chance_is_said(capsys, tmp_path):
    comparison = _comparison((50.0, 50.0), None, (40.0, 38.2), (-0.2, 3.8))
    _require_ap(tmp_path / "a.onnx", comparison, ExportConfig(precision="int8"), 1.0)
    print_comparison(comparison, 1.0)
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "warning: mask AP drops by 1.80, more than 1, but 50 images cannot tell that from chance "
        "(95% interval -0.20 to 3.80): more held-out images (--data, --images) would"
    )
