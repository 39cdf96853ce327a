"""Makes the pictures of the documentation by the commands that it describes: `make docs-pictures`.

They show `runs/demo`, which is made first if it is not there (three to four minutes on two cores).
Pages are photographed in a headless Chromium (Debian: chromium, chromium-driver).
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
RUN = "runs/demo"
COMMANDS = (
    "check crowns --report runs/pictures/check --augment",
    f"predict {RUN}/best.pt examples/digits.png --threshold 0.4 --output runs/pictures/predictions "
    "--overwrite",
    f"evaluate {RUN}/best.pt --report runs/pictures/report",
    f"explain {RUN}/best.pt --data digits --image-id 150 --world-size 2 --output "
    "runs/pictures/loss",
    f"explain {RUN}/best.pt examples/digits.png --output runs/pictures/explained",
)
APP = f"app {RUN}/best.pt --port 0"
# Pictures that commands write, by the name they get here.
WRITTEN = {
    "curves": f"{RUN}/curves.png",
    "demo": f"{RUN}/predictions.png",
    "check": "runs/pictures/check/sheet.png",
    "augmented": "runs/pictures/check/augmented.png",
    "predict": "runs/pictures/predictions/digits.png",
}
_SEEN_PX, _KEPT_PX = 1400, 1200  # widths
_DIGIT = 0.29, 0.73  # where examples/digits.png shows a 5, as fractions of its sides


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for command in (*([] if (ROOT / RUN / "best.pt").exists() else ["demo"]), *COMMANDS):
        print("redetr", command, flush=True)
        subprocess.run(_words(command), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for name, path in WRITTEN.items():
        save(name, Image.open(ROOT / path))
    with chromium() as browser:
        for name, photograph in PHOTOGRAPHED.items():
            save(name, photograph(browser))


def save(name: str, picture: Image.Image) -> None:
    """As JPEG, no wider than a page needs it."""
    picture = picture.convert("RGB")
    picture.thumbnail((_KEPT_PX, 10 * _KEPT_PX), Image.Resampling.LANCZOS)
    picture.save(IMAGES / f"{name}.jpg", quality=70, optimize=True)
    print(f"docs/images/{name}.jpg: {(IMAGES / f'{name}.jpg').stat().st_size // 1024} KB")


def report(browser: webdriver.Chrome) -> Image.Image:
    """The head of the page."""
    _open(browser, "runs/pictures/report/index.html", height=960)
    return _seen(browser)


def report_images(browser: webdriver.Chrome) -> Image.Image:
    """Images with their mistakes marked, from the end of the same page."""
    _open(browser, "runs/pictures/report/index.html", height=800)
    _scroll(browser, ".scenes", above=60)
    return _seen(browser)


def loss(browser: webdriver.Chrome) -> Image.Image:
    """Costs, and who got which object."""
    _open(browser, "runs/pictures/loss/loss.html", height=1100)
    _wait(browser, lambda: _one(browser, "[data-part=terms]").text)
    _scroll(browser, "[data-part=objects]", above=20)
    return _seen(browser)


def explain(browser: webdriver.Chrome) -> Image.Image:
    """A digit was clicked; the points that its query read."""
    _open(browser, "runs/pictures/explained/index.html", height=640)
    _click_digit(browser)
    return _seen(browser)


def app(browser: webdriver.Chrome) -> Image.Image:
    """The page of `redetr app` with an image and what was found in it."""
    with subprocess.Popen(_words(APP), cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        (address,) = re.findall(r"http://\S+", server.stdout.readline())
        try:
            _size(browser, height=800)
            browser.get(address)
            _one(browser, "#file").send_keys(str(ROOT / "examples/digits.png"))
            _wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#rows tr"))
            return _seen(browser)
        finally:
            server.terminate()


PHOTOGRAPHED: dict[str, Callable[[webdriver.Chrome], Image.Image]] = {
    "report": report,
    "report-images": report_images,
    "explain": explain,
    "loss": loss,
    "app": app,
}


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    with webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    ) as browser:
        yield browser


def _words(command: str) -> list[str]:
    return [sys.executable, "-m", "redetr", *shlex.split(command)]


def _open(browser: webdriver.Chrome, path: str, height: int) -> None:
    _size(browser, height)
    browser.get((ROOT / path).as_uri())


def _size(browser: webdriver.Chrome, height: int) -> None:
    view = {"width": _SEEN_PX, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})


def _seen(browser: webdriver.Chrome) -> Image.Image:
    return Image.open(io.BytesIO(browser.get_screenshot_as_png()))


def _one(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def _wait(browser: webdriver.Chrome, until: Callable[[], object]) -> None:
    WebDriverWait(browser, 60).until(lambda _: until())


def _scroll(browser: webdriver.Chrome, selector: str, above: int) -> None:
    """The element comes to stand at the top, with so many pixels above it."""
    browser.execute_script("scrollBy(0, arguments[0].getBoundingClientRect().top - arguments[1])",
                           _one(browser, selector), above)  # fmt: skip


def _click_digit(browser: webdriver.Chrome) -> None:
    """In the page of `redetr explain`, which then shows where the query of that digit looks."""
    _wait(browser, lambda: _one(browser, "[data-part=steps]").text)
    stage = _one(browser, "[data-part=stage]")
    offset = (
        round((place - 0.5) * stage.size[side])
        for place, side in zip(_DIGIT, ("width", "height"), strict=True)
    )
    ActionChains(browser).move_to_element_with_offset(stage, *offset).click().perform()
    _scroll(browser, "h2:has([data-part=chosen])", above=20)


if __name__ == "__main__":
    main()
