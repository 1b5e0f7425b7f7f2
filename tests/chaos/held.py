"""A command that lives through the death of containerd, of supervisord, and of everything of ours.

It is started through the Task API with a FIFO of the test's own, so that nobody who dies holds an end of it: its code
and all of its output must be there afterwards.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from kuasar.api.gen.containerd.task.v3.task_pb2 import DeleteRequest, ExecProcessRequest, StartRequest, WaitRequest
from tests.chaos.load import PodLoad
from tests.deadline import eventually
from tests.e2e.gateway import NAMESPACE, Gateway

_LINES = 12
_PAUSE_US = 150_000
_SECONDS = 60.0
_LAST = b"no more\n"
"""What the test itself writes behind the output."""
_SCRIPT = f"i=0; while [ $i -lt {_LINES} ]; do echo $i; i=$((i+1)); usleep {_PAUSE_US}; done; exit "
_PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


@contextmanager
def held_command(load: PodLoad, directory: str, number: int) -> Iterator[None]:
    """Runs in the pod's idle container while the block is gone through; what is wrong with its end goes to the load."""
    exec_id, code = f"held-{number}", number % 250 + 1
    socket, container = load.pod.stack.layout.gateway_socket, load.idle.id
    path = os.path.join(directory, f"{container[:12]}-{exec_id}")
    os.mkfifo(path)
    output = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    lines: list[bytes] = []
    reader = threading.Thread(target=_read, args=(output, lines))
    reader.start()
    try:
        process = {
            "args": ["/bin/sh", "-c", f"{_SCRIPT}{code}"],
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "user": {"uid": 0, "gid": 0},
        }
        spec = AnyMessage(type_url=_PROCESS_TYPE, value=json.dumps(process).encode())
        with Gateway(socket) as gateway:
            request = ExecProcessRequest(id=container, exec_id=exec_id, spec=spec, stdout=path)
            gateway.task.Exec(request, timeout=_SECONDS, metadata=NAMESPACE)
            gateway.task.Start(StartRequest(id=container, exec_id=exec_id), timeout=_SECONDS, metadata=NAMESPACE)
        yield
        seen = eventually(lambda: _end(socket, container, exec_id), "the command's end", until=lambda end: end >= 0)
        load.done["held"] += 1
    finally:
        os.write(output, _LAST)
        reader.join()
        os.close(output)
        os.unlink(path)
    if seen != code or lines != [b"%d\n" % line for line in range(_LINES)]:
        load.wrong.append(f"a command that outlived others ended with {seen} instead of {code} and wrote {lines!r}")


def _read(fifo: int, lines: list[bytes]) -> None:
    with open(fifo, "rb", closefd=False) as file:
        lines += iter(file.readline, _LAST)


def _end(socket: str, container: str, exec_id: str) -> int:
    """Its code; -1 while nobody answers."""
    with Gateway(socket) as gateway:
        try:
            request = WaitRequest(id=container, exec_id=exec_id)
            code = int(gateway.task.Wait(request, timeout=_SECONDS, metadata=NAMESPACE).exit_status)
            gateway.task.Delete(DeleteRequest(id=container, exec_id=exec_id), timeout=_SECONDS, metadata=NAMESPACE)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return -1
        return code
