"""SIGTERM and Ctrl-C, turned into a flag that the loop looks at between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

# torchrun passes a terminal's Ctrl-C on to processes that already had it: only a later one means impatience.
SECOND_CTRL_C_SECONDS = 2.0


class Interrupted(SystemExit):
    """The run was stopped by a signal after it saved its state. Ends the process with 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class StopSignals:
    """While entered, `received` is the number of the SIGTERM or SIGINT that came, or 0.

    A second Ctrl-C, seconds after the first, interrupts at once. Outside the main thread signals stay as they are.
    """

    def __init__(self) -> None:
        self.received = 0
        self._first_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
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
        elif number == signal.SIGINT and now - self._first_at > SECOND_CTRL_C_SECONDS:
            raise KeyboardInterrupt
