"""Label JSON read frame by frame: BDD100K's training labels are half a gigabyte of text and one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from automoe.errors import DataError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def iter_json_records(path: Path) -> Iterator[Any]:
    """Yields the items of a JSON list, or of `{"frames": [...]}`; one object without a frames list is one
    item.

    A list is read in pieces, so that memory holds one item and one piece. (The wrapped form is read at once.)
    Raises DataError naming file and record where the text ends early or isn't JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as text:
            head = text.read(_CHUNK)
            start = head.lstrip(_SPACE)
            if start.startswith("["):
                yield from _list_items(text, start[1:], path)
            else:
                yield from _wrapped_items(head + text.read(), path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text ({error.reason} at byte {error.start}); download it again") from error
    except OSError as error:
        raise DataError(f"cannot read the labels {path}: {error.strerror}") from error


def _wrapped_items(text: str, path: Path) -> Iterator[Any]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not complete JSON ({error}); download or unzip it again") from error
    if not isinstance(whole, dict):
        raise DataError(f"{path} holds {type(whole).__name__}, not a list of frames")
    frames = whole.get("frames")
    if frames is None or (
        frames and isinstance(frames[0], dict) and "objects" in frames[0]
    ):  # the one-JSON-per-image release
        frames = [whole]
    yield from frames


def _list_items(text: TextIO, buffer: str, path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    position = count = 0
    ended = False
    comma_due = False
    while True:
        while position < len(buffer) and buffer[position] in _SPACE:
            position += 1
        if buffer[position : position + 1] == "]":
            return
        if comma_due and position < len(buffer):
            if buffer[position] != ",":
                raise DataError(f"{path} is not JSON: there is no comma after record {count}; download it again")
            comma_due = False
            position += 1
            continue
        try:
            item, position = decoder.raw_decode(buffer, position)
        except json.JSONDecodeError as error:
            if ended:
                raise DataError(
                    f"{path} is not complete JSON: it breaks after record {count} ({error.msg}); "
                    "download or unzip it again"
                ) from error
            piece = text.read(max(_CHUNK, len(buffer)))
            ended = not piece
            buffer, position = buffer[position:] + piece, 0
            continue
        count += 1
        comma_due = True
        yield item
