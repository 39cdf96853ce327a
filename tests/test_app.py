"""The page of `redetr app` in a browser without network, and its HTTP endpoint by curl."""

import base64
import json
import math
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from starlette.requests import ClientDisconnect, Request

import redetr
from redetr.app.api import Api
from redetr.app.page import Page as WebPage
from redetr.app.server import web_app
from redetr.app.uploads import MAX_BYTES, BusyError, Turns, Upload, Uploads
from redetr.checkpoint import save_weights
from redetr.cli import parse_command
from redetr.commands import app as command
from redetr.commands.app import App
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.detector.detector import as_image
from redetr.errors import InputError
from redetr.explain import explain, explain_loss
from redetr.masks import CroppedMasks
from redetr.pages.drawing import class_color, score_color, to_pil
from tests.app_server import artefacts, ask_within, serving, silence, write_checkpoint
from tests.forked import in_fork
from tests.test_explain import OPTIONS, picture, small_detector
from tests.test_explain_page import Page
from tests.test_panoptic_quality_of_models import CONFIG as PANOPTIC
from tests.test_panoptic_quality_of_models import sure

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "app.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared_coco):
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", shared_coco)
    with serving(checkpoint) as running:
        yield running


@pytest.fixture(scope="module")
def detector(server):
    return redetr.load(server.checkpoint, device="cpu")


@pytest.fixture
def image(tmp_path):
    """A file with a picture, wider than high."""
    path = tmp_path / "a picture.png"
    pixels = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(path)
    return path


class Frame(Page):
    """The page of `explain` inside that of the app; leaves it at the end."""

    def __init__(self, browser, holder):
        self.browser = browser
        self._frame = f"#{holder} iframe"

    def __enter__(self):
        self.browser.switch_to.frame(self.browser.find_element(By.CSS_SELECTOR, self._frame))
        wait(self.browser, lambda: self.part("steps", "terms").text)
        return self

    def __exit__(self, *_):
        self.browser.switch_to.default_content()


def wait(browser, until):
    waiting = WebDriverWait(browser, timeout=60, poll_frequency=0.1)
    return waiting.until(lambda _: until())


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


@pytest.fixture
def page(server, browser):
    with opened(server, browser) as page:
        yield page


@contextmanager
def opened(server, browser, width=1280, height=800):
    """The app, just opened; without complaints of the browser at the end."""
    view = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    browser.get_log("browser")
    browser.get(server.url)
    try:
        yield browser
    finally:
        browser.switch_to.default_content()
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    log = browser.get_log("browser")
    assert not [entry for entry in log if entry["level"] == "SEVERE"], log


def upload(page, path):
    """What is said of an image, once it was computed."""
    one(page, "#file").send_keys(str(path))
    wait(page, lambda: told(page) not in ("", "Computing…"))
    return told(page)


def wait_for_detections(page):
    wait(page, lambda: "with a score of" in told(page))


def told(page):
    status = one(page, "#find-status").text
    error = one(page, "#find-error").text
    return status + error


def set_threshold(page, value):
    """By keys, in steps of 0.01."""
    one(page, "#threshold").send_keys(Keys.HOME, Keys.ARROW_RIGHT * round(100 * value))
    assert f"score of {value:.2f} or more" in told(page)


def open_explanation(page):
    one(page, "#explain").click()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#explained iframe"))


def open_loss(page):
    one(page, "#loss-tab").click()
    wait_for_loss(page)


def wait_for_loss(page):
    wait(page, lambda: "(id " in one(page, "#loss-status").text)


def saved(page, button, folder):
    """The file that a button saves."""
    folder.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    allowed = {"behavior": "allow", "downloadPath": str(folder)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    one(page, button).click()

    def new_file():
        new = set(folder.iterdir()) - before
        return new if new and not [path for path in new if path.suffix == ".crdownload"] else None

    (path,) = wait(page, new_file)
    return path


def saved_json(page, folder):
    path = saved(page, "#save-json", folder)
    content = json.loads(path.read_text())
    path.unlink()
    return path.name, content


def rows(page):
    return page.find_elements(By.CSS_SELECTOR, "#rows tr")


def test_upload_threshold_and_click(page, image, detector, tmp_path):
    explanation = explain(detector, as_image(image))
    scores = explanation.scores[-1]
    expected = f"{len(detector.predict(image, 0.5))} detections with a score of 0.50 or more."
    assert upload(page, image) == expected
    for threshold in (0.4, 0.6):
        set_threshold(page, threshold)
        found = detector.predict(image, threshold).to_dict()
        assert len(rows(page)) == len(found["detections"])
        name, content = saved_json(page, tmp_path / "saved")
        assert name == "a picture.json"
        assert content == {"image": image.name, **found}
        open_explanation(page)
        with Frame(page, "explained") as frame:
            count = int((scores >= threshold).sum())
            verb = "has" if count == 1 else "have"
            shown = f"{count} of 9 queries {verb} a score of {threshold:.2f} or more"
            wait(page, lambda f=frame, s=shown: f.part("shown").text == s)
    page.save_screenshot(str(artefacts(tmp_path) / "app-explained.png"))

    shown = queries_above(explanation, 0.6)
    click_another(page, explanation, shown)
    page.save_screenshot(str(artefacts(tmp_path) / "app-clicked.png"))


def test_a_click_in_the_faithful_form(browser, shared_coco, tmp_path):
    """Its attention is shown as maps over the image, not as points."""
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", shared_coco, "detr_r50")
    to_pil(picture()).save(tmp_path / "picture.png")
    detector = redetr.load(checkpoint, device="cpu")
    explanation = explain(detector, picture())
    shown = queries_above(explanation, 0.5)
    with serving(checkpoint) as server, opened(server, browser) as page:
        upload(page, tmp_path / "picture.png")
        open_explanation(page)
        click_another(page, explanation, shown)
        with Frame(page, "explained") as frame:
            assert "the brightest cell has" in frame.part("cross").text
        page.save_screenshot(str(artefacts(tmp_path) / "app-faithful.png"))


def queries_above(explanation, threshold):
    """Those with a final score of `threshold` or more."""
    is_above = explanation.scores[-1] >= threshold
    return is_above.nonzero().flatten().tolist()


def click_another(page, explanation, shown):
    """Clicks one of the queries whose boxes are shown; attention, path and steps become its own."""
    first = int(explanation.scores[-1].argmax())
    boxes = explanation.boxes[-1].clamp(0, 1)
    sizes = areas(boxes)
    others = [query for query in shown if query != first]
    other = min(others, key=lambda query: sizes[query])  # a click takes the smallest
    assert sizes[other] < sizes[first] or not overlap(boxes[other], boxes[first])
    x, y = middle(boxes[other]).tolist()
    parts = ("cross", "self", "path")
    with Frame(page, "explained") as frame:
        assert frame.part("chosen").text.startswith(f"query {first} ")
        before = [frame.drawing(name) for name in parts]
        frame.click("stage", x, y)
        wait(page, lambda: frame.part("chosen").text.startswith(f"query {other} "))
        after = [frame.drawing(name) for name in parts]
        for old, new in zip(before, after, strict=True):
            assert all(a != b for a, b in zip(old, new, strict=True))
        # The frame cannot reach the page around it.
        assert page.execute_script("return origin") == "null"


def overlap(a, b):
    begins_before = (a[:2] < b[2:]).all()
    ends_after = (b[:2] < a[2:]).all()
    return bool(begins_before and ends_after)


def middle(box):
    return (box[:2] + box[2:]) / 2


def areas(boxes):
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides.prod(1)


def test_one_class_and_the_picture_that_is_saved(page, image, detector, tmp_path):
    """Class and threshold leave one box: its color frames that box in the saved file."""
    label = "plate"
    detections = detector.predict(image, 0.0).of_classes([label])
    threshold = math.floor(100 * detections.scores[0].item()) / 100
    expected = detections.above(threshold)
    assert len(expected) == 1
    upload(page, image)
    set_threshold(page, threshold)
    Select(one(page, "#class")).select_by_visible_text(label)
    assert told(page) == f"1 detection of {label} with a score of {threshold:.2f} or more."
    _, content = saved_json(page, tmp_path / "saved")
    assert content["detections"] == expected.to_dict()["detections"]
    assert [row.text.split()[0] for row in rows(page)] == [label]

    path = saved(page, "#save-picture", tmp_path / "saved")
    assert path.name == "a picture-detections.png"
    with Image.open(path) as saved_picture:
        factor = saved_picture.width / 90
        assert saved_picture.size == (90 * factor, 60 * factor)
        assert saved_picture.width >= 1200
        left, _, right, bottom = (expected.boxes[0] * factor).tolist()
        below = (left + right) / 2, min(bottom, saved_picture.height - 1)
        color = saved_picture.convert("RGB").getpixel(below)
    assert color == class_color(expected.labels[0].item())


def test_a_detection_is_chosen_in_the_list_and_in_the_picture(page, image, detector, tmp_path):
    upload(page, image)
    drawings = [drawing(page)]
    button = one(page, "#rows tr:nth-child(2) button")
    for pressed in ("true", "false"):
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == pressed
        drawings.append(drawing(page))
    assert drawings[0] == drawings[2] != drawings[1]

    boxes = detector.predict(image, 0.5).boxes
    smallest = int(areas(boxes).argmin())
    center_px = middle(boxes[smallest])
    center = center_px / torch.tensor([90, 60])
    x, y = (center - 0.5).tolist()
    canvas = one(page, "#picture")
    offset = round(x * canvas.size["width"]), round(y * canvas.size["height"])
    ActionChains(page).move_to_element_with_offset(canvas, *offset).click().perform()
    buttons = page.find_elements(By.CSS_SELECTOR, "#rows button")
    pressed = page.find_elements(By.CSS_SELECTOR, "#rows button[aria-pressed=true]")
    assert pressed == [buttons[smallest]]
    page.save_screenshot(str(artefacts(tmp_path) / "app-found.png"))


def drawing(page):
    return page.execute_script("return document.querySelector('#picture').toDataURL()")


def test_nothing_found_and_taken_away_again(page, image, detector):
    upload(page, image)
    open_explanation(page)
    set_threshold(page, 1)
    best = detector.predict(image, 0.0).scores[0].item()
    assert told(page) == f"No detections with a score of 1.00 or more. The best has {best:.2f}."
    assert not rows(page)
    one(page, "#remove").click()
    assert told(page) == ""
    assert not page.find_elements(By.CSS_SELECTOR, "#explained iframe")
    assert not one(page, "#controls").is_displayed()
    assert "Choose images" in one(page, "#welcome").text


def test_while_the_model_works_the_page_says_so(page, image):
    page.execute_script("window.fetch = () => new Promise(() => {})")  # a server that takes long
    one(page, "#file").send_keys(str(image))
    wait(page, lambda: one(page, "#waiting").is_displayed())
    assert one(page, "#waiting").text == f"Looking for objects in {image.name} …"
    assert told(page) == "Computing…"
    assert not one(page, "#welcome").is_displayed()


def test_several_images_at_once(page, server, image, detector, tmp_path):
    """The first is shown; the others are chosen by their thumbnails. A bad one does not stop
    them."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    other = tmp_path / "other.png"
    with Image.open(image) as file:
        file.rotate(180).save(other)
    one(page, "#file").send_keys("\n".join(map(str, (image, bad, other))))
    wait(page, lambda: len(thumbnails(page)) == 2)
    assert one(page, "#find-error").text.startswith("bad.png: not an image")
    for path, button in zip((image, other), thumbnails(page), strict=True):
        button.click()
        assert page.switch_to.active_element == button
        expected = {"image": path.name, **detector.predict(path, 0.5).to_dict()}
        assert saved_json(page, tmp_path / "saved") == (f"{path.stem}.json", expected)
        assert len(rows(page)) == len(expected["detections"])
    pressed = [button.get_attribute("aria-pressed") for button in thumbnails(page)]
    assert pressed == ["false", "true"]
    log = page.get_log("browser")  # Chromium notes the answer 400 itself
    assert [entry["message"].split(" - ")[0] for entry in log] == [f"{server.url}look"]
    page.save_screenshot(str(artefacts(tmp_path) / "app-several.png"))
    one(page, "#remove").click()
    assert saved_json(page, tmp_path / "saved")[0] == "a picture.json"
    assert not one(page, "#images").is_displayed()
    one(page, "#remove").click()
    assert one(page, "#welcome").is_displayed()


HOLD = """
    const ask = window.fetch, held = arguments[0];
    let looks = 0;
    window.fetch = (address, options) => {
      if (address !== "look" || ++looks !== held) return ask(address, options);
      return new Promise((resolve) => {
        window.release = () => resolve(ask(address, options));
      });
    };"""


def hold(page, number):
    """Keeps the answer to the image of this number back, until `release`."""
    page.execute_script(HOLD, number)


def release(page):
    wait(page, lambda: page.execute_script("return Boolean(window.release)"))
    page.execute_script("window.release()")


def copies(image, *names):
    """Copies of an image beside it, as the page is given several files."""
    paths = [image.with_name(name) for name in names]
    for path in paths:
        path.write_bytes(image.read_bytes())
    return "\n".join(map(str, (image, *paths)))


def test_an_image_is_removed_while_another_is_computed(page, image):
    hold(page, 2)
    one(page, "#file").send_keys(copies(image, "other.png"))
    wait(page, lambda: one(page, "#remove").is_displayed())
    one(page, "#remove").click()
    assert one(page, "#waiting").text == "Looking for objects in other.png …"
    release(page)
    wait(page, lambda: one(page, "#controls").is_displayed())
    assert not one(page, "#waiting").is_displayed()


def test_the_keyboard_stays_on_a_thumbnail_while_others_are_computed(page, image):
    hold(page, 3)
    one(page, "#file").send_keys(copies(image, "second.png", "third.png"))
    wait(page, lambda: len(thumbnails(page)) == 2)
    first, second = thumbnails(page)
    second.send_keys(Keys.ENTER)
    release(page)
    wait(page, lambda: len(thumbnails(page)) == 3)
    assert page.switch_to.active_element == second
    assert thumbnails(page)[:2] == [first, second]
    pressed = [button.get_attribute("aria-pressed") for button in thumbnails(page)]
    assert pressed == ["false", "true", "false"]


def thumbnails(page):
    """The buttons of the images that can be shown."""
    return page.find_elements(By.CSS_SELECTOR, "#images button:not(:disabled)")


def test_dfine_and_a_single_class(browser, shared_coco, image, tmp_path):
    """D-FINE is looked at, explained and judged; of a single class, colors tell the score."""
    coco = json.loads((shared_coco / "annotations" / "instances_train.json").read_text())
    coco["categories"] = [{"id": 7, "name": "cell"}]
    for annotation in coco["annotations"]:
        annotation["category_id"] = 7
    folder = tmp_path / "cells"
    shutil.copytree(shared_coco / "train", folder / "train")
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(coco))
    torch.manual_seed(0)
    model = redetr.build("dfine_n", 1, **OPTIONS["dfine_n"])
    checkpoint = tmp_path / "best.safetensors"
    options = tuple(f"{name}={json.dumps(value)}" for name, value in OPTIONS["dfine_n"].items())
    config = replace(
        TrainConfig(model="dfine_n"), image_size=64, model_options=options, data=str(folder)
    )
    about = {"config": config.to_dict(), "class_names": ["cell"], "category_ids": [7]}
    save_weights(checkpoint, model.state_dict(), {**about, "step": 0, "best": {}})
    detections = redetr.load(checkpoint, device="cpu").predict(image, 0.0)
    with serving(checkpoint) as server, opened(server, browser) as page:
        upload(page, image)
        set_threshold(page, 0)
        best = detections.scores[0].item()
        color = page.execute_script(
            "return getComputedStyle(document.querySelector('.color')).backgroundColor"
        )
        shown = [int(value) for value in re.findall(r"\d+", color)]
        assert np.abs(np.subtract(shown, score_color(best))).max() <= 1
        open_explanation(page)
        with Frame(page, "explained") as frame:
            assert frame.part("chosen").text.startswith("query ")
        open_loss(page)
        with Frame(page, "judged") as frame:
            assert frame.part("total").text


def test_a_bad_file_is_told(page, server, image, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:300])
    text = upload(page, bad)
    assert text.startswith("this image: cannot decode the image")
    assert len(text.splitlines()) == 1
    page.save_screenshot(str(artefacts(tmp_path) / "app-bad-file.png"))
    bad.write_bytes(bytes(MAX_BYTES + 1))
    assert upload(page, bad) == "The file has more than 32 MB: give a smaller one."
    assert "detections with a score" in upload(page, image)
    log = page.get_log("browser")  # Chromium notes the answer 400 itself
    assert [entry["message"].split(" - ")[0] for entry in log] == [f"{server.url}look"]


def answer_with(page, address, status, text):
    """Has something else than the server answer the requests to an address."""
    page.execute_script(
        """
        const ask = window.fetch, [address, status, text] = arguments;
        window.fetch = async (asked, options) =>
          asked === address ? new Response(text, { status }) : ask(asked, options);""",
        address,
        status,
        text,
    )


@pytest.mark.parametrize("text", ["<html>Request Entity Too Large</html>", '{"code": 413}', "null"])
def test_a_proxy_that_refuses_an_image(text, page, image):
    answer_with(page, "look", 413, text)
    expected = "The server, or a proxy in front of it, answered with status 413."
    assert upload(page, image) == expected
    assert one(page, "#welcome").is_displayed()


def test_a_server_that_has_ended(page, image):
    page.execute_script("window.fetch = async () => { throw new TypeError('Failed to fetch'); };")
    assert upload(page, image) == "The server does not respond: is it still running?"


def test_a_picture_that_browsers_cannot_show(page, image, tmp_path):
    """TIFF, and turned by its EXIF tag: both as the model is given it."""
    turned = tmp_path / "turned.tif"
    with Image.open(image) as upright:
        exif = upright.getexif()
        exif[0x0112] = 6
        upright.save(turned, exif=exif)
    upload(page, turned)
    assert saved_json(page, tmp_path / "saved")[1]["image_size"] == [90, 60]
    shape = page.execute_script(
        "const c = document.querySelector('#picture'); return [c.width, c.height]"
    )
    assert shape[0] * 3 == shape[1] * 2


def test_the_camera(page, detector, tmp_path):
    """Chromium's stand-in for a camera; its picture is looked at like a file."""
    one(page, "#camera").click()
    wait(
        page,
        lambda: page.execute_script("return document.querySelector('video').videoWidth") == 640,
    )
    wait(page, lambda: one(page, "#capture").is_displayed())
    page.save_screenshot(str(artefacts(tmp_path) / "app-camera.png"))
    one(page, "#close-camera").click()
    assert not one(page, "#video").is_displayed()
    assert one(page, "#welcome").is_displayed()

    open_camera(page)
    assert page.execute_script("return document.querySelector('video').videoWidth") == 640
    one(page, "#capture").click()
    wait_for_detections(page)
    name, content = saved_json(page, tmp_path / "saved")
    assert (name, content["image_size"]) == ("camera.json", [480, 640])
    assert page.execute_script("return document.querySelector('video').srcObject") is None
    colors = page.execute_script("""
        const canvas = document.querySelector("#picture"), { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        const isGreen = (v, i) => i % 4 === 1 && v > 50 + Math.max(data[i - 1], data[i + 1]);
        return data.filter(isGreen).length / (width * height)""")
    assert colors > 0.5  # the stand-in films green


def open_camera(page):
    one(page, "#camera").click()
    button = one(page, "#capture")
    wait(page, lambda: button.is_displayed() and button.is_enabled())


def test_an_image_that_is_done_while_the_camera_is_open(page, image):
    """It is shown once the camera is closed."""
    hold(page, 1)
    one(page, "#file").send_keys(copies(image, "other.png"))
    wait(page, lambda: one(page, "#waiting").is_displayed())
    open_camera(page)
    assert not one(page, "#waiting").is_displayed()
    release(page)
    wait(page, lambda: len(thumbnails(page)) == 2)
    wait(page, lambda: told(page) == "")
    assert one(page, "#viewfinder").is_displayed()
    for part in ("#picture", "#controls", "#remove", "#welcome"):
        assert not one(page, part).is_displayed()
    one(page, "#close-camera").click()
    assert one(page, "#picture").is_displayed()
    assert "detections with a score" in told(page)


def test_a_thumbnail_closes_the_camera(page, image):
    one(page, "#file").send_keys(copies(image, "other.png"))
    wait(page, lambda: len(thumbnails(page)) == 2)
    open_camera(page)
    assert told(page) == ""  # nothing of the image that was shown
    thumbnails(page)[1].click()
    assert not one(page, "#viewfinder").is_displayed()
    assert one(page, "#picture").is_displayed()
    assert page.execute_script("return document.querySelector('video').srcObject") is None


def test_a_camera_that_has_no_picture_yet(page):
    page.execute_script("HTMLMediaElement.prototype.play = () => new Promise(() => {})")
    one(page, "#camera").click()
    wait(page, lambda: one(page, "#capture").is_displayed())
    assert not one(page, "#capture").is_enabled()


def test_a_camera_that_is_opened_twice_is_closed_twice(page):
    page.execute_script("""
        const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.streams = [];
        navigator.mediaDevices.getUserMedia = async (wanted) => {
          const stream = await open(wanted);
          window.streams.push(stream);
          return stream;
        };""")
    one(page, "#camera").click()
    one(page, "#camera").click()
    wait(page, lambda: page.execute_script("return window.streams.length") == 2)
    wait(page, lambda: one(page, "#close-camera").is_displayed())
    one(page, "#close-camera").click()
    states = "return window.streams.map((stream) => stream.getTracks()[0].readyState)"
    assert page.execute_script(states) == ["ended", "ended"]


@pytest.mark.parametrize("closes", [True, False])
def test_a_camera_whose_video_does_not_start(closes, page):
    """Closing it interrupts the start, which is no error."""
    page.execute_script("""
        HTMLMediaElement.prototype.play = () => new Promise((_, reject) => {
          window.interrupt = () => reject(new DOMException("Interrupted"));
        });""")
    one(page, "#camera").click()
    wait(page, lambda: page.execute_script("return Boolean(window.interrupt)"))
    if closes:
        one(page, "#close-camera").click()
    page.execute_script("window.interrupt()")
    expected = "" if closes else "The camera cannot be used: Interrupted"
    wait(page, lambda: told(page) == expected)
    assert not one(page, "#close-camera").is_displayed()


def test_a_class_whose_name_has_blanks_at_its_end(page, image):
    page.execute_script("""
        const ask = window.fetch;
        window.fetch = async (address, options) => {
          const response = await ask(address, options);
          if (address !== "look") return response;
          const content = await response.json();
          for (const detection of content.answer.detections) detection.label = "a  b ";
          content.colors["a  b "] = [170, 0, 0];
          return new Response(JSON.stringify(content));
        };""")
    upload(page, image)
    count = len(rows(page))
    Select(one(page, "#class")).select_by_index(1)
    assert len(rows(page)) == count > 0


def test_a_saved_picture_is_not_enlarged_beyond_what_is_promised(page, tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (1100, 700), (90, 120, 50)).save(wide)
    upload(page, wide)
    assert page.execute_script("return document.querySelector('#picture').width") == 1100


def test_a_page_that_is_full_says_so(page, image, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(image.read_bytes())
    upload(page, image)
    page.execute_script("for (let i = 1; i < MOST_IMAGES; i++) images.push({ ...images[0] })")
    one(page, "#file").send_keys(str(other))
    expected = "This page holds 100 images, and 2 of these are left out: remove some;"
    wait(page, lambda: one(page, "#find-error").text.startswith(expected))
    assert "detections with a score of" in one(page, "#find-status").text


def test_messages_stay_when_more_images_arrive(page, image, tmp_path):
    damaged = tmp_path / "bad.png"
    damaged.write_bytes(b"no image")
    second, third = copies(image, "second.png", "third.png").splitlines()[1:]
    hold(page, 2)
    one(page, "#file").send_keys(f"{damaged}\n{second}")
    wait(page, lambda: page.execute_script("return images.length") == 1)  # the damaged one has gone
    one(page, "#file").send_keys(third)
    wait(page, lambda: "bad.png: not an image" in one(page, "#find-error").text)
    assert page.execute_script("return images.length") == 2
    one(page, "#file").send_keys(str(image))
    wait(page, lambda: page.execute_script("return images.every(({ answer }) => answer)"))
    wait(page, lambda: one(page, "#find-error").text == "")
    page.get_log("browser")  # Chromium notes the answer 400 itself


def test_a_file_that_has_changed_since_it_was_chosen(page, image):
    upload(page, image)
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, (0, 0))  # browsers compare whole seconds
    one(page, "#explain").click()
    wait(
        page, lambda: one(page, "#explain-error").text.startswith("This file cannot be read: it is")
    )


def test_a_camera_that_is_refused(page):
    page.execute_script("""
        const refuse = async () => { throw new DOMException("Permission denied"); };
        navigator.mediaDevices.getUserMedia = refuse;""")
    one(page, "#camera").click()
    wait(page, lambda: told(page) == "The camera cannot be used: Permission denied")
    assert one(page, "#welcome").is_displayed()


def test_the_clipboard(page, server, image, detector, tmp_path):
    """By the button and by Ctrl-V; without a picture in it, it says so."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.execute_cdp_cmd(
        "Browser.grantPermissions", {"origin": server.url, "permissions": permissions}
    )
    page.execute_async_script(
        "const done = arguments[0]; navigator.clipboard.writeText('text').then(done)"
    )
    one(page, "#paste").click()
    wait(page, lambda: told(page) == "There is no image in the clipboard.")
    problem = page.execute_async_script(
        """
        const [code, done] = arguments;
        const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
        const item = new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) });
        const written = navigator.clipboard.write([item]);
        written.then(() => done(""), (problem) => done(String(problem)));""",
        base64.b64encode(image.read_bytes()).decode(),
    )
    assert problem == ""
    expected = detector.predict(image, 0.5).to_dict()["detections"]

    one(page, "#paste").click()
    wait_for_detections(page)
    name, content = saved_json(page, tmp_path / "saved")
    assert (name, content["detections"]) == ("clipboard.json", expected)
    one(page, "#remove").click()

    ActionChains(page).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    wait_for_detections(page)
    assert saved_json(page, tmp_path / "saved")[1]["detections"] == expected


def test_an_image_that_is_dropped(page, image, detector, tmp_path):
    """Anywhere on the page, as a file manager drops it."""
    data = {"items": [], "files": [str(image)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.execute_cdp_cmd(
            "Input.dispatchDragEvent", {"type": kind, "x": 800, "y": 500, "data": data}
        )
    wait_for_detections(page)
    expected = {"image": image.name, **detector.predict(image, 0.5).to_dict()}
    assert saved_json(page, tmp_path / "saved") == ("a picture.json", expected)


def test_matching_and_loss_of_a_training_image(page, server, detector, shared_coco, tmp_path):
    open_loss(page)
    dataset = open_dataset(shared_coco, "train")
    image_id, world_size = one(page, "#image-id"), Select(one(page, "#world-size"))
    examples = page.find_elements(By.CSS_SELECTOR, "#examples button")
    names = [example.find_element(By.TAG_NAME, "img").get_attribute("alt") for example in examples]
    assert names == [f"train-{number}.jpg" for number in range(8)]
    assert examples[0].get_attribute("aria-pressed") == "true"
    assert image_id.get_attribute("value") == "100"
    with Frame(page, "judged") as frame:
        expected = explain_loss(detector, dataset, 100)
        assert len(frame.rows("terms")) == 1 + 2  # an object, the other queries, the sum
        total = sum(
            expected.costs[-1, :, query, t].sum().item()
            for t, query in enumerate(expected.queries[-1])
        )
        assert float(frame.part("total").text.split("=")[1]) == pytest.approx(total, abs=1e-3)
    page.save_screenshot(str(artefacts(tmp_path) / "app-loss.png"))

    world_size.select_by_visible_text("2")
    wait_for_loss(page)
    assert "GPU 0 of 2" in worked(page)
    assert "boxes per GPU, on average: (1 + 2) / 2 = 1.5" in worked(page)

    one(page, "#next").click()
    wait(page, lambda: one(page, "#loss-status").text.endswith("(id 101)"))
    assert "boxes per GPU, on average: (2 + 0) / 2 = 1" in worked(page)
    assert image_id.get_attribute("value") == "101"

    examples[4].click()
    wait(page, lambda: one(page, "#loss-status").text.endswith("(id 104)"))
    assert examples[4].get_attribute("aria-pressed") == "true"
    worked(page)

    one(page, "#judge summary").click()
    image_id.send_keys(Keys.CONTROL, "a")
    image_id.send_keys("103", Keys.ENTER)
    wait(page, lambda: one(page, "#loss-status").text.endswith("(id 103)"))
    worked(page)

    image_id.send_keys(Keys.CONTROL, "a")
    image_id.send_keys("7", Keys.ENTER)
    wait(
        page,
        lambda: (
            "has no image with this id: try another, such as 100, 101"
            in one(page, "#loss-error").text
        ),
    )
    assert not page.find_elements(By.CSS_SELECTOR, "#judged iframe")
    log = page.get_log("browser")  # Chromium notes the answer 400 itself
    assert [entry["message"].partition("?")[0] for entry in log] == [f"{server.url}judge"]


def test_the_error_of_the_list_of_training_images_stays(page):
    answer_with(page, "examples", 504, "<html>Gateway Time-out</html>")
    one(page, "#loss-tab").click()
    error = one(page, "#examples-error")
    wait(page, lambda: error.text)
    assert error.text.endswith("answered with status 504.")
    one(page, "#next").click()
    wait_for_loss(page)
    assert error.text.endswith("answered with status 504.")


def test_training_images_that_cannot_be_opened_are_told_once(page):
    answer_with(page, "examples", 400, '{"error": "no such folder"}')
    one(page, "#loss-tab").click()
    wait(page, lambda: one(page, "#examples-error").text == "no such folder")
    assert one(page, "#loss-status").text + one(page, "#loss-error").text == ""


def test_a_training_image_that_cannot_be_read_is_left_out(detector, tiny_coco):
    dataset = open_dataset(tiny_coco, "train")
    (tiny_coco / "train" / "train-3.jpg").write_bytes(b"no image")
    status, text = ask_within(web_app(detector, dataset, "", "127.0.0.1"), "GET", "/examples")
    answer = json.loads(text)
    names = [example["name"] for example in answer["examples"]]
    assert status == 200
    assert names == [f"train-{number}.jpg" for number in (0, 1, 2, 4, 5, 6, 7)]
    (error,) = answer["errors"]
    assert "train-3.jpg" in error
    assert "not an image" in error


def test_errors_of_single_training_images_stand_under_the_others(page):
    answer = {"examples": [], "errors": ["a.jpg: broken", "b.jpg: empty"]}
    answer_with(page, "examples", 200, json.dumps(answer))
    one(page, "#loss-tab").click()
    wait(page, lambda: one(page, "#examples-error").text == "a.jpg: broken\nb.jpg: empty")
    wait_for_loss(page)  # the first image is judged all the same


def worked(page):
    """What the frame says of divisors."""
    with Frame(page, "judged") as frame:
        return frame.part("worked").text


def assert_open(page, tab, others_tab):
    """Its panel is shown, the other one is not, and it has the focus."""
    assert page.switch_to.active_element == one(page, f"#{tab}-tab")
    assert one(page, f"#{tab}-tab").get_attribute("aria-selected") == "true"
    assert one(page, f"#{others_tab}-tab").get_attribute("aria-selected") == "false"
    assert one(page, f"#{tab}").is_displayed()
    assert not one(page, f"#{others_tab}").is_displayed()


def test_tabs_by_keyboard(page):
    one(page, "#find-tab").send_keys(Keys.ARROW_RIGHT)
    assert_open(page, "loss", "find")
    wait_for_loss(page)
    one(page, "#loss-tab").send_keys(Keys.ARROW_RIGHT)  # around
    assert_open(page, "find", "loss")


CONTROLS = {"button", "textbox", "slider", "combobox", "tab", "Iframe", "img", "image", "canvas"}


def nameless(page):
    """Roles of the controls without a name for screen readers; and the number of all controls."""
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    missing = []
    count = 0
    for node in nodes:
        role = node["role"]["value"]
        if node["ignored"] or role not in CONTROLS:
            continue
        count += 1
        name = node.get("name", {})
        if not name.get("value"):
            missing.append(role)
    return missing, count


# Texts whose color differs from what is behind them by less than WCAG asks for (AA).
FAINT = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => {
  const shares = channels(color).map((value) => value / 255);
  const [r, g, b] = shares.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  const color = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
  return channels(color)[3] === 0 ? behind(element.parentElement) : color;
};
const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
const showsText = (element) => element.checkVisibility() && [...element.childNodes].some(isText);
const texts = [...document.querySelectorAll("body *")].filter(showsText);
const contrasts = texts.map((element) => {
  const colors = [getComputedStyle(element).color, behind(element)];
  const [low, high] = colors.map(light).sort((a, b) => a - b);
  return [element.innerText, (high + 0.05) / (low + 0.05)];
});
return [contrasts.filter(([, contrast]) => contrast < 4.5), contrasts.length];"""


def assert_usable(page):
    missing, controls = nameless(page)
    assert missing == []
    assert controls > 4
    faint, texts = page.execute_script(FAINT)
    assert faint == []
    assert texts > 8
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    content, window = page.execute_script(sizes)
    assert content <= window


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["desk", "phone"])
def test_controls_have_names_texts_contrast_and_all_fits(
    width, height, server, browser, image, tmp_path
):
    folder = artefacts(tmp_path)
    with opened(server, browser, width, height) as page:
        page.save_screenshot(str(folder / f"app-{width}-start.png"))
        assert_usable(page)
        upload(page, image)
        page.save_screenshot(str(folder / f"app-{width}-found.png"))
        assert_usable(page)
        canvas = one(page, "#picture").size
        assert canvas["width"] > 0.6 * width  # the image is large
        open_explanation(page)
        with Frame(page, "explained"):
            pass
        assert_usable(page)
        page.save_screenshot(str(folder / f"app-{width}-explained.png"))
        page.execute_script("scrollTo(0, 0)")
        open_loss(page)
        with Frame(page, "judged"):
            pass
        assert_usable(page)
        page.save_screenshot(str(folder / f"app-{width}-loss.png"))


def test_nothing_comes_from_elsewhere(page, server, image):
    upload(page, image)
    open_explanation(page)
    reach = "return fetch(arguments[0]).then(() => 'reached')"
    with Frame(page, "explained"), pytest.raises(JavascriptException, match="Failed to fetch"):
        page.execute_script(reach, f"{server.url}api/health")
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    own = {address.removeprefix(server.url) for address in loaded if address.startswith(server.url)}
    assert own == {"app.css", "app.js", "look", "explain", "frame"}
    assert all(address.startswith((server.url, "data:", "blob:")) for address in loaded), loaded
    page.execute_script("""
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);""")
    assert page.execute_script("return window.ran") is None
    refused = [entry["message"] for entry in page.get_log("browser")]
    assert refused
    assert all("Content Security Policy" in message for message in refused), refused
    _, text = server.ask("GET", "/")
    assert not re.findall(
        r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?:https?:)?//[^"']*""", text
    )
    _, style = server.ask("GET", "/app.css")
    assert not re.findall(r"url\(|@import", style)


def test_the_endpoint_answers_like_predict(server, image, tmp_path):
    arguments = [
        "predict",
        server.checkpoint,
        image,
        "--output",
        tmp_path / "out",
        "--threshold",
        0.4,
    ]
    parse_command([*map(str, arguments), "--device", "cpu", "--precision", "fp32"]).run()
    expected = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    status, answer = server.predict(image.read_bytes(), 0.4)
    assert status == 200
    assert len(answer["detections"]) > 1
    assert expected.pop("picture") == "a_picture.png"
    assert answer == {**expected, "image": None}


def test_the_docs_hold_by_curl(server, detector, tmp_path, monkeypatch):
    """Each curl command in the page answers what stands below it: the same keys and types."""
    shutil.copy(ROOT / "examples" / "digits.png", tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```console\n(curl [^`]*)```\n+```json\n(.*?)```", DOCS, re.DOTALL)
    assert len(examples) == 4
    for line, shown in examples:
        answer = answer_by_shell(server, line)
        assert form_of(answer) == form_of(json.loads(shown)), line
    first_line, _ = examples[0]
    answer = answer_by_shell(server, first_line)
    expected = detector.predict("digits.png", 0.4).to_dict()
    assert answer == {"image": "digits.png", **expected}


def answer_by_shell(server, line):
    """What a command of the page prints, sent to the server of the tests."""
    here = line.replace("http://127.0.0.1:7860/", server.url)
    words = shlex.split(here)
    done = subprocess.run(words, capture_output=True, check=True, timeout=60)
    return json.loads(done.stdout)


def form_of(value):
    """Keys and types at all depths; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {key: form_of(each) for key, each in value.items()}
    return [form_of(value[0])] if isinstance(value, list) else type(value)


def test_work_is_done_one_at_a_time():
    running, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    async def main():
        turns = Turns()
        refused = 0

        async def client():
            nonlocal refused
            try:
                await turns.take(Request({"type": "http"}, silence), work)
            except BusyError:
                refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(client)
        return refused

    assert anyio.run(main) == 40 - 1 - 32  # one at work, 32 waiting
    assert most == 1


def test_a_client_that_left_gets_no_turn():
    done = []

    async def left():
        return {"type": "http.disconnect"}

    async def main():
        turns = Turns()
        with pytest.raises(ClientDisconnect):
            await turns.take(Request({"type": "http"}, left), done.append, "for nobody")
        await turns.take(Request({"type": "http"}, silence), done.append, "for the next")

    anyio.run(main)
    assert done == ["for the next"]


def test_the_title_tells_runs_apart(tmp_path, monkeypatch):
    run = tmp_path / "first"
    run.mkdir()
    (run / "best.pt").touch()
    monkeypatch.chdir(run)
    assert command._title(".") == "first"
    assert command._title(str(run)) == "first"
    assert command._title("best.pt") == "first/best.pt"
    assert command._title("../first/best.pt") == "first/best.pt"
    assert command._title("facebook/detr-resnet-50") == "facebook/detr-resnet-50"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "open http://127.0.0.1:PORT/ in a browser"),
        ("::1", "open http://[::1]:PORT/ in a browser"),
        (
            "0.0.0.0",
            "open http://localhost:PORT/ on this machine, or http://mymachine:PORT/ from another",
        ),
        (
            "::",
            "open http://localhost:PORT/ on this machine, or http://mymachine:PORT/ from another",
        ),
    ],
)
def test_an_address_to_open_is_printed(host, expected, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "mymachine")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        invitation = App("run", host=host)._invitation(listening)
    assert invitation == expected.replace("PORT", str(port))


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_without_the_extra(package, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: name != package or None)
    with pytest.raises(
        InputError,
        match=rf'^{package} is not installed; install it with: pip install "redetr\[app\]"$',
    ):
        parse_command(["app", "anything.pt"]).run()


def test_a_port_that_is_taken(server):
    arguments = ["app", str(server.checkpoint), "--device", "cpu", "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"cannot listen on 127.0.0.1, port {port} .*: give another"
        ):
            parse_command([*arguments, str(port)]).run()
    with pytest.raises(InputError, match="--port 99999 is not between 0 and 65535"):
        parse_command([*arguments, "99999"]).run()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        parse_command([*arguments, "0", "--data", "nowhere"]).run()


def test_masks_are_drawn_below_their_boxes(tmp_path, shared_coco, browser, image):
    """Without the masks, the picture is another; each mask lies where the model has it."""
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", shared_coco, masks=True)
    detector = redetr.load(checkpoint, device="cpu")
    with torch.no_grad(), serving(checkpoint) as server, opened(server, browser) as page:
        upload(page, image)
        set_threshold(page, 0.1)
        polygons = page.execute_script("return shown.masks")
        expected = detector.predict(str(image), threshold=0.1)
        assert len(polygons) == len(expected) > 0
        canvas = "document.getElementById('picture').toDataURL()"
        drawn, without = page.execute_script(
            f"const drawn = {canvas}; shown.masks = []; draw(); return [drawn, {canvas}]"
        )
        assert drawn != without
        for outlined, mask in zip(polygons, expected.masks, strict=True):
            inside = Image.new("1", (90, 60))
            for polygon in outlined:  # a hole turns what is around it
                filled = Image.new("1", inside.size)
                corners = np.array(polygon) - 0.5
                ImageDraw.Draw(filled).polygon(corners.tolist(), fill=1)
                inside = ImageChops.logical_xor(inside, filled)
            differs = np.array(inside) != mask.numpy()
            assert differs.mean() < 0.1  # PIL draws the edge itself


def test_masks_for_programs_take_little_memory(tmp_path, shared_coco, image):
    """Cropped while they are computed, and the same in the answer."""
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", shared_coco, masks=True)
    detector = redetr.load(checkpoint, device="cpu")
    api = Api(detector, Uploads(), Turns())
    with open(image, "rb") as file:
        found = api._detect(Upload(file, image.name, None), threshold=0.0)
    assert isinstance(found.masks, CroppedMasks)
    assert found.to_dict() == detector.predict(str(image), threshold=0.0).to_dict()


def memory_of_outlines(height: int, width: int) -> int:
    """How many bytes the process grows by while 30 masks are outlined. For a process of its own."""
    detector = small_detector("redetr_n", masks=True, num_queries=30)
    with torch.no_grad():
        detector.model.class_embed[-1].bias.zero_()
    page = WebPage(detector, None, "", Uploads(), Turns())
    found = {}
    for side in (64, width):  # the first call allocates what does not depend on the size
        image = torch.zeros(3, height, side, dtype=torch.uint8)
        detections = detector.predict(image, threshold=0.0, masks=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(page._outlines(image, detections)) == 30
        found[side] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 1024 * found[width]


def test_masks_that_are_shown_take_little_memory():
    """Less than four masks of the size of the image."""
    assert in_fork(memory_of_outlines, 3000, 4000) < 4 * 3000 * 4000


def test_segments_of_a_panoptic_model(tmp_path, browser, image):
    """A checkbox chooses them in the place of detections: they are listed, and saved."""
    detector = sure()
    about = {
        "config": PANOPTIC.to_dict(),
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "is_thing": list(detector.model.is_thing),
        "step": 0,
        "best": {},
    }
    checkpoint = tmp_path / "best.safetensors"
    save_weights(checkpoint, detector.model.state_dict(), about)
    expected = redetr.load(checkpoint, device="cpu").predict_panoptic(str(image))
    with serving(checkpoint) as server, opened(server, browser) as page:
        upload(page, image)
        assert "detections with a score of" in told(page)
        one(page, "#segments").click()
        assert f"{len(expected)} segment" in told(page)
        _, content = saved_json(page, tmp_path)
        segments = content["detections"]
        names = [segment["label"] for segment in segments]
        assert names == expected.detections.names and len(names) > 0
        assert [segment["area"] for segment in segments] == [
            segment.area for segment in expected.panoptic.segments
        ]
        polygons = page.execute_script("return shown.masks")
        assert len(polygons) == len(expected)
        one(page, "#segments").click()
        assert "detections with a score of" in told(page)


def test_no_segments_of_other_models(page, image):
    upload(page, image)
    assert not one(page, "#segments").is_displayed()
