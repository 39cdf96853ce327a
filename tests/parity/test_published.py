"""Published weights find in COCO's image 000000039769 what the documentation of Transformers 5.24
prints for them. Needs the network: `pytest -m slow tests/parity/test_published.py`.
"""

import socket

import numpy as np
import pytest

import redetr

pytestmark = [pytest.mark.slow, pytest.mark.parity]
IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"
# By hub name: class, score and box (xyxy, px) of what is printed at a threshold of 0.9. The page of
# RT-DETRv2 repeats the figures of RT-DETR, so it shows nothing.
PUBLISHED = {
    "facebook/detr-resnet-50": [
        ("remote", 0.998, [40.16, 70.81, 175.55, 117.98]),
        ("remote", 0.996, [333.24, 72.55, 368.33, 187.66]),
        ("couch", 0.995, [-0.02, 1.15, 639.73, 473.76]),
        ("cat", 0.999, [13.24, 52.05, 314.02, 470.93]),
        ("cat", 0.999, [345.4, 23.85, 640.37, 368.72]),
    ],
    "PekingU/rtdetr_r50vd": [
        ("couch", 0.97, [0.14, 0.38, 640.13, 476.21]),
        ("cat", 0.96, [343.38, 24.28, 640.14, 371.5]),
        ("cat", 0.958, [13.23, 54.18, 318.98, 472.22]),
        ("remote", 0.951, [40.11, 73.44, 175.96, 118.48]),
        ("remote", 0.924, [333.73, 76.58, 369.97, 186.99]),
    ],
    "ustc-community/dfine-xlarge-coco": [
        ("cat", 0.958, [344.49, 23.4, 639.84, 374.27]),
        ("cat", 0.956, [11.71, 53.52, 316.64, 472.33]),
        ("remote", 0.947, [40.46, 73.7, 175.62, 117.57]),
        ("couch", 0.918, [0.59, 1.88, 640.25, 474.74]),
    ],
}
# Images are resized by another library than there.
SCORE_ERROR = 0.02
BOX_ERROR_PX = 4.0


@pytest.fixture(scope="module")
def network() -> None:
    for host in ("huggingface.co", "images.cocodataset.org"):
        try:
            socket.create_connection((host, 80), timeout=5).close()
        except OSError as error:
            pytest.skip(f"needs the network: {host} does not answer ({error})")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_find_what_is_published(network, name):
    detections = redetr.load(name, device="cpu").predict(IMAGE, threshold=0.85)
    given = detections.to_dict()["detections"]
    for label, score, box in PUBLISHED[name]:
        same_class = [row for row in given if row["label"] == label]
        distances = [np.abs(np.subtract(row["box"], box)).max() for row in same_class]
        nearest = same_class[int(np.argmin(distances))]
        assert min(distances) < BOX_ERROR_PX, label
        assert nearest["score"] == pytest.approx(score, abs=SCORE_ERROR)
    confident = [row for row in given if row["score"] > 0.9 + SCORE_ERROR]
    assert len(confident) <= len(PUBLISHED[name])  # and nothing else
