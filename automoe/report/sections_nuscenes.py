"""What the report says of the nuScenes expert, in the devkit's fractions, metres and radians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from automoe.data.nuscenes_dataset import collate
from automoe.data.nuscenes_prepared import NuscenesRows
from automoe.data.prepared import PreparedInfo
from automoe.engine.distributed import setup
from automoe.engine.loader import evaluation_loader
from automoe.errors import DataError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.inference import load_expert
from automoe.experts.nuscenes import NuscenesScoring
from automoe.metrics.nuscenes import DISTANCES, ERROR_NAMES, TP_DISTANCE, Curve, NuscenesMetrics, filter_boxes
from automoe.metrics.nuscenes_submission import read_submission
from automoe.progress import progress_bar
from automoe.report import cases_nuscenes, charts
from automoe.report.cases import pick
from automoe.report.runs import TaskRun
from automoe.report.sections import Chapter, Section, as_fraction, chart, css, picture_row
from automoe.stages.baselines import ABOUT, Scores, Sets
from automoe.stages.baselines_nuscenes import ABOUT_TRIVIAL, truths
from automoe.stages.kinds import KINDS
from automoe.stages.nuscenes import COMPONENT, SUBMISSION
from automoe.taxonomy import NUSCENES_COLORS, NUSCENES_DETECTION

HEADLINE = (("AP/car", "AP, cars (mean of 0.5 to 4 m)"), ("mAP", "mAP"), ("NDS", "NDS"))

IMAGE_BOXES = (("AP50", "AP50"), ("AP50/car", "AP50 of cars"), ("AP", "AP"))

ERRORS = (
    ("mATE", "translation", " m"),
    ("mASE", "scale", ""),
    ("mAOE", "orientation", " rad"),
    ("mAVE", "velocity", " m/s"),
    ("mAAE", "attribute", ""),
)

LOOKED_AT = 24
"""Validation samples, spread evenly, that are predicted anew where the run's own predictions can't be used."""

JUDGED = 240
"""Samples among which the best and the worst are sought."""

PICTURES = 3
"""Samples shown, each with seven pictures: the best, a middling one and the worst."""

PR_CLASSES = 6
"""Precision-recall curves: so many classes with the most true boxes, and at least `PR_BOXES` each."""
PR_BOXES = 10

SAME = 1e-6
"""Two computations of one mAP differ by less."""


@dataclass(frozen=True)
class _Evidence:
    """Predictions beside their truth. samples: "80 of 240 validation samples", whose they are."""

    metrics: NuscenesMetrics
    samples: str


# --- numbers ------------------------------------------------------------------------------------------------


def _add_numbers(section: Section, run: TaskRun, compared: Mapping[str, Scores], sets: Sets | None) -> None:
    found = [f"{name} {as_fraction(run.metrics.get(key))}{unit}" for key, name, unit in ERRORS]
    section.headline_notes.append(f"Mean errors of what is found within 2 m: {', '.join(found)}.")
    heat = [(name, run.metrics.get(f"heatmap/{key}")) for key, name in (("AP/car", "AP of cars"), *HEADLINE[1:])]
    if heat[1][1] is not None:
        said = ", ".join(f"{name} {as_fraction(value)}" for name, value in heat)
        section.headline_notes.append(f"The heatmap head alone, without the decoder: {said}.")
    if run.metrics.get("image/AP50") is not None:
        values = [f"{name} {as_fraction(run.metrics.get(f'image/{key}'))}" for key, name in IMAGE_BOXES]
        section.headline_notes.append(
            f"The image branch's boxes in the pictures, by COCO's metrics: {', '.join(values)}."
        )
    section.classes = _classes(run, section.compared_names, compared, sets)


def _classes(run: TaskRun, names: list[str], compared: Mapping[str, Scores], sets: Sets | None) -> dict[str, Any]:
    """The table of classes: a bar for the average precision, and numbers beside it."""
    keys = [f"AP@{distance:g}m" for distance in DISTANCES]
    errors = list(ERROR_NAMES.values())
    columns = [
        "AP",
        *(f"AP, {name}" for name in names),
        *(f"{distance:g}\N{NO-BREAK SPACE}m" for distance in DISTANCES),
        *errors,
    ]
    counts = None
    if sets is not None:
        counts = scored_boxes(sets.val, run.limit)
        columns.append("true boxes")
    rows = []
    for index, name in enumerate(NUSCENES_DETECTION):
        average = run.metrics.get(f"AP/{name}")
        values = [average, *(compared[one].get(f"AP/{name}") for one in names)]
        values += [run.metrics.get(f"{key}/{name}") for key in (*keys, *errors)]
        cells = [as_fraction(value) for value in values] + ([f"{counts[index]:,}"] if counts is not None else [])
        rows.append({"name": name.replace("_", " "), "bar": 100 * (average or 0), "cells": cells})
    about = (
        "AP is the mean of those at four distances. Errors are of what is found within 2 m, lower is better: ATE in "
        "metres, ASE 1 - IoU, AOE in radians, AVE in m/s, AAE a share; 1 where too little is found. True boxes: those "
        "that are scored, within their class's range and with a LiDAR or radar point."
    )
    return {"columns": columns, "rows": rows, "wide": True, "about": about}


def scored_boxes(info: PreparedInfo, limit: int | None = None) -> list[int]:
    """How many true boxes of each class the official metric counts in a prepared set."""
    counts = np.zeros(len(NUSCENES_DETECTION), np.int64)
    for row in truths(NuscenesRows(info.path, limit)):
        truth = row.truth()
        kept = truth.label[filter_boxes(truth, row.T_world_ego[:2, 3], row.racks)]
        counts += np.bincount(kept, minlength=len(counts))
    return counts.tolist()


def _world(settings: Mapping[str, Any]) -> str:
    width, height = settings["size"]
    towns = len(settings["train_towns"]), len(settings["val_towns"])
    return (
        f"The nuScenes scenes are drives through AutoMoE's embedded world (cameras of {width}x{height}, seed "
        f"{settings['seed']}), in {towns[0]} training towns and {towns[1]} other towns for validation. They are not "
        "real nuScenes recordings, and no number here says anything about those."
    )


# --- single samples -----------------------------------------------------------------------------------------


def _add_evidence(section: Section, run: TaskRun, sets: Sets, samples: int, device: str) -> None:
    """Charts and pictures from the run's own predictions of the validation set, else from a sample made anew."""
    evidence = _own_predictions(run, sets) or _new_predictions(run, sets, device)
    section.charts += _curves(evidence)
    _add_pictures(section, evidence, sets, min(samples, PICTURES))


def _own_predictions(run: TaskRun, sets: Sets) -> _Evidence | None:
    """The predictions beside the checkpoint, if they are of this set and have the score that the checkpoint has."""
    try:
        found, _ = read_submission(run.run_dir / SUBMISSION)
    except DataError:
        return None
    metrics = NuscenesMetrics()
    for row in truths(NuscenesRows(sets.val.path)):
        if row.token in found:
            metrics.add(row.token, row.truth(), found[row.token], row.T_world_ego[:2, 3], row.racks)
    if not found or len(metrics) != len(found):
        return None
    score, wanted = metrics.compute().metrics["mAP"], run.metrics.get("mAP")
    if score is None or wanted is None or abs(score - wanted) > SAME:
        return None
    return _Evidence(metrics, _samples(len(found), sets))


def _new_predictions(run: TaskRun, sets: Sets, device: str) -> _Evidence:
    """What the checkpoint says of a few validation samples."""
    expert = load_expert(run.checkpoint, device)
    whole = min(sets.val.count, run.limit or sets.val.count)
    dataset = KINDS["nuscenes"].open(expert, sets.val.path, min(LOOKED_AT, whole))
    kept: list[NuscenesScoring] = []
    with setup(device) as dist, progress_bar("look at nuscenes") as progress:
        loader = evaluation_loader(dataset, collate, 2, dist, num_workers=0)
        evaluate_expert(expert.model, dataset, loader, dist, progress, keep=kept.append)
    return _Evidence(kept[0].final, _samples(len(dataset), sets))


def _samples(count: int, sets: Sets) -> str:
    return f"{count} of {sets.val.count} validation samples" if count < sets.val.count else "the whole validation set"


def _curves(evidence: _Evidence) -> list[dict[str, Any]]:
    """Precision over recall: of the most frequent classes at 2 m, of cars at every distance."""
    scores = evidence.metrics.compute()
    labels = np.concatenate([sample.truth.label for sample in evidence.metrics.state().values()])
    counts = np.bincount(labels, minlength=len(NUSCENES_DETECTION))
    often = [int(label) for label in np.argsort(-counts, kind="stable")[:PR_CLASSES] if counts[label] >= PR_BOXES]
    by_class = {
        f"{NUSCENES_DETECTION[label].replace('_', ' ')} ({counts[label]})": scores.curves[
            NUSCENES_DETECTION[label], TP_DISTANCE
        ]
        for label in often
    }
    of_cars = {f"{distance:g} m": scores.curves["car", distance] for distance in DISTANCES}
    found = []
    for title, curves, about in (
        ("Precision and recall", by_class, f"Within 2 m, on {evidence.samples}; in brackets the scored true boxes."),
        ("Cars by distance", of_cars, f"A car counts as found within so many metres; on {evidence.samples}."),
    ):
        points = {name: _points(curve) for name, curve in curves.items()}
        svg = charts.line_chart(
            points, x_title="recall", y_title="precision", x_range=(0, 1), y_range=(0, 1), dots=False
        )
        if svg:
            found.append(chart(title, svg, about))
    return found


def _points(curve: Curve) -> list[tuple[float, float]]:
    """(recall, precision) up to the recall that was reached; what the single surest box is stays out."""
    reached = np.flatnonzero(curve.confidence)
    last = int(reached[-1]) if len(reached) else 0
    return [(at / 100, float(curve.precision[at])) for at in range(1, last + 1)]


def _add_pictures(section: Section, evidence: _Evidence, sets: Sets, count: int) -> None:
    seen = cases_nuscenes.judge_samples(evidence.metrics, JUDGED)
    threshold = cases_nuscenes.best_threshold(seen)
    rows = NuscenesRows(sets.val.path)
    place = {token: index for index, token in enumerate(rows.column("token"))}
    section.pictures_title = "Best and worst samples"
    section.pictures_about = (
        f"From {evidence.samples}. Green is the truth that is scored; in class colours what is predicted with a score "
        f"of {threshold:.2f} or more, the threshold with the best F1 on these samples. The line in a box and the "
        "crossed face point forward; right is what is within 2 m."
    )
    section.legend = [("truth", css(cases_nuscenes.TRUTH_COLOR))]
    section.legend += [(n.replace("_", " "), css(c)) for n, c in zip(NUSCENES_DETECTION, NUSCENES_COLORS, strict=True)]
    with_objects = [case for case in seen if len(case.truth) >= 3] or seen
    for grade, case in pick(with_objects, lambda one: one.score(threshold), count):
        right, false, missed = case.errors(threshold)
        row = rows.row(place[case.token])
        caption = f"{right} right, {false} false, {missed} missed"
        drawn = cases_nuscenes.draw_case(case, row, threshold)
        section.pictures.append(picture_row(grade, caption, row.scene, case.token, drawn))


CHAPTER = Chapter(
    task="nuscenes",
    dataset="nuScenes",
    component=COMPONENT,
    title="3D object detection (nuScenes)",
    headline=HEADLINE,
    curves=HEADLINE[1:],
    unit="fraction",
    about={**ABOUT, "trivial": ABOUT_TRIVIAL},
    cost=5,
    add_numbers=_add_numbers,
    add_evidence=_add_evidence,
    world=_world,
)
