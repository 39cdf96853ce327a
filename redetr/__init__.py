"""DETR one can read in an afternoon and trust on any number of GPUs."""

from redetr.config import TrainConfig
from redetr.errors import DivergedError, InputError, LostError, RedetrError, StoppedError
from redetr.evaluate import evaluate
from redetr.losses import SetCriterion
from redetr.models import MODELS, build
from redetr.postprocess import Detections
from redetr.predict import Detector, load
from redetr.recipes import RECIPES, get_recipe
from redetr.structures import Batch, LossConfig, Outputs, Target, collate
from redetr.train import train
from redetr.verify import verify

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "RECIPES",
    "Batch",
    "Detections",
    "Detector",
    "DivergedError",
    "InputError",
    "LossConfig",
    "LostError",
    "Outputs",
    "RedetrError",
    "SetCriterion",
    "StoppedError",
    "Target",
    "TrainConfig",
    "build",
    "collate",
    "evaluate",
    "get_recipe",
    "load",
    "train",
    "verify",
]
