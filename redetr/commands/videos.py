"""What `redetr predict` checks and reports because some of its sources are videos, or none is."""

from collections.abc import Collection, Sequence

from redetr.commands.console import ERRORS
from redetr.errors import InputError

_FLAGS = {"masks": "--save masks", "panoptic": "--panoptic"}  # for the kinds of further images


def require_fitting_sources(
    sources: Sequence[str], *, track: bool, masks: bool, draws: bool
) -> None:
    """Raises InputError if --track has no video, if --save masks has no image, or if a package is
    missing that --track or a camera needs; `draws` says that annotated videos are written."""
    from redetr.detector.sources import is_video
    from redetr.detector.tracking import bytetrack_class

    if track:
        if not any(is_video(source) for source in sources):
            raise InputError("--track needs a video, and none of the sources is one")
        bytetrack_class()
    if masks and all(is_video(source) for source in sources):
        raise InputError(
            "--save masks writes a PNG for each image, but all sources are videos",
            remedy="leave out masks; predictions.jsonl has those of each frame",
        )
    _require_packages(sources, draws)


def _require_packages(sources: Sequence[str], draws: bool) -> None:
    """Raises InputError if a camera needs OpenCV, or PyAV for its annotated video, and the package
    is missing. Otherwise that would come out only after the first frame. A video that cannot be
    read is an error of its own, after which other sources are processed."""
    from redetr.detector.sources import is_camera
    from redetr.detector.video import opencv, pyav

    if not any(is_camera(source) for source in sources):
        return
    opencv()
    if draws:
        pyav()


def say_images_only(sources: Sequence[str], kinds: Collection[str]) -> None:
    """Notes on standard error which outputs are not written for the videos among the sources.
    `kinds` are those of the further images: "masks" and "panoptic"."""
    from redetr.detector.sources import is_video

    num_videos = sum(is_video(source) for source in sources) if kinds else 0
    if not num_videos:
        return
    flags = " and ".join(_FLAGS[kind] for kind in kinds)
    files = "PNG files"
    if "panoptic" in kinds:
        files += " and entries of predictions.panoptic.json"
    ERRORS.print(
        f"note: {flags}: {files} are written for images only; for the frames of videos, "
        "predictions.jsonl has the detections"
    )
