"""Containers by Quark: processes of a kernel of the pod's own, which serves the Task API for them.

Quark's command line refuses a second container in a sandbox (it ends with a panic), so the sandbox's Task server is
the only way to pods (docs/decisions). The agent makes what a container sees, and every verb is a Task call.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty

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
from kuasar.agent.drivers.quark.kernel import DESCRIPTORS, Kernel
from kuasar.agent.drivers.quark.rootfs import furnish, strip
from kuasar.agent.drivers.quark.specs import container_spec, process_spec
from kuasar.agent.drivers.runtime import write_json
from kuasar.agent.drivers.shared_kernel.members import KILLED, Member, Members
from kuasar.agent.files import remove_tree
from kuasar.api.gen.containerd.task.v2 import task_pb2 as task
from kuasar.core import cgroup, log
from kuasar.core.aio import Future
from kuasar.core.errors import KuasarError, NotFound, Unavailable, Unimplemented, wrap
from kuasar.core.spawn import Exit


def make(context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver; ``options`` may have ``binary``."""
    return QuarkDriver(context, Kernel(context, require_text(options, "binary", default="quark")))


@dataclass
class _Container(Member):
    is_started: bool = False


class QuarkDriver:
    """The verbs of ``base.Driver``."""

    name = "quark"
    capabilities = frozenset({EXEC, UPDATE})
    refusals: Mapping[str, str] = {
        CHECKPOINT: "the quark driver has no checkpoint",
        PAUSE: "quark's Task server cannot pause",
        SYSCTLS: "sysctls: a Quark pod has a kernel of its own, whose parameters cannot be set",
        TTY: "quark keeps a terminal's master to itself, so it cannot be attached to",
    }

    def __init__(self, context: Context, kernel: Kernel) -> None:
        self._loop = context.loop
        self._kernel = kernel
        self._containers: Members[_Container] = Members(context.loop, kernel, context.sandbox_id)

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """See ``base.Driver``."""
        await self._kernel.require(deadline)
        container = _Container.of(self._loop, setup)
        try:
            self._containers.add(container)
            self._make_bundle(setup)
            request = task.CreateTaskRequest(id=setup.id, bundle=f"/{setup.id}", **_streams(stdio))
            await self._kernel.tasks.call("Create", request, task.CreateTaskResponse, deadline)
        except BaseException:
            await self._undo_create(setup.id)
            raise
        send = functools.partial(self._signal, container, "", container.ended)
        return Started(self._kernel.pid, None, container.ended, send, self._kernel.cgroup)

    def _make_bundle(self, setup: ContainerSetup) -> None:
        bundle = self._bundle(setup.id)
        try:
            os.makedirs(bundle, 0o755, exist_ok=True)
            furnish(setup.rootfs, f"{bundle}/rootfs", setup.spec)
        except OSError as exc:
            raise wrap(exc, f"cannot prepare {bundle}") from exc
        write_json(f"{bundle}/config.json", container_spec(setup.spec))

    def _bundle(self, container_id: str) -> str:
        return f"{self._kernel.directory}/{container_id}"

    async def _undo_create(self, container_id: str) -> None:
        try:
            await self.delete(container_id, None)
        except KuasarError as exc:  # the first error is the one that matters
            log.error("a container that could not be made cannot be removed", container=container_id, error=exc)

    async def start(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._containers.require(container_id)
        await self._kernel.tasks.call("Start", task.StartRequest(id=container_id), task.StartResponse, deadline)
        container.is_started = True
        self._loop.spawn(self._wait(container, "", container.ended), f"quark wait {container_id}")

    async def _wait(self, container: _Container, exec_id: str, ended: Future[Exit]) -> None:
        """Resident as long as the process."""
        request = task.WaitRequest(id=container.id, exec_id=exec_id)
        how = KILLED
        try:
            answer = await self._kernel.tasks.call("Wait", request, task.WaitResponse, None)
            how = Exit(answer.exit_status & 0xFF)
        except Unavailable as exc:  # the kernel is dead or dying, and whatever ran in it
            log.warning("the end of a process is not told", container=container.id, exec=exec_id, error=exc)
        except KuasarError as exc:
            log.error("the end of a process is not told", container=container.id, exec=exec_id, error=exc)
        if not ended.done:
            ended.set_result(how)
        if exec_id:
            with suppress(KuasarError):
                forget = task.DeleteRequest(id=container.id, exec_id=exec_id)
                await self._kernel.tasks.call("Delete", forget, task.DeleteResponse, None)

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """See ``base.Driver``."""
        container = self._containers.require(container_id)
        request = task.ExecProcessRequest(id=container_id, exec_id=exec_id, **_streams(stdio))
        request.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        request.spec.value = json.dumps(process_spec(process), separators=(",", ":")).encode()
        await self._kernel.tasks.call("Exec", request, Empty, deadline)
        start = task.StartRequest(id=container_id, exec_id=exec_id)
        await self._kernel.tasks.call("Start", start, task.StartResponse, deadline)
        ended: Future[Exit] = Future(self._loop)
        container.ended.add_done_callback(lambda _: None if ended.done else ended.set_result(KILLED))
        self._loop.spawn(self._wait(container, exec_id, ended), f"quark wait {container_id}/{exec_id}")
        send = functools.partial(self._signal, container, exec_id, ended)
        return Started(self._kernel.pid, None, ended, send, self._kernel.cgroup)

    def _signal(self, container: _Container, exec_id: str, ended: Future[Exit], number: int) -> None:
        if number:
            what = f"signal {number} to {container.id}/{exec_id}"
            self._loop.spawn(self._send(container, exec_id, ended, number), what)

    async def _send(self, container: _Container, exec_id: str, ended: Future[Exit], number: int) -> None:
        async with container.lock:
            if ended.done:
                return
            if not container.is_started:  # there is no process yet, and none will come
                if number == signal.SIGKILL:
                    container.end(KILLED)
                return
            try:
                request = task.KillRequest(id=container.id, exec_id=exec_id, signal=number)
                await self._kernel.tasks.call("Kill", request, Empty, None)
            except KuasarError as exc:  # mostly it has ended meanwhile
                log.info("a signal did not arrive", container=container.id, exec=exec_id, number=number, error=exc)

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. Kills what is left of the container first."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if not self._kernel.ended.done:
            await self._forget(container, deadline)
        strip(f"{self._bundle(container_id)}/rootfs")
        try:
            remove_tree(self._bundle(container_id))
        except OSError as exc:
            raise wrap(exc, f"cannot remove {self._bundle(container_id)}") from exc
        await self._containers.remove(container, deadline)

    async def _forget(self, container: _Container, deadline: float | None) -> None:
        if container.is_started and not container.ended.done:
            await self._send(container, "", container.ended, signal.SIGKILL)
            await self._loop.wait_for(container.ended, deadline, f"the end of {container.id}")
        # it was never made, or is gone; and of one that never ran quark forgets the end, too, and says no
        with suppress(NotFound if container.is_started else KuasarError):
            request = task.DeleteRequest(id=container.id)
            await self._kernel.tasks.call("Delete", request, task.DeleteResponse, deadline)

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``; not to be had."""
        raise Unimplemented(self.refusals[PAUSE], engine=self.name, capability=PAUSE)

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``; not to be had."""
        raise Unimplemented(self.refusals[PAUSE], engine=self.name, capability=PAUSE)

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """See ``base.Driver``. The containers share what they may have together."""
        self._containers.update(self._containers.require(container_id), resources)

    async def stats(self, container_id: str, deadline: float | None) -> dict[str, Any]:
        """See ``base.Measuring``. Quark counts nothing, so what the kernel uses is a lone container's."""
        self._containers.require(container_id)
        if len(self._containers) > 1:
            words = f"stats: quark does not tell the {len(self._containers)} containers of this pod apart"
            raise Unimplemented(words, engine=self.name, capability="stats-one")
        return cgroup.stats(self._kernel.cgroup)

    def pids(self, container_id: str) -> list[int]:
        """See ``base.Measuring``: the kernel stands for whatever runs."""
        return self._containers.pids(container_id)


def _streams(stdio: ProcessStdio) -> dict[str, Any]:
    """The standard streams as paths in the sandbox's root."""
    given = {"stdin": stdio.stdin, "stdout": stdio.stdout, "stderr": stdio.stderr}
    return {name: "/dev/null" if fd is None else f"/{DESCRIPTORS}/{fd}" for name, fd in given.items()}
