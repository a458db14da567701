"""When a car that stands should go although its plan says stand.

Who learns by watching learns that what stands stays standing (the inertia problem, Codevilla et al., 2019): nothing in
the picture changes, so nothing in the plan does. Agents on the CARLA leaderboards let a car creep that has stood for
long (TransFuser). Here what counts is doubt: the plan tells how sure it is, and it is very sure indeed behind a car
that stands. In time everything is in doubt where nothing is in the way: who remembers nothing has not stopped yet at a
stop sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from automoe.moe.propagation import LONGEST_WAIT

HELD_SHARE = 0.5
"""How likely a light that holds the car is yellow or red when it doesn't go whatever the doubt."""


@dataclass(frozen=True)
class PatienceConfig:
    """doubt: seconds, of the probability that the car should go at `brisk` (m/s) or faster, that add up before it goes:
    at 10 % it stands for ten times as long. longest: seconds after which they have added up however sure the plan is,
    if the way is known to be clear: clear_metres of the path, clear_beside metres to both sides. creep_seconds,
    creep_speed: for how long it goes then, and at what speed at most, m/s. moving: the speed, m/s, from which on it
    doesn't stand any more. light_seconds: after so many seconds of standing no light is believed to hold it."""

    doubt: float = 0.5
    brisk: float = 2.0
    longest: float = 20.0
    clear_metres: float = 8.0
    clear_beside: float = 1.4
    creep_seconds: float = 6.0
    creep_speed: float = 3.0
    moving: float = 1.0
    light_seconds: float = 60.0


class Patience:
    """Of one drive; told every moment, says at which of them the car creeps."""

    def __init__(self, config: PatienceConfig = PatienceConfig()) -> None:
        self.config = config
        self.doubt = 0.0
        self._until = self._time = self._moved = -float("inf")
        self._believes = True

    def creeps(self, time: float, speed: float, stands: bool, go: float, held: float, clear: bool | None) -> bool:
        """time: seconds of the drive. speed: m/s. stands: whether the plan is to stand; where it isn't, nothing is in
        doubt, and once it has made the car faster than one that creeps, the car is the plan's again. go: how likely the
        plan has it that the car should go at `brisk` or faster. held: how likely that a light that is yellow or red
        holds it. clear: whether nothing is in the way, None where that isn't known."""
        config, passed, self._time = self.config, time - self._time, time
        if not 0.0 <= passed <= LONGEST_WAIT:
            self.forget()
            passed, self._moved = 0.0, time
        self._moved = time if speed > config.moving else self._moved
        stood = time - self._moved
        # Who creeps because he believes no light any more believes none until he has crept.
        self._believes = stood < config.light_seconds and (self._believes or time >= self._until)
        if not stands and speed > config.creep_speed:
            self.forget()
        if (held > HELD_SHARE and self._believes) or clear is False:
            self.forget()
            return False
        if time < self._until:
            return True
        if not stands:
            return False
        rate = max(go, config.doubt / config.longest) if clear else go
        self.doubt = 0.0 if speed > config.moving else self.doubt + rate * passed
        if self.doubt < config.doubt:
            return False
        self.doubt, self._until = 0.0, time + config.creep_seconds
        return True

    def forget(self) -> None:
        """Nothing is in doubt."""
        self.doubt, self._until = 0.0, -float("inf")
