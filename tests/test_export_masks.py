"""Exported files of a model with masks give PyTorch's, and are compared with it."""

import runpy
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from redetr.data import DetectionDataset
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.export.export import ExportConfig, Trial, export
from redetr.export.files import SUFFIXES, open_file
from redetr.models import build
from redetr.structures import DetectionModel, LossConfig, StoredTarget

ROOT = Path(__file__).parent.parent
LIMIT = 1e-4  # of mask logits, which are between -2 and 8 here


class Squares(DetectionDataset):
    """A bright square on black, in images of two sizes."""

    name = "squares"
    class_names = ("dark", "square")
    category_ids = (1, 2)
    has_masks = True

    def __len__(self):
        return 8

    def target(self, index):
        height, width = (64, 96) if index % 2 else (64, 64)
        side = 16 + 2 * index
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[0, 8 : 8 + side, 12 : 12 + side] = True
        return StoredTarget(
            boxes=torch.tensor([[12.0, 8.0, 12.0 + side, 8.0 + side]]),
            labels=torch.tensor([1]),
            image_id=index,
            orig_size=(height, width),
            size=(height, width),
            iscrowd=torch.tensor([False]),
            area=torch.tensor([float(side**2)]),
            masks=mask,
        )

    def image(self, index):
        bright = self.target(index)["masks"].to(torch.uint8) * 250
        return bright.expand(3, -1, -1).contiguous()


class Bright(DetectionModel):
    """Finds what is bright: boxes from its moments, masks from the brightness at stride 4."""

    resize = "square"
    image_size = 64
    max_size = None
    num_classes = 2
    num_queries = 3
    loss_config = LossConfig(scores="sigmoid")
    aux_loss = False
    has_masks = True

    def __init__(self, offset=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, stride=4)
        nn.init.constant_(self.conv.weight, 1 / 16)
        nn.init.zeros_(self.conv.bias)
        self.offset = offset

    def forward(self, images, mask=None):
        brightness = self.conv(images)[:, 0]  # [B, h, w]
        share = (4 * brightness).sigmoid()
        share = share / share.sum((1, 2), keepdim=True)
        height, width = brightness.shape[-2:]
        y = (torch.arange(height) + 0.5) / height
        x = (torch.arange(width) + 0.5) / width
        edges = []
        for weights, places in ((share.sum(1), x), (share.sum(2), y)):
            middle = (weights * places).sum(1)
            spread = (weights * (places - middle[:, None]) ** 2).sum(1)
            edges.append((middle, (12 * spread).sqrt()))
        (cx, w), (cy, h) = edges
        boxes = torch.stack([cx, cy, w, h], -1)[:, None].expand(-1, 3, -1)
        scores = torch.tensor([[-9.0, 3.0], [-2.0, -9.0], [-9.0, -4.0]])
        offsets = torch.tensor([self.offset, 0.5, 3.0])
        return {
            "pred_logits": scores + 0 * brightness.mean((1, 2))[:, None, None],
            "pred_boxes": boxes,
            "pred_masks": brightness[:, None] - offsets[:, None, None],
        }


def bright(offset=1.0) -> Detector:
    return Detector(Bright(offset), Squares.class_names, Squares.category_ids, 64, "cpu")


@pytest.mark.long
@pytest.mark.parametrize(
    ("format", "processing"), [("torch", False), ("onnx", False), ("openvino", True)]
)
def test_files_give_the_masks_of_pytorch(format, processing, tmp_path, capsys):
    detector = bright()
    path = tmp_path / f"model{SUFFIXES[format]}"
    config = ExportConfig(format, processing=processing)
    comparison = export(detector, path, config, Squares())
    assert comparison.mask_ap[0] > 50 and comparison.drops()[1].points == pytest.approx(0, abs=1e-6)
    assert comparison.mask_iou[0] > 0.99
    image = Squares().image(3)
    run = open_file(path)
    if processing:
        _, _, _, masks = run([image[None].numpy()])
        assert masks.shape == (1, 6, 16, 16)
        found = detector.predict(image, threshold=0.0)
        enlarged = F.interpolate(torch.from_numpy(masks), image.shape[1:], mode="bilinear")
        differs = ((enlarged[0] > 0) != found.masks)[:3]  # the others have equal scores
        assert differs.float().mean() < 0.002
        # The example prints boxes only, and takes the masks for no error.
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
        capsys.readouterr()  # what an exporter printed
        example = runpy.run_path(str(ROOT / f"examples/export/run_{format}.py"))
        example["main"](str(path), str(tmp_path / "image.png"), 0.5)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("square 0.95 ")
        return
    pixels = torch.randn(2, 3, 64, 96)
    _, _, masks = run([pixels.numpy()])
    expected = detector.model(pixels)["pred_masks"].detach().numpy()
    np.testing.assert_allclose(masks, expected, atol=LIMIT)


def test_padding_is_no_part_of_a_mask():
    config = ExportConfig("torch", mask=True, masks=True)
    trial = Trial(bright(), config, Squares(), 8, 3)
    comparison = trial.compare(trial._run_pytorch)
    assert comparison.mask_ap[0] == comparison.mask_ap[1] > 50
    assert comparison.mask_iou == (1.0, 1.0)


class Watched(Squares):
    """Knows which of the masks that it gave are still held, and their largest number."""

    def __init__(self):
        self.given = []
        self.most_held = 0

    def target(self, index):
        target = super().target(index)
        self.given.append(weakref.ref(target["masks"]))
        held = sum(mask() is not None for mask in self.given)
        self.most_held = max(self.most_held, held)
        return target


def test_masks_of_few_images_are_held_at_once():
    """Those of hundreds of photographs would take gigabytes."""
    dataset = Watched()
    trial = Trial(bright(), ExportConfig("torch", masks=True), dataset, 8, 3)
    assert dataset.most_held <= 2
    assert trial.compare(trial._run_pytorch).mask_ap[0] > 50


def test_a_file_with_worse_masks_is_refused(tmp_path, monkeypatch):
    """Boxes are the same: only the masks of the file are off."""
    from redetr.export import export as module

    config = ExportConfig("torch", masks=True)
    worse = Trial(bright(offset=-9.0), config, Squares(), 8, 3)  # everything is the object
    monkeypatch.setattr(module, "_build", lambda *_: None)
    monkeypatch.setattr(module, "open_file", lambda _: worse._run_pytorch)
    path = tmp_path / "model.pt2"
    with pytest.raises(InputError, match="mask AP is"):
        export(bright(), path, ExportConfig("torch"), Squares())
    assert not path.exists()


@pytest.mark.slow
def test_a_panoptic_file_gives_the_masks_of_pytorch(tmp_path):
    """For any number and size of images, with padding."""
    torch.manual_seed(0)
    options = {"backbone": (16, 32, 64), "hidden_dim": 64, "enc_layers": 1, "dec_layers": 1}
    model = build("detr_r50_panoptic", 2, dim_feedforward=32, num_queries=4, **options)
    detector = Detector(model, Squares.class_names, Squares.category_ids, 64, "cpu")
    path = tmp_path / "model.onnx"
    export(detector, path, ExportConfig("onnx", mask=True))
    pixels = torch.randn(3, 3, 64, 128)
    padding = torch.zeros(3, 64, 128, dtype=torch.bool)
    padding[1, :, 70:] = True
    *_, masks = open_file(path)([pixels.numpy(), padding.numpy()])
    with torch.inference_mode():
        expected = detector.model(pixels, padding)["pred_masks"].numpy()
    assert expected.shape == (3, 4, 16, 32) and expected.std() > 0.1
    np.testing.assert_allclose(masks, expected, atol=LIMIT)
