"""Detections of an exported ONNX file on an image, with ONNX Runtime, NumPy and Pillow alone.

redetr export runs/mine/best.pt --with-processing --output detector.onnx
python examples/export/run_onnx.py detector.onnx IMAGE [THRESHOLD]
"""
# ruff: noqa: T201 - this file prints

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(file: str, image: str, threshold: float | None = None) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["redetr"])
    rgb = Image.open(image).convert("RGB")
    pixels = np.asarray(rgb).transpose(2, 0, 1)  # uint8 [3, H, W]
    scores, labels, boxes, *_masks = session.run(None, {"images": pixels[None]})
    if threshold is None:
        threshold = about["threshold"]
    for score, label, box in zip(scores[0], labels[0], boxes[0], strict=True):
        if score >= threshold:
            name = about["class_names"][label]
            rounded = [round(float(side)) for side in box]  # xyxy, px of the image
            print(name, f"{score:.2f}", rounded)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
