"""What does reading images from tar archives instead of files cost or save?

    python benchmarks/shards.py

1,000 made-up photographs of 640x480, 155 kB each (made from 20 different ones), as files in a
folder, as archives of 32 MB that `redetr convert --shards` writes, and the same archives behind a
web server in another process on this machine. Each side reads all images in the same random order,
in runs of 250, and the sides take turns. "read" is the bytes alone, "cold" the same after the
system was asked to drop them from memory, and "decoded" the images as a loader process gets them;
images per second of wall time, medians of the runs, and the ratio of each side to the folder, the
median over runs that lie side by side. Also how long the first opening takes (the archives are
listed) and a later one, in another process. Writes results/DATE-shards.json.
"""

import functools
import http.server
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loader import photograph
from record import record

from redetr.data import open_dataset
from redetr.data.archives import open_data_file, split_path
from redetr.data.dataset import DetectionDataset
from redetr.data.formats.writing import convert

IMAGES, DIFFERENT, RUN, ROUNDS = 1000, 20, 250, 3


class PartsHandler(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, which Python's handler does not support."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size
        span = self.headers["Range"]
        first, last = 0, size - 1
        if span:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            last = min(last, size - 1)
        with open(path, "rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        self.send_response(206 if span else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def serve(folder: Path, queue: multiprocessing.Queue) -> None:
    handler = functools.partial(PartsHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    queue.put(server.server_port)
    server.serve_forever()


def write_folder(root: Path) -> None:
    contents = []
    for seed in range(DIFFERENT):
        file = root.parent / "photograph.jpg"
        photograph(seed).save(file, quality=90)
        contents.append(file.read_bytes())
    for split, count in {"train": IMAGES, "val": 1}.items():
        (root / split).mkdir(parents=True)
        rows = []
        for i in range(count):
            name = f"{i:06d}.jpg"
            (root / split / name).write_bytes(contents[i % DIFFERENT])
            rows.append({"id": i, "file_name": name, "width": 640, "height": 480})
        box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 50, 50]}
        document = {"images": rows, "annotations": [box]}
        document["categories"] = [{"id": 1, "name": "thing"}]
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))


def read(data: DetectionDataset, index: int) -> int:
    with open_data_file(data.path(index)) as file:
        return len(file.read())


def drop_from_memory(data: DetectionDataset, order: list[int]) -> None:
    """Asks the system to drop the files of these images, or their archives, from memory."""
    files = set()
    for index in order:
        parts = split_path(data.path(index))
        files.add(parts[0] if parts else str(data.path(index)))
    for name in files:
        file = os.open(name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def speed(data: DetectionDataset, order: list[int], look: Callable[..., object]) -> float:
    start = time.perf_counter()
    for index in order:
        look(data, index)
    return len(order) / (time.perf_counter() - start)


def decoded(data: DetectionDataset, index: int) -> object:
    return data.sample(index)


def opening_s(source: str, queue: multiprocessing.Queue) -> None:
    start = time.perf_counter()
    open_dataset(source, "train")
    queue.put(round(time.perf_counter() - start, 3))


def in_process(function: Callable[..., None], *arguments: object) -> object:
    """The value that a function puts into its queue in a new process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    process.start()
    answer = queue.get()
    process.join()
    return answer


def compare(sides: dict[str, DetectionDataset], kind: str) -> dict[str, object]:
    """Images per second of each side, and its ratio to the folder."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    look = decoded if kind == "decoded" else read
    for number in range(ROUNDS * IMAGES // RUN):
        order = random.Random(number).sample(range(IMAGES), RUN)
        for name, data in sides.items():
            if kind == "cold":
                drop_from_memory(data, order)
            speeds[name].append(speed(data, order, look))
    result: dict[str, object] = {}
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, speeds["folder"], strict=True)]
        result[name] = {
            "images_per_s": round(statistics.median(values)),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return result


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="redetr-shards-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    context = multiprocessing.get_context("fork")
    try:
        write_folder(folder / "files")
        convert(folder / "files", folder / "shards", "coco", shard_bytes=32_000_000)
        ports = context.Queue()
        server = context.Process(target=serve, args=(folder / "shards", ports), daemon=True)
        server.start()
        sources = {
            "folder": str(folder / "files"),
            "archives": str(folder / "shards"),
            "server": f"http://127.0.0.1:{ports.get()}",
        }
        openings = {}
        for name, source in sources.items():
            openings[name] = [in_process(opening_s, source) for _ in ("first", "later")]
        sides = {name: open_dataset(source, "train") for name, source in sources.items()}
        on_disk = {name: data for name, data in sides.items() if name != "server"}
        content = {
            "images": IMAGES,
            "read": compare(sides, "read"),
            "cold": compare(on_disk, "cold"),
            "decoded": compare(sides, "decoded"),
            "opening_s": openings,
        }
        server.kill()
    finally:
        shutil.rmtree(folder)
    record("shards", content)


if __name__ == "__main__":
    main()
