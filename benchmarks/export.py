"""Is AP of exported files that of PyTorch? A trained checkpoint in ONNX Runtime and OpenVINO.

    python benchmarks/export.py digits=runs/digits/best.pt crowns=runs/crowns/best.pt

Each file is written once and run on held-out images at three sizes of the model's input, one image and four at a time.
Writes results/DATE-export.json.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from record import record

from redetr.data import open_dataset
from redetr.export import ExportConfig, Trial, describe, inputs_of
from redetr.export_files import SUFFIXES, Format, Precision, open_file, write_file
from redetr.export_graph import Plain, Processed, trace
from redetr.predict import load

FILES: tuple[tuple[Format, Precision, bool], ...] = (
    ("onnx", "fp32", False), ("openvino", "fp32", False), ("onnx", "fp32", True), ("openvino", "fp32", True),
    ("openvino", "fp16", False), ("onnx", "int8", False), ("openvino", "int8", False),
)  # fmt: skip


def compare(checkpoint: str, images: int, folder: Path) -> list[dict]:
    """Differences and AP of every file at every size and batch."""
    detector = load(checkpoint, device="cpu")
    assert detector.trained_on
    own = detector.image_size
    val, train = (open_dataset(detector.trained_on, split, detector.val_fraction) for split in ("val", "train"))
    programs = {False: trace(Plain(detector.model)), True: trace(Processed(detector.model, own))}
    runs = []
    for form, precision, processing in FILES:
        config = ExportConfig(form, precision, processing)
        path = folder / f"{form}-{precision}-{processing}{SUFFIXES[form]}"  # OpenVINO keeps its file mapped
        some = (inputs_of(detector, config, [train.image(index)]) for index in range(min(100, len(train))))
        write_file(programs[processing], path, json.dumps(describe(detector, config, 0.5)), config.inputs,
                   config.outputs, form, precision, some if precision == "int8" else ())  # fmt: skip
        runs.append((config, open_file(path)))
    rows = []
    for size, batch_size in ((size, batch) for size in (own * 3 // 4, own, own * 5 // 4) for batch in (1, 4)):
        detector.image_size = size
        trials = {processing: Trial(detector, ExportConfig(processing=processing), val, images, batch_size)
                  for processing in ((False, True) if size == own else (False,))}  # fmt: skip
        for config, run in runs:
            if config.processing not in trials or (config.precision != "fp32" and (size, batch_size) != (own, 1)):
                continue  # the size of files with processing is fixed
            result = trials[config.processing].compare(run)
            rows.append({
                "format": config.format, "precision": config.precision, "processing": config.processing,
                "image_size": size, "batch_size": batch_size, "images": result.images,
                "AP": result.ap[1], "AP_pytorch": result.ap[0], "differences": result.differences,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
