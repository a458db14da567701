"""MuJoCo as the camera: colour, depth and instance pictures of a scene, headless through EGL.

A town is compiled once; road users are pre-allocated mocap bodies that a scene moves to their places. What comes out
is lit by sun and sky only: lamps, weather and the sky itself are added by look.py.
"""

# MuJoCo is a compiled module without stubs: what it holds, the type checker cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from automoe.errors import WorldError
from automoe.taxonomy import IGNORE_INDEX, SEMANTIC
from automoe.world.meshes import TEXTURES
from automoe.world.parts import Asset, Material, Part
from automoe.world.scene import Camera, Scene, StagedTown

NEAR, FAR = 0.25, 1400.0
NIGHT_WALL = 0.4
LEAST_OCCLUDER = 0.02
"""How large a building is, as a share of the picture's width, that is drawn first to see what it hides."""
_HIDDEN_GROUP = 5
_EGL_ADVICE = (
    "the world cannot be rendered: no off-screen OpenGL ({reason}); on Debian or Ubuntu run "
    "`apt-get install libegl1 libgl1-mesa-dri`, then try again"
)


def _import_mujoco():
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except Exception as problem:
        raise WorldError(_EGL_ADVICE.format(reason=str(problem).splitlines()[0] if str(problem) else "?")) from problem
    return mujoco


def check_rendering() -> None:
    """Raise WorldError, with the line to run, where no picture can be rendered. Cheap: call it before long work."""
    mujoco = _import_mujoco()
    try:
        context = mujoco.GLContext(16, 16)
        context.make_current()
        context.free()
    except Exception as problem:
        raise WorldError(_EGL_ADVICE.format(reason=str(problem) or type(problem).__name__)) from problem


@dataclass(frozen=True)
class Light:
    """Sun and sky for the renderer: colours in 0..1, direction in which the sunlight travels (world)."""

    sun: tuple[float, float, float] = (0.75, 0.72, 0.68)
    sky: tuple[float, float, float] = (0.45, 0.47, 0.5)
    direction: tuple[float, float, float] = (0.3, 0.4, -0.85)


@dataclass(frozen=True)
class Frame:
    """What a camera saw. `geom` is -1 where nothing is (the sky).

    rgb: uint8 [H, W, 3]. depth: float32 [H, W], metres along the optical axis, inf in the sky. geom: int32 [H, W],
    MuJoCo geom ids. semantic: uint8 [H, W] trainIds. instance: int32 [H, W], 0 for things without a box.
    """

    rgb: np.ndarray
    depth: np.ndarray
    geom: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


class Renderer:
    """Renders scenes of one staged town at one picture size. Use it as a context manager, or call close()."""

    def __init__(self, stage: StagedTown, width: int, height: int) -> None:
        self._mujoco = mujoco = _import_mujoco()
        self.stage, self.width, self.height = stage, width, height
        builder = _ModelBuilder(mujoco, stage)
        self.model = builder.compile(width, height)
        self.data = mujoco.MjData(self.model)
        self._placed: Scene | None = None
        self._tables(builder)
        try:
            self._gl = mujoco.GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as problem:
            raise WorldError(_EGL_ADVICE.format(reason=str(problem) or type(problem).__name__)) from problem
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(self.model, maxgeom=self.model.ngeom + 16)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_HAZE] = 0
        lit = [(i, m.name) for i, m in enumerate(self.geom_material) if m.name in builder.night_materials]
        self._facades = np.array([geom for geom, _ in lit], int)
        self._facade_materials = [
            np.array([self.model.material(name).id for _, name in lit], int),
            np.array([self.model.material(builder.night_materials[name]).id for _, name in lit], int),
        ]
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [1, 0, 0, 0, 0, 0]
        self._free_camera = mujoco.MjvCamera()
        self._perturb = mujoco.MjvPerturb()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._gl is not None:
            self._context.free()
            self._gl.free()
            self._gl = None

    def _tables(self, builder: _ModelBuilder) -> None:
        names = [self.model.geom(index).name for index in range(self.model.ngeom)]
        self.geom_label = np.array([builder.label[name] for name in names] + [SEMANTIC.index("sky")], np.uint8)
        self.geom_material = [builder.material[name] for name in names]
        self.geom_static_instance = np.array([builder.instance[name] for name in names] + [0], np.int32)
        self.geom_body = self.model.geom_bodyid.copy()
        self._geom_signal = {i: builder.signal[name] for i, name in enumerate(names) if name in builder.signal}
        self._slots = {key: [int(self.model.body(body).id) for body in bodies] for key, bodies in builder.slots.items()}
        self._rider_slots = {
            int(self.model.body(mount).id): int(self.model.body(rider).id) for mount, rider in builder.riders.items()
        }
        self._is_wall = (self.geom_label[:-1] == SEMANTIC.index("building")) & (self.geom_body == 0)
        centre, half = self.model.geom_aabb[:, None, :3], self.model.geom_aabb[:, None, 3:]
        self._box_corners = centre + half * np.array(list(product((-1, 1), repeat=3)))
        self._shadow_geoms = np.array([i for i, m in enumerate(self.geom_material) if m.name == "contact_shadow"], int)
        self._emissive = np.array([m.name if m.emission > 0 or m.name in GLOWING else "" for m in self.geom_material])

        twins = [m.texture is not None and f"{m.texture}_lit" in TEXTURES for m in self.geom_material]
        self.facade_geoms = np.array([*twins, False])
        """bool [geoms + 1]: whether a geom's texture has windows that are lit at night."""

        # In pixels; what shines is seen from farther away than what doesn't.
        self._least_radius = np.where(self._emissive != "", 0.35, 0.8)

    @property
    def glow_names(self) -> np.ndarray:
        """For each geom the name of its glowing material, or an empty string."""
        return self._emissive

    @property
    def signal_geoms(self) -> dict[int, str]:
        """Lens geom -> TrafficSignal id."""
        return self._geom_signal

    # -------------------------------------------------------- a frame

    def render(self, scene: Scene, camera: Camera, light: Light) -> Frame:
        """The picture of a scene. Raises WorldError when it holds more road users than were pre-allocated."""
        mujoco = self._mujoco
        self.place(scene)
        self._light(light)
        self._light_windows(scene.conditions.dark)
        T_world_cam = scene.T_world_cam(camera)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        shown = self._not_hidden(self._in_view(camera, T_world_cam), camera, T_world_cam)
        self._draw(shown, camera, T_world_cam)
        ids = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        mujoco.mjr_readPixels(ids, depth, self._viewport, self._context)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        geom = self._geoms_of(ids[::-1], shown)
        self._draw(np.flatnonzero(self._worth_colour(geom, shown)), camera, T_world_cam)
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(rgb, None, self._viewport, self._context)
        metres = (NEAR * FAR) / (NEAR + depth[::-1] * (FAR - NEAR))
        metres[geom < 0] = np.inf
        instance = self._instance_of_geom[geom]
        return Frame(np.ascontiguousarray(rgb[::-1]), metres, geom, self._label_of_geom[geom], instance)

    def _draw(self, geoms: np.ndarray, camera: Camera, T_world_cam: np.ndarray) -> None:
        """Render these geoms [N] and nothing else."""
        mujoco = self._mujoco
        self.model.geom_group[:] = _HIDDEN_GROUP
        self.model.geom_group[geoms] = 0
        mujoco.mjv_updateScene(
            self.model, self.data, self._option, self._perturb, self._free_camera,
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        self._aim(camera, T_world_cam)
        mujoco.mjr_render(self._viewport, self._scene, self._context)

    def _geoms_of(self, ids: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Geoms int32 [H, W] from the colours that stand for them. shown: the drawn ones, in MuJoCo's order, by id."""
        code = ids[..., 0].astype(np.int32) | (ids[..., 1].astype(np.int32) << 8) | (ids[..., 2].astype(np.int32) << 16)
        table = np.concatenate([[-1], shown]).astype(np.int32)
        return table[np.clip(code, 0, len(shown))]

    def _worth_colour(self, geom: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """bool [geoms]: those of the drawn ones that have a pixel of their own or shine through a shadow patch."""
        worth = np.zeros(self.model.ngeom + 1, bool)
        worth[geom] = True
        worth = worth[:-1]
        patches = self._shadow_geoms[worth[self._shadow_geoms]]
        if len(patches):
            centres, radius = self.data.geom_xpos, self.model.geom_rbound
            gap = np.linalg.norm(centres[shown, None] - centres[None, patches], axis=-1)
            worth[shown[(gap < radius[shown, None] + radius[patches] + 0.5).any(axis=1)]] = True
        return worth

    def place(self, scene: Scene) -> None:
        """Move the pre-allocated bodies to a scene's actors; the others sink out of sight."""
        if scene is self._placed:
            return  # another camera of the same moment
        self._placed = None
        model, data = self.model, self.data
        data.mocap_pos[:] = (0.0, 0.0, -80.0)
        data.mocap_quat[:] = (1.0, 0.0, 0.0, 0.0)
        body_instance = np.zeros(model.nbody, np.int32)
        body_ground = np.full(model.nbody, SEMANTIC.index("road"), np.uint8)
        self.body_of_actor: dict[int, int] = {}
        free = {key: list(bodies) for key, bodies in self._slots.items()}
        for actor in sorted(scene.actors, key=lambda a: a.mount is not None):
            if actor.mount is not None:
                body = self._rider_slots[self.body_of_actor[actor.mount]]
            elif free.get(actor.asset):
                body = free[actor.asset].pop(0)
            else:
                raise WorldError(
                    f"the scene has more than {self.stage.copies.get(actor.asset, 0)} of {actor.asset!r}, which is "
                    f"all that town {self.stage.town.name!r} has; place fewer, or raise furnish.FLEET"
                )
            self.body_of_actor[actor.id] = body
            slot = model.body_mocapid[body]
            data.mocap_pos[slot] = (actor.x, actor.y, actor.z)
            data.mocap_quat[slot] = (np.cos(actor.yaw / 2), 0.0, 0.0, np.sin(actor.yaw / 2))
            body_instance[body] = actor.id
            body_ground[body] = SEMANTIC.index("sidewalk" if actor.z > 0.05 else "road")
        self._mujoco.mj_kinematics(model, data)
        self._instance_of_geom = self.geom_static_instance.copy()
        moving = body_instance[self.geom_body]
        self._instance_of_geom[:-1] += moving
        self._label_of_geom = self.geom_label.copy()
        self._label_of_geom[self._shadow_geoms] = body_ground[self.geom_body[self._shadow_geoms]]
        self._instance_of_geom[self._shadow_geoms] = 0
        self._placed = scene

    def _light(self, light: Light) -> None:
        self.model.light_diffuse[0] = light.sun
        self.model.light_ambient[0] = (0, 0, 0)
        self.model.vis.headlight.ambient[:] = light.sky
        direction = np.array(light.direction)
        self.data.light_xdir[0] = direction / np.linalg.norm(direction)

    def _light_windows(self, dark: bool) -> None:
        """Give facades their night material or their day material."""
        self.model.geom_matid[self._facades] = self._facade_materials[int(dark)]

    def _in_view(self, camera: Camera, T_world_cam: np.ndarray) -> np.ndarray:
        """Geoms [N] that are not outside the view, nor too small to make a pixel."""
        local = (self.data.geom_xpos - T_world_cam[:3, 3]) @ T_world_cam[:3, :3]
        radius = self.model.geom_rbound
        depth = local[:, 2]
        left, right = camera.cx / camera.fx, (camera.width - camera.cx) / camera.fx
        norm_left, norm_right = np.hypot(1, left), np.hypot(1, right)
        visible = depth > -radius
        visible &= (-local[:, 0] - left * depth) / norm_left < radius
        visible &= (local[:, 0] - right * depth) / norm_right < radius
        visible &= radius * camera.fx > self._least_radius * np.maximum(depth, 0.1)
        return np.flatnonzero(visible)

    def _not_hidden(self, geoms: np.ndarray, camera: Camera, T_world_cam: np.ndarray) -> np.ndarray:
        """Those of the geoms [N] that are not surely behind buildings: of a street's things one in ten is seen.

        The larger buildings alone are drawn first. What lies behind their depth all over the pixels that its box
        covers, and a pixel of slack round them, gets no pixel: the picture is the same as without this.
        """
        ahead = (self.data.geom_xpos[geoms] - T_world_cam[:3, 3]) @ T_world_cam[:3, 2]
        large = self.model.geom_rbound[geoms] * camera.fx > LEAST_OCCLUDER * self.width * ahead
        walls = geoms[large & self._is_wall[geoms]]
        if not len(walls):
            return geoms
        self._draw(walls, camera, T_world_cam)
        depth = np.empty((self.height, self.width), np.float32)
        self._mujoco.mjr_readPixels(None, depth, self._viewport, self._context)
        farthest = _Pyramid(depth[::-1])
        axes = T_world_cam[:3, :3].T @ self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        corners = self._box_corners[geoms] @ axes.transpose(0, 2, 1)
        corners += ((self.data.geom_xpos[geoms] - T_world_cam[:3, 3]) @ T_world_cam[:3, :3])[:, None]
        nearest = corners[..., 2].min(axis=1) - 0.05
        before = nearest > NEAR
        pixels = corners[..., :2] / np.where(before[:, None], corners[..., 2], 1.0)[..., None]
        pixels = pixels * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        least = farthest.least(np.floor(pixels.min(axis=1)) - 1, np.ceil(pixels.max(axis=1)))
        return geoms[~(before & (least > (NEAR * FAR / np.where(before, nearest, 1.0) - NEAR) / (FAR - NEAR)))]

    def _aim(self, camera: Camera, T_world_cam: np.ndarray) -> None:
        rotation, position = T_world_cam[:3, :3], T_world_cam[:3, 3]
        for eye in self._scene.camera:
            eye.pos[:] = position
            eye.forward[:] = rotation[:, 2]
            eye.up[:] = -rotation[:, 1]
            eye.frustum_near, eye.frustum_far = NEAR, FAR
            eye.frustum_top = NEAR * camera.cy / camera.fy
            eye.frustum_bottom = -NEAR * (camera.height - camera.cy) / camera.fy
            eye.frustum_center = NEAR * (camera.width / 2 - camera.cx) / camera.fx
            eye.frustum_width = NEAR * camera.width / 2 / camera.fx


class _Pyramid:
    """Least values of a picture over rectangles, by coarser and coarser copies of it."""

    def __init__(self, picture: np.ndarray) -> None:
        self.height, self.width = picture.shape
        levels, offsets, level = [picture], [0], picture
        while max(level.shape) > 1:
            level = np.pad(level, ((0, level.shape[0] % 2), (0, level.shape[1] % 2)), mode="edge")
            level = np.minimum(level[::2], level[1::2])
            level = np.minimum(level[:, ::2], level[:, 1::2])
            offsets.append(offsets[-1] + levels[-1].size)
            levels.append(level)
        self._values = np.concatenate([level.ravel() for level in levels])
        self._offsets = np.array(offsets)
        self._widths = np.array([level.shape[1] for level in levels])

    def least(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The least value [N] within the pixels low to high (x, y) [N, 2], both included, or of a few more."""
        last = np.array([self.width - 1, self.height - 1])
        low, high = np.clip(low, 0, last).astype(np.int64), np.clip(high, 0, last).astype(np.int64)
        # A level at which a rectangle touches five cells at most each way.
        span = (high - low).max(axis=1)
        level = np.maximum(np.ceil(np.log2(np.maximum(span, 1) / 4)), 0).astype(np.int64)
        low, high = low >> level[:, None], high >> level[:, None]
        found = np.full(len(low), np.inf, np.float32)
        for step_y in range(5):
            row = np.minimum(low[:, 1] + step_y, high[:, 1]) * self._widths[level] + self._offsets[level]
            for step_x in range(5):
                np.minimum(found, self._values[row + np.minimum(low[:, 0] + step_x, high[:, 0])], out=found)
        return found


GLOWING = frozenset(
    ("headlight", "taillight", "brakelight", "indicator", "lamp", "lens_green", "lens_yellow", "lens_red")
)
"""Materials that shine when switched on, whatever their `emission` says."""


class _ModelBuilder:
    """Puts a staged town into an MjSpec, remembering for every geom what it is."""

    def __init__(self, mujoco, stage: StagedTown) -> None:
        self.mujoco, self.stage = mujoco, stage
        self.spec = mujoco.MjSpec()
        self.label: dict[str, int] = {}
        self.material: dict[str, Material] = {}
        self.instance: dict[str, int] = {}
        self.signal: dict[str, str] = {}
        self.slots: dict[str, list[str]] = {}
        self.riders: dict[str, str] = {}
        self.night_materials: dict[str, str] = {}
        self._textures: set[str] = set()
        self._materials: set[str] = set()
        self._meshes: dict[int, str] = {}
        self._keep: list[Part] = []

    def compile(self, width: int, height: int):
        spec, stage = self.spec, self.stage
        spec.visual.global_.offwidth, spec.visual.global_.offheight = width, height
        spec.visual.quality.offsamples = 0
        spec.visual.headlight.diffuse = [0, 0, 0]
        spec.visual.headlight.specular = [0, 0, 0]
        spec.stat.extent = 1.0
        spec.worldbody.add_light(
            name="sun", type=self.mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False, pos=[0, 0, 100],
            dir=[0, 0, -1], specular=[0.3, 0.3, 0.3],
        )  # fmt: skip
        for index, part in enumerate(stage.ground):
            self._geom(spec.worldbody, f"ground{index}", part)
        for index, placement in enumerate(stage.placements):
            quat = [np.cos(placement.yaw / 2), 0, 0, np.sin(placement.yaw / 2)]
            for number, part in enumerate(stage.assets[placement.asset].parts):
                name = f"place{index}.{number}"
                has_box = stage.assets[placement.asset].boxed(part)
                self._geom(
                    spec.worldbody, name, part, [placement.x, placement.y, placement.z], quat,
                    placement.instance if has_box else 0,
                )  # fmt: skip
                if placement.signal is not None and part.material.name.startswith("lens_"):
                    self.signal[name] = placement.signal
        for keys in stage.fleet.values():
            for key in keys:
                for copy in range(stage.copies[key]):
                    self._mover(key, stage.assets[key], copy)
        return spec.compile()

    def _mover(self, key: str, asset: Asset, copy: int) -> None:
        name = f"{key}#{copy}"
        body = self.spec.worldbody.add_body(name=name, mocap=True)
        for number, part in enumerate(asset.parts):
            self._geom(body, f"{name}.{number}", part)
        self._geom(body, f"{name}.shadow", _contact_shadow(asset))
        self.slots.setdefault(key, []).append(name)
        if asset.rider is not None:
            rider = self.spec.worldbody.add_body(name=f"{name}.rider", mocap=True)
            for number, part in enumerate(asset.rider.parts):
                self._geom(rider, f"{name}.rider.{number}", part)
            self.riders[name] = f"{name}.rider"

    def _geom(self, body, name: str, part: Part, pos=(0, 0, 0), quat=(1, 0, 0, 0), instance: int = 0) -> None:
        body.add_geom(
            name=name, type=self.mujoco.mjtGeom.mjGEOM_MESH, meshname=self._mesh(part),
            material=self._material(part.material), pos=list(pos), quat=list(quat), contype=0, conaffinity=0,
        )  # fmt: skip
        self.label[name] = SEMANTIC.index(part.label) if part.label in SEMANTIC else IGNORE_INDEX
        self.material[name] = part.material
        self.instance[name] = instance

    def _mesh(self, part: Part) -> str:
        if id(part) not in self._meshes:
            name = f"mesh{len(self._meshes)}"
            self._meshes[id(part)] = name
            self._keep.append(part)  # id() stays unique only while the part lives
            extra = {} if part.uv is None else {"usertexcoord": _flip_v(part.uv).ravel()}
            vertices = part.vertices.astype(np.float32)
            if len(vertices) == 3:  # MuJoCo wants four vertices or more
                below = vertices.mean(0, keepdims=True) - np.array([[0, 0, 0.05]], np.float32)
                vertices = np.concatenate([vertices, below])
                extra = {} if part.uv is None else {"usertexcoord": _flip_v(np.vstack([part.uv, part.uv[:1]])).ravel()}
            self.spec.add_mesh(
                name=name, uservert=vertices.astype(np.float32).ravel(), userface=part.faces.ravel(),
                inertia=self.mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL, **extra,
            )  # fmt: skip
        return self._meshes[id(part)]

    def _material(self, material: Material) -> str:
        if material.name not in self._materials:
            self._add_material(material.name, material, material.texture)
            if material.texture is not None and f"{material.texture}_lit" in TEXTURES:
                self.night_materials[material.name] = f"{material.name}@night"
                self._add_material(f"{material.name}@night", material, f"{material.texture}_lit")
        return material.name

    def _add_material(self, name: str, material: Material, texture: str | None) -> None:
        self._materials.add(name)
        entry = self.spec.add_material(
            name=name, rgba=list(material.rgba), specular=material.specular, shininess=material.shininess
        )
        if texture is not None:
            entry.textures[self.mujoco.mjtTextureRole.mjTEXROLE_RGB] = self._texture(texture)

    def _texture(self, name: str) -> str:
        if name not in self._textures:
            self._textures.add(name)
            pixels = _texture_pixels(name, self.stage.town.seed % 2)
            texture = self.spec.add_texture(
                name=name, type=self.mujoco.mjtTexture.mjTEXTURE_2D, width=pixels.shape[1], height=pixels.shape[0],
                nchannel=3,
            )  # fmt: skip
            texture.data = pixels.tobytes()
        return name


@cache
def _texture_pixels(name: str, variant: int) -> np.ndarray:
    """A procedural texture, uint8 [H, W, 3]; each is drawn once in a process.

    A facade at night (`_lit`) keeps its walls, at NIGHT_WALL of their brightness, so that lamps can light them;
    only its bright windows come from the night twin.
    """
    if name.endswith("_lit"):
        lit = TEXTURES[name](np.random.default_rng([variant, *name[:-4].encode()]))
        window = np.clip((lit.max(-1, keepdims=True).astype(np.float32) - 90) / 40, 0, 1)
        walls = _texture_pixels(name[:-4], variant) * np.float32(NIGHT_WALL)
        return np.ascontiguousarray((walls * (1 - window) + np.minimum(lit * 1.15, 255) * window).astype(np.uint8))
    return np.ascontiguousarray(TEXTURES[name](np.random.default_rng([variant, *name.encode()])))


def _flip_v(uv: np.ndarray) -> np.ndarray:
    """MuJoCo's texture rows run upwards, those of our arrays downwards."""
    return np.column_stack([uv[:, 0], uv[:, 1]]).astype(np.float32)


CONTACT_SHADOW = Material("contact_shadow", (0.02, 0.02, 0.03, 0.45), specular=0.0)


def _contact_shadow(asset: Asset) -> Part:
    """A dark see-through patch under a road user; it takes the class of the ground that it lies on."""
    length, width, _ = asset.size
    angles = np.linspace(0, 2 * np.pi, 17)[:-1]
    # A superellipse: nearly the footprint, with soft corners.
    cos, sin = np.cos(angles), np.sin(angles)
    shape = np.column_stack([np.sign(cos) * np.abs(cos) ** 0.5, np.sign(sin) * np.abs(sin) ** 0.5])
    ring = shape * [length / 2 + 0.05, width / 2 + 0.12]
    vertices = np.column_stack([ring, np.full(16, 0.03)])
    vertices = np.concatenate([vertices, [[0, 0, 0.03]]]).astype(np.float32)
    faces = np.array([[16, i, (i + 1) % 16] for i in range(16)], np.int32)
    return Part(vertices, faces, CONTACT_SHADOW, "road")
