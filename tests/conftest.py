"""What every test gets: few threads, no network, and a tiny data set in COCO form."""

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from selenium import webdriver

from redetr import trial
from redetr.data.formats import digits
from redetr.memory import keep_memory
from tests.skips import SkipReport, pytest_addoption  # noqa: F401 - pytest looks for that hook here

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# The same examples in every run, and none too slow: a busy machine is no failure.
settings.register_profile("redetr", deadline=None, derandomize=True, database=None)
settings.load_profile("redetr")

CATEGORIES = {7: "cup", 12: "plate", 90: "spoon"}  # ids with gaps, as in COCO
SIZES = ((64, 48), (48, 64), (80, 56), (64, 64), (40, 72), (56, 80))  # width, height


def pytest_configure(config: pytest.Config) -> None:
    """Sets up every process of the tests.

    They compute in one thread unless OMP_NUM_THREADS gives another number: the tensors are small,
    and threads that compete with another process for cores are far slower. What is remembered of
    image files goes to a folder that is deleted at the end.
    """
    gc.set_threshold(20_000, 20, 50)  # tests make many small objects: a tenth of the time
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask a server for its newest version
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_memory()  # page faults took a tenth of the time
    trial._MOST_S = 0.0  # one round of each trial: no test needs to know what is faster
    # Started in the background of a shell, tests ignore Ctrl-C, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cache = tempfile.TemporaryDirectory(prefix="redetr-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = cache.name
    if not hasattr(config, "workerinput"):  # of xdist: this process reports
        config.pluginmanager.register(SkipReport(config))
    elif config.args == config.getini("testpaths"):
        config.args = _files_of_worker(config)


def _files_of_worker(config: pytest.Config) -> list[str]:
    """All files of tests; every worker of xdist begins with another.

    The first that reads a file compiles its asserts, which takes most of the time, and leaves the
    result in `__pycache__` for the others.
    """
    files = sorted(str(path) for path in (config.rootpath / "tests").rglob("test_*.py"))
    number = int(config.workerinput["workerid"].removeprefix("gw"))
    first = len(files) * number // config.workerinput["workercount"]
    return files[first:] + files[:first]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as some tests wait most of their time."""
    return (os.cpu_count() or 1) + 1


# The files with a test in a browser, which takes seconds to start.
_IN_A_BROWSER = (
    "test_accessibility",
    "test_app",
    "test_check",
    "test_contact_sheet",
    "test_explain_page",
    "test_report",
    "test_report_masks",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out files in the order of collection; one process takes all that need a browser.

    By default, the files of most tests come first. Those of the longest tests would be the last.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "browser" if Path(file).stem in _IN_A_BROWSER else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


# The longest first: those of more than 8 s on a quiet machine.
_LONG = (
    "test_export",
    "test_cli",
    "test_exactness",
    "test_app",
    "test_docs",
    "test_hosts",
    "test_models",
    "test_transformers",
    "test_rtdetr",
    "test_explain_page",
    "test_predict",
    "test_failures",
    "test_launch",
    "test_damaged",
    "test_fuzz",
    "test_weights",
    "test_imports",
    "test_denoising",
    "test_rtdetr_model",
    "test_detr_segmentation",
    "test_loader",
    "test_app_hostile",
    "test_run_pictures",
    "test_dependencies",
    "test_dfine_model",
    "test_compile",
    "test_examples",
    "test_demo",
    "test_benchmarks",
    "test_inference",
    "test_dfine",
    "test_accessibility",
    "test_hostile",
    "test_check",
    "test_rank_failures",
    "test_loader_failures",
    "test_image_size",
    "test_finetune",
    "test_bands",
    "test_table_transformer",
    "test_test_split",
    "test_export_masks",
    "test_precision",
    "test_mask_head",
    "test_origins",
    "test_mask_metrics",
    "test_masks_on_the_command_line",
    "test_report",
    "test_damaged_masks",
    "test_official_layout",
    "test_loggers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: at the end, one of them would keep a single core
    busy."""
    rank = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(_LONG)), item.path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the imports and the collection make stays until the end: the garbage collector need not
    look at it, neither now nor in every test, and the processes that tests fork share its
    memory."""
    gc.disable()  # a fifth of the time
    outcome = yield
    gc.freeze()
    gc.enable()
    gc.set_threshold(700, 10, 100)  # of the oldest objects, a tenth of the usual collections
    return outcome


@pytest.fixture(scope="session")
def strict_python(pytestconfig: pytest.Config) -> list[str]:
    """The command of a Python in which warnings are errors, except those that pytest is to list."""
    listed = pytestconfig.getoption("pythonwarnings") or []
    return [sys.executable, "-W", "error", *(f"-W{warning}" for warning in listed)]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[webdriver.Chrome]":
    """A headless Chromium that reaches nothing but this machine; `get_log("browser")` is its
    console."""
    from selenium import webdriver  # a machine with a GPU runs its tests without it

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium with its driver here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1300,1000", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE "
                                                "127.0.0.1",
                     # a camera
                     "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                     f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A folder in COCO form: 8 training and 5 validation images of several sizes, every third
    without objects."""
    return write_tiny_coco(tmp_path / "tiny")


@pytest.fixture(scope="session")
def shared_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder for all tests that leave it as it is."""
    return write_tiny_coco(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """The digits have 30 validation images instead of 300."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(digits._DEFAULT_SIZES, "val", 30)
        yield


def write_tiny_coco(root: Path) -> Path:
    """Coloured rectangles on noise; the boxes are theirs. Returns `root`."""
    for seed, (split, count) in enumerate({"train": 8, "val": 5}.items()):
        random = np.random.default_rng(seed)
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            pixels = random.integers(90, 140, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if number % 3 == 2 else 1 + number % 3):
                box, category = (
                    _random_box(random, width, height),
                    int(random.choice(list(CATEGORIES))),
                )
                x, y, w, h = box
                pixels[y : y + h, x : x + w] = [
                    250 if category == other else 10 for other in CATEGORIES
                ]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": 100 + number,
                        "category_id": category,
                        "bbox": box,
                    }
                )
            name = f"{split}-{number}.jpg"
            Image.fromarray(pixels).save(root / split / name, quality=90)
            images.append({"id": 100 + number, "file_name": name, "width": width, "height": height})
        categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
        (root / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def _random_box(random: np.random.Generator, width: int, height: int) -> list[int]:
    w, h = int(random.integers(12, width // 2)), int(random.integers(12, height // 2))
    return [int(random.integers(0, width - w)), int(random.integers(0, height - h)), w, h]
