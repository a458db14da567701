"""Prepared sets: one directory for each task and split, made from a raw tree in one resumable pass.

    <prepared>/<task>/<split>/
        data-00000-of-00012.arrow      rows with the JPEG bytes as found, and beside it its account
        state.json, dataset_info.json  make the shards a set for Hugging Face `datasets.load_from_disk`
        quarantine.jsonl               what could not be used, one reason a line
        manifest.json                  written last: without it the set is unfinished

Columns: name, image (JPEG bytes), height, width, weather, scene, timeofday, boxes (pixel xyxy), labels,
ignored, occluded, truncated; and mask (8-bit PNG of class ids) for drivable and segmentation.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from automoe.data.bdd100k import TASK_CLASSES, Bdd100kLayout, Record, Source, find_layout, frames, parse_frame
from automoe.data.shards import (
    FORMAT_VERSION,
    Quarantined,
    Shard,
    build_shard,
    features,
    finished_shard,
    quarantine,
    shard_key,
)
from automoe.errors import DataError, WriteError
from automoe.files import says_disk_full, write_bytes
from automoe.machine import available_cores

PREPARED_DIR = "automoe_prepared"
"""Folder inside a raw tree that holds its prepared sets, unless another place is given."""

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"

Progress = Callable[[int, int], None]
"""Called with (records done, records in all)."""

_SIZES_LOOKED_AT = 1000


@dataclass(frozen=True)
class PreparedInfo:
    """A finished prepared set, as its manifest tells.

    Attributes:
        count: rows; boxes: boxes in all rows.
        quarantined: frames left out; rejected_labels: boxes left out of frames that stayed.
        fingerprint: SHA-256 over every row's content, independent of machine, path and shard size.
        source_root: the raw tree it was made from.
        notes: what the layout search wants a user to know.
    """

    path: Path
    task: str
    split: str
    classes: tuple[str, ...]
    count: int
    boxes: int
    quarantined: int
    rejected_labels: int
    fingerprint: str
    source_root: str
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | str) -> PreparedInfo:
        """Reads a prepared directory's manifest. Raises DataError where it is missing or outdated."""
        path = Path(path)
        manifest = _manifest(path)
        if manifest is None:
            raise DataError(f"{path} is not a prepared set (it has no {MANIFEST}); run `automoe prepare bdd100k`")
        if manifest["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {manifest['format_version']}, this program reads "
                f"{FORMAT_VERSION}; run `automoe prepare bdd100k` again"
            )
        if tuple(manifest["classes"]) != TASK_CLASSES[manifest["task"]]:
            raise DataError(f"{path / MANIFEST} lists other classes than this program; prepare the set again")
        for shard in manifest["shards"]:
            file = path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DataError(f"the shard {file} is missing or cut short; run `automoe prepare bdd100k` again")
        return cls(
            path,
            manifest["task"],
            manifest["split"],
            tuple(manifest["classes"]),
            manifest["count"],
            manifest["boxes"],
            manifest["quarantined"],
            manifest["rejected_labels"],
            manifest["fingerprint"],
            manifest["source"]["root"],
            tuple(manifest["notes"]),
        )

    def summary(self) -> str:
        """One or two sentences for the console."""
        text = f"{self.task} {self.split}: {self.count} images"
        if self.task == "detection":
            text += f", {self.boxes} boxes"
        if self.quarantined or self.rejected_labels:
            text += f"; {self.quarantined} broken images and {self.rejected_labels} broken boxes were left out, "
            text += f"each named in {self.path / QUARANTINE}"
        return text

    def quarantine(self) -> list[Quarantined]:
        """What was left out, with reasons."""
        return _read_quarantine(self.path)


def ensure_prepared(
    data_root: Path | str,
    task: str,
    split: str,
    prepared_dir: Path | str | None = None,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> PreparedInfo:
    """The prepared set for a data root, made on first use and again when the source has changed, saying so.

    Args:
        data_root: a raw BDD100K tree, or a prepared directory (the one of the task and split, or the one
            above that holds `<task>/<split>`).
        prepared_dir: where prepared sets go, as `<prepared_dir>/<task>/<split>`; inside the raw tree if not
            given.
        say: receives a sentence wherever something takes time or was decided.

    Safe to call from several processes at once: one prepares, the others wait. Raises DataError.
    """
    data_root = Path(data_root)
    if _manifest(data_root):  # a prepared directory: of this task and split, or of a sister
        mine = _of(data_root, task, split)
        return PreparedInfo.load(data_root if mine else data_root.parent.parent / task / split)
    out = (Path(prepared_dir) if prepared_dir else data_root / PREPARED_DIR) / task / split
    missing = f"there is no folder {data_root}"
    if data_root.is_dir() or not _of(out, task, split):
        layout = find_layout(data_root)
        if (task, split) in layout.sources:
            return _prepare(layout, layout.source(task, split), out, workers, progress, say)
        if _of(data_root / task / split, task, split):
            return PreparedInfo.load(data_root / task / split)
        missing = layout.missing[task, split]
    if not _of(out, task, split):
        raise DataError(missing)
    say(f"{missing}; the set prepared earlier at {out} is used as it is")
    return PreparedInfo.load(out)


def prepare(
    root: Path | str,
    task: str,
    split: str,
    out: Path | str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    shard_size: int = 256,
) -> PreparedInfo:
    """Prepares one task's split of a raw tree into the directory `out`; finished shards of a killed run are
    kept.

    Broken records are left out and listed with their reason in quarantine.jsonl. A set that is already there
    and whose source is unchanged is returned as it is. `workers` threads (default: the cores, at most 16)
    read, check and write. Raises DataError: no such data, truncated label JSON, nothing usable, full or
    read-only disk.
    """
    layout = find_layout(root)
    return _prepare(layout, layout.source(task, split), Path(out), workers, progress, say, shard_size)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A progress bar on the console, as the `progress` argument of `prepare`."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- preparing ----------------------------------------------------------------------------------------------


def _prepare(
    layout: Bdd100kLayout,
    source: Source,
    out: Path,
    workers: int | None,
    progress: Progress | None,
    say: Callable[[str], None],
    shard_size: int = 256,
) -> PreparedInfo:
    if _why_stale(out, source) is None:
        return PreparedInfo.load(out)
    with _disk_errors(out), _lock(out, say):
        reason = _why_stale(out, source)
        if reason is None:  # another process prepared it while this one waited
            return PreparedInfo.load(out)
        again = "again " if (out / MANIFEST).exists() else ""
        say(f"preparing {source.task} {source.split} {again}into {out} ({reason}); later runs start at once")
        say(f"images {source.images}, labels {source.labels}")
        for note in source.notes:
            say(f"note: {note}")
        (out / MANIFEST).unlink(missing_ok=True)
        for left_over in out.glob(".*.tmp"):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
        usable, quarantined = _plan(source)
        shards = _build_shards(usable, source, out, workers or _default_workers(), progress, shard_size)
        _finish(layout, source, out, shards, quarantined)
    info = PreparedInfo.load(out)
    say(info.summary())
    return info


def _plan(source: Source) -> tuple[list[Record], list[Quarantined]]:
    """The records to read, and those whose labels rule them out. Raises DataError for truncated JSON."""
    usable: list[Record] = []
    quarantined: list[Quarantined] = []
    seen: set[str] = set()
    for frame in frames(source):
        try:
            record = parse_frame(frame, source)
        except DataError as error:
            name = str(frame.get("name")) if isinstance(frame, dict) else ""
            quarantined.append(quarantine(name, str(error)))
            continue
        if record.name in seen:
            reason = f"{source.labels}: frame {record.name} occurs a second time; the first is used"
            quarantined.append(quarantine(record.name, reason))
            continue
        seen.add(record.name)
        usable.append(record)
    return usable, quarantined


def _build_shards(
    records: list[Record], source: Source, out: Path, workers: int, progress: Progress | None, shard_size: int
) -> list[Shard]:
    """Builds every shard that an earlier run hasn't finished. Threads suffice: decoding releases the GIL."""
    features(source.task)  # imports `datasets` once, not in every thread
    pieces = [records[start : start + shard_size] for start in range(0, len(records), shard_size)]

    def build(number: int) -> Shard:
        path = out / f"data-{number:05d}-of-{len(pieces):05d}.arrow"
        key = shard_key(pieces[number], source)
        return finished_shard(path, key) or build_shard(pieces[number], source, path, key)

    done = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(build, number) for number in range(len(pieces))]
        try:
            for future in as_completed(futures):
                shard = future.result()
                done += shard.rows + sum(entry.level == "record" for entry in shard.quarantined)
                if progress:
                    progress(done, len(records))
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _finish(
    layout: Bdd100kLayout, source: Source, out: Path, shards: list[Shard], quarantined: list[Quarantined]
) -> None:
    """Writes what makes the shards a data set; the manifest last."""
    quarantined = quarantined + [entry for shard in shards for entry in shard.quarantined]
    text = "".join(json.dumps(asdict(entry)) + "\n" for entry in quarantined)
    write_bytes(out / QUARANTINE, text.encode())
    count = sum(shard.rows for shard in shards)
    broken = [entry for entry in quarantined if entry.level == "record"]
    if count == 0:
        why = f"the first of {len(broken)}: {broken[0].reason}" if broken else "there are no labelled frames"
        raise DataError(f"no usable {source.task} {source.split} image in {source.labels}; {why}")
    fingerprint = hashlib.sha256(f"{FORMAT_VERSION} {source.task} {TASK_CLASSES[source.task]}".encode())
    for shard in shards:
        for digest in shard.digests:
            fingerprint.update(bytes.fromhex(digest))
    _write_hugging_face_files(source, out, shards, fingerprint.hexdigest())
    manifest = {
        "format": "automoe-bdd100k",
        "format_version": FORMAT_VERSION,
        "task": source.task,
        "split": source.split,
        "classes": TASK_CLASSES[source.task],
        "count": count,
        "boxes": sum(shard.boxes for shard in shards),
        "quarantined": len(broken),
        "rejected_labels": len(quarantined) - len(broken),
        "fingerprint": fingerprint.hexdigest(),
        "source": {
            "root": str(layout.root.resolve()),
            "images": str(source.images),
            "labels": str(source.labels),
            "listing": _listing(source, with_checksum=True),
        },
        "notes": source.notes,
        "shards": [
            {"file": shard.file, "rows": shard.rows, "bytes": shard.bytes, "sha256": shard.sha256} for shard in shards
        ],
    }
    kept = {shard.file for shard in shards}
    for old in out.glob("data-*"):
        if old.name.removesuffix(".json") not in kept:
            old.unlink()
    write_bytes(out / MANIFEST, json.dumps(manifest, indent=1).encode())


def _write_hugging_face_files(source: Source, out: Path, shards: list[Shard], fingerprint: str) -> None:
    from datasets import DatasetInfo

    info = DatasetInfo(description=f"BDD100K {source.task} {source.split}", features=features(source.task))
    with tempfile.TemporaryDirectory(dir=out, prefix=".info.", suffix=".tmp") as folder:
        info.write_to_directory(folder)
        os.replace(Path(folder) / "dataset_info.json", out / "dataset_info.json")
    state = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_bytes(out / "state.json", json.dumps(state, indent=1).encode())


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turns a full or a read-only disk into the sentence for it."""
    try:
        yield
    except (OSError, WriteError) as error:
        if says_disk_full(error):
            kept = len(list(out.glob("data-*.arrow")))
            raise DataError(
                f"the disk of {out} is full: the {kept} finished shards are kept, nothing is half-written; "
                "free space or name another place with --prepared_dir (automoe prepare: --out), "
                "then run the same command to go on"
            ) from error
        if isinstance(error, WriteError) or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"cannot write the prepared set to {out} ({error.__cause__ or error}); "
                "name a writable place with --prepared_dir (automoe prepare: --out)"
            ) from error
        raise


@contextlib.contextmanager
def _lock(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time; a killed one leaves no lock behind."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that prepares {out}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _default_workers() -> int:
    return min(16, available_cores())


# --- is it still the same source? ---


def _why_stale(out: Path, source: Source) -> str | None:
    """Why `out` must be prepared (again); None if it is finished and its source unchanged."""
    manifest = _manifest(out)
    if manifest is None:
        return "an earlier run is continued" if any(out.glob("data-*.arrow")) else "first use"
    try:
        PreparedInfo.load(out)
    except DataError as error:
        return str(error)
    before, now = manifest["source"]["listing"], _listing(source)
    for key, what in (("images", "the images"), ("labels", "the labels")):
        same = now[key] == {name: before[key].get(name) for name in now[key]}
        if not same and not (key == "labels" and _same_text(source.labels, before[key], now[key])):
            return f"{what} in {source.images if key == 'images' else source.labels} have changed"
    repaired = [entry.name for entry in _read_quarantine(out) if entry.repaired()]
    return f"{repaired[0]} was broken and has changed" if repaired else None


def _same_text(path: Path, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a label file with another time (a copy) has the same content."""
    return path.is_file() and before["size"] == now["size"] and before["sha256"] == _checksum(path)


def _listing(source: Source, with_checksum: bool = False) -> dict[str, dict[str, Any]]:
    """What is cheap to know of a source: names and some sizes of a folder, size and time of a label file."""
    listing = {"images": _folder_listing(source.images, source.image_suffix)}
    if source.labels.is_dir():
        suffix = ".json" if source.task == "detection" else source.mask_suffix
        listing["labels"] = _folder_listing(source.labels, suffix)
        return listing
    status = source.labels.stat()
    listing["labels"] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if with_checksum:
        listing["labels"]["sha256"] = _checksum(source.labels)
    return listing


def _folder_listing(folder: Path, suffix: str) -> dict[str, Any]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(suffix))
    step = max(1, len(names) // _SIZES_LOOKED_AT)
    sizes = [(folder / name).stat().st_size for name in names[::step]]
    digest = hashlib.sha256("\n".join([*names, *map(str, sizes)]).encode())
    return {"count": len(names), "sha256": digest.hexdigest()}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(path: Path) -> dict[str, Any] | None:
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete {path} and prepare the set again") from error
    return manifest if manifest.get("format") == "automoe-bdd100k" else None


def _of(path: Path, task: str, split: str) -> bool:
    """Whether `path` is a finished prepared set of that task and split."""
    manifest = _manifest(path)
    return manifest is not None and (manifest["task"], manifest["split"]) == (task, split)


def _read_quarantine(path: Path) -> list[Quarantined]:
    lines = (path / QUARANTINE).read_text().splitlines()
    return [Quarantined(**json.loads(line)) for line in lines]
