"""Adaptation of OCI specifications: what changes, what stays, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kuasar.agent.spec import adapt
from kuasar.core.errors import InvalidArgument, Unimplemented


class FakeView:
    """An agent that is process 1 of its namespace and 500 on the host, and sees 600 of the host as 7."""

    agent = 1
    agent_on_host = 500

    def to_own(self, host_pid: int) -> int | None:
        return {600: 7}.get(host_pid)


class HostView:
    """An agent in the host's pid namespace."""

    agent = agent_on_host = 500

    def to_own(self, host_pid: int) -> int | None:
        return host_pid


SPEC: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "process": {"args": ["sh"], "cwd": "/"},
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [{"destination": "/x", "type": "bind", "source": "/y", "options": ["rbind", "rslave"]}],
    "annotations": {"a": "b"},
    "linux": {
        "cgroupsPath": "/kubepods/pod1/c",
        "resources": {"memory": {"limit": 1}},
        "namespaces": [
            {"type": "mount"},
            {"type": "pid"},
            {"type": "network", "path": "/proc/500/ns/net"},
            {"type": "ipc", "path": "/proc/500/ns/ipc"},
            {"type": "pid", "path": "/proc/600/ns/pid"},
            {"type": "network", "path": "/run/netns/blue"},
            {"type": "cgroup"},
        ],
    },
}


def test_what_changes_and_what_stays() -> None:
    before = copy.deepcopy(SPEC)
    adapted = adapt(SPEC, FakeView(), "/sandbox/c/rootfs", "/default")
    assert before == SPEC  # the caller's is left alone
    expected = copy.deepcopy(SPEC)
    expected["root"] = {"path": "/sandbox/c/rootfs", "readonly": True}
    expected["linux"]["namespaces"][2]["path"] = "/proc/1/ns/net"
    expected["linux"]["namespaces"][3]["path"] = "/proc/1/ns/ipc"
    expected["linux"]["namespaces"][4]["path"] = "/proc/7/ns/pid"
    assert adapted == expected


def test_in_the_hosts_pid_namespace_the_numbers_stay() -> None:
    adapted = adapt(SPEC, HostView(), "/r", "/default")
    assert adapted["linux"]["namespaces"] == SPEC["linux"]["namespaces"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "/default"),
        ("", "/default"),
        ("/a/b", "/a/b"),
        ("a/../../b", "/b"),
        (
            "kubepods-burstable-pod1.slice:cri-containerd:abc",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
        ),
        ("system.slice::abc", "/system.slice/abc.scope"),
        ("-.slice:p:n", "/p-n.scope"),
    ],
)
def test_the_cgroups_path(given: str | None, expected: str) -> None:
    spec = {"linux": {"cgroupsPath": given}}
    assert adapt(spec, FakeView(), "/r", "/default")["linux"]["cgroupsPath"] == expected


def mount(*options: str) -> dict[str, Any]:
    return {"mounts": [{"destination": "/a", "options": []}, {"destination": "/data", "options": list(options)}]}


@pytest.mark.parametrize(
    ("spec", "error", "field", "words"),
    [
        (mount("rbind", "rshared"), InvalidArgument, "mounts[1].options", "rshared on /data"),
        (mount("shared"), InvalidArgument, "mounts[1].options", "shared on /data"),
        ({"mounts": ["x"]}, InvalidArgument, "mounts[0]", "map"),
        ({"linux": []}, InvalidArgument, None, None),
        ({"linux": "x"}, InvalidArgument, "linux", "map"),
        ({"root": "x"}, InvalidArgument, "root", "map"),
        ({"linux": {"rootfsPropagation": "rshared"}}, InvalidArgument, "linux.rootfsPropagation", "rshared"),
        ({"linux": {"cgroupsPath": 5}}, InvalidArgument, "linux.cgroupsPath", "string"),
        ({"linux": {"cgroupsPath": "/.."}}, InvalidArgument, "linux.cgroupsPath", "no cgroup"),
        ({"linux": {"cgroupsPath": "noslice:a:b"}}, InvalidArgument, "linux.cgroupsPath", "no slice"),
        ({"linux": {"cgroupsPath": "a.slice:b:"}}, InvalidArgument, "linux.cgroupsPath", "no name"),
        ({"linux": {"uidMappings": [{}]}}, Unimplemented, "linux.uidMappings", "user namespaces"),
        ({"linux": {"namespaces": [{"type": "user"}]}}, Unimplemented, "linux.namespaces[0]", "user namespaces"),
        ({"linux": {"namespaces": [{}]}}, InvalidArgument, "linux.namespaces[0]", "type"),
        ({"linux": {"namespaces": ["pid"]}}, InvalidArgument, "linux.namespaces[0]", "type"),
        (
            {"linux": {"namespaces": [{"type": "pid", "path": "/proc/999/ns/pid"}]}},
            InvalidArgument,
            "linux.namespaces[0].path",
            "process 999 of the host",
        ),
    ],
)
def test_what_is_refused_names_the_field(
    spec: dict[str, Any], error: type[Exception], field: str | None, words: str | None
) -> None:
    if field is None:
        assert adapt(spec, FakeView(), "/r", "/default")["linux"]["cgroupsPath"] == "/default"
        return
    with pytest.raises(error, match=words) as raised:
        adapt(spec, FakeView(), "/r", "/default")
    assert getattr(raised.value, "field", "") == field or field in str(raised.value)
