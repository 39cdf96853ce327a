import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from redetr.errors import InputError
from redetr.pages.curves import _plot_loss, plot_curves, read_metrics
from redetr.pages.drawing import (
    class_color,
    comparison_grid,
    draw_boxes,
    grid,
    save_image,
    score_color,
    to_pil,
)
from redetr.pages.images import figure_text


def gray(height, width):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def draw(image, boxes, scores=None, scale=None, labels=None, **options):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = ["x"] * len(boxes) if labels is None else labels
    colors = [class_color(i) for i in range(len(boxes))]
    return draw_boxes(image, boxes, labels, scores, colors, scale, **options)


def read_image(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.copy()


def curve(steps=40):
    lines = []
    for step in range(0, steps, 4):
        loss = None if step == 8 else 5 - step / 10
        lines.append({"step": step, "epoch": 0, "loss": loss, "lr": 1e-4, "time_s": 3.0 * step})
        lines.append(
            {"step": step, "time_s": 3.0 * step, "AP": None if step == 0 else 0.2, "AP50": 0.4}
        )
    return lines


def write_lines(folder, lines, end="\n"):
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(line) for line in lines) + end
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_colors_are_distinct_and_stable():
    colors = np.array([class_color(i) for i in range(90)], dtype=int)
    assert len(np.unique(colors, axis=0)) == 90 and colors.min() >= 0 and colors.max() <= 255
    first = colors[:15]
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(15, dtype=int)
    assert apart.min() > 60


def test_to_pil():
    image = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(3, 2, 3)
    assert np.array_equal(np.asarray(to_pil(image)), image.permute(1, 2, 0).numpy())
    assert to_pil(Image.new("RGBA", (4, 5))).mode == "RGB"
    bands = torch.arange(5 * 4, dtype=torch.uint8).reshape(5, 2, 2)
    assert np.array_equal(np.asarray(to_pil(bands)), bands[:3].permute(1, 2, 0).numpy())
    grey = np.asarray(to_pil(bands[:1]))
    assert (grey == bands[0, :, :, None].numpy()).all()
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8 image"):
            to_pil(wrong)


def test_outline_lies_on_the_pixels_of_the_box():
    drawn = np.asarray(draw(gray(100, 100), [[20, 30, 60, 80]], scale=1, labels=[""]))
    color = list(class_color(0))
    # Columns 20 to 59 and rows 30 to 79 belong to the box; its line is 2 px wide, on a dark one.
    assert (
        drawn[50, 20].tolist()
        == drawn[50, 59].tolist()
        == drawn[30, 40].tolist()
        == drawn[79, 40].tolist()
        == color
    )
    assert (
        drawn[50, 60].tolist() != color
        and (drawn[50, 40] == 128).all()
        and (drawn[50, 10] == 128).all()
    )


def test_small_images_are_enlarged_by_a_whole_factor():
    assert draw(gray(128, 128), []).size == (512, 512)
    assert draw(gray(128, 96), [], scale=3).size == (288, 384)
    assert draw(gray(480, 640), []).size == (640, 480)
    enlarged = np.asarray(draw(gray(50, 50), [[10, 10, 30, 30]], scale=4, labels=[""]))
    assert enlarged[40, 80].tolist() == list(class_color(0)) == enlarged[119, 80].tolist()


def test_the_given_image_is_left_alone():
    image = Image.new("RGB", (600, 600))
    drawn = draw(image, [[10, 10, 300, 300]])
    assert np.asarray(image).max() == 0 < np.asarray(drawn).max()


def test_tags_stay_in_the_picture_and_apart():
    def tag_pixels(boxes):
        drawn = np.asarray(draw(gray(400, 400), boxes, [0.5] * len(boxes), scale=1)).astype(int)
        return [(drawn == class_color(i)).all(-1) for i in range(len(boxes))]

    for box in ([0, 0, 60, 60], [360, 0, 400, 30], [380, 380, 400, 400], [-50, -50, 500, 500]):
        # Far more pixels than those of an outline at a corner.
        assert tag_pixels([box])[0].sum() > 200
    same = tag_pixels([[100, 100, 200, 200]] * 3)
    assert min(mask.sum() for mask in same) > 300


def nuclei():
    """The boxes of 211 objects of 20 px in an image of 512 px, about 13 px apart."""
    places = [(33 * column + 5, 33 * row + 5) for row in range(15) for column in range(15)]
    return [[x, y, x + 20, y + 20] for x, y in places[:211]]


def changed(image, drawn):
    """Where a picture differs from its (enlarged) gray image."""
    return (np.asarray(drawn) != 128).any(-1)


def test_many_small_objects_stay_visible():
    """Their image is enlarged, lines are thin, and tags hide next to nothing of any object."""
    boxes = nuclei()
    drawn = draw(gray(512, 512), boxes, [0.87] * len(boxes), labels=[""] * len(boxes))
    factor = drawn.width // 512
    assert factor == 3
    hidden = changed(gray(512, 512), drawn)
    for box in boxes:
        x1, y1, x2, y2 = (factor * edge for edge in box)
        assert hidden[y1:y2, x1:x2].mean() < 0.15 + 0.2  # the most for a tag, and lines of 3 px
        assert hidden[(y1 + y2) // 2, x1:x2].sum() == 2 * 3


def test_tags_are_left_out_where_they_have_no_room():
    """196 objects of 60 px, 10 px apart."""
    places = [(70 * column + 5, 70 * row + 5) for row in range(14) for column in range(14)]
    boxes = [[x, y, x + 60, y + 60] for x, y in places]
    image = gray(1000, 1000)
    names = ["somewhat long"] * len(boxes)
    pixels = {}
    for tags in ("none", "auto", "all"):
        drawn = draw(image, boxes, labels=names, scale=1, line_width=1, tags=tags)
        pixels[tags] = int(changed(image, drawn).sum())
    outlines = 196 * 4 * 59
    assert pixels["none"] == outlines
    assert outlines < pixels["auto"] < pixels["all"]
    hidden = changed(image, draw(image, boxes, labels=names, scale=1, line_width=1))
    shares = [hidden[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes]
    assert max(shares) < 0.15 + 0.07  # lines of 1 px take 0.065


def test_tags_larger_than_their_boxes_are_left_out_among_many():
    """All together, they would hide an image of hundreds of nuclei."""
    boxes = [*nuclei()[:150], [100, 380, 400, 500]]
    image = gray(512, 512)
    names = ["nucleus"] * len(boxes)
    without = changed(image, draw(image, boxes, labels=names, scale=1, tags="none"))
    tagged = changed(image, draw(image, boxes, labels=names, scale=1)) & ~without
    rows, columns = np.nonzero(tagged)
    assert len(rows) > 100  # the tag of the large box alone, beside or in it
    assert np.ptp(rows) < 40 and np.ptp(columns) < 100


def test_few_objects_have_their_tags_and_no_wider_lines_than_asked():
    boxes = [[20, 30, 60, 80], [22, 30, 64, 84]]
    image = gray(100, 100)
    both = [(np.asarray(draw(image, boxes, scale=3)) == class_color(i)).all(-1) for i in (0, 1)]
    assert min(mask.sum() for mask in both) > 2 * 4 * 120
    for width in (1, 5):
        drawn = np.asarray(draw(image, boxes[:1], scale=1, labels=[""], line_width=width))
        assert (drawn[50] == class_color(0)).all(-1).sum() == 2 * width


def test_scores_have_colors_from_dark_to_bright():
    colors = np.array([score_color(score / 20) for score in range(21)])
    brightness = colors @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()
    assert colors.min() >= 0 and colors.max() <= 255
    assert score_color(0.25) == (140, 50, 180)
    assert score_color(0.125) == (90, 55, 185)  # halfway to the one before


@pytest.mark.parametrize("words", ["äßéñø", "αβγδε", "бгджй"])
def test_letters_are_drawn_and_not_boxes_for_what_is_missing(words):
    captions = [
        np.asarray(grid([(Image.new("RGB", (90, 1)), letter)], columns=1)) for letter in words
    ]
    assert len({caption.tobytes() for caption in captions}) == len(words)


def test_degenerate_boxes_are_drawn():
    draw(gray(64, 64), [[10, 10, 10, 10], [30, 30, 20, 20], [90, 90, 99, 99]], [0.1, 0.2, 0.3])


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        draw_boxes(gray(64, 64), torch.zeros(2, 4), ["a"], None, [(1, 2, 3)] * 2)
    with pytest.raises(ValueError):
        draw_boxes(gray(64, 64), torch.zeros(2, 4), ["a", "b"], [0.5], [(1, 2, 3)] * 2)


def test_grid_places_panels():
    red, green, blue = (
        Image.new("RGB", size, color)
        for size, color in [((50, 40), "red"), ((30, 60), "lime"), ((70, 20), "blue")]
    )
    picture = grid([(red, ""), (green, ""), (blue, "")], columns=2)
    # Gaps of 12 px; columns of 70 and 30 px, rows of 60 and 20 px.
    assert picture.size == (12 + 70 + 12 + 30 + 12, 12 + 60 + 12 + 20 + 12)
    assert picture.getpixel((12, 12)) == (255, 0, 0)
    assert picture.getpixel((94, 12)) == (0, 255, 0)
    assert picture.getpixel((12, 84)) == (0, 0, 255)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert grid([(red, "a longer caption than the panel")], columns=5).width > 50 + 24


def test_grid_leaves_out_the_middle_of_a_long_caption():
    """As exporters name files, with a hash: columns stay about as wide as their images."""
    name = "IMG_1415_jpg.rf.b428cbb02358afc32cf32f9bdb725a51.jpg"
    picture = grid([(Image.new("RGB", (50, 40)), name)] * 2, columns=2)
    assert picture.width < 2 * 240 + 3 * 24


def test_comparison_has_the_ground_truth_at_the_left():
    scenes = [(Image.new("RGB", (200, 50), "red"), Image.new("RGB", (200, 50), "lime"))] * 3
    picture = comparison_grid(scenes)
    assert picture.size == (12 + 4 * 212, 12 + 2 * (50 + 28 + 12))
    assert picture.getpixel((20, 60)) == picture.getpixel((444, 60)) == (255, 0, 0)
    assert picture.getpixel((232, 60)) == picture.getpixel((656, 60)) == (0, 255, 0)
    named = comparison_grid(scenes, names=["a.jpg", "ground truth", "ground truth"])
    changed = ImageChops.difference(picture, named).getbbox()
    assert changed and changed[2] < 12 + 200 and changed[3] <= 12 + 28  # the first caption alone


@pytest.mark.parametrize(("panels", "columns"), [([], 2), ([(Image.new("RGB", (4, 4)), "")], 0)])
def test_empty_grid_is_refused(panels, columns):
    with pytest.raises(ValueError, match="at least one"):
        grid(panels, columns)


def test_a_jpeg_is_no_larger_than_the_format_allows(tmp_path):
    save_image(Image.new("RGB", (66_000, 4)), tmp_path / "wide.jpg")
    with Image.open(tmp_path / "wide.jpg") as written:
        assert written.size == (65_500, 4)


def test_save_image_leaves_nothing_but_the_file(tmp_path):
    save_image(Image.new("RGB", (5, 4), "red"), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_image(tmp_path / "a.png").size == (5, 4)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    (tmp_path / "a.png").write_text("old")

    class Broken:
        def save(self, path, **options):
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_image(Broken(), tmp_path / "a.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_plot_curves_of_folders_files_and_lists(tmp_path):
    folder = write_lines(tmp_path / "run", curve())
    plot_curves([folder, folder / "metrics.jsonl", curve(), []], tmp_path / "curves.png")
    image = read_image(tmp_path / "curves.png")
    assert image.width > 1000 and np.asarray(image.convert("L")).std() > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "run"]


@pytest.mark.parametrize(
    "lines", [[], [{"step": 1, "loss": 2.0, "time_s": 1.0}], [{"step": 0, "AP": 0.1, "time_s": 0}]]
)
def test_plot_curves_of_a_run_that_has_just_begun(tmp_path, lines):
    plot_curves([lines], tmp_path / "curves.png", names=["first"])
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_names_in_figures_stand_as_they_are(tmp_path):
    """A name between dollars is no formula, and one in letters that the font lacks is no warning,
    which would reach the terminal. U+0378 is no letter, so no font has it."""
    plot_curves([curve(), curve()], tmp_path / "curves.png", names=[r"$\nothing$", "\u0378 \x1b"])
    assert figure_text("a$b$ é \u0378") == r"a\$b\$ é □"


def test_plot_curves_is_drawn_without_pyplot(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_curves([curve()], tmp_path / "curves.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_plot_curves_refuses_no_runs_and_too_few_names(tmp_path):
    for runs, names in (([], ()), ([curve(), curve()], ["one"])):
        with pytest.raises(ValueError):
            plot_curves(runs, tmp_path / "curves.png", names)
    assert list(tmp_path.iterdir()) == []


def test_read_metrics_leaves_out_the_line_being_written(tmp_path):
    folder = write_lines(tmp_path / "run", curve(), end='\n{"step": 44, "lo')
    assert read_metrics(folder) == curve() == read_metrics(folder / "metrics.jsonl")


def test_read_metrics_names_the_file_at_fault(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        read_metrics(tmp_path / "nowhere")
    for content in ("step 1\n", "[" * 100_000 + "\n"):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(InputError, match=r"metrics\.jsonl is not JSON Lines"):
            read_metrics(tmp_path)


def test_the_smoothed_loss_by_hand():
    from matplotlib.figure import Figure  # half a second, in each process that collects these tests

    axes = Figure().subplots()
    losses = [0.0, 3.0, 9.0] + [6.0] * 37  # 40 steps: one neighbour on each side
    _plot_loss(
        axes, [{"step": step, "loss": loss} for step, loss in enumerate(losses)], "#000000", ""
    )
    faint, smooth = axes.lines
    assert list(faint.get_ydata()) == losses
    assert list(smooth.get_ydata())[:4] == [1.5, 4.0, 6.0, 7.0]
