"""Counts in messages."""

import numpy as np
import pytest

from redetr.wording import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12_000, "12,000 images")],
)
def test_the_noun_agrees_with_the_number(number, text):
    assert counted(number, "image") == text
    assert counted(np.int64(number), "image") == text


@pytest.mark.parametrize(("number", "text"), [(1, "1 box"), (3, "3 boxes")])
def test_an_irregular_plural_is_given(number, text):
    assert counted(number, "box", "boxes") == text
