"""What a run leaves for people to read: `metrics.jsonl`, TensorBoard, and the progress bar.

Only the main process writes; in the others a RunLog does nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from automoe.errors import WriteError
from automoe.files import write_errors, write_text

METRICS = "metrics.jsonl"


class RunLog:
    """The log of one run, from `step` on: lines and points after it, left by a run that was killed, are dropped."""

    def __init__(
        self, run_dir: Path, log_dir: Path, *, active: bool, step: int, total_steps: int, log_seconds: float
    ) -> None:
        self._path = run_dir / METRICS
        self._writer: Any = None
        self._display: _Bar | _Lines | None = None
        if not active:
            return
        drop_after(self._path, step)
        # TensorBoard takes a second to import: only where it is used.
        from torch.utils.tensorboard import SummaryWriter

        self._log_dir = log_dir
        with write_errors(log_dir):
            self._writer = SummaryWriter(str(log_dir), purge_step=step + 1 if step else None)
        self._display = _Bar(step, total_steps) if sys.stdout.isatty() else _Lines(step, total_steps, log_seconds)

    def step(self, step: int, epoch: float, numbers: dict[str, float]) -> None:
        """Show one step: `numbers` has loss, lr, images_per_second, step_seconds and data_wait (a share)."""
        if self._display:
            self._display.show(step, epoch, numbers)

    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        """Points in TensorBoard, under their names ("train/loss")."""
        if self._writer:
            # What its own thread could not write, TensorBoard raises at a later call.
            with write_errors(self._log_dir):
                for name, value in values.items():
                    if value is not None:
                        self._writer.add_scalar(name, value, step)

    def evaluation(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinity become null, as JSON has neither."""
        if self._writer is None:
            return
        text = json.dumps(_finite(line), allow_nan=False)
        with write_errors(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        with write_errors(self._log_dir):
            self._writer.flush()

    def close(self, *, quiet: bool = False) -> None:
        """Finish the bar and flush what TensorBoard holds back. quiet: whatever comes of it, as something worse has
        happened already."""
        if self._display:
            self._display.close()
        if self._writer:
            with contextlib.suppress(WriteError) if quiet else contextlib.nullcontext(), write_errors(self._log_dir):
                self._writer.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first; a last line that a crash cut short is left out."""
    path = run_dir / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in parsed if isinstance(line, dict) and "step" in line]


def drop_after(path: Path, step: int) -> None:
    """Rewrite metrics.jsonl without lines of later steps, which will be written again."""
    if path.is_file():
        kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def describe(numbers: dict[str, float]) -> str:
    """The numbers of a step as one piece of a progress line."""
    return (
        f"loss {numbers['loss']:.4g}  lr {numbers['lr']:.2e}  {numbers['images_per_second']:.1f} images/s  "
        f"{numbers['step_seconds']:.3f} s/step  data wait {numbers['data_wait']:.0%}"
    )


def brief(numbers: dict[str, float]) -> str:
    """The same in fewer letters, for a terminal of 80 columns."""
    return (
        f"loss {numbers['loss']:.3g} lr {numbers['lr']:.1e} {numbers['images_per_second']:.1f} img/s "
        f"{numbers['step_seconds']:.2f}s wait {numbers['data_wait']:.0%}"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 3.2s, 42s, 4m12s, 3h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class _Lines:
    """A plain line now and then, for log files."""

    def __init__(self, step: int, total_steps: int, every_seconds: float) -> None:
        self._total, self._every = total_steps, every_seconds
        self._first_step, self._shown_step = step, step
        self._started = self._shown_at = time.monotonic()

    def show(self, step: int, epoch: float, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._shown_at < self._every and step < self._total:
            return
        self._shown_at = now
        left = (now - self._started) / (step - self._first_step) * (self._total - step)
        print(
            f"epoch {epoch:.2f}  step {step}/{self._total}  {describe(numbers)}  ETA {duration(left)}",
            flush=True,
        )

    def close(self) -> None:
        pass


class _Bar:
    """A bar at the foot of the terminal. It redraws when told to: a thread of its own would not survive forks."""

    def __init__(self, step: int, total_steps: int) -> None:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

        columns: list[ProgressColumn] = [
            TextColumn("{task.fields[epoch]:.2f} epochs"),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
        ]
        self._progress = Progress(*columns, auto_refresh=False)
        # In 80 columns the numbers matter more than the bar.
        if self._progress.console.width >= 100:
            self._progress.columns = (*columns[:1], BarColumn(bar_width=20), *columns[1:])
        self._progress.start()
        self._task = self._progress.add_task("", total=total_steps, completed=step, epoch=0.0)
        self._drawn_at = 0.0

    def show(self, step: int, epoch: float, numbers: dict[str, float]) -> None:
        self._progress.update(self._task, completed=step, epoch=epoch, description=brief(numbers))
        now = time.monotonic()
        if now - self._drawn_at > 0.25:
            self._drawn_at = now
            self._progress.refresh()

    def close(self) -> None:
        self._progress.refresh()
        self._progress.stop()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
