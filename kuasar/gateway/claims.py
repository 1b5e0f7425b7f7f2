"""Sandboxes whose caller may have gone away: made for a call that the gateway's death broke, and never asked for again.

containerd forgets a sandbox whose Create or Start has failed, also when it failed because we died under it. So a
sandbox is marked, in ``<state dir>/unclaimed``, from its Create until its caller shows that it has heard of the start,
by whatever call comes next. The marks that a new gateway finds are those of calls that were broken. Who repeats the
call has some time to; then the sandbox is removed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from kuasar.core import log

GRACE_SECONDS = 20.0
"""containerd dials a new gateway after at most a few seconds."""


class Claims:
    """One per gateway, on its loop. ``abandon(sandbox, namespace)`` has a sandbox removed, without waiting."""

    def __init__(self, directory: str, abandon: Callable[[str, str], None], grace: float = GRACE_SECONDS) -> None:
        self._directory = directory
        self._abandon = abandon
        self._grace = grace
        self._marked: set[str] = set()
        self._broken: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at what a predecessor has left."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        for sandbox in os.listdir(self._directory):
            with open(f"{self._directory}/{sandbox}", encoding="utf-8", errors="replace") as file:
                self._broken[sandbox] = file.read()
        self._marked.update(self._broken)
        if self._broken:
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._give_up)

    def begun(self, sandbox: str, namespace: str) -> None:
        """Its Create or Start is being carried out for a caller who is there. Raises ``OSError``."""
        self._broken.pop(sandbox, None)
        if sandbox not in self._marked:
            with open(f"{self._directory}/{sandbox}", "w", encoding="utf-8") as file:
                file.write(namespace)
            self._marked.add(sandbox)

    def settled(self, sandbox: str) -> None:
        """Its caller knows it, or it is gone. Harmless to repeat."""
        if sandbox in self._marked:
            self._marked.discard(sandbox)
            self._broken.pop(sandbox, None)
            with suppress(FileNotFoundError):
                os.unlink(f"{self._directory}/{sandbox}")

    def close(self) -> None:
        """Leave the marks to a successor."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        for sandbox, namespace in list(self._broken.items()):
            log.warning("nobody has asked for a sandbox whose call broke; it is removed", sandbox=sandbox)
            self._abandon(sandbox, namespace)
