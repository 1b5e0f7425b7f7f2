"""The kernel that the containers of a pod share: one ``quark sandbox``, made with the first of them.

It takes ``directory`` as its root and serves the Task API on a socket there. It lives until the pod ends; when it dies,
the sandbox is over.
"""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from kuasar.agent import kernel as calls
from kuasar.agent.drivers.base import Context
from kuasar.agent.drivers.quark.settings import CONFIG_FILE, load
from kuasar.agent.drivers.quark.specs import sandbox_spec
from kuasar.agent.drivers.quark.task import TaskServer
from kuasar.agent.drivers.runtime import read_pid, write_json
from kuasar.core import cgroup
from kuasar.core.aio import Future, Lock
from kuasar.core.errors import BackendFailed, Unavailable, wrap
from kuasar.core.spawn import PATH, Exit

DESCRIPTORS = "fds"
"""In its root: the agent's open descriptors by number, because Quark opens standard streams by path."""
_HINT = "name it with `binary` of the engine in kuasar.toml"
_MAX_WORDS = 2000


class Kernel:
    """The kernel of this sandbox; ``tasks`` is how to talk to it once :meth:`require` has succeeded."""

    def __init__(self, context: Context, binary: str) -> None:
        self._context = context
        self._binary = binary
        self._base = f"{context.directory}/quark"
        self._lock = Lock(context.loop)
        self._base_fd = -1
        self._lost = ""
        self.directory = f"{self._base}/root"
        self.cgroup = f"{context.cgroup}/quark" if context.cgroup else ""
        self.pid = 0
        self.ended: Future[Exit] = Future(context.loop)
        self.tasks = TaskServer(context.loop, "")

    async def require(self, deadline: float | None) -> None:
        """Have it running. Raises :class:`Unavailable` when it has died: the pod is over; :class:`BackendFailed`
        naming what is missing or with Quark's own words."""
        async with self._lock:
            if self._lost:
                raise Unavailable(f"the pod's kernel is dead ({self._lost}): the pod must be made anew")
            if self.pid:
                return
            program = _find(self._binary)
            self._prepare()
            try:
                await self._start(program, deadline)
            except BaseException:
                await self._undo()
                raise

    def _prepare(self) -> None:
        """Its root and its configuration. Mounts are in our namespace, and so gone with us."""
        try:
            os.makedirs(f"{self.directory}/rootfs", 0o755, exist_ok=True)
            os.makedirs(f"{self.directory}/{DESCRIPTORS}", 0o700, exist_ok=True)
            if self._base_fd < 0:
                self._base_fd = os.open(self._base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                # shared, so that what is mounted below it later is seen behind quark's change of its root
                calls.mount(self.directory, self.directory, "", calls.MS_BIND)
                calls.mount("", self.directory, "", calls.MS_SHARED)
                calls.mount(f"/proc/{os.getpid()}/fd", f"{self.directory}/{DESCRIPTORS}", "", calls.MS_BIND)
                self._configure()
        except OSError as exc:
            raise wrap(exc, f"cannot prepare {self._base}") from exc
        write_json(f"{self.directory}/config.json", sandbox_spec(socket.gethostname()))
        if self.cgroup:
            cgroup.create(self.cgroup)

    def _configure(self) -> None:
        """The operator's configuration with our keys, over the fixed path, for this pod only."""
        write_json(f"{self._base}/quark.json", load())
        calls.mount(f"{self._base}/quark.json", CONFIG_FILE, "", calls.MS_BIND)

    async def _start(self, program: str, deadline: float | None) -> None:
        context = self._context
        # the socket below it must fit into 107 bytes, however deep the directory is
        short = f"/proc/{os.getpid()}/fd/{self._base_fd}"
        output = f"{self._base}/output"
        argv = [program, "--root", self.directory, "sandbox", "--id", context.sandbox_id]
        argv += ["--task-socket", f"{short}/task.sock", "--pid-file", f"{self._base}/pid"]
        with context.children.keeping_orphans():
            # a file: the kernel keeps what it inherits
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _, done = context.children.spawn(argv, stdout=fd, stderr=fd)
            finally:
                os.close(fd)
            ended = await context.loop.wait_for(done, deadline, "quark sandbox")
            if ended != Exit(0):
                raise BackendFailed(f"quark sandbox {ended.words}: {_words(output)}")
            pid = read_pid(f"{self._base}/pid")
            over = context.children.claim(pid)
        self._fill_cgroup()
        if over.done:
            raise BackendFailed(f"the pod's kernel (quark) {over.result().words}: {_words(output)}")
        self.pid = pid
        self.tasks = TaskServer(context.loop, f"{short}/task.sock")
        over.add_done_callback(self._died)

    def _fill_cgroup(self) -> None:
        """Move what quark has started: nothing else but this process is in the sandbox's cgroup yet."""
        if self.cgroup:
            for pid in cgroup.procs(self._context.cgroup):
                if pid != os.getpid():
                    cgroup.enter(self.cgroup, pid)

    def _died(self, over: Future[Exit]) -> None:
        self._lost = f"quark {over.result().words}: {_words(f'{self._base}/output')}"
        self.ended.set_result(over.result())
        self._context.lost(f"the pod's kernel is dead: {self._lost}")

    async def _undo(self) -> None:
        """Whatever it has started is in its cgroup, or still in ours."""
        self._fill_cgroup()
        if self.cgroup:
            await cgroup.destroy(self._context.loop, self.cgroup)


def _find(binary: str) -> str:
    found = shutil.which(binary, path=PATH)
    if found is None:
        where = f"in {PATH}" if "/" not in binary else "there, or it cannot be executed"
        raise BackendFailed(f"Quark needs the program {binary}, which is not {where}; {_HINT}")
    return found


def _words(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines: Any = file.read()[-_MAX_WORDS:].splitlines()
    except OSError:
        lines = []
    return " | ".join(line.strip() for line in lines[-3:] if line.strip()) or "it said nothing"
