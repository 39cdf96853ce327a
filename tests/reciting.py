"""A model that knows the answers: what comes after a model is tested without training one."""

import torch
import torch.nn.functional as F

from redetr.detector.detector import Detector
from redetr.structures import DetectionModel, LossConfig


class Reciting(DetectionModel):
    """Answers with the objects of a data set, whatever the image: boxes exactly, masks at stride 4
    as their share of each cell. The second half of the queries repeats the first, with a poor
    score."""

    resize = "square"
    image_size = 128
    max_size = None
    num_classes = 10
    num_queries = 20
    loss_config = LossConfig(scores="sigmoid")
    has_masks = True

    def __init__(self, dataset):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.dataset = dataset
        self.position = 0

    def forward(self, images, mask=None):
        logits, boxes, masks = [], [], []
        for _ in images:
            target = self.dataset.target(self.position % len(self.dataset))
            self.position += 1
            count = len(target["labels"])
            of_image = torch.full((20, 10), -9.0)
            of_image[torch.arange(count), target["labels"]] = 5.0
            of_image[10 + torch.arange(count), target["labels"]] = -3.0
            logits.append(of_image)
            x1, y1, x2, y2 = (target["boxes"] / 128).unbind(1)
            cxcywh = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
            boxes.append(F.pad(cxcywh, (0, 0, 0, 10 - count)).repeat(2, 1))
            shares = F.avg_pool2d(target["masks"][None].float(), 4)[0]
            masks.append(F.pad(shares - 0.45, (0, 0, 0, 0, 0, 10 - count)).repeat(2, 1, 1))
        return {
            "pred_logits": torch.stack(logits) * self.scale,
            "pred_boxes": torch.stack(boxes),
            "pred_masks": torch.stack(masks),
        }


def reciting(dataset):
    """A detector that recites `dataset`, image by image from the first, again and again."""
    model = Reciting(dataset)
    return Detector(model, dataset.class_names, dataset.category_ids, 128, "cpu")
