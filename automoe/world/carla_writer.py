"""Writes the embedded world as CARLA recordings: runs of the teacher, in the folders of `automoe.carla.run`.

    run_000 ...      training runs; run_900 ... are in towns of their own, for validation
    maps/TOWN.xodr   each town as OpenDRIVE
    world.json       how it was made, what is in it, and which runs are for validation

Places are the towns' own, in CARLA's axes: an OpenDRIVE y is minus a CARLA y. A run is a function of (seed, split,
index) and of the size, the length and the rate asked for. Its teacher drives a drawn route; a run ends where the route
does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automoe.carla import run
from automoe.carla.frame import flip, say_pose, say_vector, say_yaw
from automoe.carla.run import Frame, RunWriter, run_name
from automoe.config import from_dict
from automoe.errors import WorldError
from automoe.image_boxes import visible_extent
from automoe.poses import box_corners, upright
from automoe.taxonomy import BDD_DETECTION, CARLA_COMMANDS, CARLA_TAGS, SEMANTIC
from automoe.world.workers import begin, check_settings, make_pieces, settings_of, write_piece

if TYPE_CHECKING:
    from automoe.world import renderer as rendering
    from automoe.world.contacts import Obstacles
    from automoe.world.drive import Drive
    from automoe.world.lidar import LidarCaster
    from automoe.world.look import Look
    from automoe.world.renderer import Light, Renderer
    from automoe.world.route import Route
    from automoe.world.scene import Actor, Camera, Conditions, Scene
    from automoe.world.town import Town
    from automoe.world.vehicle import Control

FORMAT_VERSION = 1
MOST_TOWNS = 99


def train_towns(count: int) -> tuple[str, ...]:
    """The first `count` towns to train in."""
    return tuple(f"carla-train-{index:02d}" for index in range(1, count + 1))


TRAIN_TOWNS = train_towns(8)
VAL_TOWNS: tuple[str, ...] = tuple(f"carla-val-{index:02d}" for index in range(1, 5))
SPLITS = ("train", "val")
FIRST_VAL = 900
"""The number of the first validation run."""

VERSION = "0.9.15"
"""Whose semantic tags the runs have."""

MASS = 1500.0
"""Kilograms of the ego, for the impulse of a collision."""

LIGHT_METRES = 40.0
"""How far before its line a light concerns the driver."""

ATTENUATION = 0.004
"""Of the LiDAR's intensity, per metre: CARLA's own."""

RANGE_NOISE = 0.01
SHIFT_METRES, SHIFT_DEGREES = 1.5, 10.0
"""How far aside and askew run.SHIFTED stands, at most: more than in TransFuser and its successors (1 m and 5 degrees),
since few drives have to show all that may go wrong."""

_WEATHER: dict[str, dict[str, float]] = {
    "clear": {"cloudiness": 5.0},
    "partly cloudy": {"cloudiness": 40.0},
    "overcast": {"cloudiness": 85.0},
    "rainy": {"cloudiness": 85.0, "precipitation": 60.0, "precipitation_deposits": 50.0, "wetness": 70.0},
    "foggy": {"cloudiness": 60.0, "fog_density": 60.0, "fog_distance": 15.0, "wetness": 10.0},
}
"""The world's weather in CARLA's parameters."""


@dataclass(frozen=True)
class RunPlan:
    """What an export makes; written to world.json, and the same in every worker."""

    seed: int
    size: tuple[int, int]
    seconds: float
    save_every: int
    train: int
    val: int
    cameras: tuple[str, ...] = run.CAMERAS
    train_towns: tuple[str, ...] = TRAIN_TOWNS
    val_towns: tuple[str, ...] = VAL_TOWNS
    look: str = "carla"
    version: int = FORMAT_VERSION
    lead_in: float = 0.0
    late_starts: float = 0.0
    lidar: bool = True

    def town(self, split: str, index: int) -> str:
        towns = self.train_towns if split == "train" else self.val_towns
        return towns[index % len(towns)]

    def runs(self) -> list[tuple[str, int]]:
        """Every (split, index), those of one town together."""
        found = [("train", index) for index in range(self.train)] + [("val", index) for index in range(self.val)]
        return sorted(found, key=lambda one: (one[0], self.town(*one), one[1]))


def folder_of(split: str, index: int) -> str:
    """The folder of a run."""
    return run_name(index + (FIRST_VAL if split == "val" else 0))


def export_carla(
    out: Path,
    runs: int,
    val_runs: int,
    seed: int,
    *,
    seconds: float = 60.0,
    size: tuple[int, int] = (400, 300),
    save_every: int = run.SAVE_EVERY,
    cameras: Sequence[str] = run.CAMERAS,
    towns: int = len(TRAIN_TOWNS),
    lead_in: float = 0.0,
    late_starts: float = 0.0,
    lidar: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write `runs` training and `val_runs` validation runs, going on where the same call stopped earlier.

    seconds: of each run, at most. size: width and height of the pictures; 800 x 600 is that of public runs. save_every:
    ticks of 0.05 s from frame to frame. cameras: some of run.CAMERAS, the labelled one among them, and run.SHIFTED
    beside them. towns: to train in, by turns. lead_in: up to so many seconds, drawn for each run, are driven before it
    is recorded: otherwise all begin with a car that sets off. late_starts: for up to so many seconds the teacher stands
    on where nothing holds him any more (`autopilot.LateStarts`). lidar: whether there is one; it takes a sixth of the
    time. progress: called with (runs done, runs in all). Returns the content of world.json. Raises WorldError when
    `out` holds an export with other settings, or the world cannot be rendered.
    """
    out = Path(out)
    if not 1 <= runs <= FIRST_VAL or val_runs < 1 or seconds < 1 or save_every < 1:
        raise WorldError(
            f"an export needs 1 to {FIRST_VAL} training runs, a validation run, a second of each and a tick between "
            "frames at least"
        )
    if not 1 <= towns <= MOST_TOWNS or lead_in < 0.0 or late_starts < 0.0:
        raise WorldError(
            f"an export is in 1 to {MOST_TOWNS} training towns, with a lead-in and late starts of 0 s or more"
        )
    known = (*run.CAMERAS, run.SHIFTED)
    if run.LABELLED not in cameras or not set(cameras) <= set(known):
        raise WorldError(f"cameras are some of {', '.join(known)}, {run.LABELLED} among them, not {', '.join(cameras)}")
    chosen = tuple(name for name in known if name in cameras)
    plan = RunPlan(
        seed, (int(size[0]), int(size[1])), float(seconds), int(save_every), runs, val_runs, chosen,
        train_towns(towns), lead_in=float(lead_in), late_starts=float(late_starts), lidar=bool(lidar),
    )  # fmt: skip
    check_settings(out, plan, folder_of("train", 0), "a run")
    begin(out, plan)
    waiting = [one for one in plan.runs() if not (out / folder_of(*one) / "config.json").is_file()]
    make_pieces(write_runs, "automoe.world.carla_writer:work", out, plan, waiting, workers=workers, progress=progress)
    return _finish(out, plan)


def work(job: dict[str, Any], on_run: Callable[[], None]) -> None:
    """A worker's share of an export."""
    plan = from_dict(RunPlan, job["plan"], "plan")
    write_runs(Path(job["out"]), plan, [(split, index) for split, index in job["pieces"]], on_run)


# ---------------------------------------------------------------- one process


def write_runs(out: Path, plan: RunPlan, runs: Sequence[tuple[str, int]], on_run: Callable[[], None]) -> None:
    """Drive, render and write runs one after another; those of one town should stand together."""
    from automoe.world.contacts import Obstacles
    from automoe.world.furnish import stage_town
    from automoe.world.lidar import LidarCaster
    from automoe.world.renderer import Renderer, check_rendering

    check_rendering()
    current, renderer, caster, obstacles = None, None, None, None
    try:
        for split, index in runs:
            town = plan.town(split, index)
            if town != current:
                if renderer is not None:
                    renderer.close()
                stage = stage_town(town)
                if not (out / f"maps/{town}.xodr").is_file():
                    write_piece(out / f"maps/{town}.xodr", stage.town.opendrive.encode())
                renderer, obstacles = Renderer(stage, *plan.size), Obstacles(stage)
                caster = LidarCaster(stage) if plan.lidar else None
                current = town
            assert renderer is not None
            assert obstacles is not None
            _Recorder(out, plan, split, index, renderer, caster, obstacles).record()
            on_run()
    finally:
        if renderer is not None:
            renderer.close()


class _Recorder:
    """One run: the teacher drives, the sensors look."""

    def __init__(
        self, out: Path, plan: RunPlan, split: str, index: int, renderer: Renderer, caster: LidarCaster | None,
        obstacles: Obstacles,
    ) -> None:  # fmt: skip
        from automoe.world.drive import Drive
        from automoe.world.rig import carla_cameras, carla_lidar
        from automoe.world.traffic import draw_conditions

        self.plan, self.renderer, self.caster = plan, renderer, caster
        self.split, self.index, self.name = split, index, folder_of(split, index)
        self.rng = np.random.default_rng([plan.seed, 400 + SPLITS.index(split), index])
        self.cameras = [camera for camera in carla_cameras(*plan.size) if camera.name in plan.cameras]
        self.lidar = carla_lidar()
        self.writer = RunWriter(out / self.name)
        conditions = draw_conditions(self.rng)
        self.route = _long_route(renderer.stage.town, self.rng, plan.seconds + plan.lead_in)
        drive_seed = int(self.rng.integers(2**31))
        self.drive: Drive = Drive(renderer.stage, self.route, drive_seed, conditions, obstacles=obstacles)
        self.began, self.before = self.drive.scene.time, self.drive.car
        paint = [material.name in ("paint_white", "paint_yellow") for material in renderer.geom_material]
        rails = [material.name == "rail" for material in renderer.geom_material]
        self._paint, self._rails = np.array([*paint, False]), np.array([*rails, False])

    def record(self) -> None:
        from automoe.world.autopilot import Autopilot, LateStarts

        pilot, touched, tick = Autopilot(), set(), 0
        own = np.random.default_rng([self.plan.seed, 402 + SPLITS.index(self.split), self.index])
        driver = LateStarts(pilot, own, self.plan.late_starts) if self.plan.late_starts > 0.0 else pilot
        if self.plan.lead_in > 0.0:
            for _ in range(int(self.rng.uniform(0.0, self.plan.lead_in) / run.TICK)):
                self.drive.step(pilot.control(self.drive))
            self.began = self.drive.scene.time
        for tick in range(round(self.plan.seconds / run.TICK)):
            self.before = before = self.drive.car
            control = driver.control(self.drive)
            self.drive.step(control)
            for contact in self.drive.contacts:
                if contact.id not in touched:
                    lost = MASS * (self.drive.car.speed - before.speed if contact.solid else 0.0)
                    push = lost * np.array([np.cos(before.yaw), np.sin(before.yaw)])
                    self.writer.collisions.append(
                        {
                            "timestamp": round(self.drive.scene.time - self.began, 3),
                            "frame": tick,
                            "actor_type": f"{contact.kind}.{contact.what}",
                            "actor_id": contact.id,
                            "impulse": say_vector(push),
                        }
                    )
            touched |= {contact.id for contact in self.drive.contacts}
            if tick % self.plan.save_every == 0:
                self._save(tick, control)
            if self.drive.station > self.route.length - 5.0:
                break
        self.writer.finish(self._config(tick))

    def _save(self, tick: int, control: Control) -> None:
        from automoe.world.annotate import boxes_2d, drivable_mask
        from automoe.world.look import LOOKS, glow_table, scene_light, shade

        scene = self.drive.scene
        light, look = scene_light(scene.conditions), LOOKS[self.plan.look]
        self.renderer.place(scene)
        glow, images, labels = glow_table(self.renderer, scene), {}, {}
        for camera in self.cameras:
            frame = self.renderer.render(scene, camera, light)
            if camera.name == run.LABELLED:
                seen = {box.instance: box for box in boxes_2d(frame, scene, camera)}
                labels = {
                    "tags": self._tags(frame),
                    "drivable": drivable_mask(frame, scene, camera),
                    "boxes": list(_boxes(scene, camera, seen)),
                }
            images[camera.name] = shade(frame, scene, camera, self.renderer, look, self.rng, glow)
        log = self._log(tick, control)
        if run.SHIFTED in self.plan.cameras:
            images[run.SHIFTED], labels["drivable_aside"], log["camera_shift"] = self._shifted(light, look, glow)
        lidar = None if self.caster is None else lidar_points(self.caster.sweep(scene, self.lidar), self.rng)
        boxes3d = [_box3d(actor) for actor in _near(scene)]
        self.writer.frame(Frame(tick, log, images, lidar=lidar, boxes3d=boxes3d, **labels))

    def _shifted(self, light: Light, look: Look, glow: Any) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The picture of run.SHIFTED, its lanes, and where it stood, in CARLA's axes."""
        from automoe.world.annotate import drivable_mask
        from automoe.world.look import shade
        from automoe.world.rig import shifted_camera

        aside, turn = self.rng.uniform(-1.0, 1.0, 2) * [SHIFT_METRES, np.radians(SHIFT_DEGREES)]
        front = next(camera for camera in self.cameras if camera.name == run.LABELLED)
        camera = shifted_camera(front, aside, turn)
        frame = self.renderer.render(self.drive.scene, camera, light)
        picture = shade(frame, self.drive.scene, camera, self.renderer, look, self.rng, glow)
        return picture, drivable_mask(frame, self.drive.scene, camera), {"y": 0.0 - float(aside), "yaw": say_yaw(turn)}

    def _tags(self, frame: rendering.Frame) -> np.ndarray:
        """CARLA's tags uint8 [H, W] of a frame."""
        names = CARLA_TAGS["0.9.14"]
        tags = np.array([names.index(name) for name in SEMANTIC], np.uint8)[frame.semantic]
        road = frame.semantic == SEMANTIC.index("road")
        tags[road & self._paint[frame.geom]] = names.index("road line")
        tags[road & self._rails[frame.geom]] = names.index("rail track")
        return tags

    def _log(self, tick: int, control: Control) -> dict[str, Any]:
        drive, car, scene = self.drive, self.drive.car, self.drive.scene
        location, rotation = say_pose(upright(*car.middle, 0.0, car.yaw))
        velocity = np.array(car.velocity)
        vehicles = [actor for actor in scene.actors if actor.category in _VEHICLES]
        x, y = car.middle
        near = sum(np.hypot(actor.x - x, actor.y - y) < 50.0 for actor in vehicles)
        people = sum(actor.category == "pedestrian" for actor in scene.actors)
        light = drive.traffic.light_ahead()
        return {
            "frame": tick,
            "timestamp": round(scene.time - self.began, 3),
            "image_filename": f"{tick:06d}.png",
            "location": location,
            "rotation": rotation,
            "velocity": say_vector(velocity),
            "speed_kmh": 3.6 * float(np.hypot(*velocity)),
            "control": {"throttle": control.throttle, "steer": control.steer, "brake": control.brake},
            "traffic_density": {
                "nearby_vehicles_50m": int(near),
                "total_npc_vehicles": len(vehicles),
                "total_npc_walkers": int(people),
            },
            "acceleration": say_vector((velocity - np.array(self.before.velocity)) / run.TICK),
            "angular_velocity": {"x": 0.0, "y": 0.0, "z": say_yaw(car.yaw_rate)},
            "speed_limit_kmh": 3.6 * drive.traffic.speed_limit(),
            "target_speed_kmh": 3.6 * drive.traffic.target_speed(),
            "traffic_light": None
            if light is None or light[1] > LIGHT_METRES
            else {"id": light[0].id, "state": light[0].state(scene.time).capitalize(), "distance": light[1]},
            "route": {
                "station": drive.station,
                "command": 1 + CARLA_COMMANDS.index(self.route.command(drive.station)),
                "target_points": flip(self.route.next_targets(drive.station)).tolist(),
            },
        }

    def _config(self, tick: int) -> dict[str, Any]:
        from automoe import __version__

        stage, conditions = self.renderer.stage, self.drive.scene.conditions
        start = say_vector(self.route.line[0])
        actors = self.drive.scene.actors
        return {
            "run_id": self.name,
            "map": stage.town.name,
            "split": self.split,
            "weather": carla_weather(conditions),
            "spawn_point": start,
            "timestamp_start": 0.0,
            "duration_seconds": round((tick + 1) * run.TICK, 3),
            "all_cameras_enabled": self.plan.cameras == run.CAMERAS,
            "save_every_n": self.plan.save_every,
            "npc_config": {
                "vehicles_spawned": sum(actor.category in _VEHICLES for actor in actors),
                "walkers_spawned": sum(actor.category == "pedestrian" for actor in actors),
            },
            "carla_version": VERSION,
            "simulator": f"automoe {__version__}",
            "tick_seconds": run.TICK,
            "sensors": run.rig(*self.plan.size, self.plan.cameras, lidar=self.plan.lidar),
            "route": {
                "points": flip(self.route.line).round(3).tolist(),
                "commands": [1 + CARLA_COMMANDS.index(turn) for turn in self.route.turns],
            },
        }


_VEHICLES = ("car", "truck", "bus", "train", "motorcycle", "bicycle")


def _long_route(town: Town, rng: np.random.Generator, seconds: float) -> Route:
    """A route that no driver comes to the end of, or the longest there is: it runs through no lane twice."""
    from automoe.world.route import draw_route

    for length in np.geomspace(max(12.0 * seconds, 60.0), 60.0, 12):
        try:
            return draw_route(town, rng, float(length))
        except WorldError:
            continue
    raise WorldError(f"town {town.name} has no route of 60 m")


def carla_weather(conditions: Conditions) -> dict[str, Any]:
    """The world's conditions as CARLA's weather parameters, and in our own words."""
    zero = ("precipitation", "precipitation_deposits", "wetness", "fog_density", "fog_distance", "wind_intensity")
    return {
        **dict.fromkeys(zero, 0.0),
        **_WEATHER[conditions.weather],
        "preset": f"{conditions.weather}, {conditions.time_of_day}",
        # CARLA's azimuth turns the other way, from its own x.
        "sun_azimuth_angle": float(np.degrees(-conditions.sun_azimuth) % 360.0),
        "sun_altitude_angle": float(np.degrees(conditions.sun_elevation)),
        "weather": conditions.weather,
        "timeofday": conditions.time_of_day,
    }


def lidar_points(sweep: Any, rng: np.random.Generator) -> np.ndarray:
    """A turn as CARLA writes it, float32 [N, 4]: x, y to the right, z, and what is left of a pulse."""
    noise = 1.0 + rng.normal(0, RANGE_NOISE, len(sweep.points)) / np.maximum(sweep.distance, 1.0)
    intensity = np.exp(-ATTENUATION * sweep.distance)
    return np.column_stack([flip(sweep.points * noise[:, None]), intensity]).astype(np.float32)


# ---------------------------------------------------------------- boxes


def _near(scene: Scene) -> list[Actor]:
    """Road users with a box of their own round the ego; a rider is part of his two-wheeler."""
    ego = scene.ego
    near = [actor for actor in scene.actors if np.hypot(actor.x - ego.x, actor.y - ego.y) < run.SEEN_METRES]
    return [actor for actor in near if actor.mount is None]


def _boxes(scene: Scene, camera: Camera, seen: dict[int, Any]) -> list[dict[str, Any]]:
    """Road users first, as public runs have them: the whole 3D box as it projects, hidden or not. What is seen of it is
    `visible_bbox`. Then what only the embedded world writes: riders, lights and signs, as they are seen."""
    found = []
    for actor in _near(scene):
        whole = _projected(actor, scene, camera)
        if whole is not None:
            label = "pedestrian" if actor.category == "pedestrian" else "vehicle"
            found.append(_box(label, actor.category, actor.id, _type_id(actor), whole, seen.get(actor.id)))
    boxed = {box["actor_id"] for box in found}
    for box in seen.values():
        if box.instance not in boxed and box.category not in ("pedestrian", *_VEHICLES):
            extra = _box(box.category, box.category, box.instance, f"static.{box.category}", list(box.xyxy), box)
            found.append(extra | ({"state": box.light_color} if box.category == "traffic light" else {}))
    return found


def _box(label: str, category: str, actor: int, type_id: str, bbox: list[float], seen: Any) -> dict[str, Any]:
    return {
        "bbox": bbox,
        "label": label,
        "actor_id": actor,
        "type_id": type_id,
        "class": category,
        "visible_bbox": list(seen.xyxy) if seen else None,
        "visible_pixels": seen.visible if seen else 0,
        "occluded": bool(seen.occluded) if seen else True,
        "truncated": bool(seen.truncated) if seen else False,
    }


def _projected(actor: Actor, scene: Scene, camera: Camera) -> list[float] | None:
    """The extent of a 3D box in a picture, clipped to it; None where less than a pixel of it is inside."""
    from automoe.world.scene import world_to_camera

    box = np.array([[*actor.centre, *actor.size, actor.yaw]])
    corners = world_to_camera(scene.T_world_cam(camera), box_corners(box)[0])
    return visible_extent(corners, camera.intrinsics, (camera.height, camera.width))


def _type_id(actor: Actor) -> str:
    return ("walker.pedestrian." if actor.category == "pedestrian" else "vehicle.embedded.") + actor.asset


def _box3d(actor: Actor) -> dict[str, Any]:
    location, rotation = say_pose(upright(actor.x, actor.y, actor.z + actor.size[2] / 2, actor.yaw))
    length, width, height = actor.size
    return {
        "actor_id": actor.id,
        "type_id": _type_id(actor),
        "class": actor.category,
        "location": location,
        "rotation": rotation,
        "extent": {"x": length / 2, "y": width / 2, "z": height / 2},
        "velocity": say_vector(np.zeros(2) if actor.parked else actor.velocity),
        "parked": actor.parked,
    }


# ---------------------------------------------------------------- the end


def _finish(out: Path, plan: RunPlan) -> dict:
    """Count what was written, and write world.json."""
    world: dict[str, Any] = {"settings": settings_of(plan), "complete": True}
    world["runs"] = {"train": plan.train, "val": plan.val}
    for split, count in (("train", plan.train), ("val", plan.val)):
        folders = [out / folder_of(split, index) for index in range(count)]
        world[split] = {"folders": [folder.name for folder in folders], **describe(folders)}
    write_piece(out / "world.json", json.dumps(world, indent=1).encode())
    return world


def describe(folders: Sequence[Path]) -> dict[str, Any]:
    """Counts of some runs: what makes them hard or easy."""
    frames, moving, collisions, boxes, weathers, commands = 0, 0, 0, Counter(), Counter(), Counter()
    for folder in folders:
        config = json.loads((folder / "config.json").read_bytes())
        log = json.loads((folder / "vehicle_log.json").read_bytes())
        frames += len(log)
        moving += sum(record["speed_kmh"] > 1.0 for record in log)
        commands.update(CARLA_COMMANDS[record["route"]["command"] - 1] for record in log)
        collisions += len(json.loads((folder / "collisions.json").read_bytes()))
        weathers[f"{config['weather']['weather']}, {config['weather']['timeofday']}"] += 1
        for path in sorted((folder / "annots" / run.LABELLED).glob("*.json")):
            seen = [box for box in json.loads(path.read_bytes())["boxes"] if box["visible_bbox"]]
            boxes.update(box["class"] for box in seen)
    return {
        "frames": frames,
        "share_moving": round(moving / max(frames, 1), 4),
        "collisions": collisions,
        "visible_boxes": sum(boxes.values()),
        "boxes_per_frame": round(sum(boxes.values()) / max(frames, 1), 2),
        "boxes_per_category": {name: boxes.get(name, 0) for name in BDD_DETECTION},
        "frames_per_command": {name: commands.get(name, 0) for name in CARLA_COMMANDS},
        "runs_per_weather": dict(weathers),
    }
