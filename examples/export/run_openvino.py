"""Detections of an exported OpenVINO file on an image, with OpenVINO, NumPy and Pillow alone.

redetr export runs/mine/best.pt --format openvino --with-processing --output detector.xml
python examples/export/run_openvino.py detector.xml IMAGE [THRESHOLD]
"""
# ruff: noqa: T201 - this file prints

import json
import sys

import numpy as np
import openvino
from PIL import Image


def main(file: str, image: str, threshold: float | None = None) -> None:
    core = openvino.Core()
    model = core.read_model(file)
    about = json.loads(model.get_rt_info("redetr").value)
    # f32: CPUs with bf16 units would otherwise compute in bf16, faster and a little less exact.
    detect = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rgb = Image.open(image).convert("RGB")
    pixels = np.asarray(rgb).transpose(2, 0, 1)  # uint8 [3, H, W]
    scores, labels, boxes, *_masks = detect([pixels[None]]).values()
    if threshold is None:
        threshold = about["threshold"]
    for score, label, box in zip(scores[0], labels[0], boxes[0], strict=True):
        if score >= threshold:
            name = about["class_names"][label]
            rounded = [round(float(side)) for side in box]  # xyxy, px of the image
            print(name, f"{score:.2f}", rounded)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
