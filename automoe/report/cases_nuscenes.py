"""nuScenes samples under the loupe: which boxes of each were found, and the pictures that show it.

The official metrics are not computed here; a sample's own score only orders the samples from best to worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from automoe.data.nuscenes import CameraFrame, seven
from automoe.data.nuscenes_prepared import NuscenesRow
from automoe.drawing import fit_width, name_picture
from automoe.metrics.nuscenes import TP_DISTANCE, Boxes3D, NuscenesMetrics
from automoe.poses import invert, move_boxes
from automoe.report.cases import best_f1
from automoe.report.pictures_3d import draw_above, draw_camera
from automoe.taxonomy import NUSCENES_COLORS, NUSCENES_DETECTION

TRUTH_COLOR = (60, 255, 60)
ABOVE_SIDE, CAMERA_WIDTH = 720, 400
"""Pixels: of the view from above, and of each camera's picture."""

GAP = 4
TURNS = 3
"""Of the LiDAR, in the view from above: enough to know walls and cars by, few enough to see the boxes."""

BESIDE: tuple[tuple[str, ...], ...] = (
    ("CAM_FRONT", "CAM_BACK"),
    ("CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK_RIGHT"),
)
"""Where each camera's picture goes on a sheet that stands beside the view from above."""


@dataclass(frozen=True)
class SampleCase:
    """One sample's predictions K, best first, against its true boxes N; of both, those that are scored.

    hit: bool [K], right within 2 m, each truth once. found_at: [N], score of the prediction that found each true box,
    -1 where none did.
    """

    token: str
    truth: Boxes3D
    predicted: Boxes3D
    hit: np.ndarray
    found_at: np.ndarray

    def errors(self, threshold: float) -> tuple[int, int, int]:
        """Right predictions, predictions of nothing and missed objects at a score threshold."""
        sure = self.predicted.score >= threshold
        return int((sure & self.hit).sum()), int((sure & ~self.hit).sum()), int((self.found_at < threshold).sum())

    def score(self, threshold: float) -> float:
        """F1 of this sample, 0 to 1."""
        right, false, missed = self.errors(threshold)
        return 2 * right / max(1, 2 * right + false + missed)


def judge_samples(metrics: NuscenesMetrics, most: int) -> list[SampleCase]:
    """The samples that were scored, at most so many of them, spread evenly."""
    state = metrics.state()
    tokens = sorted(state)
    chosen = np.unique(np.linspace(0, len(tokens) - 1, min(most, len(tokens))).round().astype(int)).tolist()
    return [judge_sample(tokens[at], state[tokens[at]].truth, state[tokens[at]].predicted) for at in chosen]


def judge_sample(token: str, truth: Boxes3D, predicted: Boxes3D) -> SampleCase:
    """nuScenes' matching at 2 m: by falling score, each prediction takes the nearest free true box of its class."""
    predicted = predicted[np.argsort(-predicted.score, kind="stable")]
    hit, found_at = np.zeros(len(predicted), bool), np.full(len(truth), -1.0)
    apart = np.linalg.norm(predicted.translation[:, None, :2] - truth.translation[None, :, :2], axis=2)
    near = np.where(predicted.label[:, None] == truth.label[None], apart, np.inf)
    for place in np.flatnonzero((near < TP_DISTANCE).any(axis=1)):
        free = np.where(found_at < 0, near[place], np.inf)
        if free.min() < TP_DISTANCE:
            hit[place] = True
            found_at[free.argmin()] = predicted.score[place]
    return SampleCase(token, truth, predicted, hit, found_at)


def best_threshold(cases: Sequence[SampleCase]) -> float:
    """The score threshold with the best F1 over all cases, to two digits."""
    scores = np.concatenate([case.predicted.score for case in cases] or [np.zeros(0)])
    hit = np.concatenate([case.hit for case in cases] or [np.zeros(0, bool)])
    order = np.argsort(-scores, kind="stable")
    return best_f1(scores[order], hit[order], sum(len(case.truth) for case in cases))


def draw_case(case: SampleCase, row: NuscenesRow, threshold: float) -> list[tuple[str, np.ndarray]]:
    """The sample from above, with truth and predictions, and its cameras with predictions, as captioned pictures."""
    to_ego = invert(row.T_world_ego)
    sure = case.predicted[case.predicted.score >= threshold]
    boxes, true = move_boxes(to_ego, seven(sure)), move_boxes(to_ego, seven(case.truth))
    greens = [TRUTH_COLOR] * len(NUSCENES_DETECTION)
    above = draw_above(true, case.truth.label, greens, row.points(TURNS), side=ABOVE_SIDE, light=0.55, thickness=2)
    above = draw_above(boxes, sure.label, NUSCENES_COLORS, picture=above, thickness=2)
    pictures = {}
    for place, channel in enumerate(row.cameras):
        image = fit_width(row.picture(channel), CAMERA_WIDTH)
        size = int(row.heights[place]), int(row.widths[place])
        camera = CameraFrame(channel, Path(), row.timestamp, size, row.intrinsic[place], row.T_cam_ego[place])
        words = channel.removeprefix("CAM_").replace("_", " ").lower()
        pictures[channel] = name_picture(draw_camera(image, camera, boxes, sure.label, NUSCENES_COLORS), words)
    drawn = [("from above, forward up; a ring every 10 m", above)]
    return [*drawn, ("the cameras, with predictions", _sheet(pictures))] if pictures else drawn


def _sheet(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """The cameras that there are, in the places of `BESIDE`, all as high as the first."""
    first = next(iter(pictures.values()))
    size = (first.shape[1], first.shape[0])
    rows = [[pictures.get(name) for name in names] for names in BESIDE if any(name in pictures for name in names)]
    sheet = np.full((len(rows) * (size[1] + GAP) - GAP, 2 * size[0] + GAP, 3), 255, np.uint8)
    for line, row in enumerate(rows):
        for column, one in enumerate(row):
            top, left = line * (size[1] + GAP), column * (size[0] + GAP)
            sheet[top : top + size[1], left : left + size[0]] = 24 if one is None else cv2.resize(one, size)
    return sheet
