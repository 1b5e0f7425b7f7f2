"""``threading`` of the guest: a thread that is started and joined, which is all that ``kuasar.core.threads`` does."""

from __future__ import annotations

import _thread
from collections.abc import Callable


class Thread:
    """Runs ``target`` beside its maker. A daemon: nobody waits for it but :meth:`join`."""

    def __init__(self, *, target: Callable[[], object], daemon: bool) -> None:
        self._target = target
        self._running = _thread.allocate_lock()

    def start(self) -> None:
        """Once."""
        self._running.acquire()
        _thread.start_new_thread(self._run, ())

    def join(self) -> None:
        """Wait for its end."""
        with self._running:
            pass

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._running.release()


def _shutdown() -> None:
    """The interpreter's end asks for it by name."""
