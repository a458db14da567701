"""An agent, a simulator and a referee: one route from its start to its end."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from automoe.data.sequences import Observation
from automoe.drive.leaderboard import AGENT_CRASHED, SIMULATION_CRASHED, RouteRecord
from automoe.drive.simulator import Agent, Simulator
from automoe.world.vehicle import Control


@dataclass
class Timing:
    """Seconds of every frame: of the agent, and of the world with its sensors."""

    agent: list[float] = field(default_factory=list)
    world: list[float] = field(default_factory=list)

    def over(self, budget: float) -> int:
        """Frames in which the agent took longer than a budget (seconds)."""
        return int((np.array(self.agent) > budget).sum())


Watch = Callable[[Observation, Control], bool | None]
"""Shown every observation with what was done about it; True breaks the drive off there."""


def drive_route(
    simulator: Simulator, agent: Agent, route_id: str, timing: Timing | None = None, watch: Watch | None = None
) -> RouteRecord:
    """Drive until the simulator ends it. An agent that raises ends it, too, and so does the world: the record says so
    and counts as nothing, the traceback goes to the standard error stream, and other routes are driven as before."""
    began, timing = time.perf_counter(), timing or Timing()
    failure: str | None = None
    reason: str | None = None
    try:
        while simulator.ended is None:
            failure = SIMULATION_CRASHED
            before = time.perf_counter()
            observation = simulator.observe()
            failure, seen = AGENT_CRASHED, time.perf_counter()
            control = agent.act(observation)
            failure, acted = SIMULATION_CRASHED, time.perf_counter()
            if watch is not None and watch(observation, control):
                failure = None
                break
            simulator.step(control)
            timing.agent.append(acted - seen)
            timing.world.append(seen - before + time.perf_counter() - acted)
            failure = None
    except Exception as error:  # noqa: BLE001 - whatever it is: one of many routes is lost, not all
        reason = f"{type(error).__name__}: {error}"
        print(f"{route_id}: {failure} in frame {len(timing.agent)}", file=sys.stderr)
        traceback.print_exc()
    return simulator.record(time.perf_counter() - began, failure, reason)
