"""The report of a run: one HTML file that opens offline, with every number beside what it must be compared with.

Here runs are found and put on the page, `templates/report.html.j2`. What is said of one is gathered by `sections` and,
for each data set, `sections_bdd100k`, `sections_nuscenes` and `sections_carla`; `charts` draws, `cases` and
`cases_nuscenes` look at single samples, `runs` reads what a run left behind.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import jinja2

from automoe import __version__
from automoe.config import project_root
from automoe.engine.distributed import setup
from automoe.engine.runlog import duration
from automoe.errors import AutoMoEError, DataError
from automoe.files import write_text
from automoe.report import sections_bdd100k, sections_carla, sections_nuscenes
from automoe.report.runs import NoRunError, TaskRun, load_run
from automoe.report.sections import Chapter, Section, write_section
from automoe.stages import carla, nuscenes

CHAPTERS: tuple[Chapter, ...] = (
    *sections_bdd100k.CHAPTERS,
    sections_nuscenes.CHAPTER,
    *sections_carla.CHAPTERS,
)
"""In the order of the page."""

Found = list[tuple[Chapter, TaskRun | AutoMoEError]]


def write_report(
    output_root: Path,
    data_root: Path,
    out: Path,
    *,
    run_name: str,
    nuscenes_root: Path | None = None,
    carla_root: Path | None = None,
    samples: int = 6,
    device: str = "auto",
    prepared_dir: Path | None = None,
    untrained_limit: int | None = 60,
) -> Path:
    """Write the report of the runs called `run_name` under `output_root` to the file `out`, and return it.

    What is missing (a task that wasn't trained, data that has gone) is said in its place, and the rest is shown.
    Args:
        data_root, nuscenes_root, carla_root: BDD100K, nuScenes and CARLA (datasets/nuscenes and
            datasets/carla/preprocessed if not given), raw or prepared, for runs whose own data has moved.
        samples: pictures a task: a third of them the best, a third middling, a third the worst of those looked at.
        untrained_limit: validation images for the untrained model, which the report states, and a fifth as many
            nuScenes samples, which have several pictures each; None for all.

    Raises DataError where no task has a run of that name.
    """
    started = time.perf_counter()
    found: Found = []
    for chapter in CHAPTERS:
        try:
            found.append((chapter, load_run(Path(output_root), chapter.task, chapter.component, run_name)))
        except AutoMoEError as error:
            found.append((chapter, error))
    problems = [str(run) for _, run in found if isinstance(run, AutoMoEError)]
    if len(problems) == len(CHAPTERS):
        raise DataError(f"There is nothing to report on. {' '.join(problems)}")
    chosen = str(setup(device).device)
    found, absent = _set_aside(found)
    roots = {
        "BDD100K": Path(data_root),
        "nuScenes": nuscenes_root or project_root() / nuscenes.DEFAULT_ROOT,
        "CARLA": carla_root or project_root() / carla.DEFAULT_ROOT,
    }
    sections = []
    for chapter, run in found:
        if isinstance(run, AutoMoEError):
            sections.append(Section(chapter.task, chapter.title, chapter.anchor, problem=str(run)))
        else:
            root = roots[chapter.dataset]
            sections.append(write_section(chapter, run, root, prepared_dir, samples, chosen, untrained_limit))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run_name=run_name,
            sections=sections,
            absent=absent,
            units=_units([chapter for chapter, _ in found]),
            about=_about([chapter for chapter, _ in found], sections),
            now=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            seconds=duration(time.perf_counter() - started),
        )
    )
    write_text(Path(out), page)
    return Path(out)


def _set_aside(found: Found) -> tuple[Found, list[str]]:
    """What gets a section, and a sentence for each data set of which nothing was trained under this name: who works
    with the other alone misses nothing."""
    names = dict.fromkeys(chapter.dataset for chapter, _ in found)
    parts = {name: [(chapter, run) for chapter, run in found if chapter.dataset == name] for name in names}
    empty = {name: part for name, part in parts.items() if all(isinstance(run, NoRunError) for _, run in part)}
    absent = [f"{name}: {' '.join(str(run) for _, run in part)}" for name, part in empty.items()]
    return [(chapter, run) for chapter, run in found if chapter.dataset not in empty], absent


def _about(chapters: list[Chapter], sections: list[Section]) -> dict[str, str]:
    """What the baselines that are shown are; a data set's own where its phrase is another."""
    rows: dict[str, str] = {}
    for chapter, section in zip(chapters, sections, strict=True):
        for name in section.compared_names:
            same = rows.get(name, chapter.about[name]) == chapter.about[name]
            rows[name if same else f"{name}, {chapter.dataset}"] = chapter.about[name]
    return rows


def _units(chapters: list[Chapter]) -> str:
    """In what the scores are, in words."""
    units = dict.fromkeys((chapter.dataset, chapter.unit) for chapter in chapters)
    words = {"percent": "in percent", "fraction": "as fractions"}
    if len({unit for _, unit in units}) == 1:
        return words[chapters[0].unit]
    return ", ".join(f"{dataset} {words[unit]}" for dataset, unit in units)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("automoe.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
