"""Writes traced programs to files for phones and other devices: ExecuTorch, LiteRT and Core ML.

Such a file takes a single image of one size. The converters are large packages, so each is an extra
or needs a separate environment, and is imported only when it is used.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from redetr.choices import ExportFormat, ExportPrecision
from redetr.export.graph import quiet

Arrays = list[np.ndarray]
MOBILE: tuple[ExportFormat, ...] = ("executorch", "litert", "coreml")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress and the warnings of converters. Errors are still raised."""
    nowhere = StringIO()
    with quiet(), warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def write_executorch(program: ExportedProgram, path: Path) -> None:
    """Writes a `.pte` in fp32, whose operators run on XNNPACK if it has them."""
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


def open_executorch(path: Path) -> Callable[[Arrays], Arrays]:
    """A function that runs a `.pte` on the CPU, image by image."""
    with _quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method = program.load_method("forward")

    def run(arrays: Arrays) -> Arrays:
        outputs: Sequence[Any] = method.execute([torch.from_numpy(array) for array in arrays])
        return [output.numpy().copy() for output in outputs]  # the runtime reuses its memory

    return image_by_image(run)


def write_litert(program: ExportedProgram, path: Path) -> None:
    """Writes a `.tflite` in fp32, with the inputs and outputs in the order of the program."""
    with _quiet():
        import litert_torch

        module: Any = program.module()
        litert_torch.convert(module, program.example_inputs[0]).export(str(path))


def open_litert(path: Path) -> Callable[[Arrays], Arrays]:
    """A function that runs a `.tflite` on the CPU, image by image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    inputs = [detail["index"] for detail in interpreter.get_input_details()]
    outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def run(arrays: Arrays) -> Arrays:
        for index, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return image_by_image(run)


def write_coreml(
    program: ExportedProgram,
    path: Path,
    about: dict[str, str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    precision: ExportPrecision,
) -> None:
    """Writes an `.mlpackage` for iOS 17, macOS 14 and later, with `about` in its metadata."""
    with _quiet():
        import coremltools

        table = torch.export.default_decompositions()
        for operator in (torch.ops.aten.grid_sampler.default, torch.ops.aten.linear.default):
            table.pop(operator, None)  # kept whole instead of decomposed
        program = program.run_decompositions(table)
        _drop_aliases(program)
        half = precision == "fp16"
        kind = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
        samples = zip(inputs, program.example_inputs[0], strict=True)
        model = coremltools.convert(
            program,
            inputs=[coremltools.TensorType(name, tuple(sample.shape)) for name, sample in samples],
            outputs=[coremltools.TensorType(name) for name in outputs],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=kind,
            skip_model_load=True,
        )
        model.user_defined_metadata.update(about)
        model.save(str(path))


def _drop_aliases(program: ExportedProgram) -> None:
    """Removes `aten.alias`, which computes nothing, and which Core ML's converter does not
    support."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()


def image_by_image(run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    """`run`, which takes a single image, as a function of batches."""

    def run_all(arrays: Arrays) -> Arrays:
        answers = []
        for row in range(len(arrays[0])):
            answers.append(run([array[row : row + 1] for array in arrays]))
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    return run_all
