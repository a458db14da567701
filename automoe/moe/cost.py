"""What a frame costs: a driving model from a raw picture to a plan, one moment at a time, as it is in use: heard are
those who look, and those who have looked a moment ago."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from automoe.data.sequences import Observation
from automoe.moe.model import DrivingModel
from automoe.moe.propagation import Propagation
from automoe.moe.routers import Router

FRAME = 0.1
"""Seconds between two frames of a drive."""


@dataclass(frozen=True)
class FrameCost:
    """milliseconds: median of the whole frame. gflops: mean of torch's own count, two for a multiplication and
    addition."""

    milliseconds: float
    gflops: float


def frame_costs(
    model: DrivingModel, moments: Sequence[Observation], routers: Mapping[str, Router]
) -> dict[str, FrameCost]:
    """The cost of each router's frames over the same moments, taken as if one followed the other in `FRAME` seconds.
    All are timed in turn, moment after moment: what slows the machine down slows all of them."""
    moments = [replace(seen, time=FRAME * number) for number, seen in enumerate(moments)]
    drivers = [Propagation(model, router) for router in routers.values()]
    with torch.no_grad():
        for driver in drivers:
            driver.plan(moments[0])  # the first time is nobody's measure
        seconds = np.array([[_seconds(driver, seen) for driver in drivers] for seen in moments])
        flops = np.array([[_flops(driver, seen) for driver in drivers] for seen in moments])
    medians, means = 1000 * np.median(seconds, axis=0), flops.mean(axis=0) / 1e9
    return {name: FrameCost(float(medians[at]), float(means[at])) for at, name in enumerate(routers)}


def _seconds(driver: Propagation, seen: Observation) -> float:
    began = time.perf_counter()
    plan, _ = driver.plan(seen)
    plan.path.cpu()  # wait until it is there
    return time.perf_counter() - began


def _flops(driver: Propagation, seen: Observation) -> int:
    with FlopCounterMode(display=False) as counter:
        driver.plan(seen)
    return counter.get_total_flops()
