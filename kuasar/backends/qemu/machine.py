"""One QEMU process and its monitor: started from nothing or from a template, taken over, ended.

Used by the engine, for a pod, and by the maker of templates. Files and sockets are made here and inherited by QEMU,
which itself may open nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import ROOT, Host, User
from kuasar.backends.channels import VIRTIO_SERIAL, greet
from kuasar.backends.guest_image import INITRD, ROOT_DISK
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.qemu.argv import Descriptors, build
from kuasar.backends.qemu.channel import Channel, make_channel
from kuasar.backends.qemu.facts import Setup
from kuasar.backends.qmp import Monitor
from kuasar.backends.sockets import connect, listen
from kuasar.backends.template import Template
from kuasar.core.errors import BackendFailed, KuasarError, ResourceExhausted, Unavailable
from kuasar.core.threads import in_thread

_QMP_SOCKET = "qmp.sock"
_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_POLL_SECONDS = 0.003
HUGE_PAGE_BYTES = 2 << 20
_HUGE_PAGES = os.MFD_HUGETLB | os.MFD_HUGE_2MB
_POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"


@dataclass(frozen=True)
class Placement:
    """Where and as whom a machine runs."""

    name: str
    log_path: str
    console_path: str
    cgroup: str = ""
    user: User = ROOT


class Machine:
    """A QEMU in the directory of ``host``; ``process`` holds it. ``on_event`` gets the monitor's events."""

    def __init__(self, host: Host, process: HeldProcess, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._host = host
        self._process = process
        self._on_event = on_event
        self._monitor: Monitor | None = None
        self._channel: Channel | None = None

    @property
    def channel(self) -> Channel:
        """The channel to the agent: the one that was made with the machine, by this worker or an earlier one."""
        if self._channel is None:
            self._channel = make_channel(str(self._host.machine.get("channel", VIRTIO_SERIAL)), self._host)
            self._channel.adopt()
        return self._channel

    @property
    def monitor(self) -> Monitor:
        """The open monitor. Raises :class:`BackendFailed` while there is none."""
        if self._monitor is None:
            raise BackendFailed("QEMU's monitor is not connected")
        return self._monitor

    async def boot(self, setup: Setup, placement: Placement, deadline: float) -> None:
        """Start a machine that boots; its memory can be shared."""
        memory = empty_memory(setup)
        try:
            await self.boot_on(memory, setup, placement, deadline)
        finally:
            os.close(memory)

    async def boot_on(self, memory: int, setup: Setup, placement: Placement, deadline: float) -> None:
        """Start a machine that boots, on the memory file of the caller."""
        await self._start(setup, placement, memory, deadline, shared=True, incoming=False)
        await self._connect(deadline)

    async def clone(
        self, setup: Setup, template: Template, placement: Placement, *, shared: bool, deadline: float
    ) -> None:
        """Start a machine from a template: its memory is a copy that can be shared, or else a private view of a copy
        that all clones look at."""
        loop = self._host.loop
        if shared or setup.huge_pages:  # whose private copies would take as much
            memory = empty_memory(setup)
        else:
            memory = self._host.keep(f"template/{template.description.key}", template.copy_memory)
        try:
            await self._start(setup, placement, memory, deadline, shared=shared or setup.huge_pages, incoming=True)
            if shared or setup.huge_pages:
                fill = template.fill_huge_pages if setup.huge_pages else template.fill
                await in_thread(loop, lambda: fill(memory))  # QEMU comes up meanwhile, and does not look at it
        finally:
            os.close(memory)
        await self._connect(deadline)
        self._host.lap("vmm")
        state = template.open_state()
        try:
            await self.monitor.give("state", state, deadline)
        finally:
            os.close(state)
        await self.monitor.execute("migrate-set-capabilities", _IGNORE_SHARED, deadline)
        await self.monitor.execute("migrate-incoming", {"uri": "fd:state"}, deadline)
        while (await self.monitor.execute("query-status", deadline=deadline))["status"] == "inmigrate":
            await loop.sleep(_POLL_SECONDS)
        await self.monitor.execute("cont", deadline=deadline)
        self._host.lap("state")

    async def save(self, path: str, deadline: float) -> None:
        """Stop the machine and write the state of all but its memory to the new file ``path``."""
        await self.monitor.execute("stop", deadline=deadline)
        await self.monitor.execute("migrate-set-capabilities", _IGNORE_SHARED, deadline)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await self.monitor.give("state", fd, deadline)
        finally:
            os.close(fd)
        await self.monitor.execute("migrate", {"uri": "fd:state"}, deadline)
        while True:
            answer = await self.monitor.execute("query-migrate", deadline=deadline)
            if answer.get("status") == "completed":
                return
            if answer.get("status") in ("failed", "cancelled"):
                raise BackendFailed(f"QEMU cannot write its state: {answer.get('error-desc', 'no reason given')}")
            await self._host.loop.sleep(_POLL_SECONDS)

    async def reconnect(self, deadline: float) -> None:
        """The monitor of a machine that another process started."""
        await self._connect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        """A new connection to the agent, which has said hello; an earlier one ends."""
        return await greet(self._host.loop, await self.channel.open(deadline), deadline)

    async def quit(self) -> None:
        """Ask QEMU to end; harmless when it is gone."""
        if self._monitor is not None:
            with suppress(KuasarError):
                await self._monitor.execute("quit", deadline=time.monotonic() + 2.0)

    async def disconnect(self) -> None:
        """Close the monitor, free the channel to the agent, remove the sockets; harmless to repeat."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        await self.channel.release()
        self._channel = None
        with suppress(FileNotFoundError):
            os.unlink(f"{self._host.directory}/{_QMP_SOCKET}")
        self._host.released("socket", f"{self._host.directory}/{_QMP_SOCKET}")

    async def _start(
        self, setup: Setup, placement: Placement, memory: int, deadline: float, *, shared: bool, incoming: bool
    ) -> None:
        directory = self._host.directory
        self._host.remember(channel=setup.shape.channel)
        self._channel = make_channel(setup.shape.channel, self._host)
        self._host.acquiring("socket", f"{directory}/{_QMP_SOCKET}")
        with ExitStack() as stack:
            where = (placement.cgroup, placement.user, placement.log_path)
            agent = await self._channel.prepare(setup.channel_helper, *where, deadline)
            stack.callback(os.close, agent)
            argv = build(
                setup.binary,
                placement.name,
                setup.shape,
                Descriptors.in_order(),
                shared_memory=shared,
                incoming=incoming,
                guest_cid=self._channel.guest_cid,
            )
            fds = [stack.enter_context(listen(directory, _QMP_SOCKET)).fileno(), agent, memory]
            for path in (setup.kernel, f"{setup.image}/{INITRD}", f"{setup.image}/{ROOT_DISK}"):
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            fds.append(stack.enter_context(open_log(placement.console_path)).fileno())
            log_fd = stack.enter_context(open_log(placement.log_path)).fileno()
            start = partial(self._host.start_program, argv, log_fd, fds, placement.cgroup, placement.user)
            self._process.take(start)

    async def _connect(self, deadline: float) -> None:
        """Raises :class:`Unavailable` when QEMU has ended (its words are in its log)."""
        try:
            sock = connect(self._host.directory, _QMP_SOCKET, "QEMU's monitor")
        except BackendFailed as exc:
            raise Unavailable(exc.message) from exc
        monitor = Monitor(self._host.loop, self._on_event, lambda: None)
        try:
            await monitor.connect(sock, deadline)
        except BaseException:
            monitor.close()
            raise
        self._monitor = monitor


def empty_memory(setup: Setup) -> int:
    """A memory file for a machine that boots; of huge pages it is reserved. The caller closes it. Raises
    :class:`ResourceExhausted`."""
    size = setup.shape.memory_bytes
    memory = os.memfd_create("kuasar-memory", os.MFD_CLOEXEC | (_HUGE_PAGES if setup.huge_pages else 0))
    try:
        os.ftruncate(memory, size)
        if setup.huge_pages:
            mmap.mmap(memory, size).close()  # reserves its pages for as long as there is the file
    except OSError as exc:
        os.close(memory)
        if exc.errno != errno.ENOMEM:
            raise
        raise ResourceExhausted(
            f"a machine needs {size // HUGE_PAGE_BYTES} huge pages of 2 MiB, and the host has {_free_pages()} left "
            "(vm.nr_hugepages, and huge_pages of the engine)"
        ) from exc
    return memory


def _free_pages() -> int:
    """Huge pages that nobody has and nobody has reserved."""
    free, reserved = (_number(f"{_POOL}/{name}_hugepages") for name in ("free", "resv"))
    return max(0, free - reserved)


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
