"""Identities of the objects in videos, by ByteTrack as the package `trackers` has it.

That package is kept by the authors of supervision, which has given its own ByteTrack up for it
(Apache-2.0). It depends on OpenCV: 190 MB on disk, so it is an extra.
"""

import math
from typing import Any

import numpy as np
import torch

from redetr.boxes import box_area, box_iou
from redetr.detector.detections import Detections
from redetr.detector.sources import Frame
from redetr.errors import InputError

# A detection below the threshold continues an identity, down to this share of the threshold.
_LOWEST_SHARE = 0.5

_FIRST_FRAMES = 3  # in a row that show an object before it has an identity

# Detections that show an object again, of the same class or of another.
_SAME_IOU, _OTHER_CLASS_IOU = 0.5, 0.8
_PART_INSIDE, _PART_SCORE = 0.7, 0.5  # a part: its share inside, and its score beside the whole's


class Tracker:
    """Gives the objects of videos identities, frame by frame: 1, 2, ... in each video.

    Boxes are matched by their IoU with where a Kalman filter expects the objects known so far;
    classes do not count. First come the detections with a score of `threshold` or more, which alone
    start an identity, in the third frame in a row that shows the object; then those down to
    `lowest_score`, which an occluded object may have. An object that is out of sight for a second
    or less keeps its identity. Detections that show an object again are left out before that (see
    `without_duplicates`): each would have an identity otherwise.

    Source: Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box"
    (ECCV 2022). Deviation: its thresholds are 0.6, 0.7 and 0.1 for every detector.

    Raises InputError if the package is missing.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self.lowest_score = _LOWEST_SHARE * threshold
        self._bytetrack_class = bytetrack_class()
        self._bytetrack: Any = None  # of one video
        self._time_s = -math.inf

    def follow(self, frame: Frame, detections: Detections) -> Detections:
        """Which of the detections are shown, with their `track_ids`.

        These are all with a score of the threshold or more, and of the others those that continue
        an identity, but none that shows an object again. Frames of a video have to come in order.
        An image, which is no frame of a video, has no identities.
        """
        if frame.number is None:
            return detections.above(self._threshold)
        detections = without_duplicates(detections)
        if frame.number == 0:
            self._begin(frame.rate)
        if frame.time_s > self._time_s:
            self._time_s = frame.time_s
        else:  # a damaged video goes back in time, which ByteTrack refuses
            self._time_s += 1 / frame.rate
        track_ids = self._matched(detections)
        followed = detections.with_track_ids(torch.from_numpy(track_ids))
        is_sure = detections.scores >= self._threshold
        return followed[is_sure | torch.from_numpy(track_ids > 0)]

    def _begin(self, rate: float) -> None:
        self._bytetrack = self._bytetrack_class(
            frame_rate=rate,
            track_activation_threshold=self._threshold,
            high_conf_det_threshold=self._threshold,
            minimum_consecutive_frames=_FIRST_FRAMES,
        )
        self._time_s = -math.inf

    def _matched(self, detections: Detections) -> np.ndarray:
        """The identity of each detection, [N]; 0 where there is none."""
        import supervision

        # Detections come back in another order: their indices travel with them.
        unmatched = supervision.Detections(
            xyxy=detections.boxes.numpy(),
            confidence=detections.scores.numpy(),
            data={"index": np.arange(len(detections))},
        )
        matched = self._bytetrack.update(unmatched, timestamp=self._time_s)
        track_ids = np.zeros(len(detections), np.int64)
        if len(matched):
            track_ids[matched.data["index"]] = matched.tracker_id + 1  # -1 for none
        return track_ids


def without_duplicates(detections: Detections) -> Detections:
    """The detections, best score first, without those that show an object again.

    Such a one overlaps a better one of its class by half (IoU), or one of another class nearly
    fully, as both classes of one query do; or it shows a part of a better one of its class: it lies
    in that and has less than half of its score.
    """
    boxes = detections.boxes
    area = box_area(boxes)
    iou = box_iou(boxes, boxes)  # [N, N]
    common = (area[:, None] + area) * iou / (1 + iou)
    same_class = detections.labels[:, None] == detections.labels
    scores = detections.scores
    is_inside = common >= _PART_INSIDE * area[:, None]  # row in column
    is_weak = scores[:, None] < _PART_SCORE * scores
    is_again = same_class & ((iou >= _SAME_IOU) | (is_inside & is_weak))
    is_again |= iou >= _OTHER_CLASS_IOU
    kept: list[int] = []
    for row in range(len(detections)):
        if not is_again[row, kept].any():
            kept.append(row)
    return detections[kept]


def bytetrack_class() -> Any:
    """ByteTrack. Raises InputError where its package is missing, or cannot be imported."""
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        remedy = "pip install redetr[track]"
        if "libGL" in str(error):  # of a machine without a screen
            remedy = "apt-get install libgl1, or pip install opencv-python-headless after trackers"
        text = f"objects are followed by the package trackers ({error})"
        raise InputError(text, remedy=remedy) from error
    return ByteTrackTracker
