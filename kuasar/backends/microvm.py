"""What every virtual machine has in common: share, agent channel, storage, network, identity, the order of its end.

An engine (QEMU, Cloud Hypervisor …) says how its machine is started, found again, and how devices are plugged in; this
module says when. The pod's things inside the machine are below :data:`GUEST_DIRECTORY`, where the agent keeps its own.
"""

from __future__ import annotations

import os
import re
import sys
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Backend, Capability, Ended, Host, Lent, MachineSpec, Stage
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.share import GUEST_DIRECTORY as SHARE_IN_GUEST
from kuasar.backends.share import TAG, Share
from kuasar.backends.sizes import Size, size_for
from kuasar.backends.storage import Storage
from kuasar.backends.template import Template, Templates
from kuasar.core import log
from kuasar.core.aio import Task
from kuasar.core.config import Engine
from kuasar.core.errors import (
    BackendFailed,
    InvalidArgument,
    KuasarError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kuasar.core.holes import punch

GUEST_DIRECTORY = "/run/kuasar"
NO_HOST_NAMESPACE = "a virtual machine has a kernel of its own"
_KILL_SECONDS = 5.0
_POWER_OFF_SECONDS = 3.0
_SETTLE_SECONDS = 1.0
_CLOCK_SECONDS = 300.0
_LARGEST_CLOCK_OFFSET = 500_000_000
_CLOCK_OFFSET = 20_000_000
"""What is aimed at, in nanoseconds: times of the guest (of exits) stand beside times of the host (of starts)."""
_CLOCK_TRIES = 5
_CONSOLE_TAIL_BYTES = 16 * 1024
_CONSOLE_LINES = 12
_MAX_CONSOLE_BYTES = 1024 * 1024
_CONSOLE_CHECK_SECONDS = 5.0
_PANIC = re.compile(r"Kernel panic - not syncing: .*|Out of memory and no killable processes.*|kuasar-guest: end: .*")
_ROUTINE = re.compile(r"((fv|virtio|vu)_\w+|stop_all_queues): ")
"""What virtiofsd says whenever its machine ends."""
ANNOTATION_SHARED_FS = "io.kuasar/shared-fs"


class MicroVm(Backend):
    """Base of the engines that run virtual machines."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.EXEC, Capability.TTY, Capability.RESIZE, Capability.ATTACH, Capability.PAUSE}
    )
    shares_host_files: ClassVar[bool] = False
    refused_host_namespaces: ClassVar[Mapping[str, str]] = dict.fromkeys(("net", "pid", "ipc"), NO_HOST_NAMESPACE)
    shares_directories: ClassVar[bool] = True
    """Whether a machine of this kind can have a directory of the host (virtiofs)."""
    console_is_appended_to: ClassVar[bool] = True
    """Whether the VMM writes at the end of the console's file, wherever that is, or goes on where it was."""

    def __init__(self, host: Host, settings: Engine) -> None:
        super().__init__(host, settings)
        self.vmm = HeldProcess(host, "vmm")
        self._share: Share | None = None
        self._storage: Storage | None = None
        self._log_path = ""
        self._agent: AgentClient | None = None
        self._plugged = False
        self.told = ""
        """What the VMM has said of its coming end over its control connection."""
        self._clock: Task[None] | None = None
        self._console: Task[None] | None = None

    # -- what an engine has to say -----------------------------------------------------------------------------------

    @abstractmethod
    async def boot(self, spec: MachineSpec, deadline: float) -> bool:
        """Start the machine, with ``self.vmm`` taken, so that an agent will answer; whether its guest runs already, and
        can be given devices. Undone by :meth:`release`."""

    @abstractmethod
    async def reconnect(self, deadline: float) -> None:
        """Take up the control of an adopted machine again."""

    @abstractmethod
    async def open_channel(self, deadline: float) -> AgentClient:
        """A channel to the agent, which has said hello."""

    @abstractmethod
    async def attach_share(self, share: Share, deadline: float) -> None:
        """Connect the machine to the share's server under the tag :data:`TAG`."""

    @abstractmethod
    async def attach_nics(self, spec: MachineSpec, deadline: float) -> None:
        """Plug in the pod's network interfaces."""

    @abstractmethod
    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        """Plug in a block device or image file."""

    @abstractmethod
    async def detach_disk(self, serial: str) -> None:
        """Unplug it; harmless when it is gone."""

    @abstractmethod
    async def grow(self, size: Size, deadline: float) -> None:
        """Give the machine at least ``size``, as far as the engine can."""

    @abstractmethod
    async def ask_to_quit(self) -> None:
        """Tell the VMM to end; harmless when it is gone."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Drop control connections and files of the engine's own; harmless to repeat."""

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.vmm.pid

    @property
    def files_dir(self) -> str:
        return f"{SHARE_IN_GUEST}/files"

    @property
    def shm_dir(self) -> str:
        return f"{GUEST_DIRECTORY}/shm"

    @property
    def size(self) -> Size:
        """What the machine has now."""
        return Size(*self.host.machine.get("size", (0, 0)))

    @property
    def info(self) -> Mapping[str, str]:
        machine = self.host.machine
        return {
            "start": str(machine.get("start", "")),
            "vcpus": str(self.size.vcpus),
            "memory": f"{self.size.memory_bytes >> 20} MiB",
            "shared_fs": str(machine.get("shared_fs", "")),
            "channel": str(machine.get("channel", "")),
            "console": str(machine.get("console", "")),
        }

    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        limit = time.monotonic() + 60.0 if deadline is None else deadline
        self._log_path = spec.log_path
        shared_fs = self._shared_fs(spec)
        self.host.remember(shared_fs=shared_fs, log=spec.log_path, console=spec.console_path)
        if shared_fs == "virtiofs":
            self._make_share().open(spec.cgroup, spec.log_path)
            self.host.lap("share")
        self._plugged = False
        cloned = await self._boot(spec, limit)
        self.host.remember(path="clone" if cloned else "boot")
        if cloned:
            await self._plug(spec, limit)  # the guest finds them while its agent wakes up
        self._watch_console(spec.console_path)

    async def _boot(self, spec: MachineSpec, deadline: float) -> bool:
        """As :meth:`boot`; what the VMM itself has said is in the error."""
        try:
            return await self.boot(spec, deadline)
        except Unavailable as exc:
            raise BackendFailed(f"the machine could not be started: {exc}; {self._last_words()}") from exc

    async def _plug(self, spec: MachineSpec, deadline: float) -> None:
        """What every pod of this kind needs; harmless to repeat."""
        if self._plugged:
            return
        if self.host.machine.get("shared_fs") == "virtiofs":
            await self.attach_share(self._make_share(), deadline)
        await self.attach_nics(spec, deadline)
        self._plugged = True
        self.host.lap("devices")

    def _shared_fs(self, spec: MachineSpec) -> str:
        """``virtiofs`` or ``none``: the pod's word, else the configuration's."""
        usual = self.settings.shared_fs if self.shares_directories else "none"
        wanted = spec.annotations.get(ANNOTATION_SHARED_FS, usual)
        if wanted == "virtiofs" and not self.shares_directories:
            name = f"annotations.{ANNOTATION_SHARED_FS}"
            raise Unimplemented(
                f"{name}: engine {self.kind} has no virtiofs: leave it out, or use another engine",
                engine=self.kind,
                capability="shared-directory",
                field=name,
            )
        if wanted not in ("virtiofs", "none"):
            name = f"annotations.{ANNOTATION_SHARED_FS}"
            raise InvalidArgument(f"{name}: {wanted!r} is neither virtiofs nor none", field=name)
        return wanted

    def _make_share(self) -> Share:
        if self._share is None:
            self._share = Share(self.host, self.settings.virtiofsd)
        return self._share

    def _storage_of(self) -> Storage:
        if self._storage is None:
            self._storage = self._make_storage()
        return self._storage

    def _make_storage(self) -> Storage:
        share = self._make_share() if self.host.machine.get("shared_fs") == "virtiofs" else None
        return Storage(self.host.directory, share, self)

    async def connect_agent(self, deadline: float | None) -> AgentClient:
        """Waits for the boot; a machine that ends meanwhile is told with its last words."""
        limit = time.monotonic() + 60.0 if deadline is None else deadline
        loop = self.host.loop
        channel = loop.spawn(self.open_channel(limit), "the agent's channel")
        end = loop.spawn(self.vmm.wait(), "the machine's end")
        gate = loop.future()
        for task in (channel, end):
            task.add_done_callback(lambda _: gate.set_result(None))
        try:
            await gate
            if not channel.done:
                raise BackendFailed(f"the machine ended before its agent answered: {self._last_words()}")
            try:
                return channel.result()
            except KuasarError as exc:
                words = self._last_words()
                raise BackendFailed(f"the agent of the machine does not answer: {exc}; {words}") from exc
        finally:
            channel.cancel()
            end.cancel()

    async def settle(self, agent: AgentClient, spec: MachineSpec, deadline: float) -> None:
        """Everything that must not come from a template, and what the pod adds; proved before the pod counts as
        ready."""
        machine_id = os.urandom(16).hex()
        sent = time.time_ns()
        identity = {
            "time_ns": sent,
            "entropy": os.urandom(64),
            "machine_id": machine_id,
            "hostname": spec.hostname,
        }
        proof = await agent.call("guest.identity", identity, deadline=deadline)
        self._check_proof(proof, (sent, time.time_ns()), machine_id, spec)
        if time.time_ns() - sent > _LARGEST_CLOCK_OFFSET // 2:
            await self._set_clock(agent, deadline)  # the time was old when it arrived
        self.host.remember(boot_id=proof["boot_id"], machine_id=machine_id)
        self.host.lap("identity")
        await self._plug(spec, deadline)
        if self.host.machine.get("shared_fs") == "virtiofs":
            await agent.call("guest.share", {"tag": TAG}, deadline=deadline)
            self.host.lap("mount")
        if spec.network:
            await agent.call("network", dict(spec.network), deadline=deadline)
            self.host.lap("addresses")
        self._agent = agent
        if await self._fit(spec.vcpus, spec.memory_bytes, deadline):
            self.host.lap("size")
        self._keep_clock(agent)

    async def _set_clock(self, agent: AgentClient, deadline: float, enough: int = _LARGEST_CLOCK_OFFSET) -> None:
        """Until it is right within ``enough`` nanoseconds, or as nearly as some tries get it: an answer that came late
        says that the time was old when it was set."""
        took = 0
        for _ in range(_CLOCK_TRIES):
            sent = time.time_ns()
            await agent.call("guest.clock", {"time_ns": sent}, deadline=deadline)
            took = time.time_ns() - sent
            if took < enough:
                return
        if took >= _LARGEST_CLOCK_OFFSET:
            log.warning("the machine answers so slowly that its clock may be off", limit_ns=_LARGEST_CLOCK_OFFSET)

    def _check_proof(
        self, proof: Mapping[str, Any], asked: tuple[int, int], machine_id: str, spec: MachineSpec
    ) -> None:
        """``asked``: when the machine was asked and when it had answered, in nanoseconds."""
        wrong = []
        offset = max(asked[0] - proof["time_ns"], proof["time_ns"] - asked[1])
        if offset > _LARGEST_CLOCK_OFFSET:
            wrong.append(f"its clock is {offset / 1e9:.1f} s off")
        if proof["machine_id"] != machine_id:
            wrong.append("it has not taken its machine id")
        if spec.hostname and proof["hostname"] != spec.hostname:
            wrong.append("it has not taken its host name")
        if not proof["boot_id"]:
            wrong.append("it has no boot id of its own")
        if wrong:
            raise BackendFailed(f"the machine is not fit for the pod: {'; '.join(wrong)}")

    async def _ask_agent(self, op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        if self._agent is None:
            raise Unavailable(f"{op}: the machine's agent is not connected")
        return await self._agent.call(op, dict(body), deadline=deadline)

    async def resize(self, vcpus: int, memory_bytes: int, deadline: float | None) -> None:
        await self._fit(vcpus, memory_bytes, time.monotonic() + 30.0 if deadline is None else deadline)

    async def _fit(self, vcpus: int, memory_bytes: int, deadline: float) -> bool:
        """Whether the machine had to grow for it."""
        wanted = size_for(vcpus, memory_bytes, self.size, self.settings)
        if wanted == self.size:
            return False
        if self._agent is None:
            raise Unavailable("the machine cannot grow: its agent is not connected")
        await self.grow(wanted, deadline)
        await self._agent.call("guest.online", {"cpus": wanted.vcpus}, deadline=deadline)
        log.info("the machine has grown", vcpus=wanted.vcpus, memory_mib=wanted.memory_bytes >> 20)
        self.host.remember(size=[wanted.vcpus, wanted.memory_bytes])
        return True

    def _keep_clock(self, agent: AgentClient) -> None:
        """Machines drift, most of all while they are paused; and what was set at the start was old on arrival, because
        a new machine is slow to answer. Nobody waits for this."""

        async def keep() -> None:
            while not agent.closed:
                with suppress(KuasarError):
                    await self._set_clock(agent, time.monotonic() + _CLOCK_SECONDS, enough=_CLOCK_OFFSET)
                await self.host.loop.sleep(_CLOCK_SECONDS)

        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.host.loop.spawn(keep(), "clock")

    async def adopt(self, deadline: float | None) -> bool:
        alive = self.vmm.adopt()
        if self.host.machine.get("shared_fs") == "virtiofs":
            self._make_share().adopt()
        self._log_path = str(self.host.machine.get("log", ""))
        if alive:
            await self.reconnect(time.monotonic() + 20.0 if deadline is None else deadline)
            self._watch_console(str(self.host.machine.get("console", "")))
        return alive

    async def adopted(self, agent: AgentClient) -> None:
        self._agent = agent
        self._keep_clock(agent)

    # -- containers ----------------------------------------------------------------------------------------------------

    async def lend(
        self, container_id: str, bundle: str, spec: dict[str, Any], rootfs: list[Any], deadline: float | None
    ) -> Lent:
        lent, serials = await self._storage_of().lend(container_id, bundle, spec, rootfs, SHARE_IN_GUEST, deadline)
        if serials:
            self.host.remember(lent={**self.host.machine.get("lent", {}), container_id: serials})
        return lent

    async def take_back(self, container_id: str) -> None:
        lent = dict(self.host.machine.get("lent", {}))
        serials = lent.pop(container_id, [])
        await self._storage_of().take_back(container_id, serials if self.vmm.alive else [])
        if serials:
            self.host.remember(lent=lent)

    async def start_as_clone(self, key: str, maker: str, clone: Callable[[Template], Awaitable[None]]) -> str:
        """Start the machine by ``clone`` of the template ``key``; gives why it does not run, empty if it does. After a
        failure the template is set aside and nothing of the clone's VMM is left. One that is missing, or was set aside,
        is made by ``maker`` in the background. :class:`ResourceExhausted` is not the template's fault, and passes."""
        templates = Templates(f"{self.settings.cache_dir}/templates", f"{self.host.state_dir}/verified-templates")
        template = templates.find(key)
        why_not, result = "there is no template of its kind yet", "miss"
        if template is not None:
            key = template.description.key
            self.host.remember(start=f"clone of template {key}", template="hit")
            try:
                await clone(template)
            except ResourceExhausted:
                raise
            except KuasarError as exc:
                log.error("the clone failed, the pod boots a machine of its own", template=key, error=exc)
                templates.set_aside(key, str(exc))
                await self.vmm.kill(time.monotonic() + _KILL_SECONDS)
                self.vmm.release()
                await self.forget_clone()
                why_not, result = "the clone of its template failed", "failed"
            else:
                return ""
        self.make_template(maker)
        self.host.remember(template=result)
        return why_not

    async def forget_clone(self) -> None:
        """Free what is left of a clone whose VMM has been killed, before another one is started."""
        await self.disconnect()

    def make_template(self, maker: str) -> None:
        """Have a template of machines made in the background, by a process of its own (``python -m <maker>``); whoever
        comes second leaves at once."""
        argv = [sys.executable, "-m", maker, "--engine", self.host.engine]
        argv += ["--config", self.host.config_path] if self.host.config_path else []
        try:
            with open_log(f"{self.host.log_dir}/templates.log") as log_file:
                self.host.start_program(argv, log_file.fileno()).commit()
        except KuasarError as exc:
            log.warning("no template is made", error=exc)

    # -- the end -------------------------------------------------------------------------------------------------------

    @property
    def helpers(self) -> Mapping[str, HeldProcess]:
        """Processes without which the machine is no use, each by what it is in words."""
        if self._share is None:
            return {}
        return {"the server of the machine's shared directory (virtiofsd)": self._share.daemon}

    async def wait(self) -> Ended:
        helpers = {words: process for words, process in self.helpers.items() if process.pid}
        ends = [process.wait() for process in (self.vmm, *helpers.values())]
        gate = self.host.loop.future()
        tasks = [self.host.loop.spawn(end, "end") for end in ends]
        for task in tasks:
            task.add_done_callback(lambda _: gate.set_result(None))
        try:
            await gate
        finally:
            for task in tasks:
                task.cancel()
        # virtiofsd ends when its connection does, and is often seen first.
        if not await self.vmm.ended_by(time.monotonic() + _SETTLE_SECONDS):
            # Without its files every container of the machine hangs: an end with a reason is better.
            dead = next((words for words, process in helpers.items() if not process.alive), "a helper of the machine")
            how = await helpers[dead].how_it_ended() if dead in helpers else ""
            await self.vmm.kill(time.monotonic() + _KILL_SECONDS)
            said = "; ".join(part for part in (how, self._tail_of_log()) if part)
            return Ended(255, f"{dead} died: {said or 'without a word'}")
        how = await self.vmm.how_it_ended()
        words = f"{self.kind}: {how}" if how and how != "exited with 0" else ""
        return Ended(255, f"the machine ended: {self._last_words(words)}")

    async def stop(self, grace: float, agent: AgentClient | None) -> Stage:
        self._cancel_tasks()
        if not self.vmm.alive:
            return Stage.GONE
        if agent is not None:
            deadline = time.monotonic() + grace + _POWER_OFF_SECONDS
            # The peer may be dead or hung: whatever it answers, what counts is whether it ends.
            with suppress(KuasarError):
                await agent.call("shutdown", {"grace": grace}, deadline=deadline)
                if await self.vmm.ended_by(deadline):
                    return Stage.ASKED
        await self.ask_to_quit()
        await self.vmm.kill(time.monotonic() + _KILL_SECONDS)
        return Stage.KILLED

    async def release(self) -> None:
        self._cancel_tasks()
        await self.disconnect()
        self.vmm.release()
        if self.host.machine.get("shared_fs") == "virtiofs":
            await self._make_share().release(time.monotonic() + _KILL_SECONDS)

    def _cancel_tasks(self) -> None:
        for task in (self._clock, self._console):
            if task is not None:
                task.cancel()
        self._clock = self._console = None

    # -- last words --------------------------------------------------------------------------------------------------

    def _last_words(self, how: str = "") -> str:
        """Why the machine may have ended: a panic, how its process did (``how``), the guest's own words, the VMM's, the
        end of the console."""
        console = _tail(str(self.host.machine.get("console", "")))
        said = _PANIC.findall(console)
        if said:
            return str(said[-1]).strip()
        words = self._tail_of_log()
        lines = [line.rstrip() for line in console.splitlines() if line.strip()][-_CONSOLE_LINES:]
        return "; ".join(
            part
            for part in (how, self.told, words, "last lines of its console: " + " | ".join(lines) if lines else "")
            if part
        )

    def _tail_of_log(self) -> str:
        lines = [line.strip() for line in _tail(self._log_path).splitlines() if line.strip()]
        return " | ".join([line for line in lines if not _ROUTINE.match(line)][-3:])

    def _watch_console(self, path: str) -> None:
        """Keeps the console's file small: beyond a limit its older half goes."""

        async def watch() -> None:
            while True:
                await self.host.loop.sleep(_CONSOLE_CHECK_SECONDS)
                with suppress(OSError):
                    shorten_console(path, self.console_is_appended_to)

        if path:
            self._console = self.host.loop.spawn(watch(), "console")


def shorten_console(path: str, is_appended_to: bool, limit: int = _MAX_CONSOLE_BYTES) -> None:
    """If more than ``limit`` bytes of the file are on the disk, cut its older half off; where the VMM would go on
    behind the cut, make a hole of it. Raises ``OSError``."""
    found = os.stat(path)
    if is_appended_to and found.st_size > limit:
        kept = _tail(path, limit // 2)
        os.truncate(path, 0)
        with open(path, "a", encoding="utf-8") as file:
            file.write(kept)
    elif not is_appended_to and found.st_blocks * 512 > limit:
        with open(path, "r+b") as file:
            punch(file.fileno(), 0, found.st_size - limit // 2)


def _tail(path: str, size: int = _CONSOLE_TAIL_BYTES) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
