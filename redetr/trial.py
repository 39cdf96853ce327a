"""Trials of a model's own work, which choose its precision and its threads on a CPU."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from redetr.choices import ImageSize
from redetr.structures import DetectionModel

# A candidate is chosen if it is at least this many times as fast. A smaller gain may be chance, and
# is not worth the rounding of bf16 or an idle core.
WORTHWHILE = 1.05

_SIDE_PX = 320  # of the trial's images, at most
_MOST_PX = 512 * 512  # of all its images together, if there are several
_ROUNDS = 5  # or fewer, if they take longer than this time
_MOST_S = 0.5


@contextmanager
def trial_pass(
    model: DetectionModel, image_size: ImageSize, gradient: bool, batch_size: int = 1
) -> Iterator[Callable[[], None]]:
    """Yields a function that runs the model on random images of at most 320 px a side, with a
    backward pass if `gradient` is True.

    They are as many as in a batch, because threads gain more on large tensors than on small ones,
    but fewer than `batch_size` where these are large.

    The weights, their gradients and the state of the random number generators do not change.
    """
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    height, width = (min(side, _SIDE_PX) for side in sides)
    count = max(1, min(batch_size, _MOST_PX // (height * width)))
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, model.channels, height, width, generator=generator)
    images = images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            outputs = model(images)
        if gradient:
            total = outputs["pred_logits"].float().mean() + outputs["pred_boxes"].float().mean()
            if "pred_masks" in outputs:  # all that is trained where the detector is frozen
                total = total + outputs["pred_masks"].float().mean()
            trained = [p for p in model.parameters() if p.requires_grad]
            if total.requires_grad:  # not if only heads are trained whose outputs are not here
                torch.autograd.grad(total, trained, allow_unused=True)

    was_training = model.training
    model.eval()  # no dropout, no statistics
    try:
        yield run
    finally:
        model.train(was_training)


def times_faster(candidate: Callable[[], None], reference: Callable[[], None]) -> float:
    """How many times faster `candidate` runs than `reference`: the median over rounds with one run
    of each, of half a second at most."""
    candidate()
    reference()
    ratios: list[float] = []
    end = time.perf_counter() + _MOST_S
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        if ratios and started > end:
            break
        candidate()
        between = time.perf_counter()
        reference()
        ended = time.perf_counter()
        candidate_s = between - started
        reference_s = ended - between
        ratios.append(reference_s / candidate_s)
    return median(ratios)
