"""Signals that end a process, turned into a flag that is looked at where it does no harm: between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType

# torchrun passes a terminal's Ctrl-C on to processes that already had it: only a later one means impatience.
SECOND_CTRL_C_SECONDS = 2.0


class Interrupted(SystemExit):
    """The run was stopped by a signal after it saved its state. Ends the process with 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class StopSignals:
    """While entered, `received` is the number of the first of some signals that came, or 0.

    A Ctrl-C that comes `impatient` seconds after it, or later, interrupts at once. A SIGHUP that is ignored, as `nohup`
    has it, stays so. Outside the main thread signals stay as they are.
    """

    def __init__(
        self, numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT), impatient: float = SECOND_CTRL_C_SECONDS
    ) -> None:
        self.received = 0
        self._numbers, self._impatient, self._first_at = numbers, impatient, 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first_at = number, now
        elif number == signal.SIGINT and now - self._first_at >= self._impatient:
            raise KeyboardInterrupt
