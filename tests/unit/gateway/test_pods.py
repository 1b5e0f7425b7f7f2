"""PodSandboxConfig becomes a PodSpec that workers accept; what cannot be honoured is refused by name."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from kuasar.api import anypb
from kuasar.api.gen.cri.v1 import common_pb2, pod_pb2
from kuasar.core.errors import InvalidArgument, Unimplemented
from kuasar.gateway.pods import pod_spec, pod_spec_of, pod_spec_of_metadata
from kuasar.workers.pod import PodSpec


def config() -> pod_pb2.PodSandboxConfig:
    result = pod_pb2.PodSandboxConfig(hostname="web", log_directory="/var/log/pods/x")
    result.metadata.name = "web-0"
    result.metadata.attempt = 2
    result.dns_config.servers.append("10.0.0.10")
    result.linux.cgroup_parent = "/kubepods/pod1"
    result.linux.sysctls["net.core.somaxconn"] = "1024"
    result.linux.overhead.memory_limit_in_bytes = 5
    result.linux.security_context.namespace_options.pid = common_pb2.NamespaceMode.POD
    return result


def test_every_field_arrives_and_workers_accept_it() -> None:
    spec = PodSpec.from_wire(pod_spec(config()))
    assert (spec.name, spec.attempt, spec.hostname) == ("web-0", 2, "web")
    assert spec.dns is not None
    assert spec.dns.servers == ["10.0.0.10"]
    assert spec.cgroup_parent == "/kubepods/pod1"
    assert spec.overhead == {"memory_limit_in_bytes": 5}
    assert spec.shared_pid
    assert not spec.host_network


def test_packed_options_and_none() -> None:
    assert pod_spec_of(anypb.pack(config()), "/run/netns/x")["name"] == "web-0"
    assert pod_spec_of(AnyMessage(), "") == {"host_network": True}
    assert pod_spec_of(AnyMessage(), "/run/netns/x") == {"host_network": False}


def test_other_options_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="options"):
        pod_spec_of(AnyMessage(type_url="something.else", value=b"x"), "")
    with pytest.raises(InvalidArgument, match="options"):
        pod_spec_of(AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=b"\xff\xff"), "")


def test_user_namespaces_are_refused_by_name() -> None:
    wanted = config()
    wanted.linux.security_context.namespace_options.userns_options.mode = common_pb2.NamespaceMode.POD
    with pytest.raises(Unimplemented, match="userns_options"):
        pod_spec(wanted)


def test_cris_own_record() -> None:
    record = {"Version": "v1", "Metadata": {"Config": {"metadata": {"name": "n"}, "hostname": "h", "linux": {}}}}
    assert pod_spec_of_metadata(json.dumps(record).encode())["hostname"] == "h"
    for damaged in (b"", b"{}", b'{"Metadata": {"Config": 3}}'):
        with pytest.raises(InvalidArgument, match=r"extensions\.metadata"):
            pod_spec_of_metadata(damaged)
