"""A synchronous client of the CRI, the API by which the kubelet drives containerd: pods, containers, images.

Used by the demo, the end-to-end tests and diagnosis, to act exactly as Kubernetes would. One `CriClient` is one
gRPC channel; it may be shared by threads. Messages are those of kuasar.api.gen.cri.v1;
kuasar.cli.cri_config builds the long ones.

    with CriClient("/run/containerd/containerd.sock") as cri:
        config = pod_config("demo", log_directory="/var/log/demo")
        pod = cri.run_pod(config, "kuasar")
        container = cri.create_container(pod, container_config("one", "busybox", ["sleep", "60"]), config)
        cri.start(container)
        print(cri.exec_sync(container, ["uname", "-a"]).stdout)
        cri.stop_pod(pod)
        cri.remove_pod(pod)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from kuasar.api.gen.cri.v1 import container_pb2, image_pb2, pod_pb2, runtime_pb2, stats_pb2
from kuasar.api.gen.cri.v1.common_pb2 import ImageSpec, LinuxContainerResources
from kuasar.api.gen.cri.v1.image_pb2_grpc import ImageServiceStub
from kuasar.api.gen.cri.v1.runtime_pb2_grpc import RuntimeServiceStub
from kuasar.cli.cri_config import bind, container_config, pod_config
from kuasar.cli.cri_stream import CriError, ExecResult, ExecStream

__all__ = ["CriClient", "CriError", "ExecResult", "ExecStream", "bind", "container_config", "pod_config"]

# containerd's own limit on a message is 16 MiB, and it cuts ExecSync output at that.
MAX_MESSAGE = 32 << 20

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class CriClient:
    """Calls on one containerd. Every call raises CriError and waits at most `timeout` seconds unless it says other."""

    def __init__(self, address: str, *, timeout: float = 60.0) -> None:
        """`address` is the path of containerd's gRPC socket, with or without "unix://"; nothing is sent yet."""
        self.address = address.removeprefix("unix://")
        self.timeout = timeout
        self._channel = grpc.insecure_channel(
            f"unix:{self.address}",
            options=[
                # Go's HTTP/2 server refuses the escaped socket path that gRPC would send as authority.
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ],
        )
        self._runtime = RuntimeServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)

    def __enter__(self) -> CriClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the channel; calls under way on other threads fail. Harmless to repeat."""
        self._channel.close()

    # --- the runtime itself

    def version(self) -> runtime_pb2.VersionResponse:
        """Name and versions of the runtime."""
        return self._call(self._runtime.Version, runtime_pb2.VersionRequest())

    def runtime_status(self, *, verbose: bool = False) -> runtime_pb2.StatusResponse:
        """Whether the runtime and its network are ready, and which handlers it has."""
        return self._call(self._runtime.Status, runtime_pb2.StatusRequest(verbose=verbose))

    # --- pods

    def run_pod(self, config: pod_pb2.PodSandboxConfig, handler: str = "", *, timeout: float | None = None) -> str:
        """Creates and starts a pod under the named runtime handler and returns its id."""
        request = pod_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return self._call(self._runtime.RunPodSandbox, request, timeout).pod_sandbox_id

    def stop_pod(self, pod: str, *, timeout: float | None = None) -> None:
        """Stops a pod and its containers; succeeds if it is stopped or gone."""
        self._call(self._runtime.StopPodSandbox, pod_pb2.StopPodSandboxRequest(pod_sandbox_id=pod), timeout)

    def remove_pod(self, pod: str, *, timeout: float | None = None) -> None:
        """Removes a pod and its containers, by force if need be; succeeds if it is gone."""
        self._call(self._runtime.RemovePodSandbox, pod_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout)

    def pod_status(self, pod: str, *, verbose: bool = False) -> pod_pb2.PodSandboxStatusResponse:
        """State, addresses and, with `verbose`, the runtime's own information."""
        request = pod_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose)
        return self._call(self._runtime.PodSandboxStatus, request)

    def list_pods(self, *, labels: Mapping[str, str] | None = None) -> list[pod_pb2.PodSandbox]:
        """All pods that carry all of `labels`."""
        request = pod_pb2.ListPodSandboxRequest(filter=pod_pb2.PodSandboxFilter(label_selector=labels or {}))
        return list(self._call(self._runtime.ListPodSandbox, request).items)

    def pod_stats(self, pod: str) -> stats_pb2.PodSandboxStats:
        """Usage of a pod."""
        return self._call(self._runtime.PodSandboxStats, stats_pb2.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats

    def list_pod_stats(self, *, labels: Mapping[str, str] | None = None) -> list[stats_pb2.PodSandboxStats]:
        """Usage of all pods that carry all of `labels`."""
        chosen = stats_pb2.PodSandboxStatsFilter(label_selector=labels or {})
        request = stats_pb2.ListPodSandboxStatsRequest(filter=chosen)
        return list(self._call(self._runtime.ListPodSandboxStats, request).stats)

    # --- containers

    def create_container(
        self, pod: str, config: container_pb2.ContainerConfig, pod_spec: pod_pb2.PodSandboxConfig
    ) -> str:
        """Creates a container in a pod, given the configuration the pod was run with, and returns its id."""
        request = runtime_pb2.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=pod_spec)
        return self._call(self._runtime.CreateContainer, request).container_id

    def start(self, container: str) -> None:
        """Starts a created container."""
        self._call(self._runtime.StartContainer, container_pb2.StartContainerRequest(container_id=container))

    def stop(self, container: str, *, grace: int = 0) -> None:
        """Asks the container to end, and kills it after `grace` seconds; 0 kills at once."""
        request = container_pb2.StopContainerRequest(container_id=container, timeout=grace)
        self._call(self._runtime.StopContainer, request, self.timeout + grace)

    def remove(self, container: str) -> None:
        """Removes a container, by force if it runs; succeeds if it is gone."""
        self._call(self._runtime.RemoveContainer, container_pb2.RemoveContainerRequest(container_id=container))

    def status(self, container: str, *, verbose: bool = False) -> container_pb2.ContainerStatusResponse:
        """State, times and exit code; with `verbose` also the runtime's own information."""
        request = container_pb2.ContainerStatusRequest(container_id=container, verbose=verbose)
        return self._call(self._runtime.ContainerStatus, request)

    def list_containers(
        self, *, pod: str = "", labels: Mapping[str, str] | None = None
    ) -> list[container_pb2.Container]:
        """All containers, or those of one pod, that carry all of `labels`."""
        chosen = container_pb2.ContainerFilter(pod_sandbox_id=pod, label_selector=labels or {})
        request = container_pb2.ListContainersRequest(filter=chosen)
        return list(self._call(self._runtime.ListContainers, request).containers)

    def stats(self, container: str) -> stats_pb2.ContainerStats:
        """Usage of a container."""
        request = stats_pb2.ContainerStatsRequest(container_id=container)
        return self._call(self._runtime.ContainerStats, request).stats

    def list_stats(self, *, pod: str = "", labels: Mapping[str, str] | None = None) -> list[stats_pb2.ContainerStats]:
        """Usage of all containers, or those of one pod, that carry all of `labels`."""
        chosen = stats_pb2.ContainerStatsFilter(pod_sandbox_id=pod, label_selector=labels or {})
        request = stats_pb2.ListContainerStatsRequest(filter=chosen)
        return list(self._call(self._runtime.ListContainerStats, request).stats)

    def update_resources(self, container: str, resources: LinuxContainerResources) -> None:
        """Changes limits of a running container; fields that are zero stay as they are."""
        request = container_pb2.UpdateContainerResourcesRequest(container_id=container, linux=resources)
        self._call(self._runtime.UpdateContainerResources, request)

    def reopen_log(self, container: str) -> None:
        """Makes the runtime open the container's log file anew, after it was moved away."""
        request = container_pb2.ReopenContainerLogRequest(container_id=container)
        self._call(self._runtime.ReopenContainerLog, request)

    # --- commands in containers

    def exec_sync(self, container: str, command: Sequence[str], *, timeout: int = 0) -> ExecResult:
        """Runs a command without stdin and returns when it has ended.

        The runtime kills it after `timeout` seconds (CriError DEADLINE_EXCEEDED); 0 leaves only our own limit.
        """
        request = container_pb2.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        answer = self._call(self._runtime.ExecSync, request, self.timeout + timeout)
        return ExecResult(answer.stdout, answer.stderr, answer.exit_code)

    def exec_stream(
        self, container: str, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecStream:
        """Runs a command and returns its streams, connected."""
        request = container_pb2.ExecRequest(
            container_id=container, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        url = self._call(self._runtime.Exec, request).url
        return ExecStream(url, tty=tty, stdin=stdin, stdout=True, stderr=not tty, timeout=self.timeout)

    def attach(self, container: str, *, tty: bool = False, stdin: bool = False) -> ExecStream:
        """The streams of the container's own process; `tty` must be as the container was created."""
        request = container_pb2.AttachRequest(container_id=container, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
        url = self._call(self._runtime.Attach, request).url
        return ExecStream(url, tty=tty, stdin=stdin, stdout=True, stderr=not tty, timeout=self.timeout)

    # --- images

    def list_images(self) -> list[image_pb2.Image]:
        """All images."""
        return list(self._call(self._images.ListImages, image_pb2.ListImagesRequest()).images)

    def image_status(self, image: str) -> image_pb2.Image | None:
        """An image by any of its names, or None."""
        answer = self._call(self._images.ImageStatus, image_pb2.ImageStatusRequest(image=ImageSpec(image=image)))
        return answer.image if answer.HasField("image") else None

    def remove_image(self, image: str) -> None:
        """Removes an image; succeeds if it is gone."""
        self._call(self._images.RemoveImage, image_pb2.RemoveImageRequest(image=ImageSpec(image=image)))

    def image_fs_info(self) -> image_pb2.ImageFsInfoResponse:
        """Where images and writable layers are, and what they take."""
        return self._call(self._images.ImageFsInfo, image_pb2.ImageFsInfoRequest())

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float | None = None
    ) -> Response:
        try:
            return method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            ended = cast("grpc.Call", error)  # what a unary call raises is both
            name = type(request).__name__.removesuffix("Request")
            raise CriError(ended.code(), f"{name}: {ended.details() or 'no reason given'}") from error
