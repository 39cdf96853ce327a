"""How fast does this machine multiply? Products of large matrices in fp32, TF32 and bf16, and a
copy within memory.

    python benchmarks/rates.py --device cuda

These are the ceilings that "share reached" in the other results refers to. Writes
results/DATE-rates-DEVICE.json.
"""

import argparse
import shutil
import subprocess
import time
from statistics import median

import stand_ins  # noqa: F401 (before anything of redetr)
import torch
from interleaved import wait
from limits import matrix_rate
from record import record

_COPIED = {"cpu": 2**26, "cuda": 2**32}  # bytes: far more than any cache holds


def copy_rate(device: str, tries: int) -> float:
    """Bytes per second, each counted once as read and once as written."""
    source = torch.ones(_COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(tries + 2):
        wait()
        started = time.perf_counter()
        target.copy_(source)
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * source.numel() / median(seconds[2:])


def product_rates(device: str, tries: int) -> dict[str, float]:
    """Operations per second by precision."""
    rates = {"fp32": matrix_rate(device, torch.float32, tries)}
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = matrix_rate(device, torch.float32, tries)
        torch.set_float32_matmul_precision("highest")
    rates["bf16"] = matrix_rate(device, torch.bfloat16, tries)
    return rates


def card() -> str:
    """The GPU as described by nvidia-smi; empty if there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    fields = "name,memory.total,driver_version,power.limit,clocks.max.sm"
    run = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tries", type=int, default=15)
    arguments = parser.parse_args()
    products = product_rates(arguments.device, arguments.tries)
    content = {
        "card": card(),
        "n": arguments.tries,
        "TFLOP/s of a matrix product": {
            name: round(rate / 1e12, 3) for name, rate in products.items()
        },
        "GB/s of a copy, read and written": round(
            copy_rate(arguments.device, arguments.tries) / 1e9, 1
        ),
    }
    record(f"rates-{arguments.device}", content)


if __name__ == "__main__":
    main()
