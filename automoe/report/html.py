"""The report of a run: one HTML file that opens offline, with every number beside what it must be compared with.

Here the evidence is gathered and put into words; `charts` draws, `cases` looks at single images, `runs` reads what the
run left behind, and `templates/report.html.j2` is the page.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from automoe import __version__
from automoe.data.dataset import PreparedDataset
from automoe.data.prepared import progress_bar
from automoe.engine.distributed import setup
from automoe.engine.runlog import duration
from automoe.errors import AutoMoEError, DataError
from automoe.experts.inference import load_expert
from automoe.files import write_text
from automoe.report import cases, charts
from automoe.report.runs import TaskRun, facts, load_run
from automoe.stages.baselines import ABOUT, Sets, baselines, box_counts, find_sets
from automoe.taxonomy import BDD_DETECTION, DRIVABLE, DRIVABLE_COLORS, DRIVABLE_OFFICIAL, SEMANTIC, SEMANTIC_COLORS

TASKS = ("detection", "drivable", "segmentation")

TITLES = {"detection": "Object detection", "drivable": "Drivable area", "segmentation": "Semantic segmentation"}

HEADLINE = {
    "detection": (
        ("AP50/car", "AP50, cars"),
        ("AP50_common", "AP50, classes with 50 or more boxes"),
        ("AP50", "AP50, all classes"),
        ("AP", "AP, all classes"),
    ),
    "drivable": (("mIoU_3class", "mIoU, three classes"), ("mIoU", "mIoU, official (two classes)")),
    "segmentation": (("mIoU", "mIoU"), ("pAcc", "pixel accuracy")),
}
"""(metric, what it is called) of each task; the first is the large number."""

COMPARED = ("untrained", "trivial")
"""The baselines that stand beside every number."""

LOOKED_AT = 48
"""Validation images, spread evenly, behind the curves, the confusion matrix and the pictures."""

PR_CLASSES = 6
"""Precision-recall curves: so many classes with the most true boxes, and at least `PR_BOXES` each."""
PR_BOXES = 10


@dataclass
class Section:
    """One task on the page. `problem` is why there is nothing but itself; `notes` are what else must be said."""

    task: str
    title: str
    problem: str | None = None
    notes: list[str] = field(default_factory=list)
    headline: list[dict[str, Any]] = field(default_factory=list)
    footnote: str = ""
    compared_names: list[str] = field(default_factory=list)
    data: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, Any] | None = None
    blind: dict[str, Any] | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    pictures_about: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


def write_report(
    output_root: Path,
    data_root: Path,
    out: Path,
    *,
    run_name: str,
    samples: int = 6,
    device: str = "auto",
    prepared_dir: Path | None = None,
    untrained_limit: int | None = 100,
) -> Path:
    """Write the report of the runs called `run_name` under `output_root` to the file `out`, and return it.

    What is missing (a task that wasn't trained, data that has gone) is said in its place, and the rest is shown.
    Args:
        samples: pictures a task: a third of them the best, a third middling, a third the worst of those looked at.
        untrained_limit: validation images for the untrained model, which the report states; None for all.

    Raises DataError where no task has a run of that name.
    """
    started = time.perf_counter()
    found: dict[str, TaskRun | AutoMoEError] = {}
    for task in TASKS:
        try:
            found[task] = load_run(Path(output_root), task, run_name)
        except AutoMoEError as error:
            found[task] = error
    problems = [str(run) for run in found.values() if isinstance(run, AutoMoEError)]
    if len(problems) == len(TASKS):
        raise DataError(f"There is nothing to report on. {' '.join(problems)}")
    chosen = str(setup(device).device)
    sections = []
    for task, run in found.items():
        if isinstance(run, AutoMoEError):
            sections.append(Section(task, TITLES[task], problem=str(run)))
        else:
            sections.append(_section(run, Path(data_root), prepared_dir, samples, chosen, untrained_limit))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run_name=run_name,
            sections=sections,
            world=_world(Path(data_root)),
            about=ABOUT,
            now=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            seconds=duration(time.perf_counter() - started),
        )
    )
    write_text(Path(out), page)
    return Path(out)


def _section(
    run: TaskRun, data_root: Path, prepared_dir: Path | None, samples: int, device: str, untrained_limit: int | None
) -> Section:
    section = Section(run.task, TITLES[run.task], facts=facts(run))
    if run.limit:
        section.notes.append(f"The run was a quick look: --limit {run.limit} cut training and validation set alike.")
    if run.manifest.get("state") not in (None, "finished"):
        section.notes.append(f"The run is not finished (its state is {run.manifest['state']!r}).")
    compared: dict[str, Any] = {}
    try:
        sets = find_sets(run.payload, data_root, prepared_dir)
    except AutoMoEError as error:
        section.notes.append(f"No baselines and no pictures, for the data is not at hand: {error}")
        sets = None
    if sets is not None:
        section.data = _data(sets)
        if sets.changed:
            section.notes.append(
                "The data has changed since this run was trained: baselines and pictures are of today's data."
            )
        try:
            made = baselines(
                run.checkpoint,
                data_root,
                prepared_dir=prepared_dir,
                device=device,
                limit=run.limit,
                untrained_limit=untrained_limit,
                num_workers=0,
            )
            compared = made.scores
            if made.untrained_images < made.images:
                section.footnote = f"Untrained: on {made.untrained_images} of the {made.images} images."
        except AutoMoEError as error:
            section.notes.append(f"No baselines: {error}")
    section.compared_names = [name for name in COMPARED if name in compared]
    section.headline = _headline(run, compared)
    section.classes = _classes(run, compared, sets)
    section.charts = _training_charts(run)
    section.blind = _blind(run, compared)
    if sets is not None:
        _add_evidence(section, run, sets, samples, device)
    return section


# --- numbers ------------------------------------------------------------------------------------------------


def _headline(run: TaskRun, compared: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, name in HEADLINE[run.task]:
        values = [compared[name].get(key) for name in COMPARED if name in compared]
        rows.append({"name": name, "value": run.metrics.get(key), "compared": values})
    if run.task == "detection":
        heat = [run.metrics.get(f"heatmap/{key}") for key in ("AP50/car", "AP50", "AP")]
        if heat[1] is not None:
            said = ", ".join(f"{name} {_percent(v)}" for name, v in zip(("AP50 of cars", "AP50", "AP"), heat))
            rows.append({"note": f"The heatmap head alone, without the decoder: {said}."})
    return rows


def _classes(run: TaskRun, compared: dict[str, Any], sets: Sets | None) -> dict[str, Any]:
    """The table of classes: a bar for the leading metric, and numbers beside it."""
    if run.task == "detection":
        keys, names = ("AP50", "AP"), BDD_DETECTION
    else:
        keys = ("IoU_3class", "IoU") if run.task == "drivable" else ("IoU",)
        names = tuple(run.payload["classes"])
    columns = [*keys, *(f"{keys[0]}, {baseline}" for baseline in COMPARED if baseline in compared)]
    counts = None
    if run.task == "detection" and sets is not None and run.limit is None:
        counts = box_counts(sets.val)
        columns.append("true boxes")
    rows = []
    for index, name in enumerate(names):
        values = [run.metrics.get(f"{key}/{name}") for key in keys]
        values += [compared[b].get(f"{keys[0]}/{name}") for b in COMPARED if b in compared]
        cells = [_percent(value) for value in values] + ([f"{counts[index]}"] if counts is not None else [])
        rows.append({"name": name, "bar": values[0], "cells": cells})
    return {"columns": columns, "rows": rows}


def _blind(run: TaskRun, compared: dict[str, Any]) -> dict[str, Any] | None:
    """Drivable only: what the constant predictors show of the two metrics."""
    if run.task != "drivable":
        return None
    names = [name for name in ("trivial", "all direct", "never background") if name in compared]
    rows = [{"name": name, "scores": [compared[name].get(key) for key, _ in HEADLINE["drivable"]]} for name in names]
    about = (
        f"Never background: {ABOUT['never background']}. Calling background drivable therefore costs nothing "
        "officially; read both numbers."
    )
    columns = [name for _, name in HEADLINE["drivable"]]
    return {"columns": columns, "rows": rows, "about": about} if rows else None


def _data(sets: Sets) -> list[tuple[str, str]]:
    rows = []
    for name, info in (("training", sets.train), ("validation", sets.val)):
        text = f"{info.count:,} images"
        if info.task == "detection":
            text += f", {info.boxes:,} boxes"
        if info.quarantined or info.rejected_labels:
            text += f"; {info.quarantined} broken images and {info.rejected_labels} broken boxes left out"
        rows.append((name, f"{text}; fingerprint {info.fingerprint[:12]}"))
    return [*rows, ("source", sets.val.source_root)]


def _world(data_root: Path) -> str | None:
    """What the embedded world says of the data it made, if it made it."""
    path = data_root / "world.json"
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text())
        settings = said["settings"]
        width, height = settings["size"]
        towns = len(settings["train_towns"]), len(settings["val_towns"])
        return (
            f"The pictures are renderings of AutoMoE's embedded world ({width}x{height}, seed {settings['seed']}), "
            f"from {towns[0]} training towns and {towns[1]} other towns for validation. They are not real BDD100K "
            "frames, and no number here says anything about those."
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); export the world again.") from error


# --- charts -------------------------------------------------------------------------------------------------


def _training_charts(run: TaskRun) -> list[dict[str, Any]]:
    found = []
    if len(run.loss) > 1:
        svg = charts.line_chart({"training loss": run.loss}, x_title="step", y_title="loss")
        found.append(_chart("Training loss", svg, "Lower is better; single batches, so it jumps."))
    learning = {name: run.curve(key) for key, name in HEADLINE[run.task]}
    if any(len(points) > 1 for points in learning.values()):
        svg = charts.line_chart(learning, x_title="step", y_title="percent")
        found.append(_chart("Validation", svg, "Over the whole validation set, at each evaluation."))
    return found


def _chart(title: str, svg: str, about: str) -> dict[str, Any]:
    return {"title": title, "svg": Markup(svg), "about": about}


# --- single images ------------------------------------------------------------------------------------------


def _add_evidence(section: Section, run: TaskRun, sets: Sets, samples: int, device: str) -> None:
    """Predict a sample of the validation set; add its charts and pictures to the section."""
    expert = load_expert(run.checkpoint, device)
    whole = min(sets.val.count, run.limit or sets.val.count)
    dataset = PreparedDataset(sets.val.path, run.task, expert.transform, limit=min(LOOKED_AT, whole))
    with progress_bar(f"look at {run.task}") as progress:
        seen = cases.look_at(expert, dataset, progress)
    sample = f"{len(seen)} of {sets.val.count} validation images"
    _add_boxes(section, [case for case in seen if isinstance(case, cases.BoxCase)], sample, samples)
    _add_masks(section, [case for case in seen if isinstance(case, cases.MaskCase)], sample, samples)


def _add_boxes(section: Section, seen: Sequence[cases.BoxCase], sample: str, samples: int) -> None:
    if not seen:
        return
    threshold = cases.best_threshold(seen)
    curves = {name: cases.precision_recall(seen, index) for index, name in enumerate(BDD_DETECTION)}
    often = sorted(curves, key=lambda name: -curves[name][1])[:PR_CLASSES]
    shown = {f"{name} ({curves[name][1]})": curves[name][0] for name in often if curves[name][1] >= PR_BOXES}
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
            _chart("Precision and recall", svg, f"At IoU 0.5, on {sample}; in brackets the number of true boxes there.")
        )
    if any((~case.row.ignored).any() for case in seen):
        bars = charts.bar_chart(cases.recall_by_condition(seen, threshold))
        about = f"Share of the true boxes that a detection of score {threshold:.2f} or more finds, on {sample}."
        section.charts.append(_chart("What is found", bars, about))
    section.pictures_about = (
        f"From {sample}. Left the truth, in class colours (ignore regions dashed); right the outcome at score "
        f"{threshold:.2f}, the threshold with the best F1 on these images."
    )
    marks = (("right", cases.RIGHT_COLOR), ("false", cases.FALSE_COLOR), ("missed", cases.MISSED_COLOR))
    section.legend = [(name, _css(color)) for name, color in marks]
    with_objects = [case for case in seen if (~case.row.ignored).sum() >= 3] or list(seen)
    for grade, case in cases.pick(with_objects, lambda c: c.score(threshold), samples):
        right, false, missed = case.errors(threshold)
        caption = f"{right} right, {false} false, {missed} missed"
        section.pictures.append(_pictures(grade, caption, case, cases.draw_box_case(case, threshold)))


def _add_masks(section: Section, seen: Sequence[cases.MaskCase], sample: str, samples: int) -> None:
    if not seen:
        return
    names, colors = SEMANTIC, SEMANTIC_COLORS
    if section.task == "drivable":
        names, colors = DRIVABLE, DRIVABLE_COLORS
    counts = np.sum([case.counts for case in seen], axis=0)
    svg = charts.confusion_chart(counts, names)
    if svg:
        about = f"Where the pixels of each true class went, in percent of that class; on {sample}."
        section.charts.append(_chart("Confusion", svg, about))
    section.pictures_about = f"From {sample}, ordered by each image's own mean IoU."
    drawn = colors[: len(DRIVABLE_OFFICIAL)] if section.task == "drivable" else colors
    section.legend = [(name, _css(color)) for name, color in zip(names, drawn)]
    for grade, case in cases.pick(seen, cases.MaskCase.score, samples):
        caption = f"mIoU {case.score():.0f} over its classes, {case.wrong():.1f} % of the pixels wrong"
        section.pictures.append(_pictures(grade, caption, case, cases.draw_mask_case(case, section.task)))


def _pictures(
    grade: str, caption: str, case: cases.BoxCase | cases.MaskCase, drawn: Sequence[tuple[str, np.ndarray]]
) -> dict[str, Any]:
    row = case.row
    about = ", ".join(part for part in (row.timeofday, row.weather, row.scene) if part and part != "undefined")
    images = [{"title": title, "uri": _inline_image(image), "size": image.shape} for title, image in drawn]
    return {"grade": grade, "caption": caption, "name": row.name, "about": about, "images": images}


def _inline_image(image: np.ndarray) -> str:
    """A picture as a data URI, so that the page needs no other file."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _css(color: tuple[int, int, int]) -> str:
    return "rgb({}, {}, {})".format(*color)


# --- the page -----------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("automoe.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {"percent": _percent}
    environment.filters.update(filters)
    return environment


def _percent(value: float | None) -> str:
    """A metric as people read it."""
    return "–" if value is None else f"{value:.1f}"
