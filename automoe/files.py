"""Files that appear whole or not at all, and the sentence for a disk that won't take them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from automoe.errors import WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well, and vanishes when it doesn't.

    It lies in the same folder, so the replacement is one rename. sync: have it on the disk before that, so that a
    power cut can't leave an empty file; for many small files that can be made again this takes too long.
    Raises WriteError if the disk is full or the folder not writable: what was at `path` before is still there.
    """
    if not path.name:
        raise WriteError(f"{path} is a folder; name a file in it.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # the folder may be none, or gone: what is said is why
            temporary.unlink()


def write_bytes(path: Path, data: bytes | memoryview, *, sync: bool = True) -> None:
    """Replace the file at `path`, all or nothing. Raises WriteError as `atomic_file` does."""
    with atomic_file(Path(path), sync=sync) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, all or nothing. Raises WriteError as `atomic_file` does."""
    write_bytes(path, text.encode())


def check_writable(folder: Path) -> None:
    """Make a folder and see whether files can be made in it: to say so before long work, and not after it. Raises
    WriteError."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is written into a WriteError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save turns the operating system's error into a RuntimeError of its own on the way out.
        kept = f"; the earlier {path.name} is untouched" if path.is_file() else ""
        if says_disk_full(error) or _disk_is_full(path):
            words = f"The disk is full: {path} was not written{kept}; free some space and start again."
            raise WriteError(words, disk_full=True) from error
        if isinstance(error, OSError):
            raise WriteError(
                f"{path} was not written ({error.strerror}){kept}; check the folder's permissions, or name another."
            ) from error
        raise


def says_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that of a full disk or an exceeded quota."""
    link: BaseException | None = error
    while link is not None:
        if (isinstance(link, WriteError) and link.disk_full) or (isinstance(link, OSError) and link.errno in _FULL):
            return True
        link = link.__cause__ or link.__context__
    return False


def _disk_is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < 2**20
    except OSError:
        return False
