"""What a gate does and what it is worth, open loop: who is used when, and the planning error under other routers.

All arms share one planner, the checkpoint's: none was trained anew for an arm. The fixed pair is chosen on the training
set.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automoe.data.carla_prepared import TASK
from automoe.data.prepared import PreparedInfo
from automoe.data.sequences import LIGHTS, CarlaSequences, ObservationBatch, collate
from automoe.engine.distributed import Distributed
from automoe.engine.loader import evaluation_loader, to_device
from automoe.errors import CheckpointError, ConfigError
from automoe.files import write_text
from automoe.metrics.planning import METRIC, PlanningScores
from automoe.moe.cache import Remembered, TokenCache
from automoe.moe.checkpoint import TrainedDriver
from automoe.moe.cost import frame_costs
from automoe.moe.model import DrivingModel
from automoe.moe.planner import Plan, planning_losses
from automoe.moe.routers import Router, drawn, fixed, learned, uniform
from automoe.stages.memory import Memory, remember
from automoe.stages.planning import PlanningEvaluation, comparable, planning_words
from automoe.stages.train_expert import prepare_splits
from automoe.taxonomy import CARLA_COMMANDS

SPEED_BINS = (0.5, 3.0, 6.0)
"""m/s that part standing, slow, usual and fast."""

UNTOLD = ", weather not told"
"""What the name of an arm ends with in which rain and darkness are kept from the gate and the planner."""

TIMED = 24
"""Moments of the validation set, evenly spread, on which a frame's cost is measured."""

COLLAPSED = 0.95
"""Of all choices: a gate that gives one set of experts more than that has learnt nothing of the moment."""


def arms_of(model: DrivingModel) -> dict[str, Router]:
    """The routers that a gate is compared with, by name: its own choice with other k, nobody at all, every expert
    alone, every pair, all without a gate, and chance."""
    names, own = model.names, model.config.gate.top_k
    arms: dict[str, Router] = {f"learned top-{k}": learned(k) for k in sorted({1, own, len(names)})}
    arms["nobody"] = fixed([], names)  # what the planner knows without experts: they must lower the error from there
    arms |= {name: fixed([name], names) for name in names}
    arms |= {f"{a}+{b}": fixed([a, b], names) for a, b in itertools.combinations(names, 2)}
    return {**arms, "uniform": uniform(), f"random {own}": drawn(own, 0)}


CONSTANT = "constant velocity"
"""The baseline beside all open-loop numbers: straight on at the present speed. It has errors and no planning loss."""


def constant_velocity(observation: ObservationBatch, model: DrivingModel) -> Plan:
    """A plan of a car that goes on as it does, straight ahead at its present speed."""
    sequence, speed = model.config.sequence, observation.motion[:, -1, 0].nan_to_num(0.0)
    times = speed.new_tensor(sequence.waypoint_seconds)
    metres = torch.arange(1.0, sequence.path_metres + 1.0, device=speed.device).expand(len(speed), -1)
    classes = len(model.config.planner.speeds)

    def ahead(distance: Tensor) -> Tensor:
        return torch.stack([distance, torch.zeros_like(distance)], dim=-1)

    nothing = speed.new_zeros(len(speed), classes)
    return Plan(ahead(metres), ahead(speed[:, None] * times), nothing, speed, speed.new_zeros(len(speed), len(LIGHTS)))


class ArmScores:
    """Per arm: errors, and the planning loss of every sample, [N]."""

    def __init__(self, model: DrivingModel, times: Sequence[float]) -> None:
        self.arms = arms_of(model)
        own = f"learned top-{model.config.gate.top_k}"
        if model.config.context.ambient:
            self.arms[own + UNTOLD] = self.arms[own]
        self.own = own
        self.scores = {name: PlanningScores(times) for name in (*self.arms, CONSTANT)}
        self.losses: dict[str, list[float]] = {name: [] for name in self.arms}
        self.choices: list[list[bool]] = []
        self.probabilities: list[list[float]] = []

    @torch.no_grad()
    def add(self, model: DrivingModel, memory: Memory, batch: Mapping[str, Any]) -> None:
        """A batch under every arm."""
        observation = batch["observation"]
        self.scores[CONSTANT].add(constant_velocity(observation, model), batch["targets"], None)
        assert memory.experts is not None
        source = Remembered(memory.experts, observation.pictures)
        untold = observation._replace(ambient=torch.full_like(observation.ambient, float("nan")))
        told = memory.context(model, batch), memory.context(model, {**batch, "observation": untold})
        for name, router in self.arms.items():
            plan, routing = model.decide(told[name.endswith(UNTOLD)], observation.pictures, source, router)
            self.scores[name].add(plan, batch["targets"], None)
            self.losses[name] += _losses(model, plan, batch)
            if name == self.own and routing is not None:
                self.choices += routing.chosen.tolist()
                self.probabilities += routing.probabilities.tolist()


def _losses(model: DrivingModel, plan: Plan, batch: Mapping[str, Any]) -> list[float]:
    loss: Tensor = planning_losses(plan, batch["targets"], model.planner)["loss"]
    return loss.tolist()


def score_arms(
    model: DrivingModel, memory: Memory, dataset: CarlaSequences, dist: Distributed, batch_size: int = 32
) -> ArmScores:
    """Every arm over a data set."""
    size = model.config.context.size
    loader = evaluation_loader(dataset, partial(collate, size=size), batch_size, dist, num_workers=0)
    scores = ArmScores(model, dataset.config.waypoint_seconds)
    model.eval()
    for batch in loader:
        scores.add(model, memory, to_device(batch, dist.device))
    return scores


def usage(dataset: CarlaSequences, choices: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Share of moments in which each expert runs, by weather, time of day, command and speed."""
    rows = dataset.rows
    words = dataset.times.words
    speed = dataset.times.columns["speed"][rows]
    bins = ["standing", "slow", "usual", "fast"]
    groups = {
        "weather": words["weather"][rows],
        "time of day": words["timeofday"][rows],
        "command": np.array([(*CARLA_COMMANDS, "unknown")[int(c)] for c in dataset.times.columns["command"][rows]]),
        "speed": np.array([bins[int(place)] for place in np.digitize(speed, SPEED_BINS)]),
        "light": np.array([word or "none" for word in words["light"][rows].tolist()]),
    }
    found: dict[str, dict[str, Any]] = {}
    for group, values in groups.items():
        for value in sorted(set(values.tolist())):
            mine = values == value
            shares = dict(zip(names, choices[mine].mean(axis=0).round(4).tolist()))
            found[f"{group}/{value}"] = {"moments": int(mine.sum()), **shares}
    return found


def named_files(said: Sequence[str]) -> dict[str, Path]:
    """What a person says of drivers beside a gate, NAME=best.pth each. Raises ConfigError for anything else."""
    found: dict[str, Path] = {}
    for word in said:
        name, named, path = word.partition("=")
        if not (name and named and path) or name in found:
            raise ConfigError(f"--beside takes NAME=best.pth, each name once, not {word!r}.")
        found[name] = Path(path)
    return found


def report_gate(
    driver: TrainedDriver,
    root: Path,
    out: Path,
    dist: Distributed,
    *,
    beside: Mapping[str, TrainedDriver] | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Score a gating checkpoint's arms on the validation set and choose the fixed pair on the training set; write
    `out` (JSON) and return its content. beside: other drivers by name, of whom the errors alone are told. Raises
    CheckpointError for a checkpoint without a gate, and for a driver beside it who plans something else."""
    model = driver.model
    if not model.names:
        raise CheckpointError(f"{driver.path} is of a policy without experts: it has no gate to look into.")
    for name in beside or {}:
        if name in arms_of(model) or name == CONSTANT:
            raise ConfigError(f"a driver beside the gate can't be named {name!r}: that is who is heard in another row.")
    for one in (beside or {}).values():
        if one.model.config.sequence != model.config.sequence:
            raise CheckpointError(
                f"{one.path} plans other paths or waypoints than the gate's checkpoint: nothing to compare."
            )
    train_info, val_info = prepare_splits(root, TASK, None, dist)
    assert model.config.camera is not None
    for camera in (model.config.camera, *(one.model.config.camera for one in (beside or {}).values())):
        for info in (train_info, val_info):
            if camera is not None:
                camera.must_see(info.rig, str(info.path))
    config = model.config.sequence
    recall = 1 if model.context.stem_is_frozen else None
    train, val = (
        comparable(partial(CarlaSequences, info.path, config, remembered=recall, limit=limit), dist)
        for info in (train_info, val_info)
    )
    tokens = TokenCache(cache or root / "tokens")
    memory = remember(tokens, model, dict(model.experts.items()), [train, val], dist)  # type: ignore[arg-type]
    seen, known = score_arms(model, memory, val, dist), score_arms(model, memory, train, dist)
    others = {name: _errors_of(one, val_info, tokens, dist, limit) for name, one in (beside or {}).items()}
    timed = CarlaSequences(val_info.path, config, limit=TIMED)
    pairs = [name for name in seen.arms if "+" in name]
    singles = list(model.names)
    mean = {name: float(np.mean(losses)) for name, losses in known.losses.items()}
    best_pair = min(pairs, key=lambda name: mean[name], default=None)
    best_single = min(singles, key=lambda name: mean[name])
    errors = {name: scores.compute() for name, scores in seen.scores.items()}
    oracle = np.min([seen.losses[name] for name in pairs or singles], axis=0)
    probabilities = np.array(seen.probabilities)
    entropy = float(-(probabilities * np.log(probabilities.clip(1e-9))).sum(axis=1).mean())
    choices = np.array(seen.choices)
    _, counts = np.unique(choices, axis=0, return_counts=True)
    said = {
        "checkpoint": str(driver.path),
        "experts": list(model.names),
        "top_k": model.config.gate.top_k,
        "weather in the context": model.config.context.ambient,
        "planner": _trained_for(driver),
        "routes": val.route_kinds,
        "errors": {**errors, **others},
        "beside": {name: str(one.path) for name, one in (beside or {}).items()},
        "cost": _costs(model, timed, {name: seen.arms[name] for name in seen.arms if not name.endswith(UNTOLD)}),
        "threads": torch.get_num_threads(),
        "loss": {name: float(np.mean(losses)) for name, losses in seen.losses.items()},
        "oracle pair loss": float(oracle.mean()),
        "best single": best_single,
        "best fixed pair": best_pair,
        "use": dict(zip(model.names, choices.mean(axis=0).round(4).tolist())),
        "usage": usage(val, choices, model.names),
        "entropy": entropy,
        "largest share of one set": float(counts.max() / counts.sum()),
        "collapsed": bool(counts.max() / counts.sum() > COLLAPSED),
    }
    write_text(out, json.dumps(said, indent=1) + "\n")
    return said


@torch.no_grad()
def _errors_of(
    driver: TrainedDriver, info: PreparedInfo, tokens: TokenCache, dist: Distributed, limit: int | None
) -> dict[str, float | None]:
    """The errors of another driver on a validation set."""
    model = driver.model
    recall = 1 if model.context.stem_is_frozen else None
    data = comparable(partial(CarlaSequences, info.path, model.config.sequence, remembered=recall, limit=limit), dist)
    memory = remember(tokens, model, dict(model.experts.items()), [data], dist)  # type: ignore[arg-type]
    return PlanningEvaluation(data, model.config.context.size, memory, 32, 0)(model, dist)


def _trained_for(driver: TrainedDriver) -> str:
    """Whose choices the planner that all arms share was trained on."""
    gate = driver.model.config.gate
    beside = f", at {100 * gate.hold_share:.0f} % of the moments with each other expert" if gate.hold_share else ""
    drawn_too = f", and at {100 * gate.explore:.0f} % on random sets of experts instead" if gate.explore else ""
    return f"one for all arms, trained on the gate's choice{beside}{drawn_too}; none trained anew"


def _costs(model: DrivingModel, dataset: CarlaSequences, routers: Mapping[str, Router]) -> dict[str, dict[str, float]]:
    """What a frame costs with each router, on raw pictures."""
    moments = [dataset[index]["observation"] for index in range(len(dataset))]
    return {name: asdict(cost) for name, cost in frame_costs(model, moments, routers).items()}


def arm_table(said: Mapping[str, Any]) -> str:
    """The arms as text, the best planning error first."""
    lines = []
    for name in best_first(said["errors"]):
        errors = said["errors"][name]
        mark = {said["best single"]: " (best single)", said["best fixed pair"]: " (best fixed pair)"}.get(name, "")
        loss = f"loss {said['loss'][name]:.3f}" if name in said["loss"] else f"{'-':>10}"
        cost = said["cost"].get(name)
        words = f"{cost['milliseconds']:5.0f} ms, {cost['gflops']:5.2f} GFLOPs" if cost else " " * 22
        lines.append(f"{name + mark:<48} {loss}  {words}  {planning_words(errors)}")
    lines.append(f"{'oracle pair':<48} loss {said['oracle pair loss']:.3f}")
    return "\n".join(lines)


def best_first(errors: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The arms with the smallest planning errors first; those that have none last."""

    def place(arm: str) -> float:
        error = errors[arm].get(METRIC)
        return math.inf if error is None else error

    return sorted(errors, key=place)


def usage_table(said: Mapping[str, Any]) -> str:
    """Who runs when, as text, and what there is to say of the gate as a whole."""
    names = said["experts"]
    width = max(map(len, said["usage"]))
    lines = [f"{'share of moments':<{width}} {'moments':>8} " + " ".join(f"{name:>14}" for name in names)]
    for group, shares in said["usage"].items():
        lines.append(f"{group:<{width}} {shares['moments']:>8} " + " ".join(f"{shares[name]:>14.2f}" for name in names))
    words = "one set has nearly everything: the gate has collapsed" if said["collapsed"] else "the choice varies"
    lines.append(
        f"entropy {said['entropy']:.2f} nats; the commonest set {said['largest share of one set']:.2f}; {words}"
    )
    return "\n".join(lines)
