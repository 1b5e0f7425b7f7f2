"""As whom a sandbox's machine runs."""

from __future__ import annotations

import os
import zlib

from kuasar.backends.base import ROOT, User
from kuasar.core.config import Engine

# What systemd sets aside for users that exist only while a service runs.
_FIRST_USER, _USERS = 61184, 4336


def user_of(sandbox_id: str, accel: str) -> User:
    """An unprivileged number of its own (as good as: by the sandbox's name), in the group of ``/dev/kvm`` where that
    is used."""
    if os.geteuid() != 0:
        return ROOT
    number = _FIRST_USER + zlib.crc32(sandbox_id.encode()) % _USERS
    groups = (os.stat("/dev/kvm").st_gid,) if accel == "kvm" else ()
    return User(number, number, groups)


def vmm_user(settings: Engine, sandbox_id: str) -> User:
    """As the settings say; with KVM, if there is any."""
    if settings.vmm_user == "root":
        return ROOT
    return user_of(sandbox_id, "kvm" if os.path.exists("/dev/kvm") else "")
