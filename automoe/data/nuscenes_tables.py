"""nuScenes' JSON tables, joined once into columns: what a sample's sensors saw, from where, and what stood there.

DuckDB reads and joins them, and what is kept are plain numpy columns. Sets of mini's size are read in a second;
v1.0-trainval, with more than two million records a table, still exceeds the memory that DuckDB is given here.
Nothing but the tables is opened.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from automoe.data.json_stream import iter_json_records
from automoe.errors import DataError
from automoe.machine import available_cores

MEMORY_LIMIT = "2GB"
LIDAR = "LIDAR_TOP"
CAMERAS: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
"""The six cameras, clockwise from the front."""

MAX_TIME_GAP = 1.5
"""Seconds between annotations, beyond which their difference says no velocity (the devkit's box_velocity)."""

# The columns that are read; whatever else a table holds is left alone.
_COLUMNS: dict[str, dict[str, str]] = {
    "scene": {"token": "VARCHAR", "name": "VARCHAR", "log_token": "VARCHAR"},
    "sample": {"token": "VARCHAR", "timestamp": "BIGINT", "scene_token": "VARCHAR"},
    "sample_data": {
        "token": "VARCHAR",
        "sample_token": "VARCHAR",
        "ego_pose_token": "VARCHAR",
        "calibrated_sensor_token": "VARCHAR",
        "timestamp": "BIGINT",
        "is_key_frame": "BOOLEAN",
        "height": "INTEGER",
        "width": "INTEGER",
        "filename": "VARCHAR",
    },
    "ego_pose": {"token": "VARCHAR", "translation": "DOUBLE[]", "rotation": "DOUBLE[]"},
    "calibrated_sensor": {
        "token": "VARCHAR",
        "sensor_token": "VARCHAR",
        "translation": "DOUBLE[]",
        "rotation": "DOUBLE[]",
        "camera_intrinsic": "DOUBLE[][]",
    },
    "sensor": {"token": "VARCHAR", "channel": "VARCHAR", "modality": "VARCHAR"},
    "instance": {"token": "VARCHAR", "category_token": "VARCHAR"},
    "category": {"token": "VARCHAR", "name": "VARCHAR"},
    "attribute": {"token": "VARCHAR", "name": "VARCHAR"},
    "visibility": {"token": "VARCHAR", "level": "VARCHAR"},
    "sample_annotation": {
        "token": "VARCHAR",
        "sample_token": "VARCHAR",
        "instance_token": "VARCHAR",
        "visibility_token": "VARCHAR",
        "attribute_tokens": "VARCHAR[]",
        "translation": "DOUBLE[]",
        "size": "DOUBLE[]",
        "rotation": "DOUBLE[]",
        "prev": "VARCHAR",
        "next": "VARCHAR",
        "num_lidar_pts": "INTEGER",
        "num_radar_pts": "INTEGER",
    },
}
TABLES: tuple[str, ...] = (*_COLUMNS, "log", "map")
"""All official tables of a version's folder."""


@dataclass(frozen=True)
class SensorColumns:
    """Recordings of sensors, ordered by scene, time and channel.

    sample: int64 [N], the sample whose key frame a recording is or precedes. channel: object [N]. timestamp: int64 [N],
    microseconds. key_frame: bool [N]. filename: object [N], relative to the data root. size: int64 [N, 2], height and
    width. ego and sensor: float64 [N, 7], poses x, y, z and quaternion w, x, y, z: of the ego in the world, of the
    sensor on the ego. intrinsic: float64 [N, 3, 3], NaN for LiDARs.
    """

    sample: np.ndarray
    channel: np.ndarray
    timestamp: np.ndarray
    key_frame: np.ndarray
    filename: np.ndarray
    size: np.ndarray
    ego: np.ndarray
    sensor: np.ndarray
    intrinsic: np.ndarray


@dataclass(frozen=True)
class BoxColumns:
    """Annotations, those of a sample together, in the table's order.

    sample: int64 [N]. category, attribute, visibility, instance: object [N]; no attribute is "". translation and size:
    float64 [N, 3], metres, global centre and width, length, height. rotation: float64 [N, 4], quaternion w, x, y, z.
    velocity: float64 [N, 2], m/s in the world, NaN where it can't be told. lidar_points, radar_points: int64 [N].
    """

    sample: np.ndarray
    category: np.ndarray
    attribute: np.ndarray
    visibility: np.ndarray
    instance: np.ndarray
    translation: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    lidar_points: np.ndarray
    radar_points: np.ndarray


@dataclass(frozen=True)
class NuscenesTables:
    """A version of a data set. Samples are numbered by scene (in the table's order) and time."""

    folder: Path
    scenes: list[str]
    tokens: np.ndarray
    timestamps: np.ndarray
    scene_of: np.ndarray
    recordings: SensorColumns
    boxes: BoxColumns


def read_tables(folder: Path) -> NuscenesTables:
    """Read a version's folder (`v1.0-mini`, say): all LiDAR recordings, the cameras' key frames, all annotations.

    Raises DataError naming table and record for a missing or damaged table, a token that leads nowhere, or a number
    that is none.
    """
    folder = Path(folder)
    absent = [name for name in TABLES if not (folder / f"{name}.json").is_file()]
    if absent:
        raise DataError(f"{folder} lacks {', '.join(f'{name}.json' for name in absent)}: unzip the metadata again.")
    with duckdb.connect(":memory:") as database, tempfile.TemporaryDirectory() as scratch:
        try:
            database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            database.execute(f"SET threads = {available_cores()}")
            database.execute(f"SET temp_directory = '{scratch}'")
            for name, columns in _COLUMNS.items():
                listed = ", ".join(f"{column!r}: {kind!r}" for column, kind in columns.items())
                path = str(folder / f"{name}.json").replace("'", "''")
                database.execute(
                    f"CREATE VIEW {name} AS SELECT *, row_number() OVER () AS row FROM read_json("
                    f"'{path}', format = 'array', columns = {{{listed}}}, maximum_object_size = 67108864)"
                )
            scenes, samples = _samples(database, folder)
            recordings = _recordings(database, folder)
            boxes = _boxes(database, folder)
        except duckdb.Error as error:
            raise _explain(folder, error) from error
    return NuscenesTables(folder, scenes, *samples, recordings, boxes)


def _samples(database: Any, folder: Path) -> tuple[list[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    database.execute(
        """
        CREATE TABLE samples AS
        SELECT sample.token, sample.timestamp, sample.scene_token, scene.row - 1 AS scene,
               row_number() OVER (ORDER BY scene.row, sample.timestamp) - 1 AS sample
        FROM sample LEFT JOIN scene ON sample.scene_token = scene.token
        """
    )
    _refuse(database, folder, "samples", "scene IS NULL", "sample", "scene_token", "scene")
    scenes = [name for (name,) in database.execute("SELECT name FROM scene ORDER BY row").fetchall()]
    found = database.execute("SELECT token, timestamp, scene FROM samples ORDER BY sample").fetchnumpy()
    if not len(found["token"]):
        raise DataError(f"{folder / 'sample.json'} holds no sample.")
    return scenes, (found["token"].astype(object), found["timestamp"].astype(np.int64), found["scene"].astype(np.int64))


def _recordings(database: Any, folder: Path) -> SensorColumns:
    cameras = ", ".join(f"'{name}'" for name in CAMERAS)
    database.execute(
        """
        CREATE TABLE rigs AS
        SELECT calibrated.token, sensor.channel, calibrated.translation, calibrated.rotation,
               calibrated.camera_intrinsic, calibrated.sensor_token
        FROM calibrated_sensor AS calibrated LEFT JOIN sensor ON calibrated.sensor_token = sensor.token
        """
    )
    _refuse(database, folder, "rigs", "channel IS NULL", "calibrated_sensor", "sensor_token", "sensor")
    database.execute(
        f"""
        CREATE TABLE recordings AS
        SELECT data.token, data.timestamp, data.is_key_frame, data.filename, data.height, data.width,
               data.sample_token, data.ego_pose_token, data.calibrated_sensor_token,
               samples.sample, samples.scene, rigs.channel, rigs.camera_intrinsic AS intrinsic,
               ego_pose.token AS pose, list_concat(ego_pose.translation, ego_pose.rotation) AS ego,
               list_concat(rigs.translation, rigs.rotation) AS sensor
        FROM sample_data AS data
        LEFT JOIN rigs ON data.calibrated_sensor_token = rigs.token
        LEFT JOIN samples ON data.sample_token = samples.token
        LEFT JOIN ego_pose ON data.ego_pose_token = ego_pose.token
        WHERE rigs.channel IS NULL OR rigs.channel = '{LIDAR}' OR (data.is_key_frame AND rigs.channel IN ({cameras}))
        """
    )
    for condition, column, target in (
        ("channel IS NULL", "calibrated_sensor_token", "calibrated_sensor"),
        ("sample IS NULL", "sample_token", "sample"),
        ("pose IS NULL", "ego_pose_token", "ego_pose"),
        ("filename IS NULL", "filename", "it at all"),
    ):
        _refuse(database, folder, "recordings", condition, "sample_data", column, target)
    found = database.execute(
        """
        SELECT sample, channel, timestamp, is_key_frame, filename, height, width, ego, sensor,
               CASE WHEN len(intrinsic) = 3 THEN flatten(intrinsic) END AS intrinsic, token
        FROM recordings ORDER BY scene, timestamp, channel
        """
    ).fetchnumpy()
    tokens = found["token"]
    intrinsic = np.full((len(tokens), 9), np.nan)
    for row in np.flatnonzero([channel != LIDAR for channel in found["channel"]]):
        intrinsic[row] = _row(found["intrinsic"][row], 9, folder, "calibrated_sensor", "camera_intrinsic", tokens[row])
    return SensorColumns(
        sample=found["sample"].astype(np.int64),
        channel=found["channel"].astype(object),
        timestamp=found["timestamp"].astype(np.int64),
        key_frame=found["is_key_frame"].astype(bool),
        filename=found["filename"].astype(object),
        size=np.stack([found["height"], found["width"]], axis=1).astype(np.int64),
        ego=_matrix(found["ego"], 7, folder, "ego_pose", "translation and rotation", tokens),
        sensor=_matrix(found["sensor"], 7, folder, "calibrated_sensor", "translation and rotation", tokens),
        intrinsic=intrinsic.reshape(-1, 3, 3),
    )


def _boxes(database: Any, folder: Path) -> BoxColumns:
    database.execute(
        """
        CREATE TABLE marks AS
        SELECT mark.token, mark.translation, samples.timestamp / 1e6 AS time, mark.row
        FROM sample_annotation AS mark JOIN samples ON mark.sample_token = samples.token;
        CREATE TABLE boxes AS
        SELECT mark.token, mark.sample_token, mark.instance_token, mark.row, samples.sample, category.name AS category,
               mark.visibility_token, mark.attribute_tokens, attribute.name AS attribute,
               visibility.level AS visibility, mark.translation, mark.size, mark.rotation,
               mark.num_lidar_pts, mark.num_radar_pts, mark.prev, mark.next,
               earlier.translation AS first, earlier.time AS first_time,
               later.translation AS last, later.time AS last_time, samples.timestamp / 1e6 AS time
        FROM sample_annotation AS mark
        LEFT JOIN samples ON mark.sample_token = samples.token
        LEFT JOIN instance ON mark.instance_token = instance.token
        LEFT JOIN category ON instance.category_token = category.token
        LEFT JOIN attribute ON mark.attribute_tokens[1] = attribute.token
        LEFT JOIN visibility ON mark.visibility_token = visibility.token
        LEFT JOIN marks AS earlier ON mark.prev = earlier.token
        LEFT JOIN marks AS later ON mark.next = later.token
        """
    )
    for condition, column, target in (
        ("sample IS NULL", "sample_token", "sample"),
        ("category IS NULL", "instance_token", "instance (or its category)"),
        ("visibility IS NULL AND visibility_token != ''", "visibility_token", "visibility"),
        ("attribute IS NULL AND len(attribute_tokens) > 0", "attribute_tokens[1]", "attribute"),
        ("first IS NULL AND prev != ''", "prev", "sample_annotation"),
        ("last IS NULL AND next != ''", "next", "sample_annotation"),
    ):
        _refuse(database, folder, "boxes", condition, "sample_annotation", column, target)
    found = database.execute(
        f"""
        SELECT sample, category, coalesce(attribute, '') AS attribute, coalesce(visibility, '') AS visibility,
               instance_token, translation, size, rotation, coalesce(num_lidar_pts, 0) AS lidar_points,
               coalesce(num_radar_pts, 0) AS radar_points, token,
               coalesce(last, translation) AS last, coalesce(first, translation) AS first,
               coalesce(last_time, time) - coalesce(first_time, time) AS gap,
               {MAX_TIME_GAP} * (CASE WHEN first IS NULL OR last IS NULL THEN 1 ELSE 2 END) AS most
        FROM boxes ORDER BY sample, row
        """
    ).fetchnumpy()
    tokens = found["token"]
    columns = {
        name: _matrix(found[name], size, folder, "sample_annotation", name, tokens)
        for name, size in (("translation", 3), ("size", 3), ("rotation", 4), ("first", 3), ("last", 3))
    }
    gap = found["gap"].astype(np.float64)
    known = (gap > 0) & (gap <= found["most"].astype(np.float64))
    moved = (columns["last"] - columns["first"])[:, :2]
    velocity = np.divide(moved, gap[:, None], out=np.full((len(gap), 2), np.nan), where=known[:, None])
    return BoxColumns(
        sample=found["sample"].astype(np.int64),
        category=found["category"].astype(object),
        attribute=found["attribute"].astype(object),
        visibility=found["visibility"].astype(object),
        instance=found["instance_token"].astype(object),
        translation=columns["translation"],
        size=columns["size"],
        rotation=columns["rotation"],
        velocity=velocity,
        lidar_points=found["lidar_points"].astype(np.int64),
        radar_points=found["radar_points"].astype(np.int64),
    )


def _refuse(database: Any, folder: Path, joined: str, condition: str, table: str, column: str, target: str) -> None:
    """Raise DataError for the first record of `table` whose `column` leads nowhere."""
    bad = database.execute(f"SELECT token, {column} FROM {joined} WHERE {condition} LIMIT 1").fetchone()
    if bad is not None:
        raise DataError(
            f"{folder / table}.json, record {bad[0]}: its {column} {bad[1]!r} is not in {target}; "
            "unzip all tables of one version again."
        )


def _matrix(lists: Any, size: int, folder: Path, table: str, column: str, tokens: np.ndarray) -> np.ndarray:
    """A column of lists as float64 [N, size]."""
    if not len(lists):
        return np.zeros((0, size))
    try:
        matrix = np.stack([_filled(one) for one in lists])
    except (TypeError, ValueError):
        matrix = None
    if matrix is None or matrix.shape != (len(lists), size) or not np.isfinite(matrix).all():
        for row, one in enumerate(lists):
            _row(one, size, folder, table, column, tokens[row])
    assert matrix is not None
    turned = matrix[:, -4:] if size in (4, 7) else None
    if turned is not None and not (np.linalg.norm(turned, axis=1) > 1e-6).all():
        row = int((np.linalg.norm(turned, axis=1) <= 1e-6).argmax())
        raise DataError(f"{folder / table}.json: the rotation of what record {tokens[row]} refers to is all zeros.")
    return matrix


def _filled(value: Any) -> np.ndarray:
    """A list of DuckDB's as numbers; what is null there is NaN here."""
    return np.ma.filled(np.ma.asarray(value, np.float64), np.nan)


def _row(value: Any, size: int, folder: Path, table: str, column: str, token: str) -> np.ndarray:
    """One list of `size` numbers. Raises DataError naming the record that led to it."""
    row = _filled(value)
    if row.shape != (size,) or not np.isfinite(row).all():
        raise DataError(
            f"{folder / table}.json: {column} of what record {token} refers to is {row.tolist()}; "
            f"it must be {size} numbers."
        )
    return row


def _explain(folder: Path, error: Exception) -> DataError:
    """DuckDB's complaint as a sentence: look for the first record that JSON itself, or its numbers, break at."""
    for name in _COLUMNS:
        path = folder / f"{name}.json"
        for number, record in enumerate(iter_json_records(path)):  # raises DataError where the JSON breaks
            if not isinstance(record, dict):
                return DataError(f"{path}, record {number} is not an object but {str(record)[:60]!r}.")
            try:
                json.dumps(record, allow_nan=False)
            except ValueError:
                bad = next(key for key, value in record.items() if "nan" in str(value) or "inf" in str(value))
                return DataError(f"{path}, record {record.get('token')}: {bad} is {record[bad]}, which is no number.")
    reason = str(error).splitlines()[0]
    return DataError(f"the tables in {folder} can't be read ({reason}); unzip the metadata again.")
