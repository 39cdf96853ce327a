"""The contact sheet of predictions: a page of all annotated images, with filters for class and
score."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from redetr.detector.record_formats import PAGE_MARK
from redetr.pages.templates import render
from redetr.wording import counted

_MOST_CARDS = 5000  # images and videos on one page, which holds all of their detections


def contact_sheet(lines: Iterable[dict[str, Any]]) -> str:
    """The page as HTML, from the lines of a `predictions.jsonl`.

    It links to the annotated images by name, so it must stay in their folder. It shows at most
    5,000 images, and states how many are left out.
    """
    sheet = _Sheet()
    for line in lines:
        sheet.add(line)
    return render(
        "detector/contact_sheet.html",
        mark=PAGE_MARK,
        title=sheet.title,
        errors=sheet.errors,
        left_out=sheet.left_out,
        shown=counted(_MOST_CARDS, "image"),
        data={"names": list(sheet.labels), "cards": list(sheet.cards.values())},
    )


@dataclass
class _Sheet:
    """The contents of the page, collected line by line."""

    labels: dict[str, int] = field(default_factory=dict)  # position of each class in `names`
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the name of the source
    errors: list[tuple[str, str]] = field(default_factory=list)  # source, what was wrong
    left_out: int = 0  # images beyond those that are shown

    @property
    def title(self) -> str:
        images = counted(len(self.cards) + self.left_out, "image")
        return f"Predictions in {images}"

    def add(self, line: dict[str, Any]) -> None:
        source = line["image"]
        if "error" in line:
            self.errors.append((source, line["error"]))
        if "detections" not in line or "picture" not in line:
            return
        if "frame" in line:
            self._add_frame(source, line)
            return
        card = self._card(source, line)
        if card is not None:
            card["detections"] = self._detections(line)

    def _card(self, source: str, line: dict[str, Any]) -> dict[str, Any] | None:
        """The card of an image or video; None if the page is full."""
        if source in self.cards:
            return self.cards[source]
        if len(self.cards) == _MOST_CARDS:
            self.left_out += "frame" not in line
            return None
        card = {
            "source": source,
            "picture": line["picture"],
            "size": line["image_size"],
            "is_video": "frame" in line,
            "detections": [],
        }
        self.cards[source] = card
        return card

    def _add_frame(self, source: str, line: dict[str, Any]) -> None:
        """Adds a frame to the card of its video, which keeps only the best detection of each
        class."""
        card = self._card(source, line)
        if card is None:
            return
        best = {label: score for label, score, *_ in card["detections"]}
        for label, score, *_ in self._detections(line):
            best[label] = max(score, best.get(label, 0.0))
        card["detections"] = [[label, score] for label, score in best.items()]

    def _detections(self, line: dict[str, Any]) -> list[list[float]]:
        """The detections as [class, score, left, top, right, bottom]."""
        detections = []
        for detection in line["detections"]:
            label = self.labels.setdefault(detection["label"], len(self.labels))
            detections.append([label, detection["score"], *detection["box"]])
        return detections
