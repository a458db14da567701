"""A trained model at the wheel, and the baselines that it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from automoe.data.sequences import LIGHTS, Observation
from automoe.drive.controllers import Controller
from automoe.drive.patience import Patience
from automoe.moe.checkpoint import TrainedDriver
from automoe.moe.planner import Plan
from automoe.moe.propagation import Propagation
from automoe.moe.routers import Router
from automoe.world.vehicle import Control

STOP_SHARE = 0.5
"""Probability of the class "stand" from which on the target speed is 0: the mean of stop and go would creep."""

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
        self._path: np.ndarray | None = None
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
        path = self._path = plan.path[0].numpy().astype(np.float64)
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
        creeps = self.patience.creeps(observation.time, observation.speed, go, float(lights[HELD].sum()), clear)
        if stand <= STOP_SHARE:
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
        return self.controller.stop(self._path, observation.speed)


class ConstantVelocity:
    """Goes straight on at one speed (m/s), as if nothing were ahead."""

    def __init__(self, speed: float, controller: Controller | None = None) -> None:
        self.speed, self.controller, self.trouble = speed, controller or Controller(), {}

    def act(self, observation: Observation) -> Control:
        straight = np.stack([np.arange(1.0, 21.0), np.zeros(20)], axis=1)
        return self.controller.control(straight, self.speed, observation.speed)

    def shown(self) -> dict[str, Any]:
        return {}
