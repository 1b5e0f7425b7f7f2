"""``python -m kuasar.backends.firecracker.maker``: makes the template of an engine's machines, if there is none of its
kind.

Works in a network namespace of its own, where the template's tap is nobody's business. The VMM writes its snapshot into
files that it inherits: it can reach no directory but its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from kuasar.agent import kernel
from kuasar.backends.boot_setup import Setup
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.facts import find_setup
from kuasar.backends.firecracker.machine import Machine, Placement
from kuasar.backends.firecracker.template import TAP, guest_of, key_of
from kuasar.backends.making import MakerHost, Say, at_work, command, last_lines, make_once
from kuasar.backends.processes import HeldProcess
from kuasar.backends.rehearsal import prepare
from kuasar.backends.template import Description, Templates, digest_of_data, write_sparse
from kuasar.backends.users import vmm_user
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.namespaces import CLONE_NEWNET
from kuasar.core.taps import give_tap, open_tap

_SECONDS = 180.0


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
    key = key_of(setup, settings)
    guest = guest_of(setup, settings)
    target = templates.new_directory(key)
    paths = (f"{host.directory}/log", f"{host.directory}/console")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, target, ignore_errors=True)
        stack.callback(machine.disconnect)
        stack.callback(process.release)
        try:
            files = []
            for name in ("state", "raw"):
                files.append(os.open(f"{target}/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
                stack.callback(os.close, files[-1])
                os.fchown(files[-1], user.uid, user.gid)
            give_tap(open_tap(TAP, 1), user.uid)
            say(f"booting a machine (Firecracker {setup.version}, {guest.memory_bytes >> 20} MiB)")
            placement = Placement(*paths, user=user)
            await machine.boot(setup, guest, placement, deadline, files=(files[0], files[1]))
            boot_seconds = await prepare(host.loop, machine.open_channel, started, say, deadline)
            await machine.api.do(bodies.pause(), deadline)
            await machine.api.do(bodies.snapshot(), deadline)
            data_bytes = write_sparse(files[1], f"{target}/memory")
            os.chmod(f"{target}/memory", 0o644)
            os.unlink(f"{target}/raw")
            say(f"memory: {data_bytes / 2**20:.1f} MiB of {guest.memory_bytes / 2**20:.0f} MiB are not zero")
            description = Description(
                key=key,
                memory_bytes=guest.memory_bytes,
                data_bytes=data_bytes,
                memory_sha256=digest_of_data(f"{target}/memory"),
                state_sha256=_digest_of(files[0]),
                boot_seconds=round(boot_seconds, 3),
                created_at=time.time_ns(),
            )
            templates.publish(target, description)
        except KuasarError as exc:
            raise BackendFailed(f"no template could be made: {exc}; {last_lines(paths)}") from exc
        finally:
            await process.kill(time.monotonic() + 5.0)


def _digest_of(fd: int) -> str:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    kernel.unshare(CLONE_NEWNET)
    return command(argv, "kuasar.backends.firecracker.maker", "firecracker", make)


if __name__ == "__main__":
    sys.exit(main())
