"""Faults of the splits of a data set, each with its severity in its split."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from redetr.data.annotations import Annotations, Split
from redetr.data.faults import Fault
from redetr.data.formats.folder import require_masks
from redetr.errors import InputError


def of_split(faults: list[Fault], split: Split, splits: Mapping[Split, Annotations]) -> list[Fault]:
    """The faults that one of the splits has, with their severity in it. They name the split if
    another one has the same source, which then does not say where they are."""
    source = splits[split].source
    sources = [annotations.source for annotations in splits.values()]
    is_shared = sources.count(source) > 1
    result = []
    for fault in faults:
        if is_shared and not _names_its_files(fault, source):
            fault = _with_name(fault, split)
        result.append(fault.in_split(split))
    return result


def _names_its_files(fault: Fault, source: Path) -> bool:
    """Whether a fault concerns objects in files of their own, rather than the split as a whole."""
    return bool(fault.items) and fault.file != source


def _with_name(fault: Fault, split: Split) -> Fault:
    where = f"{fault.where} of {split}" if fault.where else f"the {split} split"
    items = tuple(f"{item} of {split}" for item in fault.items)
    return replace(fault, where=where, items=items)


def mask_faults(splits: Mapping[Split, Annotations]) -> list[Fault]:
    """A fault for each split in which no object has a mask. Masks cannot be trained then, unless it
    is test."""
    faults = []
    for split, annotations in splits.items():
        try:
            require_masks(annotations)
        except InputError as error:
            fault = Fault.from_error("mask-missing", error, annotations.source)
            faults += of_split([fault], split, splits)
    return faults
