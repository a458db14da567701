"""When a car that stands should go although its plan says stand.

Who learns by watching learns that what stands stays standing (the inertia problem, Codevilla et al., 2019): nothing in
the picture changes, so nothing in the plan does. Agents on the CARLA leaderboards let a car creep that has stood for
long (TransFuser). Here what counts is not time but doubt: the plan tells how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass

HELD_SHARE = 0.5
"""How likely a light that holds the car is yellow or red when it doesn't go whatever the doubt."""


@dataclass(frozen=True)
class PatienceConfig:
    """doubt: seconds, of the probability that the car should go at `brisk` (m/s) or faster, that add up before it goes:
    at 10 % it stands for ten times as long. creep_seconds, creep_speed: for how long it goes then, and at what speed
    at most, m/s. moving: the speed, m/s, from which on it doesn't stand any more."""

    doubt: float = 0.5
    brisk: float = 2.0
    creep_seconds: float = 3.0
    creep_speed: float = 3.0
    moving: float = 1.0


class Patience:
    """Of one drive; told every moment, says at which of them the car creeps."""

    def __init__(self, config: PatienceConfig = PatienceConfig()) -> None:
        self.config = config
        self.doubt = 0.0
        self._until = self._time = -float("inf")

    def creeps(self, time: float, speed: float, go: float, held: float) -> bool:
        """time: seconds of the drive. speed: m/s. go: how likely the plan has it that the car should go at `brisk` or
        faster. held: how likely that a light that is yellow or red holds it."""
        config, passed, self._time = self.config, time - self._time, time
        if not 0.0 <= passed <= 1.0:
            self.forget()
            passed = 0.0
        if held > HELD_SHARE:
            self._until = -float("inf")
            return False
        if time < self._until:
            return True
        self.doubt = 0.0 if speed > config.moving else self.doubt + go * passed
        if self.doubt < config.doubt:
            return False
        self.doubt, self._until = 0.0, time + config.creep_seconds
        return True

    def forget(self) -> None:
        """Nothing is in doubt."""
        self.doubt, self._until = 0.0, -float("inf")
