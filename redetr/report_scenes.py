"""Images with what is there and what was found, as drawings in HTML that a threshold can change."""

from dataclasses import dataclass
from html import escape

import numpy as np

from redetr.error_analysis import KINDS, Boxes, Judgement
from redetr.page import data_uri
from redetr.pages.drawing import to_pil
from redetr.report import Report

_PICTURE_PX = 720  # longer side of the embedded picture
_LEAST_SCORE = 0.05  # of detections that can be shown
_LETTERS = 1 / 26  # height of letters, as a share of the longer side


def scenes(report: Report) -> str:
    """The images of the report, ground truth beside the detections of each checkpoint."""
    kinds = (*KINDS, "missed", *["crowd"] * (report.numbers["data"]["crowds"] > 0))
    legend = "".join(f"<span><i class='{kind}'></i>{kind}</span>" for kind in kinds)
    cards = "".join(_card(report, number, place) for number, place in enumerate(report.images))
    return (
        f"<p class='legend'>{legend}</p><p>What scores at least the threshold at the top of the window; point at a box "
        "to read it. Boxes on background where something <em>is</em> mean that the annotation is incomplete.</p>"
        f"<div class='scenes'>{cards}</div>" if cards else "<p>No mistakes at this threshold.</p>"
    )  # fmt: skip


def _card(report: Report, number: int, place: int) -> str:
    image = to_pil(report.dataset.image(place))
    scene = _Scene(place, image.size, report.dataset.class_names)
    width, height = image.size
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    picture = (
        f"<image id='picture{number}' href='{data_uri(image)}' width='{width}' height='{height}'/>"
    )
    titles = ["found"] if len(report.judged) == 1 else ["A", "B"]
    panels = [scene.panel("ground truth", "class='scene'", picture + scene.truth(report.judged[0]))]
    for k, (title, judged) in enumerate(zip(titles, report.judged, strict=True)):
        drawing = f"<use href='#picture{number}'/>{scene.found(judged)}"
        panels.append(scene.panel(title, f"class='scene live' data-run='{k}'", drawing))
    image_id = report.numbers["images"][number]["image_id"]
    return (
        f"<article><h3>image {image_id}</h3><div class='panels'>{''.join(panels)}</div></article>"
    )


@dataclass(frozen=True)
class _Scene:
    """What can be drawn on an image, in its pixels."""

    place: int  # of the image in the data set
    size: tuple[int, int]  # width, height
    class_names: tuple[str, ...]

    def panel(self, title: str, attributes: str, content: str) -> str:
        width, height = self.size
        return (
            f"<figure><figcaption>{title} <span></span></figcaption><svg {attributes} role='img' "
            f"aria-label='{title}' viewBox='0 0 {width} {height}' style='font-size:{_LETTERS * max(self.size):.2f}px'>"
            f"{content}</svg></figure>"
        )

    def truth(self, judged: Judgement) -> str:
        return "".join(
            self._box(boxes, i, kind)
            for boxes, kind in ((judged.crowds, "crowd"), (judged.objects, "truth"))
            for i in np.flatnonzero(boxes.image == self.place).tolist()
        )

    def found(self, judged: Judgement) -> str:
        """Detections, best on top, and every object, to be shown as missed where nothing that is shown found it."""
        shown = (judged.detections.image == self.place) & (judged.scores >= _LEAST_SCORE)
        finder_scores = np.append(judged.scores, -1.0)[judged.found_by]
        missed = [
            self._box(judged.objects, i, "missed", attribute=f"data-found='{finder_scores[i]:.4f}'")
            for i in np.flatnonzero(judged.objects.image == self.place).tolist()
        ]
        return "".join(missed) + "".join(
            self._box(judged.detections, i, KINDS[judged.kind[i]], f"{100 * judged.scores[i]:.0f}%",
                      f"data-score='{judged.scores[i]:.4f}'") for i in np.flatnonzero(shown)[::-1].tolist()
        )  # fmt: skip

    def _box(self, boxes: Boxes, i: int, kind: str, tag: str = "", attribute: str = "") -> str:
        """A box with a tag that stays in the image; of a single class the name would tell nothing."""
        left, top, right, bottom = boxes.xyxy[i].tolist()
        name = self.class_names[boxes.label[i]]
        x, anchor = (right, "end") if left > 0.7 * self.size[0] else (left, "start")
        baseline = max(top, 1.2 * _LETTERS * max(self.size))
        label = f"{name if len(self.class_names) > 1 else ''} {tag}".strip()
        return (
            f"<g class='box {kind}' {attribute}><title>{escape(f'{name} {tag}'.strip())}: {kind}</title>"
            f"<rect x='{left:.1f}' y='{top:.1f}' width='{max(0, right - left):.1f}' "
            f"height='{max(0, bottom - top):.1f}'/>"
            f"<text x='{x:.1f}' y='{baseline:.1f}' dy='-.2em' text-anchor='{anchor}'>{escape(label)}</text></g>"
        )
