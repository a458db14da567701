"""What a raw data set must tell of one task and split to be prepared, and which data set has a task.

Preparing itself (`prepared.py`, `shards.py`) knows data sets through `RawSource` alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from automoe.data.bdd100k import TASK_CLASSES as BDD_CLASSES
from automoe.errors import DataError
from automoe.taxonomy import NUSCENES_DETECTION

TASK_CLASSES: dict[str, tuple[str, ...]] = {
    **BDD_CLASSES,
    "detection3d": NUSCENES_DETECTION,
    "frames": BDD_CLASSES["detection"],
}
"""The classes of every task that can be prepared: those of BDD100K, nuScenes' one, and CARLA's, which serves many."""

_SIZES_LOOKED_AT = 1000


@dataclass(frozen=True)
class Quarantined:
    """A record or a label that is kept out of the prepared set.

    Attributes:
        name: the image's file name, or the sample's token.
        level: "record" where the whole record is out, "label" where it stays without one of its boxes.
        reason: the sentence.
        files: size and modification time (ns) of the record's files, null where absent: whether it was
            repaired.
    """

    name: str
    level: str
    reason: str
    files: dict[str, list[int] | None]

    def repaired(self) -> bool:
        """Whether one of the files has changed since."""
        return any(file_stamp(Path(path)) != stamp for path, stamp in self.files.items())


class RawSource(Protocol):
    """One task's split of a raw tree. A record is whatever `plan` returns; nobody else looks into it.

    Attributes:
        dataset: the word of `automoe prepare <dataset>`.
        root: the raw tree; place: the labels' file or folder, or the tables' folder, for messages.
        unit: what a row is, in the plural: "images", "samples".
        rows_per_shard: as many as a worker may hold in memory.
        options: what the user chose, ready for JSON; a set prepared with other options is stale.
    """

    @property
    def dataset(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def root(self) -> Path: ...
    @property
    def place(self) -> Path: ...
    @property
    def unit(self) -> str: ...
    @property
    def rows_per_shard(self) -> int: ...
    @property
    def options(self) -> dict[str, Any]: ...

    def describe(self) -> str:
        """Where the data is read from, in a line for the console. Cheap: reads no labels."""
        ...

    def features(self) -> Any:
        """The columns as `datasets.Features`; "labels" is one of them, a list for each row."""
        ...

    def plan(self) -> tuple[list[Any], list[Quarantined]]:
        """The records to read, in order, and those whose labels rule them out. Raises DataError."""
        ...

    def notes(self) -> Sequence[str]:
        """What a user should know about this source; asked for after `plan`."""
        ...

    def name(self, record: Any) -> str: ...

    def files(self, record: Any) -> tuple[Path, ...]:
        """The files that a record's row is read from."""
        ...

    def key(self, record: Any) -> bytes:
        """A hash of all else that decides the row."""
        ...

    def row(self, record: Any) -> tuple[dict[str, Any], list[str]]:
        """The row, and the reasons of labels left out of it; raises DataError where the record can't be used."""
        ...

    def rig(self) -> dict[str, Any]:
        """Sensors and mounting for the manifest, empty where unknown; asked for after `plan`."""
        ...

    def origin(self) -> dict[str, Any]:
        """What must stay the same for the prepared set to be up to date, ready for JSON."""
        ...

    def changed(self, origin: Mapping[str, Any]) -> str | None:
        """What has changed since `origin` was told, None if nothing has. Cheap: reads no labels."""
        ...


def find_source(root: Path | str, task: str, split: str, options: Mapping[str, Any]) -> RawSource:
    """The raw source of a task, of whichever data set has it. Raises DataError with where it was looked for."""
    if task not in TASK_CLASSES:
        raise DataError(f"there is no task {task!r}; tasks are {', '.join(TASK_CLASSES)}")
    # Imported here, so that training on BDD100K doesn't wait for the reader of nuScenes' tables.
    if task in BDD_CLASSES:
        from automoe.data.bdd100k_source import find_bdd100k as find
    elif task == "frames":
        from automoe.data.carla_source import find_carla as find
    else:
        from automoe.data.nuscenes_source import find_nuscenes as find
    return find(Path(root), task, split, **options)


def quarantine(name: str, reason: str, files: Sequence[Path] = ()) -> Quarantined:
    """A quarantine entry for a whole record."""
    return Quarantined(name, "record", reason, {str(path): file_stamp(path) for path in files})


# --- files: what is read of them, and what is cheap to know ------------------------------------------------


def read_file(path: Path, kind: str) -> bytes:
    """A file's bytes; raises DataError where it can't be read or is empty. kind: "image", for the message."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the {kind} {path}: {error.strerror}") from error
    if not data:
        raise DataError(f"the {kind} {path} is empty")
    return data


def file_stamp(path: Path) -> list[int] | None:
    """Size and modification time (ns); None for a file that is absent or unreadable."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def text_listing(path: Path) -> dict[str, Any]:
    """Size, time and checksum of a label file."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _checksum(path)}


def same_text(path: Path, before: Mapping[str, Any]) -> bool:
    """Whether a label file is as `text_listing` found it. One with another time (a copy) may have the same content."""
    stamp = file_stamp(path)
    if stamp == [before.get("size"), before.get("mtime_ns")]:
        return True
    return stamp is not None and stamp[0] == before.get("size") and before.get("sha256") == _checksum(path)


def folder_listing(folder: Path, suffix: str) -> dict[str, Any]:
    """The count of a folder's files that end in `suffix`, and a hash of their names and some of their sizes."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(suffix)) if folder.is_dir() else []
    step = max(1, len(names) // _SIZES_LOOKED_AT)
    sizes = [(folder / name).stat().st_size for name in names[::step]]
    digest = hashlib.sha256("\n".join([*names, *map(str, sizes)]).encode())
    return {"count": len(names), "sha256": digest.hexdigest()}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
