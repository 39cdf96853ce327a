"""Files of annotation tools in the folders that they write: the same box is read from each, or a
line says what the format is and what to export."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from test_coco import save_image
from test_tools import BNDBOX, BOX, FRACTIONS, HEIGHT, WIDTH, XYWH, coco, image, text, yolo

from redetr.data import open_dataset
from redetr.data.formats.layouts import read_annotations, splits_of
from redetr.doctor.check import check
from redetr.errors import InputError

Write = Callable[[Path], None]


def files(image_name: str, contents: dict[str, Any]) -> Write:
    """Writes one image and these files."""

    def write(root: Path) -> None:
        image(root, image_name)
        for name, content in contents.items():
            text(root, name, content)

    return write


def cvat(shape: str, name: str = "a.jpg", more: str = "", meta: str = "") -> str:
    labels = "<labels><label><name>dog</name></label><label><name>cat</name></label></labels>"
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    head = f"<version>1.1</version><meta><task>{labels}{meta}</task></meta>"
    return (
        f'<annotations>{head}<image id="0" name="{name}" {size}{more}>{shape}</image></annotations>'
    )


CVAT_BOX = '<box label="cat" xtl="24.00" ytl="16.00" xbr="60.00" ybr="48.00"></box>'
CVAT_RUNS = ", ".join(["0", "1152"])


def via(shape: Any, label: Any = None, regions: str = "list") -> dict[str, Any]:
    region = {"shape_attributes": shape, "region_attributes": label or {"label": "cat"}}
    listed: Any = [region] if regions == "list" else {"0": region}
    return {"a.jpg99": {"filename": "a.jpg", "size": 99, "regions": listed, "file_attributes": {}}}


RECT = {"name": "rect", "x": 24, "y": 16, "width": 36, "height": 32}


def datumaro(**annotation: Any) -> dict[str, Any]:
    labels = [{"name": "dog", "parent": ""}, {"name": "cat", "parent": ""}]
    item = {"id": "a", "annotations": [{"id": 0, "label_id": 1, "group": 0} | annotation]}
    item["image"] = {"path": "a.jpg", "size": [HEIGHT, WIDTH]}
    return {"info": {}, "categories": {"label": {"labels": labels}}, "items": [item]}


def voc(inside: str = BNDBOX) -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    thing = f"<object><name>cat</name>{inside}</object>"
    return f"<annotation><filename>a.jpg</filename>{size}{thing}</annotation>"


def labelme(name: str = "a.jpg") -> dict[str, Any]:
    shape = {"label": "cat", "points": [[24, 16], [60, 48]], "shape_type": "rectangle"}
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"shapes": [shape], "imagePath": f"..\\images\\{name}", "imageData": None} | size


def coco_document(name: str = "a.jpg", **size: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": XYWH, "iscrowd": 0}
    size = size or {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": 1, "file_name": name} | size],
        "annotations": [row],
        "categories": [{"id": 1, "name": "cat"}],
    }


def lvis(address: str) -> dict[str, Any]:
    """Its images have no names but addresses."""
    document = coco_document()
    del document["images"][0]["file_name"]
    document["images"][0]["coco_url"] = address
    return document


OUTLINE = [24, 16, 60, 16, 60, 48, 24, 48]
LINE = f"0 {FRACTIONS}\n"
OBJ_DATA = "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"

READ: dict[str, Write] = {
    "CVAT": files("images/a.jpg", {"annotations.xml": cvat(CVAT_BOX)}),
    "CVAT, images beside": files("a.jpg", {"annotations.xml": cvat(CVAT_BOX)}),
    "VIA, in the folder of images": files("images/a.jpg", {"images/v.json": via(RECT)}),
    "CVAT, polygon": files(
        "images/a.jpg",
        {"a.xml": cvat('<polygon label="cat" points="24.0,16.0;60.0,16.0;60.0,48.0"></polygon>')},
    ),
    "CVAT, ellipse": files(
        "images/a.jpg",
        {"a.xml": cvat('<ellipse label="cat" cx="42" cy="32" rx="18" ry="16"></ellipse>')},
    ),
    "CVAT, turned ellipse": files(
        "images/a.jpg",
        {"a.xml": cvat('<ellipse label="cat" cx="42" cy="32" rx="16" ry="18" rotation="90"/>')},
    ),
    "CVAT, mask": files(
        "images/a.jpg",
        {
            "a.xml": cvat(
                f'<mask label="cat" rle="{CVAT_RUNS}" left="24" top="16" width="36" height="32"/>'
            )
        },
    ),
    "CVAT, turned box": files(
        "images/a.jpg",
        {
            "a.xml": cvat(
                '<box label="cat" xtl="26" ytl="14" xbr="58" ybr="50" rotation="90.00"></box>'
            )
        },
    ),
    "FiftyOne, CVAT": files("data/a.jpg", {"labels.xml": cvat(CVAT_BOX)}),
    "VIA": files("images/a.jpg", {"via_region_data.json": via(RECT)}),
    "VIA, beside images": files("train/a.jpg", {"train/via_region_data.json": via(RECT)}),
    "VIA, project": files("a.jpg", {"p.json": {"_via_settings": {}, "_via_img_metadata": via(RECT)}}),
    "VIA 1": files("a.jpg", {"via_region_data.json": via(RECT, {"type": {"cat": True}}, "dict")}),
    "VIA, polygon": files(
        "a.jpg",
        {
            "v.json": via(
                {"name": "polygon", "all_points_x": [24, 60, 60], "all_points_y": [16, 16, 48]},
                {"kind": "cat"},
            )
        },
    ),
    "VIA, ellipse": files(
        "a.jpg", {"v.json": via({"name": "ellipse", "cx": 42, "cy": 32, "rx": 18, "ry": 16})}
    ),
    "Datumaro": files(
        "images/default/a.jpg", {"annotations/default.json": datumaro(type="bbox", bbox=XYWH)}
    ),
    "Datumaro, train": files(
        "images/train/a.jpg", {"annotations/train.json": datumaro(type="polygon", points=OUTLINE)}
    ),
    "Datumaro, ellipse": files(
        "images/train/a.jpg", {"annotations/train.json": datumaro(type="ellipse", points=BOX)}
    ),
    "Datumaro, turned box": files(
        "images/train/a.jpg",
        {"annotations/train.json": datumaro(type="rotated_bbox", points=[42, 32, 32, 36, 90])},
    ),
    "CVAT, YOLO 1.1": files(
        "obj_train_data/a.jpg",
        {
            "obj_train_data/a.txt": LINE,
            "obj.names": "cat\n",
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj.data": OBJ_DATA,
        },
    ),
    "CVAT, Ultralytics": files(
        "images/train/a.jpg",
        {
            "labels/train/a.txt": LINE,
            "train.txt": "data/images/train/a.jpg\n",
            "data.yaml": "names:\n  0: cat\npath: .\ntrain: train.txt\n",
        },
    ),
    "Label Studio, YOLO": files(
        "images/a.jpg", {"labels/a.txt": LINE, "classes.txt": "cat\n", "notes.json": {}}
    ),
    "LabelImg, YOLO": files("a.jpg", {"a.txt": LINE, "classes.txt": "cat\n"}),
    "LabelImg, YOLO, name of a camera": files(
        "IMG_1.JPG", {"IMG_1.txt": LINE, "classes.txt": "cat\n"}
    ),
    "FiftyOne, YOLOv4": files(
        "data/a.jpg", {"data/a.txt": LINE, "obj.names": "cat\n", "images.txt": "data/a.jpg\n"}
    ),
    "Roboflow, Darknet": files(
        "train/a.jpg", {"train/a.txt": LINE, "train/_darknet.labels": "cat\n"}
    ),
    "Label Studio, VOC": files("images/a.jpg", {"Annotations/a.xml": voc()}),
    "FiftyOne, VOC": files("data/a.jpg", {"labels/a.xml": voc()}),
    "LabelImg, VOC": files("a.jpg", {"a.xml": voc()}),
    "LabelImg, VOC, suffixes in capitals": files("A.JPG", {"A.XML": voc()}),
    "VOC in images/ and annotations/": files(
        "images/train/a.jpg", {"annotations/train/a.xml": voc()}
    ),
    "FiftyOne, COCO": files("data/a.jpg", {"labels.json": coco_document()}),
    "RectLabel, COCO": files("images/a.jpg", {"annotations.json": coco_document()}),
    "COCO, train.json": files("images/a.jpg", {"train.json": coco_document()}),
    "COCO in the folder of the split": files(
        "train/images/a.jpg", {"train/annotations.json": coco_document()}
    ),
    "COCO, a folder of another machine": files(
        "train/a.jpg", {"annotations/instances_train.json": coco_document("my data/v1/a.jpg")}
    ),
    "COCO without sizes": files(
        "train/a.jpg", {"annotations/instances_train.json": coco_document(width=None)}
    ),
    "COCO, sizes of 0": files(
        "train/a.jpg", {"annotations/instances_train.json": coco_document(width=0, height=0)}
    ),
    "LVIS": files(
        "train/a.jpg", {"annotations/lvis_v1_train.json": lvis("http://a.org/train2017/a.jpg")}
    ),
    "LabelMe, called like a split": files(
        "images/train_1.jpg", {"annotations/train_1.json": labelme("train_1.jpg")}
    ),
    "LabelMe, suffixes in capitals": files("A.JPG", {"A.JSON": labelme("A.JPG")}),
    "LabelMe, JSON apart": files("images/a.jpg", {"annotations/a.json": labelme()}),
}  # fmt: skip
SAID = {
    "VIA": "states no width and height",
    "COCO without": "states no width and height",
    "COCO, sizes": "states no width and height",
    "CVAT, polygon": "has a segmentation but no bbox",
    "CVAT, ellipse": "has a segmentation but no bbox",
    "CVAT, turned ellipse": "has a segmentation but no bbox",
    "CVAT, turned box": "is rotated by 90 degrees",
    "Datumaro, train": "has a segmentation but no bbox",
    "Datumaro, ellipse": "has a segmentation but no bbox",
    "Datumaro, turned": "has a segmentation but no bbox",
    "CVAT, YOLO": "'data/train.txt' does not exist",
    "CVAT, Ultralytics": "images/train/a.jpg is used",
    "COCO, a folder": "'a.jpg' in",
    "LVIS": "'a.jpg' in",
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read(tmp_path, name):
    READ[name](tmp_path)
    dataset = open_dataset(tmp_path, "train")
    target = dataset.target(0)
    np.testing.assert_allclose(target["boxes"], [BOX], atol=1e-3)
    assert dataset.class_names[target["labels"][0]] == "cat"
    said = " ".join(dataset.notes)
    expected = [words for start, words in SAID.items() if name.startswith(start)]
    assert all(words in said for words in expected)
    assert bool(said) == bool(expected)


RESULTS = [{"image_id": 1, "category_id": 1, "bbox": XYWH, "score": 0.9}]
NOT_READ: dict[str, tuple[Write, str]] = {
    "CVAT for video": (
        files("a.jpg", {"annotations.xml": "<annotations><meta></meta><track "
                                           "id='0'/></annotations>"}),
        'export as "CVAT for images 1.1"',
    ),
    "LabelMe 3": (
        files("a.jpg", {"a.xml": "<annotation><imagesize></imagesize></annotation>"}),
        "(the XML of LabelMe 3)",
    ),
    "Label Studio": (
        files("images/a.jpg", {"p.json": [{"annotations": [{"result": [{"original_width": 9}]}]}]}),
        "(Label Studio's own format); export as COCO with images",
    ),
    "Label Studio, short": (
        files("images/a.jpg", {"p.json": [{"image": "a.jpg", "label": [{"rectanglelabels": []}]}]}),
        "(Label Studio's own format); export as COCO with images",
    ),
    "Label Studio, CSV": (
        files("images/a.jpg", {"p.csv": 'id,image,label\n1,a.jpg,"[{""rectanglelabels"":[]}]"\n'}),
        "(Label Studio's own format); export as COCO with images",
    ),
    "results": (files("images/a.jpg", {"results.json": RESULTS}), "(COCO results, without images"),
    "results in place of annotations": (
        files("a.jpg", {"annotations/instances_train.json": RESULTS}),
        "is a list without \"images\" and \"categories\", like the results of a model; give the "
        "annotation file",
    ),
    "captions": (
        files("a.jpg", {"c.json": [{"annotations": [{"image_id": 1, "caption": "a cat"}]}]}),
        "(COCO captions, without boxes)",
    ),
    "V7": (
        files("i/a.jpg", {"a.json": {"item": {"slots": []}, "annotations": [{"bounding_box": {}}]}}),
        "(V7 Darwin); export in COCO format",
    ),
    "SuperAnnotate": (
        files("a.jpg", {"a.json": {"a.jpg": {"instances": [{"className": "cat"}]}}}),
        "(SuperAnnotate)",
    ),
    "Labelbox": (files("a.jpg", {"a.ndjson": {"data_row": {"external_id": "a.jpg"}}}), "(Labelbox)"),
    "Scale": (
        files("a.jpg", {"t.json": [{"task_id": "1", "response": {"annotations": []}}]}),
        "(Scale); convert it to COCO format",
    ),
    "BDD100K": (
        files("i/a.jpg", {"labels/100k/train/a.json": {"frames": [{"objects": [{"box2d": {}}]}]}}),
        "labels/100k/train/a.json is in an unsupported format (BDD100K); convert it",
    ),
    "Cityscapes": (
        files("a.png", {"g/t/x/a.json": {"imgHeight": 9, "objects": [{"polygon": []}]}}),
        "(Cityscapes)",
    ),
    "Sloth": (
        files("a.jpg", {"a.json": [{"filename": "a.jpg", "class": "image", "annotations": []}]}),
        "(Sloth)",
    ),
    "SageMaker": (files("a.jpg", {"o.manifest": {"source-ref": "s3://b/a.jpg"}}), "(SageMaker's"),
    "Vertex AI": (files("a.jpg", {"o.jsonl": {"imageGcsUri": "gs://b/a.jpg"}}), "(Vertex AI's "
                                                                                "JSON"),
    "Vertex AI, CSV": (files("a.jpg", {"o.csv": "TRAIN,gs://b/a.jpg,cat,0,0,,\n"}), "AI's CSV)"),
    "Azure": (files("a.jpg", {"o.jsonl": {"label": [{"topX": 0.5}]}}), "(Azure's JSON Lines)"),
    "JSON Lines": (files("a.jpg", {"train.jsonl": {"filename": "a.jpg"}}), "(JSON Lines)"),
    "another CSV": (files("a.jpg", {"train.csv": 'image_id,bbox\na,"[1, 2, 3, 4]"\n'}), "(CSV)"),
    "DOTA": (
        files("a.png", {"labelTxt/a.txt": "imagesource:x\ngsd:0.1\n1 2 3 2 3 4 1 4 small-car 0\n"}),
        "labelTxt/a.txt is in an unsupported format (DOTA); convert it to COCO format",
    ),
    "WIDER FACE": (
        files("a.jpg", {"w.txt": "0/a.jpg\n1\n24 16 36 32 0 0 0 0 0 0 \n"}), "(WIDER FACE)"
    ),
    "MOT": (files("img1/1.jpg", {"gt/gt.txt": "1,1,24,16,36,32,1,1,1.0\n"}), "(MOT Challenge"),
    "VisDrone": (files("i/a.jpg", {"l/a.txt": "24,16,36,32,1,4,0,0\r\n"}), "or VisDrone)"),
    "imglab": (
        files("a.jpg", {"a.xml": "<dataset><images><image file='a.jpg'/></images></dataset>"}),
        "(the XML of dlib's imglab)",
    ),
    "parts of TFRecord": (files("a.jpg", {"train-00000-of-00010": "x"}), "(TFRecord)"),
    "pickle": (files("a.jpg", {"train.pkl": "x"}), "(pickle, which may run programs); convert it"),
    "MATLAB": (files("a.jpg", {"train.mat": "x"}), "(MATLAB)"),
    "HDF5": (files("a.jpg", {"train.h5": "x"}), "(HDF5)"),
    "a spreadsheet": (files("a.jpg", {"boxes.xlsx": "PK"}), "(a spreadsheet)"),
    "images alone": (
        files("train/cat/a.jpg", {}), "it holds images and no annotations; give the folder that "
                                      "holds both"
    ),
    "CreateML": (
        files("a.jpg", {"a.json": [{"image": "a.jpg", "annotations": [{"coordinates": {}}]}]}),
        "(CreateML); export in COCO format",
    ),
    "Roboflow, CSV": (
        files("train/a.jpg", {"train/_annotations.csv": "filename,class,xmin,ymin,xmax,ymax\n"}),
        "train/_annotations.csv is in an unsupported format (CSV)",
    ),
    "Open Images": (
        files("a.jpg", {"a.csv": "ImageID,Source,LabelName,Confidence,XMin\n"}),
        "(Open Images' CSV)",
    ),
    "VIA, an angle beyond numbers": (
        files("a.jpg", {"v.json": via({"name": "ellipse", "cx": 42, "cy": 32, "rx": 9, "ry": 8} | {"theta": 10**400})}),
        "is neither polygons",
    ),
    "VIA, CSV": (
        files("a.jpg", {"a.csv": "filename,region_count,region_shape_attributes\n"}),
        "(CSV of VIA); export as JSON or COCO",
    ),
    "TFRecord": (files("a.jpg", {"train/a.tfrecord": "x"}), "(TFRecord)"),
    "Keras": (files("a.jpg", {"t/_annotations.txt": "a.jpg 24,16,60,48,0\n"}), "(the text format"),
    "KITTI": (files("i/a.png", {"l/a.txt": f"Car {'0.5 ' * 14}\n"}), "(KITTI); convert it"),
    "VIA 3": (
        files("a.jpg", {"a.json": {"project": {"vid_list": []}, "view": {"1": {"fid_list": []}}}}),
        "(VIA 3)",
    ),
    "VoTT": (files("a.jpg", {"a.json": {"assets": {"x": {"asset": {}}}}}), "(VoTT)"),
    "FiftyOne": (files("d/a.jpg", {"samples.json": {"bounding_box": [0]}}), "(FiftyOne)"),
    "PaliGemma": (files("a.jpg", {"a.jsonl": '{"suffix": "<loc0256>"}'}), "(PaliGemma)"),
    "tar": (files("a.jpg", {"a.tar": ""}), "unpack or rename it: train-000.tar is read"),
    "tgz": (files("a.jpg", {"a.tar.gz": ""}), "unpack or decompress it: train-000.tar is read"),
    "archive": (files("a.jpg", {"data.zip": "PK"}), "data.zip is an archive; unpack it"),
    "several regions' attributes": (
        files("a.jpg", {"v.json": via(RECT, {"colour": "red", "kind": "cat"})}),
        "('colour', 'kind'), and none is called label; rename the one that holds the class to",
    ),
    "several files": (
        files("a.jpg", {"v.json": via(RECT), "w.json": via(RECT)}),
        "several files of annotations (v.json, w.json); keep one",
    ),
    "no names": (
        files("a.jpg", {"a.txt": LINE, "classes.txt": "\n"}), "holds no class names"
    ),
    "a name that no file can have": (
        files("a.jpg", {"a.txt": LINE, "obj.data": f"names = {'9' * 5000}\n"}), "the file of its cl"
    ),
    "no file of names": (
        files("a.jpg", {"a.txt": LINE, "obj.data": OBJ_DATA}), "the file of its classes is"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_it_is_named(tmp_path, name):
    write, words = NOT_READ[name]
    write(tmp_path)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, "train")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("annotations/instances_train.json", "is a file; give its folder, "),
        ("data.zip", "is a file; unpack it, and give the folder"),
        ("train.tar", "is a file; give its folder: an archive called train-000.tar need not be"),
    ],
)
def test_a_file_is_given(tmp_path, name, words):
    coco()(tmp_path)
    for archive in ("data.zip", "train.tar"):
        text(tmp_path, archive, "PK")
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path / name, "train")


@pytest.mark.parametrize("folders", [("", ""), ("Train", "Validation")])
def test_subsets_of_cvat_are_splits(tmp_path, folders):
    for folder, name in zip(folders, ("a.jpg", "b.jpg"), strict=True):
        save_image(tmp_path / "images" / folder / name, 1, size=(WIDTH, HEIGHT))
    one = cvat(CVAT_BOX, "a.jpg", ' subset="Train"')
    other = cvat(CVAT_BOX, "b.jpg", ' subset="Validation"')
    shape = other[other.index("<image") :]
    text(tmp_path, "annotations.xml", one.replace("</annotations>", shape))
    assert splits_of(tmp_path) == ["train", "val"]
    names = [read_annotations(tmp_path, split).names.tolist() for split in ("train", "val")]
    assert names == [[b"a.jpg"], [b"b.jpg"]]


def subsets_of_cvat(subsets: dict[str, str]) -> str:
    """A file of images with these names, each in its subset."""
    texts = []
    for name, subset in subsets.items():
        document = cvat(CVAT_BOX, f"{name}.jpg", f' subset="{subset}"')
        texts.append(document[document.index("<image") : document.index("</annotations>")])
    return f"<annotations><meta/>{''.join(texts)}</annotations>"


def test_images_of_other_subsets_are_counted(tmp_path):
    subsets = {"a": "Train", "b": "Validation", "c": "Extra", "d": ""}
    for name in subsets:
        save_image(tmp_path / f"images/{name}.jpg", 1, size=(WIDTH, HEIGHT))
    text(tmp_path, "annotations.xml", subsets_of_cvat(subsets))
    (fault,) = read_annotations(tmp_path, "train").faults
    assert (fault.code, fault.count) == ("subset-unread", 2)
    assert "(1 in 'Extra', 1 in '')" in fault.text
    assert read_annotations(tmp_path, "val").faults == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_subset_that_is_no_split_beside_train(tmp_path, encoding):
    """Held-out images are not trained on, whatever their subset is called."""
    for name in "ab":
        save_image(tmp_path / f"images/{name}.jpg", 1, size=(WIDTH, HEIGHT))
    file = tmp_path / "annotations.xml"
    file.write_text(subsets_of_cvat({"a": "Train", "b": "Holdout"}), encoding)
    assert splits_of(tmp_path) == ["train"]
    train = read_annotations(tmp_path, "train")
    assert train.names.tolist() == [b"a.jpg"]
    (fault,) = train.faults
    assert (fault.severity, fault.code) == ("warning", "subset-unread")
    assert "(1 in 'Holdout')" in fault.text
    file.write_text(subsets_of_cvat({"a": "Mine", "b": "Holdout"}), encoding)
    assert len(read_annotations(tmp_path, "train")) == 2
    file.write_text(subsets_of_cvat({"a": "Train", "b": "Validation"}), encoding)
    assert splits_of(tmp_path) == ["train", "val"]
    assert read_annotations(tmp_path, "val").names.tolist() == [b"b.jpg"]


def regions_of(name: str, *labels: str) -> dict[str, Any]:
    """A file of VIA with one image and a region of each class."""
    document = via(RECT)
    image = document.pop("a.jpg99")
    (region,) = image["regions"]
    regions = [region | {"region_attributes": {"label": label}} for label in labels]
    document[f"{name}99"] = image | {"filename": name, "regions": regions}
    return document


def boxes_of(name: str, *labels: str, listed: str = "") -> str:
    """A file of CVAT with one image and a box of each class; it may list labels of the task."""
    boxes = "".join(CVAT_BOX.replace("cat", label) for label in labels)
    document = cvat(boxes, name)
    task = "".join(f"<label><name>{label}</name></label>" for label in listed.split())
    return f"<annotations><meta>{task}</meta>{document[document.index('<image') :]}"


UNIONS = {
    "VIA": ("json", regions_of, ("cat", "cow", "dog")),
    "CVAT without labels": ("xml", boxes_of, ("cat", "cow", "dog")),
    "CVAT with other labels": (
        "xml",
        partial(boxes_of, listed="dog owl"),
        ("dog", "owl", "cat", "cow"),
    ),
}


@pytest.mark.parametrize("kind", UNIONS)
def test_classes_are_those_of_the_files_of_all_splits(tmp_path, kind):
    """A class that is missing in one of them is no contradiction."""
    suffix, write, classes = UNIONS[kind]
    labels = {"train": ("dog", "cat"), "val": ("dog",), "test": ("cow",)}
    for split, used in labels.items():
        save_image(tmp_path / split / f"{split}.jpg", len(split), size=(WIDTH, HEIGHT))
        text(tmp_path, f"{split}/annotations.{suffix}", write(f"{split}.jpg", *used))
    for split, used in labels.items():
        dataset = open_dataset(tmp_path, split)
        assert dataset.class_names == classes
        labels_read = dataset.target(0)["labels"].tolist()
        assert [classes[label] for label in labels_read] == list(used)
    codes = {fault.code for fault in check(str(tmp_path)).faults}
    assert "category-differs" not in codes


def test_files_of_via_may_be_named_after_splits(tmp_path):
    """In `annotations/`, where files of such names are COCO's otherwise."""
    for split, used in {"train": ("dog", "cat"), "val": ("dog",)}.items():
        save_image(tmp_path / "images" / f"{split}.jpg", len(split), size=(WIDTH, HEIGHT))
        text(tmp_path, f"annotations/{split}.json", regions_of(f"{split}.jpg", *used))
    assert splits_of(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "val").class_names == ("cat", "dog")


def test_a_file_of_another_split_that_cannot_be_read_is_named(tmp_path):
    for split in ("train", "val"):
        save_image(tmp_path / split / f"{split}.jpg", len(split), size=(WIDTH, HEIGHT))
        text(tmp_path, f"{split}/via.json", regions_of(f"{split}.jpg", "dog"))
    file = tmp_path / "val" / "via.json"
    file.write_text(file.read_text()[:-1])
    with pytest.raises(InputError, match=r"val/via\.json: not JSON"):
        open_dataset(tmp_path, "train")


def test_a_class_of_datumaro_that_is_none_is_quoted(tmp_path):
    """Also if it is in a group."""
    annotation = datumaro(type="bbox", bbox=XYWH, label_id=[0], group=1)
    files("images/train/a.jpg", {"annotations/train.json": annotation})(tmp_path)
    with pytest.raises(InputError, match=r"no category has its category_id \[0\]"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("tool", ["CVAT", "VIA", "Datumaro"])
def test_a_polygon_of_two_points_is_no_mask(tmp_path, tool):
    """Which pycocotools would take for x, y, width and height."""
    line = {"name": "polygon", "all_points_x": [24, 60], "all_points_y": [16, 48]}
    contents: dict[str, Any] = {
        "CVAT": {"a.xml": cvat('<polygon label="cat" points="24,16;60,48"></polygon>')},
        "VIA": {"v.json": via(line)},
        "Datumaro": {"annotations/default.json": datumaro(type="polygon", points=BOX)},
    }[tool]
    files("images/a.jpg", contents)(tmp_path)
    with pytest.raises(InputError):
        open_dataset(tmp_path, "train", masks=True)


UPPER = [24, 16, 60, 16, 60, 24]
LOWER = [24, 48, 60, 48, 60, 40]


def grouped_by_cvat(parts: list[tuple[list[float] | None, int]]) -> str:
    """Polygons, or None for a box, each with its group."""
    shapes = ""
    for points, group in parts:
        shape = CVAT_BOX
        if points is not None:
            pairs = ";".join(f"{x},{y}" for x, y in zip(points[::2], points[1::2], strict=True))
            shape = f'<polygon label="cat" points="{pairs}"></polygon>'
        shapes += shape.replace(' label="cat"', f' label="cat" group_id="{group}"')
    return cvat(shapes)


def grouped_by_datumaro(parts: list[tuple[list[float] | None, int]]) -> dict[str, Any]:
    document = datumaro()
    annotations = []
    for points, group in parts:
        shape = {"type": "bbox", "bbox": XYWH}
        if points is not None:
            shape = {"type": "polygon", "points": points}
        annotations.append(shape | {"label_id": 1, "group": group})
    document["items"][0]["annotations"] = annotations
    return document


PARTS = {
    "two polygons": ([(UPPER, 5), (LOWER, 5)], 1),
    "a box and its polygons": ([(None, 5), (UPPER, 5), (LOWER, 5)], 1),
    "two groups": ([(UPPER, 5), (LOWER, 6)], 2),
    "no group": ([(UPPER, 0), (LOWER, 0)], 2),
    "boxes alone": ([(None, 5), (None, 5)], 2),
}


@pytest.mark.parametrize("tool", ["CVAT", "Datumaro"])
@pytest.mark.parametrize("name", PARTS)
def test_polygons_of_one_group_are_one_object(tmp_path, name, tool):
    """Datumaro stores the parts of an object of COCO so, and both write COCO so."""
    parts, count = PARTS[name]
    image(tmp_path, "images/train/a.jpg")
    if tool == "CVAT":
        text(tmp_path, "annotations.xml", grouped_by_cvat(parts))
    else:
        text(tmp_path, "annotations/train.json", grouped_by_datumaro(parts))
    annotations = read_annotations(tmp_path, "train", "check")
    assert len(annotations.boxes) == count
    notes = [fault.count for fault in annotations.faults if fault.code == "shape-grouped"]
    if count == 1:
        np.testing.assert_allclose(annotations.boxes, [BOX])
        assert notes == [len(parts) - 1]
        (counts,) = annotations.masks.rles(slice(0, 1), (HEIGHT, WIDTH))
        area = pycocotools.mask.area({"size": [HEIGHT, WIDTH], "counts": counts})
        assert area == pytest.approx(36 * 8, rel=0.1)
    else:
        assert notes == []


def test_files_of_datumaro_are_splits(tmp_path):
    for split in ("train", "val"):
        image(tmp_path, f"images/{split}/a.jpg")
        text(tmp_path, f"annotations/{split}.json", datumaro(type="bbox", bbox=XYWH))
    assert splits_of(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "val").notes == ()


def test_an_object_without_class_is_an_error(tmp_path):
    files("a.jpg", {"v.json": via(RECT, {"label": {"cat": True, "dog": True}})})(tmp_path)
    document = json.loads((tmp_path / "v.json").read_text())
    document["b"] = {"filename": "b.jpg", "regions": via(RECT)["a.jpg99"]["regions"]}
    (tmp_path / "v.json").write_text(json.dumps(document))
    image(tmp_path, "b.jpg")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, "train")
    said = "v.json: a shape on image 0 ('a.jpg'): has no class, or several; give it one"
    assert said in str(caught.value)


def test_a_missing_image_without_size(tmp_path):
    files("b.jpg", {"labels.json": coco_document(width=None)})(tmp_path)
    with pytest.raises(InputError, match=r"'a.jpg'.: its file is not in"):
        open_dataset(tmp_path, "train")


def test_a_file_of_another_format_beside_it_is_named(tmp_path):
    files("images/a.jpg", {"v.json": via(RECT), "a.json": coco_document()})(tmp_path)
    notes = " ".join(open_dataset(tmp_path, "train").notes)
    assert "is read in CVAT, VIA or Datumaro format, and a.json is not read" in notes


def test_shapes_that_are_no_objects_are_counted(tmp_path):
    point = '<points label="cat" points="1.0,2.0"></points>'
    files("a.jpg", {"annotations.xml": cvat(CVAT_BOX + point + point + "<tag label='x'/>")})(
        tmp_path
    )
    (fault,) = read_annotations(tmp_path, "train").faults
    assert fault.code == "shape-left-out"
    assert fault.count == 2
    assert "2 points" in fault.text


def test_mask_of_cvat(tmp_path):
    """Its runs lie in its box, along the rows: here the upper half of it."""
    mask = '<mask label="cat" rle="0,576,576" left="24" top="16" width="36" height="32"/>'
    files("images/a.jpg", {"annotations.xml": cvat(mask)})(tmp_path)
    masks = open_dataset(tmp_path, "train", masks=True).target(0)["masks"]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[16:32, 24:60] = True
    assert np.array_equal(masks[0], expected)


def test_another_format_beside_is_no_rival(tmp_path):
    """What is in the usual place is read, whatever lies beside it."""
    yolo(f"0 {FRACTIONS}")(tmp_path)
    text(tmp_path, "export.json", coco_document())
    text(tmp_path, "classes.txt", "other\n")
    assert open_dataset(tmp_path, "train").class_names == ("cat",)


def test_labels_in_another_folder(tmp_path):
    yolo(f"0 {FRACTIONS}")(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "Annotations")
    words = "no image of train has a label file; Annotations/train/a.txt may be one: move"
    with pytest.raises(InputError, match=words):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("cat\n", ""),
        ("dog\n", "class 0 is 'dog' here, and 'cat' in the YAML file"),
        ("cat\ndog\n", "lists 2 classes, and the YAML file 1"),
    ],
)
def test_a_list_of_other_classes_beside_the_yaml_file(tmp_path, listed, words):
    """Label Studio writes it in alphabetical order: another one would exchange classes."""
    yolo(f"0 {FRACTIONS}")(tmp_path)
    text(tmp_path, "classes.txt", listed)
    faults = read_annotations(tmp_path, "train").faults
    assert [fault.code for fault in faults] == ["classes-differ"] * bool(words)
    assert words in "".join(fault.text for fault in faults)


def test_number_of_names(tmp_path):
    yolo(f"0 {FRACTIONS}", nc=3)(tmp_path)
    (note,) = open_dataset(tmp_path, "train").notes
    assert "nc: 3, but names has 1 class" in note


def test_holding_out_nothing_says_what_is_wrong(tmp_path):
    coco()(tmp_path)
    file = tmp_path / "annotations/instances_train.json"
    file.write_text(file.read_text().replace('"width": 96', '"width": "96"'))
    with pytest.raises(InputError, match="is not a size in pixels"):
        check(str(tmp_path), val_fraction=0.5)
