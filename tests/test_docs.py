"""The documents are true: links lead somewhere, commands parse, settings exist and are all described."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import cyclopts
import pytest

from automoe import cli
from automoe.data.nuscenes_dataset import BevAugmentConfig
from automoe.data.sequences import SequenceConfig
from automoe.data.transforms import AugmentConfig
from automoe.drive.controllers import ControllerConfig
from automoe.drive.patience import PatienceConfig
from automoe.engine.config import EngineConfig
from automoe.experts.dense import DenseConfig
from automoe.experts.detection import DetectionConfig
from automoe.experts.nuscenes_config import NuscenesConfig
from automoe.moe.context import ContextConfig
from automoe.moe.gate import GateConfig
from automoe.moe.planner import PlannerConfig
from automoe.stages import entry
from automoe.stages.gating import GatingConfig
from automoe.stages.image_stage import ImageStageConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

_LINK = re.compile(r"\[(?:[^\]\[]|\n)*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"^([A-Z][A-Z_]*)=")
_IN_CODE = re.compile(r"`([^`\n]+)`")
# The shell knows these; or they are quoted as they stand in other documents than ours.
_OTHER_TOOLS = {"source", "tensorboard", "cd", ".ci/run"}


def slug(heading: str) -> str:
    """A heading's anchor, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(path: Path) -> str:
    return _BLOCK.sub("", path.read_text())


def commands() -> list[tuple[str, str]]:
    """(document, command) for every line of a shell block."""
    found = []
    for path in DOCUMENTS:
        for language, block in _BLOCK.findall(path.read_text()):
            if language in ("bash", "sh"):
                lines = block.replace("\\\n", " ").splitlines()
                found += [(path.name, line.strip()) for line in lines if line.strip() and line.strip()[0] != "#"]
    return found


@cache
def trainer(script: str) -> cyclopts.App:
    """The command-line app of an entry point under training/, caught where it would start."""
    caught: list[cyclopts.App] = []
    with mock.patch.object(entry, "call", caught.append):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return caught[0]


def shell_variables(script: str) -> set[str]:
    """What a shell script can be told by the environment."""
    text = (ROOT / script).read_text()
    return {name for name, again in re.findall(r"^([A-Z_]+)=\$\{([A-Z_]+):-", text, re.MULTILINE) if name == again}


def make_variables() -> set[str]:
    return set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(line: str) -> None:
    """Fails where a command line names what isn't there: a program, target, variable, command or flag."""
    words = shlex.split(line, comments=True)
    given = []
    while match := _ASSIGNMENT.match(words[0]):
        given.append(match[1])
        words.pop(0)
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "automoe":
        parse(cli.app, rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), line
        assert set(given) <= make_variables() | shell_variables("training/train_bdd100k_experts_ddp.sh"), line
    elif program == "bash":
        assert set(given) <= shell_variables(rest[0]), line
    elif program in ("python", "python3", "torchrun"):
        place = next((i for i, word in enumerate(rest) if word.endswith(".py")), None)
        if place is None:
            assert rest[:1] == ["-m"], line  # pytest, venv, pip: other people's
        elif rest[place].startswith("training/"):
            parse(trainer(rest[place]), rest[place + 1 :])
        else:
            source = (ROOT / rest[place]).read_text()
            assert all(f'"{word}"' in source for word in rest[place + 1 :] if word.startswith("--")), line
    else:
        assert program in _OTHER_TOOLS, f"what is {program!r}? ({line})"


def parse(app: cyclopts.App, words: list[str]) -> None:
    if "--help" not in words:
        app.parse_args(words, exit_on_error=False, print_error=False)


def described(document: str, heading: str) -> set[str]:
    """Names in code in the first column of the tables below a heading."""
    text = (ROOT / document).read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in _IN_CODE.findall(cell)}


def fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), f"{path.name} links to {link}, which isn't there"
        assert place.is_relative_to(ROOT), f"{path.name} links out of the repository: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(place), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name}: {target} has no heading for #{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_named_in_the_text_exist(path: Path) -> None:
    for name in _IN_CODE.findall(prose(path)):
        inside = re.fullmatch(r"(?:automoe|training|tests|scripts|benchmarks|models/configs)/[\w./-]+", name)
        promised = "| to come |" in next(line for line in path.read_text().splitlines() if f"`{name}`" in line)
        if inside and not promised and "world export" not in name:
            assert (ROOT / name).exists(), f"{path.name} names {name}, which isn't there"


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_parse(document: str, line: str) -> None:
    check(line)


def test_a_wrong_command_would_be_noticed() -> None:
    for line in (
        "automoe evaluate --chekpoint best.pth",
        "automoe score bdd100k-boxes --gt a --pred b",
        "python3 training/train_bdd100k_ddp.py --task lanes",
        "NUM_GPU=2 bash training/train_bdd100k_experts_ddp.sh",
        "make everything",
        "python benchmarks/matcher.py --treads 1",
        "automo predict",
    ):
        with pytest.raises((AssertionError, cyclopts.CycloptsError)):
            check(line)


def test_every_variable_of_the_script_is_described_and_no_other() -> None:
    table = (ROOT / "docs/training.md").read_text().split("## The nuScenes expert")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in _IN_CODE.findall(cell)}
    script = "training/train_bdd100k_experts_ddp.sh"
    assert names - {"PYTHON"} == shell_variables(script) - {"PYTHON"}
    assert "PYTHON=${PYTHON:-" in (ROOT / script).read_text()


def test_every_variable_of_the_nuscenes_script_is_described_and_no_other() -> None:
    section = (ROOT / "docs/training.md").read_text().split("## The nuScenes expert")[1].split("\n## ")[0]
    words = section.split("```")[2]
    names = {name for name in _IN_CODE.findall(words) if re.fullmatch("[A-Z_]+", name)}
    assert names == shell_variables("training/train_nuscenes_expert_ddp.sh") | {"PYTHON"}


@pytest.mark.parametrize(
    ("document", "heading", "config"),
    [
        ("docs/training.md", "The engine", EngineConfig),
        ("docs/data.md", "Augmentation", AugmentConfig),
        ("docs/experts.md", "Detection", DetectionConfig),
        ("docs/experts.md", "Drivable area and segmentation", DenseConfig),
        ("docs/experts.md", "A config", ImageStageConfig),
        ("docs/experts.md", "nuScenes", NuscenesConfig),
        ("docs/data.md", "Augmentation of nuScenes", BevAugmentConfig),
        ("docs/driving.md", "Observations and targets", SequenceConfig),
        ("docs/driving.md", "A config of what drives", GatingConfig),
        ("docs/driving.md", "Context", ContextConfig),
        ("docs/driving.md", "Gate", GateConfig),
        ("docs/driving.md", "Planner", PlannerConfig),
        ("docs/driving.md", "Driving", ControllerConfig),
        ("docs/driving.md", "Patience", PatienceConfig),
    ],
)
def test_every_key_of_a_config_is_described_and_no_other(document: str, heading: str, config: type) -> None:
    assert described(document, heading) == fields(config)


def test_entry_points_work_or_are_to_come_as_the_readme_says() -> None:
    rows = re.findall(r"^\| `(training/\S+)`.*\| (works|to come) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 11
    for name, state in rows:
        assert (ROOT / name).exists() == (state == "works"), f"README says of {name}: {state}"


def test_the_matchers_numbers_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks/results/matcher.json").read_text())["threads_1"]
    loop = [state["total_times_the_matcher"]["image_loop"] for state in measured.values()]
    scipy = [state["assignment_times_the_matcher"]["scipy_on_own_costs"] for state in measured.values()]
    for document in ("README.md", "docs/decisions/0004-exact-auction.md"):
        text = (ROOT / document).read_text()
        assert f"{min(loop):g} to {max(loop):g}" in text
        assert f"{min(scipy):g} to {max(scipy):g}" in text
    for state in measured.values():
        assert f"{state['total_ms']['matcher']:.1f} ms | {state['total_ms']['image_loop']:.1f} ms" in text
