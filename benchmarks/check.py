"""How fast does `redetr check` read the headers of images, compared with decoding the images?

    python benchmarks/check.py

JPEG photographs of 640x480 px, in the page cache; each side runs `ROUNDS` times, in turns. Writes
results/DATE-check.json with the images per second of the best round and of all rounds, and the CPU
time per image, which depends less on other load.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from record import record

from redetr.data import open_dataset
from redetr.data.header_cache import HeaderCache
from redetr.data.headers import read_headers
from redetr.data.images import read_image
from redetr.pages.drawing import to_pil

IMAGES, ROUNDS = 2000, 5
SIZE = (640, 480)


def write_photographs(folder: Path, count: int = IMAGES) -> list[str]:
    """Writes different parts of the aerial photographs of `crowns`."""
    tiles = open_dataset("crowns", "train")
    names = []
    for number in range(count):
        tile = to_pil(tiles.image(number % len(tiles)))
        left, top = number // len(tiles) % 100, number // len(tiles) // 100 * 20
        photograph = tile.crop((left, top, left + 320, top + 240)).resize(SIZE)
        names.append(f"{number:05d}.jpg")
        photograph.save(folder / names[-1], quality=92)
    return names


def sides(folder: Path, names: list[str]) -> dict[str, Callable[[], object]]:
    def afresh(**options: bool) -> None:
        shutil.rmtree(HeaderCache(folder).folder, ignore_errors=True)
        read_headers(folder, names, **options)

    # "remembered" has to follow "thorough", which fills the cache.
    return {
        "headers": afresh,
        "headers_and_content": lambda: afresh(content=True),
        "thorough": lambda: afresh(content=True, looks=True),
        "remembered": lambda: read_headers(folder, names, content=True, looks=True),
        "decoded_one_by_one": lambda: [read_image(folder / name) for name in names],
    }


def measure(folder: Path) -> dict[str, object]:
    names = write_photographs(folder)
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for side, run in sides(folder, names).items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken.setdefault(side, []).append(
                (time.perf_counter() - wall, time.process_time() - cpu)
            )
    rates = {
        side: sorted(round(IMAGES / wall) for wall, _ in rounds) for side, rounds in taken.items()
    }
    return {
        "n": ROUNDS,
        "images": IMAGES,
        "size": SIZE,
        "bytes_per_image": sum((folder / name).stat().st_size for name in names) // IMAGES,
        "images_per_s": {side: {"best": rate[-1], "all": rate} for side, rate in rates.items()},
        "cpu_us_per_image": {
            s: round(min(cpu for _, cpu in rounds) / IMAGES * 1e6) for s, rounds in taken.items()
        },
        "headers_over_decoding": round(rates["headers"][-1] / rates["decoded_one_by_one"][-1], 1),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        (Path(place) / "images").mkdir()
        record("check", measure(Path(place) / "images"))
