"""Loads all weights of a file into a model."""

from redetr.errors import InputError
from redetr.structures import DetectionModel
from redetr.weights.reading import Weights


def is_for_denoising(name: str) -> bool:
    """Whether a tensor serves noisy queries only. Published files have such tensors; our models
    have them if they are built for training with denoising."""
    return name.endswith("denoising_class_embed.weight")


def load_strictly(model: DetectionModel, weights: Weights) -> None:
    """Fills all tensors of `model`. If it is on the device "meta", its tensors are created on the
    CPU.

    Tensors that only training with denoising needs are skipped if the model is built without.
    Raises InputError if a tensor is missing, unknown, of another shape, or not finite.
    """
    require_fitting(model, weights)
    for name, tensor in weights.tensors.items():
        if not tensor.isfinite().all():
            text = f"{name} has values that are not finite: the run has diverged"
            raise InputError(text, where=weights.path)
    needed = {}
    is_meta = False
    for name, expected in model.state_dict().items():
        needed[name] = weights.tensors[name]
        if expected.is_meta:
            is_meta = True
            # A copy, because the file may have another precision, or one tensor under two names.
            needed[name] = needed[name].to(expected.dtype, copy=True).contiguous()
    model.load_state_dict(needed, assign=is_meta)


def require_fitting(model: DetectionModel, weights: Weights) -> None:
    """Raises InputError if a tensor of `model` is missing, unknown, or of another shape. `model`
    may be on the device "meta"."""
    expected = model.state_dict()
    given = weights.tensors
    missing = expected.keys() - given.keys()
    unknown = {name for name in given.keys() - expected.keys() if not is_for_denoising(name)}
    misshapen = set()
    for name in expected.keys() & given.keys():
        if expected[name].shape != given[name].shape:
            misshapen.add(name)
    unfit = missing | unknown | misshapen
    if unfit:
        raise InputError(
            f"the weights do not fit the model: {len(missing)} missing, {len(unknown)} unknown, "
            f"{len(misshapen)} of another shape, such as {min(unfit)}",
            where=weights.path,
        )
