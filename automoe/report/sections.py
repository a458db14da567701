"""One expert's section of the report: what every task has in common, and the seam at which they differ.

A `Chapter` is what the report must know of a task: its numbers' names and unit, its table of classes, its evidence from
single samples. `sections_bdd100k`, `sections_nuscenes` and `sections_carla` have them; `html` puts sections on the
page.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from automoe.errors import AutoMoEError, DataError
from automoe.report import charts
from automoe.report.runs import TaskRun, facts
from automoe.stages.baselines import Scores, Sets, baselines, find_sets

COMPARED = ("source", "untrained", "trivial")
"""The baselines that stand beside every number, as far as a chapter has them."""


@dataclass(frozen=True)
class Compared:
    """Official metrics by baseline, and what must be said of them."""

    scores: Mapping[str, Scores] = field(default_factory=dict)
    footnote: str | None = None


@dataclass
class Section:
    """One task on the page, every number as text. `problem` is why there is nothing but itself; `notes` are what else
    must be said; `world` is what made the data, if nothing real did."""

    task: str
    title: str
    anchor: str
    problem: str | None = None
    notes: list[str] = field(default_factory=list)
    world: str | None = None
    headline: list[dict[str, Any]] = field(default_factory=list)
    headline_notes: list[str] = field(default_factory=list)
    compared_names: list[str] = field(default_factory=list)
    data: list[tuple[str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)
    blind: dict[str, Any] | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    pictures_title: str = "Best and worst images"
    pictures_about: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


def compare_blind(
    run: TaskRun, sets: Sets, data_root: Path, prepared_dir: Path | None, device: str, untrained_limit: int | None
) -> Compared:
    """The same model untrained, and predictors that never look. `html.write_report` has the arguments."""
    made = baselines(
        run.checkpoint,
        data_root,
        prepared_dir=prepared_dir,
        device=device,
        limit=run.limit,
        untrained_limit=untrained_limit,
        num_workers=0,
    )
    some = made.untrained_images < made.images
    footnote = f"Untrained: on {made.untrained_images} of the {made.images} {sets.val.unit}." if some else None
    return Compared(made.scores, footnote)


@dataclass(frozen=True)
class Chapter:
    """What is said of one task.

    Attributes:
        dataset: as people write its name. component: the folder of its runs.
        headline: (metric, what it is called); the first is the large number. curves: those of the learning curve.
        unit: "percent" or "fraction". about: a phrase for each of its baselines.
        cost: how many single images take as long as one of its samples.
        add_numbers: the table of classes, and notes under the headline, from the run and the baselines' scores.
        add_evidence: charts and so many pictures of single samples, on a device.
        world: what the embedded world's settings say of data that it made.
        compare: the baselines, as `compare_blind`. section: its name on the page, the task's if not given.
    """

    task: str
    dataset: str
    component: str
    title: str
    headline: tuple[tuple[str, str], ...]
    curves: tuple[tuple[str, str], ...]
    unit: str
    about: Mapping[str, str]
    cost: int
    add_numbers: Callable[[Section, TaskRun, Mapping[str, Scores], Sets | None], None]
    add_evidence: Callable[[Section, TaskRun, Sets, int, str], None]
    world: Callable[[Mapping[str, Any]], str]
    compare: Callable[[TaskRun, Sets, Path, Path | None, str, int | None], Compared] = compare_blind
    section: str = ""

    @property
    def anchor(self) -> str:
        """Where on the page its section is."""
        return self.section or self.task

    def text(self, value: float | None) -> str:
        """A metric as people read it."""
        return as_percent(value) if self.unit == "percent" else as_fraction(value)


def as_percent(value: float | None) -> str:
    """A metric in percent as text."""
    return "–" if value is None else f"{value:.1f}"


def as_fraction(value: float | None) -> str:
    """A metric that is a fraction, or an error in its unit, as text."""
    return "–" if value is None else f"{value:.3f}"


def write_section(
    chapter: Chapter,
    run: TaskRun,
    data_root: Path,
    prepared_dir: Path | None,
    samples: int,
    device: str,
    untrained_limit: int | None,
) -> Section:
    """Everything that is known of a run; what can't be had is said in a note. `html.write_report` has the arguments."""
    section = Section(run.task, chapter.title, chapter.anchor, notes=run_notes(run), facts=facts(run))
    compared = Compared()
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
            most = -(-untrained_limit // chapter.cost) if untrained_limit else None
            compared = chapter.compare(run, sets, data_root, prepared_dir, device, most)
        except AutoMoEError as error:
            section.notes.append(f"No baselines: {error}")
    section.world = _world(chapter, sets, data_root)
    section.compared_names = [name for name in COMPARED if name in compared.scores]
    for key, name in chapter.headline:
        values = [chapter.text(compared.scores[baseline].get(key)) for baseline in section.compared_names]
        section.headline.append({"name": name, "value": chapter.text(run.metrics.get(key)), "compared": values})
    chapter.add_numbers(section, run, compared.scores, sets)
    section.headline_notes += [compared.footnote] if compared.footnote else []
    section.charts = [*loss_chart(run), *validation_chart(run, chapter.curves, chapter.unit)]
    if sets is not None:
        chapter.add_evidence(section, run, sets, samples, device)
    return section


def run_notes(run: TaskRun) -> list[str]:
    """What must be said of a run before its numbers."""
    notes = []
    if run.limit:
        notes.append(f"The run was a quick look: --limit {run.limit} cut training and validation set alike.")
    if run.manifest.get("state") not in (None, "finished"):
        notes.append(f"The run is not finished (its state is {run.manifest['state']!r}).")
    return notes


def _data(sets: Sets) -> list[tuple[str, str]]:
    rows = []
    for name, info in (("training", sets.train), ("validation", sets.val)):
        text = f"{info.count:,} {info.unit}"
        if info.task.startswith("detection"):
            text += f", {info.boxes:,} boxes"
        if info.quarantined or info.rejected_labels:
            text += f"; {info.quarantined} broken {info.unit} and {info.rejected_labels} broken boxes left out"
        rows.append((name, f"{text}; fingerprint {info.fingerprint[:12]}"))
    return [*rows, ("source", sets.val.source_root)]


def _world(chapter: Chapter, sets: Sets | None, data_root: Path) -> str | None:
    """What the embedded world says of the data it made, if it made it."""
    source = Path(sets.val.source_root) if sets is not None else data_root
    path = (source if source.is_dir() else data_root) / "world.json"
    if not path.is_file():
        return None
    try:
        return chapter.world(json.loads(path.read_text())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); export the world again.") from error


# --- charts and pictures ------------------------------------------------------------------------------------


def loss_chart(run: TaskRun) -> list[dict[str, Any]]:
    """A run's training loss; no chart where there is no curve."""
    if len(run.loss) < 2:
        return []
    svg = charts.line_chart({"training loss": run.loss}, x_title="step", y_title="loss")
    return [chart("Training loss", svg, "Lower is better; single batches, so it jumps.")]


def validation_chart(
    run: TaskRun, curves: Sequence[tuple[str, str]], unit: str, title: str = "Validation", hint: str = ""
) -> list[dict[str, Any]]:
    """Metrics of a run, (key, name), at each evaluation; no chart where there is no curve. hint: what else its caption
    says."""
    learning = {name: run.curve(key) for key, name in curves}
    if not any(len(points) > 1 for points in learning.values()):
        return []
    svg = charts.line_chart(learning, x_title="step", y_title=unit)
    return [chart(title, svg, " ".join(filter(None, ("Over the whole validation set, at each evaluation.", hint))))]


def chart(title: str, svg: str, about: str, wide: bool = False) -> dict[str, Any]:
    """A chart for `Section.charts`; wide: over both columns."""
    return {"title": title, "svg": Markup(svg), "about": about, "wide": wide}


def picture_row(
    grade: str, caption: str, name: str, about: str, drawn: Sequence[tuple[str, np.ndarray]]
) -> dict[str, Any]:
    """One sample's pictures, uint8 [H, W, 3], with their titles, for `Section.pictures`."""
    images = [{"title": title, "uri": _inline_image(image), "size": image.shape} for title, image in drawn]
    return {"grade": grade, "caption": caption, "name": name, "about": about, "images": images}


def _inline_image(image: np.ndarray) -> str:
    """A picture as a data URI, so that the page needs no other file."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def css(color: tuple[int, int, int]) -> str:
    """A colour for a legend."""
    return "rgb({}, {}, {})".format(*color)
