import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from redetr.cli import main
from redetr.commands import console
from redetr.commands.models import gflops
from redetr.errors import InputError
from redetr.models import MODELS
from redetr.recipes import get_recipe
from redetr.weights.published import licence_of_hub_name

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rows():
    """What `redetr models --json` prints, by model."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        main(["models", "--json"])
    return {row["model"]: row for row in json.loads(printed.getvalue())}


def test_every_model_has_form_size_and_cost(rows):
    assert list(rows) == list(MODELS)
    assert rows["detr_r50"]["form"] == "faithful" and rows["redetr_n"]["form"] == "fast"
    assert rows["rtdetr_r18"]["form"] == "RT-DETR" and rows["dfine_n"]["form"] == "D-FINE"
    assert rows["rtdetrv2_r34"]["parameters"] == pytest.approx(31e6, rel=0.02)  # as published
    for size, millions in {"n": 3.8, "s": 10.3, "m": 19.5, "l": 31.2, "x": 62.6}.items():
        # Published, rounded: 4, 10, 19, 31, 62.
        assert rows[f"dfine_{size}"]["parameters"] == pytest.approx(millions * 1e6, rel=0.02)
    assert rows["detr_r50"]["parameters"] == pytest.approx(41.5e6, rel=0.01)  # as published
    assert 0.6e6 < rows["redetr_n"]["parameters"] < 0.8e6
    assert all(row["gflops"] > 0 for row in rows.values())


@pytest.mark.long
def test_tables_fit_a_terminal(rows, capsys, monkeypatch):
    monkeypatch.setattr(console.OUT, "width", 80)
    main(["models"])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "PQ: panoptic quality, from the same source;" in " ".join(printed.split())
    assert all(
        f"{name} " in printed
        and f" {row['gflops']} " in printed
        and (row["licence"] or "") in printed
        and (row["origin"] or "") in printed
        for name, row in rows.items()
    )


def test_the_cost_is_what_is_counted(rows):
    assert rows["redetr_n"]["gflops"] == gflops("redetr_n")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_cost_of_all_models(rows, name):
    assert rows[name]["gflops"] == gflops(name)


def test_published_weights_have_an_origin_and_its_licence(rows):
    """As their authors report it: DETR's README, and those of RT-DETR and RT-DETRv2."""
    r18 = rows["rtdetrv2_r18"]
    assert (r18["published_AP"], r18["licence"]) == (48.1, "Apache-2.0")
    assert r18["origin"] == "PekingU/rtdetr_v2_r18vd"
    assert rows["detr_table"]["licence"] == "MIT"
    assert rows["detr_table"]["published_AP"] is None  # tables, not COCO
    for name, row in rows.items():
        if name.startswith("redetr_"):  # nobody has published any
            assert row["origin"] is None and row["licence"] is None
        elif name.endswith("r50m"):  # only as files of the authors
            assert row["licence"] == "Apache-2.0"
        else:
            assert row["licence"] == licence_of_hub_name(row["origin"])
    # The recipe starts from what the table says.
    for name in ("rtdetr_r18", "dfine_n", "dfine_s", "dfine_m", "dfine_l", "dfine_x"):
        assert get_recipe(f"{name}_finetune").weights == rows[name]["origin"]
    assert licence_of_hub_name("somebody/detr-resnet-50") is None
    assert licence_of_hub_name("ustc-community/dfine-small-obj2coco") is None


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


def test_weights_that_are_on_no_hub_have_no_hub_name(rows):
    for name in ("rtdetr_r50m", "rtdetrv2_r50m"):
        assert rows[name]["origin"] is None and rows[name]["published_AP"] > 50
        with pytest.raises(InputError, match=f"--model {name} --weights FILE$"):
            get_recipe(name)
