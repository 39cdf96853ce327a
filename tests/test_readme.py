"""The README is short, and its numbers come from results; `test_docs.py` runs its commands and
Python."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_length():
    assert README.count("\n") < 200


def test_measured_numbers_are_recorded():
    """Every number in the table of measurements stands, rounded, in a file of results."""
    recorded = set()
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        recorded |= numbers(json.loads(path.read_text()))
    table = README.split("## Measured")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|") and re.search(r"\d", line)]
    assert rows
    for row in rows:
        for number in re.findall(r"(?<![\w.])\d+\.\d(?![\w.])", row):
            assert float(number) in recorded, f"{number} in {row}"


def result(name: str) -> dict:
    """The last one of that name."""
    return json.loads(max((ROOT / "benchmarks/results").glob(f"*-{name}.json")).read_text())


def test_speeds_are_the_last_results():
    """Each row of the table in docs/speed.md, and what its text says of other runtimes and the
    limit."""
    page = (ROOT / "docs/speed.md").read_text()
    rows = {
        row.split(" | ")[0].strip("| "): row for row in page.splitlines() if row.startswith("| ")
    }

    def assert_row(
        begins: str,
        unit: str,
        sides: dict,
        faster: dict,
        scale: float = 1,
        digits: int = 0,
        names=("redetr", "2020", "transformers"),
    ) -> None:
        (row,) = (row for name, row in rows.items() if name.startswith(begins))
        ours, old, peer = (f"{sides[name]['ms'] * scale:,.{digits}f} {unit}" for name in names)
        wanted = f"| {ours} | {old} | {faster[names[1]]:.2f} | {peer} | {faster[names[2]]:.2f} |"
        assert row.endswith(wanted), f"{row}: {wanted}"

    step, criterion, loader = (
        result("training-step-cpu-float32"),
        result("criterion-cpu"),
        result("loader"),
    )
    assert_row("training step", "ms", step["steps"], step["times faster"])
    memory = [f"{step['peak MB'][name]:,} MB" for name in ("redetr", "2020", "transformers")]
    assert f"| its memory at most | {memory[0]} | {memory[1]} | | {memory[2]} | |" in page
    single = result("inference-cpu")["batch of 1"]
    for begins, ours, kept in (
        ("answer, DETR-R50", "redetr, memory kept", ""),
        ("the same in Python", "redetr", ""),
        ("the same with `keep_memory`", "redetr, memory kept", ", memory kept"),
        ("the same as `redetr export", "redetr, OpenVINO", ""),
    ):
        names = (ours, f"2020{kept}", f"transformers{kept}")
        assert_row(begins, "ms", single["forward"], single["times faster"][ours], names=names)
    eight = result("inference-cpu-batches")["batch of 8"]
    for begins, ours in (
        ("answer, eight images", "redetr, memory kept"),
        ("eight images in Python", "redetr"),
    ):
        names = (ours, "2020", "transformers")
        assert_row(begins, "s", eight["forward"], eight["times faster"][ours], 1e-3, 1, names=names)
    whole = criterion["forward and backward"]
    assert (
        f"{whole['redetr']['ms']} ms | {whole['2020']['ms']:.0f} ms | "
        f"{criterion['times faster']['2020']}" in page
    )
    assert (
        f"{whole['transformers']['ms']:.0f} ms | {criterion['times faster']['transformers']} |"
        in page
    )
    speeds, ratios = (
        {name: side["images_per_s"] for name, side in loader["in process"].items()},
        loader["ratios"],
    )
    assert (
        f"| {speeds['redetr']} | {speeds['original']} | {ratios['to the original']} | | |" in page
    )
    peer = speeds["transformers (torchvision), whole"]
    assert (
        f"| {speeds['redetr, whole']} | | | {peer} | {ratios['to transformers, whole images']} |"
        in page
    )
    for name in (
        "transformers, ONNX Runtime",
        "transformers, OpenVINO",
        "redetr, ONNX Runtime",
        "redetr, OpenVINO",
    ):
        assert f"{single['forward'][name]['ms']:,.0f} ms" in page
    for share in (*single["limit"]["share reached"].values(), step["limit"]["share reached"]):
        assert f"{100 * share:.0f}%" in page
    for limit in (single["limit"], step["limit"]):
        assert f"{limit['ms at that rate']:,.0f} ms" in page
    assert (
        f"{step['limit']['times faster at that rate']['2020']:.1f} times the speed of 2020" in page
    )
    evaluation = result("evaluation")
    assert f"{evaluation['evaluation']['redetr']['ms'] / 1000:.2f} s" in page
    assert f"{evaluation['times faster']['pycocotools']:.1f} times as long" in page


def numbers(content) -> set[float]:
    """All numbers in a result, as they are, in percent, and in minutes, with one decimal."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return set().union(*(numbers(part) for part in content)) if content else set()
    if isinstance(content, (int, float)):
        return {round(content, 1), round(100 * content, 1), round(content / 60, 1)}
    return set()
