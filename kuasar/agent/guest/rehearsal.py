"""What a template does once, in the agent itself, so that its clones find the code for it in their memory.

The requests of the template's maker show the way to it; here is what they cannot ask for, as its effect would stay.
"""

from __future__ import annotations

import os

from kuasar.agent import kernel, setup
from kuasar.agent.network_plan import Plan
from kuasar.agent.requests import Body

_SYSCTLS = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range")
"""What containerd sets for every pod."""
_NETWORK = {
    "interfaces": [
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:01",
            "mtu": 1500,
            "addresses": [
                {"address": "192.0.2.2", "prefix": 24, "broadcast": "192.0.2.255"},
                {"address": "2001:db8::2", "prefix": 64},
            ],
        }
    ],
    "routes": [{"dst": "0.0.0.0/0", "gateway": "192.0.2.1", "interface": "eth0"}],
    "neighbours": [{"address": "192.0.2.1", "mac": "02:00:00:00:00:02", "interface": "eth0"}],
}


def rehearse(directory: str) -> None:
    """Leaves nothing behind. ``directory``: the sandbox directory."""
    os.urandom(16).hex()
    place = f"{directory}/rehearsal"
    setup.mount_shm(place, 1 << 16)
    kernel.umount(place)
    os.rmdir(place)
    setup.set_sysctls({name: _read(setup.sysctl_path(name, _not_shared)) for name in _SYSCTLS}, _not_shared)
    Plan.parse(Body(_NETWORK))


def _not_shared(kind: str) -> bool:
    return False


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
