"""The output folder of `redetr predict`: who may write there, what is resumed, and what is not its
own."""

import csv
import json
import multiprocessing
import os
import struct
import time
import zlib
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_coco
from forked import run_ranks
from PIL import Image

from redetr.data.drawn import is_drawn
from redetr.data.formats import listing
from redetr.detector import detector as detectors
from redetr.detector import record_formats, records
from redetr.detector.sources import find_sources
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.files import UNFINISHED, remove_unfinished, write_whole
from redetr.lock import FolderLock
from redetr.pages.drawing import save_image
from tests.test_predict import clip, lines_in, predict, refused, save_tiny_model

ALONE = Dist(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model with random weights."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), {7: "cup", 12: "plate"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five images: val-0.jpg to val-4.jpg."""
    return write_tiny_coco(tmp_path_factory.mktemp("images") / "tiny") / "val"


def temporary_of(path: Path) -> Path:
    """A temporary file of `write_whole`, as a killed process leaves it."""
    names = []

    def stop(temporary: Path) -> None:
        names.append(temporary)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_whole(path, stop)
    (temporary,) = names
    temporary.write_text("half of it")
    return temporary


@pytest.mark.parametrize("name", ["last.pt", "a-b.coco.json", "no_suffix", "-.png"])
def test_only_unfinished_files_of_these_names_are_removed(tmp_path, name):
    temporary_of(tmp_path / name)
    folder = tmp_path / f"{UNFINISHED}{name}"
    folder.mkdir()
    others = {
        temporary_of(tmp_path / "other.pt"),
        temporary_of(tmp_path / f"more-{name}"),
        folder,
    }
    remove_unfinished(tmp_path, {name})
    assert set(tmp_path.iterdir()) == others


def test_what_other_commands_have_not_finished_stays(checkpoint, folder, tmp_path):
    """A folder that `convert` or an export left, and a file that an export may be writing."""
    left_by_convert = tmp_path / f"{UNFINISHED}k2x_9d0a"
    (left_by_convert / "images").mkdir(parents=True)
    exported = temporary_of(tmp_path / "model.onnx")
    named = tmp_path / f"{UNFINISHED}val-0-k2x_9d0a.png"
    named.mkdir()
    of_predict = [
        temporary_of(tmp_path / "val-1.png"),
        temporary_of(tmp_path / "predictions.json"),
        temporary_of(tmp_path / "index.html"),
    ]
    for again in ((), ("--overwrite",), ("--resume",)):
        predict(checkpoint, folder, "--output", tmp_path, *again)
        assert left_by_convert.exists() and exported.exists() and named.exists()
        assert not any(path.exists() for path in of_predict)
        of_predict.append(temporary_of(tmp_path / "predictions.jsonl"))
    assert len(lines_in(tmp_path)) == 5


def test_half_a_video_of_a_killed_process_is_removed(checkpoint, folder, tmp_path):
    film = clip(tmp_path / "clip.mp4")
    out = tmp_path / "out"
    predict(checkpoint, film, "--output", out)
    record = out / "predictions.jsonl"
    without_end = record.read_text().splitlines()[:-1]
    half = out / f"{UNFINISHED}clip.mp4"
    for source, flag in ((film, "--resume"), (folder, "--overwrite")):
        record.write_text("\n".join(without_end) + "\n")
        half.write_text("half of it")
        predict(checkpoint, source, "--output", out, flag)
        assert not half.exists()


@pytest.mark.parametrize("output", ["predictions", "."])
@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_what_an_interrupted_run_drew_and_did_not_record_is_no_source(
    checkpoint, photos, capsys, flag, output
):
    """Up to a batch is drawn before its lines are written."""
    flags = (checkpoint, ".", "--output", output, "--save", "png")
    predict(*flags)
    record = Path(output, "predictions.jsonl")
    lines = record.read_text().splitlines(keepends=True)
    names = set(os.listdir(output))
    for num_recorded in (1, 0):
        record.write_text("".join(lines[:num_recorded]))
        capsys.readouterr()
        predict(*flags, flag)
        pictures = {line["image"]: line["picture"] for line in lines_in(Path(output))}
        assert pictures == {"photos/0.jpg": "0.png", "photos/1.jpg": "1.png"}
        assert set(os.listdir(output)) == names
        assert "is an image that redetr wrote, and is skipped" in capsys.readouterr().err


def test_a_drawn_image_in_no_output_folder_is_a_source(tmp_path, monkeypatch):
    """Outside of output folders, no file is opened to look for the mark."""
    mine = tmp_path / "mine.png"
    save_image(Image.new("RGB", (9, 9)), mine)
    with monkeypatch.context() as patched:
        patched.setattr(listing, "is_drawn", None)
        assert find_sources([str(tmp_path)]) == [str(mine)]
        assert find_sources([f"{tmp_path}/*.png"]) == [str(mine)]
    (tmp_path / "predictions.part-3.jsonl").touch()
    with pytest.raises(InputError, match=r"mine\.png is an image that redetr wrote"):
        find_sources([str(tmp_path)])
    assert find_sources([str(mine)]) == [str(mine)]


def hold(folder: Path) -> None:
    """Holds the lock of a `predict` in the folder."""
    with FolderLock(folder, ALONE, records.LOCK, records.LOCKED_FOR):
        (folder / "held").touch()
        time.sleep(100)


@pytest.fixture
def predicting(tmp_path):
    """Another process that predicts into `tmp_path`."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", None])
def test_another_predict_is_writing_there(checkpoint, folder, predicting, tmp_path, capsys, flag):
    """Not a byte of its files changes."""
    unfinished = tmp_path / f"{UNFINISHED}clip.mp4"
    unfinished.write_text("half of it")
    if flag:
        line = {"image": "a.jpg", "picture": "a.png", "image_size": [9, 9], "detections": []}
        (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = refused(capsys, checkpoint, folder, "--output", tmp_path, *filter(None, [flag]))
    assert said.startswith(f"redetr: {tmp_path}: process {predicting.pid} on ")
    assert " has been writing predictions there since " in said
    assert said.endswith(": wait for it, stop it, or give another --output")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_lock_of_a_killed_predict_is_free(checkpoint, folder, predicting, tmp_path):
    predicting.kill()
    predicting.join()
    assert (tmp_path / records.LOCK).exists()
    predict(checkpoint, folder, "--output", tmp_path)
    assert len(lines_in(tmp_path)) == 5
    assert not (tmp_path / records.LOCK).exists()


@pytest.mark.long
def test_all_ranks_are_refused_with_the_same_line(checkpoint, folder, predicting, tmp_path):
    arguments = ["predict", checkpoint, folder, "--device=cpu", "--precision=fp32"]
    ranks = run_ranks(2, [*arguments, "--output", tmp_path])
    assert [code for code, _, _ in ranks] == [1, 1]
    said = "".join(errors for _, _, errors in ranks)
    assert f"process {predicting.pid} on " in said
    assert "Traceback" not in said


def test_another_predict_that_ends_meanwhile_is_not_mixed_with(
    checkpoint, folder, tmp_path, capsys, monkeypatch
):
    """Both looked into the empty folder; the second one had to wait for its model."""
    load = detectors.load

    def load_slowly(*arguments, **options):
        with monkeypatch.context() as patched:
            patched.setattr(detectors, "load", load)
            predict(checkpoint, folder / "val-3.jpg", "--output", tmp_path)
        return load(*arguments, **options)

    monkeypatch.setattr(detectors, "load", load_slowly)
    said = refused(capsys, checkpoint, folder, "--output", tmp_path)
    assert said.startswith(f"redetr: {tmp_path}: already holds predictions: ")
    (line,) = lines_in(tmp_path)
    assert line["image"] == str(folder / "val-3.jpg")


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (2, 2)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", b""), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    return content


BOMB = png(size=(60_000, 60_000))
LONG_TEXT = png((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20))))
ODD_TEXT = png((b"zTXt", b"Comment\0\7" + b"x"))  # an unknown kind of compression


@pytest.mark.parametrize("content", [BOMB, LONG_TEXT, ODD_TEXT, b"text", b""], ids=len)
def test_what_no_image_program_opens_was_not_drawn(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert not is_drawn(tmp_path / "a.png")


def test_what_is_no_file_was_not_drawn(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to("nothing")
    for path in tmp_path.iterdir():
        assert not is_drawn(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_was_drawn(tmp_path, name):
    save_image(Image.new("RGB", (9, 9)), tmp_path / name)
    assert is_drawn(tmp_path / name)
    Image.new("RGB", (9, 9)).save(tmp_path / name)
    assert not is_drawn(tmp_path / name)


def test_resuming_beside_files_that_attack(checkpoint, folder, tmp_path):
    predict(checkpoint, folder / "val-0.jpg", "--output", tmp_path, "--save", "png")
    (tmp_path / "val-1.png").write_bytes(BOMB)
    (tmp_path / "val-2.png").write_bytes(LONG_TEXT)
    os.mkfifo(tmp_path / "val-3.png")
    predict(checkpoint, folder, "--output", tmp_path, "--save", "png", "--resume")
    pictures = [line["picture"] for line in lines_in(tmp_path)]
    assert pictures == ["val-0.png", "val-1-2.png", "val-2-2.png", "val-3-2.png", "val-4.png"]
    assert (tmp_path / "val-1.png").read_bytes() == BOMB


def test_a_page_that_is_a_pipe_is_not_waited_for(checkpoint, folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "index.html")
    said = refused(capsys, checkpoint, folder, "--output", tmp_path)
    assert said.startswith(f"redetr: {tmp_path}/index.html: is a page that predict did not write")


def test_resuming_completes_what_an_earlier_run_wrote(checkpoint, folder, tmp_path):
    """Whatever --save says now, no file lists only the images of the first run."""
    first = folder / "val-0.jpg"
    written = ("png", "json", "html", "csv", "coco")
    predict(checkpoint, first, "--output", tmp_path, "--save", *written)
    predict(checkpoint, folder, "--output", tmp_path, "--save", "png", "--resume")
    names = {str(folder / f"val-{number}.jpg") for number in range(5)}
    with open(tmp_path / "predictions.csv", newline="") as text:
        assert {row["image"] for row in csv.DictReader(text)} == names
    assert json.loads((tmp_path / "predictions.json").read_text()).keys() == names
    entries = json.loads((tmp_path / "predictions.coco.json").read_text())
    assert {entry["file_name"] for entry in entries} == names
    page = (tmp_path / "index.html").read_text()
    assert all(f'"{name}"' in page for name in names)
    assert not (tmp_path / "predictions.panoptic.json").exists()


def test_a_foreign_page_is_not_completed(checkpoint, folder, tmp_path):
    predict(checkpoint, folder / "val-0.jpg", "--output", tmp_path, "--save", "csv")
    (tmp_path / "index.html").write_text("<title>mine</title>")
    predict(checkpoint, folder, "--output", tmp_path, "--save", "csv", "--resume")
    assert (tmp_path / "index.html").read_text() == "<title>mine</title>"


FOREIGN_FILES = {
    "json": ("predictions.json", '{\n  "a.jpg": {\n    "picture": "mine"\n  }\n}\n'),
    "coco": ("predictions.coco.json", '[{"image_id": 1, "category_id": 1}]'),
    "csv": ("predictions.csv", "image,label,score\na.jpg,cup,0.5\n"),
    "html": ("index.html", "<title>mine</title>"),
}


@pytest.mark.parametrize("format", FOREIGN_FILES)
@pytest.mark.parametrize("flag", ["--resume", "--overwrite", None])
def test_a_foreign_file_is_neither_replaced_nor_deleted(
    checkpoint, folder, tmp_path, capsys, format, flag
):
    """It is refused if this run would write it; otherwise, it is left alone."""
    name, content = FOREIGN_FILES[format]
    file = tmp_path / name
    source = folder / "val-0.jpg"
    if flag:
        predict(checkpoint, source, "--output", tmp_path, "--save", "png")
    file.write_text(content)
    flags = ("--output", tmp_path, *filter(None, [flag]), "--save", "png")
    said = refused(capsys, checkpoint, source, *flags, format)
    kind = "page" if format == "html" else "file"
    assert said == (
        f"redetr: {file}: is a {kind} that predict did not write; give another --output, or move "
        f"that {kind} elsewhere"
    )
    predict(checkpoint, folder, *flags)
    assert file.read_text() == content
    assert (len(lines_in(tmp_path))) == 5


def test_a_foreign_file_is_not_replaced_by_json(checkpoint, folder, tmp_path, capsys):
    """Which --json writes to print it."""
    (tmp_path / "predictions.json").write_text("[]")
    source = folder / "val-0.jpg"
    flags = ("--output", tmp_path, "--save", "png")
    said = refused(capsys, checkpoint, source, *flags, "--json")
    assert said.startswith(f"redetr: {tmp_path}/predictions.json: is a file that predict did not")


@pytest.mark.parametrize("line", [None, "image", "frame", "odd name"])
def test_what_predict_wrote_is_recognised(tmp_path, line):
    entry = {"image_size": [9, 9], "detections": [KNOWN | {"isthing": True, "area": 5}]}
    lines = {
        "image": {"image": "a.jpg", "folder": "..", "panoptic_picture": "a.png", **entry},
        "frame": {"image": "a.mp4", "frame": 0, "time_s": 0.0, **entry},
        "odd name": {"image": '=a"\\\n\udcff.jpg', "panoptic_picture": "a.png", **entry},
    }
    record = tmp_path / "predictions.jsonl"
    record.write_text("" if line is None else json.dumps(lines[line]) + "\n")
    formats = ["json", "coco", "csv", "html", "panoptic"]
    record_formats.write_formats(tmp_path, formats)
    assert record_formats.written_formats(tmp_path) == formats
    record_formats.require_no_foreign_files(tmp_path, formats)


@pytest.fixture
def photos(folder, tmp_path, monkeypatch) -> Path:
    """Two images in the folder `a/photos`; `a` is the current folder."""
    copies = tmp_path / "a" / "photos"
    copies.mkdir(parents=True)
    for number in range(2):
        (copies / f"{number}.jpg").write_bytes((folder / f"val-{number}.jpg").read_bytes())
    monkeypatch.chdir(tmp_path / "a")
    return copies


def test_another_spelling_of_a_path_is_the_same_image(
    checkpoint, photos, tmp_path, capsys, monkeypatch
):
    predict(checkpoint, "photos/1.jpg", "--output", "out")
    (done,) = lines_in(Path("out"))
    assert (done["image"], done["folder"]) == ("photos/1.jpg", "..")
    (tmp_path / "b").mkdir()
    spellings = [("photos", "a"), (photos, "a"), ("./photos/../photos", "a"), ("../a/photos", "b")]
    for source, start in spellings:
        monkeypatch.chdir(tmp_path / start)
        predict(checkpoint, source, "--output", tmp_path / "a/out", "--resume")
        lines = lines_in(tmp_path / "a/out")
        assert lines[0] == done
        assert [line["picture"] for line in lines] == ["1.png", "0.png"]
    assert f"{len(lines)} of them in an earlier run" in capsys.readouterr().out


def test_other_images_of_the_same_names_are_not_taken_for_those(
    checkpoint, photos, tmp_path, capsys, monkeypatch
):
    """In another folder, a relative path is another file."""
    out = tmp_path / "out"
    predict(checkpoint, "photos", "--output", out)
    before = (out / "predictions.jsonl").read_bytes()
    other = tmp_path / "b" / "photos"
    other.mkdir(parents=True)
    (other / "1.jpg").write_bytes((photos / "0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path / "b")
    said = refused(capsys, checkpoint, "photos", "--output", out, "--resume")
    assert said == (
        f"redetr: {out}: photos/1.jpg is {photos}/1.jpg there, which is another file than the "
        "source of this name; run the command in the same folder as before, or give absolute paths"
    )
    assert (out / "predictions.jsonl").read_bytes() == before
    predict(checkpoint, other, "--output", out, "--resume")
    names = [line["image"] for line in lines_in(out)]
    assert names == ["photos/0.jpg", "photos/1.jpg", f"{other}/1.jpg"]


@pytest.mark.parametrize("moved", ["a", "out", "both"])
def test_images_that_were_moved_are_still_finished(
    checkpoint, photos, tmp_path, monkeypatch, capsys, moved
):
    predict(checkpoint, "photos", "--output", tmp_path / "out")
    before = (tmp_path / "out/predictions.jsonl").read_text()
    here, out = tmp_path / "a", tmp_path / "out"
    (tmp_path / "deep").mkdir()
    if moved != "out":
        here = here.rename(tmp_path / "deep" / "a")
    if moved != "a":
        out = out.rename(tmp_path / "deep" / "out")
    monkeypatch.chdir(here)
    predict(checkpoint, "photos", "--output", out, "--resume")
    assert "2 of them in an earlier run" in capsys.readouterr().out
    assert (out / "predictions.jsonl").read_text() == before


def test_the_record_of_an_earlier_version_starts_here(checkpoint, photos, capsys):
    predict(checkpoint, "photos", "--output", "out")
    lines = lines_in(Path("out"))
    for line in lines:
        del line["folder"]
    rows = [json.dumps(line) + "\n" for line in lines]
    Path("out/predictions.jsonl").write_text("".join(rows))
    predict(checkpoint, photos, "--output", "out", "--resume")
    assert lines_in(Path("out")) == lines
    assert "2 of them in an earlier run" in capsys.readouterr().out


def test_urls_and_cameras_start_nowhere(tmp_path):
    from redetr.detector.resuming import start_of

    for source in ("0", "http://a.b/c.jpg", "rtsp://a.b/c", "/a/b.jpg"):
        assert start_of(source, tmp_path) == {}


WHOLE = {"image": "a.jpg", "image_size": [9, 9], "detections": []}
KNOWN = {"label": "cup", "category_id": 7, "score": 0.5, "box": [0, 0, 1, 1]}
FOREIGN = {
    "not UTF-8": b'{"image": "caf\xe9.jpg", "detections": []}\n',
    "UTF-16": (json.dumps(WHOLE) + "\n").encode("utf-16"),
    "a list as name": json.dumps(WHOLE | {"image": ["a.jpg"]}).encode() + b"\n",
    "a list as frame": json.dumps(WHOLE | {"frame": [1]}).encode() + b"\n",
    "a number as picture": json.dumps(WHOLE | {"picture": 7}).encode() + b"\n",
    "without a size": b'{"image": "a.jpg", "detections": []}\n',
    "nested": b"[" * 100_000 + b"\n",
    "no objects": b"[1, 2]\n[3]\n",
    "another kind": b'{"image": "a.jpg", "label": "cup"}\n',
    "other boxes": json.dumps(WHOLE | {"detections": [{"bbox": [0, 0, 1, 1]}]}).encode() + b"\n",
    "a box of text": json.dumps(WHOLE | {"detections": [KNOWN | {"box": "0011"}]}).encode(),
    "a list as class": json.dumps(WHOLE | {"detections": [KNOWN | {"label": []}]}).encode(),
    "text": b"my notes\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_record_that_predict_did_not_write(checkpoint, folder, tmp_path, capsys, content):
    """Is not resumed, because its lines would be lost; --overwrite deletes it."""
    record = tmp_path / "predictions.jsonl"
    record.write_bytes(content)
    command = (checkpoint, folder / "val-0.jpg", "--output", tmp_path, "--save", "csv")
    said = refused(capsys, *command, "--resume")
    assert said == (
        f"redetr: {record}: is not a record of redetr predict; give another --output, or "
        "--overwrite to delete it"
    )
    assert record.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    predict(*command, "--overwrite")
    assert len(lines_in(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b'{"ima', b'{"image": "\xff', bytes(4096)], ids=len)
def test_a_record_of_which_only_a_start_was_written(checkpoint, folder, tmp_path, content):
    """As when its process was killed, or the machine failed."""
    (tmp_path / "predictions.jsonl").write_bytes(content)
    predict(checkpoint, folder / "val-0.jpg", "--output", tmp_path, "--resume")
    assert len(lines_in(tmp_path)) == 1


@pytest.mark.parametrize(
    "damaged", [b"\xff\xfe{\n", b"[" * 100_000 + b"\n", bytes(100) + b"\n"], ids=len
)
def test_a_damaged_line_is_predicted_again(checkpoint, folder, tmp_path, damaged):
    predict(checkpoint, folder, "--output", tmp_path)
    record = tmp_path / "predictions.jsonl"
    whole = lines_in(tmp_path)
    rows = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join([*rows[:2], damaged, *rows[3:]]))
    predict(checkpoint, folder, "--output", tmp_path, "--resume")
    assert lines_in(tmp_path) == [*whole[:2], *whole[3:], whole[2]]


def test_a_record_that_is_a_pipe(checkpoint, folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "predictions.jsonl")
    said = refused(capsys, checkpoint, folder, "--output", tmp_path, "--resume")
    assert said.startswith(f"redetr: {tmp_path}/predictions.jsonl: ")


def test_a_predict_that_was_taken_over_ends(checkpoint, folder, tmp_path, capsys, monkeypatch):
    """Another one has the folder now, and its files."""
    start = detectors.Detector.predict

    def taken_over_meanwhile(*arguments, **options):
        holder = json.loads((tmp_path / records.LOCK).read_text()) | {"host": "other"}
        (tmp_path / records.LOCK).write_text(json.dumps(holder))
        return start(*arguments, **options)

    monkeypatch.setattr(detectors.Detector, "predict", taken_over_meanwhile)
    said = refused(capsys, checkpoint, folder, "--output", tmp_path)
    assert "another run has taken over (process " in said
    assert not (tmp_path / "predictions.json").exists()


def test_a_name_that_is_taken_by_another_folder_is_one_line(folder, tmp_path):
    """Outside of the command, too: see `require_same_files`."""
    from redetr.detector.resuming import require_same_files

    line = WHOLE | {"image": "val-0.jpg", "folder": os.path.relpath(folder, tmp_path)}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"val-0\.jpg there, which is another file"):
        require_same_files(tmp_path, ["val-0.jpg"])
    require_same_files(tmp_path, [str(folder / "val-0.jpg")])
