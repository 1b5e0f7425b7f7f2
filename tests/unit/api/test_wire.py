"""Names and numbers that peers rely on, written down as bytes so that a renumbering cannot pass."""

import pytest
from google.protobuf.message import Message

from kuasar.api.gen.containerd.cgroups.v1 import metrics_pb2 as cgroup1
from kuasar.api.gen.containerd.cgroups.v2 import metrics_pb2 as cgroup2
from kuasar.api.gen.containerd.events import forward_pb2
from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.api.gen.containerd.runc.v1 import options_pb2 as runc_options
from kuasar.api.gen.containerd.runtimeoptions.v1 import options_pb2 as runtime_options
from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as controller
from kuasar.api.gen.containerd.task.v2 import task_pb2 as task2
from kuasar.api.gen.containerd.task.v3 import task_pb2 as task3
from kuasar.api.gen.containerd.types import event_pb2, introspection_pb2, mount_pb2
from kuasar.api.gen.containerd.types import task_pb2 as task_types
from kuasar.api.gen.cri.v1 import common_pb2, image_pb2, pod_pb2, runtime_pb2
from kuasar.api.gen.ttrpc import ttrpc_pb2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (cgroup1.Metrics, "io.containerd.cgroups.v1.Metrics"),
        (cgroup2.Metrics, "io.containerd.cgroups.v2.Metrics"),
        (events.TaskExit, "containerd.events.TaskExit"),
        (forward_pb2.ForwardRequest, "containerd.services.events.ttrpc.v1.ForwardRequest"),
        (event_pb2.Envelope, "containerd.types.Envelope"),
        (mount_pb2.Mount, "containerd.types.Mount"),
        (introspection_pb2.RuntimeInfo, "containerd.types.RuntimeInfo"),
        (task_types.ProcessInfo, "containerd.v1.types.ProcessInfo"),
        (runc_options.Options, "containerd.runc.v1.Options"),
        (runtime_options.Options, "runtimeoptions.v1.Options"),
        (pod_pb2.PodSandboxConfig, "runtime.v1.PodSandboxConfig"),
    ],
)
def test_names_that_travel_as_type_urls(kind: type[Message], name: str) -> None:
    assert kind.DESCRIPTOR.full_name == name


@pytest.mark.parametrize(
    ("service", "name", "methods"),
    [
        (
            controller.DESCRIPTOR.services_by_name["Controller"],
            "containerd.services.sandbox.v1.Controller",
            "Create Start Platform Stop Wait Status Shutdown Metrics Update",
        ),
        *(
            (
                module.DESCRIPTOR.services_by_name["Task"],
                f"containerd.task.{version}.Task",
                "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO Update Wait Stats"
                " Connect Shutdown",
            )
            for module, version in ((task2, "v2"), (task3, "v3"))
        ),
        (
            forward_pb2.DESCRIPTOR.services_by_name["Events"],
            "containerd.services.events.ttrpc.v1.Events",
            "Forward",
        ),
        (
            image_pb2.DESCRIPTOR.services_by_name["ImageService"],
            "runtime.v1.ImageService",
            "ListImages ImageStatus RemoveImage ImageFsInfo",
        ),
        (
            runtime_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
            "runtime.v1.RuntimeService",
            "Version RunPodSandbox StopPodSandbox RemovePodSandbox PodSandboxStatus ListPodSandbox CreateContainer"
            " StartContainer StopContainer RemoveContainer ListContainers ContainerStatus UpdateContainerResources"
            " ReopenContainerLog ExecSync Exec Attach PortForward ContainerStats ListContainerStats PodSandboxStats"
            " ListPodSandboxStats Status",
        ),
    ],
)
def test_services_and_their_calls(service: object, name: str, methods: str) -> None:
    assert service.full_name == name  # type: ignore[attr-defined]  # typeshed gives services_by_name no value type
    assert [method.name for method in service.methods] == methods.split()  # type: ignore[attr-defined]  # same


# Numbers in a message that do not follow the order of its fields are the ones that get mistyped.
@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (controller.ControllerCreateRequest(sandboxer="k"), b"\x52\x01k"),
        (controller.ControllerUpdateRequest(sandboxer="k"), b"\x12\x01k"),
        (controller.ControllerStartResponse(address="a", version=3), b"\x2a\x01a\x30\x03"),
        (controller.ControllerStatusResponse(address="a", version=3), b"\x42\x01a\x48\x03"),
        (events.TaskDelete(id="x"), b"\x2a\x01x"),
        (events.TaskExit(id="x", pid=1, exit_status=2), b"\x12\x01x\x18\x01\x20\x02"),
        (cgroup2.Metrics(memory=cgroup2.MemoryStat(usage=1)), b"\x22\x03\x80\x02\x01"),
        (cgroup1.MemoryStat(usage=cgroup1.MemoryEntry(usage=1)), b"\x8a\x02\x02\x10\x01"),
        (
            pod_pb2.LinuxSandboxSecurityContext(privileged=True, seccomp=common_pb2.SecurityProfile()),
            b"\x30\x01\x4a\x00",
        ),
        (common_pb2.ImageSpec(image_ref="r"), b"\xa2\x01\x01r"),
        (ttrpc_pb2.Request(timeout_nano=1, metadata=[ttrpc_pb2.KeyValue(key="k")]), b"\x20\x01\x2a\x03\x0a\x01k"),
        (ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5)), b"\x0a\x02\x08\x05"),
    ],
)
def test_field_numbers(message: Message, wire: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == wire
    assert type(message).FromString(wire) == message


def test_what_a_newer_kubelet_sends_survives() -> None:
    known = pod_pb2.PodSandboxConfig(hostname="h").SerializeToString()
    unknown = b"\xfa\x3e\x03new"  # field 1007, a string
    assert unknown in pod_pb2.PodSandboxConfig.FromString(known + unknown).SerializeToString()
