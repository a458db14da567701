"""A car on a route in moving traffic: give a control, get the next moment. Nothing is rendered here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from automoe.world import vehicle
from automoe.world.contacts import Obstacles, contacts, in_the_way, touching
from automoe.world.motion import Traffic
from automoe.world.route import Route
from automoe.world.scene import Conditions, EgoState, Scene, StagedTown
from automoe.world.traffic import Density, sample_scene
from automoe.world.vehicle import CarState, Control

STEP = 0.05
"""Seconds from moment to moment: 20 a second, as in CARLA's synchronous mode."""


class Drive:
    """A drive along a route. Deterministic: the same town, route, seed and controls give the same drive.

    scene: the present moment; car: the ego; contacts: what it touches, and what it was kept from driving into; impact:
    the speed at which it came to that, m/s, or 0; station: metres of the route behind it, never falling.
    """

    def __init__(
        self,
        stage: StagedTown,
        route: Route,
        seed: int,
        conditions: Conditions | None = None,
        density: Density | None = None,
        obstacles: Obstacles | None = None,
    ) -> None:
        """obstacles: the town's, where the caller has them already."""
        self.route = route
        self.obstacles = obstacles or Obstacles(stage)
        self.scene = sample_scene(stage, np.random.default_rng([seed, 88]), conditions, density, ego=route.begin())
        self.traffic = Traffic(self.scene, seed)
        ego = self.scene.ego
        self.car = CarState(ego.x, ego.y, ego.yaw, ego.speed)
        self.contacts = contacts(self.scene, self.obstacles)
        self.impact, self.station = 0.0, 0.0

    def step(self, control: Control) -> Scene:
        """The moment after `STEP` seconds under a control.

        Who would get into something solid, or deeper into it, stands where he was, and can only turn his wheels. What
        has driven into him doesn't keep him from leaving, nor move him.
        """
        car = vehicle.step(self.car, control, STEP)
        scene = self.traffic.step(STEP, self._ego(car))
        touched = touching(scene, self.obstacles)
        blocking = in_the_way(touched, self.scene.ego, scene.ego)
        self.impact = car.speed if blocking else 0.0
        if blocking:
            car = replace(self.car, speed=0.0, acceleration=0.0, wheel=car.wheel)
            scene = self.traffic.place_ego(self._ego(car))
            here = contacts(scene, self.obstacles)
            self.contacts = (*here, *(contact for contact in blocking if contact not in here))
        else:
            self.contacts = tuple(contact for contact, _ in touched)
        self.car, self.scene = car, scene
        self._progress()
        return scene

    def _ego(self, car: CarState) -> EgoState:
        return replace(self.scene.ego, x=car.x, y=car.y, yaw=car.yaw, speed=car.speed)

    def _progress(self) -> None:
        self.station = self.route.advance(np.array(self.car.middle), self.station)
