"""The README is short, each of its figures is that of a result, and it names every file of the core.

`test_docs.py` runs its commands and Python.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redetr.data import open_dataset
from tests.test_architecture import CORE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks/results"
FIRST_SCREEN = "\n".join(README.splitlines()[:40])
MEASURED = README.split("## Measured\n")[1].split("\n## ")[0]


@dataclass(frozen=True)
class Key:
    """Where a figure stands in a file of results, and its unit there in units of the README."""

    path: str  # names and positions, joined by " > "
    scale: float = 1

    def read(self, content: Any) -> float:
        for name in self.path.split(" > "):
            is_position = isinstance(content, list)
            content = content[int(name)] if is_position else content[name]
        return content * self.scale


@dataclass(frozen=True)
class Bound:
    """A piece of the README with a format for each figure, and the key of each figure."""

    text: str
    file: str
    keys: tuple[Key, ...]

    def printed(self) -> str:
        content = json.loads((RESULTS / self.file).read_text())
        figures = [key.read(content) for key in self.keys]
        return self.text.format(*figures).replace("e-0", "e-")  # 7e-8, not Python's 7e-08


def plain(*paths: str) -> tuple[Key, ...]:
    return tuple(Key(path) for path in paths)


def percent(*paths: str) -> tuple[Key, ...]:
    return tuple(Key(path, 100) for path in paths)


def learned(row: str, file: str, evaluation: str) -> Bound:
    """A row of the table of learning: minutes, steps, AP, AP50 of one evaluation."""
    time = Key(f"{evaluation} > time_s", 1 / 60)
    steps = Key(f"{evaluation} > step")
    accuracy = percent(f"{evaluation} > AP", f"{evaluation} > AP50")
    return Bound(
        f"| {row} | {{:.1f}} | {{}} | {{:.1f}} | {{:.1f}} |", file, (time, steps, *accuracy)
    )


DIGITS = "2026-11-23-learning-digits.json"
DIGITS_BEFORE = "2026-11-22-learning-digits.json"
CROWNS = "2026-11-23-learning-crowns.json"
HOUR = "2026-11-23-plain-hour.json"
OVERFIT = "2026-11-22-overfit.json"
EXACT = "2026-11-22-exactness.json"
STEP_CPU = "2026-11-23-training-step-cpu-float32.json"
STEP_FP32 = "2026-11-28-training-step-cuda-float32.json"
STEP_BF16 = "2026-11-28-training-step-cuda-bfloat16.json"

UNSEEN = "digits, 300 unseen scenes"
ON_TWO_RANKS = "comparison > 2 ranks"
ON_TWO_STEPS = "comparison > 2 accumulation steps"


def exactness(row: str, side: str, figure: str) -> Bound:
    keys = plain(f"{ON_TWO_RANKS} > {side} > all", f"{ON_TWO_STEPS} > {side} > all")
    return Bound(f"| {row} | {figure} | {figure} |", EXACT, keys)


def training_step(row: str, file: str, peer: str = "transformers", notes=("", "")) -> Bound:
    text = (
        f"| {row}, {{}} x {{}}x{{}} | {{:,.0f}} ms | {{:,.0f}} ms{notes[0]} | {{:.2f}} "
        f"| {{:,.0f}} ms{notes[1]} | {{:.2f}} |"
    )
    keys = plain(
        "setting > batch_size",
        "setting > height",
        "setting > width",
        "steps > redetr > ms",
        "steps > 2020 > ms",
        "times faster > 2020",
        f"steps > {peer} > ms",
        f"times faster > {peer}",
    )
    return Bound(text, file, keys)


BOUND = [
    Bound(
        "from scratch for {:.1f} minutes on two CPU cores, reaches {:.1f} AP",
        DIGITS,
        (
            Key("evaluations > redetr_n, seed 0 > -1 > time_s", 1 / 60),
            Key("evaluations > redetr_n, seed 0 > -1 > AP", 100),
        ),
    ),
    exactness("redetr", "redetr", "{:.0e}"),
    exactness("the rules of the original DETR", "original", "{:.2f}"),
    exactness("Transformers", "transformers", "{:.2f}"),
    learned(f"{UNSEEN} | `redetr_n`", DIGITS, "evaluations > redetr_n, seed 0 > 0"),
    learned(f"{UNSEEN} | `redetr_n`", DIGITS, "evaluations > redetr_n, seed 0 > 1"),
    learned(f"{UNSEEN} | `redetr_n`", DIGITS, "evaluations > redetr_n, seed 0 > 3"),
    learned(f"{UNSEEN} | `redetr_n`", DIGITS, "evaluations > redetr_n, seed 0 > 4"),
    learned(f"{UNSEEN} | `redetr_n` with AdamW", DIGITS_BEFORE, "evaluations > redetr_n > -1"),
    learned(
        f"{UNSEEN} | plain DETR of the same size (`detr_tiny`), AdamW",
        DIGITS_BEFORE,
        "evaluations > detr_tiny > -1",
    ),
    learned(f"{UNSEEN} | plain DETR, Muon, one core", HOUR, "evaluations > 4"),
    learned(f"{UNSEEN} | plain DETR, Muon, one core", HOUR, "evaluations > -1"),
    learned(
        "crowns, 65 unseen aerial photographs | `redetr_n`",
        CROWNS,
        "evaluations > redetr_n, seed 0 > -1",
    ),
    learned("digits, the 8 scenes that it trains on | plain DETR, AdamW", OVERFIT, "curve > -1"),
    Bound("the {} scenes that it trains on", OVERFIT, plain("scenes")),
    Bound(
        "end at {:.1f} and {:.1f} AP on digits",
        DIGITS,
        percent(
            "evaluations > redetr_n, seed 1 > -1 > AP", "evaluations > redetr_n, seed 2 > -1 > AP"
        ),
    ),
    Bound(
        "{:.1f} and {:.1f} on crowns",
        CROWNS,
        percent(
            "evaluations > redetr_n, seed 1 > -1 > AP", "evaluations > redetr_n, seed 2 > -1 > AP"
        ),
    ),
    Bound(
        "has {:.1f} AP\nafter {:,} steps ({:.1f} minutes)",
        HOUR,
        (
            Key("evaluations > 3 > AP", 100),
            Key("evaluations > 3 > step"),
            Key("evaluations > 3 > time_s", 1 / 60),
        ),
    ),
    training_step("two CPU cores, fp32", STEP_CPU),
    training_step("NVIDIA H200, fp32", STEP_FP32),
    training_step("NVIDIA H200, bf16", STEP_BF16, "transformers, bf16", (" (fp32)", " (bf16)")),
    Bound(
        "needs {:,} MB of GPU memory, against {:,} MB (2020, fp32) and {:,} MB",
        STEP_BF16,
        plain("peak MB > redetr", "peak MB > 2020", "peak MB > transformers, bf16"),
    ),
    Bound("only {:.0f}% of the card's bf16 rate", STEP_BF16, percent("limit > share reached")),
]

# Whole numbers that count what is compared or name it; none of them was measured.
NAMED = {
    "0": "seed",
    "1": "seed",
    "2": "seed, ranks, accumulation steps",
    "2020": "the year of the original",
}


def measured_parts() -> str:
    """The first screen and the section of measurements, without commands, code and addresses."""
    text = FIRST_SCREEN + "\n" + MEASURED
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "``", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "``", text)


def numbers_in(text: str) -> set[str]:
    """All numbers but those inside of a name, such as AP50, ResNet-50 and H200."""
    return set(re.findall(r"(?<![\w.-])\d(?:[\d.,]*\d)?(?:e-\d+)?", text))


@pytest.mark.parametrize("bound", BOUND, ids=lambda bound: bound.text)
def test_a_figure_is_that_of_its_result(bound):
    assert bound.printed() in README


def test_every_measured_figure_is_bound_to_a_result():
    """What is left of the measured parts without the bound figures holds no number but names."""
    rest = measured_parts()
    for bound in sorted(BOUND, key=lambda bound: -len(bound.text)):  # whole rows first
        rest = rest.replace(without_code(bound.printed()), "")
    assert numbers_in(rest) == NAMED.keys()


def test_a_changed_figure_would_be_noticed():
    rest = measured_parts().replace("2,515 ms", "2,516 ms").replace("67.0 AP", "67.1 AP")
    for bound in BOUND:
        rest = rest.replace(without_code(bound.printed()), "")
    assert {"2,516", "67.1"} <= numbers_in(rest)


def test_sizes_of_the_embedded_data_sets():
    for name, words in {"digits": "unseen scenes", "crowns": "unseen aerial photographs"}.items():
        assert f"{name}, {len(open_dataset(name, 'val'))} {words}" in MEASURED


def test_the_first_screen():
    """A picture, the way to install, Python, three commands and the table of exactness."""
    (picture,) = re.findall(r"!\[[^]]+\]\((\S+)\)", FIRST_SCREEN)
    assert (ROOT / picture).exists()
    assert "make demo" in FIRST_SCREEN
    assert "```python" in FIRST_SCREEN
    assert FIRST_SCREEN.count("\nredetr ") == 3
    assert "| redetr | 7e-8 | 7e-8 |" in FIRST_SCREEN


def test_length():
    assert README.count("\n") < 215


def test_the_core_is_shown_file_by_file():
    """The tree names every module of the core, and nothing that is gone."""
    tree, support = re.findall(r"in this order\n+```text\n(.*?)```\n(.*?)\n\[", README, re.DOTALL)[
        0
    ]
    named = set(re.findall(r"[\w/]+\.py", tree + support))
    package = ROOT / "redetr"
    flat = {path.name for path in package.glob("[!_]*.py")}
    inside = {path.name for room in CORE for path in (package / room).glob("[!_]*.py")}
    assert named == flat | inside


def result(name: str) -> dict:
    """The newest result of that name."""
    return json.loads(max(RESULTS.glob(f"*-{name}.json")).read_text())


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
