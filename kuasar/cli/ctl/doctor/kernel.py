"""The kernel and what it lets us do: version, cgroups, namespaces, privileges, propagation of mounts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from kuasar.cli.ctl.doctor.finding import Finding, failed, passed, warned
from kuasar.core import cgroup

_NEEDED = (5, 12)
"""mount_setattr; pidfds and clone3 are older."""
_NAMESPACES = ("pid", "mnt", "uts", "ipc", "net", "cgroup")
_COUNTED = {"mnt": "max_mnt_namespaces", "pid": "max_pid_namespaces", "net": "max_net_namespaces"}
_CONTROLLERS = ("cpu", "memory", "pids")
_CAPABILITIES = {21: "CAP_SYS_ADMIN", 12: "CAP_NET_ADMIN", 7: "CAP_SETUID", 1: "CAP_DAC_OVERRIDE", 5: "CAP_KILL"}


def check(proc: str = "/proc") -> Iterator[Finding]:
    """All of it."""
    yield _version(os.uname().release)
    yield _privileges(proc)
    yield _cgroups()
    yield _namespaces(proc)
    yield _propagation(proc)


def _version(release: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", release)
    wanted = ".".join(map(str, _NEEDED))
    if match is None or (int(match[1]), int(match[2])) < _NEEDED:
        return failed("kernel", f"Linux {release} is too old", f"boot a kernel of version {wanted} or newer")
    return passed("kernel", f"Linux {release}")


def _privileges(proc: str) -> Finding:
    if os.geteuid() != 0:
        return failed("privileges", f"user {os.geteuid()} is not root", "run kuasar, and this command, as root")
    with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
        match = re.search(r"^CapEff:\s+([0-9a-f]+)", file.read(), re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    missing = [name for bit, name in _CAPABILITIES.items() if not effective & 1 << bit]
    if missing:
        return failed(
            "privileges", f"missing: {' '.join(missing)}", "run with all capabilities (a privileged container)"
        )
    return passed("privileges", "root with the capabilities that are needed")


def _cgroups() -> Finding:
    found = cgroup.current()
    if not found.roots():
        return failed("cgroups", "no cgroup hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup")
    mode = "v2" if found.version == 2 else "hybrid (v1 beside v2)" if found.unified else "v1"
    if found.version == 2:
        with open(f"{found.unified}/cgroup.controllers", encoding="ascii") as file:
            there = file.read().split()
    else:
        there = list(found.controllers)
    missing = [name for name in _CONTROLLERS if name not in there]
    if missing:
        remedy = "enable them on the kernel's command line (cgroup_enable=…), or delegate them"
        return warned("cgroups", f"{mode}, without {' '.join(missing)}: limits of these are not kept", remedy)
    blocked = [root for root in found.roots() if not os.access(root, os.W_OK) or os.statvfs(root).f_flag & os.ST_RDONLY]
    if blocked:
        return failed("cgroups", f"{mode}, but {' '.join(blocked)} cannot be written", "mount it read-write")
    return passed("cgroups", f"{mode}, with {' '.join(_CONTROLLERS)}")


def _namespaces(proc: str) -> Finding:
    missing = [name for name in _NAMESPACES if not os.path.exists(f"{proc}/self/ns/{name}")]
    if missing:
        return failed("namespaces", f"the kernel has no namespaces of kind {' '.join(missing)}", "use another kernel")
    for name, key in _COUNTED.items():
        with open(f"{proc}/sys/user/{key}", encoding="ascii") as file:
            most = int(file.read())
        if most < 1:
            return failed(
                "namespaces", f"user.{key} = {most}: none of kind {name} can be made", f"sysctl user.{key}=65536"
            )
    return passed("namespaces", " ".join(_NAMESPACES))


def _propagation(proc: str) -> Finding:
    with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split(" ")
            if fields[4] == "/":
                if any(field.startswith("shared:") for field in fields[6 : fields.index("-")]):
                    return passed("mount propagation", "/ is shared")
                reason = "/ is not shared: a volume that is mounted after a pod's start is not seen in the pod"
                return warned("mount propagation", reason, "mount --make-rshared /")
    return warned("mount propagation", "the mount of / is not seen from here", "run in the host's mount namespace")
