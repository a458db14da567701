"""One shard of a prepared set: raw records in, an Arrow file out, and an account of what could not be used.

A shard is the unit of parallel work and of resuming: it is written whole, with a checksum and the key of what
went into it, or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automoe.data.raw_source import Quarantined, RawSource, file_stamp, quarantine
from automoe.errors import DataError
from automoe.files import write_bytes

_FORMAT_VERSIONS = {"detection": 2, "drivable": 2, "segmentation": 2, "frames": 5}
"""By task, 1 if not named; raised whenever a prepared set of an older version must not be read any more."""


def format_version(task: str) -> int:
    """Of the sets that this program writes and reads."""
    return _FORMAT_VERSIONS.get(task, 1)


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


def shard_key(records: Sequence[Any], source: RawSource) -> str:
    """A hash of everything that decides a shard's content; files by size and time."""
    digest = hashlib.sha256(f"{format_version(source.task)} {source.task}".encode())
    for record in records:
        for path in source.files(record):
            digest.update(f"{path.name} {file_stamp(path)} ".encode())
        digest.update(source.key(record))
    return digest.hexdigest()


def build_shard(records: Sequence[Any], source: RawSource, path: Path, key: str) -> Shard:
    """Reads and checks the records and writes `path` and its account. Raises WriteError where writing fails."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    digests: list[str] = []
    quarantined: list[Quarantined] = []
    for record in records:
        name = source.name(record)
        try:
            row, rejected = source.row(record)
        except DataError as error:
            quarantined.append(quarantine(name, str(error), source.files(record)))
            continue
        quarantined.extend(Quarantined(name, "label", reason, {}) for reason in rejected)
        digests.append(_row_digest(row))
        rows.append(row)
    sink = pa.BufferOutputStream()
    schema = source.features().arrow_schema
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


def _row_digest(row: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for value in row.values():
        if isinstance(value, bytes):
            digest.update(value)
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            digest.update(b"".join(hashlib.sha256(one).digest() for one in value))
        else:
            digest.update(json.dumps(value).encode())
    return digest.hexdigest()


def _account(path: Path) -> Path:
    return path.with_name(path.name + ".json")
