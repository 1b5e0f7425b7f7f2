"""Containers by gVisor: processes of a kernel of their own (the sentry), which all containers of a pod share.

runsc is an OCI runtime, so making a container or an exec is as with any other (``runtime.py``). What differs: the
processes are not this kernel's. An init is stood for by the sentry; how it ends is what ``runsc wait`` says. An exec is
stood for by the ``runsc exec`` that waits for it and has its exit code. Signals go through ``runsc kill``, limits are
those of the sentry, and figures come from it (``sentry/``).
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kuasar.agent.drivers.base import (
    CHECKPOINT,
    EXEC,
    PAUSE,
    SYSCTLS,
    TTY,
    UPDATE,
    ContainerSetup,
    Context,
    Driver,
    ProcessStdio,
    Started,
    require_text,
)
from kuasar.agent.drivers.runtime import NO_STREAMS, read_pid, write_json
from kuasar.agent.drivers.sentry.control import container_stats
from kuasar.agent.drivers.sentry.kernel import ID, SANDBOX, TYPE, Sentry
from kuasar.agent.drivers.shared_kernel.members import KILLED, Member, Members
from kuasar.core import log
from kuasar.core.engines import GVISOR_PLATFORMS
from kuasar.core.errors import BackendFailed, InvalidArgument, KuasarError, Unimplemented, WrongState, wrap
from kuasar.core.spawn import Exit


def make(context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver; ``options`` has ``cache_dir`` and may have ``binary`` and ``platform``."""
    platform = require_text(options, "platform", default="")
    if platform and platform not in GVISOR_PLATFORMS:
        words = f"options.platform: {platform!r} is none of {', '.join(GVISOR_PLATFORMS)}"
        raise InvalidArgument(words, field="options.platform")
    record = f"{require_text(options, 'cache_dir')}/platform.json"
    return GvisorDriver(context, Sentry(context, require_text(options, "binary", default="runsc"), platform, record))


@dataclass
class _Container(Member):
    stdio: list[int] = field(default_factory=list)
    """Duplicates of its standard descriptors until it is started: runsc hands over those of ``runsc start``."""
    is_started: bool = False
    is_paused: bool = False
    execs: dict[str, int] = field(default_factory=dict)
    """The numbers of execs in the container."""


class GvisorDriver:
    """The verbs of ``base.Driver``."""

    name = "gvisor"
    capabilities = frozenset({EXEC, PAUSE, UPDATE, TTY})
    refusals: Mapping[str, str] = {
        CHECKPOINT: "the gvisor driver has no checkpoint",
        SYSCTLS: "sysctls: a gVisor pod has a kernel of its own, whose parameters cannot be set",
    }

    def __init__(self, context: Context, sentry: Sentry) -> None:
        self._context = context
        self._loop = context.loop
        self._sentry = sentry
        self._containers: Members[_Container] = Members(context.loop, sentry, context.sandbox_id)

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """See ``base.Driver``."""
        paused = next((one.id for one in self._containers if one.is_paused), None)
        if paused:
            raise WrongState(f"create: the pod's kernel is paused with {paused}", seen="paused", needed="running")
        await self._sentry.require(setup.spec, deadline)
        container = _Container.of(self._loop, setup)
        try:
            self._containers.add(container)
            if not stdio.terminal:
                container.stdio = _duplicates(stdio)
            write_json(f"{setup.directory}/config.json", member_spec(setup.spec))
            started = await self._sentry.runtime.create(
                setup.id, setup.directory, stdio if stdio.terminal else NO_STREAMS, deadline
            )
        except BaseException:
            await self._undo_create(setup.id)
            raise
        send = functools.partial(self._signal, container, "")
        return Started(self._sentry.pid, started.console, container.ended, send, self._sentry.cgroup)

    async def _undo_create(self, container_id: str) -> None:
        try:
            await self.delete(container_id, None)
        except KuasarError as exc:  # the first error is the one that matters
            log.error("a container that could not be made cannot be removed", container=container_id, error=exc)

    async def start(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._containers.require(container_id)
        stdio = ProcessStdio(False, *container.stdio) if container.stdio else NO_STREAMS
        await self._sentry.runtime.run("start", [container_id], container.directory, stdio, deadline)
        _close_all(container.stdio)
        container.is_started = True
        self._loop.spawn(self._wait(container), f"runsc wait {container_id}")

    async def _wait(self, container: _Container) -> None:
        """Resident as long as the container: runsc tells an end to who is asking at that moment."""
        argv = [*self._sentry.runtime.command(os.devnull), "wait", container.id]
        try:
            said = await self._context.children.run(argv)
            container.end(read_wait(said.output))
        except KuasarError as exc:
            log.error("the end of a container is not told", container=container.id, error=exc)
            container.end(KILLED)

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """See ``base.Driver``."""
        container = self._containers.require(container_id)
        number = f"{container.directory}/exec-{exec_id}.inside"
        try:
            started = await self._sentry.runtime.exec(
                container_id,
                container.directory,
                exec_id,
                process,
                stdio,
                deadline,
                ["--internal-pid-file", number],
            )
            container.execs[exec_id] = read_pid(number)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(number)
        return Started(started.pid, started.console, None, functools.partial(self._signal, container, exec_id))

    def _signal(self, container: _Container, exec_id: str, number: int) -> None:
        if number:
            self._loop.spawn(self._send(container, exec_id, number), f"signal {number} to {container.id}/{exec_id}")

    async def _send(self, container: _Container, exec_id: str, number: int) -> None:
        async with container.lock:
            if container.ended.done:
                return
            if not container.is_started:  # there is no process yet, and none will come
                if number == signal.SIGKILL:
                    container.end(KILLED)
                return
            try:
                if number == signal.SIGKILL and container.is_paused:
                    await self.resume(container.id, None)  # a frozen process does not die
                which = ["--pid", str(container.execs[exec_id])] if exec_id else []
                arguments = [*which, container.id, str(number)]
                await self._sentry.runtime.run("kill", arguments, container.directory, NO_STREAMS, None)
            except KuasarError as exc:  # mostly it has ended meanwhile
                log.info("a signal did not arrive", container=container.id, exec=exec_id, number=number, error=exc)

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. Kills what is left of the container first."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if not self._sentry.ended.done:
            await self._sentry.runtime.run(
                "delete", ["--force", container_id], container.directory, NO_STREAMS, deadline
            )
        _close_all(container.stdio)
        await self._containers.remove(container, deadline)

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. runsc stops the whole kernel, so nothing else may live in it."""
        container = self._containers.require(container_id)
        if len(self._containers) > 1:
            others = len(self._containers) - 1
            words = (
                f"pause: runsc stops all containers of a pod at once, and this pod has {others} beside {container_id}"
            )
            raise Unimplemented(words, engine=self.name, capability="pause-one")
        await self._sentry.runtime.run("pause", [container_id], container.directory, NO_STREAMS, deadline)
        container.is_paused = True

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._containers.require(container_id)
        await self._sentry.runtime.run("resume", [container_id], container.directory, NO_STREAMS, deadline)
        container.is_paused = False

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """See ``base.Driver``. The containers share what they may have together."""
        self._containers.update(self._containers.require(container_id), resources)

    async def stats(self, container_id: str, deadline: float | None) -> dict[str, Any]:
        """See ``base.Measuring``."""
        self._containers.require(container_id)
        sentry = self._sentry
        return await container_stats(self._loop, sentry.control, sentry.cgroup, container_id, deadline)

    def pids(self, container_id: str) -> list[int]:
        """See ``base.Measuring``: the kernel, and who waits for the execs."""
        return self._containers.pids(container_id)


def _duplicates(stdio: ProcessStdio) -> list[int]:
    """Of the three descriptors, with /dev/null for what is not given."""
    found: list[int] = []
    try:
        for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
            if fd is None:
                found.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            else:
                found.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    except OSError as exc:
        _close_all(found)
        raise wrap(exc, "cannot keep the standard descriptors") from exc
    return found


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def member_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A container's specification with the annotations by which runsc puts it into the pod's kernel."""
    return {**spec, "annotations": {**(spec.get("annotations") or {}), TYPE: "container", SANDBOX: ID}}


def read_wait(output: bytes) -> Exit:
    """What ``runsc wait`` says. Raises :class:`BackendFailed` if it is nothing that it should say."""
    try:
        status = json.loads(output)["exitStatus"]
        return Exit(int(status) & 0xFF)
    except (ValueError, KeyError, TypeError) as exc:
        raise BackendFailed(f"runsc wait: {output.decode(errors='replace')!r:.300}") from exc
