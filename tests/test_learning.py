"""Both forms learn: minutes each, so they are marked slow. benchmarks/ records the full runs."""

from pathlib import Path

import pytest

from redetr.commands.demonstration import demo_config
from redetr.training import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_the_fast_form_learns_digits(tmp_path):
    assert train(demo_config("digits", tmp_path / "run", 450))["AP"] > 0.3


def test_the_faithful_form_memorises_scenes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    from overfit import overfit

    assert overfit(steps=1500, log_every=1500)[-1]["AP"] > 0.9
