"""A trained model at the wheel, and the baselines that it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automoe.data.sequences import LIGHTS, Observation
from automoe.drive.controllers import Controller
from automoe.drive.patience import Patience
from automoe.moe.checkpoint import TrainedDriver
from automoe.moe.ground import STILL, Motion, moved, seen_after
from automoe.moe.planner import Plan
from automoe.moe.propagation import Propagation
from automoe.moe.routers import Router
from automoe.world.vehicle import Control

STOP_SHARE = 0.5
"""Probability of the class "stand" above which the plan is to stand: the mean of stop and go would be too slow for the
one, and too fast for the other."""

HELD = [LIGHTS.index(color) for color in ("yellow", "red")]
"""Where a plan tells how likely a light holds the car."""


class ModelAgent:
    """Drives by a checkpoint's plans. A dead camera, a dead speedometer or a plan that isn't finite brings the car to a
    controlled stop, and is counted in `trouble`; when the sensor is back it drives on.

    router, hold_seconds: who decides which experts look, and how long they are heard on, see `moe.propagation`.
    """

    def __init__(
        self,
        driver: TrainedDriver,
        controller: Controller | None = None,
        router: Router | None = None,
        hold_seconds: float | None = None,
    ) -> None:
        self.driver, self.model = driver, driver.model
        self.controller = controller or Controller()
        self.trouble: dict[str, int] = {}
        self.looks = self.model.config.looks
        self.propagation = Propagation(self.model, router, hold_seconds)
        self.patience = Patience()
        self._last: _Last | None = None
        self._shown: dict[str, Any] = {}

    @torch.no_grad()
    def act(self, observation: Observation) -> Control:
        if observation.image.size == 0 and self.looks:
            return self._stop("dead camera", observation)
        if not np.isfinite(observation.speed):
            return self._stop("dead speedometer", observation)
        plan, routing = self.propagation.plan(observation)
        plan = Plan(*(one.cpu() for one in plan))
        if not all(bool(torch.isfinite(one).all()) for one in (plan.path, plan.waypoints, plan.speed)):
            return self._stop("plan not finite", observation)
        path = plan.path[0].numpy().astype(np.float64)
        speed, yaw_rate = (float(one) for one in observation.motion[-1])
        self._last = _Last(path, observation.time, speed, yaw_rate)
        target = self.target_speed(plan, observation)
        self._shown = {"path": path, "target_speed": target, "waypoints": plan.waypoints[0].numpy()}
        if routing is not None:
            self._shown["ran"] = self.propagation.ran
            self._shown["weights"] = dict(zip(self.model.names, routing.weights[0].tolist()))
            self._shown["probabilities"] = dict(zip(self.model.names, routing.probabilities[0].tolist()))
        return self.controller.control(path, target, observation.speed)

    def target_speed(self, plan: Plan, observation: Observation) -> float:
        """m/s: the mean of the classes, 0 where standing is more likely than not; where the car's patience is over, the
        mean of those that go."""
        shares, lights = plan.speed_logits[0].softmax(dim=-1), plan.light_logits[0].softmax(dim=-1)
        stand, mean, config = float(shares[0]), float(plan.speed[0]), self.patience.config
        go = float(shares[self.model.planner.speeds.cpu() >= config.brisk].sum())
        clear = self._is_clear(plan.path[0])
        stands, held = stand > STOP_SHARE, float(lights[HELD].sum())
        creeps = self.patience.creeps(observation.time, observation.speed, stands, go, held, clear)
        if not stands:
            return mean
        going = mean / max(1.0 - stand, 1e-3)
        return min(max(going, config.brisk) if clear else going, config.creep_speed) if creeps else 0.0

    def _is_clear(self, path: Tensor) -> bool | None:
        """Whether nothing that is seen is in the way of a car that creeps; None where nobody tells."""
        config, things = self.patience.config, self.propagation.in_the_way(path.to(self.model.device))
        if things is None:
            return None
        near = (things[:, 0] > 0.0) & (things[:, 0] < config.clear_metres) & (things[:, 1].abs() < config.clear_beside)
        return not bool(near.any())

    def shown(self) -> dict[str, Any]:
        return self._shown

    def _stop(self, why: str, observation: Observation) -> Control:
        self.trouble[why] = self.trouble.get(why, 0) + 1
        self.propagation.forget()
        self.patience.forget()
        self._shown = {"stopping": why}
        path = None if self._last is None else self._last.go_on(observation, self.controller.config.comfortable)
        return self.controller.stop(path, observation.speed)


@dataclass
class _Last:
    """The last plan's path [M, 2], metres, and how the car has moved since: time, seconds; speed, m/s, and yaw_rate,
    radians a second, as they were known last."""

    path: np.ndarray
    time: float
    speed: float
    yaw_rate: float
    motion: Motion = STILL

    def go_on(self, observation: Observation, braking: float) -> np.ndarray:
        """The path as it lies before the car now. While nobody tells its motion, it brakes so many m/s^2 and turns as
        before."""
        passed, self.time = max(observation.time - self.time, 0.0), observation.time
        speed, yaw_rate = (float(one) for one in observation.motion[-1])
        self.speed = speed if math.isfinite(speed) else max(self.speed - braking * passed, 0.0)
        self.yaw_rate = yaw_rate if math.isfinite(yaw_rate) else self.yaw_rate
        turned = self.yaw_rate * passed if self.speed > 0.0 else 0.0
        self.motion = moved(self.motion, self.speed * passed, turned)
        return seen_after(self.path, self.motion)


class ConstantVelocity:
    """Goes straight on at one speed (m/s), as if nothing were ahead."""

    def __init__(self, speed: float, controller: Controller | None = None) -> None:
        self.speed, self.controller, self.trouble = speed, controller or Controller(), {}

    def act(self, observation: Observation) -> Control:
        straight = np.stack([np.arange(1.0, 21.0), np.zeros(20)], axis=1)
        return self.controller.control(straight, self.speed, observation.speed)

    def shown(self) -> dict[str, Any]:
        return {}
