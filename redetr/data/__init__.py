"""Data sets, and the way from a sample to a batch."""

from redetr.data.dataset import DetectionDataset, Hints, open_dataset, require_same_classes

__all__ = ["DetectionDataset", "Hints", "open_dataset", "require_same_classes"]
