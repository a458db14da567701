"""Pieces of the page that aren't about an expert: tables, charts, films and facts under a heading, all as text.

`sections_driving`, `sections_gate` and `sections_planning` fill them, `templates/parts.html.j2` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automoe.errors import DataError

NONE = "–"
"""In the place of a number that there isn't."""


@dataclass(frozen=True)
class Row:
    """A line of a table. tags: words behind its name. strong: cells, by their place, that stand out."""

    name: str
    cells: Sequence[str]
    tags: Sequence[str] = ()
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Table:
    """A table; its first column has the rows' names and no title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    about: str
    wide: bool = True


@dataclass(frozen=True)
class Film:
    """A film. source: of a player, or none where there is but a link to the file. said: sentences below the caption."""

    title: str
    caption: str
    said: Sequence[str]
    source: str | None
    link: str | None


@dataclass(frozen=True)
class Card:
    """A part in short, for the top of the page: a large number, what it is, and a table."""

    value: str
    name: str
    table: Table


@dataclass
class Part:
    """A piece of the page.

    missing: why there is nothing, and how to make it; problem: what is wrong with what there is. Either stands alone.
    facts: shown at once; details: behind a fold.
    """

    title: str
    anchor: str
    missing: str | None = None
    problem: str | None = None
    card: Card | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    films_about: str = ""
    details: list[tuple[str, str]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def shows(self) -> bool:
        """Whether there is anything but a sentence on why there is nothing."""
        return self.missing is None and self.problem is None


def part_of_file(part: Part, path: Path, missing: str, absent: str | None, fill: Callable[[Part], None]) -> Part:
    """A part, still empty, with what `fill` finds in a file; or with a sentence on why there is nothing.

    missing: that sentence where the file is absent. absent: the error's instead where somebody asked for this file,
    so that a DataError is raised where it is absent or damaged; None where nobody did.
    """
    if not path.is_file():
        if absent is not None:
            raise DataError(absent)
        part.missing = missing
        return part
    try:
        fill(part)
    except DataError as error:
        if absent is not None:
            raise
        return Part(part.title, part.anchor, problem=str(error))
    return part


def read_object(path: Path, made_by: str) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError, naming the file and the command that makes it."""
    try:
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {made_by} makes it.") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {made_by} makes it anew.") from error
    if not isinstance(said, dict):
        raise DataError(f"{path} is damaged (it holds no JSON object); {made_by} makes it anew.")
    return said
