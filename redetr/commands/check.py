"""`redetr check`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redetr.choices import ImageSize
from redetr.commands.arguments import DataPath, parse_flags
from redetr.commands.console import ERRORS, OUT, print_json
from redetr.errors import InputError
from redetr.garbage import quick_imports

_NOT_AUGMENTED = (
    "--augment: nothing was drawn, because the data set has errors: fix them and run again"
)


@dataclass(frozen=True)
class Check:
    """Find faults in a data set before they spoil training; the exit code is 1 if there are errors,
    not for warnings and notes alone."""

    data: DataPath
    """digits, crowns, a folder, hf:NAME or the URL of archives."""
    recipe: str = "redetr_n"
    """The recipe to train with."""
    num_queries: int | None = None
    """Most objects that the model can detect in an image; default: what training would choose."""
    image_size: ImageSize = 0
    """Image size that you plan to train at, in px, a side or HEIGHTxWIDTH; default: what training
    would choose."""
    val_fraction: float = 0.0
    """If the data has no val split, hold out this share of the images for validation, as training
    does."""
    thorough: bool = False
    """Also decode all images, and look for near-duplicates."""
    masks: bool = False
    """Check the data for training with --masks: faulty masks are errors, not warnings. A recipe
    that trains masks implies it."""
    report: str | None = None
    """Folder to write a page with samples and histograms to."""
    augment: bool = False
    """Also draw augmented samples, as training sees them, into the folder of --report, if the data
    set has no errors."""
    json: bool = False
    """Print JSON instead of tables, also if the data cannot be opened."""

    def run(self) -> None:
        with quick_imports():
            from redetr.doctor.check import check, unopened
            from redetr.doctor.sheet import write_report
            from redetr.doctor.tables import print_report
            from redetr.pages.templates import require_redetr_page
            from redetr.recipes import get_recipe

        if self.augment and not self.report:
            raise InputError("--augment needs a folder to write to", remedy="add --report FOLDER")
        if self.report:
            require_redetr_page(Path(self.report), "sheet.png", "augmented.png")
        get_recipe(self.recipe)  # an unknown one is no fault of the data
        try:
            report = check(
                self.data,
                self.recipe,
                self.num_queries,
                self.thorough,
                self.val_fraction,
                self.image_size,
                self.masks,
                samples=bool(self.report),  # a damaged one is among the faults of every output
            )
        except (InputError, OSError) as error:
            if self.json:  # programs read the reason there, whatever it is
                print_json(unopened(self.data, error))
            raise
        if self.json:
            print_json(report.to_dict())
        else:
            print_report(report, OUT)
        if self.report:
            write_report(report, Path(self.report), self.augment and not report.errors)
            ERRORS.print(f"{self.report}/index.html: samples, histograms, and this report")
            if self.augment and report.errors:
                ERRORS.print(_NOT_AUGMENTED)
        if report.errors:
            raise SystemExit(InputError.exit_code)


parse = partial(parse_flags, Check, prog="redetr check")
