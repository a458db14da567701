"""The report of a run: one HTML file that opens offline, with every number beside what it must be compared with.

Here runs are found and put on the page, `templates/report.html.j2`. What is said of an expert is gathered by `sections`
and, for each data set, `sections_bdd100k`, `sections_nuscenes` and `sections_carla`; of what drives by
`sections_driving`, `sections_gate` and `sections_planning`, whose pieces `parts` describes. `charts` draws, `cases` and
`cases_nuscenes` look at single samples, `runs` reads what a run left behind.
"""

from __future__ import annotations

import datetime
import shlex
import time
from pathlib import Path

import jinja2

from automoe import __version__
from automoe.config import project_root
from automoe.engine.distributed import setup
from automoe.engine.runlog import duration
from automoe.errors import AutoMoEError, DataError
from automoe.files import write_text
from automoe.moe.checkpoint import COMPONENTS
from automoe.report import sections_bdd100k, sections_carla, sections_nuscenes
from automoe.report.parts import Part
from automoe.report.runs import NoRunError, TaskRun, load_run
from automoe.report.sections import Chapter, Section, write_section
from automoe.report.sections_driving import driving_part
from automoe.report.sections_gate import gate_part
from automoe.report.sections_planning import training_part
from automoe.stages import carla, gating, nuscenes

CHAPTERS: tuple[Chapter, ...] = (
    *sections_bdd100k.CHAPTERS,
    sections_nuscenes.CHAPTER,
    *sections_carla.CHAPTERS,
)
"""In the order of the page."""

_BY_WORTH = sorted(COMPONENTS, key=lambda name: name != gating.COMPONENT)
"""What drives: the gate, which hears experts, before a policy."""

Found = list[tuple[Chapter, TaskRun | AutoMoEError]]


def write_report(
    output_root: Path,
    data_root: Path,
    out: Path,
    *,
    run_name: str,
    nuscenes_root: Path | None = None,
    carla_root: Path | None = None,
    drives: Path | None = None,
    gate: Path | None = None,
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
        drives: what `automoe drive --out` left; <output_root>/reports/drive/<run_name>, as far as it is there, if not
            given.
        gate: what `automoe gate --out` left; <output_root>/reports/gate/<run_name>.json, as far as it is there, if not
            given.
        samples: pictures a task: a third of them the best, a third middling, a third the worst of those looked at.
        untrained_limit: validation images for the untrained model, which the report states, and a fifth as many
            nuScenes samples, which have several pictures each; None for all.

    Raises DataError where no task has a run of that name and nothing is known of driving, and where `drives` or `gate`
    is absent or damaged.
    """
    started = time.perf_counter()
    parts = _driving(Path(output_root), run_name, Path(out), drives, gate)
    found: Found = []
    for chapter in CHAPTERS:
        try:
            found.append((chapter, load_run(Path(output_root), chapter.task, chapter.component, run_name)))
        except AutoMoEError as error:
            found.append((chapter, error))
    problems = [str(run) for _, run in found if isinstance(run, AutoMoEError)]
    if len(problems) == len(CHAPTERS) and not any(part.shows for part in parts):
        problems += [said for part in parts if (said := part.problem or part.missing)]
        raise DataError(f"There is nothing to report on. {' '.join(problems)}")
    chosen = str(setup(device).device)
    found, absent = _set_aside(found)
    if all(part.missing for part in parts):
        absent += [f"{part.title}: {part.missing}" for part in parts]
        parts = []
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
            parts=parts,
            linked=any(film.link for part in parts for film in part.films),
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


def _driving(output_root: Path, run_name: str, page: Path, drives: Path | None, gate: Path | None) -> list[Part]:
    """What is known of driving, in the order of the page; `write_report` has the arguments."""
    folder = drives or output_root / "reports" / "drive" / run_name
    file = gate or output_root / "reports" / "gate" / f"{run_name}.json"
    runs = [output_root / "models" / "checkpoints" / name / run_name / "best.pth" for name in _BY_WORTH]
    checkpoint = next((path for path in runs if path.is_file()), runs[0])

    def command(name: str, out: Path) -> str:
        return shlex.join(["automoe", name, "--checkpoint", str(checkpoint), "--out", str(out)])

    return [
        driving_part(folder, page, command("drive", folder), named=drives is not None),
        gate_part(file, command("gate", file), named=gate is not None),
        training_part(output_root, run_name),
    ]


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
    """In what the scores are, in words; empty where there are none."""
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
