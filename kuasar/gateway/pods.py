"""From CRI's PodSandboxConfig to the PodSpec map that workers understand (docs/bus.md)."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from kuasar.api import anypb
from kuasar.api.gen.cri.v1 import common_pb2, pod_pb2
from kuasar.core.errors import InvalidArgument, Unimplemented

_RESOURCE_FIELDS = (
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "memory_limit_in_bytes",
    "oom_score_adj",
    "memory_swap_limit_in_bytes",
)


def pod_spec_of(options: AnyMessage, netns: str) -> dict[str, Any]:
    """The PodSpec of ``ControllerCreateRequest.options``; raises InvalidArgument naming the field.

    Without options (a caller other than CRI) the pod has defaults, and the host's network if no namespace is given.
    """
    if not options.type_url:
        return {"host_network": not netns}
    try:
        config = anypb.unpack(options, pod_pb2.PodSandboxConfig)
    except ValueError as exc:
        raise InvalidArgument(f"options: {exc}", field="options") from exc
    return pod_spec(config)


def pod_spec_of_metadata(value: bytes) -> dict[str, Any]:
    """The PodSpec in the CRI plugin's own record of a pod (JSON), as ``Update`` carries it in its extensions."""
    field = "sandbox.extensions.metadata"
    try:
        record = json.loads(value)
        config = json_format.ParseDict(
            record["Metadata"]["Config"], pod_pb2.PodSandboxConfig(), ignore_unknown_fields=True
        )
    except (ValueError, KeyError, TypeError, json_format.ParseError) as exc:
        raise InvalidArgument(f"{field}: not CRI's record of a pod: {exc}", field=field) from exc
    return pod_spec(config)


def pod_spec(config: pod_pb2.PodSandboxConfig) -> dict[str, Any]:
    """Translate ``config``; what we cannot honour is refused by name, never ignored."""
    security = config.linux.security_context
    namespaces = security.namespace_options
    node = common_pb2.NamespaceMode.NODE
    if namespaces.HasField("userns_options") and namespaces.userns_options.mode != node:
        raise Unimplemented(
            "linux.security_context.namespace_options.userns_options: user namespaces are not supported",
            capability="user-namespaces",
        )
    spec: dict[str, Any] = {
        "name": config.metadata.name,
        "namespace": config.metadata.namespace,
        "uid": config.metadata.uid,
        "attempt": config.metadata.attempt,
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "labels": dict(config.labels),
        "annotations": dict(config.annotations),
        "cgroup_parent": config.linux.cgroup_parent,
        "sysctls": dict(config.linux.sysctls),
        "host_network": namespaces.network == node,
        "host_pid": namespaces.pid == node,
        "host_ipc": namespaces.ipc == node,
        "shared_pid": namespaces.pid == common_pb2.NamespaceMode.POD,
        "overhead": _resources(config.linux.overhead),
        "resources": _resources(config.linux.resources),
    }
    if config.HasField("dns_config"):
        dns = config.dns_config
        spec["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    return spec


def _resources(resources: Any) -> dict[str, int]:
    return {name: getattr(resources, name) for name in _RESOURCE_FIELDS if getattr(resources, name)}
