"""`redetr check`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redetr.choices import ImageSize
from redetr.commands.arguments import DataPath, parse_flags
from redetr.commands.console import ERRORS, OUT, print_json
from redetr.errors import InputError


@dataclass(frozen=True)
class Check:
    """Reports what in a data set would spoil training, before it does; exits with 1 if anything
    would."""

    data: DataPath
    """digits, crowns, a folder, or hf:NAME."""
    model: str = "redetr_n"
    """The recipe that the data set is meant for."""
    queries: int | None = None
    """Most objects that the model can find in an image; default: what training would take."""
    image_size: ImageSize = 0
    """Side, or HEIGHTxWIDTH, that training is meant to take, px; default: its choice."""
    val_fraction: float = 0.0
    """Share of the images to hold out for validation, as training will, if the data has no val
    split."""
    thorough: bool = False
    """Also decode all images, and look for images that are nearly the same."""
    masks: bool = False
    """The data is meant for training with --masks: what is wrong with a mask is an error then, not
    a warning."""
    report: str | None = None
    """Folder for a page with samples and histograms."""
    augment: bool = False
    """Also show samples as training sees them, in the folder of --report; not of a data set with
    errors."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        from redetr.doctor.check import check, print_report
        from redetr.doctor.sheet import write_report
        from redetr.pages.templates import require_own_page

        if self.augment and not self.report:
            raise InputError("--augment needs a folder to write to", remedy="add --report FOLDER")
        if self.report:
            require_own_page(Path(self.report), "sheet.png", "augmented.png")
        report = check(
            self.data,
            self.model,
            self.queries,
            self.thorough,
            self.val_fraction,
            self.image_size,
            self.masks,
        )
        if self.json:
            print_json(report.to_dict())
        else:
            print_report(report, OUT)
        if self.report:
            write_report(report, Path(self.report), self.augment and not report.errors)
            ERRORS.print(f"{self.report}/index.html: samples, histograms, and this report")
        if report.errors:
            raise SystemExit(InputError.exit_code)


parse = partial(parse_flags, Check, prog="redetr check")
