"""Builders of the CRI messages that describe a pod and its containers, filled the way the kubelet fills them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Literal

from kuasar.api.gen.cri.v1.common_pb2 import (
    ImageSpec,
    Int64Value,
    KeyValue,
    LinuxContainerResources,
    NamespaceMode,
    NamespaceOption,
    SecurityProfile,
)
from kuasar.api.gen.cri.v1.container_pb2 import (
    Capability,
    ContainerConfig,
    ContainerMetadata,
    Device,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    Mount,
    MountPropagation,
)
from kuasar.api.gen.cri.v1.pod_pb2 import (
    DNSConfig,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    PodSandboxConfig,
    PodSandboxMetadata,
    PortMapping,
)

PidMode = Literal["container", "pod", "host"]

_PID_MODES: dict[PidMode, NamespaceMode.ValueType] = {
    "container": NamespaceMode.CONTAINER,
    "pod": NamespaceMode.POD,
    "host": NamespaceMode.NODE,
}


def namespaces(
    *, host_network: bool = False, host_ipc: bool = False, pid_mode: PidMode = "container"
) -> NamespaceOption:
    """Which namespaces are the pod's; spelt out, since an absent option would mean a PID namespace for the pod."""
    return NamespaceOption(
        network=NamespaceMode.NODE if host_network else NamespaceMode.POD,
        ipc=NamespaceMode.NODE if host_ipc else NamespaceMode.POD,
        pid=_PID_MODES[pid_mode],
    )


def pod_config(
    name: str,
    *,
    namespace: str = "default",
    uid: str = "",
    attempt: int = 0,
    hostname: str = "",
    log_directory: str = "",
    host_network: bool = False,
    host_ipc: bool = False,
    pid_mode: PidMode = "container",
    sysctls: Mapping[str, str] | None = None,
    dns: DNSConfig | None = None,
    port_mappings: Sequence[PortMapping] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    cgroup_parent: str = "",
    privileged: bool = False,
    overhead: LinuxContainerResources | None = None,
    resources: LinuxContainerResources | None = None,
) -> PodSandboxConfig:
    """A pod. `uid` defaults to a fresh one and `hostname` to the name, but a pod on the host's network has none."""
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(name=name, uid=uid or str(uuid.uuid4()), namespace=namespace, attempt=attempt),
        hostname=hostname or ("" if host_network else name),
        log_directory=log_directory,
        dns_config=dns,
        port_mappings=port_mappings,
        labels=labels or {},
        annotations=annotations or {},
        linux=LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            sysctls=sysctls or {},
            overhead=overhead,
            resources=resources,
            security_context=LinuxSandboxSecurityContext(
                namespace_options=namespaces(host_network=host_network, host_ipc=host_ipc, pid_mode=pid_mode),
                privileged=privileged,
            ),
        ),
    )


def container_config(
    name: str,
    image: str,
    command: Sequence[str] = (),
    args: Sequence[str] = (),
    *,
    attempt: int = 0,
    env: Mapping[str, str] | None = None,
    working_dir: str = "",
    mounts: Sequence[Mount] = (),
    devices: Sequence[Device] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    log_path: str | None = None,
    stdin: bool = False,
    stdin_once: bool = False,
    tty: bool = False,
    host_network: bool = False,
    host_ipc: bool = False,
    pid_mode: PidMode = "container",
    user: int | None = None,
    group: int | None = None,
    supplemental_groups: Sequence[int] = (),
    add_capabilities: Sequence[str] = (),
    drop_capabilities: Sequence[str] = (),
    privileged: bool = False,
    readonly_rootfs: bool = False,
    no_new_privs: bool = False,
    seccomp: SecurityProfile | None = None,
    masked_paths: Sequence[str] = (),
    readonly_paths: Sequence[str] = (),
    resources: LinuxContainerResources | None = None,
) -> ContainerConfig:
    """A container. `log_path` is relative to the pod's log directory and defaults to "<name>_<attempt>.log".

    The namespace arguments must be those of the pod; capabilities are named without "CAP_".
    """
    security = LinuxContainerSecurityContext(
        capabilities=Capability(add_capabilities=add_capabilities, drop_capabilities=drop_capabilities),
        privileged=privileged,
        namespace_options=namespaces(host_network=host_network, host_ipc=host_ipc, pid_mode=pid_mode),
        run_as_user=None if user is None else Int64Value(value=user),
        run_as_group=None if group is None else Int64Value(value=group),
        supplemental_groups=supplemental_groups,
        readonly_rootfs=readonly_rootfs,
        no_new_privs=no_new_privs,
        seccomp=seccomp,
        masked_paths=masked_paths,
        readonly_paths=readonly_paths,
    )
    return ContainerConfig(
        metadata=ContainerMetadata(name=name, attempt=attempt),
        image=ImageSpec(image=image),
        command=command,
        args=args,
        working_dir=working_dir,
        envs=[KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()],
        mounts=mounts,
        devices=devices,
        labels=labels or {},
        annotations=annotations or {},
        log_path=f"{name}_{attempt}.log" if log_path is None else log_path,
        stdin=stdin,
        stdin_once=stdin_once,
        tty=tty,
        linux=LinuxContainerConfig(resources=resources, security_context=security),
    )


def bind(
    host_path: str,
    container_path: str,
    *,
    readonly: bool = False,
    propagation: MountPropagation.ValueType = MountPropagation.PROPAGATION_PRIVATE,
) -> Mount:
    """A directory or file of the host, seen in the container."""
    return Mount(host_path=host_path, container_path=container_path, readonly=readonly, propagation=propagation)
