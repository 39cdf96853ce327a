"""How `redetr predict` begins in its output folder, which it has locked."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from redetr.data.drawn import is_drawn
from redetr.detector.output_names import all_names, output_names
from redetr.detector.records import begin, written_images
from redetr.detector.resuming import earlier_results
from redetr.distributed import Dist
from redetr.files import remove_unfinished


def begin_run(
    folder: Path,
    sources: Sequence[str],
    image_suffix: str,
    kinds: Collection[str],
    dist: Dist,
    *,
    resume: bool,
    overwrite: bool,
) -> tuple[dict[str, Path], set[str]]:
    """Prepares the folder; returns the file of the annotated image or video of each source, and the
    sources that an earlier run has finished. Communicates.

    `kinds` are those of further images, see `output_names`. When this returns, every rank has read
    the folder, so that each may write to it.
    """
    dist.main_only(begin)(folder, resume)
    dist.barrier()
    earlier = earlier_results(folder, sources)
    taken = _taken_names(folder, continues=resume or overwrite)
    file_names = output_names(folder, sources, taken, image_suffix, kinds, earlier)
    dist.main_only(remove_unfinished)(folder, all_names(file_names, kinds))
    dist.barrier()
    return file_names, earlier.keys() & set(sources)


def _taken_names(folder: Path, continues: bool) -> set[str]:
    """The names of files in the folder that this run must not replace. If it `continues` or
    replaces an earlier run, these are all but the images that the earlier one drew and did not
    record, as it was interrupted."""
    present = set(os.listdir(folder))
    if not continues:
        return present
    recorded = written_images(folder)
    drawn = {name for name in present - recorded if is_drawn(folder / name)}
    return (present - drawn) | recorded
