"""Detections of an exported torch.export program on an image, with PyTorch, NumPy and Pillow alone.

redetr export runs/mine/best.pt --format torch --with-processing --output detector.pt2
python examples/export/run_torch.py detector.pt2 IMAGE [THRESHOLD]
"""
# ruff: noqa: T201 - this file prints

import json
import sys

import numpy as np
import torch
from PIL import Image


def main(file: str, image: str, threshold: float | None = None) -> None:
    extra = {"redetr.json": ""}
    program = torch.export.load(file, extra_files=extra)
    model = program.module(check_guards=False)
    about = json.loads(extra["redetr.json"])
    rgb = Image.open(image).convert("RGB")
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)  # uint8 [3, H, W]
    with torch.no_grad():
        outputs = model(pixels[None])
    of_image = [output[0] for output in outputs]
    scores, labels, boxes, *_masks = of_image
    if threshold is None:
        threshold = about["threshold"]
    for score, label, box in zip(scores.tolist(), labels.tolist(), boxes.tolist(), strict=True):
        if score >= threshold:
            name = about["class_names"][label]
            rounded = [round(side) for side in box]  # xyxy, px of the image
            print(name, f"{score:.2f}", rounded)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
