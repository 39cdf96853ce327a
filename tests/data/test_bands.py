"""Images that Pillow refuses, and images of other channels than RGB: read, cut, trained on,
evaluated and predicted, as users of satellites and microscopes do."""

import builtins
import io
import json
import tarfile
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from command_line import SMALL, train_arguments
from PIL import Image
from test_pixels import deep_tiff

import redetr
from redetr.app import uploads
from redetr.app.api import Api
from redetr.app.uploads import Turns, Upload, Uploads
from redetr.cli import main
from redetr.data import open_dataset
from redetr.data.bands import in_channels, read_bands
from redetr.data.headers import read_header
from redetr.data.images import (
    IMAGE_SUFFIXES,
    count_bands,
    decoded_bytes,
    describe,
    image_size,
    read_image,
    read_upright,
)
from redetr.data.transforms import MEAN, STD, Jitter, derived_rng, statistics
from redetr.detector.sources import find_sources, frames, further_pages
from redetr.errors import InputError
from redetr.models.channels import adapted, first_convolution
from redetr.threads import restored_threads
from redetr.weights.reading import read_weights
from redetr.weights.starting import start_from

RANDOM = np.random.default_rng(0)
FIVE = RANDOM.integers(0, 256, (40, 60, 5), dtype=np.uint8)


def write_tiff(path: Path, values: np.ndarray, **options) -> Path:
    settings = {"photometric": "minisblack", "planarconfig": "contig"} | options
    tifffile.imwrite(path, values, **settings)
    return path


# ----------------------------------------------------------------------------------------------
# files


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_tiff_of_five_bands_of_16_bits(tmp_path, planar, compression):
    """Each band has its own scale: the first fills 16 bits, the last a few of them."""
    deep = FIVE.astype(np.uint16) * np.array([257, 64, 16, 4, 1], np.uint16)
    stored = deep if planar == "contig" else np.moveaxis(deep, 2, 0)
    path = write_tiff(tmp_path / "a.tif", stored, planarconfig=planar, compression=compression)
    image = read_image(path, 5)
    assert image.shape == (5, 40, 60)
    assert (image[0].numpy() == FIVE[:, :, 0]).all()
    assert np.abs(image[1:].permute(1, 2, 0).numpy().astype(int) - FIVE[:, :, 1:]).max() <= 1
    assert image_size(path) == (60, 40)
    header = read_header(path, looks=True)
    assert (header.width, header.height, header.problem) == (60, 40, "")
    assert read_image(path).shape == (3, 40, 60)
    with pytest.raises(InputError, match=r"a\.tif: .*it has 5 bands, but the model takes 4"):
        read_image(path, 4)


def test_what_pillow_refuses_is_read_as_it_would_be(tmp_path):
    """Float64 elevation with gaps; 16-bit colour in planes."""
    heights = np.linspace(100, 900, 40 * 60).reshape(40, 60)
    heights[3, 4] = -9999
    gap = (42113, "s", 0, "-9999", True)
    path = write_tiff(tmp_path / "h.tif", heights, extratags=[gap], planarconfig=None)
    grey = read_image(path)
    assert grey[:, 3, 4].tolist() == [0, 0, 0]
    assert (grey.max(), grey[0, 0, 0]) == (round(900 / 1023 * 255), round(100 / 1023 * 255))
    colour = FIVE[:, :, :3].astype(np.uint16) * 257
    planes = tmp_path / "planes.tif"
    write_tiff(planes, np.moveaxis(colour, 2, 0), photometric="rgb", planarconfig="separate")
    assert (read_image(planes).permute(1, 2, 0).numpy() == FIVE[:, :, :3]).all()


def test_pages_that_are_not_read_are_reported(tmp_path, capsys):
    """A stack of seven, which Pillow refuses; bands and smaller copies are no pages."""
    stack = np.zeros((7, 20, 30))
    assert read_header(write_tiff(tmp_path / "z.tif", stack, planarconfig=None)).frames == 7
    bands = tmp_path / "bands.tif"
    write_tiff(bands, np.moveaxis(FIVE, 2, 0), planarconfig="separate")
    assert read_header(bands).frames == 1
    pyramid = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(pyramid) as writer:
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        writer.write(FIVE, subifds=1, **options)
        writer.write(FIVE[::2, ::2].copy(), subfiletype=1, **options)
    assert read_header(pyramid).frames == 1
    data = five_channel_data(tmp_path / "data", as_stack)
    main(["check", str(data), "--json"])
    faults_by_code = {}
    for fault in json.loads(capsys.readouterr().out)["faults"]:
        faults_by_code[fault["code"]] = fault
    many_pages = faults_by_code["image-frames"]
    assert many_pages["text"] == "holds 2 images"
    assert many_pages["remedy"].startswith("only the first is read: save the others as files")
    (tmp_path / "broken.tif").write_bytes(b"II*")
    sources = find_sources([str(data / "val"), str(tmp_path)])
    assert [name for name in sources if name.endswith("broken.tif")]
    pages = pages_in(sources)
    assert pages[str(tmp_path / "z.tif")] == 7
    (note,) = further_pages(pages)
    assert (note.code, note.count) == ("image-frames", 6 + 3 + 1)  # val is in both, and z.tif
    assert "holds 2 images, of which only the first is used; save the others" in str(note)


def pages_in(sources: list[str]) -> dict[str, int]:
    """The number of pages or frames of each image of which `predict` reads one of several."""
    return {frame.source: frame.pages for frame in frames(sources, 2) if frame.pages > 1}


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "apng", "avif"])
def test_an_animation_is_no_surprise_in_prediction(ending, tmp_path):
    if ending == "avif" and ".avif" not in IMAGE_SUFFIXES:
        ending = "gif"  # this build of Pillow has none
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    path = tmp_path / f"a.{ending}"
    kind = "PNG" if ending == "apng" else None
    first.save(path, kind, save_all=True, append_images=[second])
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(path, f"b.{ending}")
    archived = f"{tmp_path}/more.tar/b.{ending}"
    sources = find_sources([str(tmp_path), archived])
    assert pages_in(sources) == {str(path): 2, archived: 2}
    (note,) = further_pages(pages_in(sources[:2]))
    assert str(note).startswith(f"{path}: holds 2 images, of which only the first is used")


def test_without_tifffile_the_cure_is_named(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", np.zeros((8, 8)), planarconfig=None)
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=r'a\.tif: Pillow cannot read .*pip install "redetr\[tiff\]"'
    ):
        read_image(path)


@pytest.mark.parametrize("values, words", [
    (np.zeros((5, 400, 100), np.uint8), r"write \[height, width, bands\]"),
    (np.zeros(7), r"array of \[7\] is not an image"),
    (np.array([["a"]]), "is not an image"),
])  # fmt: skip
def test_arrays_that_are_no_images(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=words):
        read_image(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:90])
    with pytest.raises(InputError, match=r"a\.npy: cannot decode"):
        read_image(tmp_path / "a.npy")


def test_damage_belongs_to_the_file_of_its_thread():
    """All files share tifffile's logger, and threads read them at the same time."""
    content = io.BytesIO()
    tifffile.imwrite(content, FIVE, photometric="minisblack", planarconfig="contig")
    damaged = deep_tiff(FIVE[:, :, :3], (284, 2))  # states one strip for three planes
    refusals = []

    def read_damaged() -> None:
        with pytest.raises(ValueError, match="incorrect StripByteCounts"):
            read_bands(io.BytesIO(damaged))
        refusals.append(True)

    class Interrupted(io.BytesIO):
        """Another thread reads the damaged file at the first two calls, the second by tifffile."""

        def read(self, *size: int) -> bytes:
            if len(refusals) < 2:
                thread = threading.Thread(target=read_damaged)
                thread.start()
                thread.join()
            return super().read(*size)

    assert (read_bands(Interrupted(content.getvalue())) == FIVE).all()
    assert len(refusals) == 2
    assert tifffile.logger().propagate


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_bands_are_stored_and_shown_as_the_tag_of_the_tiff_says(tmp_path, orientation):
    tag = (274, "H", 1, orientation, True)
    turned = {3: FIVE[::-1, ::-1], 6: np.rot90(FIVE, 3), 8: np.rot90(FIVE)}[orientation]
    path = write_tiff(tmp_path / "a.tif", FIVE, extratags=[tag])
    assert (read_image(path, 5).permute(1, 2, 0).numpy() == FIVE).all()
    assert describe(path)[:3] == (60, 40, orientation)
    assert (read_upright(path, "a", 5).permute(1, 2, 0).numpy() == turned).all()
    planes = np.moveaxis(FIVE[:, :, :3].astype(np.uint16) * 257, 2, 0)  # which Pillow opens
    write_tiff(path, planes, photometric="rgb", planarconfig="separate", extratags=[tag])
    assert (read_image(path).permute(1, 2, 0).numpy() == FIVE[:, :, :3]).all()
    assert describe(path)[:3] == (60, 40, orientation)
    assert (read_upright(path, "a").permute(1, 2, 0).numpy() == turned[:, :, :3]).all()


def test_four_bands_of_a_png_are_shown_as_its_tag_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FIVE[:, :, :4]).save(tmp_path / "a.png", exif=exif)
    stored = read_image(tmp_path / "a.png", 4).permute(1, 2, 0).numpy()
    assert (stored == FIVE[:, :, :4]).all()
    shown = read_upright(tmp_path / "a.png", "a", 4).permute(1, 2, 0).numpy()
    assert (shown == np.rot90(FIVE[:, :, :4], 3)).all()


def test_arrays_with_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[print]]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot decode"):
        read_image(tmp_path / "a.npy")
    assert image_size(tmp_path / "a.npy") == (0, 0)


def test_a_single_channel(tmp_path):
    grey = FIVE[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", grey)
    for name in ("a.png", "a.npy"):
        assert (read_image(tmp_path / name, 1)[0].numpy() == grey).all()
        assert (read_image(tmp_path / name)[2].numpy() == grey).all()
    assert in_channels(FIVE[:, :, :3], 1).shape == (40, 60, 1)


# ---------------------------------------------------------------------------------------------
# models


def test_the_first_convolution_by_hand():
    weight = torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]])
    assert adapted(weight, 5).flatten().tolist() == pytest.approx([0.6, 1.2, 3.6, 1.8, 1.8])
    assert adapted(weight, 1).flatten().tolist() == [9.0]
    grey = torch.rand(1, 1, 4, 4)
    same = torch.nn.functional.conv2d(grey.expand(1, 3, 4, 4), weight)
    assert torch.allclose(torch.nn.functional.conv2d(grey, adapted(weight, 1)), same, atol=1e-6)
    assert statistics(3) == (MEAN, STD)
    assert statistics(4)[0] == (*MEAN, pytest.approx(sum(MEAN) / 3))
    assert statistics(1)[1] == (pytest.approx(sum(STD) / 3),)


@pytest.mark.parametrize("name, options", [
    ("detr_r50", {"backbone": "resnet18", "enc_layers": 1, "dec_layers": 1}),
    ("redetr_n", {}),
    ("redetr_mobile", {}),
    ("rtdetr_r18", {}),
    ("dfine_n", {}),
])  # fmt: skip
def test_every_family_takes_five_channels_and_learns_from_them(name, options):
    model = redetr.build(name, 3, channels=5, **options).eval()
    images = torch.rand(1, 5, 64, 64)
    outputs = model(images)
    outputs["pred_logits"].sum().backward()
    _, convolution = first_convolution(model)
    assert convolution.weight.grad[:, 4].abs().sum() > 0
    assert model.channels == 5
    with pytest.raises(InputError, match="65 channels: a model takes 1 to 64"):
        redetr.build(name, 3, channels=65)


def test_colours_of_other_channels_change_alike():
    jitter = Jitter(brightness=0.3, contrast=0.0, saturation=0.3, hue=0.1)
    image = torch.full((5, 8, 8), 100, dtype=torch.uint8)
    changed = jitter(derived_rng(1), image)
    assert changed.shape == image.shape
    assert len(changed.unique()) == 1
    assert changed[0, 0, 0] != 100


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_contrast_is_about_the_exact_mean_on_any_number_of_threads(threads, monkeypatch):
    """Loader processes compute on one thread, a run that reads its own images on several."""
    random = torch.Generator().manual_seed(0)
    half = torch.randint(145, 256, (5, 400, 1333), dtype=torch.uint8, generator=random)
    image = torch.cat([half, (400 - half.int()).byte()], 1)  # whose mean is 200
    image[0, 1, 1] = 200
    draws = derived_rng(1)
    monkeypatch.setattr(draws, "uniform", lambda low, high: high)
    with restored_threads():
        torch.set_num_threads(threads)
        changed = Jitter(brightness=0.0, contrast=5e4, saturation=0.0)(draws, image)
    assert changed[0, 1, 1] == 200


# ------------------------------------------------------------------------------------ as a user
# does it


def five_channel_data(root: Path, write, bands: int = 5) -> Path:
    """Squares that only the last band shows, in COCO format."""
    for split, count in {"train": 6, "val": 3}.items():
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            pixels = RANDOM.integers(0, 60, (64, 64, bands), dtype=np.uint16)
            x, y = RANDOM.integers(0, 40, 2).tolist()
            pixels[y : y + 20, x : x + 20, -1] = 250
            name = write(root / split / f"{split}{number}", pixels * 100)
            images.append({"id": number, "file_name": name, "width": 64, "height": 64})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 20, 20]}
            )
        document = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "ant"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return root


def as_npy(path: Path, pixels: np.ndarray) -> str:
    np.save(path.with_suffix(".npy"), pixels)
    return f"{path.name}.npy"


def as_tiff(path: Path, pixels: np.ndarray) -> str:
    return write_tiff(path.with_suffix(".tif"), pixels).name


def as_stack(path: Path, pixels: np.ndarray) -> str:
    """Two pages of five bands."""
    return write_tiff(path.with_suffix(".tif"), np.stack([pixels, pixels])).name


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The data, and a run on it of two steps."""
    root = tmp_path_factory.mktemp("bands")
    data = five_channel_data(root / "data", as_npy)
    main([str(word) for word in train_arguments(data, root / "run", steps=2, eval_every=2)])
    return data, root / "run"


def test_training_finds_the_channels_and_the_checkpoint_records_them(trained, capsys):
    data, run = trained
    assert json.loads((run / "config.json").read_text())["channels"] == 5
    detector = redetr.load(run)
    assert detector.model.channels == 5
    main(["evaluate", str(run), "--json", "--device", "cpu"])
    assert "AP" in json.loads(capsys.readouterr().out)
    main(["check", str(data)])
    assert "ready to train" in capsys.readouterr().out


def test_prediction_draws_the_first_three(trained, tmp_path):
    data, run = trained
    main(["predict", str(run), str(data / "val"), "--output", str(tmp_path / "out"),
          "--threshold", "0", "--device", "cpu"])  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.png")) + list((tmp_path / "out").glob("*.jpg"))) == 3
    detector = redetr.load(run, device="cpu")
    image = open_dataset(data, "val").image(0)
    assert image.shape == (5, 64, 64)
    from_file = detector.predict(data / "val/val0.npy", threshold=0.0)
    from_tensor = detector.predict(image, threshold=0.0)
    from_array = detector.predict(image.permute(1, 2, 0).numpy(), threshold=0.0)
    assert torch.equal(from_file.boxes, from_tensor.boxes)
    assert torch.equal(from_file.boxes, from_array.boxes)
    assert detector.predict(image, threshold=0.0, tile=40).boxes.shape[1] == 4
    with pytest.raises(InputError, match=r"of 5 channels .*\[3, 64, 64\]"):
        detector.predict(image[:3])


@pytest.mark.parametrize("write", [as_npy, as_tiff])
def test_two_bands(write, tmp_path, capsys):
    """Neither RGB nor grey, so that nothing may look at them as such."""
    data = five_channel_data(tmp_path / "data", write, bands=2)
    main(["check", str(data), "--thorough", "--report", str(tmp_path / "report")])
    assert "ready to train" in capsys.readouterr().out
    assert open_dataset(data, "train").channels == 2
    if write is as_npy:
        arguments = train_arguments(data, tmp_path / "run", steps=1, eval_every=1)
        main([str(word) for word in arguments])
        assert redetr.load(tmp_path / "run", device="cpu").model.channels == 2


@pytest.mark.parametrize("write", [as_npy, as_tiff])
def test_gradients_are_verified_on_such_data(write, tmp_path):
    data = five_channel_data(tmp_path / "data", write)
    config = redetr.TrainConfig(
        data=str(data),
        batch_size=4,
        accumulate=2,
        image_size=64,
        device="cpu",
        precision="fp32",
        model_options=tuple(SMALL),
    )
    assert redetr.verify(config).failed == []
    with pytest.raises(InputError, match="it has 5 bands, but the model takes 4"):
        redetr.verify(replace(config, channels=4))


def test_a_val_split_of_other_bands_is_found_before_the_first_step(tmp_path, capsys):
    """Not by the first evaluation."""
    data = five_channel_data(tmp_path / "data", as_npy)
    for file in (data / "val").glob("*.npy"):
        np.save(file, np.load(file)[:, :, :3])
    with pytest.raises(SystemExit):
        main([str(word) for word in train_arguments(data, tmp_path / "run")])
    said = capsys.readouterr().err
    assert "val0.npy: " in said and "it has 3 bands, but the model takes 5" in said
    assert not (tmp_path / "run").exists()


def test_where_the_model_looked_and_the_loss(trained, tmp_path):
    data, run = trained
    arguments = ["explain", str(run), "--device", "cpu", "--output", str(tmp_path / "pages")]
    main([*arguments, "--image-id", "1", "--samples", "1"])
    assert (tmp_path / "pages" / "loss.html").exists()
    main([*arguments, str(data / "val/val0.npy")])
    assert "<html" in (tmp_path / "pages" / "index.html").read_text()


def test_the_app_takes_files_of_these_bands(trained):
    data, run = trained
    detector = redetr.load(run, device="cpu")
    content = (data / "val/val0.npy").read_bytes()
    api = Api(detector, Uploads(), Turns())
    detections = api._detect(Upload(io.BytesIO(content), "a.npy", None), 0.0)
    assert torch.equal(detections.boxes, detector.predict(data / "val/val0.npy", 0.0).boxes)
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    huge = npy_header("|u1", 10**5, 10**5, 5)
    for upload, says in (
        (png, "this image: .*it has 3 bands, but the model takes 5"),
        (io.BytesIO(b"nothing"), "not an image of 5 bands"),
        (huge, "more than 50 million pixels"),
        (io.BytesIO(content[:200]), "this image: cannot decode"),
    ):
        with pytest.raises(InputError, match=says):
            api._detect(Upload(upload, None, None), 0.0)


def npy_header(dtype: str, *shape: int) -> io.BytesIO:
    """A `.npy` file that claims such an array, and ends there."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


@pytest.mark.parametrize(
    ("dtype", "shape", "is_refused"),
    [
        ("|u1", (6000, 1000, 64), False),
        ("|u1", (7000, 1000, 64), True),
        ("<f8", (7000, 7000, 1), False),
        ("<f8", (7000, 7000, 2), True),
    ],
)
def test_bands_and_bits_of_an_upload_are_counted_before_they_are_decoded(
    dtype, shape, is_refused, monkeypatch
):
    """The pixels alone are few enough."""
    channels = shape[2]
    monkeypatch.setattr(uploads, "read_upright", lambda *_: torch.zeros(channels, 1, 1))
    message = "the image has more than 400 MB of pixels"
    refusal = pytest.raises(InputError, match=message) if is_refused else nullcontext()
    with refusal:
        uploads.read_image(npy_header(dtype, *shape), channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_the_memory_of_a_tiff_is_known_before_it_is_decoded(dtype):
    with io.BytesIO() as file:
        tifffile.imwrite(file, FIVE.astype(dtype), compression="zlib", planarconfig="contig")
        assert decoded_bytes(file, 5) == read_bands(file).nbytes


def test_a_model_of_rgb_refuses_other_data(trained, tmp_path):
    with pytest.raises(InputError, match="give --channels 5"):
        redetr.TrainConfig(model_options=("channels=5",)).model_kwargs()
    message = "its images have 3 channels, but the model takes 5; train a model with --channels 3"
    with pytest.raises(InputError, match=message):
        redetr.load(trained[1]).evaluate("digits")


def test_fine_tuning_adapts_what_was_learned_from_rgb(trained, tmp_path, tiny_coco):
    main([str(word) for word in train_arguments(tiny_coco, tmp_path / "rgb", steps=1)])
    weights = read_weights(tmp_path / "rgb")
    config = redetr.TrainConfig.from_dict(json.loads((tmp_path / "rgb/config.json").read_text()))
    model = redetr.build(
        config.model, len(weights.origin.class_names), **config.model_kwargs(), channels=5
    )
    start_from(weights, model, config, weights.origin.class_names)
    path, convolution = first_convolution(model)
    kernel = weights.tensors[f"{path}.weight"]
    assert torch.allclose(convolution.weight[:, :3], kernel * 0.6)


def test_a_large_tiff_of_16_bits_is_cut_trained_on_and_predicted(tmp_path, capsys):
    """600 x 400 px here; the time and memory of 6,000 x 4,000 px are a matter of size alone."""
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    pixels = RANDOM.integers(0, 900, (400, 600, 5), dtype=np.uint16)
    boxes = [[50, 60, 30, 30], [300, 200, 40, 20], [560, 370, 40, 30]]
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = 4000
    write_tiff(source / "train/scene.tif", pixels, compression="lzw")
    write_tiff(source / "train/east.tif", pixels[::-1], compression="lzw")
    flipped = [[x, 400 - y - height, width, height] for x, y, width, height in boxes]
    annotations = []
    for image_id, image_boxes in enumerate((boxes, flipped)):
        for box in image_boxes:
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": image_id, "category_id": 1, "bbox": box})
    document = {
        "images": [
            {"id": 0, "file_name": "scene.tif", "width": 600, "height": 400},
            {"id": 1, "file_name": "east.tif", "width": 600, "height": 400},
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "roof"}],
    }
    (source / "annotations").mkdir()
    (source / "annotations/instances_train.json").write_text(json.dumps(document))
    tiles = tmp_path / "tiles"
    main(["convert", str(source), str(tiles), "--tile", "160", "--overlap", "0.2",
          "--empty-tiles", "0.2", "--val-fraction", "0.5"])  # fmt: skip
    assert "1 image of more than 8 bits" in capsys.readouterr().out
    dataset = open_dataset(tiles, "train")
    assert dataset.image(0).shape == (5, 160, 160)
    main([str(word) for word in train_arguments(tiles, tmp_path / "run", steps=2, eval_every=2)])
    main(["predict", str(tmp_path / "run"), str(source / "train/scene.tif"), "--tile", "160",
          "--json", "--threshold", "0", "--output", str(tmp_path / "out")])  # fmt: skip
    assert (tmp_path / "out").is_dir()


def test_more_bands_than_are_read_are_reported(tmp_path):
    """Pillow reads the first three of a TIFF of four, so training goes on as before unless
    `--channels` says otherwise."""
    data = five_channel_data(tmp_path / "data", as_first_four)
    dataset = open_dataset(data, "train")
    assert dataset.image(0).shape == (3, 64, 64)
    assert any(
        "has 4 bands, of which 3 are read; --channels 4 takes all" in n for n in dataset.notes
    )
    with_all = dataset.with_channels(4)
    assert with_all.image(0).shape == (4, 64, 64)
    assert with_all.notes == ()
    arguments = train_arguments(data, tmp_path / "run", steps=1, eval_every=1, channels=4)
    arguments.remove("--no-pictures")
    main([str(word) for word in arguments])
    assert (tmp_path / "run" / "predictions.png").exists()


def as_first_four(path: Path, pixels: np.ndarray) -> str:
    colour = (pixels[:, :, :4] // 100).astype(np.uint8)
    options = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    return write_tiff(path.with_suffix(".tif"), colour, **options).name


def test_inks_are_no_further_bands(tmp_path):
    Image.new("CMYK", (4, 3), (10, 20, 30, 40)).save(tmp_path / "inks.tiff")
    assert count_bands(tmp_path / "inks.tiff") == (3, True)
