"""Do exported files have the AP of PyTorch? A trained checkpoint in ONNX Runtime and OpenVINO.

    python benchmarks/export.py digits=runs/digits/best.pt crowns=runs/crowns/best.pt

Each file is written once and run on held-out images of three shapes, wide, square and high, one
image and four at a time. Without processing, the shape is that of the model's input; with it, that
of the images that go into the file. Writes results/DATE-export.json.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from record import record
from torch import Tensor

from redetr.choices import ExportFormat, ExportPrecision
from redetr.data import DetectionDataset, open_dataset
from redetr.data.views import Size, View
from redetr.detector.detector import load
from redetr.export.export import ExportConfig, Trial, describe, inputs_of
from redetr.export.files import SUFFIXES, open_file, write_file
from redetr.export.graph import Plain, Processed, trace
from redetr.structures import StoredTarget

FILES: tuple[tuple[ExportFormat, ExportPrecision, bool], ...] = (
    ("onnx", "fp32", False),
    ("openvino", "fp32", False),
    ("onnx", "fp32", True),
    ("openvino", "fp32", True),
    ("openvino", "fp16", False),
    ("onnx", "int8", False),
    ("openvino", "int8", False),
)


class Stretched(DetectionDataset):
    """A data set with all of its images stretched to one size."""

    def __init__(self, dataset: DetectionDataset, size: Size):
        self.dataset, self.size, self.name = dataset, size, dataset.name
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def target(self, index: int) -> StoredTarget:
        target = self.dataset.target(index)
        boxes = torch.from_numpy(self._view(target["orig_size"]).boxes(target["boxes"].numpy()))
        return StoredTarget(
            **(target | {"boxes": boxes, "orig_size": self.size, "size": self.size})
        )

    def image(self, index: int) -> Tensor:
        image = self.dataset.image(index)
        height, width = image.shape[1:]
        return self._view((height, width)).pixels(image, (height, width))

    def _view(self, stored: Size) -> View:
        return View((0, 0, stored[1], stored[0]), self.size)


def compare(checkpoint: str, images: int, folder: Path) -> list[dict]:
    """Differences and AP of every file at every shape and batch."""
    detector = load(checkpoint, device="cpu")
    assert detector.trained_on and detector.model.resize == "square"
    own = detector.image_size
    val, train = (
        open_dataset(detector.trained_on, split, detector.val_fraction)
        for split in ("val", "train")
    )
    programs = {False: trace(Plain(detector.model)), True: trace(Processed(detector.model, own))}
    runs = []
    for form, precision, processing in FILES:
        config = ExportConfig(form, precision, processing)
        # Each file has its own name, because OpenVINO keeps a file mapped.
        path = folder / f"{form}-{precision}-{processing}{SUFFIXES[form]}"
        some = (
            inputs_of(detector, config, [train.image(index)])
            for index in range(min(100, len(train)))
        )
        write_file(
            programs[processing],
            path,
            json.dumps(describe(detector, config, 0.5)),
            config.inputs,
            config.outputs,
            form,
            precision,
            some if precision == "int8" else (),
        )
        runs.append((config, open_file(path)))
    rows = []
    shapes = ((own * 3 // 4, own), (own, own), (own * 5 // 4, own * 15 // 16))
    for shape, batch_size, processing in product(shapes, (1, 4), (False, True)):
        # "aspect" does not change images that already have the shape.
        detector.model.resize, detector.image_size = (
            ("square", own) if processing else ("aspect", min(shape))
        )
        trial = Trial(
            detector, ExportConfig(processing=processing), Stretched(val, shape), images, batch_size
        )
        for config, run in runs:
            if config.processing != processing or (
                config.precision != "fp32" and (shape[0], batch_size) != (own, 1)
            ):
                continue
            result = trial.compare(run)
            rows.append(
                {
                    "format": config.format,
                    "precision": config.precision,
                    "processing": config.processing,
                    "shape": shape,
                    "batch_size": batch_size,
                    "images": result.images,
                    "AP": result.ap[1],
                    "AP_pytorch": result.ap[0],
                    "differences": result.differences,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="+", help="NAME=FILE")
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    results = {}
    for name, checkpoint in (each.split("=", 1) for each in arguments.checkpoint):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(checkpoint, arguments.images, Path(folder))
    packages = {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")}
    record("export", {"packages": packages, "results": results})


if __name__ == "__main__":
    main()
