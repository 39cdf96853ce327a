"""Writes traced programs to files in each format, and opens these to run them."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from redetr.choices import ExportFormat, ExportPrecision
from redetr.export.graph import quiet
from redetr.export.mobile import (
    Arrays,
    open_executorch,
    open_litert,
    write_coreml,
    write_executorch,
    write_litert,
)

SUFFIXES: dict[ExportFormat, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch": ".pt2",
    "executorch": ".pte",
    "litert": ".tflite",
    "coreml": ".mlpackage",
}
ABOUT = "redetr"  # the name of the metadata in a file
_OPSET = 20


def write_file(
    program: ExportedProgram,
    path: Path,
    about: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    format: ExportFormat,
    precision: ExportPrecision = "fp32",
    calibration: Iterable[Arrays] = (),
) -> None:
    """Writes `program` to `path` with the metadata `about`.

    OpenVINO has a `.bin` next to the file. ExecuTorch and LiteRT cannot store text, so their
    metadata is in `FILE.json` next to the file. "int8" takes the ranges of values from the model
    inputs in `calibration`.
    """
    if format == "torch":
        torch.export.save(program, path, extra_files={f"{ABOUT}.json": about})
        return
    if format == "coreml":
        write_coreml(program, path, {ABOUT: about}, inputs, outputs, precision)
        return
    if format in ("executorch", "litert"):
        write = write_executorch if format == "executorch" else write_litert
        write(program, path)
        path.with_name(f"{path.name}.json").write_text(about + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = path if format == "onnx" else Path(folder) / "model.onnx"
        _write_onnx(program, onnx_path, about, inputs, outputs)
        if precision == "int8":
            _quantize(onnx_path, inputs, calibration)
        if format == "openvino":
            write_openvino(onnx_path, path, about, precision)


def _resize_as_pytorch(model: Any) -> None:
    """Makes antialiased resizing ignore positions outside the image, as PyTorch does.

    The export of PyTorch 2.11 does not: values at the border are off by up to 14.
    """
    from onnx import helper

    as_pytorch = {"exclude_outside": 1, "coordinate_transformation_mode": "half_pixel"}
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if "antialias" not in attributes or not attributes["antialias"].i:
            continue
        for name, value in as_pytorch.items():
            attributes[name].CopyFrom(helper.make_attribute(name, value))


def _write_onnx(
    program: ExportedProgram, path: Path, about: str, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    import onnx

    with quiet():
        exported = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=_OPSET,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _resize_as_pytorch(model)
    # The shapes of intermediate values, as formulas with the tracer's names for free sizes.
    del model.graph.value_info[:]
    axes = {
        "images": ("batch", "", "height", "width"),
        "mask": ("batch", "height", "width"),
        "masks": ("batch", "found", "mask_height", "mask_width"),
    }
    for value in (*model.graph.input, *model.graph.output):
        names = axes.get(value.name, ("batch", "found", ""))
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if axis.dim_param:
                axis.dim_param = name
    model.metadata_props.add(key=ABOUT, value=about)
    onnx.save(model, path)


def _quantize(path: Path, inputs: Sequence[str], calibration: Iterable[Arrays]) -> None:
    """Quantises convolutions and matrix products of the ONNX file to int8.

    The format is QDQ, with a scale for each output channel.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = (dict(zip(inputs, arrays, strict=True)) for arrays in calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    with quiet():
        quantize_static(
            path, path, Reader(), QuantFormat.QDQ, ["Conv", "MatMul", "Gemm"], per_channel=True
        )


def write_openvino(
    source: Path, path: Path, about: str, precision: ExportPrecision = "fp32"
) -> None:
    """Converts an ONNX file to OpenVINO's format."""
    import openvino
    from openvino import opset11

    model = openvino.Core().read_model(source)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            # The reader uses a mode that ignores `antialias`; this mode does the same as PyTorch
            # and Pillow.
            resized = opset11.interpolate(
                node.input_value(0),
                node.input_value(1),
                "bilinear_pillow",
                "sizes",
                axes=np.arange(4),
                antialias=True,
            )
            node.output(0).replace(resized.output(0))
    model.set_rt_info(about, ABOUT)
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")


def open_file(path: Path) -> Callable[[Arrays], Arrays]:
    """A function from input arrays to output arrays that runs a file on the CPU.

    It computes in fp32 unless the file is quantised. Core ML is not supported, because its runtime
    is part of Apple's systems.
    """
    openers = {
        ".onnx": _open_onnx,
        ".xml": _open_openvino,
        ".pt2": _open_torch,
        ".pte": open_executorch,
        ".tflite": open_litert,
    }
    return openers[path.suffix](path)


def _open_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _open_openvino(path: Path) -> Callable[[Arrays], Arrays]:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # without it, CPUs with bf16 units would compute in bf16
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda arrays: list(model(arrays).values())


def _open_torch(path: Path) -> Callable[[Arrays], Arrays]:
    # Unguarded, because the tracer leaves a guard against single images in the faithful variants,
    # although they can process these.
    module: Any = torch.export.load(path).module(check_guards=False)

    def run(arrays: Arrays) -> Arrays:
        inputs = [torch.from_numpy(array) for array in arrays]
        with torch.no_grad():
            outputs = module(*inputs)
        return [output.numpy() for output in outputs]

    return run
