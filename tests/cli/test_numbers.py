"""Numbers given on the command line."""

import pytest

from redetr.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "a.pt", "--val-fraction", "20"],
            "--val-fraction 20.0 must be at least 0 and",
        ),
        (
            ["evaluate", "a.pt", "--val-fraction", "nan"],
            "--val-fraction nan must be at least 0 and",
        ),
        (["evaluate", "a.pt", "--num-workers", "-1"], "--num-workers -1 must be from 0 to"),
        (["check", "data", "--val-fraction", "-0.2"], "--val-fraction -0.2 must be at least 0 and"),
        (["convert", "a", "b", "--val-fraction", "1"], "--val-fraction 1.0 must be at least 0 and"),
        (["predict", "a.pt", "b.jpg", "--threads", "0"], "--threads 0 must be from 1 to"),
    ],
)
def test_numbers_of_all_commands_have_bounds(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"redetr: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "a", "b", "--channels", "3"], "--channels has no effect without --tile; add"),
        (["convert", "a", "b", "--empty-tiles", "0.2"], "--empty-tiles has no effect without"),
        (["check", "digits", "--thorough"], "digits: --thorough looks at image files, but"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"redetr: {message}")
