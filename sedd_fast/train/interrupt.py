"""Ctrl-C and SIGTERM as a request that a loop reads, instead of an exception at any line.

with StopRequest() as stop:
    while not stop.requested:
        ...                        # one step, never interrupted
"""

import os
import signal
import threading
import time
from contextlib import ExitStack
from types import FrameType

# A launcher forwards the Ctrl-C that the terminal has already sent to every process of the group:
# a second signal within this many seconds is the same key press.
_SAME_KEY_PRESS = 1.0


class StopRequest(ExitStack):
    """Context manager: the first SIGINT or SIGTERM sets `requested`, a second Ctrl-C kills.

    Outside the main thread Python allows no signal handlers; there the signals keep their effect.
    """

    requested = False
    _first = 0.0  # when it was requested

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif number == signal.SIGINT and now - self._first > _SAME_KEY_PRESS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
