"""The page from image to boxes: what `explain` computed, as HTML that `explain_image.js` brings to life.

Numbers travel as compressed arrays of bytes, so a page with 100 queries in 6 layers has a few MB.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from redetr.explain import Explanation, Habits, Points
from redetr.files import write_whole
from redetr.models.fast import STRIDES
from redetr.page import data_uri, document, table
from redetr.pages.drawing import class_color, to_pil

Kind = Literal["image", "loss"]

_HERE = Path(__file__).parent
_PICTURE_PX = 960
_MOST_CELLS = 1200  # of a map; larger ones are drawn coarser
_STEPS = 63  # brightnesses of a map
_UNIT = 4096  # parts of the image's side in which points are told
_LEVEL_COLORS = ("blue", "orange", "pink")  # as in the script


def write_image_page(
    path: Path, explanation: Explanation, name: str, threshold: float, habits: Habits | None = None, link: str = ""
) -> None:
    """Writes the page, which needs no other file. `name` is the image's, `link` HTML that leads to another page."""
    parts = [f"<h1>From image to boxes: {escape(name)}</h1>{link}", *image_parts(explanation, habits)]
    write_script_page(path, name, parts, "image", image_data(explanation, threshold, habits))


def write_script_page(path: Path, title: str, parts: Iterable[str], kind: Kind, data: dict[str, Any]) -> None:
    """Writes the page, whole or not at all."""
    page = script_page(title, parts, kind, data)
    write_whole(path, lambda place: place.write_text(page, encoding="utf-8"))


def script_page(title: str, parts: Iterable[str], kind: Kind, data: dict[str, Any]) -> str:
    """A page on which `explainImage` or `explainLoss` is called with the data."""
    files = ("explain_canvas.js", f"explain_{kind}.js", "explain.css")
    *scripts, style = ((_HERE / file).read_text(encoding="utf-8") for file in files)
    values = json.dumps(data).replace("</", "<\\/")  # no name of a class ends the script
    call = f"explain{kind.capitalize()}(document.body, {values});"
    return document(title, parts, "".join(scripts) + call, style)


def image_data(explanation: Explanation, threshold: float, habits: Habits | None = None) -> dict[str, Any]:
    """What `explainImage` takes, JSON-ready."""
    boxes, picks = explanation.boxes, explanation.picks
    starts = boxes[:0] if picks is None else picks.boxes[None]
    own_peaks = explanation.self_attention.amax(-1)
    encoder = _pooled(explanation.encoder_attention)
    rows, columns = (np.floor((np.arange(n) + 0.5) * size / n).astype(int)
                     for n, size in zip(encoder.shape[2:], encoder.shape[:2], strict=True))  # fmt: skip
    encoder = encoder[rows][:, columns]
    return {
        **picture_data(explanation.image, explanation.class_names),
        "threshold": threshold,
        "boxes": packed(np.concatenate([starts.numpy(), boxes.numpy()]), np.float32),
        "scores": packed(explanation.scores, np.float32),
        "labels": packed(explanation.labels, np.int16),
        "self": packed((255 * explanation.self_attention / own_peaks[..., None]).round(), np.uint8),
        "self_peaks": packed(own_peaks, np.float32),
        "steps": _STEPS,
        "encoder": _brightness(encoder),
        "encoder_peaks": packed(encoder.amax((-2, -1)), np.float32),
        "strides": STRIDES,
        **_cross_data(explanation),
        **({} if picks is None else {"picks": packed(picks.centers, np.float32),
                                     "levels": packed(picks.level, np.uint8)}),
        **({} if habits is None else _habit_data(habits)),
    }  # fmt: skip


def picture_data(image: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The picture, its original size in pixels, and names and colors of the classes."""
    picture = to_pil(image)
    width, height = picture.size
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
    colors = ["rgb({}, {}, {})".format(*class_color(label)) for label in range(len(class_names))]
    return {"picture": data_uri(picture), "width": width, "height": height, "names": class_names, "colors": colors}


def packed(array: Tensor | np.ndarray, dtype: Any) -> dict[str, Any]:
    """An array for the script: its type, shape, and compressed bytes."""
    values = np.ascontiguousarray(np.asarray(array).astype(dtype))
    code = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "bytes": code}


def _cross_data(explanation: Explanation) -> dict[str, Any]:
    cross = explanation.cross_attention
    if isinstance(cross, Points):
        where = (_UNIT * cross.where).round().clamp(-(2**15), 2**15 - 1)
        return {
            "where": packed(where, np.int16),
            "unit": _UNIT,
            "weights": packed((255 * cross.weights).round(), np.uint8),
        }
    maps = _pooled(cross.weights)
    return {"maps": _brightness(maps), "peaks": packed(maps.amax((-2, -1)), np.float32)}


def _habit_data(habits: Habits) -> dict[str, Any]:
    if habits.centers is None or habits.level is None:
        return {"habits": packed((255 * habits.boxes.clamp(0, 1)).round(), np.uint8)}
    return {"habits": packed((255 * habits.centers).round(), np.uint8), "habit_levels": packed(habits.level, np.uint8)}


def _pooled(maps: Tensor) -> Tensor:
    """Maps `[..., h, w]` with at most about `_MOST_CELLS` cells; they still sum to 1."""
    height, width = maps.shape[-2:]
    factor = int(np.ceil(np.sqrt(height * width / _MOST_CELLS)))
    if factor == 1:
        return maps
    coarse = F.adaptive_avg_pool2d(maps.flatten(0, -3), (-(-height // factor), -(-width // factor)))
    return (coarse / coarse.sum((-2, -1), keepdim=True)).view(*maps.shape[:-2], *coarse.shape[-2:])


def _brightness(maps: Tensor) -> dict[str, Any]:
    """Maps as steps of brightness, each relative to its own peak."""
    return packed((_STEPS * maps / maps.amax((-2, -1), keepdim=True)).round(), np.uint8)


def image_parts(explanation: Explanation, habits: Habits | None = None) -> list[str]:
    """The elements that `explainImage` fills, with the text that explains them."""
    fast = isinstance(explanation.cross_attention, Points)
    layers, queries = explanation.scores.shape
    answer = "a box and a score for every class" if fast else "one answer: a class and a box, or “no object”"
    sections = [
        _ENCODER_FAST if fast else _ENCODER.format(*explanation.encoder_attention.shape),
        _PICKED.format(queries=queries)
        if fast
        else _LEARNED.format(queries=queries, where=_WITHOUT_DATA if habits is None else _WITH_DATA),
        (_LOOKS_FAST if fast else _LOOKS) + _HEADS,
        _MOVES_FAST if fast else _MOVES,
        _TALKS.format(first="" if fast else _FIRST),
        "" if habits is None else _habit_part(habits),
    ]
    numbered = [section.replace("<h2>", f"<h2>{i}. ", 1) for i, section in enumerate(filter(None, sections), 1)]
    stage = _STAGE + ("" if fast else " “No object” competes with the classes.")
    return [
        f"<p>DETR finds objects by letting {queries} <span class=key>queries</span> look at the image, all at once. A "
        f"query is a vector of numbers that ends as {answer}. This page follows the queries through the {layers} "
        "layers of the decoder, the part of the network in which they look.</p>",
        f"<div class=story><div class=stage>{stage}</p></div><div class=steps>{''.join(numbered)}</div></div>",
    ]


def _habit_part(habits: Habits) -> str:
    images = len(habits.boxes)
    if habits.level is None:
        return _HABITS.format(images=images)
    sizes = (habits.boxes[..., 2] * habits.boxes[..., 3]).sqrt()
    rows = []
    for level, (stride, color) in enumerate(zip(STRIDES, _LEVEL_COLORS, strict=True)):
        here = habits.level == level
        best = here[:, : max(1, here.shape[1] // 10)]
        size = f"{100 * sizes[here].median():.0f}%" if here.any() else "-"
        rows.append(
            [f"{stride} px ({color})", f"{100 * here.float().mean():.0f}%", f"{100 * best.float().mean():.0f}%", size]
        )
    heads = [
        "one cell per",
        "of all queries",
        "of the best-scored tenth",
        "median side of the final box, of the image's",
    ]
    return _HABITS_FAST.format(images=images, table=table(heads, rows))


_STAGE = """<canvas data-part=stage></canvas>
<p><label>Query <select data-part=list></select></label></p>
<p><label>Smallest score shown <input data-part=threshold type=range min=0 max=1 step=0.01></label><br>
<span class=note data-part=shown></span></p>
<p class=note><b>Click a box</b>, or choose any query from the list: everything beside changes to that query. The
<b>score</b>, from 0 to 1, is how sure the query is of its best class."""
_ENCODER = """<h2>The image becomes a grid of features</h2>
<p>A convolutional network, the backbone, turns the image into a grid of {0} x {1} cells, each with a vector of
numbers: its <span class=key>feature</span>. In the encoder, every cell then looks at all cells. It gives each a
weight (the weights sum to 1) and takes over the weighted mean of what it finds: <span
class=key>self-attention</span>. So parts of one object come to know of each other.</p>
<p><b>Click anywhere</b> in this picture: the light shows what that place attends to in the last encoder layer.</p>
<canvas data-part=encoder></canvas><p class=note data-part=encoder-note></p>"""
_ENCODER_FAST = """<h2>The image becomes grids of features</h2>
<p>A convolutional network, the backbone, turns the image into two grids, with one cell for every 8 and every 16 pixels
of the image as the model sees it. Each cell has a vector of numbers: its <span class=key>feature</span>. On the grid
of 16, every cell then looks at all cells. It gives each a weight (the weights sum to 1) and takes over the weighted
mean of what it finds: <span class=key>self-attention</span>. The result is added to the fine grid, which shows small
objects, and a coarse one is made from it, with one cell for every 32 pixels, which shows large objects.</p>
<p><b>Click anywhere</b> in this picture: the light shows what that place attends to on the grid of 16.</p>
<canvas data-part=encoder></canvas><p class=note data-part=encoder-note></p>"""
_LEARNED = """<h2>The queries are learned</h2>
<p>The {queries} queries are the same for every image: vectors found in training. Each has come to look for objects of
certain places and sizes. They know nothing of this image until they look at its features. Most end as “no object”:
there are more queries than objects, so that every object finds one. {where}</p>"""
_WITH_DATA = "What each looks for is shown at the end."
_WITHOUT_DATA = "<code>redetr explain --data</code> also shows what each looks for."
_PICKED = """<h2>The queries start at the best places</h2>
<p>Each cell of the three grids first gets a score, how likely an object is there, and a rough box. The {queries}
cells with the best scores become the queries. Dots are the cells, boxes their first guess; the colour tells the grid:
blue one cell for 8 px, orange 16 px, pink 32 px.</p>
<canvas data-part=picks></canvas>"""
_LOOKS = """<h2>Where <span data-part=chosen></span> looks</h2>
<p>In each decoder layer, the query gives every cell of the grid a weight and takes over the weighted mean of their
features: <span class=key>cross-attention</span>. Light: where the weight is. The yellow box is what the query answers
after that layer. In a well-trained DETR, the light often lies on the outer ends of an object, which is where its box
ends.</p>"""
_LOOKS_FAST = """<h2>Where <span data-part=chosen></span> looks</h2>
<p>In each decoder layer, the query reads the features at a few points around its box and takes over their weighted
mean: <span class=key>deformable attention</span>. The points and weights are computed from the query. Each dot is a
point: large where the weight is, blue on the grid of 8 px, orange of 16 px, pink of 32 px. Dashed: the box before the
layer; yellow: the box after it. Only the part of the image around the box is shown.</p>"""
_HEADS = """<p>A <span class=key>head</span> is one of several attentions that run side by side, each with weights of
its own: <span data-part=heads></span></p><div class=panels data-part=cross></div>"""
_IOU = """<span class=key>IoU</span> (intersection over union) says how well two boxes agree: the area that they
share, divided by the area that they cover together. 1 is the same box, 0 no overlap.</p>
<canvas data-part=path></canvas><div class=wide><table data-part=steps></table></div>"""
_MOVES = f"""<h2>How its box moved</h2>
<p>After every layer, one and the same small network reads a class and a box from the query. Training asks for a good
answer after each layer, so the early ones are rough answers already. Faint to strong: first to last layer. {_IOU}"""
_MOVES_FAST = f"""<h2>How its box moved</h2>
<p>Each layer corrects the box of the layer before. Training asks for a good answer after each layer. Dashed white:
the start; faint to strong: first to last layer. {_IOU}"""
_TALKS = """<h2>What the queries tell each other</h2>
<p>Before it looks at the image, each layer lets the queries look at one another: self-attention again, now between
queries (mean over heads). It is how they can agree on who answers for which object; in training, only one query is
rewarded for each. So DETR needs no step that removes double boxes.{first} Yellow: this query; blue: the queries it
attends to most, thicker for more weight; all boxes are the final ones.</p>
<div class=panels data-part=self></div>"""
_FIRST = " In the first layer they have nothing to tell yet: all start with the same empty content."
_HABITS = """<h2>What each query looks for</h2>
<p>The final boxes of each query on {images} images of the data set, those of “no object” included. A dot is the
centre of a box in the image: green for small boxes (less than 5% of the image), red for large wide ones, blue for
large high ones. A trained query keeps to some places and sizes. Click one to choose it.</p>
<div data-part=habit></div><div class='panels small' data-part=habits></div>"""
_HABITS_FAST = """<h2>Which places become queries</h2>
<p>The queries of this form have no place of their own: query 0 is whatever cell scored best in an image, query 1 the
next. Over a data set, a single query therefore says little. What can be said is which cells get picked. Dots:
the cells picked on {images} images, larger for more often.</p>
<div class=panels data-part=habits></div><div class=wide>{table}</div>"""
