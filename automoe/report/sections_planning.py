"""What the report says of how the gating network and the policy were trained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automoe.config import from_dict
from automoe.data.carla_hindsight import APART_FROM_TOLD, HINDSIGHT
from automoe.errors import AutoMoEError
from automoe.metrics.planning import METRIC
from automoe.moe.model import DrivingConfig
from automoe.report.parts import Part
from automoe.report.runs import NoRunError, TaskRun, facts, load_run
from automoe.report.sections import loss_chart, run_notes, validation_chart
from automoe.stages import gating, policy

TITLES = {gating.COMPONENT: "Gating network", policy.COMPONENT: "Policy"}
"""By component, in the order in which they are trained."""

CURVES = ((METRIC, "planning error"), ("path_error", "path"), ("ade", "waypoints"), ("speed_mae", "target speed"))
LIGHT = (("light_accuracy", "light told"),)

COMMANDS = {
    gating.COMPONENT: "RUN_NAME={name} bash training/train_gating_network.sh",
    policy.COMPONENT: "python3 training/train_carla_policy.py --run_name {name}",
}


def training_part(output_root: Path, run_name: str) -> Part:
    """How what drives was trained; what is missing or damaged is said in its place."""
    part = Part("Training of what drives", "driving_training")
    part.parts = [_run_part(output_root, component, run_name) for component in TITLES]
    if all(one.missing for one in part.parts):
        part.missing = " ".join(str(one.missing) for one in part.parts)
    elif not any(one.shows for one in part.parts):
        part.problem = " ".join(str(one.problem or one.missing) for one in part.parts)
    return part


def _run_part(output_root: Path, component: str, run_name: str) -> Part:
    part = Part(TITLES[component], f"{component}_training")
    try:
        run = load_run(output_root, component, component, run_name, key="component")
        _fill(part, run)
    except NoRunError as error:
        part.missing = f"{error} To train one: {COMMANDS[component].format(name=shlex.quote(run_name))}"
    except AutoMoEError as error:
        return Part(part.title, part.anchor, problem=str(error))
    return part


def _fill(part: Part, run: TaskRun) -> None:
    shape = from_dict(DrivingConfig, run.payload.get("model_config"), f"{run.checkpoint}: model_config")
    part.notes = run_notes(run)
    part.facts = [*_errors(run.metrics), *_shape(shape, run.payload)]
    part.charts = [
        *loss_chart(run),
        *validation_chart(run, CURVES, "m, m/s", "Validation: errors", "Open loop; lower is better."),
        *validation_chart(run, LIGHT, "share", "Validation: the light", "Moments whose light is told right."),
    ]
    part.details = facts(run)


def _errors(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """The numbers of the best weights."""
    units = {"path_error": ("path", "m"), "ade": ("waypoints", "m"), "speed_mae": ("target speed", "m/s")}
    parts = [(name, metrics.get(key), unit) for key, (name, unit) in units.items()]
    said = ", ".join(f"{name} {value:.3f} {unit}" for name, value, unit in parts if value is not None)
    error, light = metrics.get(METRIC), metrics.get(LIGHT[0][0])
    found = []
    if error is not None:
        found.append(("planning error", f"{error:.3f}: {said}"))
    if light is not None:
        found.append(("light told right", f"{100 * light:.1f} %"))
    return found


def _shape(shape: DrivingConfig, payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it sees, hears and plans."""
    names, context, sequence = list(shape.experts), shape.context, shape.sequence
    height, width = context.size
    sight = "no picture" if context.blind else f"a picture of {width}x{height}"
    heard = f"{', '.join(names)}; {shape.gate.top_k} at a moment" if names else "none"
    found = [
        ("sees", f"{sight}, the car's motion, the route{', rain and darkness' if context.ambient else ''}"),
        ("experts", heard),
    ]
    if held := (payload.get("recipe") or {}).get("hold"):
        found.append(("learns nothing", ", ".join(held)))
    elif names:
        found.append(("gate is taught by", "utility" if shape.gate.supervision == "utility" else "the planning loss"))
    times = ", ".join(f"{time:g}" for time in sequence.waypoint_seconds)
    found.append(("plans", f"{sequence.path_metres} m of path, waypoints in {times} s, the target speed"))
    if HINDSIGHT in (payload.get("routes") or {}).get("val", {}):
        found.append(("routes", f"in hindsight: {APART_FROM_TOLD}"))
    if towns := payload.get("towns"):
        found.append(("trained in", ", ".join(towns)))
    return found
