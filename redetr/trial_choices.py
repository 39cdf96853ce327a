"""What trials chose for a run, and for how many ranks.

It holds only for as many ranks, so `config.json` records it beside the settings."""

import json
from dataclasses import dataclass
from pathlib import Path

KEY = "trials"  # in config.json


@dataclass(frozen=True)
class TrialChoices:
    """What trials chose for a run on this number of ranks; None where there was no trial."""

    world_size: int
    threads: int | None = None
    accumulate: int | None = None  # micro-batches per rank


def read_trials(file: Path) -> TrialChoices | None:
    """The choices that a `config.json` records; None if it records none, as in earlier versions."""
    try:
        recorded = json.loads(file.read_text())[KEY]
        choices = TrialChoices(**recorded)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    numbers = [choices.world_size]
    numbers += [n for n in (choices.threads, choices.accumulate) if n is not None]
    if any(type(number) is not int or number < 1 for number in numbers):
        return None
    return choices
