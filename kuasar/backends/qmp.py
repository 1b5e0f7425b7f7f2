"""QEMU's machine protocol (QMP), by the package qemu.qmp, for the worker's loop: QEMU's own, and StratoVirt's.

One command is under way at a time: StratoVirt takes whatever it reads at once for one command.

The package wants asyncio, which the worker has not: so it runs in a thread of its own, which does nothing else, from
:meth:`Monitor.connect` to :meth:`Monitor.close`. Everything here is called from, and calls back into, the worker's
loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from kuasar.core import log
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import BackendFailed, Unavailable

_CONNECT_SECONDS = 10.0
_COMMAND_SECONDS = 30.0


class Monitor:
    """One connection to ``vmm``, as people call it. ``on_event(name, data)`` gets its events; ``on_lost()`` is called
    once when the connection has ended on its own account."""

    def __init__(
        self,
        loop: Loop,
        on_event: Callable[[str, dict[str, Any]], None],
        on_lost: Callable[[], None],
        vmm: str = "QEMU",
    ) -> None:
        self._loop = loop
        self._on_event = on_event
        self._on_lost = on_lost
        self._vmm = vmm
        self._turn = asyncio.Lock()
        self._client = QMPClient("kuasar")
        self._asyncio = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="qmp", daemon=True)
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        loop.add_reader(self._wake, self._run_calls)
        self._thread.start()

    async def connect(self, sock: socket.socket, deadline: float | None) -> None:
        """Greet and negotiate over a connected socket, which is the monitor's from now on. Raises Unavailable."""
        limit = time.monotonic() + _CONNECT_SECONDS
        await self._do(
            self._connect(sock), min(limit, deadline) if deadline is not None else limit, f"connecting to {self._vmm}"
        )

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, deadline: float | None = None
    ) -> Any:
        """The answer of ``command``. Raises :class:`BackendFailed` with the VMM's words, Unavailable if it is gone."""
        limit = time.monotonic() + _COMMAND_SECONDS
        return await self._do(
            self._client.execute(command, arguments),
            min(limit, deadline) if deadline is not None else limit,
            f"QMP {command}",
        )

    async def give(self, name: str, fd: int, deadline: float | None = None) -> None:
        """Give the VMM a duplicate of ``fd``, to be called ``name`` in the next command that uses it."""

        await self._send(fd, "getfd", {"fdname": name}, deadline)

    async def add_to_set(self, number: int, fd: int, deadline: float | None = None) -> None:
        """Give the VMM a duplicate of ``fd`` that it opens as ``/dev/fdset/<number>``."""
        await self._send(fd, "add-fd", {"fdset-id": number}, deadline)

    async def _send(self, fd: int, command: str, arguments: Mapping[str, object], deadline: float | None) -> None:
        async def send() -> object:
            self._client.send_fd_scm(fd)
            return await self._client.execute(command, arguments)

        await self._do(send(), deadline or time.monotonic() + _COMMAND_SECONDS, f"QMP {command}")

    def close(self) -> None:
        """End the connection and the thread; the VMM stays. Harmless to repeat."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._wake)
        self._asyncio.call_soon_threadsafe(self._asyncio.stop)
        self._thread.join()
        os.close(self._wake)

    # -- between the threads -----------------------------------------------------------------------------------------

    async def _do(self, work: Coroutine[Any, Any, Any], deadline: float, what: str) -> Any:
        if self._closed:
            work.close()
            raise Unavailable(f"{what}: the monitor is closed")
        future: Future[Any] = self._loop.future()
        self._asyncio.call_soon_threadsafe(lambda: self._asyncio.create_task(self._report(work, future, what)))
        return await self._loop.wait_for(future, deadline, what)

    async def _report(self, work: Coroutine[Any, Any, Any], future: Future[Any], what: str) -> None:
        """In the thread: carry out ``work`` and have the loop hear how it went."""
        try:
            async with self._turn:
                result = await work
        except ExecuteError as exc:
            self._call(future.set_exception, BackendFailed(f"{what}: {exc}", qmp=exc.error_class))
        except (QMPError, OSError, EOFError) as exc:
            self._call(future.set_exception, Unavailable(f"{what}: {self._vmm} is gone: {exc}"))
        except Exception as exc:
            self._call(future.set_exception, BackendFailed(f"{what}: {type(exc).__name__}: {exc}"))
        else:
            self._call(future.set_result, result)
        finally:
            work.close()  # of one whose turn has never come

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        self._calls.append(lambda: function(*args))
        os.eventfd_write(self._wake, 1)

    def _run_calls(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._calls:
            self._calls.popleft()()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._asyncio)
        try:
            self._asyncio.run_forever()
        finally:
            for task in asyncio.all_tasks(self._asyncio):
                task.cancel()
            with suppress(Exception):
                self._asyncio.run_until_complete(self._client.disconnect())
            with suppress(Exception):
                self._asyncio.run_until_complete(self._asyncio.shutdown_asyncgens())
            self._asyncio.close()

    async def _connect(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await self._client.connect(sock)
        self._asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Passes events on until the connection ends."""
        events = asyncio.create_task(self._pass_events())
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()
        events.cancel()
        if not self._closed:
            self._call(self._lost)

    async def _pass_events(self) -> None:
        async for event in self._client.events:
            data = event.get("data")
            self._call(self._on_event, str(event["event"]), data if isinstance(data, dict) else {})

    def _lost(self) -> None:
        log.info("the connection to the VMM has ended", vmm=self._vmm)
        self._on_lost()
