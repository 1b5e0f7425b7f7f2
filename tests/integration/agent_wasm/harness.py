"""A process that plays the agent for the driver: one loop, one driver, its children reaped as the agent does.

``python -m tests.integration.agent_wasm.harness FD ENGINE OPTIONS``: OPTIONS are the driver's, as JSON; FD is a
SOCK_SEQPACKET socket that carries
msgpack requests ``[verb, arguments]``, with standard descriptors beside those of ``create``, and replies
``{"value": …}`` or ``{"error": …}``; a terminal's master comes back beside the reply. EOF ends it, and its children.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from kuasar.agent.drivers.base import ContainerSetup, Context, ProcessStdio
from kuasar.agent.drivers.registry import make_driver
from kuasar.agent.drivers.wasm import syscalls
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import wrap
from kuasar.core.spawn import Children, Exit

_PR_SET_CHILD_SUBREAPER = 36


class Harness:
    """Serves one socket until its end."""

    def __init__(self, channel: socket.socket, engine: str, options: dict[str, Any]) -> None:
        self._channel = channel
        self._loop = Loop()
        self._children = Children(self._loop)
        self._driver = make_driver(engine, Context(self._loop, self._children, ""), options)
        self._ends: dict[str, tuple[int, Future[Exit]]] = {}
        self._received: list[int] = []
        self._given: list[int] = []

    def run(self) -> None:
        self._loop.run(self._serve())
        for pid, ended in self._ends.values():
            if not ended.done:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def _serve(self) -> None:
        while True:
            await self._loop.wait_readable(self._channel.fileno())
            data, fds, _, _ = socket.recv_fds(self._channel, 1 << 20, 3)
            if not data:
                return
            self._received, self._given = fds, []
            verb, arguments = msgpack.unpackb(data)
            try:
                reply = {"value": await getattr(self, "do_" + verb)(*arguments)}
            except Exception as exc:
                reply = {"error": wrap(exc, verb).to_wire()}
            socket.send_fds(self._channel, [msgpack.packb(reply)], self._given)
            for fd in self._received + self._given:
                os.close(fd)

    async def do_create(self, container: str, rootfs: str, spec: dict[str, Any], terminal: bool, timeout: float) -> int:
        stdin, stdout, stderr = self._received or (None, None, None)
        stdio = ProcessStdio(terminal, stdin, stdout, stderr, width=100, height=30)
        setup = ContainerSetup(container, rootfs, rootfs, spec)
        started = await self._driver.create(setup, stdio, time.monotonic() + timeout)
        self._ends[container] = (started.pid, self._children.claim(started.pid))
        if started.console is not None:
            self._given.append(started.console)
        return started.pid

    async def do_wait(self, container: str) -> int:
        ended = self._ends[container][1]
        return (await self._loop.wait_for(ended, time.monotonic() + 20)).shell_code

    async def do_start(self, container: str) -> None:
        await self._driver.start(container, None)

    async def do_exec(self, container: str) -> None:
        await self._driver.exec(container, "e", {"args": ["sh"]}, ProcessStdio(False, None, None, None), None)

    async def do_delete(self, container: str) -> None:
        await self._driver.delete(container, time.monotonic() + 5)

    async def do_pause(self, container: str) -> None:
        await self._driver.pause(container, time.monotonic() + 5)

    async def do_resume(self, container: str) -> None:
        await self._driver.resume(container, time.monotonic() + 5)

    async def do_update(self, container: str, resources: dict[str, Any]) -> None:
        await self._driver.update(container, resources, time.monotonic() + 5)

    async def do_state(self) -> dict[str, Any]:
        """What could leak: descriptors, threads, children."""
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        }


def main() -> None:
    """Become the agent's double."""
    fd, engine, options = sys.argv[1:]
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # as PID 1 of a pod, the agent gets all orphans
    syscalls.unshare(syscalls.CLONE_NEWNS)  # as the agent's: mounts of a container appear nowhere else
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    with socket.socket(fileno=int(fd)) as channel:
        Harness(channel, engine, json.loads(options)).run()


if __name__ == "__main__":
    main()
