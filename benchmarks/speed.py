"""How many images a second each model answers, as `redetr models` shows it: one image of its
default size at a time.

    python benchmarks/speed.py

On one core, in fp32, made ready by `for_inference`; random weights, which do not change the time;
the model alone, without decoding and resizing. Counted is the time that the core spent on it, not
what passed: other work on the machine hardly changes that. Writes results/DATE-speed.json, and from
it `redetr/models/measured.json`.
"""

import argparse
import json
from statistics import median
from time import process_time

import torch
from record import machine, record

from redetr.commands.models import MEASURED
from redetr.detector.inference import for_inference
from redetr.files import write_json
from redetr.models import MODELS, build


def seconds(name: str, rounds: int) -> list[float]:
    """Of each round but the first, which warms up."""
    model = for_inference(build(name, 80))
    image = torch.randn(1, 3, model.image_size, model.image_size).contiguous(
        memory_format=torch.channels_last
    )
    found = []
    with torch.inference_mode():
        for _ in range(1 + rounds):
            start = process_time()
            model(image)
            found.append(process_time() - start)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times = {name: seconds(name, arguments.rounds) for name in MODELS}
    per_second = {name: float(f"{1 / median(each):.2g}") for name, each in times.items()}
    path = record("speed", {"seconds": times, "images_per_s": per_second})
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    measured["speed"] = {
        "images_per_s": per_second,
        "hardware": f"one core of {machine()['cpu']}",
        "date": path.name[:10],
        "source": f"benchmarks/results/{path.name}",
    }
    write_json(MEASURED, measured)


if __name__ == "__main__":
    main()
