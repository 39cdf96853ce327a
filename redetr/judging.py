"""Which number decides which evaluation of a run is the best, in code and in words."""

from collections.abc import Mapping
from typing import Any

# The numbers that can decide, as messages call them.
_WORDS = {"AP": "AP", "mask_AP": "mask AP", "PQ": "PQ"}


def by_importance(numbers: Mapping[str, float | None], boxes_are_fixed: bool) -> list[str]:
    """The names of the `numbers` of an evaluation, the one that decides first; each other breaks
    ties of those before it. A number that was not measured is None.

    Panoptic quality comes first, since it measures boxes, masks and classes together. AP is that of
    boxes: where `boxes_are_fixed`, it stays as it is, and mask AP decides. Empty if masks were not
    measured there, so that no number can change.
    """
    order = ["PQ", "mask_AP", "AP"] if boxes_are_fixed else ["PQ", "AP", "mask_AP"]
    measured = [name for name in order if numbers.get(name) is not None]
    if boxes_are_fixed and measured == ["AP"]:
        return []
    return measured or ["AP"]


def is_better(numbers: Mapping[str, Any], best: Mapping[str, Any], names: list[str]) -> bool:
    """Whether the `numbers` of an evaluation are better than those of the `best` so far, compared
    by these `names` in turn.

    A number that `best` lacks cannot be compared: then the last evaluation is the best. So it is
    where there is no name.
    """
    if not names:
        return True
    for name in names:
        before = best.get(name)
        now = numbers.get(name)
        if before is None:
            return True
        if now is None:
            return False
        if now != before:
            return now > before
    return False


def judge_of(best: Mapping[str, Any]) -> str:
    """The name of the number by which the evaluation `best` is the best."""
    if "by" in best:
        return best["by"]
    return "PQ" if "PQ" in best else "AP"  # earlier versions did not say it


def in_words(name: str) -> str:
    """What messages call the number with this name."""
    return _WORDS[name]


def measured_in(best: Mapping[str, Any]) -> list[str]:
    """The names of the numbers of the evaluation `best`, the one that decided first."""
    judge = judge_of(best)
    others = [name for name in _WORDS if name in best and name != judge]
    return [judge, *others]
