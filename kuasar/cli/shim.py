"""``containerd-shim-kuasar-v2``: what containerd wants to find on PATH for ``io.containerd.kuasar.v2``.

There is no shim process: the gateway serves the Task API for every container. containerd runs this program for three
things: ``-info`` (once, to ask what the runtime is), ``start`` (never for containers of a CRI pod, whose address the
Sandbox API gave; it prints the gateway's), and ``delete`` (after it lost a container's connection for good: the
container is ended and forgotten). Without the program on PATH, a restarted containerd drops the containers it finds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kuasar import __version__
from kuasar.core.config import Config, load
from kuasar.core.errors import InvalidArgument, KuasarError, Unavailable
from kuasar.core.ids import require_id

if TYPE_CHECKING:  # importing it costs 60 ms, which only ``delete`` has to pay
    from kuasar.api.gen.containerd.task.v3.task_pb2_grpc import TaskStub

CONFIG_VARIABLE = "KUASAR_CONFIG"
"""containerd gives a shim no arguments of ours; this variable of its environment may name the configuration."""

_CALL_SECONDS = 20.0
_SIGKILL = 9
_KILLED = 137
_FLAGS_WITH_VALUE = ("namespace", "id", "address", "bundle", "publish-binary", "socket", "debug-socket")
_FLAGS = ("debug", "info", "v", "version")


@dataclass(frozen=True)
class Invocation:
    """A parsed command line in Go's flag syntax: ``-flag value``, ``-flag=value``, ``--flag``, then the action."""

    flags: dict[str, str]
    action: str


def parse(argv: Sequence[str]) -> Invocation:
    """Read containerd's command line. Raises InvalidArgument naming the flag."""
    flags: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, has_value, value = rest.pop(0).lstrip("-").partition("=")
        if name in _FLAGS:
            flags[name] = value if has_value else "true"
        elif name in _FLAGS_WITH_VALUE:
            if not has_value and not rest:
                raise InvalidArgument(f"-{name}: a value is needed", field=name)
            flags[name] = value if has_value else rest.pop(0)
        else:
            raise InvalidArgument(f"-{name}: unknown flag", field=name)
    return Invocation(flags, rest[0] if rest else "")


def main() -> int:
    """Exit codes: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong command line."""
    try:
        invocation = parse(sys.argv[1:])
    except InvalidArgument as exc:
        sys.stderr.write(f"containerd-shim-kuasar-v2: {exc}\n")
        return 2
    try:
        return _run(invocation)
    except KuasarError as exc:
        sys.stderr.write(f"containerd-shim-kuasar-v2: {exc}\n")
        return 1


def _run(invocation: Invocation) -> int:
    if "v" in invocation.flags or "version" in invocation.flags:
        sys.stdout.write(f"containerd-shim-kuasar-v2:\n  Version: {__version__}\n")
        return 0
    if "info" in invocation.flags:
        return _info()
    config = load(os.environ.get(CONFIG_VARIABLE))
    match invocation.action:
        case "start":
            return _start(config)
        case "delete":
            return _delete(config, invocation)
        case "":
            raise InvalidArgument("an action is needed: start or delete", field="action")
        case other:
            raise InvalidArgument(f"unknown action {other!r}: start or delete", field="action")


def _info() -> int:
    from kuasar.api.gen.containerd.types import introspection_pb2 as pb

    version = pb.RuntimeVersion(version=__version__)
    info = pb.RuntimeInfo(name="io.containerd.kuasar.v2", version=version)
    sys.stdout.buffer.write(info.SerializeToString())
    return 0


def _start(config: Config) -> int:
    address = f"unix://{config.gateway.socket}"
    sys.stdout.write(json.dumps({"version": 3, "address": address, "protocol": "grpc"}))
    return 0


def _delete(config: Config, invocation: Invocation) -> int:
    """End and forget one container, and say how it ended. A container nobody knows has ended already."""
    import grpc

    from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
    from kuasar.api.gen.containerd.task.v3 import task_pb2_grpc

    container = require_id(invocation.flags.get("id"), "id")
    namespace = require_id(invocation.flags.get("namespace"), "namespace")
    metadata = (("containerd-namespace", namespace),)
    with grpc.insecure_channel(f"unix:{config.gateway.socket}") as channel:
        task = task_pb2_grpc.TaskStub(channel)
        try:
            _kill_and_wait(task, container, metadata)
            response = task.Delete(pb.DeleteRequest(id=container), metadata=metadata, timeout=_CALL_SECONDS)
        except grpc.RpcError as exc:
            if exc.code() != grpc.StatusCode.NOT_FOUND:
                raise Unavailable(f"the gateway could not delete container {container}: {exc.details()}") from exc
            response = pb.DeleteResponse(exit_status=_KILLED)
            response.exited_at.FromNanoseconds(time.time_ns())
    sys.stdout.buffer.write(response.SerializeToString())
    return 0


def _kill_and_wait(task: TaskStub, container: str, metadata: tuple[tuple[str, str], ...]) -> None:
    import grpc

    from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb

    try:
        task.Kill(pb.KillRequest(id=container, signal=_SIGKILL, all=True), metadata=metadata, timeout=_CALL_SECONDS)
    except grpc.RpcError as exc:
        if exc.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            return  # it has ended, or never ran: Delete sorts it out
        raise
    task.Wait(pb.WaitRequest(id=container), metadata=metadata, timeout=_CALL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
