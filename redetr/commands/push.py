"""`redetr push`"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from redetr.commands.arguments import Checkpoint, parse_flags
from redetr.commands.console import ERRORS, OUT, warn_of_leakage, warn_of_left_out
from redetr.errors import InputError
from redetr.files import require_folder
from redetr.garbage import quick_imports
from redetr.threads import use_threads

if TYPE_CHECKING:
    from redetr.detector.detector import Detector
    from redetr.export.card import Evaluation

_SHOWN = 8  # images, in the picture of the card

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]


@dataclass(frozen=True)
class Push:
    """Share a trained model on the Hugging Face hub, with a model card: data, results, licence,
    provenance, a picture. `redetr.load("OWNER/NAME")` loads it."""

    name: Name
    """The repository on the hub; HF_ENDPOINT names another hub."""
    checkpoint: Checkpoint
    """A checkpoint or a run folder."""
    to: str | None = None
    """Write what would be pushed to this new folder, and push nothing."""
    licence: str | None = None
    """Licence of the weights, as the hub names it: apache-2.0, cc-by-4.0, other, ..."""
    private: bool = False
    """If the repository does not exist, create it as a private one."""
    data: str | None = None
    """The data for the results and the picture; default: the training data."""
    val_fraction: float | None = None
    """Share to hold out of data without a val split; default: that of the training run."""
    evaluate: bool = True
    """--no-evaluate: Write a card without results and picture, for when the data is not
    available."""
    picture: bool = True
    """--no-picture: Leave out the picture, which shows images of the val split to everyone."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    threads: int | None = None
    """Compute threads; default: OMP_NUM_THREADS, else one per core."""

    def run(self) -> None:
        with quick_imports():
            from redetr.detector.detector import load
            from redetr.export.card import read_about, write_folder
            from redetr.export.hub import push, require_access, require_name
            from redetr.weights.locating import locate
            from redetr.weights.reading import read_weights

        require_name(self.name)
        if self.to is not None:
            self._require_new(Path(self.to))
        use_threads(self.threads)
        path = locate(self.checkpoint)
        weights = read_weights(path)  # checks what the next line relies on
        about = read_about(path)
        if self.to is None:
            require_access()  # before minutes of evaluation
        detector = load(path, device=self.device)
        evaluation = self._evaluated(path, detector) if self.evaluate else None
        if not self.licence:
            ERRORS.print("warning: the card states no licence; give it with --licence")
        content = (self.name, weights, about, self.licence, evaluation)
        if self.to is not None:
            folder = Path(self.to)
            folder.mkdir(parents=True, exist_ok=True)
            files = write_folder(folder, *content)
            OUT.print(f"{folder}: {', '.join(files)}; nothing was pushed", soft_wrap=True)
            return
        with tempfile.TemporaryDirectory(prefix="redetr-push-") as temporary:
            files = write_folder(Path(temporary), *content)
            address = push(Path(temporary), files, self.name, self.private)
        OUT.print(f"{address}: {', '.join(files)}", soft_wrap=True)

    def _require_new(self, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError("exists already", where=folder, remedy="give a new folder with --to")
        require_folder(folder)

    def _evaluated(self, path: Path, detector: "Detector") -> "Evaluation":
        """The numbers and the picture of the val split. Raises InputError if it is not there."""
        from redetr.commands.run_pictures import prediction_grid
        from redetr.export.card import Evaluation
        from redetr.files import without_folders

        masks = detector.model.has_masks
        try:
            dataset = detector.open_data("val", self.data, self.val_fraction, masks)
        except InputError as error:
            raise InputError(
                f"{error}, or give --no-evaluate for a card without results"
            ) from error
        warn_of_leakage(path, detector, dataset, self.data or detector.trained_on)
        warn_of_left_out(dataset, "val")
        result = detector.evaluate(dataset).to_dict()
        if "why_no_masks" in result:
            why = f"the card has no numbers of masks, because {result['why_no_masks']}"
            ERRORS.print(f"note: {why}", soft_wrap=True)
        picture = prediction_grid(detector, dataset, _SHOWN) if self.picture else None
        data = without_folders(str(self.data or detector.trained_on))
        return Evaluation(data, "val", len(dataset), result, picture)


parse = partial(parse_flags, Push, prog="redetr push")
