"""Ctrl-C, SIGTERM and SIGHUP as a request that a loop reads, instead of an exception at any line.

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

# SIGHUP, which a closed terminal or a lost connection sends, does not exist on Windows.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest(ExitStack):
    """Context manager: the first of these signals sets `requested`, a second Ctrl-C kills.

    SIGHUP stays ignored where it is, as under `nohup`. Outside the main thread Python allows no
    signal handlers; there the signals keep their effect.
    """

    requested = False
    _first = 0.0  # when it was requested

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                ignored = number not in _SIGNALS[:2] and before is signal.SIG_IGN
                if before is not None and not ignored:  # None: a handler in C, which stays
                    self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif number == signal.SIGINT and now - self._first > _SAME_KEY_PRESS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
