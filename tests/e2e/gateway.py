"""The gateway's own API, called directly: what containerd says to it, and what containerd would never say."""

from __future__ import annotations

from types import TracebackType

import grpc

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as sandbox
from kuasar.api.gen.containerd.sandbox.v1.controller_pb2_grpc import ControllerStub
from kuasar.api.gen.containerd.task.v3.task_pb2_grpc import TaskStub

TIMEOUT = 15.0
NAMESPACE = (("containerd-namespace", "k8s.io"),)


class Gateway:
    """A channel to the gateway with the stubs of both services."""

    def __init__(self, socket: str) -> None:
        options = [
            ("grpc.default_authority", "localhost"),
            ("grpc.max_send_message_length", 64 << 20),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 50),
        ]
        self.target = f"unix:{socket}"
        self._channel = grpc.insecure_channel(self.target, options=options)
        self.controller = ControllerStub(self._channel)
        self.task = TaskStub(self._channel)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the channel."""
        self._channel.close()

    def create(self, pod: str, sandboxer: str) -> sandbox.ControllerCreateResponse:
        """Creates a sandbox without a pod configuration: on the host's network, with the defaults of CRI."""
        request = sandbox.ControllerCreateRequest(sandbox_id=pod, sandboxer=sandboxer)
        return self.controller.Create(request, timeout=TIMEOUT, metadata=NAMESPACE)

    def start(self, pod: str, sandboxer: str) -> sandbox.ControllerStartResponse:
        """Starts it."""
        request = sandbox.ControllerStartRequest(sandbox_id=pod, sandboxer=sandboxer)
        return self.controller.Start(request, timeout=TIMEOUT, metadata=NAMESPACE)

    def stop(self, pod: str, sandboxer: str) -> sandbox.ControllerStopResponse:
        """Stops it; what does not end within a second is killed."""
        request = sandbox.ControllerStopRequest(sandbox_id=pod, sandboxer=sandboxer, timeout_secs=1)
        return self.controller.Stop(request, timeout=TIMEOUT, metadata=NAMESPACE)

    def shutdown(self, pod: str, sandboxer: str) -> sandbox.ControllerShutdownResponse:
        """Removes it."""
        request = sandbox.ControllerShutdownRequest(sandbox_id=pod, sandboxer=sandboxer)
        return self.controller.Shutdown(request, timeout=TIMEOUT, metadata=NAMESPACE)

    def status(self, pod: str, sandboxer: str, *, verbose: bool = False) -> sandbox.ControllerStatusResponse:
        """Where it stands."""
        request = sandbox.ControllerStatusRequest(sandbox_id=pod, sandboxer=sandboxer, verbose=verbose)
        return self.controller.Status(request, timeout=TIMEOUT, metadata=NAMESPACE)
