"""Every page, on a desk and on a phone: by axe-core, without findings that keep somebody out.

The pages are made once, and one browser shows all of them. Screenshots go where `REDETR_ARTEFACTS`
says.
"""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import uvicorn
from axe_core_python.base import AXE_SCRIPT
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from redetr.app.server import web_app
from redetr.data import open_dataset
from redetr.doctor.check import check
from redetr.doctor.sheet import write_report as write_sheet
from redetr.explain import explain, explain_loss, write_image_page, write_loss_page
from redetr.pages.drawing import save_image, to_pil
from redetr.report import make_report, write_report
from tests.app_server import artefacts
from tests.test_contact_sheet import write_folder
from tests.test_explain import picture, small_detector
from tests.test_report import Scenes, scene_of_each_kind

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PAGES = (
    "check",
    "report",
    "comparison",
    "explain",
    "explain learned queries",
    "loss",
    "contact sheet",
    "app",
)
AUDIT = """const done = arguments[arguments.length - 1];
    const only = { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] };
    axe.run(document, { runOnly: only, resultTypes: ["violations"] }).then(({ violations }) => done(
        violations.filter(({ impact }) => ["serious", "critical"].includes(impact)).map(
            ({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => [html.slice(0, 120), failureSummary])])));"""


@pytest.fixture(scope="module")
def detector():
    """Its queries find something, with scores from about 0.2 to 0.8."""
    detector = small_detector("redetr_n")
    last = detector.model.class_embed[-1]
    with torch.no_grad():
        last.bias.zero_()
        last.weight.mul_(2)
    return detector


class ScenesAsExported(Scenes):
    """Their images have names as long as those that exporters write."""

    def image_name(self, index):
        return f"IMG_{index}_jpg.rf.b428cbb02358afc32cf32f9bdb725a51b428cbb02358afc3.jpg"


@pytest.fixture(scope="module")
def files(tmp_path_factory, shared_coco, detector):
    """The pages that open from disk, by their names."""
    folder = tmp_path_factory.mktemp("pages")
    write_sheet(check(str(shared_coco)), folder / "check")
    scenes, found = scene_of_each_kind()
    dataset = ScenesAsExported(scenes.targets, scenes.class_names)
    lines = '{"step": 0, "loss": 2.5}\n{"step": 0, "time_s": 1, "AP": 0.5, "AP50": 0.6}\n'
    (folder / "metrics.jsonl").write_text(lines)
    run = str(folder / "best.pt")
    write_report(make_report(dataset, [(run, found)]), folder / "report")
    other = replace(found, scores=found.scores / 2)
    write_report(make_report(dataset, [(run, found), ("b.pt", other)]), folder / "comparison")
    write_image_page(folder / "explain.html", explain(detector, picture()), "a.png", 0.5)
    learned = explain(small_detector("detr_r50"), picture())
    write_image_page(folder / "learned.html", learned, "a.png", 0.5, loss_link="loss.html")
    data = open_dataset(str(shared_coco), "train")
    write_loss_page(folder / "loss.html", explain_loss(detector, data, 101, 2))
    return {
        "check": folder / "check" / "index.html",
        "report": folder / "report" / "index.html",
        "comparison": folder / "comparison" / "index.html",
        "explain": folder / "explain.html",
        "explain learned queries": folder / "learned.html",
        "loss": folder / "loss.html",
        "contact sheet": write_folder(folder / "predicted"),
    }


@pytest.fixture(scope="module")
def address(detector, shared_coco):
    """The app, served by a thread of this process."""
    app = web_app(detector, open_dataset(str(shared_coco), "train"), "a run", "127.0.0.1")
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        (listening,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_nobody_is_kept_out(name, files, address, browser, tmp_path):
    url = address if name == "app" else files[name].as_uri()
    try:
        browser.execute_script("window.onbeforeunload = null")
        browser.get(url)
        if name == "app":
            look_at_an_image(browser, tmp_path)
        WebDriverWait(browser, 60).until(lambda _: is_drawn(browser))
        browser.execute_script(AXE_SCRIPT)
        for size, (width, height) in SIZES.items():
            view = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
            browser.save_screenshot(str(artefacts(tmp_path) / f"{name}-{size}.png"))
            assert browser.execute_async_script(AUDIT) == []
            # Nothing but areas that are made for it is wider than the window.
            widths = "return [document.documentElement.scrollWidth, innerWidth]"
            page_px, window_px = browser.execute_script(widths)
            assert page_px <= window_px
            assert_scrolling_areas_are_reached(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def look_at_an_image(browser, folder: Path) -> None:
    save_image(to_pil(picture()), folder / "picture.png")
    browser.find_element(By.ID, "file").send_keys(str(folder / "picture.png"))
    WebDriverWait(browser, 60).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#rows tr"))


def is_drawn(browser) -> bool:
    """Whether the scripts of `explain` have filled in their tables."""
    script = "return [...document.querySelectorAll('table')].every((table) => table.rows.length)"
    return browser.execute_script(script)


def assert_scrolling_areas_are_reached(browser) -> None:
    script = """return [...document.querySelectorAll(".wide")].filter((area) =>
        area.checkVisibility() && area.scrollWidth > area.clientWidth + 1 && area.tabIndex < 0).length"""
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script(script) == 0)
    names = (
        "return [...document.querySelectorAll('.wide[role=group]')].map((area) => area.ariaLabel)"
    )
    assert set(browser.execute_script(names)) <= {"Scrollable area"}
