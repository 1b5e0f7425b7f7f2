"""A machine's state as Cloud Hypervisor writes and reads it: a directory with three files.

``config.json`` names files and sockets of the machine that was saved, so it is rewritten for each clone: with the old
ones the clone would open the template's files and make the template's socket. ``memory-ranges`` is a link to a
file that the VMM has open.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import Any

from kuasar.backends.base import User
from kuasar.backends.cloud_hypervisor.bodies import ROOT_DISK, Guest
from kuasar.core.errors import BackendFailed, wrap

RESTORED = "restored"
"""The directory of the three files, in that of the VMM."""
CONFIG, STATE, MEMORY = "config.json", "state.json", "memory-ranges"


@dataclass(frozen=True)
class State:
    """All of a saved machine but its memory."""

    config: dict[str, Any]
    devices: str
    """The text of ``state.json``: processors and devices."""

    @classmethod
    def read(cls, directory: str) -> State:
        """What a snapshot has written. Raises :class:`BackendFailed`."""
        try:
            with open(f"{directory}/{CONFIG}", "rb") as config, open(f"{directory}/{STATE}", encoding="utf-8") as state:
                return cls(json.load(config), state.read())
        except (OSError, ValueError) as exc:
            raise BackendFailed(f"the snapshot in {directory} cannot be read: {exc}") from exc

    @classmethod
    def unpack(cls, data: bytes) -> State:
        """From the bytes that :meth:`pack` gave. Raises :class:`BackendFailed`."""
        try:
            values = json.loads(data)
            return cls(dict(values["config"]), str(values["devices"]))
        except (ValueError, TypeError, KeyError) as exc:
            raise BackendFailed(f"the state of the template is damaged: {type(exc).__name__}: {exc}") from exc

    def pack(self) -> bytes:
        """As one file."""
        return json.dumps({"config": self.config, "devices": self.devices}).encode()

    def for_clone(self, guest: Guest) -> State:
        """With the files and sockets of another machine of the same shape. Raises :class:`BackendFailed` where the
        saved one has not what it should."""
        try:
            disks = [
                {**disk, "path": guest.root_disk} if disk["id"] == ROOT_DISK else disk for disk in self.config["disks"]
            ]
            files = {"kernel": guest.kernel, "initramfs": guest.initramfs}
            changes = {
                "payload": {**self.config["payload"], **files},
                "disks": disks,
                "vsock": {**self.config["vsock"], "socket": guest.vsock},
            }
        except (KeyError, TypeError) as exc:
            raise BackendFailed(f"the template's configuration has no {exc}") from exc
        return State({**self.config, **changes}, self.devices)

    def write(self, directory: str, memory: str, user: User) -> None:
        """Make ``directory``, for ``user`` to read; ``memory``: path of the memory, as the VMM sees it."""
        try:
            shutil.rmtree(directory, ignore_errors=True)
            os.mkdir(directory, 0o500)
            for name, text in ((CONFIG, json.dumps(self.config)), (STATE, self.devices)):
                fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(text)
                os.chown(f"{directory}/{name}", user.uid, user.gid)
            os.symlink(memory, f"{directory}/{MEMORY}")
            os.chown(directory, user.uid, user.gid)
        except OSError as exc:
            raise wrap(exc, "cannot hand the template's state to the VMM") from exc
