import json
from pathlib import Path

import pytest

from redetr.cli import main
from redetr.commands.models import MEASURED, gflops
from redetr.models import MODELS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rows():
    """What `redetr models --json` prints, by model."""
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redetr.commands.models.print_json", printed.append)
        main(["models", "--json"])
    return {row["model"]: row for row in json.loads(json.dumps(printed[0]))}


def test_every_model_has_form_size_and_cost(rows):
    assert list(rows) == list(MODELS)
    assert rows["detr_r50"]["form"] == "faithful" and rows["redetr_n"]["form"] == "fast"
    assert rows["detr_r50"]["parameters"] == pytest.approx(41.5e6, rel=0.01)  # as published
    assert all(row["gflops"] > 0 for row in rows.values())


def test_tables_fit_a_terminal(rows, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["models"])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(
        f" {name} " in printed and f" {row['images_per_s'] or '-'} " in printed
        for name, row in rows.items()
    )


def test_the_cost_is_what_is_counted(rows):
    assert rows["redetr_n"]["gflops"] == gflops("redetr_n")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_cost_of_all_models(rows, name):
    assert rows[name]["gflops"] == gflops(name)


def test_the_speed_of_every_model_stands_in_the_results(rows):
    speed = json.loads(MEASURED.read_text())["speed"]
    source = json.loads((ROOT / speed["source"]).read_text())
    measured = {name: row["images_per_s"] for name, row in rows.items() if row["images_per_s"]}
    assert source["images_per_s"] == measured
    assert all(
        row["images_per_s_on"] == f"one core of {source['machine']['cpu']}" for row in rows.values()
    )
    assert speed["date"] in speed["source"]


def test_what_was_measured_stands_in_the_results(rows):
    measured = [result for row in rows.values() for result in row["measured"]]
    assert measured
    for result in measured:
        source = json.loads((ROOT / result["source"]).read_text())
        runs = source["evaluations"].items()  # "redetr_n", or "redetr_n, seed 0"
        final = next(lines for name, lines in runs if name.partition(",")[0] == result["model"])[-1]
        assert (result["AP"], result["AP50"]) == (round(final["AP"], 4), round(final["AP50"], 4))
        assert (result["steps"], result["train_minutes"]) == (
            final["step"],
            round(final["time_s"] / 60, 1),
        )
        assert source["machine"]["cpu"] in result["hardware"] and result["date"] in result["source"]
