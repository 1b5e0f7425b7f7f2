"""``python -m kuasar.backends.cloud_hypervisor.maker``: makes the template of an engine's machines, if there is none of
its kind.

Boots a machine without identity to "agent ready", has the guest clean up after itself, and has the VMM write it down,
into a directory that it inherits: it can reach none but its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from kuasar.backends.boot_setup import Setup
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.facts import find_setup
from kuasar.backends.cloud_hypervisor.machine import Machine, Placement
from kuasar.backends.cloud_hypervisor.state import MEMORY, State
from kuasar.backends.cloud_hypervisor.template import guest_of, key_of
from kuasar.backends.making import MakerHost, Say, at_work, command, last_lines, make_once
from kuasar.backends.processes import HeldProcess
from kuasar.backends.rehearsal import prepare
from kuasar.backends.template import Description, Templates, digest_of_data, write_sparse
from kuasar.backends.users import vmm_user
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, KuasarError

_SECONDS = 180.0
_RAW = "raw"


async def make(loop: Loop, settings: Engine, say: Say) -> str:
    """Make the template if it is missing; gives its key. Raises :class:`KuasarError`."""
    with at_work(loop, settings) as (host, templates):
        setup = await find_setup(host, settings, time.monotonic() + _SECONDS)
        key = key_of(setup, settings)
        await make_once(templates, key, say, lambda: _make(host, setup, settings, templates, say))
        return key


async def _make(host: MakerHost, setup: Setup, settings: Engine, templates: Templates, say: Say) -> None:
    deadline, started = time.monotonic() + _SECONDS, time.monotonic()
    user = vmm_user(settings, "template")
    process = HeldProcess(host, "vmm")
    machine = Machine(host, process, user)
    key, guest = key_of(setup, settings), guest_of(setup, settings)
    target = templates.new_directory(key)
    raw = f"{target}/{_RAW}"
    console = f"{host.directory}/console"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, target, ignore_errors=True)
        stack.callback(machine.disconnect)
        stack.callback(process.release)
        try:
            os.mkdir(raw, 0o700)
            os.chown(raw, user.uid, user.gid)
            directory = os.open(raw, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            say(f"booting a machine (Cloud Hypervisor {setup.version}, {guest.memory_bytes >> 20} MiB)")
            await machine.boot(setup, guest, Placement(console, user=user), deadline, template=directory)
            boot_seconds = await prepare(host.loop, machine.open_channel, started, say, deadline)
            await machine.api.put("vm.pause", deadline=deadline)
            written_to = bodies.path_of(bodies.Descriptors.in_order().template)
            await machine.api.put("vm.snapshot", bodies.snapshot(written_to), deadline=deadline)
            description = _keep(target, raw, key, boot_seconds)
            say(f"memory: {description.data_bytes / 2**20:.1f} MiB of {guest.memory_bytes / 2**20:.0f} are not zero")
            templates.publish(target, description)
        except KuasarError as exc:
            raise BackendFailed(f"no template could be made: {exc}; {last_lines((console, console))}") from exc
        finally:
            await machine.quit()
            await process.kill(time.monotonic() + 5.0)


def _keep(target: str, raw: str, key: str, boot_seconds: float) -> Description:
    """The files of a template from those of the snapshot in ``raw``, which goes."""
    state = State.read(raw).pack()
    with open(f"{target}/state", "wb") as file:
        file.write(state)
    with open(f"{raw}/{MEMORY}", "rb") as memory:
        memory_bytes = os.fstat(memory.fileno()).st_size
        data_bytes = write_sparse(memory.fileno(), f"{target}/memory")
    os.chmod(f"{target}/memory", 0o644)  # VMMs of all users open it by a descriptor
    shutil.rmtree(raw)
    return Description(
        key=key,
        memory_bytes=memory_bytes,
        data_bytes=data_bytes,
        memory_sha256=digest_of_data(f"{target}/memory"),
        state_sha256=hashlib.sha256(state).hexdigest(),
        boot_seconds=round(boot_seconds, 3),
        created_at=time.time_ns(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command(argv, "kuasar.backends.cloud_hypervisor.maker", "clh", make)


if __name__ == "__main__":
    sys.exit(main())
