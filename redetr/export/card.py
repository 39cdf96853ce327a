"""The folder of a model on a hub: its weights, and a model card."""

import json
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from PIL import Image

import redetr
from redetr.checkpoint import read_checkpoint, read_safetensors, save_weights
from redetr.errors import InputError
from redetr.files import without_folders, write_json, write_whole
from redetr.metrics import METRIC_NAMES
from redetr.pages.drawing import save_image
from redetr.weights.reading import Weights
from redetr.wording import counted, percent

WEIGHTS = "model.safetensors"
CARD = "README.md"
PICTURE = "predictions.jpg"
NUMBERS = "evaluation.json"
# Settings that may hold private paths of the machine of the run.
_PATHS = ("data", "weights", "output", "cache_dir", "custom_augment")


class Evaluation(NamedTuple):
    """How well a model does on a split, for its card."""

    data: str  # its name, without folders of this machine
    split: str
    images: int
    result: dict[str, Any]  # of `CocoResult.to_dict`
    picture: Image.Image | None  # truth beside predictions


def read_about(checkpoint: Path) -> dict[str, Any]:
    """The description that a run wrote about its weights, without paths of its machine.

    Raises InputError for weights that were not written by a run of redetr.
    """
    if checkpoint.suffix == ".safetensors":
        metadata = read_safetensors(checkpoint)[1].get("redetr")
        about = json.loads(metadata) if metadata else None
    elif checkpoint.is_dir():
        about = None
    else:
        about = read_checkpoint(checkpoint)
    if about is None:
        text = "not written by a redetr run: push shares only models that redetr trained"
        raise InputError(text, where=checkpoint)
    names = ("class_names", "category_ids", "step", "best", "threshold", "weights_from", "is_thing")
    kept = {name: about[name] for name in names if name in about}
    config = dict(about["config"])
    for name in _PATHS:
        if isinstance(config.get(name), str):
            config[name] = without_folders(config[name])
    data = without_folders(str(about.get("data", config["data"])))
    return {**kept, "config": config, "data": data}


def write_folder(
    folder: Path,
    name: str,
    weights: Weights,
    about: dict[str, Any],
    licence: str | None,
    evaluation: Evaluation | None,
) -> list[str]:
    """Writes the files that `redetr.load` needs, and the card, to an existing folder; returns the
    names of the files."""
    save_weights(folder / WEIGHTS, weights.tensors, about)
    files = [WEIGHTS]
    if evaluation is not None:
        write_json(folder / NUMBERS, evaluation.result)
        files.append(NUMBERS)
        if evaluation.picture is not None:
            save_image(evaluation.picture, folder / PICTURE)
            files.append(PICTURE)
    text = model_card(name, about, weights.weights_from, licence, evaluation)
    write_whole(folder / CARD, lambda path: path.write_text(text, encoding="utf-8"))
    return [CARD, *files]


def model_card(
    name: str,
    about: dict[str, Any],
    weights_from: str,
    licence: str | None,
    evaluation: Evaluation | None,
) -> str:
    """The text of the card in Markdown, with the metadata for the hub at its top."""
    front = yaml.safe_dump(_front_matter(name, about, licence, evaluation), sort_keys=False)
    parts = [f"---\n{front}---", f"# {PurePath(name).name}", _introduction(about)]
    if evaluation is not None and evaluation.picture is not None:
        parts.append(f"![Truth beside predictions]({PICTURE})")
    parts += ["## Use", _use(name, about), "## Numbers", _numbers(evaluation)]
    parts += ["## Data", _data(about)]
    parts += ["## Licence and provenance", _provenance(weights_from, licence)]
    settings = yaml.safe_dump(about["config"], sort_keys=False)
    parts += ["## Settings of the run", f"```yaml\n{settings}```"]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    name: str, about: dict[str, Any], licence: str | None, evaluation: Evaluation | None
) -> dict[str, Any]:
    model = about["config"]["model"]
    front: dict[str, Any] = {
        "library_name": "redetr",
        "pipeline_tag": "object-detection",
        "tags": ["redetr", "object-detection", "detr", model],
    }
    if licence:
        front["license"] = licence
    if evaluation is None or evaluation.result["AP"] is None:
        return front
    metrics = []
    for metric in ("AP", "AP50"):
        metrics.append({"type": metric.lower(), "name": metric, "value": evaluation.result[metric]})
    dataset = {"name": evaluation.data, "type": evaluation.data, "split": evaluation.split}
    result = {"task": {"type": "object-detection"}, "dataset": dataset, "metrics": metrics}
    front["model-index"] = [{"name": PurePath(name).name, "results": [result]}]
    return front


def _introduction(about: dict[str, Any]) -> str:
    classes = counted(len(about["class_names"]), "class", "classes")
    return (
        f"An object detector: `{about['config']['model']}` of "
        f"[redetr](https://pypi.org/project/redetr) {redetr.__version__}, with {classes}."
    )


def _use(name: str, about: dict[str, Any]) -> str:
    code = [
        "import redetr",
        "",
        f'detector = redetr.load("{name}")',
        'detections = detector.predict("photo.jpg")',
    ]
    text = "```python\n" + "\n".join(code) + "\n```"
    if about.get("threshold") is not None:
        text += (
            f"\n\nBy default, detections have a score of {about['threshold']:g} or more: the "
            "threshold with the best F1 when these weights were evaluated in training."
        )
    return text


def _numbers(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Not evaluated."
    result = evaluation.result
    images = counted(evaluation.images, "image")
    lines = [
        f"COCO's numbers, in percent, on the {evaluation.split} split of {evaluation.data}: "
        f"{images}. `{NUMBERS}` has all of them.",
        "",
        _row("", *METRIC_NAMES),
        _row("---", *["---:"] * len(METRIC_NAMES)),
        _row("boxes", *(percent(result[metric]) for metric in METRIC_NAMES)),
    ]
    if "masks" in result:
        of_masks = result["masks"]
        lines.append(_row("masks", *(percent(of_masks[metric]) for metric in METRIC_NAMES)))
    if "why_no_masks" in result:
        lines += ["", f"Masks were not measured, because {result['why_no_masks']}."]
    lines += ["", _row("class", "objects", "AP", "AP50"), _row("---", "---:", "---:", "---:")]
    for class_name, ap in result["per_class"].items():
        objects = result["objects"][class_name]
        ap50 = result["per_class_AP50"][class_name]
        lines.append(_row(class_name, str(objects), percent(ap), percent(ap50)))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _data(about: dict[str, Any]) -> str:
    steps = about.get("step")
    text = f"Trained on {about['data']}"
    if steps:
        text += f" for {steps:,} steps of {about['config'].get('batch_size', '?')} images"
    names = ", ".join(about["class_names"])
    return f"{text}. Classes: {names}."


def _provenance(weights_from: str, licence: str | None) -> str:
    stated = licence or "not stated by the author; ask before you use them"
    return f"Weights: {weights_from}.\n\nLicence of these weights: {stated}."
