"""One shard of a prepared set: raw records in, an Arrow file out, and an account of what could not be used.

A shard is the unit of parallel work and of resuming: it is written whole, with a checksum and the key of what
went into it, or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.bdd100k import Record, Source, read_class_mask
from automoe.data.images import check_jpeg, encode_mask, is_plain_mask
from automoe.errors import DataError
from automoe.files import write_bytes

FORMAT_VERSION = 1
"""Raised whenever a prepared set of an older version must not be read any more."""

_BOX_FLAGS = ("ignored", "occluded", "truncated")


@dataclass(frozen=True)
class Quarantined:
    """A record or a label that is kept out of the prepared set.

    Attributes:
        name: the image's file name.
        level: "record" where the whole frame is out, "label" where the frame stays without one of its boxes.
        reason: the sentence.
        files: size and modification time (ns) of the frame's files, null where absent: whether it was
            repaired.
    """

    name: str
    level: str
    reason: str
    files: dict[str, list[int] | None]

    def repaired(self) -> bool:
        """Whether one of the files has changed since."""
        return any(_stamp(Path(path)) != stamp for path, stamp in self.files.items())


@dataclass(frozen=True)
class Shard:
    """The account of a finished shard, kept beside it as JSON."""

    file: str
    key: str
    rows: int
    boxes: int
    bytes: int
    sha256: str
    digests: list[str]
    quarantined: list[Quarantined]


def features(task: str) -> Any:
    """The columns of a prepared set as `datasets.Features`."""
    from datasets import Features, List, Value

    columns: dict[str, Any] = {"name": Value("string"), "image": Value("binary")}
    columns |= {"height": Value("int32"), "width": Value("int32")}
    columns |= {key: Value("string") for key in ("weather", "scene", "timeofday")}
    columns["boxes"] = List(List(Value("float32")))
    columns["labels"] = List(Value("int64"))
    columns |= {flag: List(Value("bool")) for flag in _BOX_FLAGS}
    if task != "detection":
        columns["mask"] = Value("binary")
    return Features(columns)


def shard_key(records: list[Record], source: Source) -> str:
    """A hash of everything that decides a shard's content; files by size and time."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {source.task} {source.background_first}".encode())
    for record in records:
        for path in (record.image, record.mask):
            digest.update(f"{record.name} {_stamp(path) if path else None} ".encode())
        digest.update(_label_digest(record))
    return digest.hexdigest()


def build_shard(records: list[Record], source: Source, path: Path, key: str) -> Shard:
    """Reads and checks the records and writes `path` and its account. Raises WriteError where writing fails."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    digests: list[str] = []
    quarantined: list[Quarantined] = []
    for record in records:
        try:
            row, rejected = _row(record, source)
        except DataError as error:
            quarantined.append(quarantine(record.name, str(error), (record.image, record.mask)))
            continue
        quarantined.extend(Quarantined(record.name, "label", reason, {}) for reason in rejected)
        digests.append(_row_digest(row))
        rows.append(row)
    sink = pa.BufferOutputStream()
    schema = features(source.task).arrow_schema
    with pa.ipc.new_stream(sink, schema) as writer:
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    data = memoryview(sink.getvalue())
    write_bytes(path, data)
    boxes = sum(len(row["labels"]) for row in rows)
    checksum = hashlib.sha256(data).hexdigest()
    shard = Shard(path.name, key, len(rows), boxes, len(data), checksum, digests, quarantined)
    write_bytes(_account(path), json.dumps(dataclasses.asdict(shard)).encode())
    return shard


def finished_shard(path: Path, key: str) -> Shard | None:
    """The account of a shard that an earlier run finished from the same input and whose checksum holds."""
    account = _account(path)
    if not (path.is_file() and account.is_file()):
        return None
    fields = json.loads(account.read_bytes())
    if fields["key"] != key or hashlib.sha256(path.read_bytes()).hexdigest() != fields["sha256"]:
        return None
    return Shard(**{**fields, "quarantined": [Quarantined(**entry) for entry in fields["quarantined"]]})


def quarantine(name: str, reason: str, files: tuple[Path | None, ...] = ()) -> Quarantined:
    """A quarantine entry for a whole record."""
    return Quarantined(name, "record", reason, {str(path): _stamp(path) for path in files if path})


# --- one row ------------------------------------------------------------------------------------------------


def _row(record: Record, source: Source) -> tuple[dict[str, Any], list[str]]:
    """The row and the reasons of labels left out of it; raises DataError where the record can't be used."""
    image = _read(record.image, "image")
    height, width = check_jpeg(image, str(record.image))
    boxes, keep, outside = _clip(record, height, width)
    row: dict[str, Any] = {"name": record.name, "image": image, "height": height, "width": width}
    row |= {"weather": record.weather, "scene": record.scene, "timeofday": record.timeofday}
    row |= {"boxes": boxes[keep].tolist(), "labels": record.labels[keep].tolist()}
    row |= {flag: getattr(record, flag)[keep].tolist() for flag in _BOX_FLAGS}
    if record.mask is not None:
        data = _read(record.mask, "mask")
        ids = read_class_mask(data, source, str(record.mask))
        if ids.shape != (height, width):
            raise DataError(
                f"{record.mask} is {ids.shape[1]}x{ids.shape[0]} and its image {record.name} {width}x{height}"
            )
        as_found = is_plain_mask(data) and not source.background_first
        row["mask"] = data if as_found else encode_mask(ids)
    return row, [*record.rejected, *outside]


def _clip(record: Record, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes clipped to the image, which of them to keep, and a reason for each that lies outside."""
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.clip(record.boxes, 0, limits)
    emptied = (boxes[:, 2:] == boxes[:, :2]) & (record.boxes[:, 2:] > record.boxes[:, :2])
    beyond = (record.boxes[:, :2] > limits[:2]) | (record.boxes[:, 2:] < 0)
    keep = ~(emptied | beyond).any(axis=1)
    reasons = [
        f"{record.name}: the box ({', '.join(f'{v:g}' for v in box)}) lies outside the {width}x{height} image"
        for box in record.boxes[~keep]
    ]
    return boxes, keep, reasons


def _read(path: Path, kind: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the {kind} {path}: {error.strerror}") from error
    if not data:
        raise DataError(f"the {kind} {path} is empty")
    return data


def _row_digest(row: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for value in row.values():
        digest.update(value if isinstance(value, bytes) else json.dumps(value).encode())
    return digest.hexdigest()


def _label_digest(record: Record) -> bytes:
    digest = hashlib.sha256(f"{record.weather}|{record.scene}|{record.timeofday}|{record.rejected}".encode())
    for array in (record.boxes, record.labels, record.ignored, record.occluded, record.truncated):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # absent or unreadable: that is what the stamp says
    return [status.st_size, status.st_mtime_ns]


def _account(path: Path) -> Path:
    return path.with_name(path.name + ".json")
