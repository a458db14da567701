"""Prepared sets: one directory for each task and split, made from a raw tree in one resumable pass.

    <prepared>/<task>/<split>/
        data-00000-of-00012.arrow      rows with the JPEG bytes as found, and beside it its account
        state.json, dataset_info.json  make the shards a set for Hugging Face `datasets.load_from_disk`
        quarantine.jsonl               what could not be used, one reason a line
        manifest.json                  written last: without it the set is unfinished

What is in a row is the data set's own affair: see `bdd100k_source.py` and `nuscenes_prepared.py`. Here is what all
prepared sets have in common: when one is out of date, resuming, what could not be used, the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from automoe.data.raw_source import TASK_CLASSES, Quarantined, RawSource, find_source
from automoe.data.shards import Shard, build_shard, finished_shard, format_version, shard_key
from automoe.errors import DataError, WriteError
from automoe.files import says_disk_full, write_bytes
from automoe.machine import available_cores
from automoe.progress import Progress

PREPARED_DIR = "automoe_prepared"
"""Folder inside a raw tree that holds its prepared sets, unless another place is given."""

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"

GROWING = ("cameras",)
"""Options that are sets: one with more serves who wants fewer, and what is asked for anew is added to what is there."""

_FORMAT = "automoe-"  # and the data set's word


@dataclass(frozen=True)
class PreparedInfo:
    """A finished prepared set, as its manifest tells.

    Attributes:
        dataset: "bdd100k", "nuscenes" or "carla"; unit: what a row is, in the plural.
        count: rows; boxes: boxes in all rows.
        quarantined: records left out; rejected_labels: boxes left out of records that stayed.
        fingerprint: SHA-256 over every row's content, independent of machine, path and shard size.
        source_root: the raw tree it was made from.
        notes: what a user should know about the source.
        options: what was chosen when it was prepared; rig: sensors and mounting. Both as the data set tells them.
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
    dataset: str = "bdd100k"
    unit: str = "images"
    options: Mapping[str, Any] = field(default_factory=dict)
    rig: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str) -> PreparedInfo:
        """Reads a prepared directory's manifest. Raises DataError where it is missing or outdated."""
        path = Path(path)
        manifest = _manifest(path)
        if manifest is None:
            raise DataError(
                f"{path} is not a prepared set (it has no {MANIFEST}); run `automoe prepare bdd100k`, "
                "`automoe prepare nuscenes` or `automoe prepare carla`"
            )
        dataset = _dataset(manifest)
        again = f"run `automoe prepare {dataset}` again"
        if manifest["format_version"] != (ours := format_version(manifest["task"])):
            raise DataError(
                f"{path} has format version {manifest['format_version']}, this program reads {ours}; {again}"
            )
        if tuple(manifest["classes"]) != TASK_CLASSES[manifest["task"]]:
            raise DataError(f"{path / MANIFEST} lists other classes than this program; {again}")
        for shard in manifest["shards"]:
            file = path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DataError(f"the shard {file} is missing or cut short; {again}")
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
            dataset,
            manifest["unit"],
            manifest["options"],
            manifest["rig"],
        )

    def summary(self) -> str:
        """One or two sentences for the console."""
        text = f"{self.task} {self.split}: {self.count} {self.unit}"
        if self.task.startswith("detection") or self.task == "frames":
            text += f", {self.boxes} boxes"
        if self.quarantined or self.rejected_labels:
            text += f"; {self.quarantined} broken {self.unit} and {self.rejected_labels} broken boxes were left out, "
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
    options: Mapping[str, Any] = MappingProxyType({}),
    workers: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> PreparedInfo:
    """The prepared set for a data root, made on first use and again when the source has changed, saying so.

    Args:
        data_root: a raw tree of the data set that has the task, or a prepared directory (the one of the task and
            split, or the one above that holds `<task>/<split>`).
        prepared_dir: where prepared sets go, as `<prepared_dir>/<task>/<split>`; inside the raw tree if not
            given.
        options: what `find_source` takes for the task: version, sweeps, cameras for detection3d (see
            `find_nuscenes`), none for BDD100K's tasks. What is not given, or None, is as the set that is there has
            it, and the default's on first use; a set with more sweeps or cameras than are asked for serves, too.
        say: receives a sentence wherever something takes time or was decided.

    Safe to call from several processes at once: one prepares, the others wait. Raises DataError.
    """
    data_root = Path(data_root)
    if _manifest(data_root):  # a prepared directory: of this task and split, or of a sister
        mine = _of(data_root, task, split)
        return _as_it_is(data_root if mine else data_root.parent.parent / task / split, options)
    out = (Path(prepared_dir) if prepared_dir else data_root / PREPARED_DIR) / task / split
    options = _with_earlier(options, out)
    missing = f"there is no folder {data_root}"
    if data_root.is_dir() or not _of(out, task, split):
        try:
            source = find_source(data_root, task, split, options)
        except DataError as error:
            missing = str(error)
        else:
            return _prepare(source, out, workers, progress, say)
        if _of(data_root / task / split, task, split):
            return _as_it_is(data_root / task / split, options)
    if not _of(out, task, split):
        raise DataError(missing)
    try:
        info = _as_it_is(out, options)
    except DataError as error:
        raise DataError(f"{missing}; {error}") from error
    say(f"{missing}; the set prepared earlier at {out} is used as it is")
    return info


def prepare(
    root: Path | str,
    task: str,
    split: str,
    out: Path | str,
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    shard_size: int | None = None,
) -> PreparedInfo:
    """Prepares one task's split of a raw tree into the directory `out`; finished shards of a killed run are kept.

    Broken records are left out and listed with their reason in quarantine.jsonl. A set that is already there
    and whose source and options are unchanged is returned as it is. `workers` threads (default: the cores, at
    most 16) read, check and write. `options` as for `ensure_prepared`. Raises DataError: no such data, truncated
    label JSON, nothing usable, full or read-only disk.
    """
    return _prepare(find_source(root, task, split, options), Path(out), workers, progress, say, shard_size)


def open_rows(path: Path) -> Any:
    """A prepared set's rows, memory-mapped, through Hugging Face `datasets`; nothing goes over the network."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_from_disk(str(path), keep_in_memory=False)


def evenly(count: int, limit: int | None, what: str = "samples") -> np.ndarray:
    """Which of `count` samples, `what` to a person, are used, int64: all, or so many as a limit says, spread evenly
    over them. Raises DataError for a limit below 1."""
    if limit is not None and limit < 1:
        raise DataError(f"the limit of {what} must be at least 1, not {limit}")
    return np.linspace(0, count - 1, count if limit is None else min(limit, count)).round().astype(np.int64)


# --- preparing ----------------------------------------------------------------------------------------------


def _prepare(
    source: RawSource,
    out: Path,
    workers: int | None,
    progress: Progress | None,
    say: Callable[[str], None],
    shard_size: int | None = None,
) -> PreparedInfo:
    if _why_stale(out, source) is None:
        return PreparedInfo.load(out)
    with _disk_errors(out), _lock(out, say):
        reason = _why_stale(out, source)
        if reason is None:  # another process prepared it while this one waited
            return PreparedInfo.load(out)
        again = "again " if (out / MANIFEST).exists() else ""
        say(f"preparing {source.task} {source.split} {again}into {out} ({reason}); later runs start at once")
        say(source.describe())
        usable, quarantined = source.plan()
        for note in source.notes():
            say(f"note: {note}")
        (out / MANIFEST).unlink(missing_ok=True)
        for left_over in out.glob(".*.tmp"):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
        size = shard_size or source.rows_per_shard
        shards = _build_shards(usable, source, out, workers or _default_workers(), progress, size)
        _finish(source, out, shards, quarantined)
    info = PreparedInfo.load(out)
    say(info.summary())
    return info


def _build_shards(
    records: Sequence[Any], source: RawSource, out: Path, workers: int, progress: Progress | None, shard_size: int
) -> list[Shard]:
    """Builds every shard that an earlier run hasn't finished. Threads suffice: decoding releases the GIL."""
    source.features()  # imports `datasets` once, not in every thread
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


def _finish(source: RawSource, out: Path, shards: list[Shard], quarantined: list[Quarantined]) -> None:
    """Writes what makes the shards a data set; the manifest last."""
    quarantined = quarantined + [entry for shard in shards for entry in shard.quarantined]
    text = "".join(json.dumps(asdict(entry)) + "\n" for entry in quarantined)
    write_bytes(out / QUARANTINE, text.encode())
    count = sum(shard.rows for shard in shards)
    broken = [entry for entry in quarantined if entry.level == "record"]
    if count == 0:
        why = f"the first of {len(broken)}: {broken[0].reason}" if broken else "; ".join(source.notes())
        nothing = f"no usable {source.task} {source.split} {source.unit.removesuffix('s')} in {source.place}"
        raise DataError(f"{nothing}; {why or 'there are no labelled ' + source.unit}")
    classes = TASK_CLASSES[source.task]
    fingerprint = hashlib.sha256(f"{format_version(source.task)} {source.task} {classes}".encode())
    for shard in shards:
        for digest in shard.digests:
            fingerprint.update(bytes.fromhex(digest))
    _write_hugging_face_files(source, out, shards, fingerprint.hexdigest())
    manifest = {
        "format": _FORMAT + source.dataset,
        "format_version": format_version(source.task),
        "task": source.task,
        "split": source.split,
        "unit": source.unit,
        "options": source.options,
        "classes": classes,
        "rig": source.rig(),
        "count": count,
        "boxes": sum(shard.boxes for shard in shards),
        "quarantined": len(broken),
        "rejected_labels": len(quarantined) - len(broken),
        "fingerprint": fingerprint.hexdigest(),
        "source": {"root": str(source.root.resolve()), **source.origin()},
        "notes": list(source.notes()),
        "shards": [
            {"file": shard.file, "rows": shard.rows, "bytes": shard.bytes, "sha256": shard.sha256} for shard in shards
        ],
    }
    kept = {shard.file for shard in shards}
    for old in out.glob("data-*"):
        if old.name.removesuffix(".json") not in kept:
            old.unlink()
    write_bytes(out / MANIFEST, json.dumps(manifest, indent=1).encode())


def _write_hugging_face_files(source: RawSource, out: Path, shards: list[Shard], fingerprint: str) -> None:
    from datasets import DatasetInfo

    info = DatasetInfo(description=f"{source.dataset} {source.task} {source.split}", features=source.features())
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


def _why_stale(out: Path, source: RawSource) -> str | None:
    """Why `out` must be prepared (again); None if it is finished and its source and options unchanged."""
    manifest = _manifest(out)
    if manifest is None:
        return "an earlier run is continued" if any(out.glob("data-*.arrow")) else "first use"
    try:
        info = PreparedInfo.load(out)
    except DataError as error:
        return str(error)
    reason = _other_options(info, source.options) or source.changed(manifest["source"])
    if reason is not None:
        return reason
    repaired = [entry.name for entry in _read_quarantine(out) if entry.repaired()]
    return f"{repaired[0]} was broken and has changed" if repaired else None


def _other_options(info: PreparedInfo, wanted: Mapping[str, Any]) -> str | None:
    """In what the options of a prepared set differ from the wanted ones; None if in nothing."""
    for key, value in wanted.items():
        before = _plain(key, info.options.get(key))
        if value is not None and _plain(key, value) != before:
            return f"it was prepared with {key} {before}, and {_plain(key, value)} is asked for"
    return None


def _with_earlier(options: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The options that are given; where they are not, or are served by what the set at `out` has, those of that set."""
    earlier = (_manifest(out) or {}).get("options", {})
    lacking = {key: value for key, value in options.items() if value is not None and not _serves(earlier, key, value)}
    for key in lacking.keys() & set(GROWING):  # what was there before goes on to serve
        lacking[key] = list(dict.fromkeys([*(earlier.get(key) or ()), *lacking[key]]))
    return earlier | lacking


def _serves(options: Mapping[str, Any], key: str, wanted: Any) -> bool:
    """Whether a set with these options has what is wanted: as many sweeps or more, those cameras and maybe others."""
    have = options.get(key)
    if have is None or wanted is None:
        return wanted is None
    if key in GROWING:
        return set(wanted) <= set(have)
    return have >= wanted if isinstance(have, int) else _plain(key, have) == _plain(key, wanted)


def _plain(key: str, value: Any) -> str:
    """An option in words; where more of it serves as well, the order means nothing."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    return ", ".join(sorted(map(str, value)) if key in GROWING else map(str, value))


def _as_it_is(path: Path, options: Mapping[str, Any]) -> PreparedInfo:
    """A prepared set without its source. Raises DataError where it does not serve the options asked for."""
    info = PreparedInfo.load(path)
    lacking = {key: value for key, value in options.items() if not _serves(info.options, key, value)}
    reason = _other_options(info, lacking)
    if reason is not None:
        raise DataError(f"{path}: {reason}; give the raw {info.dataset} tree as data root, or leave the option out")
    return info


def _manifest(path: Path) -> dict[str, Any] | None:
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); delete {path} and prepare the set again") from error
    ours = isinstance(manifest, dict) and str(manifest.get("format")).startswith(_FORMAT)
    return manifest if ours and manifest.get("task") in TASK_CLASSES else None


def _dataset(manifest: Mapping[str, Any]) -> str:
    return str(manifest["format"]).removeprefix(_FORMAT)


def _of(path: Path, task: str, split: str) -> bool:
    """Whether `path` is a finished prepared set of that task and split."""
    manifest = _manifest(path)
    return manifest is not None and (manifest["task"], manifest["split"]) == (task, split)


def _read_quarantine(path: Path) -> list[Quarantined]:
    lines = (path / QUARANTINE).read_text().splitlines()
    return [Quarantined(**json.loads(line)) for line in lines]
