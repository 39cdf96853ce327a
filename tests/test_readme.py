"""The README is short, and it names every file of the core. Its figures, those of the pages on
speed and exactness, and those of starts are those of results.

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
SPEED = (ROOT / "docs/speed.md").read_text()
EXACTNESS = (ROOT / "docs/exactness.md").read_text()
SCALING = (ROOT / "docs/scaling.md").read_text()
RESULTS = ROOT / "benchmarks/results"
FIRST_SCREEN = "\n".join(README.splitlines()[:40])
MEASURED = README.split("## Measured\n")[1].split("\n## ")[0]


@dataclass(frozen=True)
class Key:
    """Where a figure stands in a file of results, and its unit there in units of the page."""

    path: str  # names and positions, joined by " > "
    scale: float = 1

    def read(self, content: Any) -> Any:
        for name in self.path.split(" > "):
            is_position = isinstance(content, list)
            content = content[int(name)] if is_position else content[name]
        return content if self.scale == 1 else content * self.scale


@dataclass(frozen=True)
class Bound:
    """A piece of a page with a format for each figure, and the key of each figure."""

    text: str
    result: str  # a file of results, or the name of a result, whose newest file is taken
    keys: tuple[Key, ...]

    def printed(self) -> str:
        files = RESULTS.glob(f"*{self.result.removesuffix('.json')}.json")
        content = json.loads(max(files).read_text())
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


def after_minutes(data: str, minutes: int, threads: str = "1 thread") -> tuple[Key, ...]:
    """The median AP of redetr_n, YOLO11n and YOLO26n after this time."""
    setting = f"median AP > {data}, {minutes} min, {threads}"
    return plain(f"{setting} > redetr_n", f"{setting} > yolo11n", f"{setting} > yolo26n")


DIGITS = "2026-11-28-learning-digits.json"
FAMILIES = "2026-11-29-families.json"
DIGITS_BEFORE = "2026-11-22-learning-digits.json"
CROWNS = "2026-11-28-learning-crowns.json"
HOUR = "2026-11-23-plain-hour.json"
YOLO = "2026-11-30-yolo.json"
YOLO_TWO = "2026-11-29-yolo-two-threads.json"
YOLO_TWO_AGAIN = "2026-11-30-yolo-two-threads-seeds-1-2.json"
OVERFIT = "2026-11-22-overfit.json"
EXACT = "2026-11-22-exactness.json"
EXACT_RTDETR = "2026-11-29-exactness-rtdetr.json"
EXACT_DFINE = "2026-11-29-exactness-dfine.json"
STEP_CPU = "2026-11-29-training-step-cpu-float32.json"
STEP_FP32 = "2026-11-28-training-step-cuda-float32.json"
STEP_BF16 = "2026-11-28-training-step-cuda-bfloat16.json"

UNSEEN = "digits, 300 unseen scenes"
ON_TWO_RANKS = "comparison > 2 ranks"
ON_TWO_STEPS = "comparison > 2 accumulation steps"


def exactness(row: str, side: str, figure: str, file: str = EXACT) -> Bound:
    keys = plain(f"{ON_TWO_RANKS} > {side} > all", f"{ON_TWO_STEPS} > {side} > all")
    return Bound(f"| {row} | {figure} | {figure} |", file, keys)


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


README_FIGURES = [
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
    learned(f"{UNSEEN} | `redetr_n`", DIGITS, "evaluations > redetr_n, seed 0 > 4"),
    learned(
        f"{UNSEEN} | plain DETR of the same size (`detr_tiny`), AdamW",
        DIGITS_BEFORE,
        "evaluations > detr_tiny > -1",
    ),
    learned(f"{UNSEEN} | plain DETR, Muon, one core", HOUR, "evaluations > -1"),
    learned(
        "crowns, 65 unseen aerial photographs | `redetr_n`",
        CROWNS,
        "evaluations > redetr_n, seed 0 > -1",
    ),
    learned("digits, the 8 scenes that it trains on | plain DETR, AdamW", OVERFIT, "curve > -1"),
    Bound(
        "`redetr_n` has {:.1f} AP on many small objects and YOLO11n {:.1f}; on six classes among "
        "distractors, {:.1f} and {:.1f}",
        YOLO,
        after_minutes("dense", 2)[:2] + after_minutes("shapes", 2)[:2],
    ),
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
        "has {:.1f} AP after {:,} steps ({:.1f} minutes)",
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
        "needs {:,} MB of GPU memory, compared with {:,} MB (2020, fp32) and {:,} MB",
        STEP_BF16,
        plain("peak MB > redetr", "peak MB > 2020", "peak MB > transformers, bf16"),
    ),
    Bound("only {:.0f}% of the card's bf16 rate", STEP_BF16, percent("limit > share reached")),
]

BUSY = "-busy"
STEP = "training-step-cpu-float32"
INFERENCE = "-inference-cpu"
EIGHT = "inference-cpu-batches"
GPU_FP32 = "training-step-cuda-float32"
GPU_BF16 = "training-step-cuda-bfloat16"
ONE_IMAGE = "batch of 1 > forward"
LIMIT = "batch of 1 > limit"
ROW_OF_MS = "{:,.0f} ms | {:,.0f} ms | {:.2f} | {:,.0f} ms | {:.2f} |"


def inference(row: str, ours: str, kept: str = "") -> Bound:
    """A row of the table of speeds: one image; `kept` names sides that keep memory too."""
    faster = f"batch of 1 > times faster > {ours}"
    keys = plain(
        f"{ONE_IMAGE} > {ours} > ms",
        f"{ONE_IMAGE} > 2020{kept} > ms",
        f"{faster} > 2020{kept}",
        f"{ONE_IMAGE} > transformers{kept} > ms",
        f"{faster} > transformers{kept}",
    )
    return Bound(f"{row} | {ROW_OF_MS}", INFERENCE, keys)


def busy(row: str, side: str) -> Bound:
    """A row of the table of waiting threads."""
    keys = plain(f"as it is > {side} > images/s", f"beside one more > {side} > images/s")
    return Bound(f"| {row} | {{:.1f}} | {{:.1f}} |", BUSY, keys)


def eight_images(row: str, ours: str) -> Bound:
    forward = "batch of 8 > forward"
    faster = f"batch of 8 > times faster > {ours}"
    keys = (
        Key(f"{forward} > {ours} > ms", 1e-3),
        Key(f"{forward} > 2020 > ms", 1e-3),
        Key(f"{faster} > 2020"),
        Key(f"{forward} > transformers > ms", 1e-3),
        Key(f"{faster} > transformers"),
    )
    return Bound(
        f"| {row} | {{:.1f}} s | {{:.1f}} s | {{:.2f}} | {{:.1f}} s | {{:.2f}} |", EIGHT, keys
    )


def family(row: str, model: str, kind: str) -> Bound:
    """A row of the table of RT-DETR and D-FINE."""
    keys = (
        "ms > redetr > ms",
        "ms > transformers > ms",
        "times faster > transformers",
        "ms > transformers, memory kept > ms",
        "times faster > transformers, memory kept",
        "GFLOP > redetr",
        "GFLOP > transformers",
    )
    paths = [f"{model} > {kind} > {key}" for key in keys]
    text = (
        f"| {row} | {{:,.0f}} ms | {{:,.0f}} ms | {{}} | {{:,.0f}} ms | {{}} | {{:.0f}} | "
        f"{{:.0f}} |"
    )
    return Bound(text, FAMILIES, plain(*paths))


MEMBERS = {"RT-DETR-R18": "rtdetr_r18", "RT-DETR-R50": "rtdetr_r50", "D-FINE-S": "dfine_s"}


def exported(row: str, model: str) -> Bound:
    """A row of the table of exported files."""
    paths = []
    for runtime in ("ONNX Runtime", "OpenVINO"):
        kind = f"{model} > {runtime}"
        paths += [f"{kind} > ms > redetr > ms", f"{kind} > ms > transformers > ms"]
        paths.append(f"{kind} > times faster > transformers")
    cells = "{:,.0f} ms | {:,.0f} ms | {}"
    return Bound(f"| {row} | {cells} | {cells} |", FAMILIES, plain(*paths))


def share(model: str, kind: str, side: str) -> str:
    return f"{model} > {kind} > share of the product rate > {side}"


CHOSEN = "2026-11-29-choices.json"
CHOICES = {  # rows of the table, and their names in the result
    "by itself": "auto",
    "fp32": "fp32, 2 threads, channels_last, attention fused",
    "bf16": "bf16, 2 threads, channels_last, attention written out",
    "fp32, one thread": "fp32, 1 thread, channels_last, attention fused",
    "bf16, one thread": "bf16, 1 thread, channels_last, attention written out",
    "fp32, `contiguous`": "fp32, 2 threads, contiguous, attention fused",
    "bf16, `contiguous`": "bf16, 2 threads, contiguous, attention written out",
    "fp32, attention written out": "fp32, 2 threads, channels_last, attention written out",
    "bf16, fused attention": "bf16, 2 threads, channels_last, attention fused",
}


def choice(row: str, name: str) -> Bound:
    """A row of the table of choices: the time of a step of both models."""
    times = plain(f"redetr_n > ms > {name} > ms", f"rtdetr_r18 > ms > {name} > ms")
    return Bound(f"| {row} | {{:.0f}} ms | {{:.0f}} ms |", CHOSEN, times)


DEMO = "2026-11-29-demo.json"


def demo(row: str, precision: str) -> Bound:
    """A row of the table of demos: seconds to 60 AP and in all, and the AP at the end."""
    keys = (
        Key(f"median seconds to AP 60 > {precision}"),
        Key(f"median seconds > {precision}"),
        Key(f"median AP > {precision}", 100),
    )
    return Bound(f"| {row} | {{:.0f}} s | {{:.0f}} s | {{:.1f}} |", DEMO, keys)


SHARES = "2026-11-29-shares.json"
MODELS_OF_SHARES = ("detr_r50", "redetr_n", "rtdetr_r18")


def spent(part: str) -> Bound:
    """A row of the table of what a step spends, of work that has a rate."""
    keys: list[Key] = []
    for model in MODELS_OF_SHARES:
        row = f"{model} > parts > {part}"
        keys += [Key(f"{row} > share", 100), Key(f"{row} > share of the product rate")]
    return Bound(f"| {part} |" + " {:.0f}% | {:.2f} |" * 3, SHARES, tuple(keys))


def spent_without_rate(part: str, models: tuple[str, ...] = MODELS_OF_SHARES) -> Bound:
    keys = percent(*(f"{model} > parts > {part} > share" for model in models))
    no_share = " | |" * (len(MODELS_OF_SHARES) - len(models))
    return Bound(f"| {part} |{no_share}" + " {:.0f}% | |" * len(models), SHARES, keys)


COMPILED = "2026-11-29-compiled-cpu.json"
WORKERS = "2026-11-29-workers.json"


def compiled(row: str, model: str) -> Bound:
    """A row of the table of what `--compile` gains."""
    keys = plain(
        f"{model} > ms > plain > ms",
        f"{model} > ms > compiled > ms",
        f"{model} > compiled, times as fast",
        f"{model} > seconds of the first step > compiled",
        f"{model} > seconds of the first step > compiled again",
    )
    return Bound(
        f"| {row} | {{:.0f}} ms | {{:.0f}} ms | {{:.2f}} | {{:.0f}} s | {{:.1f}} s |",
        COMPILED,
        keys,
    )


PIECES = {
    "evaluation, 1,000 images": "evaluation",
    "the same with the threshold": "evaluation, with the threshold",
    "matching and losses": "criterion",
    "loading and augmenting": "loader",
    "loading whole images": "loader, whole images",
    "check of headers": "check, headers",
    "check of headers and contents": "check, headers_and_content",
    "check with `--thorough`": "check, thorough",
    "check of images that were checked before": "check, remembered",
}


def beside_before(row: str, piece: str) -> Bound:
    """A row of the table of parts beside an earlier commit."""
    keys = plain(f"{piece} > times faster", f"{piece} > spread > 0", f"{piece} > spread > 1")
    return Bound(f"| {row} | {{:.2f}} | {{:.2f}} to {{:.2f}} |", "pieces-before", keys)


SPEED_FIGURES = [
    *(beside_before(row, piece) for row, piece in PIECES.items()),
    Bound(
        "medians of {} rounds, and the range of the middle half",
        "pieces-before",
        plain("setting > rounds"),
    ),
    Bound(
        "A training step of `redetr_n` is {:.2f} times as fast with 16 images of 128x128 and {:.2f} "
        "times with 8 of 320x320, one of DETR-R50 with two of 512x640 {:.2f} times (medians of {} "
        "rounds",
        "kept-memory",
        plain(
            "redetr_n, 16 of 128x128 > times faster",
            "redetr_n, 8 of 320x320 > times faster",
            "detr_r50, 2 of 512x640 > times faster",
            "rounds",
        ),
    ),
    compiled("`redetr_n`, 16 of 128x128", "redetr_n"),
    compiled("RT-DETR-R18, two of 320x320", "rtdetr_r18"),
    compiled("DETR-R50, two of 320x320", "detr_r50"),
    Bound(
        "medians of {} rounds (`benchmarks/compiled.py`",
        COMPILED,
        plain("redetr_n > ms > plain > n"),
    ),
    Bound(
        "{:.2f} times the speed in training `redetr_n` on digits, {:.2f} times on crowns (medians of "
        "{} rounds",
        WORKERS,
        plain("digits > none, times as fast", "crowns > none, times as fast", "rounds"),
    ),
    *(
        spent(part)
        for part in (
            "gradients of convolutions",
            "convolutions",
            "matrix products and attention",
        )
    ),
    spent_without_rate("element-wise operations, copies and the rest"),
    spent_without_rate("sampling of feature maps", MODELS_OF_SHARES[1:]),
    spent_without_rate("normalization"),
    spent_without_rate("optimizer"),
    Bound(
        "before each model, and varied: {:.0f}, {:.0f} and {:.0f} GFLOP/s",
        SHARES,
        plain(*(f"{model} > GFLOP/s of a product" for model in MODELS_OF_SHARES)),
    ),
    Bound(
        "multiplies large matrices at {:.0f} GFLOP/s in fp32 and {:.0f} in bf16",
        CHOSEN,
        plain("GFLOP/s of a product > fp32", "GFLOP/s of a product > bf16"),
    ),
    *(
        Bound(
            f"| {data} | {minutes} | {{:.1f}} | {{:.1f}} | {{:.1f}} |",
            YOLO,
            after_minutes(data, minutes),
        )
        for data in ("dense", "shapes")
        for minutes in (1, 2, 5)
    ),
    *(
        Bound(
            f"| {data} | {minutes} | {{:.1f}} | {{:.1f}} | {{:.1f}} |",
            YOLO_TWO,
            after_minutes(data, minutes, "2 threads"),
        )
        for data in ("dense", "shapes")
        for minutes in (1, 2, 5)
    ),
    Bound(
        "{:.1f}, {:.1f} and {:.1f} AP on *dense* and {:.1f}, {:.1f} and {:.1f} on *shapes*",
        YOLO_TWO_AGAIN,
        plain(
            *(
                f"median AP > {data}, {minutes} min, 2 threads > redetr_n"
                for data in ("dense", "shapes")
                for minutes in (1, 2, 5)
            )
        ),
    ),
    Bound("Ultralytics {}", YOLO, plain("ultralytics")),
    *(choice(row, name) for row, name in CHOICES.items()),
    Bound(
        "medians of {} rounds (`benchmarks/choices.py`", CHOSEN, plain("redetr_n > ms > auto > n")
    ),
    Bound(
        "{:.2f} times the speed of the best combination for `redetr_n`, and {:.2f} times for",
        CHOSEN,
        plain(
            *(f"{model} > auto, times as fast as the best" for model in ("redetr_n", "rtdetr_r18"))
        ),
    ),
    demo("fp32", "fp32"),
    demo("by itself", "auto"),
    Bound("all {:,} steps", DEMO, plain("runs > auto > 0 > curve > -1 > step")),
    Bound("each run chose {} by itself", DEMO, plain("runs > auto > 0 > precision")),
    Bound(
        "the choice is {:.2f} times as fast as fp32",
        DEMO,
        plain("auto, times as fast to AP 60"),
    ),
    family("training step, RT-DETR-R18, two images", "rtdetr_r18", "training step"),
    family("inference, RT-DETR-R18, one image", "rtdetr_r18", "inference"),
    family("training step, RT-DETR-R50, two images", "rtdetr_r50", "training step"),
    family("inference, RT-DETR-R50, one image", "rtdetr_r50", "inference"),
    *(exported(row, model) for row, model in MEMBERS.items()),
    Bound("medians of {} rounds (`benchmarks/families.py`)", FAMILIES, plain("setting > rounds")),
    family("training step, D-FINE-S, two images", "dfine_s", "training step"),
    family("inference, D-FINE-S, one image", "dfine_s", "inference"),
    Bound("Images are {}x{}", FAMILIES, plain("setting > height", "setting > width")),
    Bound(
        "at {:.2f} times the rate of a large matrix product in training and {:.2f} times in "
        "inference, "
        "Transformers at {:.2f} and {:.2f}",
        FAMILIES,
        plain(
            share("rtdetr_r18", "training step", "redetr"),
            share("rtdetr_r18", "inference", "redetr"),
            share("rtdetr_r18", "training step", "transformers, memory kept"),
            share("rtdetr_r18", "inference", "transformers, memory kept"),
        ),
    ),
    Bound(
        f"| training step, DETR-R50, {{}} x {{}}x{{}} | {ROW_OF_MS}",
        STEP,
        plain(
            "setting > batch_size",
            "setting > height",
            "setting > width",
            "steps > redetr > ms",
            "steps > 2020 > ms",
            "times faster > 2020",
            "steps > transformers > ms",
            "times faster > transformers",
        ),
    ),
    Bound(
        "| peak memory of the step | {:,} MB | {:,} MB | | {:,} MB | |",
        STEP,
        plain("peak MB > redetr", "peak MB > 2020", "peak MB > transformers"),
    ),
    Bound("did little else; medians of {} rounds", INFERENCE, plain("setting > rounds")),
    Bound("of {} rounds with eight images", EIGHT, plain("setting > rounds")),
    Bound("DETR-R50, {}x{}, one image", INFERENCE, plain("setting > height", "setting > width")),
    inference("memory kept", "redetr, memory kept"),
    inference("the same without keeping memory", "redetr"),
    inference(
        "the same with `keep_memory` (below) for all", "redetr, memory kept", ", memory kept"
    ),
    inference("the same as `redetr export --format openvino` writes it (bf16)", "redetr, OpenVINO"),
    eight_images("inference, eight images at once, memory kept", "redetr, memory kept"),
    eight_images("eight images without keeping memory", "redetr"),
    Bound(
        "with gradient | {} ms | {:.0f} ms | {} | {:.0f} ms | {} |",
        "criterion-cpu",
        plain(
            "forward and backward > redetr > ms",
            "forward and backward > 2020 > ms",
            "times faster > 2020",
            "forward and backward > transformers > ms",
            "times faster > transformers",
        ),
    ),
    Bound(
        "per second of processor time | {} | {} | {} | | |",
        "loader",
        plain(
            "in process > redetr > images_per_s",
            "in process > original > images_per_s",
            "ratios > to the original",
        ),
    ),
    Bound(
        "| the same without crops | {} | | | {} | {} |",
        "loader",
        plain(
            "in process > redetr, whole > images_per_s",
            "in process > transformers (torchvision), whole > images_per_s",
            "ratios > to transformers, whole images",
        ),
    ),
    Bound(
        "{:,} images with {} detections each, from tensors to the COCO numbers, takes {:.2f} s; "
        "pycocotools takes {:.1f} times as long",
        "-evaluation",
        (
            *plain("images", "detections"),
            Key("evaluation > redetr > ms", 1e-3),
            Key("times faster > pycocotools"),
        ),
    ),
    Bound(
        "Transformers' model takes {:.0f} ms in ONNX Runtime and {:.0f} ms in OpenVINO; the files "
        "that `redetr export` writes take {:.0f} ms and {:.0f} ms",
        INFERENCE,
        plain(
            f"{ONE_IMAGE} > transformers, ONNX Runtime > ms",
            f"{ONE_IMAGE} > transformers, OpenVINO > ms",
            f"{ONE_IMAGE} > redetr, ONNX Runtime > ms",
            f"{ONE_IMAGE} > redetr, OpenVINO > ms",
        ),
    ),
    Bound(
        "DETR-R50 at {}x{} takes {} billion floating-point operations",
        INFERENCE,
        plain("setting > height", "setting > width", f"{LIMIT} > GFLOP"),
    ),
    Bound("these take {:.0f} ms", INFERENCE, plain(f"{LIMIT} > ms at that rate")),
    Bound(
        "{:.0f}% of that rate without keeping memory, {:.0f}% with memory kept and {:.0f}% in ONNX "
        "Runtime.",
        INFERENCE,
        percent(
            f"{LIMIT} > share reached > redetr",
            f"{LIMIT} > share reached > redetr, memory kept",
            f"{LIMIT} > share reached > redetr, ONNX Runtime",
        ),
    ),
    Bound(
        "A training step takes {} billion operations, {:,.0f} ms at that rate, of which redetr "
        "reaches {:.0f}%. In fp32, the limit is {:.1f} times the speed of 2020",
        STEP,
        (
            *plain("limit > GFLOP > redetr", "limit > ms at that rate"),
            Key("limit > share reached", 100),
            Key("limit > times faster at that rate > 2020"),
        ),
    ),
    Bound(
        "on {} images of {}x{}, with PyTorch 2.11; medians of {} rounds",
        GPU_FP32,
        plain("setting > batch_size", "setting > height", "setting > width", "setting > rounds"),
    ),
    Bound(
        f"| fp32 | {ROW_OF_MS} | |",
        GPU_FP32,
        plain(
            "steps > redetr > ms",
            "steps > 2020 > ms",
            "times faster > 2020",
            "steps > transformers > ms",
            "times faster > transformers",
        ),
    ),
    Bound("| fp32, rounded to TF32 | {:.0f} ms |", GPU_FP32, plain("steps > redetr, TF32 > ms")),
    Bound(
        f"| bf16 | {ROW_OF_MS} {{:,.0f}} ms | {{:.2f}} |",
        GPU_BF16,
        plain(
            "steps > redetr > ms",
            "steps > 2020 > ms",
            "times faster > 2020",
            "steps > transformers > ms",
            "times faster > transformers",
            "steps > transformers, bf16 > ms",
            "times faster > transformers, bf16",
        ),
    ),
    Bound(
        "| peak memory in fp32 | {:,} MB | {:,} MB | | {:,} MB |",
        GPU_FP32,
        plain("peak MB > redetr", "peak MB > 2020", "peak MB > transformers"),
    ),
    Bound(
        "| peak memory in bf16 | {:,} MB | {:,} MB | | {:,} MB | | {:,} MB |",
        GPU_BF16,
        plain(
            "peak MB > redetr",
            "peak MB > 2020",
            "peak MB > transformers",
            "peak MB > transformers, bf16",
        ),
    ),
    Bound(
        "{:.0f}% of the rate of a large matrix product in fp32",
        GPU_FP32,
        percent("limit > share reached"),
    ),
    Bound("but only {:.0f}% in bf16", GPU_BF16, percent("limit > share reached")),
    Bound(
        "from {:.0f} to {:.0f} ms in bf16",
        GPU_BF16,
        plain("steps > redetr > spread > 0", "steps > redetr > spread > 1"),
    ),
    Bound(
        "at {:.0f} TFLOP/s in fp32, {:.0f} in TF32 and {:.0f} in bf16",
        "rates-cuda",
        plain(
            "TFLOP/s of a matrix product > fp32",
            "TFLOP/s of a matrix product > tf32",
            "TFLOP/s of a matrix product > bf16",
        ),
    ),
    Bound(
        "its load had been {:.1f} in the five minutes before", BUSY, plain("load at the start > 1")
    ),
    busy("two, spinning as libgomp does by default", "2 threads, libgomp's default"),
    busy("two, `GOMP_SPINCOUNT=10000`", "2 threads, GOMP_SPINCOUNT 10000"),
    busy("two, `GOMP_SPINCOUNT=1000`", "2 threads, GOMP_SPINCOUNT 1000"),
    busy("two, `GOMP_SPINCOUNT=0`", "2 threads, GOMP_SPINCOUNT 0"),
    busy("one", "1 thread"),
    Bound(
        "| as `redetr train` chooses beside another program | | {:.1f} |",
        BUSY,
        plain("beside one more > auto > images/s"),
    ),
]

LAYOUTS = ("1x1", "2x1", "3x1", "4x1", "1x2", "1x4", "2x2")
EXACTNESS_FIGURES = [
    exactness("redetr", "redetr", "{:.0e}"),
    exactness("the original's rules", "original", "{:.2f}"),
    exactness("redetr, RT-DETR", "redetr", "{:.1e}", EXACT_RTDETR),
    exactness("Transformers 5.24, RT-DETR", "transformers", "{:.2f}", EXACT_RTDETR),
    exactness("redetr, D-FINE", "redetr", "{:.1e}", EXACT_DFINE),
    exactness("Transformers 5.24, D-FINE", "transformers", "{:.2f}", EXACT_DFINE),
    Bound(
        "| Transformers 5.23 | {:.2f}, the box head's gradient {:.1f} times too large | {:.2f} |",
        EXACT,
        plain(
            f"{ON_TWO_RANKS} > transformers > all",
            f"{ON_TWO_RANKS} > transformers > box_head_factor",
            f"{ON_TWO_STEPS} > transformers > all",
        ),
    ),
]
for layout in LAYOUTS:
    ranks, micro_batches = layout.split("x")
    row = f"| {ranks} x {micro_batches} | {{:.1e}} | {{:.1e}} |"
    errors = plain(f"grid > detr_r50 > {layout} > fp64", f"grid > detr_r50 > {layout} > fp32")
    EXACTNESS_FIGURES.append(Bound(row, EXACT, errors))


def family_errors(recipe: str, layout: str) -> str:
    """The cells of a family in its grid, which is a file of results of its own."""
    file = EXACT_RTDETR if recipe.startswith("rtdetr") else EXACT_DFINE
    grid = f"grid > {recipe} > {layout}"
    return Bound("{:.1e} | {:.1e}", file, plain(f"{grid} > fp64", f"{grid} > fp32")).printed()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_of_the_families_are_those_of_their_results(layout):
    cells = [
        family_errors(recipe, layout) for recipe in ("rtdetr_r18_finetune", "dfine_s_finetune")
    ]
    row = f"| {layout.replace('x', ' x ')} | {cells[0]} | {cells[1]} |"
    assert row in EXACTNESS


START = "-start"


def start_row(text: str, start: str) -> Bound:
    """A row of the table of starts: seconds before and now, and their ratio."""
    keys = plain(f"{start} > before > processor_s", f"{start} > now > processor_s")
    return Bound(
        f"| {text} | {{:.1f}} s | {{:.1f}} s | {{:.2f}} |", START, (*keys, Key(f"{start} > ratio"))
    )


SCALING_FIGURES = [
    Bound(
        "{:,} images and {:,} boxes, or as many in YOLO format",
        START,
        plain("setting > images", "setting > boxes"),
    ),
    Bound("medians of {} rounds", START, plain("setting > rounds")),
    start_row("COCO, first", "COCO, first"),
    start_row("COCO, later", "COCO, second"),
    start_row("YOLO, first", "YOLO, first"),
    start_row("YOLO, later", "YOLO, second"),
    start_row("8 images", "few images, second"),
]

PAGES = {"README": README, "speed": SPEED, "exactness": EXACTNESS, "scaling": SCALING}
FIGURES = {
    "README": README_FIGURES,
    "speed": SPEED_FIGURES,
    "exactness": EXACTNESS_FIGURES,
    "scaling": SCALING_FIGURES,
}
ALL_FIGURES = [(page, bound) for page, bounds in FIGURES.items() for bound in bounds]

# Numbers that name or count something; none of them was measured.
NAMED = {
    "README": {"0", "1", "2", "2020"},  # seeds, ranks and accumulation steps, the original
    "speed": {
        "2020",
        "6",  # layers
        "16",  # images
        "20",  # boxes
        "640x480",
        "2.6",  # million parameters of YOLO11n and YOLO26n
        "128x128",
        "2,000",  # images that it learns from, and is measured on
        "300",
        "320x320",
        "512x640",
        "60",  # AP that the demo reaches
    },
}


def one_line(text: str) -> str:
    return " ".join(text.split())


def without_code(text: str) -> str:
    """Without blocks, names in backquotes, and the addresses of links."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "``", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def measured_part(page: str) -> str:
    """The README's first screen and measurements, or all of another page."""
    text = f"{FIRST_SCREEN}\n{MEASURED}" if page == "README" else PAGES[page]
    return one_line(without_code(text))


def numbers_in(text: str) -> set[str]:
    """All numbers but those inside of a name, such as AP50, ResNet-50 and H200."""
    return set(re.findall(r"(?<![\w.-])\d(?:[\d.,x]*\d)?(?:e-\d+)?", text))


def unbound_numbers(page: str, text: str) -> set[str]:
    """The numbers of `text` outside of the bound figures of a page, longest piece first."""
    pieces = [without_code(bound.printed()) for bound in FIGURES[page]]
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, "")
    return numbers_in(text)


@pytest.mark.parametrize(("page", "bound"), ALL_FIGURES, ids=lambda value: str(value)[:60])
def test_a_figure_is_that_of_its_result(page, bound):
    assert bound.printed() in one_line(PAGES[page])


@pytest.mark.parametrize("page", NAMED)
def test_every_measured_figure_is_bound_to_a_result(page):
    assert unbound_numbers(page, measured_part(page)) == NAMED[page]


def test_a_changed_figure_would_be_noticed():
    text = measured_part("README").replace("2,003 ms", "2,004 ms").replace("73.3 AP", "73.4 AP")
    assert {"2,004", "73.4"} <= unbound_numbers("README", text)


def test_results_of_the_gpu_are_of_the_card_and_version_that_pages_name():
    for name in (GPU_FP32, GPU_BF16, "rates-cuda"):
        content = json.loads(max(RESULTS.glob(f"*-{name}.json")).read_text())
        assert content["machine"]["gpu"] == "NVIDIA H200"
        assert content["versions"]["torch"].startswith("2.11.")
    assert "NVIDIA H200" in README
    assert "NVIDIA H200" in SPEED


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
    assert README.count("\n") <= 228


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
