"""``python -m kuasar.backends.qemu.maker``: makes the template of an engine's machines, if there is none of its kind.

Boots a machine without identity to "agent ready", has the guest clean up after itself, writes memory and state down.
One maker of a template works at a time; others leave at once (0). Exits with 0 (the template is there), 1 (it could
not be made; the reason is on standard error), 2 (usage).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from kuasar.backends.channels import VHOST_USER_VSOCK
from kuasar.backends.making import MakerHost, Say, at_work, command, last_lines, make_once
from kuasar.backends.processes import HeldProcess
from kuasar.backends.qemu.channel import NOT_IN_A_TEMPLATE
from kuasar.backends.qemu.facts import Setup, find_setup
from kuasar.backends.qemu.machine import Machine, Placement, empty_memory
from kuasar.backends.rehearsal import prepare
from kuasar.backends.template import Description, Templates, digest_of_data, write_sparse
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, KuasarError

_SECONDS = 180.0
_STATE, _MEMORY = "state", "memory"


async def make(loop: Loop, settings: Engine, say: Say) -> str:
    """Make the template if it is missing; gives its key, or nothing where the engine's machines can have none. Raises
    :class:`KuasarError`."""
    with at_work(loop, settings) as (host, templates):
        setup = replace(await find_setup(host, settings), huge_pages=False)
        if setup.shape.channel == VHOST_USER_VSOCK:
            say(f"there is no template for these machines: {NOT_IN_A_TEMPLATE}")
            return ""
        await make_once(templates, setup.shape.key, say, lambda: _make(host, setup, templates, say))
        return setup.shape.key


async def _make(host: MakerHost, setup: Setup, templates: Templates, say: Say) -> None:
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
        boot_seconds = await prepare(host.loop, machine.open_channel, started, say, deadline)
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
        raise BackendFailed(f"no template could be made: {exc}; {last_lines(paths)}") from exc
    finally:
        os.close(memory)
        await machine.quit()
        await process.kill(time.monotonic() + 5.0)
        process.release()
        await machine.disconnect()
        shutil.rmtree(target, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command(argv, "kuasar.backends.qemu.maker", "qemu", make)


if __name__ == "__main__":
    sys.exit(main())
