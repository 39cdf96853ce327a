"""The examples run anywhere and print what they claim, and the page about them shows what they
print."""

import os
import re
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = r"-?\d+\.\d{6}"


@pytest.fixture(scope="module")
def printed(tmp_path_factory, strict_python) -> str:
    """What `examples/ddp_by_hand.py` prints, run from another folder."""
    script, elsewhere = ROOT / "examples/ddp_by_hand.py", tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [*strict_python, script],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if "Warning: " in done.stderr:  # one that pytest lists, as `make test DEPS=newest` wants it
        warnings.warn(done.stderr, DeprecationWarning, stacklevel=1)
    else:
        assert done.stderr == ""
    assert list(elsewhere.iterdir()) == []
    return done.stdout


@pytest.mark.long
def test_the_worked_example_comes_out_exactly(printed):
    assert "0.55 / 2 = 0.275\n" in printed
    assert "0.55 / 3 = 0.1833\n" in printed


def test_three_ways_to_one_gradient(printed):
    rows = [[float(value) for value in re.findall(NUMBER, line)] for line in printed.splitlines()]
    by_hand, ddp, one_process, counts_per_rank = (row for row in rows if row)
    assert len(by_hand) == 8
    assert ddp == pytest.approx(by_hand, abs=1e-6)
    assert one_process == pytest.approx(by_hand, abs=1e-6)
    assert max(abs(a - b) for a, b in zip(counts_per_rank, one_process, strict=True)) > 0.01


def test_the_page_shows_what_the_example_prints(printed):
    page = (ROOT / "docs/distributed.md").read_text()
    _, found, rest = page.partition("```console\npython examples/ddp_by_hand.py\n```\n\n```text\n")
    assert found
    assert rest.partition("```")[0] == printed
