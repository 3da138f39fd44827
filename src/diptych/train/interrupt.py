"""Stopping cleanly: Ctrl-C and SIGTERM finish the step, save, and say how to resume."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Stopped(BaseException):
    """A signal ended work of which nothing is to be saved; like KeyboardInterrupt it passes by ``except Exception``."""


class StopRequest:
    """Inside ``with``, the first SIGINT or SIGTERM sets ``requested``; a second one acts at once, as it would without.

    Outside of the main thread signals cannot be caught, and nothing changes.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._acts_at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal does not wait for the end of a step.

        Raises:
            Stopped: a signal came, inside or before.
        """
        if self.requested is not None:
            raise Stopped
        self._acts_at_once = True
        try:
            yield
        finally:
            self._acts_at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()
        if self._acts_at_once:
            raise Stopped
        # A plain system call: a handler may have interrupted Python's own, buffered writing.
        os.write(2, f"\n{self.requested}: stopping after this step and saving. Again to stop at once.\n".encode())

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
