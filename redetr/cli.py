"""The command line: `redetr demo | train | evaluate | predict | check | convert | models | verify`."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich import box
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from redetr.check import check, print_report
from redetr.check_sheet import write_report
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.data.convert import convert
from redetr.demo import demo
from redetr.distributed import main_process_only, process_group
from redetr.errors import InputError, RedetrError
from redetr.evaluate import evaluate
from redetr.files import write_json
from redetr.metrics import METRIC_NAMES
from redetr.models import MODELS
from redetr.predict import as_image, find_images, load
from redetr.recipes import RECIPES, get_recipe
from redetr.train import train
from redetr.verify import verify
from redetr.visualize import save_image

ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
OUT = Console(highlight=False)
_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Evaluate:
    """COCO numbers of a checkpoint: twelve of them, and AP per class."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint, a run folder, an official DETR file, or a Transformers folder."""
    data: str | None = None
    """digits, crowns, or a folder; default: what the checkpoint was trained on."""
    val_fraction: float | None = None
    """Share held out of data without a val split; default: that of the training run."""
    batch_size: int = 16
    """Images at once."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the hardware multiplies it fast."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        _require_images(self.batch_size)
        detector = load(self.checkpoint, device=self.device, precision=self.precision)
        source = self.data or detector.trained_on
        if source is None:
            raise InputError(f"{self.checkpoint} does not say what it was trained on: give --data")
        held_out = detector.val_fraction if self.val_fraction is None else self.val_fraction
        dataset = open_dataset(source, "val", held_out)
        with process_group(self.device) as dist, Progress(console=ERRORS, disable=self.json) as progress:
            task = progress.add_task("evaluating", total=len(dataset))
            result = evaluate(
                detector.model, dataset, dist, image_size=detector.image_size, batch_size=self.batch_size,
                dtype=detector.dtype, classes=detector.classes,
                on_batch=lambda images: progress.advance(task, images * dist.world_size),
            )  # fmt: skip
            dist.main_only(_print_json if self.json else print_result)(result.to_dict())


@dataclass(frozen=True)
class Predict:
    """Finds objects in images and folders of images; writes annotated PNGs and predictions.json."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint, a run folder, an official DETR file, or a Transformers folder."""
    source: tyro.conf.Positional[tuple[str, ...]]
    """Images, and folders of images."""
    output: str = "predictions"
    """Folder for the pictures and predictions.json."""
    threshold: float = 0.5
    """Smallest score shown."""
    batch_size: int = 4
    """Images at once."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Also print predictions.json."""

    def run(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold} is not between 0 and 1")
        _require_images(self.batch_size)
        if not self.source:
            raise InputError("nothing to look at: name images or folders after the checkpoint")
        files = find_images(self.source)
        detector = load(self.checkpoint, device=self.device)
        folder, names = Path(self.output), _distinct_names(files)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        for start in track(range(0, len(files), self.batch_size), "predicting", console=ERRORS, disable=self.json):
            paths = files[start : start + self.batch_size]
            images = [as_image(path) for path in paths]
            for path, image, detections in zip(paths, images, detector.predict(images, self.threshold), strict=True):
                save_image(detections.draw(image), folder / names[path])
                found[str(path)] = detections.to_dict()
        write_json(folder / "predictions.json", found)
        if self.json:
            _print_json(found)
        else:
            objects = sum(len(entry["detections"]) for entry in found.values())
            OUT.print(f"{objects} objects in {len(files)} images: {folder}/predictions.json, pictures beside it")


@dataclass(frozen=True)
class Check:
    """Looks for what would spoil training in a data set, before it does; exits with 1 if there is any."""

    data: tyro.conf.Positional[str]
    """digits, crowns, or a folder."""
    model: str = "redetr_n"
    """The recipe that the data set is meant for."""
    queries: int | None = None
    """Most objects that the model can find in an image; default: what training would take."""
    thorough: bool = False
    """Also decode all images, and look for pictures that are nearly the same."""
    report: str | None = None
    """Folder for a page with samples and histograms."""
    augment: bool = False
    """Also show samples as training sees them, in the folder of --report; not of a data set with errors."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        if self.augment and not self.report:
            raise InputError("--augment needs a folder to write to: give --report FOLDER as well")
        report = check(self.data, self.model, self.queries, self.thorough)
        if self.json:
            _print_json(report.to_dict())
        else:
            print_report(report, OUT)
        if self.report:
            write_report(report, Path(self.report), self.augment and not report.errors)
            ERRORS.print(f"{self.report}/index.html: samples, histograms, and all of this", markup=False)
        if report.errors:
            raise SystemExit(InputError.exit_code)


@dataclass(frozen=True)
class Models:
    """The models one can build, with their size."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        rows: list[dict[str, Any]] = []
        with torch.device("meta"):
            for name, function in MODELS.items():
                model = function(80)
                rows.append({
                    "model": name, "parameters": sum(p.numel() for p in model.parameters()),
                    "queries": model.num_queries, "image_size": model.image_size,
                    "about": (function.__doc__ or "").splitlines()[0],
                })  # fmt: skip
        if self.json:
            _print_json(rows)
            return
        table = Table("model", "parameters", "queries", "image size", "about")
        for row in rows:
            size = f"{row['parameters'] / 1e6:.1f} M"
            table.add_row(row["model"], size, str(row["queries"]), str(row["image_size"]), row["about"])
        OUT.print(table)


@dataclass(frozen=True)
class Demo:
    """Trains redetr_n for a few minutes, evaluates it and shows what it found."""

    data: str = "digits"
    """digits, or crowns for real aerial photographs."""
    output: str = "runs/demo"
    """The run folder; an earlier demo there is replaced."""
    steps: int = 0
    """Length of the run; default: about five minutes on two cores."""

    def run(self) -> None:
        demo(self.data, Path(self.output), self.steps, OUT)


@dataclass(frozen=True)
class Convert:
    """Writes a data set in another form, boxes only; what the form cannot say is told."""

    source: tyro.conf.Positional[str]
    """A folder in COCO, YOLO or Pascal VOC form, or crowns; it stays as it is."""
    destination: tyro.conf.Positional[str]
    """The folder to write, which must not be there yet."""
    to: Literal["coco", "yolo", "voc"]
    """The form to write."""
    copy: bool = False
    """Copy images; default: hard links, which take no space, where the disk allows them."""

    def run(self) -> None:
        for line in convert(self.source, Path(self.destination), self.to, self.copy):
            OUT.print(line, markup=False, soft_wrap=True)


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "evaluate": Evaluate,
    "predict": Predict,
    "check": Check,
    "convert": Convert,
    "models": Models,
}


@dataclass(frozen=True)
class Train:
    """Trains as a recipe says; flags override it."""

    config: TrainConfig

    def run(self) -> None:
        result = train(self.config, ERRORS)
        main_process_only(print_result)(result)
        main_process_only(OUT.print)(f"{self.config.output}: best.pt, best.safetensors, last.pt, metrics.jsonl")


@dataclass(frozen=True)
class Verify:
    """Proves that the gradients of this layout of ranks and micro-batches are those of one process."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        result = verify(self.config)
        main_process_only(_print_json if self.json else _print_verification)(
            {**asdict(result), "failed": result.failed}
        )
        if result.failed:
            raise RedetrError(
                f"the gradient of this layout is not that of one process: {len(result.failed)} figures above are over "
                f"the tolerance, such as {result.failed[-1]}"
            )


def parse_run(command: str, arguments: list[str]) -> Any:
    """`RECIPE [flags]` of train and verify: the recipe's settings are the defaults of the flags.

    Without a recipe, lists them and exits; verify takes redetr_n.
    """
    if command == "verify" and (not arguments or (arguments[0].startswith("-") and arguments[0] not in _HELP)):
        arguments = ["redetr_n", *arguments]
    if not arguments or arguments[0] in _HELP:
        title = f"redetr {command} RECIPE [flags], flags: redetr {command} RECIPE --help"
        table = Table("recipe", "what it is", title=title)
        for name, function in RECIPES.items():
            table.add_row(name, (function.__doc__ or "").splitlines()[0])
        OUT.print(table)
        raise SystemExit(0 if arguments else 2)
    recipe_name, *flags = arguments
    recipe, program = get_recipe(recipe_name), f"redetr {command} {recipe_name}"
    if any(flag.partition("=")[0] == "--steps" for flag in flags):
        recipe = replace(recipe, epochs=0.0)  # either flag replaces the recipe's length
    if command == "train":
        return Train(tyro.cli(TrainConfig, args=flags, default=recipe, prog=program))
    # What proves something without data and downloads; the flags of a training command change it to that run.
    default = Verify(replace(recipe, data="random", batch_size=0, weights=None))
    return tyro.cli(Verify, args=flags, default=default, prog=program)


def parse_command(arguments: list[str]) -> Any:
    """The command with its settings, ready to `run()`. Exits with 2 for what cannot be understood."""
    command, *rest = arguments
    if command in ("train", "verify"):
        return parse_run(command, rest)
    if command in COMMANDS:
        return tyro.cli(COMMANDS[command], args=rest, prog=f"redetr {command}")
    ERRORS.print(f"redetr: unknown command {command!r}: choose train, verify, {', '.join(COMMANDS)}", markup=False)
    raise SystemExit(2)


def print_result(result: dict[str, Any]) -> None:
    """The COCO numbers as a table, in percent."""
    table = Table(*METRIC_NAMES, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_row(*(_percent(result[name]) for name in METRIC_NAMES))
    OUT.print(table)
    classes = Table("class", "AP")
    for name, value in sorted(result["per_class"].items(), key=lambda item: -(item[1] or 0)):
        classes.add_row(name, _percent(value))
    OUT.print(classes)


def _print_verification(result: dict[str, Any]) -> None:
    OUT.print(f"relative error of the gradient of {result['batch_size']} images: {result['world_size']} x "
              f"{result['device']} with {result['accumulate']} micro-batches each, against one process")  # fmt: skip
    table = Table("part", "parameters", *result["errors"], box=box.SIMPLE, pad_edge=False)
    for part, size in result["parameters"].items():
        table.add_row(part, f"{size:,}", *(f"{errors[part]:.1e}" for errors in result["errors"].values()))
    OUT.print(table)
    if not result["failed"]:
        OUT.print("exact: equal up to the order of floating-point sums")
    if result["world_size"] * result["accumulate"] == 1:
        OUT.print("nothing was split: start this under torchrun, or give --accumulate 2")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _require_images(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} must be at least 1")


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _distinct_names(files: list[Path]) -> dict[Path, str]:
    """A PNG name for each file; equal stems from several folders get a number."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        taken.add(name)
        names[file] = name
    return names


USAGE = """redetr: DETR one can read in an afternoon and trust on any number of GPUs

  redetr demo                                   train on handwritten digits for minutes, show what it finds
  redetr train RECIPE --data PATH --output DIR  train; PATH is digits, crowns or a folder (COCO, YOLO, VOC)
  redetr evaluate CHECKPOINT [--data PATH]      the twelve COCO numbers, AP per class
  redetr predict CHECKPOINT SOURCE...           boxes on images and folders: PNG and JSON
  redetr check PATH [--report DIR]              what in a data set would spoil training, before it does
  redetr convert FOLDER NEW --to FORM           the same data set as coco, yolo or voc
  redetr models                                 what can be built
  redetr verify [RECIPE] [flags of train]       proves that many GPUs give the gradients of one

redetr COMMAND --help tells the flags. Several GPUs: torchrun --nproc-per-node 8 -m redetr train RECIPE ...
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; ends the process with the exit code of the error, if there is one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in _HELP:
        print(USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    try:
        parse_command(arguments).run()
    except RedetrError as error:
        ERRORS.print(f"redetr: {error}", markup=False)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a place that cannot be written, a full disk
        ERRORS.print(f"redetr: {error.filename or 'cannot read or write'}: {error.strerror or error}", markup=False)
        raise SystemExit(InputError.exit_code) from None
