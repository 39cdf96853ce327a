"""How many images per second does `redetr train` process in each precision, and with how much
memory?

    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --device cuda --modes bf16 bf16-compiled

100 steps of redetr_n on handwritten digits, including loading, matching, the optimizer and the log.
Each mode is a process. The first fifth of the steps is warm-up and is not counted; its time, which
includes compilation, is reported separately. "tf32" lets matrix products and convolutions round to
TF32, which `--precision fp32` never does; on a CPU, both are the same. Writes
results/DATE-throughput-DEVICE.json.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import record

import redetr
from redetr import precision
from redetr.memory import keep_memory
from redetr.recipes import get_recipe

MODES = ("fp32", "tf32", "bf16", "bf16-compiled")


def round_to_tf32() -> None:
    """Lets `redetr.train` round products to TF32; convolutions do so by PyTorch's default."""
    products: Any = precision._FP32_PRODUCTS
    products.make_exact = lambda: None
    products.restore = lambda: None
    torch.set_float32_matmul_precision("high")


def train(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The log of a run in this mode, and its peak memory."""
    keep_memory()
    if mode == "tf32":
        round_to_tf32()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            get_recipe(arguments.model),
            data="digits",
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            image_size=arguments.image_size,
            precision="bf16" if mode.startswith("bf16") else "fp32",
            compile=mode.endswith("compiled"),
            device=arguments.device,
            log_every=max(1, arguments.steps // 5),
            eval_every=arguments.steps,
            output=folder,
        )
        redetr.train(config)
        lines = [
            json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()
        ]
    training = [line for line in lines if "images_per_s" in line]
    counted = training[1:]
    speeds = [line["images_per_s"] for line in counted]
    peak_mb = torch.cuda.max_memory_allocated() / 1e6 if arguments.device == "cuda" else None
    return {
        "images/s": round(median(speeds), 1),
        "n": len(speeds),
        "spread": [min(speeds), max(speeds)],
        "share of waiting for data": median(line["data_wait"] for line in counted),
        "s of the first fifth": training[0]["time_s"],
        "peak MB": peak_mb and round(peak_mb),
        "losses": [line["loss"] for line in training],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="redetr_n", help="a recipe")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=128)
    arguments = parser.parse_args()
    results = {}
    for mode in arguments.modes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            results[mode] = process.submit(train, mode, arguments).result()
        print(mode, results[mode], flush=True)
    record(f"throughput-{arguments.device}", {"setting": vars(arguments), "modes": results})


if __name__ == "__main__":
    main()
