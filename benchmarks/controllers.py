"""How well does the controller drive what it is given? With a perfect plan, the route itself and the speed that the
teacher would go at, ten times a second, in closed loop; and with each of its settings varied in turn.

    python benchmarks/controllers.py --json benchmarks/results/controllers.json

Routes of about 300 m in towns of the training set (the validation towns are for scores), among traffic. For each
setting: the driving score, how far the car is beside its lane's middle (root mean square, and the 99th percentile,
metres), its jerk (root mean square, m/s^3) and its mean speed (m/s).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.sequences import Observation
from automoe.drive.closed_loop import drive_route
from automoe.drive.controllers import Controller, ControllerConfig
from automoe.drive.embedded import EmbeddedSimulator, begin_drive
from automoe.drive.leaderboard import summarise
from automoe.drive.routes import generated_routes
from automoe.engine.manifest import git_state, versions
from automoe.files import write_text
from automoe.machine import available_cores
from automoe.poses import into_frame, upright
from automoe.world import polyline
from automoe.world.vehicle import Control

TOWNS = tuple(f"carla-train-{number}" for number in range(40, 52))

VARIED: dict[str, tuple[float, ...]] = {
    "aim_seconds": (0.3, 0.45, 0.8, 1.0),
    "aim_least": (2.5, 3.25, 5.0, 6.0),
    "pull": (0.6, 0.9, 2.0),
    "brake_pull": (1.3, 2.0, 4.0),
}
"""Values that are tried instead of the default, one setting at a time."""


class PerfectPlan:
    """An agent that drives the route's own line at the speed that the teacher would neither raise nor lower."""

    def __init__(self, simulator: EmbeddedSimulator, config: ControllerConfig) -> None:
        self.simulator, self.controller, self.trouble = simulator, Controller(config=config), {}
        self.beside: list[float] = []

    def act(self, observation: Observation) -> Control:
        drive = self.simulator.drive
        car = drive.car
        pose = upright(*car.middle, 0.0, car.yaw)
        line, along = drive.route.line, drive.route.along
        points, _ = polyline.sample(line, drive.station + np.arange(1.0, 21.0), along)
        here, heading = polyline.sample(line, drive.station, along)
        gap = np.array(car.middle) - here
        self.beside.append(float(np.cos(heading) * gap[1] - np.sin(heading) * gap[0]))
        return self.controller.control(into_frame(pose, points), drive.traffic.target_speed(), observation.speed)

    def shown(self) -> dict[str, Any]:
        return {}


def drive(job: tuple[int, float, ControllerConfig]) -> tuple[Any, list[float], list[float]]:
    """One route: its record, and metres beside the lane's middle and speed at every frame."""
    number, length, config = job
    task = generated_routes(number + 1, length, TOWNS)[number]
    simulator = EmbeddedSimulator(begin_drive(task.route(), number), task.name(0))
    agent, speeds = PerfectPlan(simulator, config), []
    record = drive_route(simulator, agent, task.name(0), watch=lambda seen, _: speeds.append(seen.speed))
    return record, agent.beside, speeds


def settings() -> dict[str, ControllerConfig]:
    """The default, and each value that is tried instead."""
    default = ControllerConfig()
    varied = {f"{name} {value:g}": replace(default, **{name: value}) for name in VARIED for value in VARIED[name]}
    return {"default": default, **varied}


def measure(routes: int, length: float, workers: int) -> dict[str, dict[str, Any]]:
    """What comes of each setting."""
    jobs = [(name, (number, length, config)) for number in range(routes) for name, config in settings().items()]
    with ProcessPoolExecutor(workers) as pool:
        driven = list(pool.map(drive, [job for _, job in jobs], chunksize=len(settings())))  # a town is staged once
    found = {}
    for name, config in settings().items():
        mine = [one for (whose, _), one in zip(jobs, driven, strict=True) if whose == name]
        beside = np.abs(np.concatenate([one[1] for one in mine]))
        jerks = [np.diff(one[2], 2) / 0.1**2 for one in mine]
        scores = summarise([one[0] for one in mine], routes)
        found[name] = {
            "config": asdict(config),
            "driving_score": scores.driving_score,
            "per_km": scores.per_km,
            "beside_rms": float(np.sqrt(np.mean(beside**2))),
            "beside_99": float(np.percentile(beside, 99)),
            "jerk": float(np.sqrt(np.mean(np.concatenate(jerks) ** 2))),
            "speed": float(np.mean(np.concatenate([one[2] for one in mine]))),
        }
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=12)
    parser.add_argument("--length", type=float, default=300.0, help="metres")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    found = measure(options.routes, options.length, options.workers)
    print(f"{'setting':<18} {'score':>6} {'beside':>7} {'99 %':>6} {'jerk':>6} {'m/s':>5}")
    for name, one in found.items():
        print(
            f"{name:<18} {one['driving_score']:>6.1f} {one['beside_rms']:>7.3f} {one['beside_99']:>6.2f} "
            f"{one['jerk']:>6.2f} {one['speed']:>5.2f}"
        )
    if options.json:
        said = {
            "command": f"python benchmarks/controllers.py --routes {options.routes} --length {options.length:g}",
            "towns": TOWNS, **git_state(), "versions": versions(), "settings": found,
        }  # fmt: skip
        write_text(options.json, json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
