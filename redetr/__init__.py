"""DETR with a readable core and identical gradients on any number of GPUs."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

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
    "PanopticDetections",
    "RedetrError",
    "SetCriterion",
    "StoppedError",
    "StoredTarget",
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

if TYPE_CHECKING:
    from redetr.config import TrainConfig
    from redetr.detector.detections import Detections
    from redetr.detector.detector import Detector, load
    from redetr.detector.segments import PanopticDetections
    from redetr.errors import DivergedError, InputError, LostError, RedetrError, StoppedError
    from redetr.evaluation import evaluate
    from redetr.losses import SetCriterion
    from redetr.models import MODELS, build
    from redetr.recipes import RECIPES, get_recipe
    from redetr.structures import Batch, LossConfig, Outputs, StoredTarget, Target, collate
    from redetr.training import train
    from redetr.verification import verify

# The module of each public name. PyTorch takes seconds to import, so a module is imported when a
# name of it is used.
_MODULES = {
    "MODELS": "models",
    "RECIPES": "recipes",
    "Batch": "structures",
    "Detections": "detector.detections",
    "Detector": "detector.detector",
    "DivergedError": "errors",
    "InputError": "errors",
    "LossConfig": "structures",
    "LostError": "errors",
    "Outputs": "structures",
    "PanopticDetections": "detector.segments",
    "RedetrError": "errors",
    "SetCriterion": "losses",
    "StoppedError": "errors",
    "StoredTarget": "structures",
    "Target": "structures",
    "TrainConfig": "config",
    "build": "models",
    "collate": "structures",
    "evaluate": "evaluation",
    "get_recipe": "recipes",
    "load": "detector.detector",
    "train": "training",
    "verify": "verification",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # to a type checker, every name would exist

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package, such as `redetr.data`, which need not be
        imported by itself."""
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            globals()[name] = value  # the next use does not come here
            return value
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
