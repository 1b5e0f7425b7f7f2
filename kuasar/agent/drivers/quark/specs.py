"""OCI specifications as Quark can read them. Pure.

Quark ends with a panic where a specification has a word that it does not know (a capability, a kind of namespace), so
only what it knows and honours goes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
"""
_RLIMITS = """
CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME
"""
CAPABILITIES = frozenset(f"CAP_{name}" for name in _CAPABILITIES.split())
RLIMITS = frozenset(f"RLIMIT_{name}" for name in _RLIMITS.split())
_PROCESS_KEYS = ("terminal", "args", "env", "cwd", "noNewPrivileges")
_USER_KEYS = ("uid", "gid", "additionalGids")
_MOUNT_KEYS = ("destination", "type", "source", "options")


def sandbox_spec(hostname: str) -> dict[str, Any]:
    """What ``quark sandbox`` is made from: no program, and all namespaces but that of mounts are the agent's."""
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": [], "cwd": "/", "env": []},
        "root": {"path": "rootfs"},
        "hostname": hostname,
        "linux": {"namespaces": [{"type": "mount"}]},
    }


def process_spec(process: Mapping[str, Any]) -> dict[str, Any]:
    """An OCI process."""
    user = process.get("user") or {}
    found = _given(process, _PROCESS_KEYS)
    found["user"] = _given(user, _USER_KEYS)
    sets = process.get("capabilities") or {}
    found["capabilities"] = {
        kind: [name for name in names or [] if name in CAPABILITIES] for kind, names in sets.items()
    }
    found["rlimits"] = [each for each in process.get("rlimits") or [] if each.get("type") in RLIMITS]
    return found


def container_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A container whose root file system is ``rootfs`` beside the file, and whose bind mounts are made already."""
    linux = spec.get("linux") or {}
    wanted = [each for each in spec.get("mounts") or [] if not is_bind(each) and each.get("type") != "cgroup"]
    mounts = [_given(each, _MOUNT_KEYS) for each in wanted]
    return {
        "ociVersion": "1.0.2",
        "process": process_spec(spec.get("process") or {}),
        "root": {"path": "rootfs", "readonly": bool((spec.get("root") or {}).get("readonly"))},
        "hostname": spec.get("hostname") or "",
        "mounts": mounts,
        "linux": {
            "namespaces": [],
            "maskedPaths": linux.get("maskedPaths") or [],
            "readonlyPaths": linux.get("readonlyPaths") or [],
        },
    }


def _given(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of ``keys`` that have a value: a null is one more thing that Quark cannot read."""
    return {key: values[key] for key in keys if values.get(key) is not None}


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether a mount of a specification shows a directory or file from elsewhere."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or []))
