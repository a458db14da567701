"""What the ego touches: other road users by their boxes, and what stands still by its outline at bumper height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from automoe.world.parts import Asset
from automoe.world.scene import Actor, EgoState, Scene, StagedTown
from automoe.world.vehicle import AHEAD, LENGTH, WIDTH

LOW, HIGH = 0.3, 1.5
"""Metres above the road between which a car touches things: kerbstones below and signs above are passed."""

NEAR = 15.0
"""Metres from the ego's middle within which others can touch it: half a tram and half a car."""

DEEPER = 1e-9
"""Square metres by which an overlap has to grow to be more than rounding."""

MOVABLE = ("traffic_cone",)
"""Categories of things that stand still and stop no car."""


@dataclass(frozen=True)
class Contact:
    """Something that the ego touches. kind: `vehicle`, `pedestrian` or `static`; id: an actor's, or one less than minus
    the number of a placement; what: the category of a road user, the asset of what stands still."""

    kind: str
    id: int
    what: str

    @property
    def solid(self) -> bool:
        """Whether it stops a car."""
        return self.kind != "pedestrian" and self.what not in MOVABLE


class Obstacles:
    """What stands still in a town, found by place."""

    def __init__(self, stage: StagedTown) -> None:
        outlines: dict[tuple[str, float], shapely.Polygon | None] = {}
        self.names, self.numbers = [], []
        shapes: list[shapely.Polygon] = []
        for number, placement in enumerate(stage.placements):
            key = (placement.asset, placement.z)
            if key not in outlines:
                outlines[key] = outline(stage.assets[placement.asset], placement.z)
            shape = outlines[key]
            if shape is not None:
                cos, sin = np.cos(placement.yaw), np.sin(placement.yaw)
                turned = shapely.get_coordinates(shape) @ np.array([[cos, sin], [-sin, cos]])
                shapes.append(shapely.Polygon(turned + np.array([placement.x, placement.y])))
                self.names.append(stage.assets[placement.asset].category or placement.asset)
                self.numbers.append(number)
        self.shapes, self.tree = shapes, shapely.STRtree(shapes)

    def touching(self, body: shapely.Polygon) -> list[tuple[Contact, shapely.Polygon]]:
        """What a body on the ground touches, with its outline."""
        found = sorted(self.tree.query(body, "intersects").tolist())
        return [(Contact("static", -1 - self.numbers[index], self.names[index]), self.shapes[index]) for index in found]

    def touched(self, body: shapely.Polygon) -> list[Contact]:
        """What a body on the ground touches."""
        return [contact for contact, _ in self.touching(body)]


def outline(asset: Asset, z: float = 0.0) -> shapely.Polygon | None:
    """The hull, from above, of what a car would touch of an asset that stands at z; None for what is too low or too
    high."""
    points = [np.zeros((0, 2))]
    for part in asset.parts:
        corners = part.vertices[part.faces]
        height = corners[..., 2] + z
        hit = (height.max(axis=1) > LOW) & (height.min(axis=1) < HIGH)
        points.append(corners[hit][..., :2].reshape(-1, 2))
    hull = shapely.MultiPoint(np.concatenate(points)).convex_hull
    return hull if isinstance(hull, shapely.Polygon) and not hull.is_empty else None


def ego_body(ego: EgoState) -> shapely.Polygon:
    """The ego's outline on the ground."""
    return rectangle(ego.x + AHEAD * np.cos(ego.yaw), ego.y + AHEAD * np.sin(ego.yaw), ego.yaw, LENGTH, WIDTH)


def rectangle(x: float, y: float, yaw: float, length: float, width: float) -> shapely.Polygon:
    """A box from above: its middle, heading, length and width."""
    forward = np.array([np.cos(yaw), np.sin(yaw)]) * length / 2
    left = np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2
    corners = np.array([forward + left, left - forward, -forward - left, forward - left])
    return shapely.Polygon(corners + np.array([x, y]))


def contacts(scene: Scene, obstacles: Obstacles) -> tuple[Contact, ...]:
    """Everything that the ego touches at a moment. A rider is part of his two-wheeler."""
    return tuple(contact for contact, _ in touching(scene, obstacles))


def touching(scene: Scene, obstacles: Obstacles) -> list[tuple[Contact, shapely.Polygon]]:
    """Everything that the ego touches at a moment, with its outline on the ground."""
    body = ego_body(scene.ego)
    x, y = body.centroid.x, body.centroid.y
    found = obstacles.touching(body)
    for actor in scene.actors:
        near = abs(actor.x - x) < NEAR and abs(actor.y - y) < NEAR
        if near and actor.mount is None and body.intersects(shape := _outline_of(actor)):
            found.append((Contact(_kind(actor), actor.id, actor.category), shape))
    return found


def in_the_way(
    touched: list[tuple[Contact, shapely.Polygon]], before: EgoState, after: EgoState
) -> tuple[Contact, ...]:
    """Which solid things of those that the ego touches it would get deeper into, or begin to touch, by going from one
    place to another. What has driven into it is not in the way of leaving."""
    solid = [(contact, shape) for contact, shape in touched if contact.solid]
    if not solid:
        return ()
    here, there = ego_body(before), ego_body(after)
    return tuple(
        contact for contact, shape in solid
        if shape.intersection(there).area > shape.intersection(here).area + DEEPER
    )  # fmt: skip


def _outline_of(actor: Actor) -> shapely.Polygon:
    return rectangle(actor.x, actor.y, actor.yaw, actor.size[0], actor.size[1])


def _kind(actor: Actor) -> str:
    return "pedestrian" if actor.category == "pedestrian" else "vehicle"
