"""Data sets, and the way from a sample to a batch."""

from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.open import open_dataset

__all__ = ["DetectionDataset", "Hints", "open_dataset"]
