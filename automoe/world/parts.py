"""What everything visible in the world is made of: parts (a mesh with one material and one class), grouped into assets.

Pure data; building them is the business of `meshes/`, putting them into MuJoCo that of the renderer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Material:
    """How a surface looks. Equal materials are merged by name, so a name stands for one look."""

    name: str
    rgba: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 1.0)
    texture: str | None = None
    """Name of a procedural texture in `meshes.textures`, or None for the plain colour."""
    specular: float = 0.2
    shininess: float = 0.2
    emission: float = 0.0
    """0 for ordinary surfaces; lamps, lit windows and signal lenses glow with up to 1."""


@dataclass(frozen=True)
class Part:
    """A triangle mesh of one material and one semantic class.

    vertices: float32 [V, 3], metres, in the asset's frame (x forward, y left, z up, origin on the ground under
    the middle of the asset). faces: int32 [F, 3], counter-clockwise seen from outside.
    uv: float32 [V, 2] or None. label: a name in `taxonomy.SEMANTIC`.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: Material
    label: str
    uv: np.ndarray | None = None


@dataclass(frozen=True)
class Asset:
    """A thing that can be placed: a car, a tree, a signal head.

    category: its detection class (BDD100K, nuScenes), or None for things that get no box. size: length, width, height
    in metres of the 3D box, centred over the origin. rider: the person on a two-wheeler, an instance of its own.
    """

    name: str
    parts: tuple[Part, ...]
    category: str | None = None
    size: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rider: Asset | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    def boxed(self, part: Part) -> bool:
        """Whether a part belongs to what the box is around: the plate of a sign, not its post."""
        own = [one for one in self.parts if one.label == self.category]
        return not own or part.label == self.category
