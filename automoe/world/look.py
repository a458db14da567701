"""How pictures look: light by weather and time of day, sky, lamps at night, fog, rain, and a camera's faults.

The renderer gives evenly lit surfaces with depth; everything here is arithmetic on its pictures, so that a look costs
milliseconds and any number of lamps. `LOOKS` has one entry for each data set that the world imitates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from automoe.taxonomy import SEMANTIC
from automoe.world.renderer import NIGHT_WALL, Frame, Light, Renderer
from automoe.world.scene import Camera, Conditions, Scene


@dataclass(frozen=True)
class Look:
    """A data set's camera: tone, colour and faults. Ranges are drawn per frame."""

    contrast: tuple[float, float] = (0.92, 1.12)
    saturation: tuple[float, float] = (0.75, 1.1)
    exposure: tuple[float, float] = (0.85, 1.15)
    tint: float = 0.05
    """Largest colour cast of a channel, as a share."""
    noise: tuple[float, float] = (0.006, 0.02)
    vignette: float = 0.22
    blur: tuple[float, float] = (0.0, 0.6)
    """Sigma in pixels at 640 wide."""
    glare: float = 1.0


LOOKS: dict[str, Look] = {
    "bdd": Look(),
    # A research car's cameras: washed, level in tone, cool, hardly any faults.
    "nuscenes": Look(
        contrast=(1.0, 1.12), saturation=(0.6, 0.85), exposure=(0.95, 1.12), tint=0.025, noise=(0.003, 0.008),
        vignette=0.08, blur=(0.0, 0.3), glare=0.7,
    ),
    # A game engine's camera: hard contrast, strong colours, much bloom, and nothing of a sensor's faults.
    "carla": Look(
        contrast=(1.15, 1.3), saturation=(1.15, 1.4), exposure=(0.82, 1.0), tint=0.02, noise=(0.0, 0.001),
        vignette=0.18, blur=(0.0, 0.15), glare=1.6,
    ),
}  # fmt: skip
"""Domain -> look."""

_HORIZON = {
    "clear": (0.74, 0.83, 0.92),
    "partly cloudy": (0.76, 0.82, 0.88),
    "overcast": (0.74, 0.76, 0.78),
    "rainy": (0.62, 0.65, 0.68),
    "foggy": (0.72, 0.74, 0.76),
}
_ZENITH = {
    "clear": (0.30, 0.50, 0.80),
    "partly cloudy": (0.36, 0.54, 0.80),
    "overcast": (0.62, 0.65, 0.69),
    "rainy": (0.48, 0.51, 0.55),
    "foggy": (0.68, 0.70, 0.72),
}
_CLOUDS = {"clear": 0.1, "partly cloudy": 0.6, "overcast": 0.5, "rainy": 0.6, "foggy": 0.0}
_VISIBILITY = {"clear": 1500.0, "partly cloudy": 1400.0, "overcast": 700.0, "rainy": 260.0, "foggy": 85.0}
"""Metres at which contrast falls to 1/e."""
_DUSK_GLOW = (1.0, 0.55, 0.28)
_LAMP_COLOR = (1.0, 0.80, 0.52)
_HEADLIGHT_COLOR = (1.0, 0.97, 0.88)
_LENS_COLORS = {"green": (0.10, 0.95, 0.55), "yellow": (1.0, 0.75, 0.10), "red": (1.0, 0.13, 0.08)}


def scene_light(conditions: Conditions) -> Light:
    """Sun and sky for the renderer. At night it only shapes surfaces; their brightness comes from `shade`."""
    cos, sin = np.cos(conditions.sun_elevation), np.sin(max(conditions.sun_elevation, 0.15))
    toward = np.array([cos * np.cos(conditions.sun_azimuth), cos * np.sin(conditions.sun_azimuth), sin])
    direction = (-float(toward[0]), -float(toward[1]), -float(toward[2]))
    if conditions.time_of_day == "night":
        return Light((0.25, 0.25, 0.25), (0.75, 0.75, 0.75), (0.3, 0.2, -0.9))
    if conditions.weather in ("overcast", "rainy", "foggy"):
        return Light((0.18, 0.18, 0.18), (0.72, 0.73, 0.75), direction)
    if conditions.time_of_day == "dawn/dusk":
        return Light((0.55, 0.40, 0.28), (0.50, 0.50, 0.58), direction)
    return Light((0.68, 0.66, 0.60), (0.46, 0.48, 0.52), direction)


def shade(
    frame: Frame, scene: Scene, camera: Camera, renderer: Renderer, look: Look, rng: np.random.Generator,
    table: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """The finished picture, uint8 RGB [H, W, 3]; `renderer` must be the one that made the frame, just before.

    table: the scene's `glow_table`, if the caller has it from another camera.
    """
    conditions = scene.conditions
    picture = frame.rgb * np.float32(1 / 255)
    if conditions.dark:
        light = _night_light(frame, scene, camera)
        facade = np.nonzero(renderer.facade_geoms[frame.geom])
        light[facade] = _facade_light(picture[facade], light[facade])
        picture = cv2.multiply(picture, light, dst=picture)
    table = glow_table(renderer, scene) if table is None else table
    rows, columns = np.nonzero(np.any(table, axis=1, keepdims=True)[frame.geom, 0])
    glow = table[frame.geom[rows, columns]]
    picture[rows, columns] += glow
    picture = _air(picture, frame, conditions, _rays(camera, scene.T_world_cam(camera), 4), rng)
    if len(rows) and (conditions.dark or conditions.weather in ("rainy", "foggy")):
        halo = np.zeros((camera.height, camera.width, 3), np.float32)
        halo[rows, columns] = glow
        _bloom(picture, halo, look.glare * (1.0 if conditions.dark else 0.5))
    if conditions.weather == "rainy":
        picture = _rain(picture, rng)
    return _camera_faults(picture, conditions, look, rng)


# ---------------------------------------------------------------- lamps


def glow_table(renderer: Renderer, scene: Scene) -> np.ndarray:
    """What each geom radiates by itself, float32 [geoms + 1, 3]; the last row is for the sky."""
    names = renderer.glow_names
    table = np.zeros((len(names) + 1, 3), np.float32)
    night = scene.conditions.time_of_day == "night"
    dark = scene.conditions.dark
    lit, braking = set(), set()
    for actor in scene.actors:
        body = renderer.body_of_actor[actor.id]
        if actor.lights:
            lit.add(body)
        if actor.braking:
            braking.add(body)
    states = scene.signal_states()
    for geom in np.flatnonzero(names != ""):
        name, body = names[geom], int(renderer.geom_body[geom])
        if int(geom) in renderer.signal_geoms:
            color = states[renderer.signal_geoms[int(geom)]]
            if name == f"lens_{color}":
                table[geom] = _LENS_COLORS[color]
        elif name == "headlight" and body in lit:
            table[geom] = np.array(_HEADLIGHT_COLOR) * 1.3
        elif name == "taillight" and body in lit:
            table[geom] = (0.75, 0.05, 0.04)
        elif name == "brakelight" and (body in braking or body in lit):
            table[geom] = (1.2, 0.12, 0.08) if body in braking else (0.45, 0.03, 0.03)
        elif name == "lamp" and dark:
            table[geom] = np.array(_LAMP_COLOR) * 1.4
        elif name not in ("headlight", "taillight", "brakelight", "indicator", "lamp") and dark and body == 0:
            material = renderer.geom_material[geom]
            table[geom] = np.array(material.rgba[:3]) * material.emission * (0.8 if night else 0.4)
    return table


def _rays(camera: Camera, T_world_cam: np.ndarray, step: int) -> np.ndarray:
    """World directions of every step-th pixel, float32 [H / step, W / step, 3], one metre long along the axis."""
    u = (np.arange(0, camera.width, step, dtype=np.float32) + 0.5 - camera.cx) / camera.fx
    v = (np.arange(0, camera.height, step, dtype=np.float32) + 0.5 - camera.cy) / camera.fy
    rotation = T_world_cam[:3, :3].astype(np.float32)
    return u[None, :, None] * rotation[:, 0] + (v[:, None, None] * rotation[:, 1] + rotation[:, 2])


def _night_light(frame: Frame, scene: Scene, camera: Camera) -> np.ndarray:
    """How much light falls on each pixel's surface after sunset, float32 [H, W, 3]."""
    night = scene.conditions.time_of_day == "night"
    height, width = frame.depth.shape
    depth = np.minimum(frame.depth[::2, ::2], 400.0)
    eye = scene.T_world_cam(camera)[:3, 3].astype(np.float32)
    points = _rays(camera, scene.T_world_cam(camera), 2) * depth[..., None] + eye
    ambient = np.array((0.16, 0.17, 0.22) if night else (0.5, 0.48, 0.52), np.float32)
    pools = np.zeros(depth.shape, np.float32)
    lamps = np.array([(lamp.x, lamp.y, lamp.z) for lamp in scene.stage.lamps], np.float32).reshape(-1, 3)
    ahead = (lamps - eye) @ scene.T_world_cam(camera)[:3, 2].astype(np.float32)
    distance = np.hypot(*(lamps[:, :2] - eye[:2]).T)
    for index in np.argsort(distance):
        if distance[index] < 90.0 and ahead[index] > -12.0:
            gap = points - lamps[index]
            squared = cv2.transform(cv2.multiply(gap, gap), np.ones((1, 3), np.float32))
            pools += cv2.exp(squared * np.float32(-1 / 150.0))
    beams = _headlights(points, scene)
    level = 0.85 if night else 0.35
    light = ambient + level * pools[..., None] * np.array(_LAMP_COLOR, np.float32)
    light += (0.9 if night else 0.3) * beams[..., None] * np.array(_HEADLIGHT_COLOR, np.float32)
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    signs = np.nonzero(frame.semantic == SEMANTIC.index("traffic sign"))
    light[signs] = np.minimum(light[signs] * 2.2, 1.5)  # retroreflective
    return light


def _facade_light(wall: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Light [N, 3] on facade pixels, whose night texture has dimmed walls and bright, shining windows."""
    window = np.clip((wall.max(axis=1, keepdims=True) - 0.43) / 0.12, 0, 1)
    return light * (1 - window) / np.float32(NIGHT_WALL) + np.float32(0.95) * window


def _headlights(points: np.ndarray, scene: Scene) -> np.ndarray:
    """The ego's own dipped beams."""
    ego = scene.ego
    cos, sin = np.float32(np.cos(ego.yaw)), np.float32(np.sin(ego.yaw))
    x, y = points[..., 0] - np.float32(ego.x), points[..., 1] - np.float32(ego.y)
    forward = np.maximum(x * cos + y * sin - 3.0, 0.1)
    aside = (y * cos - x * sin) / (forward + 3.0)
    fall = np.exp(-((aside / 0.42) ** 2)) / (1 + (forward / 26.0) ** 2)
    cut = 1 / (1 + np.exp((points[..., 2] - 1.3) * 2.2))
    return (fall * (0.15 + 0.85 * cut) * np.minimum(forward / 3.0, 1.0)).astype(np.float32)


# ---------------------------------------------------------------- air and sky


def _air(
    picture: np.ndarray, frame: Frame, conditions: Conditions, rays: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Haze by distance, and the sky where there is nothing."""
    haze = np.array(_HORIZON[conditions.weather], np.float32) * _sky_level(conditions)
    clearness = cv2.exp(np.minimum(frame.depth, 5000.0) * np.float32(-1 / _VISIBILITY[conditions.weather]))
    border = (float(haze[0]), float(haze[1]), float(haze[2]), 0.0)
    picture = cv2.subtract(picture, border)  # pyright: ignore[reportCallIssue, reportArgumentType]
    picture = cv2.multiply(picture, cv2.merge([clearness] * 3), dst=picture)
    picture = cv2.add(picture, border, dst=picture)  # pyright: ignore[reportCallIssue, reportArgumentType]
    sky = cv2.resize(_sky(rays, conditions, rng), (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    return cv2.copyTo(sky, (frame.geom < 0).astype(np.uint8), picture)


def _sky_level(conditions: Conditions) -> np.ndarray:
    """Brightness and colour of the sky as a whole."""
    if conditions.time_of_day == "night":
        return np.array([0.055, 0.058, 0.085] if conditions.weather == "clear" else [0.11, 0.10, 0.10], np.float32)
    if conditions.time_of_day == "dawn/dusk":
        return np.array([0.72, 0.62, 0.66], np.float32)
    return np.ones(3, np.float32)


@cache
def _cloud_noise() -> np.ndarray:
    """Tileable noise of several octaves in 0..1, float32 [512, 512]."""
    rng = np.random.default_rng(7)
    total = np.zeros((512, 512), np.float32)
    for octave in range(2, 8):
        cells = rng.random((2**octave, 2**octave), np.float32)
        wrapped = np.pad(cells, 2, mode="wrap")
        scale = 512 // 2**octave
        large = cv2.resize(wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += large[2 * scale : 2 * scale + 512, 2 * scale : 2 * scale + 512] * 0.55**octave
    total -= total.min()
    return total / total.max()


def _sky(rays: np.ndarray, conditions: Conditions, rng: np.random.Generator) -> np.ndarray:
    """The sky in the directions of the rays [H, W, 3], float32 [H, W, 3]."""
    small = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    up = np.clip(small[..., 2:], 0, 1)
    horizon = np.array(_HORIZON[conditions.weather], np.float32)
    zenith = np.array(_ZENITH[conditions.weather], np.float32)
    blend = np.clip(up * 2.2, 0, 1) ** 0.6
    sky = horizon * (1 - blend) + zenith * blend
    cover = _CLOUDS[conditions.weather]
    if cover > 0:
        plane = small[..., :2] / np.maximum(small[..., 2:] + 0.08, 0.05) * 110 + rng.uniform(0, 512, 2)
        plane = np.mod(plane, 511).astype(np.float32)
        noise = cv2.remap(_cloud_noise(), plane[..., 0], plane[..., 1], cv2.INTER_LINEAR)[..., None]
        thick = np.clip((noise - (1.0 - cover) * 0.75) * 3.0, 0, 1)
        white = np.array((0.93, 0.94, 0.96) if conditions.weather != "rainy" else (0.55, 0.57, 0.6), np.float32)
        sky = sky + (white - sky) * thick * np.clip(up * 6.0, 0, 1) * 0.8
    sky = sky * _sky_level(conditions)
    toward = np.array(
        [np.cos(conditions.sun_azimuth), np.sin(conditions.sun_azimuth), np.sin(max(conditions.sun_elevation, 0))]
    )
    facing = np.clip(small @ toward.astype(np.float32) / np.linalg.norm(toward).astype(np.float32), 0, 1)[..., None]
    if conditions.time_of_day == "dawn/dusk":
        sky = sky + np.array(_DUSK_GLOW, np.float32) * (facing**4 * np.exp(-up * 5.0) * 0.55)
    elif conditions.time_of_day == "daytime" and conditions.weather in ("clear", "partly cloudy"):
        sky = sky + (facing**24) * 0.35 + (facing**900) * 2.0
    elif conditions.time_of_day == "night":
        sky = sky + np.array((0.10, 0.075, 0.05), np.float32) * np.exp(-up * 9.0)
    return sky.astype(np.float32)


def _bloom(picture: np.ndarray, glow: np.ndarray, strength: float) -> None:
    """Add halos round lamps, in place."""
    height, width = picture.shape[:2]
    small = cv2.resize(glow, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = (
        cv2.GaussianBlur(small, (0, 0), width / 640 * 1.3) * 0.9
        + cv2.GaussianBlur(small, (0, 0), width / 640 * 6) * 1.1
    )
    cv2.add(
        picture, cv2.resize(halo * np.float32(strength), (width, height), interpolation=cv2.INTER_LINEAR), dst=picture
    )


def _rain(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Streaks in the air and a few drops on the windscreen."""
    height, width = picture.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    slant = float(rng.uniform(-0.15, 0.15))
    for _ in range(int(rng.integers(60, 160))):
        x, y, length = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.02, 0.06) * height
        end = (int(x + slant * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, float(rng.uniform(0.03, 0.1)), 1, cv2.LINE_AA)
    picture = picture + streaks[..., None] * (0.3 + picture.mean())
    blurred = cv2.GaussianBlur(picture, (0, 0), width / 640 * 3.0)
    drops = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(6, 26))):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        cv2.circle(drops, centre, int(rng.uniform(2, 6) * width / 640), 1.0, -1, cv2.LINE_AA)
    drops = drops[..., None] * 0.8
    return picture * (1 - drops) + blurred * 1.06 * drops


# ---------------------------------------------------------------- the camera


def _camera_faults(picture: np.ndarray, conditions: Conditions, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour cast, vignette, blur and noise, then eight bits."""
    height, width = picture.shape[:2]
    gain = np.diag(rng.uniform(*look.exposure) * (1 + rng.uniform(-look.tint, look.tint, 3)))
    saturation = rng.uniform(*look.saturation)
    mix = saturation * np.eye(3) + (1 - saturation) / 3
    contrast = 1.0 if conditions.dark else rng.uniform(*look.contrast)
    color = np.column_stack([contrast * mix @ gain, np.full(3, 0.45 * (1 - contrast))])
    picture = cv2.transform(picture, color.astype(np.float32))
    sigma = rng.uniform(*look.blur) * width / 640
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    vignette = 255 - np.float32(255 * look.vignette * rng.uniform(0.3, 1.0) / 2) * (x * x + y * y)
    picture = cv2.multiply(picture, cv2.merge([vignette] * 3), dst=picture)
    level = rng.uniform(*look.noise) * (1.6 if conditions.dark else 1.0) * 255
    grain = _grain(height, width, int(rng.integers(_GRAIN)), int(rng.integers(_GRAIN))) * np.float32(level)
    picture = np.maximum(cv2.add(picture, cv2.merge([grain] * 3), dst=picture), 0.0, out=picture)
    return cv2.convertScaleAbs(picture)


_GRAIN = 256


@cache
def _grain_source() -> np.ndarray:
    return np.random.default_rng(11).standard_normal((_GRAIN, _GRAIN), np.float32)


def _grain(height: int, width: int, row: int, column: int) -> np.ndarray:
    """Sensor noise of unit deviation, float32 [H, W]: a rolled and repeated tile, far cheaper than fresh noise."""
    rows = (np.arange(height) * 1 + row) % _GRAIN
    columns = (np.arange(width) + column) % _GRAIN
    return _grain_source()[rows[:, None], columns[None, :]]
