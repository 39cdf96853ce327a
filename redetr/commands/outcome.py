"""What `redetr predict` has processed, and what it reports about it at the end."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from redetr.commands.console import ERRORS, warn_of_plain
from redetr.errors import without_password

if TYPE_CHECKING:
    from redetr.detector.sources import Frame


@dataclass
class Outcome:
    """What one process has processed, or all of them."""

    images: int = 0  # and frames of videos
    errors: list[str] = field(default_factory=list)  # of sources that cannot be read
    plain: list[str] = field(default_factory=list)  # images of nearly one colour, and which
    pages: dict[str, int] = field(default_factory=dict)  # in the files of images with several

    @classmethod
    def of_all(cls, outcomes: Iterable[Self]) -> Self:
        """The outcome of all processes together."""
        total = cls()
        for outcome in outcomes:
            total.images += outcome.images
            total.errors += outcome.errors
            total.plain += outcome.plain
            total.pages |= outcome.pages
        return total

    def add(self, frame: "Frame", has_detections: bool) -> None:
        if has_detections:
            self.images += 1
        if frame.plain:
            self.plain.append(f"{without_password(frame.source)} ({frame.plain})")
        if frame.pages > 1:
            self.pages[frame.source] = frame.pages
        if frame.error:
            self.errors.append(frame.error)

    def say_oddities(self) -> None:
        """Prints on standard error which images are nearly of one colour, and of which files only
        the first image was read."""
        from redetr.detector.sources import further_pages

        warn_of_plain(self.plain)
        for fault in further_pages(self.pages):
            ERRORS.print(f"{fault.severity}: {fault}")
