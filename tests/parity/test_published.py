"""Published weights find in COCO's image 000000039769 what the documentation of Transformers 5.24
prints for them. Needs the network: `pytest -m slow tests/parity/test_published.py`.
"""

import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

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
# By size: the first three numbers of the first three queries, class logits and boxes, which the
# conversion of the weights to Transformers checks.
D_FINE = {
    "nano": (
        [
            [-3.7827945, -5.0889463, -4.8341026],
            [-5.3046904, -6.2801714, -2.9276395],
            [-4.497901, -5.2670407, -6.2380104],
        ],
        [
            [0.73334837, 0.4270624, 0.39424777],
            [0.1680235, 0.1988639, 0.21031213],
            [0.25370035, 0.5534435, 0.48496848],
        ],
    ),
    "small": (
        [
            [-3.8097816, -4.7724586, -5.994499],
            [-5.2974715, -9.499067, -6.1653666],
            [-5.3502765, -3.9530406, -6.3630295],
        ],
        [
            [0.7677696, 0.41479152, 0.46441072],
            [0.16912134, 0.19869131, 0.2123824],
            [0.2581653, 0.54818195, 0.47512347],
        ],
    ),
    "medium": (
        [
            [-4.5187078, -4.71708, -4.117749],
            [-4.513984, -4.937715, -3.829125],
            [-4.830042, -6.931682, -3.1740026],
        ],
        [
            [0.25851426, 0.5489963, 0.4757598],
            [0.769683, 0.41411665, 0.45988125],
            [0.16866133, 0.19921188, 0.21207744],
        ],
    ),
    "large": (
        [
            [-4.068779, -5.169955, -4.339212],
            [-3.9461594, -5.0279613, -4.0161457],
            [-4.218292, -6.196324, -5.175245],
        ],
        [
            [0.2564867, 0.5489948, 0.4748876],
            [0.7693534, 0.4138953, 0.4598034],
            [0.16875696, 0.19875404, 0.21196914],
        ],
    ),
    "xlarge": (
        [
            [-4.844723, -4.7293096, -4.5971327],
            [-4.554266, -4.61723, -4.627926],
            [-4.3934402, -4.6064143, -4.139952],
        ],
        [
            [0.2565248, 0.5477609, 0.47644863],
            [0.7690029, 0.41423926, 0.46148556],
            [0.1688096, 0.19923759, 0.21118002],
        ],
    ),
}
# Images are resized by another library than there.
SCORE_ERROR = 0.02
BOX_ERROR_PX = 4.0


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The hub, which all other tests do without, and the user's own cache of it."""
    for host, port in (("huggingface.co", 443), ("images.cocodataset.org", 80)):
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            pytest.skip(f"needs the network: {host} does not answer ({error})")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(Path.home() / ".cache/huggingface/hub"))
        yield


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


@pytest.mark.parametrize("size", D_FINE)
def test_d_fine_answers_as_its_conversion(network, size):
    """On the image as that prepares it: 640 x 640 by Pillow, in [0, 1]."""
    with urlopen(IMAGE, timeout=60) as response:
        image = Image.open(BytesIO(response.read())).convert("RGB")
    resized = image.resize((640, 640), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(resized) / 255).permute(2, 0, 1)[None].float()
    model = redetr.load(f"ustc-community/dfine-{size}-coco", device="cpu").model
    with torch.no_grad():
        outputs = model((pixels - model.mean) / model.std)
    logits, boxes = (torch.tensor(numbers) for numbers in D_FINE[size])
    torch.testing.assert_close(outputs["pred_logits"][0, :3, :3], logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(outputs["pred_boxes"][0, :3, :3], boxes, rtol=0, atol=1e-4)
