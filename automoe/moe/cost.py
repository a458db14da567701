"""What a frame costs: a driving model from a raw picture to a plan, one moment at a time, as it is in use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from automoe.data.sequences import Observation, batch_observations
from automoe.engine.loader import to_device
from automoe.moe.model import DrivingModel
from automoe.moe.routers import Router


@dataclass(frozen=True)
class FrameCost:
    """milliseconds: median of the whole frame. gflops: mean of torch's own count, two for a multiplication and
    addition."""

    milliseconds: float
    gflops: float


def frame_costs(
    model: DrivingModel, moments: Sequence[Observation], routers: Mapping[str, Router]
) -> dict[str, FrameCost]:
    """The cost of each router's frames over the same moments. All are timed in turn, moment after moment: what slows
    the machine down slows all of them."""
    with torch.no_grad():
        for router in routers.values():
            _plan(model, moments[0], router)  # the first time is nobody's measure
        seconds = np.array([[_seconds(model, seen, router) for router in routers.values()] for seen in moments])
        flops = np.array([[_flops(model, seen, router) for router in routers.values()] for seen in moments])
    medians, means = 1000 * np.median(seconds, axis=0), flops.mean(axis=0) / 1e9
    return {name: FrameCost(float(medians[at]), float(means[at])) for at, name in enumerate(routers)}


def _plan(model: DrivingModel, seen: Observation, router: Router) -> None:
    """Plan, and wait until it is there."""
    plan, _ = model(to_device(batch_observations([seen], model.config.context.size), model.device), None, router)
    plan.path.cpu()


def _seconds(model: DrivingModel, seen: Observation, router: Router) -> float:
    began = time.perf_counter()
    _plan(model, seen, router)
    return time.perf_counter() - began


def _flops(model: DrivingModel, seen: Observation, router: Router) -> int:
    with FlopCounterMode(display=False) as counter:
        _plan(model, seen, router)
    return counter.get_total_flops()
