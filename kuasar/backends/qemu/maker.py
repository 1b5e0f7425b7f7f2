"""``python -m kuasar.backends.qemu.maker``: makes the template of an engine's machines, if there is none of its kind.

Boots a machine without identity to "agent ready", has the guest clean up after itself, writes memory and state down.
One maker of a template works at a time; others leave at once (0). Exits with 0 (the template is there), 1 (it could
not be made; the reason is on standard error), 2 (usage).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from kuasar.backends.base import ROOT, AgentProcess, User
from kuasar.backends.processes import HeldProcess
from kuasar.backends.qemu.facts import Setup, find_setup
from kuasar.backends.qemu.machine import Machine, Placement, empty_memory
from kuasar.backends.qemu.template import Description, Templates, digest_of_data, write_sparse
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.config import ConfigError, Engine, load
from kuasar.core.errors import BackendFailed, KuasarError, NotFound
from kuasar.core.spawn import Children, Completed

_SECONDS = 180.0
_STATE, _MEMORY = "state", "memory"


class MakerHost:
    """The :class:`kuasar.backends.base.Host` of a machine that belongs to no sandbox: its process is our child and ends
    with us, nothing is recorded."""

    def __init__(self, loop: Loop, directory: str) -> None:
        self.loop = loop
        self.directory = self.state_dir = self.log_dir = directory
        self.config_path = self.engine = ""
        self.machine: Mapping[str, Any] = {}
        self._children = Children(loop)

    def remember(self, **facts: Any) -> None:
        self.machine = {**self.machine, **facts}

    def acquiring(self, kind: str, name: str) -> None:
        """Everything is in our directory."""

    def released(self, kind: str, name: str) -> None:
        """As above."""

    def holdings(self) -> Sequence[tuple[str, str]]:
        return ()

    def lap(self, phase: str) -> None:
        log.info("phase", name=phase)

    def keep(self, name: str, make: Callable[[], int]) -> int:
        return make()

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        return await self._children.run(argv, deadline=deadline)

    def start_agent(self, args: dict[str, Any], listen_fd: int, log_fd: int, flags: int) -> AgentProcess:
        raise BackendFailed("the maker of templates starts no agents")

    def start_program(
        self, argv: Sequence[str], log_fd: int, fds: Sequence[int] = (), cgroup: str = "", user: User = ROOT
    ) -> AgentProcess:
        wish = {"uid": user.uid, "gid": user.gid, "groups": list(user.groups), "cgroup": cgroup}
        program = {**wish, "argv": list(argv), "descriptors": 3 + len(fds), "parent": os.getpid()}
        launcher = [sys.executable, "-m", "kuasar.supervisor.program", json.dumps(program)]
        numbered = {3 + index: fd for index, fd in enumerate(fds)}
        pid, _ = self._children.spawn(launcher, stdout=log_fd, stderr=log_fd, pass_fds=numbered)
        return _Child(pid)

    def close(self) -> None:
        """Reap no more children; those that are left stay."""
        self._children.close()


class _Child:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def commit(self) -> None:
        """It runs already."""

    def abort(self) -> None:
        """Its owner ends it."""


async def make(loop: Loop, settings: Engine, say: Callable[[str], None]) -> str:
    """Make the template if it is missing; gives its key. Raises :class:`KuasarError`."""
    with (
        tempfile.TemporaryDirectory(prefix="kuasar-template-") as directory,
        closing(MakerHost(loop, directory)) as host,
    ):
        setup = await find_setup(host, settings)
        key = setup.shape.key
        templates = Templates(f"{settings.cache_dir}/templates", f"{directory}/verified")
        os.makedirs(templates.directory, mode=0o700, exist_ok=True)
        with open(f"{templates.directory}/{key}.lock", "w", encoding="ascii") as lock:  # noqa: ASYNC230 - a local file
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"template {key} is being made by another process")
                return key
            for name in templates.prune():
                say(f"removed {name}, which nobody used")
            if templates.find(key) is None:
                await _make(host, setup, templates, say)
        say(f"template {key} is there")
        return key


async def _make(host: MakerHost, setup: Setup, templates: Templates, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + _SECONDS
    process = HeldProcess(host, "vmm")
    machine = Machine(host, process, lambda *_: None)
    target = templates.new_directory(setup.shape.key)
    paths = (f"{host.directory}/log", f"{host.directory}/console")
    started = time.monotonic()
    memory = empty_memory(setup)
    try:
        shape = setup.shape
        say(f"booting a machine (QEMU {shape.qemu_version}, {shape.accel}, {shape.memory_bytes >> 20} MiB)")
        await machine.boot_on(memory, setup, Placement("kuasar-template", *paths), deadline)
        agent = await machine.open_channel(deadline)
        boot_seconds = time.monotonic() - started
        say(f"its agent answered after {boot_seconds:.1f} s; the guest cleans up")
        await agent.call("guest.rest", {}, deadline=deadline)
        agent.close()
        await _rehearse(machine, deadline)
        await host.loop.sleep(_SETTLE_SECONDS)  # the carrier sees the end of the connection
        await machine.save(f"{target}/{_STATE}", deadline)
        data_bytes = write_sparse(memory, f"{target}/{_MEMORY}")
        say(f"memory: {data_bytes / 2**20:.1f} MiB of {setup.shape.memory_bytes / 2**20:.0f} MiB are not zero")
        with open(f"{target}/{_STATE}", "rb") as file:  # noqa: ASYNC230 - half a MiB
            state_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        description = Description(
            key=setup.shape.key,
            memory_bytes=setup.shape.memory_bytes,
            data_bytes=data_bytes,
            memory_sha256=digest_of_data(f"{target}/{_MEMORY}"),
            state_sha256=state_sha256,
            boot_seconds=round(boot_seconds, 3),
            created_at=time.time_ns(),
        )
        templates.publish(target, description)
    except KuasarError as exc:
        raise BackendFailed(f"no template could be made: {exc}; {_last_lines(paths)}") from exc
    finally:
        os.close(memory)
        await machine.quit()
        await process.kill(time.monotonic() + 5.0)
        process.release()
        machine.disconnect()
        shutil.rmtree(target, ignore_errors=True)


async def _rehearse(machine: Machine, deadline: float) -> None:
    """Have the guest do once what every clone is asked first: what that needs is in its memory then, and not on its
    disk. Nothing of it lasts: a clone gets another identity, and no boot id is made."""
    agent = await machine.open_channel(deadline)
    try:
        identity = {"machine_id": "7" * 32, "hostname": "template", "entropy": bytes(64), "rehearsal": True}
        await agent.call("guest.identity", {"time_ns": time.time_ns(), **identity}, deadline=deadline)
        await agent.call("guest.clock", {"time_ns": time.time_ns()}, deadline=deadline)
        await agent.call("network", {"interfaces": [], "routes": [], "neighbours": []}, deadline=deadline)
        await agent.call("setup", {"hostname": "template", "sysctls": {}, "shm_bytes": 0}, deadline=deadline)
        with suppress(NotFound):
            await agent.call("task.state", {"id": "rehearsal", "exec_id": ""}, deadline=deadline)
    finally:
        agent.close()


_SETTLE_SECONDS = 0.05


def _last_lines(paths: tuple[str, str]) -> str:
    found = []
    for path in paths:
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found += [line.strip() for line in file.read().splitlines() if line.strip()][-5:]
    return " | ".join(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m kuasar.backends.qemu.maker", description="Make the template of QEMU machines."
    )
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--engine", default="qemu", help="name of the engine in the configuration (default: qemu)")
    options = parser.parse_args(argv)
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"==> [{time.monotonic() - started:5.1f} s] {step}", file=sys.stderr, flush=True)

    try:
        config = load(options.config)
        settings = config.engine(options.engine)
        log.configure(config.log_level, form=config.log_format, maker=options.engine)
        loop = Loop()
        loop.run(make(loop, settings, say))
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    except KuasarError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
