"""The pages of `redetr explain` in a browser without network: pictures are drawn, clicks change
them."""

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from redetr.data import open_dataset
from redetr.explain import (
    Explanation,
    Maps,
    explain,
    explain_loss,
    query_habits,
    write_image_page,
    write_loss_page,
)
from redetr.explain.attention import model_input
from redetr.explain.loss_page import letters
from tests.test_explain import CLASSES, FORMS, IDS, picture, small_detector
from tests.test_explain_loss import Renamed, TwoImages, worked_example

TWO_LEVELS = {
    "width": 16,
    "enc_hidden_dim": 32,
    "hidden_dim": 32,
    "nheads": 4,
    "points": (1, 2),
    "num_queries": 9,
}
PANOPTIC = ("detr_r50_panoptic", {})
# How many different pixels each canvas shows: one that was never drawn on shows none.
DRAWN = """return [...document.querySelectorAll("canvas")].map(c => new Set(new Uint32Array(
    c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size)"""


class Page:
    """A page that is open, and what it shows."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())
        WebDriverWait(browser, 60).until(
            lambda _: self.part("stage", "objects").get_attribute("width") != "300"
        )
        WebDriverWait(browser, 60).until(lambda _: self.part("steps", "terms").text)

    def part(self, *names):
        return self.browser.find_element(
            By.CSS_SELECTOR, ",".join(f"[data-part={name}]" for name in names)
        )

    def drawing(self, name):
        """A number for each canvas of a part that changes with its pixels."""
        script = """const part = document.querySelector(`[data-part=${arguments[0]}]`);
            const hash = (text) => { let h = 0; for (const c of text) h = (31 * h + c.charCodeAt(0)) | 0; return h; };
            return [part, ...part.querySelectorAll("canvas")].filter(c => c.toDataURL).map(c => hash(c.toDataURL()))"""
        return self.browser.execute_script(script, name)

    def click(self, name, x, y):
        """Clicks a canvas at fractions of its sides."""
        canvas = self.part(name)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        size = canvas.size
        offset = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        ActionChains(self.browser).move_to_element_with_offset(canvas, *offset).click().perform()

    def press(self, name, text):
        part = self.part(name)
        button = next(b for b in part.find_elements(By.TAG_NAME, "button") if b.text == text)
        self.browser.execute_script("arguments[0].click()", button)

    def rows(self, name):
        lines = self.part(name).find_elements(By.CSS_SELECTOR, "tbody tr")
        return [[cell.text for cell in line.find_elements(By.TAG_NAME, "td")] for line in lines]

    def errors(self):
        return self.browser.get_log("browser")


def apart(explanation: Explanation) -> Explanation:
    """The same with two boxes that can be clicked: query 0 at the left, query 1 at the right, the
    others small."""
    boxes = torch.full_like(explanation.boxes, 0.01)
    boxes[..., 2:] = 0.02
    boxes[:, 0], boxes[:, 1] = (
        torch.tensor([0.1, 0.2, 0.4, 0.8]),
        torch.tensor([0.6, 0.2, 0.9, 0.8]),
    )
    boxes[0, 0] = torch.tensor([0.2, 0.2, 0.5, 0.8])  # from there it moves
    scores = torch.full_like(explanation.scores, 0.01)
    scores[:, 0], scores[:, 1] = 0.9, 0.8
    return Explanation(**{**vars(explanation), "boxes": boxes, "scores": scores})


def test_the_controls_under_a_high_picture_stay_in_the_window(tmp_path, browser):
    explanation = explain(small_detector("redetr_n"), picture(400, 300))
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.5)
    view = {"width": 1366, "height": 650, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    page = Page(browser, tmp_path / "index.html")
    browser.execute_script("arguments[0].scrollIntoView()", page.part("path"))
    bottom = "return arguments[0].getBoundingClientRect().bottom"
    bottoms = [browser.execute_script(bottom, page.part(name)) for name in ("list", "threshold")]
    canvas = page.part("stage").size
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert max(bottoms) <= 650
    assert canvas["width"] / canvas["height"] == pytest.approx(3 / 4, abs=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_a_click_shows_what_that_query_did(form, tmp_path, browser):
    explanation = apart(explain(small_detector(form), picture()))
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.5)
    page = Page(browser, tmp_path / "index.html")
    names = [explanation.class_names[label] for label in explanation.labels[-1, :2]]
    assert page.part("chosen").text == f"query 0 (“{names[0]}”, score 0.90)"
    assert page.part("shown").text.startswith("2 of ")
    assert all(colors > 100 for colors in browser.execute_script(DRAWN))
    # All that the page says follows: parts 1 to 5. Learned queries start nowhere.
    parts = ["stage", "cross", "self", "path", "encoder"]
    if form != "detr_r50":
        parts.append("picks")
    before = [page.drawing(part) for part in parts]
    assert [len(drawings) for drawings in before[:5]] == [1, 3, 3, 1, 1]  # of three layers

    page.click("stage", 0.75, 0.5)
    assert page.part("chosen").text == f"query 1 (“{names[1]}”, score 0.80)"
    after = [page.drawing(part) for part in parts]
    for part, old, new in zip(parts, before, after, strict=True):
        assert all(a != b for a, b in zip(old, new, strict=True)), part

    page.click("stage", 0.98, 0.95)  # nothing is there
    assert page.part("chosen").text.startswith("query 1 ")
    page.press("heads", "2")
    assert all(a != b for a, b in zip(page.drawing("cross"), after[1], strict=True))
    Select(page.part("list")).select_by_value("0")
    page.press("heads", "all heads")
    assert [page.drawing(part) for part in parts] == before
    assert page.errors() == []


def test_a_single_box_is_in_the_singular(tmp_path, browser):
    explanation = apart(explain(small_detector("detr_r50"), picture()))
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.85)
    page = Page(browser, tmp_path / "index.html")
    assert page.part("shown").text == "1 of 7 queries has a score of 0.85 or more"
    label = page.part("stage").get_attribute("aria-label")
    assert label.startswith("The image with 1 box; query 0 is ")


@pytest.mark.parametrize("form", FORMS)
def test_the_table_of_layers(form, tmp_path, browser):
    explanation = apart(explain(small_detector(form), picture()))
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.5)
    rows = Page(browser, tmp_path / "index.html").rows("steps")
    assert [row[0] for row in rows] == [
        *["start"] * (form != "detr_r50"),
        "layer 1",
        "layer 2",
        "layer 3",
    ]
    # Half of the widths is shared: 0.2 / 0.4.
    assert rows[-3][2:] == [
        "0.900",
        "18, 12, 45, 48",
        "0.50",
    ]
    assert rows[-1][2:] == ["0.900", "9, 12, 36, 48", "1.00"]


@pytest.mark.parametrize("form", FORMS)
def test_a_click_into_the_encoder(form, tmp_path, browser):
    explanation = explain(small_detector(form), picture())
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.5)
    page = Page(browser, tmp_path / "index.html")
    page.click("encoder", 0.05, 0.05)
    first = page.drawing("encoder")
    height, width = explanation.encoder_attention.shape[:2]
    times = explanation.encoder_attention[0, 0].max() * height * width
    text = page.part("encoder-note").text
    assert text.startswith(f"Row 1 of {height}, column 1 of {width}: ")
    assert f", {times:.1f} times an even share" in text
    page.click("encoder", 0.95, 0.95)
    assert page.drawing("encoder") != first
    assert page.part("encoder-note").text.startswith(
        f"Row {height} of {height}, column {width} of {width}: "
    )


def test_the_light_is_where_the_weight_is(tmp_path, browser):
    """A head that looks at one cell lights that cell."""
    explanation = explain(small_detector("detr_r50"), torch.zeros(3, 60, 90, dtype=torch.uint8))
    weights = torch.zeros(3, 7, 4, 4, 6)
    weights[..., 1, 4] = 1
    changed = Explanation(**{**vars(apart(explanation)), "cross_attention": Maps(weights)})
    write_image_page(tmp_path / "index.html", changed, "a.png", threshold=0.5)
    page = Page(browser, tmp_path / "index.html")
    red = """const c = document.querySelector("[data-part=cross] canvas");
        return arguments[0].map(([x, y]) => c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data[0])"""
    lit, dark = page.browser.execute_script(red, [[4.5 / 6, 1.5 / 4], [1.5 / 6, 3.5 / 4]])
    assert lit > 200
    assert dark < 20
    assert "the brightest cell has 100%, 24 times an even share" in page.part("cross").text


def test_habits_of_learned_queries_can_be_clicked(tmp_path, browser, shared_coco):
    detector, dataset = small_detector("detr_r50"), open_dataset(shared_coco, "val")
    habits = query_habits(detector, dataset, 3)
    write_image_page(tmp_path / "index.html", explain(detector, picture()), "a.png", 0.5, habits)
    page = Page(browser, tmp_path / "index.html")
    assert len(page.drawing("habits")) == 7
    small = page.part("habits").find_elements(By.TAG_NAME, "canvas")
    browser.execute_script("arguments[0].scrollIntoView()", small[4])
    small[4].click()
    assert page.part("chosen").text.startswith("query 4 ")
    assert page.part("habit").text == "query 4 on 3 images"
    assert page.errors() == []


def test_habits_of_picked_queries_are_levels(tmp_path, browser, shared_coco):
    detector, dataset = small_detector("redetr_n"), open_dataset(shared_coco, "val")
    habits = query_habits(detector, dataset, 3)
    write_image_page(tmp_path / "index.html", explain(detector, picture()), "a.png", 0.5, habits)
    page = Page(browser, tmp_path / "index.html")
    assert len(page.drawing("habits")) == 3
    share = f"{100 * (habits.level == 0).float().mean():.0f}%"
    text = browser.find_element(By.TAG_NAME, "body").text
    assert f"8 px (blue) {share}" in text
    assert "share of the top tenth by score" in text
    assert page.errors() == []


@pytest.mark.parametrize(
    ("form", "options", "words", "colors"),
    [
        ("redetr_n", {}, "into 2 grids, with one cell for every 8 and 16 pixels", "pink"),
        ("rtdetr_r18", {}, "into 3 grids, with one cell for every 8, 16 and 32 pixels", "pink"),
        ("dfine_n", TWO_LEVELS, "into 2 grids, with one cell for every 16 and 32 pixels", "orange"),
    ],
)
def test_the_grids_are_those_of_the_model(form, options, words, colors, tmp_path, browser):
    explanation = explain(small_detector(form, **options), picture())
    write_image_page(tmp_path / "index.html", explanation, "a.png", threshold=0.5)
    page = Page(browser, tmp_path / "index.html")
    text = " ".join(browser.find_element(By.TAG_NAME, "body").text.split())
    assert words in text
    assert f"attends on the grid of {explanation.encoder_stride}." in text
    assert f", {colors} for one cell per 32 px." in text
    assert f"on {explanation.strides[0]} px" in page.part("cross").text
    assert page.errors() == []


def test_names_cannot_end_the_script(tmp_path, browser):
    names = ("</script><b id=bad>", "&amp;", "'\"")
    explanation = explain(small_detector("detr_r50"), picture())
    changed = Explanation(**{**vars(explanation), "class_names": names})
    write_image_page(tmp_path / "index.html", changed, "<i id=bad>.png", 0.5)
    page = Page(browser, tmp_path / "index.html")
    assert (
        names[explanation.labels[-1, explanation.scores[-1].argmax()]] in page.part("chosen").text
    )
    assert not browser.find_elements(By.ID, "bad")
    assert page.errors() == []


def test_a_large_page_has_a_few_megabytes(tmp_path):
    """100 queries in 6 layers, 8 heads; weights at random, which compress worst; a map that is
    drawn coarser."""
    random = torch.Generator().manual_seed(0)
    cross = torch.rand(6, 100, 8, 50, 67, generator=random)
    encoder = torch.rand(25, 34, 25, 34, generator=random)
    explanation = Explanation(
        picture(480, 640),
        CLASSES,
        torch.rand(6, 100, 4),
        torch.rand(6, 100),
        torch.zeros(6, 100, dtype=torch.int64),
        Maps(cross / cross.sum((-2, -1), keepdim=True)),
        (),
        torch.rand(6, 100, 100),
        encoder / encoder.sum((-2, -1), keepdim=True),
        16,
        None,
    )
    write_image_page(tmp_path / "index.html", explanation, "a.png", 0.5)
    assert (tmp_path / "index.html").stat().st_size < 7e6


def test_the_worked_example_on_its_page(tmp_path, browser):
    write_loss_page(tmp_path / "loss.html", worked_example(2))
    page = Page(browser, tmp_path / "loss.html")
    assert page.part("worked").text.splitlines() == [
        "L1 distances: 0.25 + 0.3 = 0.55",
        "one GPU alone: 0.55 / 2 = 0.275",
        "boxes per GPU, on average: (2 + 4) / 2 = 3",
        "GPU 0 of 2: 0.55 / 3 = 0.18333",
    ]
    text = browser.find_element(By.TAG_NAME, "body").text
    assert (
        "The mean of the losses is 0.15833: 0.95 / 6, which is what one GPU with all images would "
        "compute (0.15833)." in text
    )
    assert "the mean would be 0.1875, 18.4% off" in text  # (0.275 + 0.1) / 2
    assert "2 + 0.1 x 98 = 11.8" in text
    rows = page.rows("terms")
    assert rows[0][:4] == ["A: A", "17", "0.1000 + 0.0500 + 0.0600 + 0.0400", "0.2500"]
    assert rows[-2][0] == "98 other queries"
    assert rows[-1][3] == "0.5500"
    assert page.errors() == []


def test_matched_cells_and_parts_of_the_cost(tmp_path, browser):
    found = explain_loss(small_detector("detr_r50"), Renamed(), 1)
    write_loss_page(tmp_path / "loss.html", found)
    page = Page(browser, tmp_path / "loss.html")
    queries = found.queries[-1].tolist()
    costs = [found.costs[-1, :, query, t] for t, query in enumerate(queries)]

    def framed():
        return sorted(cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td.matched"))

    assert framed() == sorted(f"{cost.sum():.3f}" for cost in costs)
    total = float(page.part("total").text.split("=")[1])
    assert total == pytest.approx(sum(cost.sum().item() for cost in costs), abs=1e-3)
    for part, name in enumerate(("class only", "L1 only", "GIoU only")):
        page.press("costs", name)
        assert framed() == sorted(f"{cost[part]:.3f}" for cost in costs)
    assert len(page.rows("matrix")) <= 6
    browser.execute_script("arguments[0].click()", page.part("every"))
    assert len(page.rows("matrix")) == 7
    assert page.part("size").text == "7 of 7 queries, 2 objects; a larger table scrolls."
    before = page.drawing("objects"), page.rows("terms")
    page.press("layers", "layer 1")
    assert page.drawing("objects") != before[0]
    ce, l1, giou = found.terms[0, 0].tolist()
    assert page.rows("terms")[0][3:] == [f"{l1:.4f}", f"{giou:.4f}", f"{ce:.4f}"]
    assert all(colors > 50 for colors in browser.execute_script(DRAWN))
    assert page.errors() == []


@pytest.mark.parametrize("form", FORMS)
def test_an_image_without_objects(form, tmp_path, browser, shared_coco):
    found = explain_loss(small_detector(form), open_dataset(shared_coco, "val"), 102, 2)
    write_loss_page(tmp_path / "loss.html", found)
    page = Page(browser, tmp_path / "loss.html")
    assert len(page.rows("terms")) == 2  # the other queries, and the sum
    assert page.part("total").text == "nothing to match"
    assert page.errors() == []


def test_denoising_queries_have_a_part_of_their_own(tmp_path, browser, shared_coco):
    data = open_dataset(shared_coco, "val")
    found = explain_loss(small_detector("rtdetr_r18", denoising=2), data, 104)
    write_loss_page(tmp_path / "loss.html", found)
    page = Page(browser, tmp_path / "loss.html")
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "in each of 2 groups, two for every object" in " ".join(text.split())
    noisy = found.noisy
    name = CLASSES[found.labels[0]]
    start = CLASSES[noisy.labels[1, 0]]
    (row,) = [line for line in text.splitlines() if line.startswith(f"A: {name} negative")]
    assert row.startswith(f"A: {name} negative {start} 0.")
    assert row.endswith(f" {noisy.scores[-1, 1, 0]:.3f}")
    losses = found.shares[0].losses
    (row,) = [line for line in text.splitlines() if line.startswith("denoising, layer 1")]
    assert row.split()[3] == f"{losses['loss_ce_dn_0']:.5g}"
    before = page.drawing("noisy")
    page.press("layers", "layer 1")
    assert page.drawing("noisy") != before
    assert all(colors > 50 for colors in browser.execute_script(DRAWN))
    assert page.errors() == []

    empty = explain_loss(small_detector("rtdetr_r18", denoising=2), data, 102)
    write_loss_page(tmp_path / "empty.html", empty)
    assert Page(browser, tmp_path / "empty.html").errors() == []
    write_loss_page(tmp_path / "none.html", explain_loss(small_detector("rtdetr_r18"), data, 104))
    assert 'data-part="noisy"' not in (tmp_path / "none.html").read_text()


def test_the_class_loss_is_described_as_it_is(tmp_path, shared_coco):
    data = open_dataset(shared_coco, "val")
    words = {"mal": "boxes, to the power 1.5;", "varifocal": "boxes, and counts as much as that;"}
    for class_loss, expected in words.items():
        found = explain_loss(small_detector("rtdetr_r18", class_loss=class_loss), data, 104)
        write_loss_page(tmp_path / "loss.html", found)
        assert expected in (tmp_path / "loss.html").read_text()


def test_a_batch_without_objects(tmp_path, browser):
    found = explain_loss(small_detector("detr_r50"), Empty(), 1, 2)
    write_loss_page(tmp_path / "loss.html", found)
    page = Page(browser, tmp_path / "loss.html")
    lines = page.part("worked").text.splitlines()
    assert lines[0] == "L1 distance: 0"
    assert lines[-1] == "(no object in the whole batch: it is divided as if there were one)"
    assert page.errors() == []


def test_a_matrix_of_many_numbers(tmp_path, browser):
    """More than a function of JavaScript takes as arguments."""
    detector = small_detector("redetr_n", num_queries=520)
    write_loss_page(tmp_path / "loss.html", explain_loss(detector, Crowded(), 1))
    page = Page(browser, tmp_path / "loss.html")
    browser.execute_script("arguments[0].click()", page.part("every"))
    assert page.part("size").text.endswith(
        f" queries, {Crowded.count} objects; a larger table scrolls."
    )
    assert page.errors() == []


class Crowded(TwoImages):
    class_names, category_ids = CLASSES, IDS
    count = 260

    def target(self, index):
        corners = torch.arange(self.count).remainder(20)[:, None] + torch.tensor([0, 0, 9, 9])
        return {
            **super().target(index),
            "boxes": corners.float(),
            "labels": torch.zeros(self.count, dtype=torch.int64),
            "iscrowd": torch.zeros(self.count, dtype=torch.bool),
            "area": torch.full((self.count,), 81.0),
        }


class Empty(TwoImages):
    class_names, category_ids = CLASSES, IDS

    def target(self, index):
        target = super().target(index)
        none = {name: target[name][:0] for name in ("boxes", "labels", "iscrowd", "area")}
        return {**target, **none}


def test_letters_do_not_run_out():
    assert letters(28)[24:] == ["Y", "Z", "A1", "B1"]
    assert len(set(letters(100))) == 100


def test_the_letter_of_an_object_is_seen_beside_its_query(tmp_path, browser):
    """At the upper edge, where the name of the query stands below the box."""
    write_image_page(
        tmp_path / "index.html",
        explain(small_detector("detr_r50"), picture()),
        "a.png",
        threshold=0.5,
    )
    browser.get((tmp_path / "index.html").as_uri())
    # The green of objects, as ABGR.
    letter = browser.execute_script("""
        const canvas = Object.assign(document.createElement("canvas"), {width: 400, height: 400});
        const context = canvas.getContext("2d"), window = [0, 0, 1, 1];
        const panel = Object.assign(Object.create(Panel.prototype), {canvas, context, window});
        panel.box([0.1, 0.01, 0.2, 0.3], TRUTH, {tag: "A", beside: true});
        panel.box([0.1, 0.01, 0.2, 0.3], CHOSEN, {tag: "query 0"});
        const pixels = new Uint32Array(context.getImageData(0, 0, 400, 400).data.buffer);
        return pixels.filter((pixel) => pixel === 0xff66cf51).length""")
    assert letter > 100


@pytest.mark.parametrize(("form", "options"), [("redetr_n", {"masks": True}), PANOPTIC])
def test_the_mask_of_a_query_stands_beside_its_attention(form, options, tmp_path, browser):
    detector = small_detector(form, **options)
    explanation = explain(detector, picture())
    with torch.no_grad():
        outputs = detector.model(model_input(detector, picture()))
    expected = outputs["pred_masks"][0].sigmoid()
    torch.testing.assert_close(explanation.masks, expected, atol=1e-5, rtol=0)
    path = tmp_path / "page.html"
    write_image_page(path, explanation, "a picture", 0.5)
    page = Page(browser, path)
    (before,) = page.drawing("mask")
    ranked = explanation.scores[-1].argsort(descending=True)
    Select(page.part("list")).select_by_value(str(int(ranked[-1])))
    assert page.drawing("mask") != [before]
    share = float((explanation.masks[ranked[-1]] > 0.5).float().mean())
    caption = page.part("mask").text
    assert abs(float(caption.split()[1].rstrip("%")) - 100 * share) < 3, caption
    assert browser.get_log("browser") == []
