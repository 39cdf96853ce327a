"""What does YOLO11n learn from scratch on digits in the time that `redetr_n` needs? With its own
defaults.

    pip install ultralytics                          # AGPL-3.0: installed by who runs this, and by
    nothing else here python benchmarks/yolo.py --minutes 5            # beside: python
    benchmarks/learning.py digits

Fixed scenes (Ultralytics reads files): 8,000 of those that `redetr_n` sees 20,000 of; validated on
the same 300, and judged by the same evaluation. Ultralytics stops by its clock, without
evaluations. Writes results/DATE-yolo-digits.json.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from record import record

from redetr.data.formats.digits import DigitsDataset
from redetr.metrics import GroundTruth, coco_metrics
from redetr.structures import DatasetDetections

SCENES = {"train": 8000, "val": 300}


def write_scenes(root: Path) -> Path:
    """Images and labels in YOLO form; returns the file that describes them."""
    for split, count in SCENES.items():
        images, labels = (root / kind / split for kind in ("images", "labels"))
        images.mkdir(parents=True), labels.mkdir(parents=True)
        dataset = DigitsDataset(split, size=count)
        for index in range(count):
            image, target = dataset.sample(index)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(images / f"{index:05}.png")
            lines = []
            for label, (x1, y1, x2, y2) in zip(
                target["labels"].tolist(), target["boxes"].tolist(), strict=True
            ):
                box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                lines.append(" ".join([str(label), *(f"{value / 128:.6f}" for value in box)]))
            (labels / f"{index:05}.txt").write_text("\n".join(lines))
    names = "".join(f"  {label}: '{label}'\n" for label in range(10))
    described = root / "data.yaml"
    described.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return described


def judge(model, folder: Path) -> dict:
    """COCO numbers of `model` on the validation scenes."""
    dataset = DigitsDataset("val", size=SCENES["val"])
    index, scores, labels, boxes = [], [], [], []
    for number in range(len(dataset)):
        (found,) = model.predict(
            folder / f"images/val/{number:05}.png", imgsz=128, conf=0.001, verbose=False
        )
        index.append(torch.full((len(found),), number))
        (
            scores.append(found.boxes.conf),
            labels.append(found.boxes.cls.long()),
            boxes.append(found.boxes.xyxy),
        )
    truth = GroundTruth.from_dataset(dataset)
    detections = DatasetDetections(
        image_index=torch.cat(index).numpy(),
        labels=torch.cat(labels).cpu().numpy(),
        scores=torch.cat(scores).cpu().numpy(),
        boxes=torch.cat(boxes).cpu().numpy(),
    )
    return coco_metrics(truth, detections).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    from ultralytics import YOLO

    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        described = write_scenes(folder)
        for seed in arguments.seeds:
            model = YOLO("yolo11n.yaml")
            model.train(
                data=str(described),
                imgsz=128,
                batch=16,
                time=arguments.minutes / 60,
                seed=seed,
                device="cpu",
                pretrained=False,
                val=False,
                plots=False,
                project=str(folder / "runs"),
                name=str(seed),
            )
            model = YOLO(folder / "runs" / str(seed) / "weights" / "last.pt")
            runs[seed] = judge(model, folder)
    record(
        "yolo-digits",
        {
            "setting": vars(arguments),
            "ultralytics": version("ultralytics"),
            "scenes": SCENES,
            "by seed": runs,
        },
    )


if __name__ == "__main__":
    main()
