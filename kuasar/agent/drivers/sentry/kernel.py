"""The kernel that the containers of a pod share: runsc's sentry, held by a first container of ours.

It is made with the pod's first container and lives until the pod ends: it has taken the addresses of the pod's
interfaces for its own network stack, so a second one would find none. When it dies, the sandbox is over.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kuasar.agent import kernel as calls
from kuasar.agent.drivers.base import Context
from kuasar.agent.drivers.runtime import NO_STREAMS, Runtime, write_json
from kuasar.agent.drivers.sentry.control import socket_path
from kuasar.agent.drivers.sentry.pause import pause_program
from kuasar.agent.files import remove_tree
from kuasar.core import cgroup, log
from kuasar.core.aio import Future, Lock
from kuasar.core.engines import GVISOR_PLATFORMS
from kuasar.core.errors import BackendFailed, KuasarError, Unavailable, wrap
from kuasar.core.spawn import PATH, Exit

ID = "pod"
"""The name of our container, and so of the sandbox, in runsc's books."""
TYPE, SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
_PROBE_SECONDS = 10.0
_HINT = "name it with `binary` of the engine in kuasar.toml"
_HIDDEN = "/proc/sys/net/core"


class Sentry:
    """The kernel of this sandbox; ``runtime`` is how to talk to it once :meth:`require` has succeeded."""

    def __init__(self, context: Context, binary: str, platform: str, record: str) -> None:
        """``platform``: how system calls are intercepted; empty: the first way that works. ``record``: its file."""
        self._context = context
        self._binary = binary
        self._platform = platform
        self._record = record
        self._directory = f"{context.directory}/gvisor"
        self._lock = Lock(context.loop)
        self._root_fd = -1
        self._lost = ""
        self.cgroup = f"{context.cgroup}/gvisor" if context.cgroup else ""
        """Where it is, and with it all processes of all containers."""
        self.pid = 0
        self.ended: Future[Exit] = Future(context.loop)
        self.runtime = self._make_runtime("")

    @property
    def control(self) -> str:
        """Its control socket."""
        return socket_path(self.runtime.root, ID)

    async def require(self, spec: dict[str, Any], deadline: float | None) -> None:
        """Have it running; the first container's ``spec`` says which namespaces the pod's containers share.

        Raises :class:`Unavailable` when it has died: the pod is over.
        """
        async with self._lock:
            if self._lost:
                raise Unavailable(f"the pod's kernel is dead ({self._lost}): the pod must be made anew")
            if not self.pid:
                self._prepare(spec)
                await self._start_on_some_platform(deadline)

    def _prepare(self, spec: dict[str, Any]) -> None:
        program = find_runsc(self._binary)
        try:
            os.makedirs(f"{self._directory}/state", 0o700, exist_ok=True)
            os.makedirs(f"{self._directory}/rootfs", 0o755, exist_ok=True)
            with open(f"{self._directory}/rootfs/pause", "wb") as file:
                file.write(pause_program())
                os.fchmod(file.fileno(), 0o755)
            if self._root_fd < 0:
                self._root_fd = os.open(f"{self._directory}/state", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise wrap(exc, f"cannot prepare {self._directory}") from exc
        self._binary = program
        write_json(f"{self._directory}/config.json", pod_spec(spec, f"{self._directory}/rootfs"))
        if self.cgroup:
            cgroup.create(self.cgroup)

    def _make_runtime(self, platform: str) -> Runtime:
        context = self._context
        # the socket below it must fit into 107 bytes, however deep the directory is
        root = f"/proc/{os.getpid()}/fd/{self._root_fd}"
        flags = [
            "--ignore-cgroups",  # ours are made and filled here, in all hierarchies and versions alike
            "--overlay2=none",  # what containers write is in their snapshots
            "--oci-seccomp",  # profiles of containers count, inside
            f"--network={'host' if context.host_network else 'sandbox'}",
            *([f"--platform={platform}"] if platform else []),
        ]
        return Runtime(context.loop, context.children, self._binary, root, flags)

    async def _start_on_some_platform(self, deadline: float | None) -> None:
        """A platform that does not work here may fail or hang, so the last one is tried when the first is given up."""
        platforms = [self._platform] if self._platform else _known_first(self._record, self._binary)
        for platform in platforms:
            self.runtime = self._make_runtime(platform)
            is_last = platform == platforms[-1]
            limit = deadline if is_last else _sooner(deadline, time.monotonic() + _PROBE_SECONDS)
            try:
                await self._start(limit)
            except KuasarError as exc:
                await self._undo()
                if is_last:
                    raise
                log.warning("a platform of runsc does not work here", platform=platform, error=exc)
            else:
                if not self._platform:
                    _remember(self._record, self._binary, platform)
                return

    async def _start(self, deadline: float | None) -> None:
        context, directory = self._context, self._directory
        with context.children.keeping_orphans():
            started = await self.runtime.create(ID, directory, NO_STREAMS, deadline)
            ended = context.children.claim(started.pid)
        self._fill_cgroup()
        with _hidden_core_sysctls(not context.host_network):
            await self.runtime.run("start", [ID], directory, NO_STREAMS, deadline)
        self.pid = started.pid
        ended.add_done_callback(self._died)
        if ended.done:
            raise BackendFailed(f"the pod's kernel (runsc) {ended.result().words}")

    def _fill_cgroup(self) -> None:
        """Move what runsc has started: nothing else but this process is in the sandbox's cgroup yet."""
        if not self.cgroup:
            return
        for pid in cgroup.procs(self._context.cgroup):
            if pid != os.getpid():
                cgroup.enter(self.cgroup, pid)

    def _died(self, ended: Future[Exit]) -> None:
        if not self.pid:
            return
        self._lost = f"runsc {ended.result().words}"
        self.ended.set_result(ended.result())
        self._context.lost(f"the pod's kernel is dead: {self._lost}")

    async def _undo(self) -> None:
        self.pid = 0
        if self.cgroup:
            await cgroup.destroy(self._context.loop, self.cgroup)
            cgroup.create(self.cgroup)
        with suppress(OSError):
            remove_tree(f"{self._directory}/state")
            os.makedirs(f"{self._directory}/state", 0o700, exist_ok=True)
        os.close(self._root_fd)
        self._root_fd = os.open(f"{self._directory}/state", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def find_runsc(binary: str) -> str:
    """The absolute path of runsc. Raises :class:`BackendFailed` naming what was looked for."""
    found = shutil.which(binary, path=PATH)
    if found is None:
        where = f"in {PATH}" if "/" not in binary else "there, or it cannot be executed"
        raise BackendFailed(f"gVisor needs the program {binary}, which is not {where}; {_HINT}")
    return found


def pod_spec(first: dict[str, Any], rootfs: str) -> dict[str, Any]:
    """The specification of our container; of the pod's ``first`` one it takes the namespaces that have a path."""
    given = {each.get("type"): each for each in (first.get("linux") or {}).get("namespaces") or []}
    namespaces = [given.get(kind) or {"type": kind} for kind in ("pid", "ipc", "uts")]
    process = {"user": {"uid": 65534, "gid": 65534}, "args": ["/pause"], "cwd": "/", "env": [], "noNewPrivileges": True}
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": rootfs, "readonly": True},
        "hostname": socket.gethostname(),
        "annotations": {TYPE: "sandbox", SANDBOX: ID},
        "linux": {
            "namespaces": [
                *namespaces,
                {"type": "mount"},
                {"type": "network", "path": f"/proc/{os.getpid()}/ns/net"},
            ]
        },
    }


@contextmanager
def _hidden_core_sysctls(is_needed: bool) -> Iterator[None]:
    """While entered, a directory is empty in our /proc that makes this runsc think it were in the host's network.

    It takes ``net/core/rmem_default`` for a sign of the host's network namespace; newer kernels (6.18, for one) show it
    in every one.
    """
    is_needed = is_needed and os.path.exists(f"{_HIDDEN}/rmem_default")
    try:
        if is_needed:
            calls.mount("none", _HIDDEN, "tmpfs", calls.MS_RDONLY, "size=4k")
    except OSError as exc:
        raise wrap(exc, f"cannot hide {_HIDDEN} from runsc") from exc
    try:
        yield
    finally:
        if is_needed:
            calls.umount(_HIDDEN)


def _sooner(deadline: float | None, other: float) -> float:
    return other if deadline is None else min(deadline, other)


def _identity(binary: str) -> str:
    info = os.stat(binary)
    return f"{binary} {info.st_size} {info.st_mtime_ns} {os.uname().release}"


def _known_first(record: str, binary: str) -> list[str]:
    """All platforms, with the one first that has worked on this host."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(record, encoding="utf-8") as file:
        known = json.load(file)
        if known["identity"] == _identity(binary) and known["platform"] in GVISOR_PLATFORMS:
            return sorted(GVISOR_PLATFORMS, key=lambda platform: platform != known["platform"])
    return list(GVISOR_PLATFORMS)


def _remember(record: str, binary: str, platform: str) -> None:
    """Whoever cannot write it tries again the next time."""
    with suppress(OSError, KuasarError):
        os.makedirs(os.path.dirname(record), 0o700, exist_ok=True)
        write_json(f"{record}.{os.getpid()}.tmp", {"identity": _identity(binary), "platform": platform})
        os.rename(f"{record}.{os.getpid()}.tmp", record)
