"""Faults of the splits of a data set, each with its severity in its split."""

from collections.abc import Mapping

from redetr.data.annotations import Annotations, Split
from redetr.data.faults import Fault
from redetr.data.formats.folder import require_masks
from redetr.errors import InputError


def mask_faults(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """A fault for each split in which no object has a mask. Masks cannot be trained then, unless it
    is test."""
    faults = []
    for split, annotations in splits.items():
        try:
            require_masks(annotations)
        except InputError as error:
            fault = Fault.from_error("mask-missing", error, annotations.source)
            faults.append(fault.in_split(split))
    return faults
