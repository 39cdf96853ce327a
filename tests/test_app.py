"""The page of `redetr app` in a browser without network, and its HTTP endpoint by curl."""

import base64
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import redetr
from redetr import app_api
from redetr.cli import parse_command
from redetr.commands import app as command
from redetr.data import open_dataset
from redetr.detector.detector import as_image
from redetr.errors import InputError
from redetr.explain import explain, explain_loss
from redetr.pages.drawing import to_pil
from tests.app_server import artefacts, serving, write_checkpoint
from tests.test_explain import picture
from tests.test_explain_page import Page

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

    def __init__(self, browser, place):
        self.browser = browser
        self._frame = f"#{place} iframe"

    def __enter__(self):
        self.browser.switch_to.frame(self.browser.find_element(By.CSS_SELECTOR, self._frame))
        wait(self.browser, lambda: self.part("steps", "terms").text)
        return self

    def __exit__(self, *_):
        self.browser.switch_to.default_content()


def wait(browser, until):
    return WebDriverWait(browser, 60, 0.1).until(lambda _: until())


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


@pytest.fixture
def page(server, browser):
    with opened(server, browser) as page:
        yield page


@contextmanager
def opened(server, browser):
    """The app, just opened; without complaints of the browser at the end."""
    browser.get_log("browser")
    browser.get(server.url)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#image input[type=file]"))
    yield browser
    browser.switch_to.default_content()
    log = browser.get_log("browser")
    assert not [entry for entry in log if entry["level"] == "SEVERE"], log


def upload(page, path):
    one(page, "#image input[type=file]").send_keys(str(path))
    return wait(page, lambda: told(page))


def told(page):
    """What stands below the slider; nothing while it is exchanged."""
    return page.execute_script("return [...document.querySelectorAll('#found p')].map(p => p.innerText).join(' ')")


def set_threshold(page, value):
    field = one(page, "#threshold input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(str(value), Keys.TAB)
    wait(page, lambda: f"score of {value:.2f} or more" in told(page))


def open_loss(page):
    next(tab for tab in page.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.text == "Matching and loss").click()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#judged iframe"))


def saved(page):
    """What the link saves."""
    link = one(page, "#found a[download]")
    return link.get_attribute("download"), json.loads(base64.b64decode(link.get_attribute("href").partition(",")[2]))


def test_upload_threshold_and_click(page, image, detector, tmp_path):
    explanation = explain(detector, as_image(image))
    scores = explanation.scores[-1]
    assert upload(page, image).startswith(
        f"{len(detector.predict(image, 0.5))} detections with a score of 0.50 or more."
    )
    for threshold in (0.4, 0.6):
        set_threshold(page, threshold)
        found = detector.predict(image, threshold).to_dict()
        assert len(page.find_elements(By.CSS_SELECTOR, "#found tr")) == 1 + len(found["detections"])
        assert saved(page) == ("a picture.json", {"image": image.name, **found})
        with Frame(page, "explained") as frame:
            shown = f"{(scores >= threshold).sum()} of 9 queries have a score of {threshold:.2f} or more"
            wait(page, lambda f=frame, s=shown: f.part("shown").text == s)
    page.save_screenshot(str(artefacts(tmp_path) / "app-found.png"))

    click_another(page, explanation, shown=(scores >= 0.6).nonzero().flatten().tolist())
    page.save_screenshot(str(artefacts(tmp_path) / "app-clicked.png"))


def test_a_click_in_the_faithful_form(browser, shared_coco, tmp_path):
    """Its attention is shown as maps over the image, not as points."""
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", shared_coco, "detr_r50")
    to_pil(picture()).save(tmp_path / "picture.png")
    explanation = explain(redetr.load(checkpoint, device="cpu"), picture())
    shown = (explanation.scores[-1] >= 0.5).nonzero().flatten().tolist()
    with serving(checkpoint) as server, opened(server, browser) as page:
        upload(page, tmp_path / "picture.png")
        click_another(page, explanation, shown)
        with Frame(page, "explained") as frame:
            assert "the brightest cell has" in frame.part("cross").text
        page.save_screenshot(str(artefacts(tmp_path) / "app-faithful.png"))


def click_another(page, explanation, shown):
    """Clicks one of the queries whose boxes are shown; attention, path and steps become its own."""
    first = int(explanation.scores[-1].argmax())
    boxes = explanation.boxes[-1].clamp(0, 1)
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    other = min((q for q in shown if q != first), key=lambda q: sizes[q])  # a click takes the smallest
    assert sizes[other] < sizes[first] or not overlap(boxes[other], boxes[first])
    with Frame(page, "explained") as frame:
        assert frame.part("chosen").text.startswith(f"query {first} ")
        before = [frame.drawing(name) for name in ("cross", "self", "path")]
        frame.click("stage", *((boxes[other, :2] + boxes[other, 2:]) / 2).tolist())
        wait(page, lambda: frame.part("chosen").text.startswith(f"query {other} "))
        after = [frame.drawing(name) for name in ("cross", "self", "path")]
        for old, new in zip(before, after, strict=True):
            assert all(a != b for a, b in zip(old, new, strict=True))
        assert page.execute_script("return origin") == "null"  # it reaches nothing of the page around it


def overlap(a, b):
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())


def test_nothing_found_and_taken_away_again(page, image):
    upload(page, image)
    set_threshold(page, 1)
    assert told(page).startswith("No detections with a score of 1.00 or more.")
    assert not page.find_elements(By.CSS_SELECTOR, "#found table")
    one(page, "#image button[aria-label='Remove Image']").click()
    wait(page, lambda: not page.find_elements(By.CSS_SELECTOR, "#explained iframe"))
    assert told(page) == ""
    assert "Drop an image" in one(page, "#explained").text


def test_a_bad_file_is_told(page, image, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:300])
    text = upload(page, bad)
    assert text.startswith("this image: cannot decode the image")
    assert len(text.splitlines()) == 1
    page.save_screenshot(str(artefacts(tmp_path) / "app-bad-file.png"))
    one(page, "#image button[aria-label='Remove Image']").click()
    wait(page, lambda: not told(page))
    assert "detections with a score" in upload(page, image)


def test_the_camera(page, detector):
    """A stand-in for a camera; its picture is looked at like a file."""
    page.execute_script("""
        const canvas = Object.assign(document.createElement("canvas"), {width: 80, height: 60});
        setInterval(() => { const c = canvas.getContext("2d"); c.fillStyle = "teal"; c.fillRect(0, 0, 80, 60); }, 30);
        navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(30);
        navigator.mediaDevices.enumerateDevices = async () => [{kind: "videoinput", deviceId: "1", label: "stand-in"}];
    """)
    one(page, "#image button[aria-label='Capture from camera']").click()
    access = "return [...document.querySelectorAll('#image button')].find(b => b.innerText.includes('Access Webcam'))"
    wait(page, lambda: page.execute_script(access)).click()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#image button[aria-label='capture photo']"))
    wait(page, lambda: page.execute_script("return document.querySelector('#image video').videoWidth") == 80)
    one(page, "#image button[aria-label='capture photo']").click()
    wait(page, lambda: told(page))
    assert saved(page)[1]["image_size"] == [60, 80]


def test_matching_and_loss_of_a_training_image(page, detector, shared_coco, tmp_path):
    open_loss(page)
    dataset = open_dataset(shared_coco, "train")
    assert one(page, "#image-id textarea, #image-id input").get_attribute("value") == "100"
    with Frame(page, "judged") as frame:
        expected = explain_loss(detector, dataset, 100)
        assert len(frame.rows("terms")) == 1 + 2  # an object, the other queries, the sum
        total = sum(expected.costs[-1, :, query, t].sum().item() for t, query in enumerate(expected.queries[-1]))
        assert float(frame.part("total").text.split("=")[1]) == pytest.approx(total, abs=1e-3)
    page.save_screenshot(str(artefacts(tmp_path) / "app-loss.png"))

    field = one(page, "#world-size input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("2", Keys.TAB)
    one(page, "#show").click()
    wait(page, lambda: "GPU 0 of 2" in judged(page))
    assert "boxes per GPU, on average: (1 + 2) / 2 = 1.5" in judged(page)

    one(page, "#next").click()
    wait(page, lambda: "boxes per GPU, on average: (2 + 0) / 2 = 1" in judged(page))
    assert one(page, "#image-id textarea, #image-id input").get_attribute("value") == "101"

    field = one(page, "#image-id textarea, #image-id input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("7", Keys.ENTER)
    wait(page, lambda: "has no image with this id: try another, such as 100, 101" in one(page, "#judged").text)


def judged(page):
    """The text of the frame; nothing while it is exchanged."""
    frames = page.find_elements(By.CSS_SELECTOR, "#judged iframe")
    return frames[0].get_attribute("srcdoc") if frames else ""


def test_nothing_comes_from_elsewhere(page, server, image):
    upload(page, image)
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(loaded) > 10
    assert all(address.startswith((server.url, "data:", "blob:")) for address in loaded), loaded
    _, text = server.ask("GET", "/")
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?:https?:)?//[^"']*""", text)
    _, style = server.ask("GET", "/theme.css")
    assert not re.findall(r"""url\(["']?(?:https?:)?//|@import""", style)


def test_the_endpoint_answers_like_predict(server, image, tmp_path):
    arguments = ["predict", server.checkpoint, image, "--output", tmp_path / "out", "--threshold", 0.4]
    parse_command([*map(str, arguments), "--device", "cpu", "--precision", "fp32"]).run()
    expected = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    status, answer = server.predict(image.read_bytes(), 0.4)
    assert status == 200
    assert len(answer["detections"]) > 1
    assert expected.pop("picture") == "a_picture.png"
    assert answer == {**expected, "image": None}


def test_the_docs_hold_by_curl(server, detector, tmp_path, monkeypatch):
    """Each curl command in the page answers what stands below it: the same keys, values of the same types."""
    shutil.copy(ROOT / "examples" / "digits.png", tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```console\n(curl [^`]*)```\n+```json\n(.*?)```", DOCS, re.DOTALL)
    assert len(examples) == 4
    for line, shown in examples:
        words = [word.replace("http://127.0.0.1:7860/", server.url) for word in shlex.split(line)]
        answer = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        assert form_of(json.loads(answer)) == form_of(json.loads(shown)), line
    expected = detector.predict("digits.png", 0.4).to_dict()
    words = shlex.split(examples[0][0].replace("http://127.0.0.1:7860/", server.url))
    answer = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
    assert answer == {"image": "digits.png", **expected}


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
        turns = app_api.Turns()
        refused = 0

        async def client():
            nonlocal refused
            try:
                await turns.take(work)
            except app_api.BusyError:
                refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(client)
        return refused

    assert anyio.run(main) == 40 - 1 - 32  # one at work, 32 waiting
    assert most == 1


def test_without_gradio(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^gradio is not installed; it comes with: pip install redetr\[app\]$"):
        parse_command(["app", "anything.pt"]).run()


def test_a_port_that_is_taken(server):
    arguments = ["app", str(server.checkpoint), "--device", "cpu", "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1, port {port} .*: give another"):
            parse_command([*arguments, str(port)]).run()
    with pytest.raises(InputError, match="--port 99999 is not between 0 and 65535"):
        parse_command([*arguments, "99999"]).run()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        parse_command([*arguments, "0", "--data", "nowhere"]).run()
