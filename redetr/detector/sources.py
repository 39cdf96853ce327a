"""Reads images, folders, patterns, URLs, videos, streams and cameras as frames, a few frames ahead.

The names of all images are held in memory, but only a few decoded ones.
"""

import glob
import http.client
import io
import os
import threading
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, repeat
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from redetr.data.archives import SUFFIX as ARCHIVE
from redetr.data.archives import archives_in, open_archive, split_path
from redetr.data.bands import in_channels
from redetr.data.faults import Fault, listed
from redetr.data.formats.listing import (
    MOST_OTHERS,
    Contents,
    contents_of,
    output_images,
    passed_over,
)
from redetr.data.images import (
    IMAGE_SUFFIXES,
    SUFFIXES_OF_MANY,
    cached_copies,
    is_image_name,
    read_counted,
    read_upright,
)
from redetr.data.pixels import one_colour
from redetr.detector.streams import (
    Reconnection,
    is_address,
    is_rtsp,
    is_stream,
    require_address,
    stream_frames,
)
from redetr.detector.video import VIDEO_SUFFIXES, VideoFrame, camera_frames, video_frames
from redetr.download import Deadline, reason_of, web_opener
from redetr.errors import InputError
from redetr.files import require_no_url, user_path
from redetr.models.channels import RGB
from redetr.wording import counted

T = TypeVar("T")

TIMEOUT_S = 20.0  # for a connection, and for each piece that is read from it
LARGEST_BYTES = 64 * 2**20  # of an image from the net
_LONGEST_S = 120.0  # for all of it: a server may send a byte at a time
_PIECE = 1 << 16
_OTHER_URL = "download it and give the file, or give an http or https URL"
_THREADS = min(4, os.cpu_count() or 1)  # decoders and encoders let others run


@dataclass(frozen=True)
class Frame:
    """An image to process, the end of a video, or an error that says why a source cannot be
    read."""

    source: str  # as the user, or the folder, names it
    image: Tensor | None = None  # uint8 [channels, H, W]
    # of a video's frame, from 0; at its end, and where a live stream fails, how many there were
    number: int | None = None
    rate: float = 0.0  # frames per second of its video
    time_s: float = 0.0  # when players show it
    error: str = ""
    is_live: bool = False  # of a camera or stream without an end
    plain: str = ""  # the colour that nearly all pixels of an image have; empty if they differ
    pages: int = 1  # or frames in the file of an image, of which only the first is read

    @property
    def is_end(self) -> bool:
        """Whether the video is over: resuming must not process it again."""
        return self.image is None and self.number is not None

    @property
    def position(self) -> dict[str, int | float]:
        """The number and time of a frame in its video, and whether that is live; empty for an
        image."""
        if self.number is None:
            return {}
        position: dict[str, int | float] = {
            "frame": self.number,
            "time_s": round(self.time_s, 3),
        }
        if self.is_live:
            position["live"] = True
        return position


def find_sources(sources: Sequence[str], faults: list[Fault] | None = None) -> list[str]:
    """The images, URLs, videos and cameras that `sources` refer to, each once.

    Folders are searched for images and videos at all depths, without following links to folders.
    Tar archives are searched for images, also the archives in a folder without other images.
    Patterns such as `photos/**/*.jpg` are expanded. A whole number is a camera. Annotated images
    that earlier predictions wrote are not sources, unless they are named one by one. Files that are
    skipped are reported in `faults`. Raises InputError for a source that does not exist.
    """
    by_path: dict[str, str] = {}
    reports: list[Fault] = []
    for source in sources:
        for name in _names_of(source, reports):
            by_path.setdefault(path_of(name), name)
    if faults is not None:
        faults += reports
    return list(by_path.values())


def path_of(name: str) -> str:
    """The absolute path of a file, however it is written; URLs and cameras as they are."""
    if is_address(name) or is_rtsp(name) or is_camera(name):
        return name
    return os.path.abspath(name)


def further_pages(pages: Mapping[str, int]) -> list[Fault]:
    """A note on images whose files hold several pages or frames, of which only the first is read,
    given their numbers by the names of the images."""
    several = sorted(pages)
    if not several:
        return []
    text = f"holds {pages[several[0]]} images, of which only the first is used"
    remedy = "save the others as files"
    count = len(several)
    items = listed(several)
    return [Fault("note", "image-frames", Path(several[0]), "", text, remedy, count, items)]


def _names_of(source: str, faults: list[Fault]) -> list[str]:
    path = user_path(source)
    if is_address(source) or is_rtsp(source):
        require_address(source)
        return [source]
    if is_camera(source) and not path.exists():
        return [source]
    if path.is_dir():
        return _names_in_folder(source, path, faults)
    if path.suffix == ARCHIVE and path.is_file():
        return _archived([path], faults)
    if os.path.lexists(path) or split_path(path) is not None:
        return [_name_of_file(str(path))]
    require_no_url(source, _OTHER_URL)
    return _names_by_pattern(source, path, faults)


def _names_in_folder(source: str, path: Path, faults: list[Fault]) -> list[str]:
    """The images and videos in a folder. Files that are skipped are reported in `faults`."""
    contents = contents_of(path, IMAGE_SUFFIXES + VIDEO_SUFFIXES, is_wide=False)
    if not contents.is_whole:
        images = counted(len(contents.files), "image or video", "images and videos")
        raise InputError(
            f"more than {MOST_OTHERS:,} files in it are not images, and {images} so far",
            where=source,
            remedy="give the folders of the images, or a pattern such as 'photos/**/*.jpg'",
        )
    archives = [] if contents.files else archives_in(path)
    reports = [*passed_over(contents), *_archives_passed_over(contents, archives)]
    if not contents.files and not archives:
        why = f"looked for {', '.join(IMAGE_SUFFIXES)}"
        if reports:
            why += f"; {reports[0].where} {reports[0].text}"
        raise InputError(f"{source}: no images in this folder ({why})")
    faults += reports
    return [str(path / name) for name in contents.files] or _archived(archives, faults)


def _archives_passed_over(contents: Contents, read: list[Path]) -> list[Fault]:
    """A warning if archives in a folder are not `read`: beside images, or deeper, an archive may be
    a copy of anything."""
    names_read = {archive.name for archive in read}
    skipped = [name for name in contents.archives if name not in names_read]
    if not skipped:
        return []
    return [
        Fault(
            "warning",
            "archive-passed-over",
            contents.root,
            skipped[0],
            "is a tar archive, and is skipped",
            "name it to read its images",
            len(skipped),
            listed(skipped),
        )
    ]


def _names_by_pattern(source: str, path: Path, faults: list[Fault]) -> list[str]:
    """The files that a pattern matches. Those that are skipped are reported in `faults`."""
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        if glob.has_magic(str(path)):
            remedy = "check it; ** stands for folders at all depths"
            raise InputError("no file matches this pattern", where=source, remedy=remedy)
        raise InputError("no such file or folder", where=source, remedy="check the path")
    # Links may form cycles: of several paths to a file, only the first is kept.
    by_real_path = {os.path.realpath(match): match for match in reversed(matches)}
    files = sorted(match for match in by_real_path.values() if not os.path.isdir(match))
    if not files:
        raise InputError(f"{source}: the pattern matches only folders; add /* to the pattern")
    outputs, caches = _copies_among(files)
    if len(outputs) == len(files):
        raise InputError(f"{source}: the pattern matches only images that redetr wrote")
    if len(outputs) + len(caches) == len(files):
        raise InputError(f"{source}: the pattern matches only caches of Ultralytics ({caches[0]})")
    faults += passed_over(Contents(path, outputs=outputs, caches=caches))
    names = []
    for file in sorted(set(files) - set(outputs) - set(caches)):
        if file.endswith(ARCHIVE):
            names += _archived([Path(file)], faults)
        else:
            names.append(_name_of_file(file))
    return names


def _name_of_file(path: str) -> str:
    """A path that is not taken for the number of a camera."""
    return os.path.join(".", path) if is_camera(path) else path


def _archived(archives: list[Path], faults: list[Fault]) -> list[str]:
    """The images in tar archives. Files that are skipped are reported in `faults`. Raises
    InputError for an archive that is damaged or without images."""
    sources = []
    for archive in archives:
        names = [name for name in open_archive(archive).names() if is_image_name(name)]
        caches = cached_copies(names)
        if len(caches) == len(names):
            raise InputError("no images in this archive", where=archive)
        faults += passed_over(Contents(archive, caches=sorted(caches)))
        sources += [f"{archive}/{name}" for name in names if name not in caches]
    return sources


def _copies_among(files: list[str]) -> tuple[list[str], list[str]]:
    """Which of the files are images that earlier predictions wrote, and which are caches of
    others among them: `*.npy` alone asks for arrays."""
    by_folder = defaultdict(list)
    for file in files:
        by_folder[os.path.dirname(file)].append(file)
    outputs = []
    caches = []
    for folder, inside in by_folder.items():
        written = output_images(folder, os.listdir(folder or "."))
        outputs += [file for file in inside if os.path.basename(file) in written]
        caches += sorted(cached_copies(inside))
    return outputs, caches


def is_camera(source: str) -> bool:
    return source.isdecimal()


def is_video(source: str) -> bool:
    """Whether the source is a video file, a stream or a camera."""
    if is_camera(source) or is_stream(source):
        return True
    return not is_address(source) and source.lower().endswith(VIDEO_SUFFIXES)


def frames(
    sources: Iterable[str],
    ahead: int,
    channels: int = 3,
    reconnection: Reconnection = Reconnection(),
) -> Iterator[Frame]:
    """The frames of all sources in order. Other threads read up to `ahead` frames in advance.

    Images and frames have `channels` channels; frames of videos can have 3 or, as their brightness,
    1. A source that cannot be read yields a frame with an `error`, which also ends a video. Streams
    that drop are opened again as `reconnection` says.
    """
    for are_videos, group in groupby(sources, is_video):
        if not are_videos:
            images = (partial(_image_frame, source, channels) for source in group)
            yield from read_ahead(images, ahead)
            continue
        for source in group:
            is_over = threading.Event()
            reader = _moving_frames(source, channels, reconnection, is_over)
            jobs = repeat(partial(next, reader, None))
            results = read_ahead(jobs, ahead, threads=1, before_end=is_over.set)
            with closing(results):
                for frame in results:
                    if frame is None:  # the reader is exhausted
                        break
                    yield frame


def read_ahead(
    jobs: Iterable[Callable[[], T]],
    ahead: int,
    threads: int = _THREADS,
    before_end: Callable[[], object] | None = None,
) -> Generator[T]:
    """The results of the jobs, in order. Up to `ahead` jobs run in threads, or have a result that
    the caller has not yet taken.

    When the generator ends or is closed early, it waits for the jobs that are running. It calls
    `before_end` first, which may make them finish sooner.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if before_end is not None:
            before_end()
        pool.shutdown(cancel_futures=True)


def _image_frame(source: str, channels: int) -> Frame:
    pages = 1
    try:
        if source.lower().endswith(SUFFIXES_OF_MANY) and not is_address(source):
            image, pages = read_counted(_file_of(source), source, channels)
        else:
            image = read_source(source, channels)
        pixels = image.permute(1, 2, 0).numpy()  # [H, W, channels]
        return Frame(source, image, plain=one_colour(pixels), pages=pages)
    except InputError as error:
        return Frame(source, error=str(error))


def _decoded_frames(
    source: str, reconnection: Reconnection, is_over: threading.Event
) -> Iterator[VideoFrame]:
    if is_camera(source):
        return camera_frames(int(source))
    if is_stream(source):
        return stream_frames(source, reconnection, is_over)
    return video_frames(Path(source))


def _moving_frames(
    source: str, channels: int, reconnection: Reconnection, is_over: threading.Event
) -> Iterator[Frame]:
    """The frames of a video, stream or camera, and last one that ends it or has an `error`."""
    count = 0
    is_live = False
    end_s = 0.0
    length = None
    failure = None
    try:
        _require_colours(source, channels)
        for frame in _decoded_frames(source, reconnection, is_over):
            image = _with_channels(frame.image, channels)
            is_live = frame.is_live
            yield Frame(source, image, count, frame.rate, frame.time_s, is_live=is_live)
            count += 1
            end_s = max(end_s, frame.end_s)
            length = frame.length
        if not count:
            remedy = "give a complete file"
            raise InputError("no frame of this video can be decoded", where=source, remedy=remedy)
    except InputError as error:
        failure = error
    shortfall = length.shortfall(count, end_s) if length else ""
    if shortfall:
        text = f"{shortfall}: {failure.text}" if failure else shortfall
        failure = InputError(text, where=source, remedy="give a complete file")
    if failure is None:
        yield Frame(source, number=count)
        return
    # What a live stream has shown does not come again.
    yield Frame(source, number=count if is_live else None, error=str(failure))


def _require_colours(source: str, channels: int) -> None:
    """Raises InputError if a video does not fit a model with this many channels."""
    if channels not in (1, RGB):
        raise InputError(
            f"a video has {RGB} channels, but the model takes {channels}",
            where=source,
            remedy=f"give images of {channels} channels",
        )


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """A frame uint8 `[3, H, W]`, or its brightness `[1, H, W]` for a model with one channel."""
    if channels == RGB:
        return image
    pixels = image.permute(1, 2, 0).numpy()  # [H, W, 3]
    return torch.from_numpy(in_channels(pixels, channels)).permute(2, 0, 1)


def read_source(source: str, channels: int = 3) -> Tensor:
    """The image at a path or address, upright, uint8 `[channels, H, W]`. Raises InputError."""
    if is_address(source):
        return read_upright(io.BytesIO(download(source)), source, channels)
    return read_upright(_file_of(source), source, channels)


def _file_of(source: str) -> Path:
    """The file of an image, which may be in an archive. Raises InputError for what is neither a
    file nor missing."""
    path = user_path(source)
    if not os.path.lexists(path) and split_path(path) is None:
        _require_single_path(source)
    # Unlike `Path.exists`, this raises nothing for a name that is too long.
    if os.path.exists(path) and not path.is_file():  # a pipe would be waited for, for ever
        raise InputError(f"{source}: not a file with an image in it")
    return path


def _require_single_path(source: str) -> None:
    """Raises InputError for a stream, another URL or a pattern, none of which is a single image."""
    if is_rtsp(source):
        remedy = "redetr predict reads streams"
        raise InputError("is a stream, not an image", where=source, remedy=remedy)
    require_no_url(source, _OTHER_URL)
    if glob.has_magic(source):
        remedy = "give the images that it matches; redetr predict reads patterns"
        raise InputError("is a pattern, not an image", where=source, remedy=remedy)


def download(address: str) -> bytes:
    """The bytes of the image at a URL (http or https).

    Raises InputError if it is not an image, cannot be read, is larger than `LARGEST_BYTES`, or
    takes longer than two minutes.
    """
    deadline = Deadline()
    opener = web_opener(deadline)
    request = urllib.request.Request(address, headers={"Accept": "image/*"})
    try:
        with deadline.within(_LONGEST_S), opener.open(request, timeout=TIMEOUT_S) as answer:
            kind = answer.headers.get_content_type()
            if not kind.startswith("image/") and kind != "application/octet-stream":
                raise InputError(f"{address}: its type is {kind}, not an image")
            content = bytearray()
            while piece := answer.read1(_PIECE):
                content += piece
                if len(content) > LARGEST_BYTES:
                    raise InputError(
                        f"{address}: larger than {LARGEST_BYTES >> 20} MB; download it and give "
                        "the file"
                    )
            return bytes(content)
    # ValueError: the address has a space or an impossible port.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        text = f"cannot be read ({reason_of(error, address)})"
        remedy = "check the address and the connection"
        raise InputError(text, where=address, remedy=remedy) from None
