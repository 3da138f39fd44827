"""The next step's data, made ready in a thread while a GPU runs the current step."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

SECONDS_TO_CLOSE = 5.0


def prefetch_depth(device_type: str) -> int:
    """How far ahead to work: one step beside a GPU, not at all on a CPU.

    There the thread would take turns with the training for the interpreter and the cores: stages of ``blip3o:tiny``
    took 10 to 20 % longer with it on two cores. Worker processes (``MixtureStream(num_workers=...)``) help there.
    """
    return 0 if device_type == "cpu" else 1


class Prefetcher(Generic[Item]):
    """Hands out what ``produce(iterator)`` makes, in order, staying ``depth`` items ahead.

    An error in the thread is raised where the item would have been handed out. ``depth`` 0 works without a thread.
    """

    def __init__(self, items: Iterator[Item], depth: int = 1) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if depth > 0:
            self._thread = threading.Thread(target=self._run, name="diptych-prefetch", daemon=True)
            self._thread.start()

    def next(self) -> Item:
        """The next item; waits for it if need be.

        Raises:
            StopIteration: there are no more.
        """
        if self._thread is None:
            return next(self._items)
        item, error = self._queue.get()
        if error is not None:
            self.close()
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stops the thread; what it has prepared is dropped."""
        self._stopped.set()
        thread, self._thread = self._thread, None
        deadline = time.monotonic() + SECONDS_TO_CLOSE  # it may be waiting for a slow reader
        while thread is not None and thread.is_alive() and time.monotonic() < deadline:
            _drain(self._queue)
            thread.join(timeout=0.05)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # handed to the thread that waits for the item
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def _drain(entries: "queue.Queue[tuple[Item | None, BaseException | None]]") -> None:
    get: Callable[[], object] = entries.get_nowait
    try:
        while True:
            get()
    except queue.Empty:
        return
