"""Films of drives: the camera's picture with what the experts saw in it, the car from above, and what was decided.

A drive is driven once more to be filmed. It is the drive that was scored: a drive is a function of driver, route and
seed, and whoever films looks on. Frames: the ego's, on the ground under the car's middle, x forward, y left; the view
from above follows the car, its heading up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw

from automoe import taxonomy
from automoe.data.sequences import Observation
from automoe.drawing import Color, draw_boxes, fit_width, font_of, overlay_mask, shorten
from automoe.drive.closed_loop import drive_route
from automoe.drive.embedded import EmbeddedSimulator
from automoe.drive.evaluation import DriverSpec, begin
from automoe.drive.leaderboard import LABELS, OUTSIDE, SIMULATION_CRASHED, RouteRecord
from automoe.drive.referee import BLOCKED_SECONDS, BLOCKED_SPEED
from automoe.drive.routes import RouteTask
from automoe.drive.simulator import Agent
from automoe.errors import WorldError
from automoe.experts.inference import TrainedExpert
from automoe.files import atomic_file
from automoe.machine import one_torch_thread
from automoe.world import polyline
from automoe.world.carla_writer import LIGHT_METRES
from automoe.world.contacts import Obstacles
from automoe.world.rig import carla_cameras
from automoe.world.scene import Camera, Scene, StagedTown, project, world_to_camera
from automoe.world.vehicle import AHEAD, LENGTH, WIDTH, Control

FILMED, PLAYED = 5, 10
"""Pictures for a second of the drive, and those that are shown in a second: a film runs twice as fast as the drive."""

SIZE = (540, 960)
"""Of a film, height and width: the camera's picture and the view from above, and below them the panel."""

CAMERA_SIZE, VIEW_SIZE, PANEL_SIZE = (456, 608), (456, 352), (84, 960)

VIEW_SCALE = VIEW_SIZE[1] / 50.0
"""Pixels a metre: 25 m to each side."""

VIEW_AHEAD = 50.0
"""Metres from the car's middle to the upper edge of the view; the lower one lies some 15 m behind it."""

BOX_SCORE = 0.3
"""Boxes that an expert is less sure of are not drawn."""

VERDICT_SECONDS = 2.5
"""For how long a film says at its end what became of the drive."""

STILL = 5.0
"""Seconds of standing, as the referee has it, after which a film leaves out what follows until the car moves again."""

FILM_CAMERA = (608, 456)
"""Width and height of the camera that shows the drives of those who look through none."""

PAPER, CARD, TRACK, LINE = (20, 23, 28), (28, 32, 39), (48, 54, 64), (62, 69, 81)
INK, SOFT = (230, 232, 236), (154, 163, 176)
ACCENT, GOOD, BAD = (106, 169, 255), (49, 181, 143), (238, 106, 82)
"""The report's colours on a dark screen."""

PLAN: Color = (190, 255, 90)
EGO: Color = (255, 255, 255)
ROUTE: Color = (106, 169, 255)
LIGHT_COLORS: dict[str, Color] = {"green": (60, 215, 110), "yellow": (255, 195, 50), "red": (255, 70, 60)}

TERRAIN: Color = (33, 41, 38)
GROUND: dict[str, Color] = {
    "paving": (84, 88, 95),
    "asphalt": (50, 54, 62),
    "kerb": (112, 116, 122),
    "paint_white": (196, 199, 204),
    "paint_yellow": (206, 166, 70),
    "rail": (92, 94, 98),
}
"""Colours from above of the ground's materials (`world.surface`)."""

PARKING: Color = (58, 61, 68)
BUILDING: Color = (62, 68, 80)

SHOWN_AS = {
    "detection": (taxonomy.BDD_DETECTION, taxonomy.DETECTION_COLORS),
    "nuscenes_2d": (taxonomy.NUSCENES_DETECTION, taxonomy.NUSCENES_COLORS),
    "drivable": (taxonomy.DRIVABLE, taxonomy.DRIVABLE_COLORS),
    "segmentation": (taxonomy.SEMANTIC, taxonomy.SEMANTIC_COLORS),
}
"""Classes and picture colours of each kind of expert."""


OVERLAY = {"drivable": 0.4, "segmentation": 0.3}
"""How much of their colour masks give to a picture."""


class Seen(NamedTuple):
    """What an expert says of a picture: its name, its kind, and its prediction in the picture's pixels."""

    name: str
    kind: str
    said: Mapping[str, np.ndarray]


def film(
    driver: DriverSpec, tasks: Sequence[RouteTask], seed: int, out: Path, records: Sequence[RouteRecord] = ()
) -> list[Path]:
    """Drive each route once more and leave out/<driver>_<route>.mp4. Returns the files.

    records: what became of those drives, if they are known: nobody waits then for a car that never moves again.

    Raises WriteError where one can't be written, and WorldError where the world, or the drawing, breaks off; a film
    appears whole or not at all.
    """
    known, names = {record.route_id: record for record in records}, [task.name(seed) for task in tasks]
    with one_torch_thread():  # as those who drive for a score: sums depend on it
        return [
            film_drive(driver, task, seed, out / f"{driver.name}_{name}.mp4", known.get(name))
            for task, name in zip(tasks, names)
        ]


def film_drive(driver: DriverSpec, task: RouteTask, seed: int, path: Path, known: RouteRecord | None = None) -> Path:
    """One film, without the long waits. known: what became of the drive. Raises as `film` does."""
    simulator, agent = begin(driver, task, seed)
    painter = Painter(simulator, agent, driver.name, f"{task.name(seed)} in {task.town}")
    every, number = max(1, round(1 / (FILMED * simulator.frame_seconds))), itertools.count()
    moved = simulator.time
    # When a car that stays blocked stood still for good: from then on there is nothing to see.
    stuck = known.seconds - BLOCKED_SECONDS - 1.0 if known and known.infractions.get("vehicle_blocked") else math.inf
    with video_file(path) as add:

        def watch(observation: Observation, control: Control) -> bool:
            nonlocal moved
            if observation.speed > BLOCKED_SPEED:
                moved = observation.time
            painter.note(observation)
            if next(number) % every == 0 and observation.time - moved <= STILL:
                add(painter.paint(observation, control))
            return observation.time - moved > STILL and moved > stuck

        record = drive_route(simulator, agent, task.name(seed), watch=watch)
        if painter.last is None or record.failure == SIMULATION_CRASHED:
            raise WorldError(f"{path} was not filmed: {record.failure} ({record.reason}); what it says is above.")
        verdict = draw_verdict(painter.last, known or record)
        for _ in range(round(VERDICT_SECONDS * PLAYED)):
            add(verdict)
    return path


@contextmanager
def video_file(path: Path, size: tuple[int, int] = SIZE, rate: int = PLAYED) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that takes the pictures, uint8 [H, W, 3] RGB of that size, one after the other: H.264 as
    browsers play it, `rate` a second. The file appears when the block ends well. Raises WriteError."""
    with (
        atomic_file(path) as file,
        av.open(file.name, "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "fast"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"

        def add(picture: np.ndarray) -> None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        yield add
        container.mux(stream.encode(None))


class Painter:
    """Paints the moments of one drive; it changes nothing about it. last: the last picture, if there is one."""

    def __init__(self, simulator: EmbeddedSimulator, agent: Agent, driver: str, title: str) -> None:
        self.simulator, self.agent, self.driver, self.title = simulator, agent, driver, title
        self.last: np.ndarray | None = None
        drive = simulator.drive
        self.town = TownMap(drive.scene.stage, drive.obstacles)
        # Who drives without a camera is filmed by another simulator's, which looks at the same drive.
        self.own_eyes = simulator.camera is not None
        self.eyes = simulator if self.own_eyes else EmbeddedSimulator(drive, title, carla_cameras(*FILM_CAMERA)[0])
        model = getattr(agent, "model", None)
        self._pictures: dict[str, np.ndarray] = {}
        self._seen: dict[str, Seen] = {}
        self.experts: dict[str, TrainedExpert] = {}
        for name, expert in model.experts.items() if model is not None else ():
            self.experts[name] = TrainedExpert(
                expert.model, expert.spec.size, expert.model.mean.device, Path(driver), {}
            )

    def note(self, observation: Observation) -> None:
        """A moment of the drive, filmed or not: who looked has seen this picture."""
        self._pictures |= dict.fromkeys(self.agent.shown().get("ran", ()), observation.image)

    def paint(self, observation: Observation, control: Control) -> np.ndarray:
        """The picture of a moment that was noted, uint8 [H, W, 3] RGB: what was seen, and what is done about it."""
        shown, drive = self.agent.shown(), self.simulator.drive
        picture = observation.image if self.own_eyes else self.eyes.observe().image
        camera = self.eyes.camera
        assert camera is not None
        seen = self.look(shown) if picture.size else []
        sight = draw_sight(picture, camera, seen, shown.get("path"), shown.get("waypoints"))
        conditions = drive.scene.conditions
        weather = f"{conditions.weather}, {conditions.time_of_day}"
        sight = _caption(sight, f"{self.driver}  ·  {self.title}  ·  {weather}", seen)
        view = self.town.view(drive.car.middle, drive.car.yaw)
        ahead = polyline.cut(drive.route.line, drive.station, drive.station + 1.3 * VIEW_AHEAD)
        draw_view(view, drive.scene, drive.car.middle, drive.car.yaw, ahead, shown.get("path"), shown.get("waypoints"))
        panel = draw_panel(self.simulator, observation, control, shown, self.driver)
        self.last = np.concatenate([np.concatenate([sight, view], axis=1), panel])
        self.last[: CAMERA_SIZE[0], CAMERA_SIZE[1]] = PAPER
        return self.last

    def look(self, shown: Mapping[str, Any]) -> list[Seen]:
        """What the experts that are heard say, each of the last picture at which it looked. Nobody else is asked."""
        heard = [name for name, weight in shown.get("weights", {}).items() if weight > 0.0]
        for name in heard:
            picture = self._pictures.pop(name, None)
            if picture is not None:
                said = self.experts[name].predict([picture])[0]
                own = {key: value.numpy() for key, value in said.items() if "/" not in key}
                self._seen[name] = Seen(name, self.experts[name].model.kind, own)
        return [self._seen[name] for name in heard if name in self._seen]


# --- the camera's picture ---


def draw_sight(
    image: np.ndarray,
    camera: Camera,
    seen: Sequence[Seen],
    path: np.ndarray | None = None,
    waypoints: np.ndarray | None = None,
    size: tuple[int, int] = CAMERA_SIZE,
) -> np.ndarray:
    """A camera's picture at a size (height, width), with what experts see in it and where the car is to go.

    image: uint8 [h, w, 3] RGB, or empty where there is none. path [M, 2], waypoints [T, 2]: metres, ego frame.
    """
    sheet = np.full((*size, 3), PAPER, np.uint8)
    if not image.size:
        _write(sheet, [((size[1] / 2, size[0] / 3), "no picture", 18, SOFT, "mm")])
        return sheet
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    picture = fit_width(image, round(image.shape[1] * scale))[: size[0]]
    masks = {one.kind: one.said["mask"] for one in seen if "mask" in one.said}
    height, width = picture.shape[:2]
    for kind in sorted(masks, reverse=True):  # the drivable area, where it is known, goes over the classes
        mask = cv2.resize(masks[kind], (width, height), interpolation=cv2.INTER_NEAREST)
        classes, colors = SHOWN_AS[kind]
        plain = ("background",) if kind == "drivable" else ("sky", *(("road",) if "drivable" in masks else ()))
        picture = overlay_mask(picture, mask, colors, OVERLAY[kind], [classes.index(one) for one in plain])
    picture = np.ascontiguousarray(picture)
    if path is not None:
        _draw_band(picture, camera, path, scale)
        if waypoints is not None:
            spots, front = into_picture(waypoints, camera)
            for spot in (spots * scale - 0.5)[front]:
                _dot(picture, spot, 4.0, (255, 255, 255), (30, 60, 20))
    for one in seen:
        if "boxes" in one.said:
            classes, colors = SHOWN_AS[one.kind]
            sure = one.said["scores"] >= BOX_SCORE
            boxes, labels, scores = (one.said[key][sure] for key in ("boxes", "labels", "scores"))
            picture = draw_boxes(picture, boxes * scale, labels, scores, classes=classes, colors=colors)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    sheet[top : top + height, left : left + width] = picture
    return sheet


def into_picture(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Points on the ground [N, 2] (metres, ego frame) in a camera's picture: pixels [N, 2], and bool [N], whether they
    lie before the camera."""
    # The camera is fixed to the world's ego, whose origin is under the rear axle.
    ground = np.column_stack([points[:, 0] + AHEAD, points[:, 1], np.zeros(len(points))])
    local = world_to_camera(camera.T_ego_cam, ground)
    front = local[:, 2] > 0.3
    local[:, 2] = np.maximum(local[:, 2], 0.3)
    return project(camera, local), front


def _draw_band(picture: np.ndarray, camera: Camera, path: np.ndarray, scale: float) -> None:
    """A path as a band on the road, somewhat narrower than the car."""
    line = polyline.densify(np.concatenate([[[LENGTH / 2, 0.0]], path[path[:, 0] > LENGTH / 2]]), 0.5)
    if len(line) < 3:
        return
    edges = [into_picture(polyline.offset(line, side * 0.35 * WIDTH), camera) for side in (1.0, -1.0)]
    front = edges[0][1] & edges[1][1]
    left, right = (edge[0][front] * scale - 0.5 for edge in edges)
    if len(left) < 2:
        return
    tinted = picture.copy()
    _fill(tinted, np.concatenate([left, right[::-1]]), PLAN)
    cv2.addWeighted(tinted, 0.42, picture, 0.58, 0.0, dst=picture)
    for edge in (left, right):
        _line(picture, edge, PLAN, 2)


def _caption(picture: np.ndarray, title: str, seen: Sequence[Seen]) -> np.ndarray:
    """The title above, the experts that ran and what their colours mean below, on darkened ground."""
    height, width = picture.shape[:2]
    picture[:24] = picture[:24] // 3
    words = [((10.0, 12.0), shorten(title, width - 20, font_of(13)), 13, INK, "lm")]
    if seen:
        picture[height - 24 :] = picture[height - 24 :] // 3
        middle, x = height - 12.0, 10.0
        words.append(((x, middle), "seen by " + " + ".join(one.name for one in seen), 13, INK, "lm"))
        x += font_of(13).getlength(words[-1][1]) + 24
        explained = any(one.kind == "drivable" for one in seen)
        for name, color in zip(taxonomy.DRIVABLE[:2], taxonomy.DRIVABLE_COLORS) if explained else ():
            picture[height - 17 : height - 7, int(x) : int(x) + 10] = color
            words.append(((x + 15, middle), name, 13, SOFT, "lm"))
            x += 15 + font_of(13).getlength(name) + 16
    _write(picture, words)
    return picture


# --- from above ---


class TownMap:
    """A town from above: painted once, then shown from wherever the car is."""

    FINE = 16.0
    """Pixels a metre of what is painted; half of them are kept."""

    MARGIN = 25.0
    """Metres beyond the roads."""

    def __init__(self, stage: StagedTown, obstacles: Obstacles) -> None:
        town = stage.town
        roads = np.concatenate([lane.centre for lane in town.lanes.values()])
        self._west, south = roads.min(axis=0) - self.MARGIN
        east, self._north = roads.max(axis=0) + self.MARGIN
        shape = int((self._north - south) * self.FINE), int((east - self._west) * self.FINE)
        colors: list[Color] = [TERRAIN]
        places = np.zeros(shape, np.uint8)

        def fill(polygons: Sequence[np.ndarray], color: Color) -> None:
            colors.append(color)
            for polygon in polygons:
                spots = np.stack([polygon[:, 0] - self._west, self._north - polygon[:, 1]], axis=1) * self.FINE - 0.5
                cv2.fillPoly(places, [_fixed(spots)], len(colors) - 1, shift=_SHIFT)

        for material, color in GROUND.items():
            parts = [part for part in stage.ground if part.material.name == material]
            fill([corners for part in parts for corners in part.vertices[part.faces][..., :2]], color)
            if material == "asphalt":
                fill([lane.polygon() for lane in town.lanes.values() if lane.kind == "parking"], PARKING)
        fill([np.array(outline.exterior.coords) for outline in obstacles.shapes], BUILDING)
        self._raster = _halved(places, np.array(colors, np.uint8))

    def view(self, middle: tuple[float, float], yaw: float, size: tuple[int, int] = VIEW_SIZE) -> np.ndarray:
        """What is round a car, its heading up: uint8 [h, w, 3] RGB. middle: of the car, world, metres."""
        kept = self.FINE / 2
        to_raster = np.array(
            [[kept, 0.0, -kept * self._west - 0.5], [0.0, -kept, kept * self._north - 0.5], [0.0, 0.0, 1.0]]
        )
        whole = view_of_world(middle, yaw) @ np.linalg.inv(to_raster)
        return cv2.warpAffine(
            self._raster, whole, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=TERRAIN
        )


def view_of_world(middle: tuple[float, float] | np.ndarray, yaw: float) -> np.ndarray:
    """From world metres to pixels (column, row) of the view from above: [2, 3]. Ahead is up, left is left."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    turn = VIEW_SCALE * np.array([[sin, -cos], [-cos, -sin]])
    place = np.array([VIEW_SIZE[1] / 2, VIEW_AHEAD * VIEW_SCALE]) - 0.5
    return np.column_stack([turn, place - turn @ np.asarray(middle)])


def draw_view(
    view: np.ndarray,
    scene: Scene,
    middle: tuple[float, float],
    yaw: float,
    route: np.ndarray,
    path: np.ndarray | None = None,
    waypoints: np.ndarray | None = None,
) -> None:
    """Draw on a view from above: the route [N, 2] (world), stop lines with their lights, road users by category, the
    ego, and its path [M, 2] and waypoints [T, 2] (ego frame, metres)."""
    whole, own = view_of_world(middle, yaw), view_of_world((0.0, 0.0), 0.0)

    def place(points: np.ndarray, transform: np.ndarray = whole) -> np.ndarray:
        return points @ transform[:, :2].T + transform[:, 2]

    tinted = view.copy()
    _line(tinted, place(route), ROUTE, round(1.4 * VIEW_SCALE))
    cv2.addWeighted(tinted, 0.35, view, 0.65, 0.0, dst=view)
    _draw_lines(view, scene, place)
    for actor in scene.actors:
        if np.hypot(actor.x - middle[0], actor.y - middle[1]) < 1.5 * VIEW_AHEAD:
            said = taxonomy.bdd_detection_class(actor.category)
            color = (150, 150, 150) if said is None else taxonomy.DETECTION_COLORS[said[0]]
            _draw_user(view, place(_rectangle((actor.x, actor.y), actor.yaw, *actor.size[:2])), color, actor.parked)
    if path is not None:
        _line(view, place(np.concatenate([[[0.0, 0.0]], path]), own), PLAN, 3)
    _draw_user(view, place(_rectangle((0.0, 0.0), 0.0, LENGTH, WIDTH), own), EGO, False)
    for spot in [] if waypoints is None or path is None else place(waypoints, own):
        _dot(view, spot, 3.0, (255, 255, 255), (30, 60, 20))
    _draw_scale(view)


def _draw_lines(view: np.ndarray, scene: Scene, place: Callable[[np.ndarray], np.ndarray]) -> None:
    """Stop lines in the colour of their light; those without one as they are painted."""
    town = scene.stage.town
    states = {(signal.node, signal.street): signal.state(scene.time) for signal in town.signals}
    for line in town.stop_lines:
        state = states.get((line.node, line.street))
        ends = place(line.points)
        if state is None:
            _line(view, ends, (240, 240, 240), 3)
            continue
        _line(view, ends, LIGHT_COLORS[state], 4)


_SHIELD = ((0, 3, 0.22), (1, 2, 0.22), (1, 2, 0.38), (0, 3, 0.38))
"""Corners of a windscreen: from one corner of a box so far to another."""


def _draw_user(view: np.ndarray, corners: np.ndarray, color: Color, parked: bool) -> None:
    """A road user as a box [4, 2] whose front, the first two corners, is dark as a windscreen."""
    base = np.array(color) * (0.55 if parked else 1.0)
    _fill(view, corners, tuple(base.astype(int).tolist()))
    if np.hypot(*(corners[0] - corners[3])) > 2.5 * VIEW_SCALE:
        shield = [corners[a] + share * (corners[b] - corners[a]) for a, b, share in _SHIELD]
        _fill(view, np.array(shield), tuple((base * 0.35).astype(int).tolist()))
    _line(view, corners, (16, 18, 22), 1, closed=True)


def _rectangle(middle: tuple[float, float], yaw: float, length: float, width: float) -> np.ndarray:
    """Corners [4, 2]: front left, front right, rear right, rear left."""
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]) * length / 2, np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2
    return np.array([ahead + left, ahead - left, -ahead - left, -ahead + left]) + middle


def _draw_scale(view: np.ndarray) -> None:
    """Ten metres, in the lower right corner."""
    right, low = view.shape[1] - 12, view.shape[0] - 12
    left = right - round(10 * VIEW_SCALE)
    _line(view, np.array([[left, low - 5], [left, low], [right, low], [right, low - 5]], float), INK, 2)
    _write(view, [(((left + right) / 2, low - 4.0), "10 m", 12, INK, "mb")])


def _halved(places: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Numbers of colours [2h, 2w] as a picture [h, w, 3] of half the size, each pixel the mean of four."""
    height, width = places.shape[0] // 2, places.shape[1] // 2
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        rows = colors[places[2 * top : 2 * min(top + 256, height), : 2 * width]]
        picture[top : top + 256] = cv2.resize(rows, (width, len(rows) // 2), interpolation=cv2.INTER_AREA)
    return picture


# --- the panel ---


def draw_panel(
    simulator: EmbeddedSimulator, observation: Observation, control: Control, shown: Mapping[str, Any], driver: str
) -> np.ndarray:
    """The gate, speeds, what holds and leads the car, pedals and steering, and the score so far."""
    panel = np.full((*PANEL_SIZE, 3), CARD, np.uint8)
    panel[0] = LINE
    words: list[Words] = []
    _gate_block(panel, words, 12, shown, driver)
    _speed_block(panel, words, 282, observation.speed, shown)
    _way_block(panel, words, 428, simulator, observation)
    _control_block(panel, words, 564, control)
    _score_block(panel, words, 736, simulator)
    for x in (270, 416, 552, 724):
        panel[12:-12, x] = LINE
    _write(panel, words)
    return panel


Words = tuple[tuple[float, float], str, int, Color, str]
"""Where, what, font size, colour and anchor."""


def _gate_block(panel: np.ndarray, words: list[Words], x: int, shown: Mapping[str, Any], driver: str) -> None:
    """A bar for each expert as long as the gate thinks it is worth; strong for those that ran, less so for those that
    are heard on."""
    probabilities, weights = shown.get("probabilities", {}), shown.get("weights", {})
    if not probabilities:
        words.append(((x, 42.0), f"{driver}: no expert ran", 14, SOFT, "lm"))
        return
    step = min(18.0, 76.0 / len(probabilities))
    top = 42.0 - step * len(probabilities) / 2
    for row, (name, share) in enumerate(probabilities.items()):
        y, ran = top + (row + 0.5) * step, name in shown.get("ran", ())
        heard = (68, 118, 168) if weights.get(name, 0.0) > 0.0 else (84, 104, 132)
        words.append(((x, y), shorten(name, 92, font_of(13)), 13, INK if ran else SOFT, "lm"))
        _bar(panel, x + 98, y, 108, share, ACCENT if ran else heard)
        words.append(((x + 246, y), f"{100 * share:.0f} %", 13, INK if ran else SOFT, "rm"))


def _speed_block(panel: np.ndarray, words: list[Words], x: int, speed: float, shown: Mapping[str, Any]) -> None:
    target, most = shown.get("target_speed"), 15.0
    number = f"{speed:.1f}"
    words.append(((x, 26.0), number, 28, INK, "lm"))
    words.append(((x + font_of(28).getlength(number) + 6, 31.0), "m/s", 14, SOFT, "lm"))
    _bar(panel, x, 52, 122, speed / most, ACCENT)
    if target is not None:
        place = x + round(122 * min(target / most, 1.0))
        panel[46:59, place - 1 : place + 2] = PLAN
    said = shown.get("stopping") or (f"{3.6 * speed:.0f} km/h" if target is None else f"target {target:.1f} m/s")
    color = BAD if "stopping" in shown else SOFT if target is None else PLAN
    words.append(((x, 70.0), said, 13, color, "lm"))


def _way_block(
    panel: np.ndarray, words: list[Words], x: int, simulator: EmbeddedSimulator, observation: Observation
) -> None:
    """The command, and the light that holds the car."""
    command = taxonomy.CARLA_COMMANDS[observation.command] if observation.command >= 0 else "unknown"
    _arrow(panel, np.array([x + 12.0, 27.0]), command)
    words.append(((x + 32, 27.0), command, 15, INK, "lm"))
    found = simulator.drive.traffic.light_ahead()
    if found is None or found[1] > LIGHT_METRES:
        _dot(panel, np.array([x + 12.0, 60.0]), 8.0, TRACK, LINE)
        words.append(((x + 32, 60.0), "no light", 13, SOFT, "lm"))
        return
    state = found[0].state(simulator.drive.scene.time)
    _dot(panel, np.array([x + 12.0, 60.0]), 8.0, LIGHT_COLORS[state], PAPER)
    words.append(((x + 32, 60.0), f"{state}, {max(found[1], 0.0):.0f} m", 13, LIGHT_COLORS[state], "lm"))


_ARROWS = {
    "follow": [(0, 11), (0, -9)],
    "straight": [(0, 11), (0, -9)],
    "left": [(5, 11), (5, -3), (-9, -3)],
    "right": [(-5, 11), (-5, -3), (9, -3)],
}


def _arrow(panel: np.ndarray, middle: np.ndarray, command: str) -> None:
    """The command as an arrow of a road sign; nothing where it is unknown."""
    if command in _ARROWS:
        line = np.array(_ARROWS[command], float) + middle
        color = SOFT if command == "follow" else ACCENT
        _line(panel, line, color, 3)
        ahead = (line[-1] - line[-2]) / np.hypot(*(line[-1] - line[-2]))
        tip, aside = line[-1], 7 * np.array([-ahead[1], ahead[0]])
        _fill(panel, np.stack([tip + 4 * ahead, tip - 3 * ahead + aside, tip - 3 * ahead - aside]), color)


def _control_block(panel: np.ndarray, words: list[Words], x: int, control: Control) -> None:
    for row, (name, value, color) in enumerate((("throttle", control.throttle, GOOD), ("brake", control.brake, BAD))):
        words.append(((x, 20.0 + 22 * row), name, 13, SOFT, "lm"))
        _bar(panel, x + 54, 20 + 22 * row, 92, value, color)
    words.append(((x, 64.0), "steer", 13, SOFT, "lm"))
    left, width = x + 54, 92
    panel[60:69, left : left + width] = TRACK
    middle = left + width // 2
    end = middle + round(control.steer * width / 2)
    panel[60:69, min(middle, end) : max(middle, end) + 1] = ACCENT
    panel[58:71, middle] = SOFT


def _score_block(panel: np.ndarray, words: list[Words], x: int, simulator: EmbeddedSimulator) -> None:
    """Time, completion of the route, and infractions so far."""
    referee = simulator.referee
    right = PANEL_SIZE[1] - 12
    words.append(((x, 18.0), f"{simulator.time:.1f} s", 14, INK, "lm"))
    words.append(((x + 62, 18.0), f"{PLAYED / FILMED:g}x speed", 12, SOFT, "lm"))
    words.append(((right, 18.0), f"route {referee.completion:.0f} %", 14, INK, "rm"))
    _bar(panel, x, 36, right - x, referee.completion / 100.0, GOOD)
    counts = {kind: len(said) for kind, said in referee.infractions.items() if said}
    lines = [f"{LABELS[kind].lower()}: {count}" for kind, count in counts.items()]
    if referee.outside_metres > 0.0:
        lines.append(f"{LABELS[OUTSIDE].lower()}: {referee.outside_metres:.1f} m")
    if len(lines) > 2:
        lines = [f"{lines[0]}", f"and {len(lines) - 1} other kinds"]
    for row, line in enumerate(lines or ["no infractions"]):
        said = shorten(line, right - x, font_of(13))
        words.append(((x, 54.0 + 18 * row), said, 13, BAD if lines else GOOD, "lm"))


def draw_verdict(picture: np.ndarray, record: RouteRecord) -> np.ndarray:
    """A film's picture with what became of the drive across its middle."""
    picture = picture.copy()
    middle = CAMERA_SIZE[0] // 2
    picture[middle - 46 : middle + 46] = picture[middle - 46 : middle + 46] // 5
    x, color = SIZE[1] / 2, GOOD if record.succeeded else BAD
    said = f"route completion {record.completion:.0f} %, driving score {record.driving_score:.1f}"
    _write(
        picture,
        [
            ((x, middle - 16.0), record.status, 30, color, "mm"),
            ((x, middle + 22.0), said, 20, INK, "mm"),
        ],
    )
    return picture


# --- strokes ---

_SHIFT = 4
"""Bits of a pixel's fraction that OpenCV is given."""


def _fixed(points: np.ndarray) -> np.ndarray:
    return (np.clip(points, -1e5, 1e5) * (1 << _SHIFT)).round().astype(np.int32)


def _fill(picture: np.ndarray, polygon: np.ndarray, color: Color) -> None:
    cv2.fillPoly(picture, [_fixed(polygon)], color, cv2.LINE_AA, _SHIFT)


def _line(picture: np.ndarray, points: np.ndarray, color: Color, width: int, closed: bool = False) -> None:
    cv2.polylines(picture, [_fixed(points)], closed, color, width, cv2.LINE_AA, _SHIFT)


def _dot(picture: np.ndarray, middle: np.ndarray, radius: float, color: Color, rim: Color) -> None:
    x, y = _fixed(middle).tolist()
    cv2.circle(picture, (x, y), round((radius + 1.5) * (1 << _SHIFT)), rim, -1, cv2.LINE_AA, _SHIFT)
    cv2.circle(picture, (x, y), round(radius * (1 << _SHIFT)), color, -1, cv2.LINE_AA, _SHIFT)


def _bar(panel: np.ndarray, x: int, y: float, width: int, share: float, color: Color) -> None:
    """A bar nine pixels high round a row, filled up to a share."""
    top = round(y) - 4
    panel[top : top + 9, x : x + width] = TRACK
    panel[top : top + 9, x : x + round(width * min(max(share, 0.0), 1.0))] = color


def _write(picture: np.ndarray, words: Sequence[Words]) -> None:
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    for place, text, size, color, anchor in words:
        draw.text(place, text, fill=color, font=font_of(size), anchor=anchor)
    picture[:] = np.asarray(sheet)
