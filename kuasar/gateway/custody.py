"""The gateway's descriptors that must outlive it: given to the keeper, and given again when the keeper has died.

One per gateway, on its loop. The gateway goes on without a keeper; what it is given meanwhile is remembered and handed
over when there is one again. The calls are synchronous: a keeper answers within a tenth of a millisecond, and one that
hangs counts as away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from kuasar.core import log
from kuasar.core.errors import KuasarError, ResourceExhausted, Unavailable
from kuasar.supervisor.keeper_client import Keeper

_OURS = "gateway/"
_RETRY_SECONDS = 0.05
_PATIENCE_SECONDS = 3.0


class Custody:
    """What of ours the keeper holds. Remembers numbers of descriptors, which its callers own and keep open."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._held: dict[str, tuple[int, bytes]] = {}
        self._watched = -1
        self._returning: asyncio.Task[None] | None = None
        self._closed = False

    async def find(self) -> bool:
        """Wait for the keeper, but not for long; False if there is none. Its first start takes a moment, like ours."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    try:
                        self._keeper.list(_OURS)
                        self._watch()
                        return True
                    except Unavailable:
                        await asyncio.sleep(_RETRY_SECONDS)
        except TimeoutError:
            log.error("there is no keeper: task connections would not survive our death")
            self._away()
            return False

    def inherited(self, prefix: str) -> dict[str, tuple[int, bytes]]:
        """What a predecessor has left: by name, one descriptor each, owned by the caller, and its meta.

        Empty if there is no keeper; names with another number of descriptors are not ours and are dropped.
        """
        found: dict[str, tuple[int, bytes]] = {}
        try:
            for name in self._keeper.list(prefix):
                kept = self._keeper.get(name)
                if kept is None:
                    continue
                fds, meta = kept
                if len(fds) == 1:
                    found[name] = self._held[name] = fds[0], meta
                    continue
                for fd in fds:
                    os.close(fd)
                self._keeper.drop(name)
        except Unavailable:
            self._away()
        return found

    def listener(self, name: str, path: str, backlog: int) -> socket.socket:
        """A socket that listens at ``path`` (mode 0600): a predecessor's, so that nobody who connects meanwhile is
        turned away, else a new one. What lies at the path then is dead: the caller holds a lock.
        """
        for kept, (fd, place) in self.inherited(name).items():
            if kept == name and place == os.fsencode(path) and _is_reached_by(fd, path):
                return socket.socket(fileno=fd)
            os.close(fd)
            del self._held[kept]
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        self.put(name, listener.fileno(), os.fsencode(path))
        return listener

    def put(self, name: str, fd: int, meta: bytes = b"") -> None:
        """Have ``fd`` kept; at once, or when the keeper is back. Replaces what was there."""
        self._held[name] = fd, meta
        self._try(lambda: self._keeper.put(name, [fd], meta))

    def drop(self, name: str) -> None:
        """Have it closed. Harmless when unknown."""
        if self._held.pop(name, None) is not None:
            self._try(lambda: self._keeper.drop(name))

    def accept(self, listener: socket.socket, listener_name: str, name: str) -> socket.socket | None:
        """Accept a connection so that it is kept from its first moment on; None if nobody waits.

        Without a keeper we accept ourselves. Raises ``OSError`` when this process is short of descriptors.
        """
        try:
            fd = self._keeper.accept(listener_name, name)
        except KuasarError as exc:
            if isinstance(exc, Unavailable):
                self._away()
            else:
                log.warning("the keeper does not accept for us", error=exc)
            return self._accept_alone(listener, name)
        if fd is None:
            return None
        self._held[name] = fd, b""
        return socket.socket(fileno=fd)

    def _accept_alone(self, listener: socket.socket, name: str) -> socket.socket | None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        connection.setblocking(False)
        self.put(name, connection.fileno())
        return connection

    def close(self) -> None:
        """End our connection to the keeper, which keeps what it has."""
        self._closed = True
        self._unwatch()
        if self._returning is not None:
            self._returning.cancel()
        self._keeper.close()

    # -- the keeper's own death ----------------------------------------------------------------------------------------

    def _try(self, call: Callable[[], None]) -> None:
        if self._returning is not None:
            return  # everything is handed over when it is back
        try:
            call()
        except Unavailable:
            self._away()
        except ResourceExhausted as exc:
            log.error("the keeper can hold no more: a task connection would not survive our death", error=exc)

    def _watch(self) -> None:
        fileno = self._keeper.fileno()
        if fileno is not None and not self._closed:
            self._watched = fileno
            asyncio.get_running_loop().add_reader(fileno, self._away)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    def _away(self) -> None:
        """The keeper has died, or does not answer: look for the next one and hand everything over again."""
        self._unwatch()
        self._keeper.lost()
        if self._returning is None and not self._closed:
            log.warning("the keeper is away", held=len(self._held))
            self._returning = _start(self._return())

    async def _return(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                for name, (fd, meta) in list(self._held.items()):
                    with suppress(ResourceExhausted):  # told when it was put
                        self._keeper.put(name, [fd], meta)
                for name in self._keeper.list(_OURS):
                    if name not in self._held:  # dropped while a keeper that still lives did not answer
                        self._keeper.drop(name)
            except Unavailable:
                continue
            self._returning = None
            log.info("the keeper is back and has everything again", held=len(self._held))
            self._watch()
            return


def _is_reached_by(fd: int, path: str) -> bool:
    """Whether a listening socket still is what lies at ``path``, as far as one can see."""
    with socket.socket(fileno=os.dup(fd)) as listener, suppress(OSError):
        return listener.getsockname() == path and os.path.exists(path)
    return False


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name="hand everything over to the keeper")
