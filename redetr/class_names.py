"""Names of classes that mean the same, such as Pascal VOC's aeroplane and COCO's airplane."""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from redetr.errors import InputError

# COCO's names for those that Pascal VOC, or a folder on the Hugging Face hub, has instead.
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tv monitor": "tv",
    "tvmonitor": "tv",
}
_MOST_LISTED = 6


def canonical(name: str) -> str:
    """The name that all spellings of a class share: COCO's, in lower case and with spaces."""
    spaced = re.sub(r"(?<=\w)[-_\s]+(?=\w)", " ", name.casefold())
    return _COCO_NAMES.get(spaced, spaced)


def same_classes(names: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """By the index of a name, the index of the class among those `known` that it means.

    An equal name decides. What remains is matched by its canonical name, if only one name on either
    side has that; a name without a match has no entry.
    """
    matches = {}
    for i, name in enumerate(names):
        if name in known:
            matches[i] = known.index(name)
    remaining_names = {i: canonical(name) for i, name in enumerate(names) if i not in matches}
    taken = set(matches.values())
    remaining_known = {i: canonical(name) for i, name in enumerate(known) if i not in taken}
    times_named = Counter(remaining_names.values())
    times_known = Counter(remaining_known.values())
    index_of = {name: i for i, name in remaining_known.items()}
    for i, name in remaining_names.items():
        if times_named[name] == times_known[name] == 1:
            matches[i] = index_of[name]
    return matches


def other_spellings(names: Sequence[str], known: Sequence[str]) -> str:
    """Lists the first matches of `same_classes` whose names differ; empty if there are none."""
    pairs = []
    for i, match in sorted(same_classes(names, known).items()):
        if names[i] != known[match]:
            pairs.append(f"{names[i]} = {known[match]}")
    if len(pairs) > _MOST_LISTED:
        pairs[_MOST_LISTED:] = [f"and {len(pairs) - _MOST_LISTED} more"]
    return ", ".join(pairs)


def chosen_classes(names: str | Collection[str], known: Sequence[str]) -> set[str]:
    """The classes that a user names; a text is one name. Raises InputError for a name that is not
    among the `known` ones."""
    chosen = set(names) if isinstance(names, Collection) and not isinstance(names, str) else {names}
    unknown = chosen - set(known)
    if unknown:
        text = f"no class is called {min(unknown, key=str)!r}"
        raise InputError(f"{text}: the model knows {', '.join(known)}")
    return chosen
