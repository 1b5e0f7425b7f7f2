#!/usr/bin/env python3
"""Stands in for the ``quark`` program in its sandbox mode: its command line, its configuration, its Task server.

Written from Quark's source (``qvisor/src/runc``), not from our client. What the source refuses or panics on is refused
here: unknown keys of the configuration, unknown words in a specification, a bundle that is not where it looks, calls in
a wrong state. As there is no guest kernel, its containers are processes of this one in namespaces of their own, with
the root file systems that Quark's kernel would see: whoever mounts them wrong is found out.

Every call is appended as a line of JSON to the file that ``STANDIN_JOURNAL`` names. ``STANDIN_FAULTS`` is a JSON object
that makes things go wrong, by method of the Task API, or ``sandbox`` for the command: ``fail`` (says no), ``hang``,
``die`` (in the middle of the call), ``garble`` (no ttrpc).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kuasar.api.gen.containerd.task.v2 import task_pb2 as task
from kuasar.api.gen.containerd.types import task_pb2 as types
from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response, Status
from tests.standins import quark_containers as containers

VERSION = "0.6.0"
CONFIG_FILE = "/etc/quark/config.json"
LOG_FILE = "/var/log/quark/quark.log"
_NAMES = """
DebugLevel KernelMemSize LogType LogLevel CudaMemType UringIO UringFixedFile EnableAIO PrintException
KernelPagetable PerfDebug UringStatx FileBufWrite MmapRead AsyncAccept EnableRDMA RDMAPort PerSandboxLog
ReserveCpuCount ShimMode EnableInotify ReaddirCache HiberODirect DisableCgroup CopyDataWithPf TlbShootdownWait
Realtime EnableIOBuf EnableTsot CCMode
"""
KEYS = frozenset(_NAMES.split())
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_NOT_FOUND, _UNKNOWN, _UNIMPLEMENTED = 5, 2, 12


class Refused(Exception):
    """An answer that is no."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


@dataclass
class Process:
    """An init or an exec."""

    spec: dict[str, Any]
    streams: tuple[str, str, str]
    started: containers.Running | None = None
    fds: list[int] = field(default_factory=list)
    """Its opened streams, until it is started."""
    exit_status: int = -1
    ended: threading.Event = field(default_factory=threading.Event)
    exited_at: float = 0.0


@dataclass
class Container:
    """One container and its execs."""

    id: str
    init: Process
    execs: dict[str, Process] = field(default_factory=dict)

    def process(self, exec_id: str) -> Process:
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise Refused(_UNKNOWN, 'Common("can not find the exec by id")')
        return self.execs[exec_id]


class Tasks:
    """The Task service of a sandbox; the state rules of ``shim_task.rs`` and ``container.rs``."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._containers: dict[str, Container] = {}
        self._lock = threading.Lock()
        self.methods: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Create": (task.CreateTaskRequest, self.create),
            "Start": (task.StartRequest, self.start),
            "Exec": (task.ExecProcessRequest, self.exec),
            "Wait": (task.WaitRequest, self.wait),
            "Kill": (task.KillRequest, self.kill),
            "Delete": (task.DeleteRequest, self.delete),
            "State": (task.StateRequest, self.state),
        }

    def _find(self, container_id: str) -> Container:
        if container_id not in self._containers:
            raise Refused(_NOT_FOUND, f"can not find container by id {container_id}")
        return self._containers[container_id]

    def create(self, request: task.CreateTaskRequest) -> Message:
        with self._lock:
            if request.id in self._containers:
                raise Refused(_UNKNOWN, f"container with id {request.id} already exists")
            if request.rootfs:
                raise Refused(_UNKNOWN, "the stand-in mounts no root file systems")
            if request.terminal:
                raise Refused(_UNKNOWN, "the stand-in has no terminals")
            bundle = f"/{request.id}"  # the one that was given is not looked at in sandbox mode
            spec = containers.load_spec(f"{bundle}/config.json")
            if spec["root"]["path"] != "rootfs" or not os.listdir(f"{bundle}/rootfs"):
                raise Refused(_UNKNOWN, f"{bundle}/rootfs: empty or elsewhere")
            init = Process(spec, (request.stdin, request.stdout, request.stderr))
            init.fds = containers.open_streams(init.streams)
            self._containers[request.id] = Container(request.id, init)
        return task.CreateTaskResponse(pid=self._pid)

    def start(self, request: task.StartRequest) -> Message:
        with self._lock:
            container = self._find(request.id)
            process = container.process(request.exec_id)
            if process.started or process.ended.is_set():
                raise Refused(_UNKNOWN, f"cannot start container {request.id} in state Running")
            if request.exec_id:
                if container.init.started is None or container.init.ended.is_set():
                    raise Refused(_UNKNOWN, f"container {request.id} does not run")
                process.fds = containers.open_streams(process.streams)
                process.started = containers.run_in(container.init.started, process.spec, process.fds)
            else:
                process.started = containers.run_init(f"/{request.id}/rootfs", process.spec, process.fds)
            for fd in process.fds:
                os.close(fd)
            process.fds = []
            threading.Thread(target=_await_end, args=[process], daemon=True).start()
        return task.StartResponse(pid=process.started.number if request.exec_id else self._pid)

    def exec(self, request: task.ExecProcessRequest) -> Message:
        with self._lock:
            container = self._find(request.id)
            spec = containers.check_process(json.loads(request.spec.value))
            container.execs[request.exec_id] = Process(spec, (request.stdin, request.stdout, request.stderr))
        return Empty()

    def wait(self, request: task.WaitRequest) -> Message:
        with self._lock:
            process = self._find(request.id).process(request.exec_id)
        process.ended.wait()
        answer = task.WaitResponse(exit_status=process.exit_status)
        answer.exited_at.FromNanoseconds(int(process.exited_at * 1e9))
        return answer

    def kill(self, request: task.KillRequest) -> Message:
        with self._lock:
            container = self._find(request.id)
            process = container.process(request.exec_id)
            if container.init.ended.is_set() or process.ended.is_set():
                raise Refused(_NOT_FOUND, f"container {request.id} exit already")
            if process.started is None:
                raise Refused(_UNKNOWN, "no such process")
            process.started.signal(request.signal)
        return Empty()

    def delete(self, request: task.DeleteRequest) -> Message:
        with self._lock:
            container = self._find(request.id)
            process = container.process(request.exec_id)
            for fd in process.fds:
                os.close(fd)
            process.fds = []
            if not process.ended.is_set():
                raise Refused(_UNKNOWN, 'Common("failed to get exit status from container")')
            if request.exec_id:
                del container.execs[request.exec_id]
            else:
                del self._containers[request.id]
        return task.DeleteResponse(pid=self._pid, exit_status=process.exit_status)

    def state(self, request: task.StateRequest) -> Message:
        with self._lock:
            process = self._find(request.id).process(request.exec_id)
        status = types.STOPPED if process.ended.is_set() else types.RUNNING if process.started else types.CREATED
        return task.StateResponse(id=request.id, pid=123, status=status)


def _await_end(process: Process) -> None:
    assert process.started is not None
    process.exit_status = process.started.wait()
    process.exited_at = time.time()
    process.ended.set()


class Server:
    """The Task server: each connection has a thread, and so has each call of it."""

    def __init__(self, listener: socket.socket, tasks: Tasks, journal: str, faults: dict[str, str]) -> None:
        self._listener = listener
        self._tasks = tasks
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._faults = faults

    def serve(self) -> None:
        while True:
            channel, _ = self._listener.accept()
            threading.Thread(target=self._connection, args=[channel], daemon=True).start()

    def _connection(self, channel: socket.socket) -> None:
        with channel:
            lock = threading.Lock()
            last = -1
            while header := _exactly(channel, _HEADER.size):
                length, stream, kind, _ = _HEADER.unpack(header)
                if kind != _REQUEST or stream % 2 == 0 or stream <= last or length > 4 << 20:
                    return
                last = stream
                request = Request.FromString(_exactly(channel, length))
                threading.Thread(target=self._call, args=[channel, lock, stream, request], daemon=True).start()

    def _call(self, channel: socket.socket, lock: threading.Lock, stream: int, request: Request) -> None:
        response = Response()
        try:
            response.payload = self._answer(channel, request).SerializeToString()
        except Refused as exc:
            response.status.CopyFrom(Status(code=exc.code, message=str(exc)))
        except Exception as exc:  # what the source panics on ends a call, not the server
            response.status.CopyFrom(Status(code=_UNKNOWN, message=f"panicked: {exc}"))
        data = response.SerializeToString()
        with lock:
            try:
                channel.sendall(_HEADER.pack(len(data), stream, _RESPONSE, 0) + data)
            except OSError:
                return

    def _answer(self, channel: socket.socket, request: Request) -> Message:
        if request.service != "containerd.task.v2.Task" or request.method not in self._tasks.methods:
            raise Refused(_UNIMPLEMENTED, f"/{request.service}/{request.method} is not supported")
        kind, method = self._tasks.methods[request.method]
        message = kind.FromString(request.payload)
        line = json.dumps({"call": request.method, "request": str(message)})
        os.write(self._journal, line.encode() + b"\n")
        fault = self._faults.get(request.method, "")
        if fault == "fail":
            raise Refused(_UNKNOWN, 'Common("told to fail by the test")')
        if fault == "hang":
            threading.Event().wait()
        if fault == "garble":
            channel.sendall(b"\xff" * 32)
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return method(message)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            chunk = channel.recv(size - len(data))
        except OSError:
            return b""
        if not chunk:
            return b""
        data += chunk
    return data


def check_config() -> None:
    """Quark's own configuration: all keys but one are needed, none is unknown to the sandbox mode."""
    with open(CONFIG_FILE, encoding="utf-8") as file:
        config = json.load(file)
    missing = sorted(KEYS - set(config))
    if missing:
        raise SystemExit(f"configuration wrong format: missing field `{missing[0]}`")
    if config["ShimMode"] or not config.get("Sandboxed"):
        raise SystemExit("panicked: the sandbox mode needs Sandboxed and not ShimMode")
    with open(LOG_FILE, "a", encoding="utf-8"):
        pass


def sandbox(root: str, sandbox_id: str, task_socket: str, pid_file: str) -> int:
    """``quark sandbox``: the child is the sandbox and stays, the parent tells its number and ends."""
    faults = json.loads(os.environ.get("STANDIN_FAULTS", "{}"))
    fault = faults.get("sandbox", "")
    if fault == "fail":
        raise SystemExit("the error is Common(told to fail by the test)")
    if fault == "hang":
        threading.Event().wait()
    spec = containers.load_spec(f"{root}/config.json")
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_read)
        os.setsid()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(task_socket)
        listener.listen(128)
        server = Server(listener, Tasks(os.getpid()), os.environ["STANDIN_JOURNAL"], faults)
        containers.make_root(root, sandbox_id, spec)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(f"\0qvisor-sandbox.{sandbox_id}")
        os.write(ready_write, b"r")
        os.close(ready_write)
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        server.serve()
    os.close(ready_write)
    if os.read(ready_read, 1) != b"r":
        raise SystemExit("the error is: the sandbox process has ended")
    with open(pid_file, "w", encoding="ascii") as file:
        file.write(str(pid))
    return 0


def main(argv: list[str]) -> int:
    """The program."""
    if argv == ["--version"]:
        print(f"qvisor {os.environ.get('STANDIN_VERSION', VERSION)}")
        return 0
    parser = argparse.ArgumentParser(prog="qvisor", allow_abbrev=False)
    parser.add_argument("--root", "-r", required=True)
    parser.add_argument("--log")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("sandbox", allow_abbrev=False)
    verb.add_argument("--id", required=True)
    verb.add_argument("--task-socket", required=True)
    verb.add_argument("--pid-file", required=True)
    options = parser.parse_args(argv)
    check_config()
    return sandbox(options.root, options.id, options.task_socket, options.pid_file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
