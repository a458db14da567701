"""nuScenes' JSON tables, joined once into columns: what a sample's sensors saw, from where, and what stood there.

DuckDB reads and joins them and spills what exceeds its share of memory; what is kept are plain numpy columns. The two
largest tables (2.6 million ego poses and recordings in v1.0-trainval) are filtered while they are read, never held
whole. Nothing but the tables is opened.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from automoe.data.json_stream import iter_json_records
from automoe.errors import DataError
from automoe.machine import available_cores
from automoe.taxonomy import NUSCENES_CAMERAS as CAMERAS

MEMORY_LIMIT = "2GB"
LIDAR = "LIDAR_TOP"

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
# Read where they are used, not at the start: each is gone from memory before the next comes.
_LARGE = ("sample_data", "ego_pose", "sample_annotation")
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
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(":memory:") as database:
        try:
            database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            database.execute(f"SET threads = {available_cores()}")
            database.execute(f"SET temp_directory = '{_quoted(scratch)}'")
            for name, columns in _COLUMNS.items():
                listed = ", ".join(f"{column!r}: {kind!r}" for column, kind in columns.items())
                # A table keeps the file's order in its rowid; a view is read from the file where it is used.
                database.execute(
                    f"CREATE {'VIEW' if name in _LARGE else 'TABLE'} {name} AS SELECT * FROM read_json("
                    f"'{_quoted(folder / name)}.json', format = 'array', columns = {{{listed}}}, "
                    "maximum_object_size = 67108864)"
                )
            scenes, samples = _samples(database, folder)
            recordings = _recordings(database, folder)
            boxes = _boxes(database, folder, samples[1])
        except duckdb.OutOfMemoryException as error:
            raise DataError(
                f"reading the tables in {folder} takes more than {MEMORY_LIMIT} of memory and the room left in "
                f"{Path(scratch).parent} (set TMPDIR to a folder with more)."
            ) from error
        except duckdb.Error as error:
            raise _explain(folder, error) from error
    return NuscenesTables(folder, scenes, *samples, recordings, boxes)


def _quoted(path: Path | str) -> str:
    return str(path).replace("'", "''")


def _samples(database: Any, folder: Path) -> tuple[list[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The scenes' names, and the samples' tokens, timestamps and scenes."""
    database.execute(
        """
        CREATE TABLE samples AS
        SELECT sample.token, sample.timestamp, sample.scene_token, scene.rowid AS scene,
               row_number() OVER (ORDER BY scene.rowid, sample.timestamp, sample.rowid) - 1 AS sample
        FROM sample LEFT JOIN scene ON sample.scene_token = scene.token
        """
    )
    _refuse(database, folder, "sample", "samples", ("scene IS NULL", "scene_token", "scene"), *_not_null("timestamp"))
    scenes = [name for (name,) in database.execute("SELECT name FROM scene ORDER BY rowid").fetchall()]
    found = database.sql("SELECT token, timestamp, scene FROM samples ORDER BY sample").to_arrow_table()
    if not len(found):
        raise DataError(f"{folder / 'sample.json'} holds no sample.")
    return scenes, (_strings(found["token"]), _whole(found["timestamp"]), _whole(found["scene"]))


def _recordings(database: Any, folder: Path) -> SensorColumns:
    cameras = ", ".join(f"'{name}'" for name in CAMERAS)
    database.execute(
        """
        CREATE TABLE rigs AS
        SELECT calibrated.token, sensor.channel, calibrated.sensor_token,
               list_concat(calibrated.translation, calibrated.rotation) AS pose,
               CASE WHEN len(calibrated.camera_intrinsic) = 3 THEN flatten(calibrated.camera_intrinsic) END AS intrinsic
        FROM calibrated_sensor AS calibrated LEFT JOIN sensor ON calibrated.sensor_token = sensor.token
        """
    )
    _refuse(database, folder, "calibrated_sensor", "rigs", ("channel IS NULL", "sensor_token", "sensor"))
    # Four of five recordings, and their ego poses, are dropped while their files are read.
    database.execute(
        f"""
        CREATE TABLE kept AS
        SELECT data.*, samples.sample, samples.scene, rigs.channel, rigs.pose AS sensor, rigs.intrinsic
        FROM sample_data AS data
        LEFT JOIN rigs ON data.calibrated_sensor_token = rigs.token
        LEFT JOIN samples ON data.sample_token = samples.token
        WHERE rigs.channel IS NULL OR rigs.channel = '{LIDAR}' OR (data.is_key_frame AND rigs.channel IN ({cameras}));
        CREATE TABLE poses AS SELECT * FROM ego_pose WHERE token IN (SELECT ego_pose_token FROM kept);
        CREATE TABLE recordings AS
        SELECT kept.*, poses.token AS pose, list_concat(poses.translation, poses.rotation) AS ego
        FROM kept LEFT JOIN poses ON kept.ego_pose_token = poses.token;
        DROP TABLE kept;
        DROP TABLE poses
        """
    )
    _refuse(
        database,
        folder,
        "sample_data",
        "recordings",
        ("channel IS NULL", "calibrated_sensor_token", "calibrated_sensor"),
        ("sample IS NULL", "sample_token", "sample"),
        ("pose IS NULL", "ego_pose_token", "ego_pose"),
        *_not_null("filename", "timestamp", "is_key_frame", "height", "width"),
    )
    found = database.sql(
        """
        SELECT sample, channel, timestamp, is_key_frame, filename, height, width, ego, sensor, intrinsic, token
        FROM recordings ORDER BY scene, timestamp, channel
        """
    ).to_arrow_table()
    database.execute("DROP TABLE recordings")
    tokens, channel = found["token"], _strings(found["channel"])
    camera = channel != LIDAR
    intrinsic = np.full((len(found), 9), np.nan)
    shot = found.filter(pa.array(camera))
    intrinsic[camera] = _matrix(shot["intrinsic"], 9, folder, "calibrated_sensor", "camera_intrinsic", shot["token"])
    return SensorColumns(
        sample=_whole(found["sample"]),
        channel=channel,
        timestamp=_whole(found["timestamp"]),
        key_frame=found["is_key_frame"].to_numpy(),
        filename=found["filename"].to_numpy(),
        size=np.stack([_whole(found["height"]), _whole(found["width"])], axis=1),
        ego=_matrix(found["ego"], 7, folder, "ego_pose", "translation and rotation", tokens),
        sensor=_matrix(found["sensor"], 7, folder, "calibrated_sensor", "translation and rotation", tokens),
        intrinsic=intrinsic.reshape(-1, 3, 3),
    )


def _boxes(database: Any, folder: Path, timestamps: np.ndarray) -> BoxColumns:
    """timestamps: int64 [S], microseconds, of the samples."""
    database.execute(
        """
        CREATE TABLE marks AS SELECT * FROM sample_annotation;
        CREATE TABLE boxes AS
        SELECT mark.rowid AS row, samples.sample, category.name AS category, attribute.name AS attribute,
               visibility.level AS visibility, earlier.rowid AS earlier, later.rowid AS later
        FROM marks AS mark
        LEFT JOIN samples ON mark.sample_token = samples.token
        LEFT JOIN instance ON mark.instance_token = instance.token
        LEFT JOIN category ON instance.category_token = category.token
        LEFT JOIN attribute ON mark.attribute_tokens[1] = attribute.token
        LEFT JOIN visibility ON mark.visibility_token = visibility.token
        LEFT JOIN marks AS earlier ON mark.prev = earlier.token
        LEFT JOIN marks AS later ON mark.next = later.token
        """
    )
    _refuse(
        database,
        folder,
        "sample_annotation",
        "boxes JOIN marks ON boxes.row = marks.rowid",
        ("sample IS NULL", "sample_token", "sample"),
        ("category IS NULL", "instance_token", "instance (or its category)"),
        ("visibility IS NULL AND visibility_token != ''", "visibility_token", "visibility"),
        ("attribute IS NULL AND len(attribute_tokens) > 0", "attribute_tokens[1]", "attribute"),
        ("earlier IS NULL AND prev != ''", "prev", "sample_annotation"),
        ("later IS NULL AND next != ''", "next", "sample_annotation"),
    )
    found = database.sql(
        """
        SELECT sample, category, coalesce(attribute, '') AS attribute, coalesce(visibility, '') AS visibility,
               instance_token, translation, size, rotation, coalesce(num_lidar_pts, 0) AS lidar_points,
               coalesce(num_radar_pts, 0) AS radar_points, token, row,
               coalesce(earlier, row) AS first, coalesce(later, row) AS last,
               (earlier IS NULL)::INTEGER + (later IS NULL)::INTEGER AS ends
        FROM boxes JOIN marks ON boxes.row = marks.rowid ORDER BY sample, row
        """
    ).to_arrow_table()
    sample = _whole(found["sample"])
    translation, size, rotation = (
        _matrix(found[name], length, folder, "sample_annotation", name, found["token"])
        for name, length in (("translation", 3), ("size", 3), ("rotation", 4))
    )
    place = np.zeros(len(found), np.int64)
    place[_whole(found["row"])] = np.arange(len(found))
    first, last = place[_whole(found["first"])], place[_whole(found["last"])]
    seconds = timestamps[sample] / 1e6
    gap = seconds[last] - seconds[first]
    known = (gap > 0) & (gap <= np.where(found["ends"].to_numpy() > 0, MAX_TIME_GAP, 2 * MAX_TIME_GAP))
    moved = (translation[last] - translation[first])[:, :2]
    velocity = np.divide(moved, gap[:, None], out=np.full((len(gap), 2), np.nan), where=known[:, None])
    return BoxColumns(
        sample=sample,
        category=_strings(found["category"]),
        attribute=_strings(found["attribute"]),
        visibility=_strings(found["visibility"]),
        instance=_strings(found["instance_token"]),
        translation=translation,
        size=size,
        rotation=rotation,
        velocity=velocity,
        lidar_points=_whole(found["lidar_points"]),
        radar_points=_whole(found["radar_points"]),
    )


def _not_null(*columns: str) -> Iterator[tuple[str, str, str]]:
    """What `_refuse` takes, for columns that every record must have."""
    return ((f"{column} IS NULL", column, "it at all") for column in columns)


def _refuse(database: Any, folder: Path, table: str, joined: str, *checks: tuple[str, str, str]) -> None:
    """Raise DataError for the first record of `table` that a check finds in `joined`.

    checks: what is so where a record is damaged, the column that leads nowhere, and where it should lead.
    """
    for condition, column, target in checks:
        bad = database.execute(f"SELECT token, {column} FROM {joined} WHERE {condition} LIMIT 1").fetchone()
        if bad is not None:
            raise DataError(
                f"{folder / table}.json, record {bad[0]}: its {column} {bad[1]!r} is not in {target}; "
                "unzip all tables of one version again."
            )


def _whole(column: Any) -> np.ndarray:
    """Arrow's whole numbers as int64 [N]."""
    return column.to_numpy().astype(np.int64)


def _strings(column: Any) -> np.ndarray:
    """Arrow's strings as object [N], each different one once in memory."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy()]


def _matrix(column: Any, size: int, folder: Path, table: str, name: str, tokens: Any) -> np.ndarray:
    """Arrow's lists as float64 [N, size]. Raises DataError naming the record (of `tokens`) that led to a bad one."""
    lists = column.combine_chunks()
    whole = lists.value_lengths().fill_null(-1).to_numpy() == size
    matrix = np.full((len(lists), size), np.nan)
    matrix[whole] = lists.filter(pa.array(whole)).flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        value = np.array(lists[bad[0]].as_py(), np.float64).tolist()
        raise DataError(
            f"{folder / table}.json: {name} of what record {tokens[bad[0]]} refers to is {value}; "
            f"it must be {size} numbers."
        )
    bad = np.flatnonzero(np.linalg.norm(matrix[:, -4:], axis=1) <= 1e-6) if size in (4, 7) else []
    if len(bad):
        raise DataError(f"{folder / table}.json: the rotation of what record {tokens[bad[0]]} refers to is all zeros.")
    return matrix


def _explain(folder: Path, error: Exception) -> DataError:
    """DuckDB's complaint as a sentence: look for the first record that JSON itself, or its numbers, break at."""
    # DuckDB mostly names the file: look there first, as all of trainval's take a minute.
    for name in sorted(_COLUMNS, key=lambda name: f"{name}.json" not in str(error)):
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
