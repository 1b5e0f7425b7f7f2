"""Containers of a guest that run Python from the guest's own root."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.guest.machine import AgentConnection, Machine

PYTHON = ["/usr/bin/python3.11", "-I", "-S", "-B", "-c"]
CAPABILITIES = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_TTY_CONFIG", "CAP_NET_ADMIN"]

# What an expression gives, on the machine's console.
_ANSWER = """
import errno, json, os, socket, stat
def text(path):
    with open(path) as file:
        return file.read()
try:
    answer = EXPRESSION
except OSError as exc:
    answer = [errno.errorcode[exc.errno], exc.filename]
fd = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
os.write(fd, ("\\nANSWER-NAME " + json.dumps(answer) + " END\\n").encode())
"""


def bind(path: str) -> dict[str, Any]:
    """A mount that shows a directory of the guest as it is."""
    return {"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]}


def container(name: str, code: str) -> dict[str, Any]:
    """A creation request: the guest's own root as root, its pid and network namespaces, everything mounted as it is."""
    sets = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "args": [*PYTHON, code],
            "cwd": "/",
            "env": ["PATH=/usr/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": sets,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [bind(path) for path in ("/proc", "/sys", "/dev", "/run", "/tmp")],
        "linux": {
            "cgroupsPath": "/kubepods/of-the-host",
            "namespaces": [{"type": "mount"}, {"type": "uts"}],
            "resources": {"memory": {"limit": 32 * 2**20}, "pids": {"limit": 20}},
        },
    }
    rootfs = [{"type": "bind", "source": "/", "options": ["bind", "ro"]}]
    return {"id": name, "bundle": "", "rootfs": rootfs, "spec": spec, "terminal": False}


def run_to_end(agent: AgentConnection, request: dict[str, Any]) -> int:
    """The exit code of a container, which is gone after this."""
    name = {"id": request["id"]}
    agent.call("task.create", request)
    agent.call("task.start", name)
    status = agent.call("task.wait", name)["exit_status"]
    agent.call("task.delete", name)
    return int(status)


def asking(name: str, expression: str) -> dict[str, Any]:
    """A creation request for a container that says what ``expression`` gives."""
    return container(name, _ANSWER.replace("EXPRESSION", expression).replace("NAME", name))


def answer(machine: Machine, agent: AgentConnection, request: dict[str, Any]) -> Any:
    """What a container made by :func:`asking` has said."""
    assert run_to_end(agent, request) == 0
    return json.loads(machine.console.rpartition(f"ANSWER-{request['id']} ")[2].partition(" END")[0])
