"""How far something is, on the console: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A progress bar on the console, as the `progress` argument of `prepare`; where there is nothing to do, none.

    Where there is no terminal (a pipe, a log), a line now and then and one at the end.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Bar(*columns)
    if not bar.console.is_terminal:
        lines = _PlainProgress(description)
        yield lines
        lines.close()
        return
    with bar:
        task = bar.add_task(description, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


PLAIN_SECONDS = 15.0
"""Between two lines of progress where there is no terminal."""


class _PlainProgress:
    def __init__(self, description: str) -> None:
        self.description, self.said, self.now = description, time.monotonic(), ""

    def __call__(self, done: int, total: int) -> None:
        self.now = f"{self.description}: {done} of {total}"
        if time.monotonic() - self.said >= PLAIN_SECONDS:
            self.close()

    def close(self) -> None:
        """Say how far it is, if that was not said before."""
        if self.now:
            print(self.now, flush=True)
        self.said, self.now = time.monotonic(), ""
