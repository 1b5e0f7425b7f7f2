"""Containers by an OCI runtime: runc, crun, and whatever speaks their command line.

The runtime is started for ``create``, ``start``, ``exec`` and ``update`` only; what it would be asked besides (state,
kill, pause, delete) is done here, because a process start costs more than the thing itself. Its state lives in a root
of its own below the sandbox directory, so nothing outlives the sandbox. The driver remembers of each container where
it is and which cgroup it has, from ``create`` until ``delete``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.agent.drivers.base import (
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
from kuasar.agent.drivers.runtime import NO_STREAMS, Runtime, write_json
from kuasar.agent.files import remove_tree
from kuasar.core import cgroup, log
from kuasar.core.aio import Loop, Task
from kuasar.core.errors import BackendFailed, KuasarError, NotFound
from kuasar.core.spawn import Children
from kuasar.core.threads import in_thread


def make(context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver; ``options`` may have ``binary``."""
    binary = require_text(options, "binary", default="runc")
    return OciDriver(context.loop, context.children, f"{context.directory}/oci", binary)


@dataclass(frozen=True)
class _Container:
    directory: str
    cgroup: str
    has_poststop_hooks: bool


class OciDriver:
    """The verbs of ``base.Driver``, by the program ``binary``, whose state is kept in ``root``."""

    name = "oci"
    capabilities = frozenset({EXEC, PAUSE, UPDATE, TTY, SYSCTLS})
    refusals: Mapping[str, str] = {}

    def __init__(self, loop: Loop, children: Children, root: str, binary: str) -> None:
        self._loop = loop
        self._root = root
        self._runtime = Runtime(loop, children, binary, root)
        self._containers: dict[str, _Container] = {}
        self._preparing: Task[None] | None = None

    def anticipate(self) -> None:
        """Let the kernel's grace period pass while the runtime comes up, which will move a process between cgroups.

        Saves 5 to 15 ms of every create and exec. A thread is harmless here: this driver never forks.
        """
        if self._preparing is None or self._preparing.done:
            self._preparing = self._loop.spawn(in_thread(self._loop, cgroup.prepare), "prepare a move")

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """See ``base.Driver``."""
        linux = setup.spec.get("linux") or {}
        hooks = setup.spec.get("hooks") or {}
        container = _Container(setup.directory, linux.get("cgroupsPath") or "", bool(hooks.get("poststop")))
        write_json(f"{setup.directory}/config.json", setup.spec)
        self._containers[setup.id] = container
        self.anticipate()
        try:
            return await self._runtime.create(setup.id, setup.directory, stdio, deadline)
        except BackendFailed as exc:
            await self._undo_create(setup.id)
            raise _with_program(exc, setup.spec) from exc
        except BaseException:
            await self._undo_create(setup.id)
            raise

    async def _undo_create(self, container_id: str) -> None:
        try:
            await self.delete(container_id, None)
        except KuasarError as exc:  # the first error is the one that matters; the cgroup has an owner who will retry
            log.error("a container that could not be made cannot be removed", container=container_id, error=exc)

    async def start(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._require(container_id)
        await self._runtime.run("start", [container_id], container.directory, NO_STREAMS, deadline)

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """See ``base.Driver``."""
        container = self._require(container_id)
        self.anticipate()
        return await self._runtime.exec(
            container_id, container.directory, exec_id, process, stdio, deadline, terminal_options=["--tty"]
        )

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. Kills what is left of the container first."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.has_poststop_hooks:
            await self._runtime.run("delete", ["--force", container_id], container.directory, NO_STREAMS, deadline)
        if container.cgroup:
            await cgroup.destroy(self._loop, container.cgroup, deadline)
        # All that is left of it is the runtime's record: a directory of its id.
        remove_tree(f"{self._root}/{container_id}")
        del self._containers[container_id]

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. The runtime would freeze the same cgroup, and reads its own state from there."""
        await cgroup.freeze(self._loop, self._require(container_id).cgroup, deadline)

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        cgroup.thaw(self._require(container_id).cgroup)

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._require(container_id)
        file = f"{container.directory}/resources.json"
        write_json(file, resources)
        await self._runtime.run(
            "update", ["--resources", file, container_id], container.directory, NO_STREAMS, deadline
        )

    def _require(self, container_id: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"the runtime has no container {container_id}")
        return container


def _with_program(exc: BackendFailed, spec: Mapping[str, Any]) -> BackendFailed:
    """The error with the program's name in it: not every runtime says which one it could not execute."""
    program = str(((spec.get("process") or {}).get("args") or [""])[0])
    if not program or program in exc.message:
        return exc
    return BackendFailed(f"{program}: {exc.message}", **exc.data)
