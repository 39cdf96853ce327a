"""Published weights answer as their publishers say: `pytest -m network`, which downloads them.

The numbers are those that the conversions to Hugging Face Transformers check, for image 39769 of
COCO val 2017: two cats on a couch, with two remote controls.
"""

from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import redetr

pytestmark = [pytest.mark.parity, pytest.mark.network]

IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"
# The first three numbers of the first three queries: class logits, then boxes.
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


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """The image as the publishers' processor prepares it: 640 x 640, in [0, 1]."""
    with urlopen(IMAGE, timeout=60) as response:
        image = Image.open(BytesIO(response.read())).convert("RGB")
    resized = image.resize((640, 640), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized) / 255).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("size", D_FINE)
def test_d_fine(size, pixels):
    model = redetr.load(f"ustc-community/dfine-{size}-coco", device="cpu").model
    with torch.no_grad():
        outputs = model((pixels - model.mean) / model.std)
    logits, boxes = (torch.tensor(numbers) for numbers in D_FINE[size])
    torch.testing.assert_close(outputs["pred_logits"][0, :3, :3], logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(outputs["pred_boxes"][0, :3, :3], boxes, rtol=0, atol=1e-4)
