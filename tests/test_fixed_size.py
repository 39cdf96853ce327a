"""Files for one size of images: what TensorRT takes, and what goes in and comes out.

Converters for devices are replaced here; tests/test_mobile_export.py has the real ones.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, NodeProto
from torch import nn

from redetr import Detector, InputError, build
from redetr.export.export import ExportConfig, describe, inputs_of
from redetr.export.files import open_file, write_file
from redetr.export.graph import Plain, trace
from redetr.export.mobile import image_by_image
from tests.test_export import FAST, FAST_DFINE, FAST_RTDETR, averages, exported, middle

# Of the table of operators of TensorRT's ONNX parser (onnx-tensorrt, docs/operators.md): those that
# version 10.15 does not take, of those that PyTorch's exporter writes at all.
NOT_IN_TENSORRT = {
    *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    *("Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "MaxRoiPool"),
    *("DynamicQuantizeLinear", "MatMulInteger", "MaxUnpool", "Multinomial", "Optional", "Unique"),
    *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "SequenceAt"),
    *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "SplitToSequence", "StringConcat", "StringSplit", "TfIdfVectorizer"),
}
# It takes these only under conditions on values that a graph for one size does not need.
NOT_FOR_ONE_SIZE = {"If", "Loop", "Scan", "NonZero", "NonMaxSuppression", "Range"}
__all__ = ["middle"]  # a fixture

OPSETS = range(9, 25)  # of TensorRT 10.15; 10.0 ends with 20
MOST_OF_TOPK = 3840


def constants(graph: GraphProto) -> dict[str, np.ndarray]:
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    return values


def faults(model: onnx.ModelProto) -> Iterator[str]:
    """What TensorRT's parser would refuse, by its table."""
    if model.opset_import[0].version not in OPSETS:
        yield f"opset {model.opset_import[0].version}"
    known = constants(model.graph)
    for node in model.graph.node:
        if node.domain or node.op_type in NOT_IN_TENSORRT | NOT_FOR_ONE_SIZE:
            yield f"{node.domain} {node.op_type}"
        yield from _faults_of(node, known)


def _faults_of(node: NodeProto, known: dict[str, np.ndarray]) -> Iterator[str]:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "TopK":
        count = known.get(node.input[1])
        if count is None or count.item() >= MOST_OF_TOPK or not attributes.get("sorted", 1):
            yield f"TopK of {count}"
    if node.op_type == "Resize" and attributes.get("antialias"):
        yield "Resize with antialias"
    needs_constants = node.op_type.startswith("Reduce") or node.op_type == "CumSum"
    if needs_constants and len(node.input) > 1 and node.input[1] not in known:
        yield f"{node.op_type} along an axis that is computed"


def spread(name: str, **options) -> Detector:
    """A model of three classes whose random scores and boxes differ."""
    torch.manual_seed(3)
    model = build(name, 3, **options)
    for part, module in model.named_modules():
        if isinstance(module, nn.Linear) and ("_embed" in part or "_head" in part):
            nn.init.normal_(module.weight, std=1.13 / module.in_features**0.5)
    return Detector(model, ["a", "b", "c"], range(3), 96, device="cpu")


def written(of: Detector, folder: Path, **settings) -> tuple[Path, ExportConfig]:
    config = ExportConfig("onnx", **settings).of_model(of)
    path = folder / "fixed.onnx"
    about = json.dumps(describe(of, config, 0.5))
    program = trace(Plain(of.model), config.mask, config.size)
    write_file(program, path, about, config.inputs, config.outputs, "onnx")
    return path, config


FAMILIES = [
    pytest.param("redetr_n", FAST, id="redetr_n"),
    pytest.param("rtdetr_r18", FAST_RTDETR, id="rtdetr"),
    pytest.param("rtdetrv2_r18", FAST_RTDETR, id="rtdetrv2"),
    pytest.param("dfine_n", FAST_DFINE, id="dfine"),
    pytest.param("detr_r50", FAST | {"enc_layers": 1}, id="detr"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, options", FAMILIES)
def test_tensorrt_takes_the_operators(name, options, tmp_path):
    """A file for 64x96 px and any number of images, which computes what PyTorch computes."""
    of = spread(name, **options)
    path, config = written(of, tmp_path, size=(64, 96))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert list(faults(model)) == []
    assert "GridSample" in {node.op_type for node in model.graph.node} or name == "detr_r50"
    for value in model.graph.input:
        shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert shape[0] == "batch" and shape[-2:] == [64, 96]

    generator = np.random.default_rng(0)
    for batch in (1, 3):
        arrays = [generator.standard_normal((batch, 3, 64, 96), dtype=np.float32)]
        if config.mask:
            arrays.append(np.zeros((batch, 64, 96), bool))
            arrays[1][:, 50:] = True
        with torch.no_grad():
            expected = Plain(of.model)(*map(torch.from_numpy, arrays))
        for output, wanted in zip(open_file(path)(arrays), expected, strict=True):
            np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------- what goes into such a file


def marked(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 200, dtype=torch.uint8)


def test_a_model_that_stretches_fills_the_size():
    of = averages()
    config = ExportConfig(size=(64, 96)).of_model(of)
    (images,) = inputs_of(of, config, [marked(50, 20), marked(10, 300)])
    assert images.shape == (2, 3, 64, 96)
    assert (images > 0).all()


@pytest.mark.parametrize(
    "stored, shown",
    [
        ((48, 64), (48, 64)),  # the shorter side to 48, as without a size
        ((64, 48), (56, 42)),  # 64x48 is 8 px too high
        ((20, 200), (8, 80)),  # at most 100 px is 10x100; the width is 80
    ],
)
def test_a_model_that_keeps_the_aspect_ratio_pads(stored, shown):
    of = averages(resize="aspect", max_size=100)
    of.image_size = 48
    config = ExportConfig(size=(56, 80)).of_model(of)
    assert config.inputs == ("images", "mask")
    images, mask = inputs_of(of, config, [marked(*stored)])
    assert images.shape == (1, 3, 56, 80)
    height, width = shown
    assert not mask[0, :height, :width].any() and (images[0, :, :height, :width] > 0).all()
    assert mask.sum() == 56 * 80 - height * width
    assert describe(of, config, 0.5)["size"] == (56, 80)


@pytest.mark.parametrize(
    "settings, options, message",
    [
        ({"format": "coreml"}, {"resize": "aspect"}, "give --fixed-size HEIGHTxWIDTH, to which"),
        ({"format": "litert"}, {"resize": "aspect"}, "wrong for padded images.* use --format exec"),
        ({"size": (64, 100)}, {}, "--fixed-size 64x100: height and width must be multiples of 32"),
        ({"size": (0, 64)}, {}, "--fixed-size 0x64: height and width must be positive"),
        ({"size": (-64, -64)}, {"resize": "aspect"}, "height and width must be positive"),
    ],
)
def test_sizes_that_a_model_does_not_take(settings, options, message):
    with pytest.raises(InputError, match=message):
        ExportConfig(**settings).of_model(averages(**options))


@pytest.mark.parametrize("name", ["executorch", "litert", "coreml"])
def test_what_is_missing_and_what_brings_it(name, monkeypatch):
    package = {"litert": "litert_torch", "coreml": "coremltools"}.get(name, name)
    monkeypatch.setattr("redetr.export.settings.find_spec", lambda _: None)
    install = "pip install litert-torch" if name == "litert" else rf'"redetr\[{name}\]"'
    with pytest.raises(InputError, match=f"--format {name} needs {package}: .*{install}"):
        ExportConfig(name).check()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"precision": "int8"}, "int8 needs --format onnx or openvino"),
        ({"precision": "fp16"}, "fp16 needs --format openvino or coreml"),
        ({"processing": True}, "--with-processing takes images of any size"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ExportConfig("executorch", **settings).check()


# -------------------------------------------------------------------------- the command, end to end


@pytest.fixture
def stub(monkeypatch):
    """Converters that keep PyTorch's own program."""
    shapes = []

    def write(program, path, *others):
        shapes.append([tuple(sample.shape) for sample in program.example_inputs[0]])
        if path.suffix == ".mlpackage":
            path.mkdir()
            path = path / "Manifest.json"
        torch.export.save(program, path)

    monkeypatch.setattr("redetr.export.settings.find_spec", lambda name: name)
    for name in ("executorch", "litert", "coreml"):
        monkeypatch.setattr(f"redetr.export.files.write_{name}", write)
    for name in ("executorch", "litert"):
        monkeypatch.setattr(f"redetr.export.files.open_{name}", _opened)
    return shapes


def _opened(path: Path):
    """The runtime of a stub, which takes a single image."""
    module = torch.export.load(path).module()

    def run(arrays):
        assert {len(array) for array in arrays} == {1}
        with torch.no_grad():
            return [output.numpy() for output in module(*map(torch.from_numpy, arrays))]

    return image_by_image(run)


def test_a_device_file_is_compared_and_described_beside(
    stub, middle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    of = averages(middle, blind=True, resize="aspect", max_size=80)
    arguments = ["best.pt", "--format", "executorch", "--fixed-size", "80x96", "--batch-size", "2"]
    exported(monkeypatch, of, *arguments)
    assert stub == [[(1, 3, 80, 96), (1, 80, 96)]]
    output = capsys.readouterr().out
    assert "AP 100.00 with PyTorch, 100.00 with the file" in output
    assert output.splitlines()[-1].startswith("best.pte (")
    about = json.loads((tmp_path / "best.pte.json").read_text())
    assert about["size"] == [80, 96] and about["inputs"] == ["images", "mask"]
    assert about["class_names"] == ["cup", "plate", "spoon"] and about["threshold"] == 0.88
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pte", "best.pte.json"]


def test_core_ml_is_a_folder_that_is_replaced_whole(stub, middle, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "d.mlpackage"
    folder.mkdir()
    (folder / "of_before").touch()
    arguments = ["best.pt", "--format", "coreml", "--output", folder]
    exported(monkeypatch, averages(middle, blind=True), *arguments)
    assert stub == [[(1, 3, 64, 64)]]
    assert [path.name for path in folder.iterdir()] == ["Manifest.json"]
    assert [path.name for path in tmp_path.glob("*d*")] == ["d.mlpackage"]
    output, errors = capsys.readouterr()
    assert "was not compared with PyTorch: Core ML runs only on Apple's systems" in errors
    assert "AP " not in output
    assert re.search(r"d\.mlpackage \(0\.[1-9] MB, in place of the earlier one\)", output)


def input_shape(path: Path) -> list[int | str]:
    """The shape of the images that an ONNX file takes."""
    images = onnx.load(path).graph.input[0]
    return [axis.dim_value or axis.dim_param for axis in images.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("size", "shape"),
    [(["--fixed-size", "64"], [1, 3, 64, 64]), ([], [1, 3, "height", "width"])],
)
def test_a_file_for_a_single_image(size, shape, middle, tmp_path, monkeypatch, capsys):
    path = tmp_path / "single.onnx"
    arguments = ["best.pt", "--one-image", "--batch-size", "2", *size, "--output", path]
    exported(monkeypatch, averages(middle, blind=True), *arguments)
    assert "AP 100.00 with PyTorch, 100.00 with the file" in capsys.readouterr().out
    assert input_shape(path) == shape


def test_a_file_for_a_single_image_may_have_processing(middle, tmp_path, monkeypatch, capsys):
    path = tmp_path / "single.onnx"
    arguments = ["best.pt", "--one-image", "--with-processing", "--output", path]
    exported(monkeypatch, averages(middle, blind=True), *arguments)
    assert "AP 100.00 with PyTorch, 100.00 with the file" in capsys.readouterr().out
    assert input_shape(path) == [1, 3, "height", "width"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["redetr_n", "detr_r50"])
def test_a_file_for_a_single_image_computes_the_same(name, tmp_path):
    of = spread(name, **(FAST | {"enc_layers": 1} if name == "detr_r50" else FAST))
    config = ExportConfig("onnx", size=(64, 96), single=True).of_model(of)
    path = tmp_path / "single.onnx"
    program = trace(Plain(of.model), config.mask, config.size, config.one_image)
    write_file(program, path, "{}", config.inputs, config.outputs, "onnx")
    arrays = [np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)]
    if config.mask:
        arrays.append(np.zeros((1, 64, 96), bool))
    with torch.no_grad():
        expected = Plain(of.model)(*map(torch.from_numpy, arrays))
    for output, wanted in zip(open_file(path)(arrays), expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-4, atol=1e-4)
