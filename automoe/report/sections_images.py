"""What the report says of experts of single images, in percent: boxes, drivable area, semantic segmentation.

`sections_bdd100k` and `sections_carla` have the chapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from automoe.experts.inference import load_expert
from automoe.progress import progress_bar
from automoe.report import cases, charts
from automoe.report.runs import TaskRun
from automoe.report.sections import COMPARED, Chapter, Section, as_percent, chart, css, picture_row
from automoe.stages.baselines import ABOUT, Scores, Sets, box_counts
from automoe.stages.kinds import kind_of
from automoe.taxonomy import (
    BDD_DETECTION,
    DETECTION_COLORS,
    DRIVABLE,
    DRIVABLE_COLORS,
    DRIVABLE_OFFICIAL,
    NUSCENES_COLORS,
    NUSCENES_DETECTION,
    SEMANTIC,
    SEMANTIC_COLORS,
)

_BOX_HEADLINE = (
    ("AP50/car", "AP50, cars"),
    ("AP50_common", "AP50, classes with 50 or more boxes"),
    ("AP50", "AP50, all classes"),
    ("AP", "AP, all classes"),
)

HEADLINE = {
    "detection": _BOX_HEADLINE,
    "nuscenes_2d": _BOX_HEADLINE,
    "drivable": (("mIoU_3class", "mIoU, three classes"), ("mIoU", "mIoU, official (two classes)")),
    "segmentation": (("mIoU", "mIoU"), ("pAcc", "pixel accuracy")),
}

LOOKED_AT = 48
"""Validation images, spread evenly, behind the curves, the confusion matrix and the pictures."""

PR_CLASSES = 6
"""Precision-recall curves: so many classes with the most true boxes, and at least `PR_BOXES` each."""
PR_BOXES = 10

PALETTES = {
    "detection": (BDD_DETECTION, DETECTION_COLORS),
    "nuscenes_2d": (NUSCENES_DETECTION, NUSCENES_COLORS),
    "drivable": (DRIVABLE, DRIVABLE_COLORS),
    "segmentation": (SEMANTIC, SEMANTIC_COLORS),
}
"""The classes of each task's labels, and their colours."""


# --- numbers ------------------------------------------------------------------------------------------------


def add_numbers(section: Section, run: TaskRun, compared: Mapping[str, Scores], sets: Sets | None) -> None:
    """The table of classes, and what of the numbers needs a word."""
    if _has_boxes(run):
        heat = [run.metrics.get(f"heatmap/{key}") for key in ("AP50/car", "AP50", "AP")]
        if heat[1] is not None:
            said = ", ".join(f"{name} {as_percent(v)}" for name, v in zip(("AP50 of cars", "AP50", "AP"), heat))
            section.headline_notes.append(f"The heatmap head alone, without the decoder: {said}.")
    section.classes = _classes(run, compared, sets)
    section.blind = _blind(run, compared)


def _has_boxes(run: TaskRun) -> bool:
    return run.task in ("detection", "nuscenes_2d")


def _classes(run: TaskRun, compared: Mapping[str, Scores], sets: Sets | None) -> dict[str, Any]:
    """The table of classes: a bar for the leading metric, and numbers beside it."""
    keys = ("AP50", "AP") if _has_boxes(run) else ("IoU_3class", "IoU") if run.task == "drivable" else ("IoU",)
    merged = run.payload["model_config"].get("collapse") or {}
    columns = [*keys, *(f"{keys[0]}, {baseline}" for baseline in COMPARED if baseline in compared)]
    counts = None
    if sets is not None and sets.val.task == "detection" and run.limit is None:
        counts = box_counts(sets.val)
        columns.append("true boxes")
    rows = []
    for index, name in enumerate(run.payload["classes"]):
        if name in merged:
            continue
        values = [run.metrics.get(f"{key}/{name}") for key in keys]
        values += [compared[b].get(f"{keys[0]}/{name}") for b in COMPARED if b in compared]
        cells = [as_percent(value) for value in values] + ([f"{counts[index]}"] if counts is not None else [])
        rows.append({"name": name.replace("_", " "), "bar": values[0], "cells": cells})
    together = ", ".join(f"{name} as {into}" for name, into in merged.items())
    about = f"The labels don't tell all classes apart; counted together: {together}." if together else ""
    return {"columns": columns, "rows": rows, "wide": False, "about": about}


def _blind(run: TaskRun, compared: Mapping[str, Scores]) -> dict[str, Any] | None:
    """Drivable only: what the constant predictors show of the two metrics."""
    if run.task != "drivable":
        return None
    names = [name for name in ("trivial", "all direct", "never background") if name in compared]
    keys = [key for key, _ in HEADLINE["drivable"]]
    rows = [{"name": name, "scores": [as_percent(compared[name].get(key)) for key in keys]} for name in names]
    about = (
        f"Never background: {ABOUT['never background']}. Calling background drivable therefore costs nothing "
        "officially; read both numbers."
    )
    columns = [name for _, name in HEADLINE["drivable"]]
    return {"columns": columns, "rows": rows, "about": about} if rows else None


# --- single images ------------------------------------------------------------------------------------------


def add_evidence(section: Section, run: TaskRun, sets: Sets, samples: int, device: str) -> None:
    """Predict a sample of the validation set; add its charts and pictures to the section."""
    expert = load_expert(run.checkpoint, device)
    whole = min(sets.val.count, run.limit or sets.val.count)
    kind = kind_of(expert.payload, run.checkpoint)
    dataset = kind.open(expert, sets.val.path, min(LOOKED_AT, whole))
    with progress_bar(f"look at {run.task}") as progress:
        seen = cases.look_at(expert, dataset, progress)
    sample = f"{len(seen)} of {sets.val.count} validation {kind.unit}"
    _add_boxes(section, [case for case in seen if isinstance(case, cases.BoxCase)], sample, samples)
    _add_masks(section, [case for case in seen if isinstance(case, cases.MaskCase)], sample, samples)


def _add_boxes(section: Section, seen: Sequence[cases.BoxCase], sample: str, samples: int) -> None:
    if not seen:
        return
    threshold = cases.best_threshold(seen)
    names, colors = PALETTES[section.task]
    curves = {name: cases.precision_recall(seen, index) for index, name in enumerate(names)}
    often = sorted(curves, key=lambda name: -curves[name][1])[:PR_CLASSES]
    shown = {
        f"{name.replace('_', ' ')} ({curves[name][1]})": curves[name][0]
        for name in often
        if curves[name][1] >= PR_BOXES
    }
    svg = charts.line_chart(
        shown,
        x_title="recall, percent",
        y_title="precision, percent",
        x_range=(0, 100),
        y_range=(0, 100),
        dots=False,
    )
    if svg:
        section.charts.append(
            chart("Precision and recall", svg, f"At IoU 0.5, on {sample}; in brackets the number of true boxes there.")
        )
    if any((~case.row.ignored).any() for case in seen):
        bars = charts.bar_chart(cases.recall_by_condition(seen, threshold))
        about = f"Share of the true boxes that a detection of score {threshold:.2f} or more finds, on {sample}."
        section.charts.append(chart("What is found", bars, about))
    section.pictures_about = (
        f"From {sample}. Left the truth, in class colours (ignore regions dashed); right the outcome at score "
        f"{threshold:.2f}, the threshold with the best F1 on these images."
    )
    marks = (("right", cases.RIGHT_COLOR), ("false", cases.FALSE_COLOR), ("missed", cases.MISSED_COLOR))
    section.legend = [(name, css(color)) for name, color in marks]
    with_objects = [case for case in seen if (~case.row.ignored).sum() >= 3] or list(seen)
    for grade, case in cases.pick(with_objects, lambda c: c.score(threshold), samples):
        right, false, missed = case.errors(threshold)
        caption = f"{right} right, {false} false, {missed} missed"
        drawn = cases.draw_box_case(case, threshold, names, colors)
        section.pictures.append(_pictures(grade, caption, case, drawn))


def _add_masks(section: Section, seen: Sequence[cases.MaskCase], sample: str, samples: int) -> None:
    if not seen:
        return
    names, colors = PALETTES[section.task]
    counts = np.sum([case.counts for case in seen], axis=0)
    svg = charts.confusion_chart(counts, names)
    if svg:
        about = f"Where the pixels of each true class went, in percent of that class; on {sample}."
        section.charts.append(chart("Confusion", svg, about, wide=section.task == "segmentation"))
    section.pictures_about = f"From {sample}, ordered by each image's own mean IoU."
    drawn = colors[: len(DRIVABLE_OFFICIAL)] if section.task == "drivable" else colors
    section.legend = [(name, css(color)) for name, color in zip(names, drawn)]
    for grade, case in cases.pick(seen, cases.MaskCase.score, samples):
        caption = f"mIoU {case.score():.0f} over its classes, {case.wrong():.1f} % of the pixels wrong"
        section.pictures.append(_pictures(grade, caption, case, cases.draw_mask_case(case, section.task)))


def _pictures(
    grade: str, caption: str, case: cases.BoxCase | cases.MaskCase, drawn: Sequence[tuple[str, np.ndarray]]
) -> dict[str, Any]:
    row = case.row
    about = ", ".join(part for part in (row.timeofday, row.weather, row.scene) if part and part != "undefined")
    return picture_row(grade, caption, row.name, about, drawn)


def image_chapter(task: str, dataset: str, component: str, title: str, **own: Any) -> Chapter:
    """The chapter of an expert of single images. own: what of `Chapter` is the data set's: about, world, ..."""
    return Chapter(
        task=task,
        dataset=dataset,
        component=component,
        title=title,
        headline=HEADLINE[task],
        curves=HEADLINE[task],
        unit="percent",
        cost=1,
        add_numbers=add_numbers,
        add_evidence=add_evidence,
        **own,
    )
