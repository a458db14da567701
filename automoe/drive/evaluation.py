"""Driving many routes with several drivers, and what came of it in one table.

Every drive is a file of its own, so that a run that was stopped goes on, and a driver may be added later. A drive is a
function of (driver, route, seed): the number of processes changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import automoe
from automoe.drive.closed_loop import Timing, drive_route
from automoe.drive.leaderboard import OUTSIDE, SIMULATION_CRASHED, RouteRecord, results_file, summarise
from automoe.drive.routes import RouteTask
from automoe.errors import DriveError
from automoe.files import write_text
from automoe.machine import available_cores, one_torch_thread, worker_processes
from automoe.metrics.intervals import t_interval

if TYPE_CHECKING:
    from automoe.drive.agent import ModelAgent
    from automoe.drive.controllers import Controller
    from automoe.drive.embedded import EmbeddedSimulator
    from automoe.drive.simulator import Agent, Simulator

TEACHER, CONSTANT = "teacher", "constant_velocity"
"""Drivers that need no checkpoint."""

CONSTANT_SPEED = 5.0
"""m/s of the driver who goes straight on: above the teacher's mean, lights and queues included, and below what he goes
at on a free road."""

BUDGET = 0.1
"""Seconds that an agent may take for a frame: 10 frames a second in real time."""


@dataclass(frozen=True)
class DriverSpec:
    """Who drives. checkpoint: a driving model's best.pth; none for TEACHER and CONSTANT. router: who decides which
    experts are heard, see `moe.routers.named`; the model's gate if not given."""

    name: str
    checkpoint: str | None = None
    router: str | None = None

    def told(self) -> dict[str, Any]:
        """What results say of who drove: checkpoint and router, where there are any."""
        return {key: value for key, value in asdict(self).items() if key != "name" and value is not None}

    def digest(self) -> str:
        """A hash of what decides how it drives."""
        told = json.dumps({"router": self.router, "kind": None if self.checkpoint else self.name})
        found = hashlib.sha256((told + code_digest()).encode())
        if self.checkpoint:
            with open(self.checkpoint, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()[:16]


@cache
def code_digest() -> str:
    """A hash of the code that a drive depends on: after a change drives are driven anew."""
    found, root = hashlib.sha256(), Path(automoe.__file__).parent
    rooms = (root / room for room in ("carla", "data", "drive", "experts", "moe", "world"))
    for path in sorted([*root.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class DriveResult:
    """One drive: its record, and what there is to say of how it was driven.

    frame_seconds: median of the agent's, world_seconds: of the world's with its sensors. over_budget: frames in which
    the agent took longer than BUDGET. trouble: counts by name. use: share of frames in which each expert ran. jerk:
    root mean square of the change of the car's acceleration, m/s^3.
    """

    driver: str
    route: int
    seed: int
    record: dict[str, Any]
    frames: int
    frame_seconds: float
    world_seconds: float
    over_budget: int
    trouble: dict[str, int]
    use: dict[str, float]
    jerk: float
    digest: str

    @property
    def scored(self) -> RouteRecord:
        return RouteRecord.from_json(self.record)


def begin(driver: DriverSpec, task: RouteTask, seed: int) -> tuple[EmbeddedSimulator, Agent]:
    """The simulator and the agent of one drive, both at its first moment: the same arguments give the same drive."""
    from automoe.drive.agent import ConstantVelocity
    from automoe.drive.embedded import EmbeddedSimulator, Teacher, begin_drive, rig_camera

    name, route, drawn = task.name(seed), task.route(), 1000 * seed + task.number
    if driver.checkpoint is None:
        ticks = 1 if driver.name == TEACHER else 2
        simulator = EmbeddedSimulator(begin_drive(route, drawn), name, ticks=ticks)
        return simulator, Teacher(simulator) if driver.name == TEACHER else ConstantVelocity(CONSTANT_SPEED)
    agent = _model_agent(driver, drawn)
    camera = rig_camera(agent.driver.rig) if agent.looks else None
    return EmbeddedSimulator(begin_drive(route, drawn), name, camera, seed=drawn), agent


def _model_agent(driver: DriverSpec, drawn: int, controller: Controller | None = None) -> ModelAgent:
    """The agent of a driver with a checkpoint; drawn: what a router that draws begins with."""
    from automoe.drive.agent import ModelAgent
    from automoe.moe.routers import named

    trained = _trained(str(driver.checkpoint))
    router, hold = (None, None) if driver.router is None else named(driver.router, trained.model.names, drawn)
    return ModelAgent(trained, controller, router, hold)


@contextmanager
def begun(driver: DriverSpec, task: RouteTask, seed: int) -> Iterator[tuple[Simulator, Agent]]:
    """`begin`, or for a CarlaTask the same on its server, which is afterwards as it was. Raises CollectError where a
    server fails or can't do what is wanted."""
    if not task.on_server:
        yield begin(driver, task, seed)
        return
    from automoe.drive.agent import ConstantVelocity
    from automoe.drive.carla_simulator import CarlaTask, carla_drive
    from automoe.drive.controllers import CARLA_CAR, Controller

    assert isinstance(task, CarlaTask)
    assert task.file is not None
    drawn, controller, rig = 1000 * seed + task.number, Controller(CARLA_CAR), None
    agent: Agent = ConstantVelocity(CONSTANT_SPEED, controller)
    if driver.checkpoint is not None:
        agent = model_agent = _model_agent(driver, drawn, controller)
        rig = model_agent.driver.rig if model_agent.looks else None
    client, carla = server_at(task.host, task.port)
    with carla_drive(client, carla, task.file, task.name(seed), rig, seed=drawn) as simulator:
        yield simulator, agent


@lru_cache(maxsize=1)
def server_at(host: str, port: int) -> tuple[Any, Any]:
    """The client that is connected to a server, and its module, once in a process. Raises as `connect` does."""
    from automoe.carla.server import connect

    return connect(host, port, tags=False)


def drive_once(driver: DriverSpec, task: RouteTask, seed: int, digest: str = "") -> DriveResult:
    """One drive."""
    with begun(driver, task, seed) as (simulator, agent):
        return _driven(simulator, agent, driver, task, seed, digest)


def _driven(
    simulator: Simulator, agent: Agent, driver: DriverSpec, task: RouteTask, seed: int, digest: str
) -> DriveResult:
    timing = Timing()
    speeds: list[float] = []
    used: dict[str, int] = {}

    def watch(observation: Any, control: Any) -> None:
        speeds.append(observation.speed)
        shown = agent.shown()
        for expert in shown.get("weights", {}):
            used[expert] = used.get(expert, 0) + (expert in shown["ran"])

    record = drive_route(simulator, agent, task.name(seed), timing, watch)
    frames = len(timing.agent)
    # Of all drivers on one grid, however often they look.
    apart = max(1, round(BUDGET / simulator.frame_seconds))
    pushed = np.diff(np.array(speeds)[::apart]) / (apart * simulator.frame_seconds)
    jerk = np.diff(pushed) / (apart * simulator.frame_seconds)
    return DriveResult(
        driver.name, task.number, seed, record.to_json(0), frames,
        float(np.median(timing.agent)) if frames else math.nan, float(np.median(timing.world)) if frames else math.nan,
        timing.over(BUDGET), dict(agent.trouble), {key: count / max(frames, 1) for key, count in used.items()},
        float(np.sqrt(np.mean(jerk**2))) if len(jerk) else 0.0, digest,
    )  # fmt: skip


_TRAINED: dict[str, Any] = {}


def _trained(path: str) -> Any:
    from automoe.moe.checkpoint import load_driving_model

    if path not in _TRAINED:
        _TRAINED.clear()
        _TRAINED[path] = load_driving_model(path)
    return _TRAINED[path]


def drive_all(
    drivers: Sequence[DriverSpec],
    tasks: Sequence[RouteTask],
    seeds: Sequence[int],
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DriveResult]:
    """Every driver on every route with every seed; drives that `out` holds of the same driver, driven by this very
    code, are kept. Raises DriveError where a process that drives is ended from outside."""
    jobs = [
        (driver, driver.digest(), task, seed)
        for driver in drivers
        for task in sorted(tasks, key=lambda task: (task.town, task.number))
        for seed in seeds
    ]
    found: dict[Path, DriveResult] = {}
    waiting, outdated = [], 0
    for driver, digest, task, seed in jobs:
        path = _place(out, driver, task, seed)
        kept = _kept(path, digest)
        if kept is None:
            outdated += path.is_file()
            waiting.append((path, driver, digest, task, seed))
        else:
            found[path] = kept
    if outdated:
        print(f"{outdated} drives under {out} are of another checkpoint, router or version of the code: driven anew")
    progress(len(found), len(jobs))
    on_server = any(task.on_server for task in tasks)
    count = 1 if on_server else max(1, min(workers or available_cores(), len(waiting)))
    if count == 1:
        with one_torch_thread():  # as in a pool: sums depend on it
            for path, driver, digest, task, seed in waiting:
                found[path] = _drive_and_keep(path, driver, task, seed, digest)
                progress(len(found), len(jobs))
    else:
        with worker_processes(count, _begin_worker) as pool:
            futures = {
                pool.submit(_drive_and_keep, path, driver, task, seed, digest): path
                for path, driver, digest, task, seed in waiting
            }
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    progress(len(found), len(jobs))
            except BrokenProcessPool as error:
                raise DriveError(
                    f"a process that drove was ended from outside, by lack of memory perhaps, after {len(found)} of "
                    f"{len(jobs)} drives; give the same line again, with fewer --workers than {count} if need be."
                ) from error
    return [found[_place(out, driver, task, seed)] for driver, _, task, seed in jobs]


def _begin_worker() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _place(out: Path, driver: DriverSpec, task: RouteTask, seed: int) -> Path:
    return out / "drives" / driver.name / f"{task.stem(seed)}.json"


def _kept(path: Path, digest: str) -> DriveResult | None:
    try:
        said = json.loads(path.read_bytes())
        return DriveResult(**said) if said["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drive_and_keep(path: Path, driver: DriverSpec, task: RouteTask, seed: int, digest: str) -> DriveResult:
    result = drive_once(driver, task, seed, digest)
    # A world that failed may be well again: that drive is driven once more when the command is repeated.
    if result.scored.failure != SIMULATION_CRASHED:
        write_text(path, json.dumps(asdict(result)) + "\n")
    return result


# --- the table ---


def summarise_driver(results: Sequence[DriveResult], routes: int, seeds: Sequence[int]) -> dict[str, Any]:
    """A driver's scores over all its drives, with the spread over the seeds."""
    each = [
        summarise([result.scored for result in results if result.seed == seed], routes).driving_score for seed in seeds
    ]
    mean, half = t_interval(each)
    scores = summarise([result.scored for result in results], routes * len(seeds))
    frames = sum(result.frames for result in results)
    trouble: dict[str, int] = {}
    for result in results:
        for why, count in result.trouble.items():
            trouble[why] = trouble.get(why, 0) + count
    names = sorted({name for result in results for name in result.use})
    return {
        "driving_score": mean,
        "half_width": _finite(half),
        "per_seed": dict(zip(map(str, seeds), each)),
        "route_completion": scores.route_completion,
        "success_rate": scores.success_rate,
        "per_km": scores.per_km,
        "kilometres": scores.kilometres,
        "jerk": float(np.mean([result.jerk for result in results])),
        "frames": frames,
        "frame_ms": _milliseconds([result.frame_seconds for result in results]),
        "world_ms": _milliseconds([result.world_seconds for result in results]),
        "over_budget": sum(result.over_budget for result in results),
        "trouble": trouble,
        "broken_off": dict(Counter(one.scored.failure for one in results if one.scored.crashed)),
        "use": {name: float(np.mean([result.use.get(name, 0.0) for result in results])) for name in names},
    }


def behind(first: Sequence[DriveResult], other: Sequence[DriveResult]) -> dict[str, float | None]:
    """By how much a driver's driving score is below that of another, `first`, who drove the same routes with the same
    seeds, in the same traffic: the mean over these pairs and the half width of its 95 % interval."""
    own = {(one.route, one.seed): one.scored.driving_score for one in other}
    mean, half = t_interval([one.scored.driving_score - own[one.route, one.seed] for one in first])
    return {"mean": mean, "half_width": _finite(half)}


def _finite(value: float) -> float | None:
    """As JSON has it, which knows no infinity."""
    return value if math.isfinite(value) else None


def outside_percent(per_km: Mapping[str, float], kilometres: float) -> float:
    """The share of a way that lay outside its lanes, of what `leaderboard.summarise` says."""
    return 100 * per_km[OUTSIDE] / max(kilometres, 0.001)


def _milliseconds(seconds: Sequence[float]) -> float | None:
    """The median, of those drives that came to a frame; None where none did."""
    known = [one for one in seconds if math.isfinite(one)]
    return 1000 * float(np.median(known)) if known else None


def write_results(results: Sequence[DriveResult], drives: int, path: Path) -> None:
    """The leaderboard's results file of one driver."""
    records = [result.scored for result in results]
    write_text(path, json.dumps(results_file(records, drives), indent=1) + "\n")


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """All drivers' scores as text, one a line."""
    lines = [
        f"{'driver':<22} {'driving score':>15} {'completion':>10} {'success':>8} {'coll/km':>8} {'red/km':>7} "
        f"{'outside %':>9} {'jerk':>6} {'ms':>6}"
    ]
    for name, one in summaries.items():
        hits = sum(value for kind, value in one["per_km"].items() if kind.startswith("collisions"))
        outside = outside_percent(one["per_km"], one["kilometres"])
        half = "" if one["half_width"] is None else f" +- {one['half_width']:.1f}"
        lines.append(
            f"{name:<22} {one['driving_score']:>7.1f}{half:<8} {one['route_completion']:>10.1f} "
            f"{one['success_rate']:>8.2f} {hits:>8.2f} {one['per_km']['red_light']:>7.2f} {outside:>9.1f} "
            f"{one['jerk']:>6.2f} " + ("     -" if one["frame_ms"] is None else f"{one['frame_ms']:>6.1f}")
        )
    return "\n".join(lines)
