"""CARLA recordings as people have them: the runs of a tree, their frames, and what is wrong with them.

A run is a folder as `automoe.carla.run` tells, of any CARLA version and with any of its parts: pictures alone, no
LiDAR, no boxes, no tags. Everything comes out in our frame (`automoe.carla.frame`). Nothing is written.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from automoe.carla import frame, run
from automoe.carla.run import LABELLED, SHIFTED
from automoe.errors import DataError
from automoe.poses import into_frame
from automoe.taxonomy import CARLA_TAG_COLORS, CARLA_TAG_COLORS_BEFORE, CARLA_TAGS

LOOKED_AT = 5
"""Tag pictures from which a version is guessed."""

WEATHER_NUMBERS = ("cloudiness", "precipitation", "wetness", "fog_density", "sun_altitude_angle")
WEATHER_WORDS = ("weather", "timeofday")
"""What is read of a config's weather: CARLA's parameters, and BDD100K's words."""

MOVED = 0.1
"""Metres between two frames after which the same picture twice is a camera that hung."""

PARTS: Mapping[str, str] = {
    "tags": f"segmentation/{LABELLED}",
    "drivable": f"drivable/{LABELLED}",
    "drivable_aside": f"drivable/{SHIFTED}",
    "lidar": "lidar",
    "boxes": f"annots/{LABELLED}",
    "boxes3d": "boxes3d",
}
"""What a run may have beside pictures, and where."""

_SMALLEST = 100
"""Bytes below which a PNG can hold no picture."""


@dataclass(frozen=True)
class EgoState:
    """The car at a frame, in our frame: what it knows of itself.

    T_world_ego: float64 [4, 4], the origin on the ground under the car's middle. speed: m/s. velocity: world, float64
    [3]. acceleration: world, float64 [3], yaw_rate: radians a second to the left, NaN where the run doesn't tell.
    control: throttle, steer (positive to the right), brake.
    """

    T_world_ego: np.ndarray
    speed: float
    velocity: np.ndarray
    acceleration: np.ndarray
    yaw_rate: float
    control: tuple[float, float, float]


@dataclass(frozen=True)
class Step:
    """One frame of a run.

    number: CARLA's tick; time: seconds from the run's first tick. command: a place in CARLA_COMMANDS, -1 where the run
    has no route; targets: float64 [K, 2], the next points of the route, in the ego's frame. light: the state of the
    light that holds the ego, empty for none. speed_limit: m/s, NaN where unknown. target_speed: what its driver wanted
    to go at, m/s, whatever its speed; NaN where the run doesn't tell. shift: where the car was thought to stand for the
    picture of run.SHIFTED, metres and radians to the left; NaN where there is none.
    """

    number: int
    time: float
    ego: EgoState
    command: int = -1
    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    light: str = ""
    speed_limit: float = math.nan
    target_speed: float = math.nan
    shift: tuple[float, float] = (math.nan, math.nan)

    @property
    def has_route(self) -> bool:
        """Whether it tells a route."""
        return self.command >= 0 or len(self.targets) > 0

    @property
    def name(self) -> str:
        """The stem of the frame's files."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Run:
    """A run whose config and log could be read.

    name: its folder, from the tree's root on. town: the map's name, without its folder and `_Opt`. steps: its frames,
    in order, without those that the log tells twice or breaks off in. weather: what the config says of it, checked
    numbers and words. cameras: those with pictures. parts: for each of PARTS that there is, the stems of its files.
    tick: seconds; stride: ticks from frame to frame. problems: sentences about what is missing, doubled or left over.
    hindsight: whether the steps' routes were matched to a map afterwards (`carla_hindsight`).
    """

    folder: Path
    name: str
    town: str
    weather: Mapping[str, Any]
    steps: tuple[Step, ...]
    cameras: tuple[str, ...]
    parts: Mapping[str, frozenset[str]]
    tick: float
    stride: int
    said_version: str | None
    sensors: Mapping[str, Any]
    split: str | None
    problems: tuple[str, ...]
    hindsight: bool = False

    def has(self, part: str, step: Step | None = None) -> bool:
        """Whether there is a file of a part at a frame, or at any."""
        return part in self.parts if step is None else step.name in self.parts.get(part, ())

    def image(self, camera: str, step: Step) -> Path:
        """A picture's file."""
        return self.folder / "images" / camera / f"{step.name}.png"

    def tags(self, step: Step) -> Path:
        return self.folder / PARTS["tags"] / f"{step.name}.png"

    def drivable(self, step: Step, part: str = "drivable") -> Path:
        """part: or drivable_aside."""
        return self.folder / PARTS[part] / f"{step.name}.png"

    def lidar(self, step: Step) -> Path:
        return self.folder / PARTS["lidar"] / f"{step.name}.npy"

    def boxes(self, step: Step) -> Path:
        return self.folder / PARTS["boxes"] / f"{step.name}.json"

    def boxes3d(self, step: Step) -> Path:
        return self.folder / PARTS["boxes3d"] / f"{step.name}.json"

    @cached_property
    def version(self) -> tuple[str, str | None]:
        """Whose tags its pictures have, a key of CARLA_TAGS, and how that was guessed, if it was. Raises DataError."""
        if self.said_version is not None:
            return tags_version(self.said_version, str(self.folder / "config.json")), None
        return guess_version([self.tags(step) for step in self.steps])


# --- finding and reading runs ---


def find_runs(root: Path) -> list[Path]:
    """The run folders of a tree, by name: `run_*` with pictures in them, in it or one level below. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    for pattern in ("run_*", "*/run_*"):
        found = sorted(folder for folder in root.glob(pattern) if (folder / "images").is_dir())
        if found:
            return found
    raise DataError(
        f"{root} holds no CARLA runs (folders run_* with images/<camera>/*.png in them, also one level below); "
        "write some with `automoe world export carla` or `automoe collect`"
    )


def read_run(folder: Path, root: Path | None = None) -> Run:
    """A run's config, log and list of files. root: the tree that it is of, its parent if not given. Raises DataError
    where the run can't be used as a whole."""
    config = _json(folder / "config.json", dict, "was it broken off while it was recorded?")
    log = _json(folder / "vehicle_log.json", list, "was it broken off while it was recorded?")
    where = str(folder / "config.json")
    tick = _positive(config, "tick_seconds", run.TICK, where)
    problems: list[str] = []
    steps: dict[int, Step] = {}
    for index, record in enumerate(log):
        where = f"record {index} of {folder / 'vehicle_log.json'}"
        try:
            step = _step(record, tick, where)
        except DataError as error:
            problems.append(str(error))
            continue
        if step.number in steps:
            problems.append(f"{where} tells frame {step.number} a second time; the first is used")
            continue
        steps[step.number] = step
    ordered = [steps[number] for number in sorted(steps)]
    cameras = [name for name in _folders(folder / "images") if any((folder / "images" / name).glob("*.png"))]
    parts = {part: frozenset(_stems(folder / place)) for part, place in PARTS.items()}
    stride = int(_positive(config, "save_every_n", _usual_stride(ordered), where))
    problems += _left_over(folder, cameras, steps) + _gaps(folder, ordered, stride)
    if not ordered:
        raise DataError(f"{folder} has no usable frame{'; ' + problems[0] if problems else ''}")
    return Run(
        folder,
        folder.relative_to(root or folder.parent).as_posix(),
        str(config.get("map", "unknown")).rsplit("/", 1)[-1].removesuffix("_Opt"),
        _weather(config.get("weather"), where),
        tuple(ordered),
        tuple(sorted(cameras, key=lambda name: (name not in run.CAMERAS, name))),
        {part: names for part, names in parts.items() if names},
        tick,
        stride,
        _text(config, "carla_version", where),
        _sensors(config.get("sensors"), where),
        _text(config, "split", where),
        tuple(problems),
    )


def _json(path: Path, kind: type, hint: str) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} has no {path.name}; {hint}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error})") from error
    if not isinstance(content, kind):
        raise DataError(f"{path} holds a {type(content).__name__} where a {kind.__name__} should be")
    return content


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _positive(config: Mapping[str, Any], key: str, usual: float, where: str) -> float:
    """A number above 0 of a config; the usual one where it says nothing."""
    said = config.get(key)
    if said is None:
        return usual
    if not _is_number(said) or said <= 0:
        raise DataError(f"{where}: {key} is {said!r}, not a number above 0")
    return said


def _text(config: Mapping[str, Any], key: str, where: str) -> str | None:
    said = config.get(key)
    if said is not None and not isinstance(said, str):
        raise DataError(f"{where}: {key} is {said!r}, not text in quotes")
    return said


def _weather(said: Any, where: str) -> dict[str, Any]:
    """Checked numbers and words of a config's weather; what it doesn't say, or says null for, is left out. The name of
    a preset alone tells nothing that a model could use."""
    if not isinstance(said, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in said.items():
        if key in WEATHER_WORDS and isinstance(value, str):
            found[key] = value
        elif key in WEATHER_NUMBERS and value is not None:
            if not _is_number(value):
                raise DataError(f"{where}: the weather's {key} is {value!r}, not a finite number")
            found[key] = float(value)
    return found


def _sensors(said: Any, where: str) -> dict[str, Any]:
    """What a config says of its sensors. Raises DataError where a mounting is not made of numbers."""
    if said is None:
        return {}
    if not isinstance(said, dict) or not all(isinstance(one, dict) for one in said.values()):
        raise DataError(f"{where}: sensors is no table of sensors")
    for name, one in said.items():
        try:
            known = np.isfinite(mounting_of(one, {"x": 0.0, "y": 0.0, "z": 0.0})).all()
            known &= 0.0 < float(one.get("fov", run.FIELD_OF_VIEW)) < 180.0
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: the mounting of {name} cannot be read ({error!r})") from error
        if not known:
            raise DataError(f"{where}: the mounting of {name} holds numbers that make no sense")
    return said


def _stems(place: Path) -> list[str]:
    """Of a folder's files, their names without the last suffix."""
    return [Path(entry.name).stem for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir()) if place.is_dir() else []


def _step(record: Any, tick: float, where: str) -> Step:
    """One record of a log. Raises DataError for one that lacks something or holds NaN."""
    try:
        number = int(record["frame"])
        location, rotation, velocity, control = (record[key] for key in ("location", "rotation", "velocity", "control"))
        T_world_ego = frame.pose(location, rotation)
        speed = frame.vector(velocity)
        controls = (float(control["throttle"]), float(control["steer"]), float(control["brake"]))
        acceleration = record.get("acceleration")
        pushed = None if acceleration is None else frame.vector(acceleration)
        turning = record.get("angular_velocity")
        yaw_rate = None if turning is None else frame.yaw(float(turning["z"]))
        route = record.get("route") or {}
        targets = frame.flip(np.array(route.get("target_points", []), np.float64).reshape(-1, 2))
        light = record.get("traffic_light") or {}
        light = light if isinstance(light, dict) else {"state": light}
        limit, wanted = (
            None if value is None else float(value) / 3.6
            for value in (record.get("speed_limit_kmh"), record.get("target_speed_kmh"))
        )  # fmt: skip
        command = _command(route.get("command"))
        said = record.get("camera_shift")
        shift = None if said is None else (0.0 - float(said["y"]), frame.yaw(float(said["yaw"])))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{where} is not complete ({type(error).__name__}: {error})") from error
    told = (T_world_ego, speed, controls, targets, pushed, yaw_rate, limit, wanted, shift)
    if not all(np.isfinite(value).all() for value in told if value is not None):
        raise DataError(f"{where} (frame {number}) holds numbers that are not finite")
    # Targets have no height: they are seen from above, whatever the slope that the car stands on.
    local = into_frame(T_world_ego, targets)
    ego = EgoState(
        T_world_ego,
        float(np.linalg.norm(speed)),
        speed,
        np.full(3, np.nan) if pushed is None else pushed,
        math.nan if yaw_rate is None else yaw_rate,
        controls,
    )
    return Step(
        number,
        number * tick,
        ego,
        command,
        local,
        str(light.get("state", "")).lower(),
        math.nan if limit is None else limit,
        math.nan if wanted is None else wanted,
        (math.nan, math.nan) if shift is None else shift,
    )


def _command(option: Any) -> int:
    """A place in CARLA_COMMANDS for one of CARLA's RoadOptions; changing lanes is following the road here."""
    return -1 if option not in range(1, 7) else min(int(option), 4) - 1


def _usual_stride(steps: Sequence[Step]) -> int:
    """Ticks from frame to frame, as most of a log has them."""
    apart = Counter(np.diff([step.number for step in steps]).tolist())
    return max(apart, key=lambda gap: apart[gap]) if apart else run.SAVE_EVERY


def _left_over(folder: Path, cameras: Sequence[str], steps: Mapping[int, Step]) -> list[str]:
    """Pictures that the log doesn't know."""
    found = []
    for camera in cameras:
        names = {path.stem for path in (folder / "images" / camera).glob("*.png")}
        unknown = sorted(name for name in names if not name.isdigit() or int(name) not in steps)
        if unknown:
            found.append(
                f"{folder / 'images' / camera} has {len(unknown)} pictures that vehicle_log.json does not tell of, "
                f"{unknown[0]}.png the first; they are not used"
            )
    return found


def _gaps(folder: Path, steps: Sequence[Step], stride: int) -> list[str]:
    numbers = np.array([step.number for step in steps])
    wide = np.flatnonzero(np.diff(numbers) != stride)
    if not len(wide):
        return []
    first = int(wide[0])
    return [
        f"{folder} has {len(wide)} gaps between its frames, the first from {numbers[first]} to {numbers[first + 1]} "
        f"where every {stride}th tick was saved; no window of time runs across one"
    ]


# --- pictures ---


def read_png(path: Path) -> np.ndarray:
    """A PNG as OpenCV gives it, uint8 [H, W] or [H, W, C] in BGR(A). Raises DataError where it is missing or broken."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    # A PNG ends with its IEND chunk; OpenCV alone would fill up what is missing.
    whole = len(data) >= _SMALLEST and data.rstrip(b"\0")[-8:-4] == b"IEND"
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if whole else None
    if picture is None or picture.dtype != np.uint8:
        raise DataError(f"{path} is cut short or no PNG of 8 bits")
    return picture


def read_picture(path: Path) -> np.ndarray:
    """A camera's picture, uint8 [H, W, 3] RGB."""
    picture = read_png(path)
    if picture.ndim == 2:
        return np.repeat(picture[..., None], 3, axis=2)
    return np.ascontiguousarray(picture[..., 2::-1])


def repeated(one: Run, camera: str) -> dict[str, str]:
    """The frames, by name, whose picture is the one before although the car has moved, each with a sentence: a camera
    that hung."""
    found: dict[str, str] = {}
    before: Step | None = None
    for step in one.steps:
        image = one.image(camera, step)
        if before is not None:
            gone = float(np.linalg.norm(step.ego.T_world_ego[:2, 3] - before.ego.T_world_ego[:2, 3]))
            if gone > MOVED and same_picture(image, one.image(camera, before)):
                found[step.name] = f"{image} is the picture of frame {before.number} again, {gone:.1f} m farther on"
                continue
        before = step
    return found


def same_picture(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    try:
        return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    except OSError:
        return False


# --- semantic tags ---


def tags_version(said: str, where: str) -> str:
    """The key of CARLA_TAGS for a version as a config says it, "0.9.15" or "0.10.0". Raises DataError."""
    number = run.version_number(said)
    if number is None:
        raise DataError(f"{where}: carla_version is {said!r}, not a number like 0.9.15")
    return "0.9.14" if number >= (0, 9, 14) else "0.9.0"


def read_tags(path: Path, version: str) -> np.ndarray:
    """The tags of a semantic picture, uint8 [H, W], places in CARLA_TAGS[version].

    Tags stand in the red channel (CARLA's raw pictures) or are grey values; pictures in CityScapesPalette's colours are
    read back. Raises DataError naming file and value for a tag or a colour that the version doesn't know.
    """
    picture = read_png(path)
    names = CARLA_TAGS[version]
    if _is_coloured(picture):
        return _from_colours(picture[..., 2::-1], version, path)
    tags = picture[..., 2] if picture.ndim == 3 else picture
    if tags.max(initial=0) >= len(names):
        raise DataError(
            f"{path} has the tag {int(tags.max())}, and CARLA {version} and later know 0 to {len(names) - 1}; is the "
            "run's carla_version right?"
        )
    return np.ascontiguousarray(tags)


def _is_coloured(picture: np.ndarray) -> bool:
    """Whether a semantic picture shows colours: neither tags in the red channel alone nor grey values."""
    if picture.ndim == 2:
        return False
    blue, green, red = (picture[..., channel] for channel in range(3))
    return bool((blue.any() or green.any()) and ((blue != red).any() or (green != red).any()))


def _from_colours(picture: np.ndarray, version: str, path: Path) -> np.ndarray:
    """Tags uint8 [H, W] from CityScapesPalette's colours, RGB [H, W, 3]."""
    names = CARLA_TAGS[version]
    colours = CARLA_TAG_COLORS if version == "0.9.14" else CARLA_TAG_COLORS_BEFORE
    code = picture.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    known = {int(np.dot(colours[name], [1 << 16, 1 << 8, 1])): index for index, name in enumerate(names)}
    values, inverse = np.unique(code, return_inverse=True)
    strange = [value for value in values.tolist() if value not in known]
    if strange:
        colour = tuple(int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise DataError(f"{path} has the colour {colour}, which is no tag of CARLA's CityScapesPalette")
    return np.array([known[value] for value in values.tolist()], np.uint8)[inverse].reshape(code.shape)


def guess_version(paths: Sequence[Path]) -> tuple[str, str]:
    """Whose tags some pictures have, by what lies before the car, and a sentence about it. Raises DataError where no
    picture tells: there a person has to."""
    streets = {version: [names.index(name) for name in ("road", "road line")] for version, names in CARLA_TAGS.items()}
    votes, seen = Counter[str](), 0
    for path in [path for path in paths if path.is_file()][:: max(1, len(paths) // LOOKED_AT)][:LOOKED_AT]:
        picture, seen = read_png(path), seen + 1
        if _is_coloured(picture):
            votes[_version_of_colours(picture[..., 2::-1])] += 1
            continue
        height, width = picture.shape[:2]
        before = picture[int(height * 0.8) :, int(width * 0.4) : int(width * 0.6)]
        tags = before[..., 2] if picture.ndim == 3 else before
        counts = Counter({version: int(np.isin(tags, street).sum()) for version, street in streets.items()})
        (first, most), (_, second) = counts.most_common(2)
        if most > second:
            votes[first] += 1
    (version, most), *others = votes.most_common() or [("", 0)]
    if not most or (others and others[0][1] == most):
        raise DataError(
            f"config.json does not say its carla_version, and none of {seen} semantic pictures shows which order of "
            "tags they are in; say it in config.json"
        )
    since = "from 0.9.14 on" if version == "0.9.14" else "before 0.9.14"
    return version, (
        f"config.json does not say its carla_version; by the road before the car ({most} of {seen} pictures) the tags "
        f"are those {since}. Say it in config.json if that is wrong"
    )


def _version_of_colours(picture: np.ndarray) -> str:
    """The older version, which tells less, unless a colour of the newer one alone is there."""
    newer = {CARLA_TAG_COLORS[name] for name in CARLA_TAGS["0.9.14"]}
    older = {CARLA_TAG_COLORS_BEFORE[name] for name in CARLA_TAGS["0.9.0"]}
    seen = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}
    return "0.9.14" if seen & (newer - older) else "0.9.0"


# --- boxes and points ---


def read_boxes(path: Path) -> list[dict[str, Any]]:
    """The records of a frame's boxes file. Raises DataError where it is broken."""
    content = _json(path, dict, "is the run complete?")
    boxes = content.get("boxes")
    if not isinstance(boxes, list):
        raise DataError(f"{path} has no list of boxes")
    return boxes


def read_points(path: Path, mounting: Mapping[str, Any]) -> np.ndarray:
    """A LiDAR turn, float32 [N, 4] x, y, z, intensity, in the ego's frame. Raises DataError.

    mounting: the sensor's entry in a config; public runs have none, their sensor sits 2.5 m above the car's origin.
    """
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the points {path} ({error})") from error
    if points.ndim != 2 or points.shape[1] < 4:
        raise DataError(f"{path} holds an array of shape {points.shape}, not N x 4")
    points = frame.flip(points[:, :4].astype(np.float32))
    T_ego_lidar = mounting_of(mounting, {"x": 0.0, "y": 0.0, "z": run.LIDAR_HEIGHT})
    points[:, :3] = points[:, :3] @ T_ego_lidar[:3, :3].T + T_ego_lidar[:3, 3]
    return points


def mounting_of(said: Mapping[str, Any], usual: Mapping[str, float]) -> np.ndarray:
    """T_ego_sensor [4, 4] from a sensor's entry in a config, or from where it usually is."""
    rotation = said.get("rotation", {"pitch": 0.0, "yaw": usual.get("yaw", 0.0), "roll": 0.0})
    return frame.pose(said.get("location", usual), rotation)


def camera_mounting(one: Run, camera: str) -> tuple[np.ndarray, float] | None:
    """T_ego_mount [4, 4] and the field of view in degrees of a run's camera; None where nothing tells."""
    said, mount = one.sensors.get(camera, {}), run.MOUNTS.get(camera)
    if not said and mount is None:
        return None
    usual = dict.fromkeys("xyz", 0.0) if mount is None else asdict(mount)
    return mounting_of(said, usual), float(said.get("fov", run.FIELD_OF_VIEW))
