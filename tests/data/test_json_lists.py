"""Lists of JSON read through a window, and kept as columns: the same values and messages as with
Python's reader."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redetr.data import annotations as annotations_module
from redetr.data import contradictions
from redetr.data.formats import json_lists
from redetr.data.formats.columns import Column, Columns
from redetr.data.formats.json_lists import read_lists
from redetr.data.formats.layouts import read_annotations
from redetr.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), max_size=6)


def read(file, keys=("rows",)):
    lists: dict = {key: [] for key in keys}
    is_list = read_lists(file, keys, lambda key, items: lists[key].extend(items))
    return lists, is_list


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([None, 2]), st.integers(1, 40), st.sampled_from(["utf-8", "utf-16"]))
def test_rows_are_those_of_the_json_module(tmp_path_factory, rows, indent, block, encoding):
    document = {"before": [{"rows": []}], "rows": rows, "after": 12.5, "again": {"x": "}, {"}}
    file = tmp_path_factory.mktemp("lists") / "rows.json"
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    file.write_bytes(text.encode(encoding, "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_BLOCK", max(4, block))
        patch.setattr(json_lists, "_BATCH", 2)
        assert read(file) == ({"rows": rows}, {"rows": True})


def test_rows_with_objects_inside(tmp_path):
    rows = [{"parts": [{"n": i}, {"text": "}, {"}], "n": i} for i in range(9)]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    assert read(tmp_path / "rows.json")[0] == {"rows": rows}


BROKEN = (
    *('{"rows": [{"a": 1}, {"a": }]}', '{"rows": [{"a": 1} {"a": 2}]}', '{"rows": [{"a": 1},]}'),
    *('{"rows": [{"a": 1}', '{"rows": [{"a": "un', '{"rows": [1.5, tru]}', '{"rows"; 1}', "{1: 2}"),
    *('{"rows": []} x', "", "   ", '{"rows": []', '{"x": 1\n,\n"rows": [\n{},\n{"a": 1\n"b": 2}]}'),
)


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("block", [4, 5, 2**20])
def test_errors_are_those_of_the_json_module(tmp_path, monkeypatch, text, block):
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    monkeypatch.setattr(json_lists, "_BLOCK", block)
    monkeypatch.setattr(json_lists, "_NEAR", 2)
    with pytest.raises(InputError) as caught:
        read(file)
    assert caught.value.text == f"not JSON: {expected.value}"


def test_text_of_no_encoding_is_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "_BLOCK", 4)
    (tmp_path / "rows.json").write_bytes(b'{"rows": ["\xff"]}')
    with pytest.raises(InputError, match="at byte 11"):
        read(tmp_path / "rows.json")


def test_a_list_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text('{"rows": [{}], "rows": []}')
    with pytest.raises(InputError, match='"rows" occurs twice'):
        read(tmp_path / "rows.json")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(VALUES | st.just([1, 2.5, 3, 4]), max_size=5), max_size=4))
def test_a_column_holds_the_very_values(batches):
    column = Column()
    for batch in batches:
        column.extend(batch)
    values = [value for batch in batches for value in batch]
    assert repr(list(column)) == repr(values)
    assert repr([column[i] for i in range(len(values))]) == repr(values)


COLUMNS = {
    "whole": ([1, -7, 2**40], [1, -7, 2**40], [False] * 3),
    "huge": ([1, 2**63, -(2**63) - 1], [1, 0, 0], [False, True, True]),
    "fractions": ([1.0, 2.5, float("nan")], [1, 0, 0], [False, True, True]),
    "mixed": ([1, 2.0, 2.5], [1, 2, 0], [False, False, True]),
    "others": ([True, None, "1"], [0, 0, 0], [True, True, True]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_whole_numbers(kind):
    values, expected, bad = COLUMNS[kind]
    column = Column()
    column.extend(values)
    numbers, is_bad = column.whole_numbers()
    assert (numbers.tolist(), is_bad.tolist()) == (expected, bad)


def test_numbers_boxes_and_marks():
    columns = Columns(["n", "box", "mark"])
    boxes = [[1, 2, 3, 4], [1.5, 2, 3, 4], None, [1, 2, 3], [1, "2", 3, 4]]
    marks = [1, 0, True, "1", 2]
    rows = []
    for n, (box, mark) in enumerate(zip(boxes, marks, strict=True)):
        rows.append({"n": n, "box": box, "mark": mark})
    for row in rows:  # each its own part
        columns.extend([row])
    columns.extend([{}])
    table = columns.columns
    assert table["n"].numbers().tolist()[:5] == [0, 1, 2, 3, 4]
    assert table["n"].lacks(5)
    assert not table["box"].lacks(2)
    found = table["box"].boxes()
    assert found[:2].tolist() == [[1, 2, 3, 4], [1.5, 2, 3, 4]]
    assert np.isnan(found[2:]).any(1).all()
    is_set, unclear = table["mark"].flags()
    assert is_set.tolist() == [True, False, True, True, False, False]
    assert unclear.tolist() == [False, False, False, False, True, False]  # 2


def test_an_annotation_takes_little_memory(tmp_path):
    """At most 320 bytes a box while a large file is read; as Python's objects it was 860."""
    count = 20_000
    categories = [{"id": 1, "name": "tooth"}]
    images = [{"id": 5, "file_name": "a.png", "width": 1000, "height": 1000}]
    annotations = []
    for i in range(count):
        box = [i % 900, 1.5, 20, 30.25]
        annotations.append({"id": i, "image_id": 5, "category_id": 1, "bbox": box, "area": 99.5})
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").touch()
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(document))
    del document, annotations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_BLOCK", 2**16)
        patch.setattr(json_lists, "_BATCH", 2**9)
        patch.setattr(annotations_module, "_BLOCK", 2**10)
        patch.setattr(contradictions, "_BLOCK", 2**10)
        tracemalloc.start()
        found = read_annotations(tmp_path, "train")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(found.boxes) == count
    assert peak < 320 * count
