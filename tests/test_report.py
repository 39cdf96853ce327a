import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import lines_of, train_arguments
from forked import run_ranks
from selenium.webdriver.common.by import By
from test_metrics import (
    NAMES,
    flat,
    pycocotools_evaluation,
    random_detections,
    random_scene,
    target,
)

from redetr.cli import main
from redetr.data import DetectionDataset
from redetr.errors import InputError
from redetr.metrics import GroundTruth, coco_metrics
from redetr.pages.templates import require_redetr_page
from redetr.report import make_report, write_report
from redetr.report.page import _is_dark


class Scenes(DetectionDataset):
    """Gray images with the boxes of `targets`."""

    name = "scenes"

    def __init__(self, targets, class_names=NAMES):
        self.targets, self.class_names, self.category_ids = (
            targets,
            class_names,
            tuple(range(len(class_names))),
        )

    def __len__(self):
        return len(self.targets)

    def target(self, index):
        return self.targets[index]

    def image(self, index):
        return torch.full((3, *self.targets[index]["orig_size"]), 100, dtype=torch.uint8)


def scene_of_each_kind(class_names=("cat", "dog")):
    """Two images: a cat found and a dog missed; a dog found, and something on background."""
    targets = [target(3, [[0, 0, 50, 50], [60, 0, 90, 30]], [0, 1], size=(80, 100)),
               target(8, [[0, 0, 40, 40]], [1], size=(80, 100))]  # fmt: skip
    boxes = torch.tensor([[0, 0, 50, 50], [0, 0, 40, 40], [60, 60, 90, 70]], dtype=torch.float32)
    detections = (
        torch.tensor([0, 1, 1]),
        torch.tensor([0.9, 0.6, 0.8]),
        torch.tensor([0, 1, 0]),
        boxes,
    )
    return Scenes(targets, class_names), flat(*detections)


@pytest.fixture(scope="module")
def random_report():
    rng = np.random.default_rng(4)
    targets = [random_scene(rng, image_id, 0.1) for image_id in rng.permutation(1000)[:30].tolist()]
    detections = random_detections(rng, targets, 25, 6)
    return targets, detections, make_report(Scenes(targets), [("a.pt", flat(*detections))])


def test_the_numbers_are_coco_s(random_report):
    targets, detections, report = random_report
    expected = coco_metrics(GroundTruth.from_targets(targets, NAMES), flat(*detections)).to_dict()
    run = report.numbers["checkpoints"][0]
    assert (
        run["metrics"] == {name: expected[name] for name in run["metrics"]}
        and len(run["metrics"]) == 12
    )
    assert {name: entry["AP"] for name, entry in run["per_class"].items()} == expected["per_class"]
    assert run["all"]["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)
    evaluation = pycocotools_evaluation(targets, *detections)
    for label, name in enumerate(NAMES[:4]):
        curve = evaluation.eval["precision"][0, :, label, 0, 2]
        np.testing.assert_allclose(
            run["per_class"][name]["curves"]["precision_at_recall"], curve, atol=5e-5
        )
        assert run["per_class"][name]["AP50"] == pytest.approx(curve.mean())
    assert run["per_class"]["never seen"]["AP"] is None
    json.dumps(report.numbers, allow_nan=False)


def test_groups_by_size_are_pycocotools_s(random_report):
    targets, detections, report = random_report
    groups = report.numbers["checkpoints"][0]["by_size"]
    assert (
        len(groups) == 4
        and sum(group["objects"] for group in groups) == report.numbers["data"]["objects"]
    )
    for i, group in enumerate(groups):
        low, high = group["from_px"] ** 2 + 1e-3 * (1 if i else -1), group["to_px"] ** 2 + 1e-3
        precision = pycocotools_evaluation(targets, *detections, (low, high)).eval["precision"][
            ..., 0, 2
        ]
        assert group["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def test_objects_of_one_size_are_one_group():
    dataset = Scenes([target(0, [[0, 0, 9, 9], [20, 20, 29, 29]], [0, 0])])
    found = flat(
        torch.tensor([0]), torch.tensor([0.9]), torch.tensor([0]), torch.tensor([[0.0, 0, 9, 9]])
    )
    groups = make_report(dataset, [("a.pt", found)]).numbers["checkpoints"][0]["by_size"]
    assert groups == [{"from_px": 9.0, "to_px": 9.0, "objects": 2, "AP": pytest.approx(51 / 101)}]


def test_groups_by_number_of_objects_are_pycocotools_s(random_report):
    targets, detections, report = random_report
    counts = np.array([int((~scene["iscrowd"]).sum()) for scene in targets])
    groups = report.numbers["checkpoints"][0]["by_objects_in_image"]
    assert [(g["from"], g["to"]) for g in groups] == [(2, 3), (4, 7), (8, 9)]
    assert sum(group["objects"] for group in groups) == counts.sum()
    for group in groups:
        images = np.flatnonzero((counts >= group["from"]) & (counts <= group["to"]))
        own = torch.isin(detections[0], torch.tensor(images))
        index, *rest = (values[own] for values in detections)
        places = torch.from_numpy(np.searchsorted(images, index.numpy()))
        stats = pycocotools_evaluation([targets[i] for i in images], places, *rest).stats
        assert group["AP"] == pytest.approx(stats[0], abs=1e-12) and group["images"] == len(images)


def test_working_threshold_and_images():
    dataset, found = scene_of_each_kind()
    numbers = make_report(dataset, [("a.pt", found)]).numbers
    run = numbers["checkpoints"][0]
    # F1 at 0.9: 2 / (1 + 3); at 0.8: 2 / (2 + 3); at 0.6: 4 / (3 + 3).
    assert run["all"]["best"] == {"threshold": pytest.approx(0.6), "precision": pytest.approx(2 / 3),
                                  "recall": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}  # fmt: skip
    assert run["threshold"] == 0.6 and run["confusion"] == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert numbers["images"] == [{"image_id": 3, "name": "image 3", "errors": [{"wrong": 0, "missed": 1}]},
                                 {"image_id": 8, "name": "image 8", "errors": [{"wrong": 1, "missed": 0}]}]  # fmt: skip
    assert run["training"] is None


def test_detections_of_low_scores_are_drawn_where_the_threshold_is_lower(tmp_path, browser):
    """As early in a run: a caption counts what the threshold lets through."""
    dataset, found = scene_of_each_kind()
    low = replace(found, scores=found.scores / 25)
    report = make_report(dataset, [("a.pt", low)])
    threshold = report.numbers["checkpoints"][0]["threshold"]
    assert threshold < 0.05
    write_report(report, tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    section = browser.find_element(By.ID, "images").text
    assert f"with a score below {threshold} are neither drawn nor counted here" in section
    captions = look(browser)["captions"]
    for image, caption in zip(report.numbers["images"], captions[1::2], strict=True):
        (errors,) = image["errors"]
        assert caption == f"predictions ({errors['wrong']} wrong, {errors['missed']} missed)"


def test_a_score_just_below_the_threshold_is_not_lifted_to_it(tmp_path, browser):
    dataset, found = scene_of_each_kind()
    near = replace(found, scores=np.array([0.9, 0.28999996, 0.8]))
    write_report(make_report(dataset, [("a.pt", near)]), tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    slide(browser, 0.29)
    assert look(browser)["captions"][3] == "predictions (1 wrong, 1 missed)"


def test_two_checkpoints_show_where_they_differ(tmp_path):
    dataset, found = scene_of_each_kind()
    only_first = found.keep(np.array([0]))
    report = make_report(dataset, [("a.pt", found), ("a.pt", only_first)])
    assert [run["checkpoint"] for run in report.numbers["checkpoints"]] == ["a.pt", "a.pt"]
    # Both miss the dog of image 3; in image 8 the first is wrong once, the second misses once: as
    # many.
    assert report.images == []
    write_report(report, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "Both checkpoints make the same number of mistakes in every image." in page
    assert "No mistakes" not in page
    better = found.keep(np.array([0, 1]))
    report = make_report(dataset, [("a.pt", better), ("b.pt", only_first)])
    assert report.numbers["images"] == [
        {
            "image_id": 8,
            "name": "image 8",
            "errors": [{"wrong": 0, "missed": 0}, {"wrong": 0, "missed": 1}],
        }
    ]


def test_training_curves_of_the_run_folder(tmp_path):
    dataset, found = scene_of_each_kind()
    lines = [{"step": step, "loss": 9.0 - step / 100, "lr": 0.1} for step in range(900)]
    lines.append(
        {"step": 899, "time_s": 9.5, "AP": 0.2, "AP50": 0.4, "val_loss": 3.0, "per_class": {}}
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for checkpoint in (tmp_path, tmp_path / "best.pt"):
        training = make_report(dataset, [(str(checkpoint), found)]).numbers["checkpoints"][0][
            "training"
        ]
        assert training["steps"][:2] == [{"step": 0, "loss": 9.0}, {"step": 3, "loss": 8.97}]
        assert len(training["steps"]) == 300
        assert training["evaluations"] == [
            {"step": 899, "time_s": 9.5, "AP": 0.2, "AP50": 0.4, "val_loss": 3.0}
        ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("not JSON\n", "is not JSON Lines"), ('{"epoch": 1}\n', "is not the log of a run")],
)
def test_a_foreign_log_beside_the_weights_is_said_and_does_not_stop_the_report(
    tmp_path, content, reason
):
    dataset, found = scene_of_each_kind()
    (tmp_path / "metrics.jsonl").write_text(content)
    report = make_report(dataset, [(str(tmp_path / "best.pt"), found)])
    run = report.numbers["checkpoints"][0]
    assert run["training"] is None
    assert reason in run["why_no_training"]
    write_report(report, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "The log of the training run is not shown" in page
    assert reason in page


@pytest.mark.parametrize("objects", [0, 1])
def test_nothing_found_nothing_there(tmp_path, objects):
    dataset = Scenes([target(0, [[0, 0, 9, 9]] * objects, [0] * objects, size=(20, 20))], ("cat",))
    nothing = flat(torch.zeros(0).long(), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 4))
    for _ in ("made", "written over"):
        write_report(make_report(dataset, [("a.pt", nothing)]), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    says = "No detection is correct" if objects else "AP is undefined"
    assert says in page and "nan%" not in page and ">nan" not in page


def test_what_is_alone_is_in_the_singular(tmp_path):
    targets = [target(3, [[0, 0, 50, 50], [60, 0, 90, 30]], [0, 1], [False, True], (80, 100))]
    found = flat([0], [0.9], [0], [[0.0, 0, 50, 50]])
    write_report(make_report(Scenes(targets, ("cat", "dog")), [("a.pt", found)]), tmp_path)
    page = " ".join((tmp_path / "index.html").read_text().split())
    assert "1 image, 1 object, 2 classes." in page
    assert "1 crowd does not count as an object, and detections in it are ignored." in page
    assert "AP, precision, recall, F1 and IoU are in percent." in page


def test_infinity_in_a_log_is_no_number_of_the_page(tmp_path):
    """JSON does not have it."""
    dataset, found = scene_of_each_kind()
    lines = '{"step": 0, "loss": Infinity}\n{"step": 1, "loss": 2.5}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)
    report = make_report(dataset, [(str(tmp_path), found)])
    json.dumps(report.numbers, allow_nan=False)
    steps = report.numbers["checkpoints"][0]["training"]["steps"]
    assert steps == [{"step": 0, "loss": None}, {"step": 1, "loss": 2.5}]


def test_the_numbers_of_the_script_are_those_that_it_reads(tmp_path):
    """The matrix of many classes would be most of the page."""
    dataset, found = scene_of_each_kind()
    write_report(make_report(dataset, [("a.pt", found)]), tmp_path)
    page = (tmp_path / "index.html").read_text()
    (embedded,) = re.findall(r'id="numbers">(.*?)</script>', page)
    stored = json.loads((tmp_path / "report.json").read_text())
    for run in stored["checkpoints"]:
        assert run.pop("confusion")
    assert json.loads(embedded) == stored


def test_a_page_that_cannot_be_made_leaves_the_report_before(tmp_path, monkeypatch):
    dataset, found = scene_of_each_kind()
    write_report(make_report(dataset, [("a.pt", found)]), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(index):
        raise InputError("no such image")

    report = make_report(dataset, [("b.pt", found)])
    monkeypatch.setattr(dataset, "image", fail)
    with pytest.raises(InputError):
        write_report(report, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_from_right_to_left_do_not_move_numbers(tmp_path):
    names = cat, dog, horse = "חתול", "כלב", "סוס"
    boxes = [[0.0, 0, 40, 40], [50, 0, 90, 40], [0, 50, 40, 90]]
    dataset = Scenes([target(0, boxes, [0, 1, 2], size=(100, 100))], names)
    found = flat([0, 0], [0.8, 0.9], [0, 2], boxes[:2])
    write_report(make_report(dataset, [("a.pt", found)]), tmp_path)
    page = " ".join((tmp_path / "index.html").read_text(encoding="utf-8").split())
    assert f"<bdi>{dog}</bdi> (0.0)" in page
    assert f"<bdi>{cat}</bdi> (100.0)" in page
    assert f"<bdi>{dog}</bdi> predicted as <bdi>{horse}</bdi>: 1." in page
    assert f'title="\u2068{dog}\u2069 predicted as \u2068{horse}\u2069: 1"' in page


CONTENT = """
return {
  charts: [...document.querySelectorAll("figure[data-chart] svg")].length,
  curve: document.querySelector("[data-chart=pr] path:last-of-type").getAttribute("d").length,
  pictures: await Promise.all([...document.querySelectorAll("image")].map(image =>
    new Promise(done => { const it = new Image(); it.onload = () => done(it.width); it.onerror = () => done(0);
                          it.src = image.getAttribute("href"); }))),
  outside: [...document.querySelectorAll("[src], link")].length,
  captions: [...document.querySelectorAll(".panels figcaption")].map(x => x.textContent),
  shown: document.querySelectorAll(".live .box:not(.hidden)").length,
  live: [...document.querySelectorAll("td[data-what]")].map(x => x.textContent),
  best: document.querySelector("#threshold output").value,
}"""


def look(browser):
    script = f"const [done] = arguments; (async () => {{ {CONTENT} }})().then(done);"
    return browser.execute_async_script(script)


def slide(browser, value):
    browser.execute_script(
        "const it = document.querySelector('#threshold input'); it.value = arguments[0]; "
        "it.oninput();",
        value,
    )


def test_the_page_in_a_browser_without_network(tmp_path, browser):
    dataset, found = scene_of_each_kind(("<b>cat</b> & 'co'", "</script><script>throw 1</script>"))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 2.5}\n{"step": 0, "time_s": 1, "AP": 0.5, "AP50": 0.6}\n'
    )
    write_report(make_report(dataset, [(str(tmp_path), found)]), tmp_path)
    require_redetr_page(tmp_path, "report.json")  # a second report may replace it
    browser.get_log("browser")  # of pages before
    browser.get((tmp_path / "index.html").as_uri())
    page = look(browser)
    assert (page["charts"], page["outside"], page["best"]) == (5, 0, "0.60") and page["curve"] > 100
    assert page["pictures"] == [100, 100]
    assert page["captions"] == [
        "ground truth ",
        "predictions (0 wrong, 1 missed)",
        "ground truth ",
        "predictions (1 wrong, 0 missed)",
    ]
    # cat: one right, one wrong, one there; dog: one right, two there.
    assert page["live"] == ["50.0", "100.0", "66.7", "100.0", "50.0", "66.7"]

    slide(browser, 0.85)
    page = look(browser)
    assert page["live"] == ["100.0", "100.0", "100.0", "-", "0.0", "-"]
    assert page["captions"][3] == "predictions (0 wrong, 1 missed)" and page["shown"] == 3

    browser.find_element(By.CSS_SELECTOR, "[data-mode=each]").click()
    assert look(browser)["live"] == ["100.0", "100.0", "100.0", "100.0", "50.0", "66.7"]
    head = browser.find_element(By.CSS_SELECTOR, ".sortable th:nth-child(2) button")
    for order in (["2", "1"], ["1", "2"]):  # objects: most first, then fewest first
        head.click()
        rows = browser.find_elements(By.CSS_SELECTOR, ".sortable tbody tr td:nth-child(2)")
        assert [row.text for row in rows] == order
    browser.execute_script(
        "const c = document.getElementById('class'); c.selectedIndex = 1; c.onchange()"
    )
    assert (
        "<b>cat</b> & 'co'"
        in browser.find_element(By.CSS_SELECTOR, "[data-chart=pr] figcaption").text
    )
    assert browser.get_log("browser") == []


class Named(Scenes):
    def image_name(self, index):
        return f"photo-{index}.jpg"


def test_what_a_reader_sees_first(tmp_path, browser):
    """The advice is the headline; images have the names of their files; sizes are folded, with
    counts; at 1280 px, charts stand side by side."""
    dataset, found = scene_of_each_kind()
    write_report(make_report(Named(dataset.targets), [("a.pt", found)]), tmp_path)
    view = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    browser.get((tmp_path / "index.html").as_uri())
    curves = browser.find_element(By.CSS_SELECTOR, "[data-chart=confidence] figcaption")
    assert curves.text.startswith("precision, recall and F1, %: ")
    advice = browser.find_element(By.CSS_SELECTOR, ".advice strong")
    assert advice.text.startswith("See ")
    assert advice.rect["y"] < browser.find_element(By.CLASS_NAME, "card").rect["y"] < 800
    headings = browser.find_elements(By.CSS_SELECTOR, "article h3")
    assert [heading.text for heading in headings] == ["photo-0.jpg", "photo-1.jpg"]
    folded = browser.find_element(By.TAG_NAME, "details")
    assert folded.text == "By COCO's sizes: 1 small, 2 medium, 0 large objects"
    folded.find_element(By.TAG_NAME, "summary").click()
    assert "APl - larger than 96x96 px" in folded.text
    left, right = browser.find_elements(By.CSS_SELECTOR, "#curves figure")
    assert left.rect["y"] == right.rect["y"]
    assert left.rect["x"] + left.rect["width"] <= right.rect["x"]
    assert right.rect["x"] + right.rect["width"] <= 1280
    view |= {"width": 390, "height": 844, "mobile": True}  # a phone: no column is a word wide
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    rows = browser.find_elements(By.CSS_SELECTOR, ".remedies tbody tr")
    assert len(rows) == 6
    assert max(row.rect["height"] for row in rows) < 250
    assert max(row.rect["x"] + row.rect["width"] for row in rows) <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_cells_of_the_matrix_can_be_read():
    """Black or white, at least at the contrast that WCAG asks for."""
    for correct, color in ((True, (24, 100, 171)), (False, (201, 42, 42))):
        for percent in range(101):
            share = percent / 100
            opacity = share if correct else 0.9 * share
            mixed = [255 - opacity * (255 - channel) for channel in color]
            linear = [
                v / 255 / 12.92 if v <= 10.3 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in mixed
            ]
            luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
            dark = _is_dark(share, correct)
            contrast = 1.05 / (luminance + 0.05) if dark else (luminance + 0.05) / 0.05
            assert contrast >= 4.5


def test_the_page_of_two_checkpoints(tmp_path, browser):
    dataset, found = scene_of_each_kind()
    fewer = found.keep(np.array([0]))
    fewer = replace(fewer, scores=fewer.scores / 2)
    write_report(make_report(dataset, [("a.pt", found), ("b.pt", fewer)]), tmp_path)
    browser.get_log("browser")  # of pages before
    browser.get((tmp_path / "index.html").as_uri())
    row = browser.find_element(By.CSS_SELECTOR, "#metrics tbody tr").text.split()
    a, b = (
        coco_metrics(GroundTruth.from_dataset(dataset), detections).ap * 100
        for detections in (found, fewer)
    )
    assert [float(value) for value in row[1:4]] == pytest.approx([a, b, b - a], abs=0.051)
    assert (
        browser.execute_script(
            "return document.querySelectorAll('[data-chart=pr] path[stroke-width=\"2\"]').length"
        )
        == 2
    )
    # Each has its own best threshold, until the slider is moved: the cat of the second scores just
    # under 0.45.
    page = look(browser)
    assert page["best"] == "0.60 / 0.44" and page["live"][:2] == ["50.0", "100.0"]
    slide(browser, 0.5)
    page = look(browser)
    assert page["best"] == "0.50" and page["live"][:2] == ["50.0", "-"]
    assert browser.get_log("browser") == []


def test_the_slider_starts_at_the_threshold_of_the_numbers(tmp_path, browser):
    """A browser that keeps the values of a reloaded page sets it to another."""
    dataset, found = scene_of_each_kind()
    write_report(make_report(dataset, [("a.pt", found)]), tmp_path)
    file = tmp_path / "index.html"
    threshold = re.search(r'type="range"[^>]*value="([^"]*)"', file.read_text())[1]
    kept = file.read_text().replace(f'value="{threshold}"', 'value="0.97"')
    file.write_text(kept)
    browser.get(file.as_uri())
    slider = browser.find_element(By.CSS_SELECTOR, "#threshold input")
    assert float(slider.get_attribute("value")) == pytest.approx(float(threshold), abs=0.005)


def test_the_page_says_how_sure_a_difference_is(tmp_path, browser):
    dataset, found = scene_of_each_kind()
    fewer = found.keep(np.array([0]))
    differences = {
        "AP": {"difference": -0.123, "lower": -0.2, "upper": 0.051},
        "AP50": {"difference": 0.3, "lower": 0.2, "upper": 0.4},
    }
    report = make_report(dataset, [("a.pt", found), ("b.pt", fewer)], differences)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["differences"] == differences
    browser.get((tmp_path / "index.html").as_uri())
    rows = browser.find_elements(By.CSS_SELECTOR, "#metrics tbody tr")
    intervals = [row.find_elements(By.CSS_SELECTOR, "td.n")[3].text for row in rows[:3]]
    assert intervals == ["-20.0 to +5.1", "+20.0 to +40.0", ""]
    last = browser.find_elements(By.CSS_SELECTOR, ".advice li")[-1].text
    assert "B's AP is 12.3 points lower than A's" in last
    assert "-20.0 to +5.1" in last and "the order may be reversed" in last


def test_a_name_with_a_carriage_return_is_found(tmp_path, browser):
    """HTML reads a bare one as the end of a line."""
    dataset, found = scene_of_each_kind(("cat\r", "dog"))
    write_report(make_report(dataset, [(str(tmp_path), found)]), tmp_path)
    browser.get_log("browser")
    browser.get((tmp_path / "index.html").as_uri())
    assert look(browser)["live"] == ["50.0", "100.0", "66.7", "100.0", "50.0", "66.7"]
    assert browser.get_log("browser") == []


def test_the_label_of_a_crowd_is_dark_on_its_light_outline(tmp_path, browser):
    crowd = target(3, [[0, 0, 50, 50], [60, 0, 90, 30]], [0, 1], [True, False], (80, 100))
    found = flat(torch.tensor([0]), torch.tensor([0.9]), torch.tensor([1]), torch.ones(1, 4))
    write_report(make_report(Scenes([crowd], ("cat", "dog")), [("a.pt", found)]), tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    fill = browser.execute_script(
        "return getComputedStyle(document.querySelector('.crowd text')).fill"
    )
    assert fill == "rgb(33, 37, 41)"


def test_names_and_paths_are_text(tmp_path):
    dataset, found = scene_of_each_kind(("<b>cat</b>", "dog"))
    dataset.name = "<i>scenes</i>"
    write_report(make_report(dataset, [("<u>a.pt", found), ("b&lt;.pt", found)]), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not any(raw in page for raw in ("<b>cat", "<i>scenes", "<u>a.pt", "b&lt;"))
    assert "&lt;b&gt;cat" in page and "b&amp;lt;.pt" in page


@pytest.fixture(scope="module")
def run_folder(shared_coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    main([str(part) for part in train_arguments(shared_coco, folder, steps=2, eval_every=1)])
    return folder


def test_evaluate_writes_a_report(run_folder, tmp_path, capsys):
    flags = [
        "--compare",
        f"{run_folder}/last.pt",
        "--device=cpu",
        "--json",
        "--report",
        f"{tmp_path}/report",
    ]
    main(["evaluate", f"{run_folder}/best.pt", *flags])
    told = capsys.readouterr()
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"{tmp_path}/report/index.html" in told.err
    first, second = numbers["checkpoints"]
    assert (first["checkpoint"], second["checkpoint"]) == (
        f"{run_folder}/best.pt",
        f"{run_folder}/last.pt",
    )
    assert (
        json.loads(told.out).items() >= first["metrics"].items()
        and len(first["training"]["steps"]) == 2
    )


def test_several_processes_write_one_report(run_folder, tmp_path):
    flags = ["evaluate", f"{run_folder}/best.pt", "--device=cpu", "--batch-size=2", "--report"]
    for code, _, errors in run_ranks(2, [*flags, f"{tmp_path}/two"]):
        assert code == 0, errors
    main([*flags, f"{tmp_path}/one"])
    one, two = ((tmp_path / name / "report.json").read_text() for name in ("one", "two"))
    assert one == two


def test_two_checkpoints_are_compared_without_a_page(run_folder, capsys):
    """A run of two evaluations: best.pt is of one of them, last.pt of the second."""
    paths = [f"{run_folder}/{name}.pt" for name in ("best", "last")]
    command, lines = (
        ["evaluate", paths[0], "--compare", paths[1], "--device=cpu", "--precision=fp32"],
        lines_of(run_folder),
    )
    main(command)
    told = capsys.readouterr().out
    evaluations = sorted((line for line in lines if "AP" in line), key=lambda line: -line["AP"])
    wanted = [evaluations[0], next(line for line in evaluations if line["step"] == 2)]
    for number, (path, line) in enumerate(zip(paths, wanted, strict=True), 1):
        assert f"{number}  {path}: val split of " in told
        assert re.search(
            rf"^ *{number} +{100 * line['AP']:.1f} +{100 * line['AP50']:.1f} ", told, re.MULTILINE
        ), told
    assert all(column in told for column in ("AP 1", "AP50 1", "AP 2", "AP50 2"))
    main([*command, "--json"])
    first = json.loads(capsys.readouterr().out)
    second = first.pop("compared")
    change = first.pop("differences")["AP"]
    assert change["difference"] == pytest.approx(second["AP"] - first["AP"], abs=1e-9)
    points = {key: f"{100 * value:+.1f}" for key, value in change.items()}
    interval = re.escape(f"{points['lower']} to {points['upper']}")
    assert re.search(
        rf"^ *AP +{re.escape(points['difference'])} +{interval}", told, re.MULTILINE
    ), told
    assert first.keys() == second.keys() and [first["checkpoint"], second["checkpoint"]] == paths
    assert [first["AP"], second["AP"]] == pytest.approx([line["AP"] for line in wanted], abs=1e-6)
