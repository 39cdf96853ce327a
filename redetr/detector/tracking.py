"""Identities of the objects in videos, by ByteTrack from the package `trackers`.

The authors of supervision maintain that package (Apache-2.0) instead of supervision's own
ByteTrack. It is an extra, because it depends on OpenCV, which takes 190 MB on disk.
"""

import math
from typing import Any

import numpy as np
import torch

from redetr.boxes import box_area, box_iou, intersection_areas
from redetr.detector.detections import Detections
from redetr.detector.sources import Frame
from redetr.errors import InputError

# Detections below the threshold, down to this share of it, can continue an identity.
_LOWEST_SHARE = 0.5
# An object gets an identity after it was detected in this many frames in a row.
_FIRST_FRAMES = 3

# Two detections with at least this IoU show the same object.
_SAME_CLASS_IOU = 0.5
_OTHER_CLASS_IOU = 0.8
# A detection shows a part of an object if this share of it lies inside the object's detection, and
# its score is less than this share of that one's.
_PART_INSIDE = 0.7
_PART_SCORE = 0.5


class Tracker:
    """Assigns identities to the objects of videos, frame by frame: 1, 2, ... in each video.

    A Kalman filter predicts the boxes of the objects known so far, and detections are matched to
    these by IoU, whatever their class. Detections with a score of `threshold` or more are matched
    first. Only they start an identity, in the third frame in a row that shows the object. Weaker
    detections down to `lowest_score` follow, because an occluded object may have such a score. An
    object that is out of sight for a second or less keeps its identity. Duplicates are removed
    beforehand, because each would get an identity (see `without_duplicates`).

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
        """The detections to show, with their `track_ids`.

        These are the detections that have a score of at least the threshold or continue an
        identity, without duplicates. The frames of a video must be passed in order. Detections in
        an image that is not a frame of a video have no identities.
        """
        if frame.number is None:
            return detections.above(self._threshold)
        detections = without_duplicates(detections)
        if frame.number == 0:
            self._begin(frame.rate)
        if frame.time_s > self._time_s:
            self._time_s = frame.time_s
        else:  # time goes backwards in a damaged video, which ByteTrack refuses
            self._time_s += 1 / frame.rate
        track_ids = self._matched(detections)
        followed = detections.with_track_ids(torch.from_numpy(track_ids))
        is_sure = detections.scores >= self._threshold
        is_tracked = torch.from_numpy(track_ids > 0)
        return followed[is_sure | is_tracked]

    def _begin(self, rate: float) -> None:
        self._bytetrack = self._bytetrack_class(
            frame_rate=rate,
            track_activation_threshold=self._threshold,
            high_conf_det_threshold=self._threshold,
            minimum_consecutive_frames=_FIRST_FRAMES,
        )
        self._time_s = -math.inf

    def _matched(self, detections: Detections) -> np.ndarray:
        """The identity of each detection, int `[N]`; 0 if it has none."""
        import supervision

        # ByteTrack returns detections in another order, so their indices are passed along.
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
    """The detections, best score first, without duplicates of the same object.

    A duplicate has an IoU of at least 0.5 with a better detection of its class, or overlaps one of
    any class nearly fully, as two classes of one query do. Or it shows a part of a better
    detection's object: it has the same class, lies inside that detection, and has less than half of
    its score.
    """
    boxes = detections.boxes
    scores = detections.scores
    iou = box_iou(boxes, boxes)  # [N, N]
    same_class = detections.labels[:, None] == detections.labels
    smallest_share = _PART_INSIDE * box_area(boxes)
    is_inside = intersection_areas(boxes, boxes, iou) >= smallest_share[:, None]  # row in column
    is_weak = scores[:, None] < _PART_SCORE * scores
    is_part = is_inside & is_weak
    is_duplicate = same_class & ((iou >= _SAME_CLASS_IOU) | is_part)
    is_duplicate |= iou >= _OTHER_CLASS_IOU
    kept: list[int] = []
    for row in range(len(detections)):
        if not is_duplicate[row, kept].any():
            kept.append(row)
    return detections[kept]


def bytetrack_class() -> Any:
    """The class ByteTrack. Raises InputError if its package is missing or cannot be imported."""
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        remedy = 'pip install "redetr[track]"'
        if "libGL" in str(error):  # missing on machines without a screen
            remedy = "apt-get install libgl1, or pip install opencv-python-headless after trackers"
        text = f"tracking objects needs the package trackers ({error})"
        raise InputError(text, remedy=remedy) from error
    return ByteTrackTracker
