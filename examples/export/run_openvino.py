"""Detections of an exported OpenVINO file on an image, with OpenVINO, NumPy and Pillow alone.

redetr export runs/mine/best.pt --format openvino --with-processing --output detector.xml
python examples/export/run_openvino.py detector.xml IMAGE [THRESHOLD]
"""
# ruff: noqa: T201 - this file prints

import json
import sys

import numpy as np
import openvino
from PIL import Image, ImageOps


def read(path: str, channels: int) -> np.ndarray:
    """The image in a file, uint8 `[channels, H, W]`: RGB, its brightness, or the bands of a .npy
    file."""
    if path.endswith(".npy"):
        pixels = np.load(path)
    elif channels in (1, 3):
        with Image.open(path) as image:
            is_deep = image.mode[0] in "IF" or any(";16" in str(tile) for tile in image.tile)
            if image.has_transparency_data or is_deep:
                sys.exit(f"{path}: has transparency or more than 8 bits; save it as 8-bit RGB")
            upright = ImageOps.exif_transpose(image)  # as redetr predict reads it
            pixels = np.array(upright.convert("L" if channels == 1 else "RGB"))
    else:
        sys.exit(f"{path}: the model takes {channels} channels; give them as a .npy file")
    pixels = np.atleast_3d(pixels)  # [H, W] is one channel
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (channels,):
        given = f"{pixels.dtype} {list(pixels.shape)}"
        sys.exit(f"{path}: holds {given}; the model takes uint8 [H, W, {channels}]")
    return pixels.transpose(2, 0, 1)


def main(file: str, image: str, threshold: float | None = None) -> None:
    core = openvino.Core()
    model = core.read_model(file)
    about = json.loads(model.get_rt_info("redetr").value)
    # f32: CPUs with bf16 units would otherwise compute in bf16, faster and a little less exact.
    detect = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if "scores" not in about["outputs"]:
        sys.exit(f"{file}: takes prepared images; export it with --with-processing")
    pixels = read(image, about["channels"])
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
