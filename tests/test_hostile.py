"""Files that are damaged, lie or attack: one clear line each, nothing is run, and what is sound is
read."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import write_tiny_coco
from forked import run
from PIL import Image

import redetr
from redetr.checkpoint import save_checkpoint
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.data.images import read_image
from redetr.detector.detector import as_image
from redetr.models import build

OPTIONS = (
    "backbone=[8,16,32]",
    "hidden_dim=16",
    "nheads=2",
    "dec_layers=1",
    "dim_feedforward=16",
    "num_queries=5",
)
SMALL = TrainConfig(model="redetr_n", image_size=32, model_options=OPTIONS)
NAMES = ["cup", "plate", "spoon"]


def state() -> dict[str, Any]:
    """A sound checkpoint of a tiny model."""
    torch.manual_seed(0)
    weights = build("redetr_n", 3, **SMALL.model_kwargs()).state_dict()
    about = {"config": SMALL.to_dict(), "class_names": NAMES, "category_ids": [7, 12, 90]}
    return {"model": weights, "ema": None, "optimizer": {}, "step": 1, **about}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best.pt"
    save_checkpoint(path, state())
    return path, redetr.load(path, device="cpu")


def pixels(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture with structure: left half dark, right half bright, a red corner."""
    image = Image.new("RGB", size, (200, 210, 220))
    image.paste((20, 30, 40), (0, 0, size[0] // 2, size[1]))
    image.paste((230, 10, 10), (0, 0, 8, 8))
    return image.convert(mode)


def encoded(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    with io.BytesIO() as file:
        (image or pixels()).save(file, form, **options)
        return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def changed(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def jpeg_of(width: int, height: int) -> bytes:
    content = encoded("JPEG")
    return changed(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def tiff_of(side: int) -> bytes:
    """The tags of width and height say another number."""
    content = bytearray(encoded("TIFF"))
    (start,) = struct.unpack_from("<I", content, 4)
    for i in range(struct.unpack_from("<H", content, start)[0]):
        at = start + 2 + 12 * i
        if struct.unpack_from("<H", content, at)[0] in (256, 257):
            struct.pack_into(
                "<HHII", content, at, struct.unpack_from("<H", content, at)[0], 4, 1, side
            )
    return bytes(content)


def webp_of(width: int, height: int) -> bytes:
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + encoded("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


WHOLE = {form: encoded(form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")}
BAD_IMAGES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(5000),
    "text": b"hello, this is no image\n" * 20,
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "EPS, which PIL gives to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 "
                                           b"9\nshowpage\n",
    "zip": zlib.compress(b"x" * 100),
    "pickle": pickle.dumps({"image": [1, 2, 3]}),
    "program": b"\x7fELF" + bytes(100),
    "huge PNG": png_of(100_000, 100_000),
    "PNG of the largest size": png_of(2**31 - 1, 2**31 - 1),
    "PNG without a row": png_of(4000, 4000),
    "PNG of no width": png_of(0, 10),
    "PNG whose rows are a bomb": png_of(20_000, 20_000, bytes(50_000_000)),
    "huge JPEG": jpeg_of(65_500, 65_500),
    "JPEG of no height": jpeg_of(40, 0),
    "huge TIFF": tiff_of(2**31 - 1),
    "large TIFF": tiff_of(60_000),
    "huge WebP": webp_of(2**24, 2**24),
    "huge GIF": changed(WHOLE["GIF"], 6, b"\xff\xff\xff\xff"),
    "huge BMP": changed(WHOLE["BMP"], 18, struct.pack("<ii", 10**6, 10**6)),
    "BMP of negative width": changed(WHOLE["BMP"], 18, struct.pack("<i", -40)),
    "JPEG in name of PNG's bytes": b"\x89PNG\r\n\x1a\n" + WHOLE["JPEG"],
    "no pixel is a number": encoded("TIFF", Image.fromarray(np.full((9, 9), np.nan, np.float32))),
    **{f"{form} cut at {share}%": content[: len(content) * share // 100]
       for form, content in WHOLE.items() for share in (5, 30, 60) if (form, share) != ("GIF", 60)},
}  # fmt: skip


def one_line(error: BaseException) -> str:
    said = str(error)
    assert said and "\n" not in said and "Traceback" not in said
    return said


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_in_one_line(name, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(BAD_IMAGES[name])
    for read in (as_image, read_image):  # in predictions, and in training
        with pytest.raises(redetr.InputError) as told:
            read(path)
        assert one_line(told.value).startswith(f"{path}: ")


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_are_told_or_harmless(form, seed, tmp_path):
    content, draw = bytearray(WHOLE[form]), random.Random(seed)
    for _ in range(1 + 4 * (seed % 3)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    try:
        image = as_image(path)
        assert image.dtype == torch.uint8 and image.shape[0] == 3
    except redetr.InputError as error:
        assert one_line(error).startswith(f"{path}: ")


def with_orientation(tag: int) -> bytes:
    """The picture, stored so that the tag brings it back."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded("PNG", pixels().transpose(Image.Transpose(undo[tag])), exif=exif)


def animated(form: str) -> bytes:
    return encoded(
        form, save_all=True, append_images=[Image.new("RGB", (40, 30), (1, 2, 3))], duration=100
    )


GOOD_IMAGES: dict[str, bytes] = {
    **WHOLE,
    "CMYK": encoded("JPEG", pixels("CMYK"), quality=98),
    "CMYK TIFF": encoded("TIFF", pixels("CMYK")),
    "progressive": encoded("JPEG", progressive=True, quality=98),
    "palette": encoded("PNG", pixels().quantize(32)),
    "palette with transparency": encoded("PNG", pixels().quantize(32), transparency=b"\xff" * 16),
    "transparent": encoded("PNG", pixels("RGBA")),
    "transparent WebP": encoded("WEBP", pixels("RGBA"), lossless=True),
    "lossless WebP": encoded("WEBP", lossless=True),
    "packed TIFF": encoded("TIFF", compression="tiff_lzw"),
    "JPEG 2000": encoded("JPEG2000"),
    **{f"animated {form}": animated(form) for form in ("GIF", "PNG", "WEBP")},
    **{f"EXIF {tag}": with_orientation(tag) for tag in range(2, 9)},
    "damaged EXIF": encoded("JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40),
    "bytes after the end": WHOLE["JPEG"] + b"<script>" * 100,
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_sound_images_are_read_as_what_they_show(name, tmp_path):
    path = tmp_path / "picture.jpg"  # whatever its name says
    path.write_bytes(GOOD_IMAGES[name])
    image, expected = as_image(path), torch.from_numpy(np.array(pixels())).permute(2, 0, 1)
    assert image.shape == expected.shape
    assert (image.float() - expected.float()).abs().mean() < 12


@pytest.mark.parametrize(("name", "image"), {
    "16 bits": Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)),
    "8 bits": Image.fromarray(np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40)),
}.items())  # fmt: skip
def test_grey_of_any_depth(name, image, tmp_path):
    image.save(tmp_path / "a.png")
    grey = as_image(tmp_path / "a.png")
    assert grey.shape == (3, 30, 40) and (grey[0] == grey[2]).all()
    assert (grey[0].flatten() - torch.linspace(0, 255, 1200)).abs().max() <= 1


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (0, 5)), "this image: has no pixels .0x5."),
        ("a" * 5000, "cannot|missing"),
        ((path for path in ["a.png"]), "an image cannot be of type generator: .* a list of these"),
    ],
    ids=["no pixels", "a long name", "a generator"],
)
def test_what_is_no_image(image, said):
    with pytest.raises(redetr.InputError, match=said):
        as_image(image)


def test_one_bit(tmp_path):
    Image.new("1", (40, 30), 1).save(tmp_path / "a.png")
    assert (as_image(tmp_path / "a.png") == 255).all()


def fails(capsys, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1, said
    assert not any("Traceback" in line for line in said)
    return said[-1]


def test_folders_links_and_pipes_in_the_place_of_images(detector, tmp_path, capsys):
    images = tmp_path / "in"
    (images / "folder.jpg").mkdir(parents=True)
    (images / "folder.jpg" / "inner.png").write_bytes(WHOLE["PNG"])
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "broken.jpg").symlink_to("nothing")
    (images / "round").symlink_to(images, target_is_directory=True)
    os.mkfifo(images / "pipe.jpg")
    said = fails(
        capsys, "predict", detector[0], images, "--output", tmp_path / "out", "--device=cpu"
    )
    assert said.startswith("redetr: 3 sources could not be read (see ")
    lines = [
        json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    ]
    errors = {Path(line["image"]).name: line.get("error", "") for line in lines}
    assert errors["inner.png"] == ""
    assert all(errors[name] for name in ("loop.jpg", "broken.jpg", "pipe.jpg")) and len(errors) == 4


def test_predict_goes_through_all_of_it(detector, tmp_path, capsys):
    """Sixty files in one run: those that are sound are looked at, each of the others has its
    line."""
    for i, content in enumerate([*BAD_IMAGES.values(), *GOOD_IMAGES.values()]):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    save = ["--save", "json", "--device=cpu", "--batch-size=8"]
    said = fails(capsys, "predict", detector[0], tmp_path, "--output", tmp_path / "out", *save)
    assert f"{len(BAD_IMAGES)} sources could not be read" in said
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == len(GOOD_IMAGES)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


Make = Callable[[Path, dict[str, Any]], Any]


def saved(change: Callable[[dict[str, Any]], Any]) -> Make:
    """The checkpoint with something else in it."""

    def make(path: Path, content: dict[str, Any]) -> None:
        change(content)
        torch.save(content, path)

    return make


def config(**values: Any) -> Make:
    return saved(lambda content: content["config"].update(values))


def option(*options: str) -> Make:
    return config(model_options=(*OPTIONS, *options))


def tensor(change: Callable[[torch.Tensor], Any], name: str = "query_embed.weight") -> Make:
    return saved(lambda content: content["model"].update({name: change(content["model"][name])}))


def official(**tensors: torch.Tensor) -> Make:
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda path, content: torch.save({"model": named}, path)


def packed(path: Path, content: dict[str, Any]) -> None:
    """A zip file like torch's, whose storage takes a thousandth of its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best/data.pkl", b"\x80\x02}.")
        with archive.open("best/data/0", "w", force_zip64=True) as file:
            for _ in range(20):
                file.write(bytes(1 << 20))


def cut(share: float) -> Make:
    def make(path: Path, content: dict[str, Any]) -> None:
        torch.save(content, path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def flipped(seed: int) -> Make:
    def make(path: Path, content: dict[str, Any]) -> None:
        torch.save(content, path)
        data, draw = bytearray(path.read_bytes()), random.Random(seed)
        start = data.index(b"data.pkl") + 100
        data[start + draw.randrange(2000)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)

    return make


def lying_header(header: dict[str, Any] | bytes, size: int | None = None) -> Make:
    """A safetensors file with this header and 16 bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path, content: path.write_bytes(
        struct.pack("<Q", size or len(text)) + text + bytes(16)
    )


def about(change: Callable[[dict[str, Any]], Any]) -> Make:
    """A sound safetensors file whose metadata say something else."""

    def make(path: Path, content: dict[str, Any]) -> None:
        told = {key: content[key] for key in ("config", "class_names", "category_ids")}
        change(told)
        safetensors.torch.save_file(content["model"], path, {"redetr": json.dumps(told)})

    return make


F32 = {"dtype": "F32"}
BAD_WEIGHTS: dict[str, Make] = {
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_text("no weights\n"),
    "an image": lambda path, content: path.write_bytes(WHOLE["PNG"]),
    "a list": lambda path, content: torch.save([1, 2], path),
    "a tensor": lambda path, content: torch.save(torch.zeros(3), path),
    "code in a zip": lambda path, content: torch.save(
        {"model": Payload(path.parent / "executed")}, path
    ),
    "code in a pickle": lambda path, content: path.write_bytes(
        pickle.dumps(Payload(path.parent / "executed"))
    ),
    "code as optimizer": saved(lambda content: content.update(optimizer=Payload(Path("executed")))),
    "old form, code": lambda path, content: torch.save(
        {"model": Payload(path.parent / "executed")}, path, _use_new_zipfile_serialization=False
    ),
    "zip bomb": packed,
    "empty zip": lambda path, content: zipfile.ZipFile(path, "w").close(),
    "deep pickle": lambda path, content: path.write_bytes(b"\x80\x02" + b"]" * 10**4 + b"."),
    **{f"cut at {share}": cut(share) for share in (0.02, 0.3, 0.7, 0.95, 0.999)},
    **{f"flipped bit {seed}": flipped(seed) for seed in range(8)},
    "a value for a tensor": tensor(lambda old: 3.0),
    "text for a tensor": tensor(lambda old: "weights"),
    "other shape": tensor(lambda old: old[:, :3].clone()),
    "one dimension": tensor(lambda old: old.flatten()),
    "no elements": tensor(lambda old: old[:0].clone()),
    "huge, of one value": tensor(lambda old: torch.zeros(1).expand(10**12)),
    "sparse": tensor(lambda old: old.to_sparse()),
    "on no device": tensor(lambda old: old.to("meta")),
    "NaN": tensor(lambda old: old * float("nan")),
    "infinite": tensor(lambda old: old.index_fill(0, torch.tensor([0]), float("inf"))),
    "tensor missing": saved(lambda content: content["model"].popitem()),
    "tensor too many": saved(lambda content: content["model"].update(more=torch.zeros(2))),
    "name is a number": saved(lambda content: content["model"].update({3: torch.zeros(2)})),
    "no tensors": saved(lambda content: content.update(model={})),
    "model is a list": saved(lambda content: content.update(model=[torch.zeros(2)])),
    "no config": saved(lambda content: content.pop("config")),
    "config is text": saved(lambda content: content.update(config="redetr_n")),
    "config is a list": saved(lambda content: content.update(config=[])),
    "unknown setting": config(rm="-rf"),
    "unknown model": config(model="../../etc/passwd"),
    "model is a list of names": config(model=["redetr_n"]),
    "image size": config(image_size=10**9),
    "image size below 0": config(image_size=-64),
    "image size is text": config(image_size="64"),
    "options are a number": config(model_options=7),
    "option without value": option("hidden_dim"),
    "option of many digits": option("hidden_dim=" + "9" * 5000),
    "option of many brackets": option("hidden_dim=" + "[" * 100_000),
    "option that is not a number": option("hidden_dim=[64]"),
    "options are no texts": config(model_options=[1, [2]]),
    "unknown option": option("system=1"),
    "a billion layers": option("dec_layers=1000000000"),
    "a billion layers beside a word": config(
        model_options=["enc_layers=one", "dec_layers=1000000000"]
    ),
    "a billion queries": option("num_queries=1000000000"),
    "wide": option("hidden_dim=400000"),
    "no heads": option("nheads=0"),
    "heads below 0": option("nheads=-2"),
    "points": option("points=100000000"),
    "backbone is a word": option("backbone=os.system"),
    "classes are missing": saved(lambda content: content.update(class_names=[])),
    "classes are lists": saved(lambda content: content.update(class_names=[["cup"], [], {}])),
    "average is a tensor": saved(lambda content: content.update(ema=torch.zeros(3))),
    "classes are a number": saved(lambda content: content.update(class_names=3)),
    "too many classes": saved(lambda content: content["class_names"].append("fork")),
    "category ids are text": saved(lambda content: content.update(category_ids=["a", "b", "c"])),
    "official, of one tensor": official(
        query_embed__weight=torch.zeros(5, 16), class_embed__weight=torch.zeros(3, 16)
    ),
    "official, classes by the billion": official(
        query_embed__weight=torch.zeros(5, 16), class_embed__weight=torch.zeros(1).expand(10**12)
    ),
    "official, of other dimensions": official(
        query_embed__weight=torch.zeros(5),
        class_embed__weight=torch.zeros(3, 4),
        backbone__0__body__conv1__weight=torch.zeros(1, 1, 1, 1),
        transformer__decoder__layers__0__linear1__weight=torch.zeros(2, 2),
    ),
    "official, wide": official(
        query_embed__weight=torch.zeros(1, 10**6),
        class_embed__weight=torch.zeros(3, 4),
        backbone__0__body__conv1__weight=torch.zeros(1, 1, 1, 1),
        transformer__decoder__layers__0__linear1__weight=torch.zeros(2, 2),
    ),
    "official, a billion layers": official(
        query_embed__weight=torch.zeros(1, 32),
        class_embed__weight=torch.zeros(3, 4),
        backbone__0__body__conv1__weight=torch.zeros(1, 1, 1, 1),
        transformer__decoder__layers__0__linear1__weight=torch.zeros(2, 2),
        transformer__encoder__layers__1000000000__x=torch.zeros(1),
        **{
            f"backbone__0__body__layer{i}__{n - 1}__conv3__weight": torch.zeros(1)
            for i, n in ((1, 3), (2, 4), (3, 6), (4, 3))
        },
        backbone__0__body__layer1__0__conv3__weight=torch.zeros(1),
    ),
}
BAD_SAFETENSORS: dict[str, Make] = {
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_bytes(b"no weights at all"),
    "header longer than the file": lying_header({}, 10**6),
    "header of exabytes": lying_header({}, 2**63),
    "header is no JSON": lying_header(b"{{{{"),
    "deep header": lying_header(b'{"a":' * 10**5),
    "data beyond the end": lying_header(
        {"x": {**F32, "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
    ),
    "data smaller than the shape": lying_header(
        {"x": {**F32, "shape": [10**6], "data_offsets": [0, 16]}}
    ),
    "negative shape": lying_header({"x": {**F32, "shape": [-4], "data_offsets": [0, 16]}}),
    "shape that overflows": lying_header(
        {"x": {**F32, "shape": [2**62, 8], "data_offsets": [0, 16]}}
    ),
    "overlapping": lying_header({n: {**F32, "shape": [4], "data_offsets": [0, 16]} for n in "xy"}),
    "unknown type": lying_header({"x": {"dtype": "PYTHON", "shape": [4], "data_offsets": [0, 16]}}),
    "another's": lying_header({"x": {**F32, "shape": [4], "data_offsets": [0, 16]}}),
    "metadata are a list": about(lambda told: told.update(config=[1])),
    "metadata without classes": about(lambda told: told.pop("class_names")),
    "metadata of billions": about(
        lambda told: told["config"].update(model_options=["dec_layers=1000000000"])
    ),
    "cut": lambda path, content: [
        safetensors.torch.save_file(content["model"], path),
        path.write_bytes(path.read_bytes()[:-9]),
    ],
}
CASES = [
    (kind, name)
    for kind, cases in ((".pt", BAD_WEIGHTS), (".safetensors", BAD_SAFETENSORS))
    for name in cases
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda part: part)
def test_bad_weights_are_refused_in_one_line(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"best{kind}"
    {".pt": BAD_WEIGHTS, ".safetensors": BAD_SAFETENSORS}[kind][name](path, state())
    with pytest.raises(redetr.InputError) as told:
        redetr.load(path, device="cpu")
    one_line(told.value)
    assert not (tmp_path / "executed").exists()


CONFIGS = {
    "list": b"[]", "text": b'"detr"', "bytes": b"\xff\xfe", "deep": b"[" * 10**5, "empty": b"",
    "number": b"3", "labels": b'{"model_type": "detr", "id2label": '
                              b'[1]}', "backbone": b'{"model_type": "detr", '
                                                                      b'"backbone_config": "x"}',
    "heads": b'{"model_type": "detr", "encoder_attention_heads": '
             b'"many"}', "no weights": b'{"model_type": "detr"}',
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_folders_of_transformers(name, tmp_path):
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    if name != "no weights":
        safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(redetr.InputError) as told:
        redetr.load(tmp_path)
    one_line(told.value)


PATHS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\secret.jpg",
    "a/../../b.jpg",
    "C:\\x.jpg",
    "",
    "\0.jpg",
    "\ud800",
)


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_annotations_cannot_name_files_elsewhere(name, tmp_path, capsys):
    root = write_tiny_coco(tmp_path / "data")
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["images"][0]["file_name"] = name
    file.write_text(json.dumps(document))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(root), "--json"])
    assert ended.value.code == 1
    assert "path-outside" in {
        fault["code"] for fault in json.loads(capsys.readouterr().out)["faults"]
    }
    with pytest.raises(redetr.InputError, match=r"instances_train\.json: image 100"):
        redetr.data.open_dataset(root, "train")


@pytest.mark.parametrize(
    "name", ["huge PNG", "huge TIFF", "empty", "text", "JPEG cut at 60%", "HEIC"]
)
def test_check_tells_of_hostile_images(name, tmp_path, capsys):
    root = write_tiny_coco(tmp_path / "data")
    (root / "train" / "train-1.jpg").write_bytes(BAD_IMAGES[name])
    with pytest.raises(SystemExit) as ended:
        main(["check", str(root), "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 1 and "Traceback" not in said.err
    assert {"image-unreadable"} <= {fault["code"] for fault in json.loads(said.out)["faults"]}


def test_in_a_process_of_its_own(detector, tmp_path):
    """As users meet it: warnings are shown there, and are none."""
    (tmp_path / "bomb.png").write_bytes(BAD_IMAGES["huge PNG"])
    bomb = tmp_path / "bomb.png"
    code, _, errors = run(["predict", detector[0], bomb, "--output", tmp_path / "out"])
    assert code == 1 and "Warning" not in errors
    assert [line for line in errors.splitlines() if "redetr: " in line][-1].endswith(
        "; give another file"
    )
    BAD_WEIGHTS["code in a pickle"](tmp_path / "best.pt", state())
    code, _, errors = run(["predict", tmp_path / "best.pt", bomb])
    assert code == 1 and errors.count("\n") == 1
    assert not (tmp_path / "executed").exists()
