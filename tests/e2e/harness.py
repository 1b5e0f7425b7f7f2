"""Pods and containers as tests see them: thin handles on CRI objects, that know where their logs are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kuasar.api.gen.cri.v1 import container_pb2, pod_pb2
from kuasar.api.gen.cri.v1.container_pb2 import ContainerState
from kuasar.cli.cri import CriClient, CriError, ExecResult, ExecStream, container_config, pod_config
from scripts.stack import Stack
from tests.deadline import eventually
from tests.e2e.engines import Engine
from tests.e2e.gateway import Gateway


class Line(NamedTuple):
    """One line of a log file as containerd writes them: time, stream, whether it is whole, what the container wrote."""

    time: bytes
    stream: bytes
    whole: bool
    text: bytes


@dataclass
class Container:
    """A container of a pod."""

    pod: Pod
    id: str
    name: str
    config: container_pb2.ContainerConfig

    @property
    def log_path(self) -> str:
        """The log file."""
        return os.path.join(self.pod.log_directory, self.config.log_path)

    def start(self) -> Container:
        """Starts it; gives itself."""
        self.pod.cri.start(self.id)
        return self

    def status(self) -> container_pb2.ContainerStatus:
        """What CRI says of it now."""
        return self.pod.cri.status(self.id).status

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it."""
        return int(json.loads(self.pod.cri.status(self.id, verbose=True).info["info"])["pid"])

    def running(self) -> bool:
        """Whether CRI says it runs."""
        return self.status().state == ContainerState.CONTAINER_RUNNING

    def wait(self, timeout: float = 15.0) -> container_pb2.ContainerStatus:
        """Waits for its end and gives the last status."""
        exited = ContainerState.CONTAINER_EXITED
        return eventually(self.status, f"end of {self.name}", timeout=timeout, until=lambda s: s.state == exited)

    def exec(self, *command: str, timeout: int = 0) -> ExecResult:
        """Runs a command in it."""
        return self.pod.cri.exec_sync(self.id, command, timeout=timeout)

    def sh(self, script: str) -> str:
        """What a shell script in it writes; fails the test when the script fails."""
        result = self.exec("sh", "-c", script)
        assert result.exit_code == 0, f"{script!r}: {result}"
        return result.stdout.decode()

    def exec_stream(self, *command: str, tty: bool = False, stdin: bool = False) -> ExecStream:
        """Runs a command with streams."""
        return self.pod.cri.exec_stream(self.id, command, tty=tty, stdin=stdin)

    def attach(self, *, tty: bool = False, stdin: bool = False) -> ExecStream:
        """The streams of its own process."""
        return self.pod.cri.attach(self.id, tty=tty, stdin=stdin)

    def stop(self, grace: int = 0) -> None:
        """TERM, then KILL after `grace` seconds."""
        self.pod.cri.stop(self.id, grace=grace)

    def remove(self) -> None:
        """Removes it."""
        self.pod.cri.remove(self.id)

    def lines(self) -> list[Line]:
        """The log, decoded."""
        try:
            with open(self.log_path, "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            return []
        lines = []
        for entry in raw.split(b"\n")[:-1]:
            time, stream, tag, text = entry.split(b" ", 3)
            lines.append(Line(time, stream, tag == b"F", text))
        return lines

    def log(self, stream: str = "stdout") -> bytes:
        """What was written to a stream so far; whether the very last line had a newline is not known."""
        wanted = stream.encode()
        return b"".join(line.text + (b"\n" if line.whole else b"") for line in self.lines() if line.stream == wanted)

    def wait_for_log(self, text: bytes, stream: str = "stdout", timeout: float = 15.0) -> bytes:
        """Waits until `text` was written, and gives all of it."""
        what = f"{text!r} in the {stream} of {self.name}"
        return eventually(lambda: self.log(stream), what, timeout=timeout, until=lambda seen: text in seen)


@dataclass
class Pod:
    """A pod sandbox."""

    stack: Stack
    cri: CriClient
    engine: Engine
    id: str
    config: pod_pb2.PodSandboxConfig
    names: set[str] = field(default_factory=set)

    @property
    def log_directory(self) -> str:
        """Where the logs of its containers are."""
        return self.config.log_directory

    def create(self, command: Sequence[str], name: str = "main", **options: Any) -> Container:
        """Creates a container. Namespaces, which CRI wants repeated, are taken from the pod."""
        wanted = self.config.linux.security_context.namespace_options
        options.setdefault("attempt", sum(1 for known in self.names if known.startswith(f"{name}/")))
        self.names.add(f"{name}/{options['attempt']}")
        config = container_config(name, options.pop("image", self.engine.image), command, **options)
        config.linux.security_context.namespace_options.CopyFrom(wanted)
        return Container(self, self.cri.create_container(self.id, config, self.config), name, config)

    def run(self, command: Sequence[str], name: str = "main", **options: Any) -> Container:
        """Creates and starts a container."""
        return self.create(command, name, **options).start()

    def run_idle(self, name: str = "main", **options: Any) -> Container:
        """A container that does nothing until it is killed."""
        return self.run(self.engine.programs.idle(), name, **options)

    def status(self) -> pod_pb2.PodSandboxStatus:
        """What CRI says of it now."""
        return self.cri.pod_status(self.id).status

    @property
    def ready(self) -> bool:
        """Whether CRI says it is ready."""
        return self.status().state == pod_pb2.PodSandboxState.SANDBOX_READY

    @property
    def process(self) -> int:
        """What the sandbox lives and dies with: a machine's VMM, else the agent."""
        with Gateway(self.stack.layout.gateway_socket) as gateway:
            return gateway.status(self.id, self.engine.handler).pid

    @property
    def address(self) -> str:
        """Its address in the pod network."""
        return self.status().network.ip

    def stop(self) -> None:
        """Stops it and its containers, as the kubelet does: again where containerd lost a race with itself.

        When a container ends just then, containerd closes its connection to it and kills over the closed one.
        """
        try:
            self.cri.stop_pod(self.id)
        except CriError as error:
            if "ttrpc: closed" not in str(error):
                raise
            self.cri.stop_pod(self.id)

    def remove(self) -> None:
        """Stops and removes it."""
        self.stop()
        self.cri.remove_pod(self.id)


class Node:
    """Makes pods on one engine and removes what is left of them at the end of the test."""

    def __init__(self, stack: Stack, cri: CriClient, engine: Engine, directory: str) -> None:
        self.stack = stack
        self.cri = cri
        self.engine = engine
        self.directory = directory
        self.pods: list[str] = []
        self._undo = ExitStack()
        self._count = 0

    def pod(self, name: str = "", **options: Any) -> Pod:
        """Runs a pod; on the pod network unless `host_network`, with the engine's runtime handler unless `handler`."""
        self._count += 1
        name = name or f"pod-{self._count}"
        options.setdefault("log_directory", os.path.join(self.directory, f"{name}-{self._count}"))
        options.setdefault("cgroup_parent", self.stack.layout.cgroup_parent)
        handler = options.pop("handler", self.engine.handler)
        config = pod_config(name, **options)
        pod = Pod(self.stack, self.cri, self.engine, self.cri.run_pod(config, handler), config)
        self.pods.append(pod.id)
        self._undo.callback(pod.remove)
        return pod

    def gateway(self) -> Gateway:
        """The gateway's own API; the channel is closed at the end of the test."""
        return self._undo.enter_context(Gateway(self.stack.layout.gateway_socket))

    def close(self) -> None:
        """Removes all pods."""
        self._undo.close()
