"""Procedural assets of the embedded world: each mesh and texture is made from a random generator, none is loaded.

Frame of every asset: x forward, y left, z up, metres, origin on the ground. Equal generators give equal assets.
"""

from automoe.world.meshes.buildings import make_building
from automoe.world.meshes.people import make_person
from automoe.world.meshes.rail import make_train
from automoe.world.meshes.roadworks import make_barrier, make_construction_vehicle, make_trailer
from automoe.world.meshes.signs import SIGN_KINDS, make_signal_head, make_traffic_sign
from automoe.world.meshes.street import (
    make_bench,
    make_bin,
    make_bollard,
    make_bus_stop,
    make_fence,
    make_hydrant,
    make_pole,
    make_signal_mast,
    make_street_lamp,
    make_traffic_cone,
    make_wall,
)
from automoe.world.meshes.textures import TEXTURES
from automoe.world.meshes.two_wheelers import make_two_wheeler
from automoe.world.meshes.vegetation import make_bush, make_hedge, make_tree
from automoe.world.meshes.vehicles import make_vehicle

__all__ = [
    "SIGN_KINDS",
    "TEXTURES",
    "make_barrier",
    "make_bench",
    "make_bin",
    "make_bollard",
    "make_building",
    "make_bus_stop",
    "make_bush",
    "make_construction_vehicle",
    "make_fence",
    "make_hedge",
    "make_hydrant",
    "make_person",
    "make_pole",
    "make_signal_head",
    "make_signal_mast",
    "make_street_lamp",
    "make_traffic_cone",
    "make_traffic_sign",
    "make_trailer",
    "make_train",
    "make_tree",
    "make_two_wheeler",
    "make_vehicle",
    "make_wall",
]
