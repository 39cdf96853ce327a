"""The page of a predicted folder: in a browser without network, opened from disk."""

import json

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from redetr.detector import contact_sheet
from redetr.detector.record_formats import write_formats


def detection(label, score, box):
    return {"label": label, "category_id": 1, "score": score, "box": box}


def write_folder(folder):
    """Two images with objects, one without, a video, and a source that was not read."""
    folder.mkdir()
    for name in ("a&b.png", "c.png", "none.png"):
        Image.new("RGB", (80, 40), "gray").save(folder / name)
    cup = detection("cup", 0.9, [10, 5, 30, 25])
    plate = detection("<plate>", 0.4, [40, 10, 79, 39])
    spoon = detection("spoon", 0.35, [0, 0, 9, 9])
    size = [40, 80]
    lines = [
        {"image": "in/a&b.jpg", "picture": "a&b.png", "image_size": size, "detections": [cup, cup]},
        {"image": "in/c.jpg", "picture": "c.png", "image_size": size, "detections": [plate]},
        {"image": "in/d.jpg", "picture": "c.png", "image_size": size, "detections": [cup, spoon]},
        {"image": "in/none.jpg", "picture": "none.png", "image_size": size, "detections": []},
        {"image": "in/bad.jpg", "error": "in/bad.jpg: cannot decode the image"},
    ]
    for frame, score in enumerate((0.3, 0.8, 0.6)):
        line = {"image": "in/v.mp4", "picture": "v.mp4", "image_size": size, "frame": frame}
        lines.append(line | {"detections": [cup | {"score": score}]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text)
    write_formats(folder, ["html"])
    return folder / "index.html"


@pytest.fixture
def sheet(browser, tmp_path):
    page = write_folder(tmp_path / "made before")
    page.parent.rename(tmp_path / "moved #1")  # all links are relative
    browser.get_log("browser")
    browser.get((tmp_path / "moved #1" / page.name).as_uri())
    yield browser
    # The video of this test has no file.
    log = [entry["message"] for entry in browser.get_log("browser")]
    assert not [message for message in log if "v.mp4" not in message]


def cards(browser):
    return [caption.text for caption in browser.find_elements(By.TAG_NAME, "figcaption")]


def status(browser):
    return browser.find_element(By.ID, "status").text


def set_value(browser, name, value):
    script = """const [id, value] = arguments, control = document.getElementById(id);
        control.value = value;
        for (const name of ["input", "change"]) control.dispatchEvent(new Event(name))"""
    browser.execute_script(script, name, value)


def test_all_are_shown_at_first(sheet):
    assert status(sheet) == "5 of 5 images, 5 objects"
    assert cards(sheet) == [
        "a&b.jpg\ncup × 2",
        "c.jpg\n<plate>",
        "d.jpg\ncup, spoon",
        "none.jpg\nno objects",
        "v.mp4\ncup up to 0.80",
    ]
    widths = sheet.execute_script(
        "return [...document.images].map((image) => [image.complete, image.naturalWidth])"
    )
    assert widths == [[True, 80]] * 4
    not_read = sheet.find_element(By.TAG_NAME, "details")
    assert not_read.text == "1 could not be read"
    assert not sheet.find_elements(By.TAG_NAME, "rect")


def test_class_and_score_choose(sheet):
    choice = Select(sheet.find_element(By.ID, "class"))
    names = [option.text for option in choice.options]
    assert names == [
        "all (5 images)",
        "<plate> (1)",
        "cup (4)",
        "spoon (1)",
        "nothing found (1)",
    ]
    choice.select_by_visible_text("cup (4)")
    assert cards(sheet) == ["a&b.jpg\ncup × 2", "d.jpg\ncup", "v.mp4\ncup up to 0.80"]
    set_value(sheet, "score", 0.85)
    assert status(sheet) == "2 of 5 images, 3 objects"
    choice.select_by_visible_text("nothing found (1)")
    assert cards(sheet) == ["none.jpg\nno objects"]
    choice.select_by_visible_text("<plate> (1)")
    assert status(sheet) == "0 of 5 images, 0 objects"


def test_what_is_chosen_is_framed(sheet):
    Select(sheet.find_element(By.ID, "class")).select_by_index(1)
    assert cards(sheet) == ["c.jpg\n<plate>"]
    assert not sheet.find_elements(By.TAG_NAME, "rect")  # it is all that is in the image
    link = sheet.find_element(By.CSS_SELECTOR, "figure a").get_attribute("href")
    choice = Select(sheet.find_element(By.ID, "class"))
    choice.select_by_visible_text("cup (4)")
    rectangles = sheet.find_elements(By.CSS_SELECTOR, "rect.over")
    edges = [rectangles[0].get_attribute(side) for side in ("x", "y", "width", "height")]
    assert (len(rectangles), edges) == (1, ["10", "5", "20", "20"])
    assert link == sheet.current_url.replace("index.html", "c.png")


def test_the_order(sheet):
    orders = {}
    for order in ("most", "surest", "unsure"):
        set_value(sheet, "order", order)
        orders[order] = [card.split("\n")[0] for card in cards(sheet)]
    assert orders["most"][0] == orders["surest"][0] == "a&b.jpg"
    assert orders["unsure"] == ["d.jpg", "c.jpg", "v.mp4", "a&b.jpg", "none.jpg"]


def test_a_large_folder_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr(contact_sheet, "_MOST_CARDS", 2)
    line: dict = {"picture": "a.png", "image_size": [4, 4], "detections": []}
    page = contact_sheet.contact_sheet({"image": f"{i}.jpg", **line} for i in range(5))
    assert "<h1>Predictions in 5 images</h1>" in page
    assert "This page shows the first 2 images. 3 more are in predictions.jsonl." in page
