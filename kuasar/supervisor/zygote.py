"""The zygote: a warm, single-threaded Python that becomes a worker, an agent, the gateway or a program in milliseconds.

Started by supervisord, ended with it (parent death signal). It owns one listening socket (0600, in a 0700 directory)
and nothing else: killing it harms nobody, the next one is there after 0.2 s, and until then requesters start programs
the slow way. Workers and gateway are cloned with CLONE_PARENT, so they are supervisord's own children and only
supervisord may ask for them; agents get new namespaces and outlive everybody (SIGCHLD is ignored here: the kernel reaps
them), and so do the programs of a sandbox (``program.py``), which are executed in its cgroup.

The protocol is in ``zygote_wire.py``. A request that is malformed, too large, or from another user is answered with the
reason and forgotten. The configuration is parsed once, here; workers get the parsed object.

Why no threads: a clone has only the thread that called it; locks held by others would stay locked in it for ever.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from kuasar.core import failpoints, log
from kuasar.core.config import Config, ConfigError, load
from kuasar.core.engines import BACKEND_MODULES
from kuasar.core.errors import InvalidArgument, KuasarError, PermissionDenied, Unavailable
from kuasar.core.failpoints import failpoint
from kuasar.supervisor import zygote_wire
from kuasar.supervisor.clone import (
    CLONE_PARENT,
    ProcessTitle,
    become_own_process,
    clone,
    set_parent_death_signal,
    threads_of_this_process,
)

ANNOUNCEMENT = b"<!--XSUPERVISOR:BEGIN-->kuasar-zygote ready<!--XSUPERVISOR:END-->\n"
"""Written to standard output once the socket listens; supervisord makes a communication event of it."""
COMMIT_SECONDS = 10.0
"""How long a clone waits for its go byte; a requester that is gone is noticed at once by end of file."""
_REQUEST_SECONDS = 2.0
_MAX_CONNECTIONS = 256
"""That have not sent their request yet."""
_BACKLOG = 1024
_EXIT_FAILED = 70  # EX_SOFTWARE
_PEER = struct.Struct("3i")  # pid, uid, gid
_ALWAYS_PRELOADED = ("msgpack", "zmq")


@dataclass(frozen=True)
class Kind:
    """What the clones of one ``kind`` of request are."""

    run: Callable[[dict[str, Any], Config], int]
    """Called in the clone; its result is the exit code."""
    descriptors: range
    """How many the request may bring."""
    arrange: Callable[[Sequence[int], int], list[int]]
    """From them and one of /dev/null to what becomes 0, 1, 2 …"""
    child_of_requester: bool = False
    """CLONE_PARENT and a parent death signal: only our own parent may ask for these, and they get no namespaces."""


def _run_worker(args: dict[str, Any], config: Config) -> int:
    from kuasar.workers.main import run

    return run(args, config)


def _run_agent(args: dict[str, Any], _: Config) -> int:
    from kuasar.agent.main import run

    return run(args, 3)


def _run_program(args: dict[str, Any], _: Config) -> int:
    from kuasar.supervisor.program import run

    run(args)


def _run_gateway(_: dict[str, Any], config: Config) -> int:
    from kuasar.gateway.main import main

    # It reads the configuration as it is now: an operator restarts the gateway to have a change noticed.
    return main(["--config", config.path] if config.path else [])


WORKER = Kind(_run_worker, range(3, 4), lambda fds, _: list(fds), child_of_requester=True)
AGENT = Kind(_run_agent, range(2, 3), lambda fds, null: [null, fds[1], fds[1], fds[0]])
GATEWAY = Kind(_run_gateway, range(3, 4), lambda fds, _: list(fds), child_of_requester=True)
PROGRAM = Kind(_run_program, range(1, zygote_wire.MAX_DESCRIPTORS + 1), lambda fds, null: [null, fds[0], *fds])
KINDS: Mapping[str, Kind] = {"worker": WORKER, "agent": AGENT, "gateway": GATEWAY, "program": PROGRAM}
_MAINS = ("kuasar.workers.main", "kuasar.agent.main", "kuasar.gateway.main", "kuasar.supervisor.program")
# Of CPython's allocator for small objects (Objects/obmalloc.c) and of its bytes objects.
_POOL_BYTES, _POOL_HEADER, _LARGEST_SMALL_OBJECT, _BYTES_OVERHEAD = 16384, 48, 512, 33
_MOST_FILLED_BYTES = 1 << 20
_ENGINES = tuple(BACKEND_MODULES.values())


@dataclass
class _Connection:
    socket: socket.socket
    pid: int
    until: float


class Zygote:
    """The server. One per process; :meth:`serve` does not return."""

    def __init__(self, config: Config, kinds: Mapping[str, Kind] = KINDS) -> None:
        self._config = config
        self._kinds = kinds
        self._title = ProcessTitle()
        self._poll = select.poll()
        self._connections: dict[int, _Connection] = {}
        self._listener = _listen(config.supervisor.zygote)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def serve(self, announce: bool = False) -> NoReturn:
        """Answer requests until killed; ``announce`` tells supervisord that the socket listens."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        gc.collect()
        self._filling = _fill_holes()
        gc.freeze()  # what is warm now is never traversed again, so its pages stay shared
        self._poll.register(self._listener, select.POLLIN)
        log.info("zygote is listening", socket=self._config.supervisor.zygote)
        if announce:
            os.write(1, ANNOUNCEMENT)
        while True:
            for fd, _ in self._poll.poll(_REQUEST_SECONDS * 1000 if self._connections else None):
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._answer(self._connections[fd])
            self._drop_silent()

    def _accept(self) -> None:
        with suppress(OSError):  # the requester is gone again, or we are short of descriptors
            peer, _ = self._listener.accept()
            pid, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            peer.setblocking(False)
            if uid != os.geteuid():
                log.warning("refused a request of another user", uid=uid, pid=pid)
                self._refuse(peer, PermissionDenied(f"only user {os.geteuid()} may ask, not {uid}"))
            elif len(self._connections) >= _MAX_CONNECTIONS:
                self._refuse(peer, Unavailable(f"{_MAX_CONNECTIONS} connections wait already"))
            else:
                self._connections[peer.fileno()] = _Connection(peer, pid, time.monotonic() + _REQUEST_SECONDS)
                self._poll.register(peer, select.POLLIN)

    def _refuse(self, peer: socket.socket, error: KuasarError) -> None:
        with peer, suppress(OSError):
            peer.send(zygote_wire.encode_error(error.message))

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for connection in [known for known in self._connections.values() if known.until < now]:
            self._forget(connection)
            self._refuse(connection.socket, InvalidArgument(f"no request within {_REQUEST_SECONDS:g} s"))

    def _forget(self, connection: _Connection) -> None:
        self._poll.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]

    def _answer(self, connection: _Connection) -> None:
        """Read one request and make its process; in the clone this does not return."""
        self._forget(connection)
        fds: list[int] = []
        with connection.socket:
            try:
                request = _receive(connection.socket, fds)
                failpoint("zygote.request")
                pid = self._fork(request, fds, connection)
                failpoint("zygote.forked")
                connection.socket.send(zygote_wire.encode_pid(pid))
                log.debug("forked", pid=pid, title=request.title)
            except KuasarError as exc:
                log.warning("refused a request", error=exc, peer=connection.pid)
                self._refuse(connection.socket, exc)
            except OSError as exc:  # no request at all, a requester that is gone, or no process to be had
                log.warning("could not serve a request", error=exc, peer=connection.pid)
                self._refuse(connection.socket, Unavailable(str(exc)))
            finally:
                for fd in fds:
                    os.close(fd)

    def _fork(self, request: zygote_wire.Request, fds: list[int], connection: _Connection) -> int:
        kind = self._kinds.get(request.kind)
        if kind is None:
            raise InvalidArgument(f"kind: {request.kind!r} is none of {', '.join(sorted(self._kinds))}", field="kind")
        if len(fds) not in kind.descriptors:
            raise InvalidArgument(f"{request.kind}: {kind.descriptors.start} descriptors are needed, got {len(fds)}")
        if kind.child_of_requester and request.flags:
            raise InvalidArgument(f"flags: a {request.kind} gets no namespaces", field="flags")
        if kind.child_of_requester and connection.pid != os.getppid():
            raise PermissionDenied(
                f"a {request.kind} is made for process {os.getppid()} only, not for {connection.pid}"
            )
        threads = threads_of_this_process()
        if threads != 1:
            raise Unavailable(f"the zygote has {threads} threads and must not fork")
        pid = clone(request.flags | (CLONE_PARENT if kind.child_of_requester else 0))
        if pid == 0:
            self._be(kind, request, fds, connection)
        return pid

    def _be(self, kind: Kind, request: zygote_wire.Request, fds: list[int], connection: _Connection) -> NoReturn:
        """The clone: waits for its go byte, then is the worker or agent until it exits."""
        code = _EXIT_FAILED
        try:
            self._listener.detach()
            for other in self._connections.values():
                other.socket.detach()
            connection.socket.settimeout(COMMIT_SECONDS)
            with suppress(OSError):
                if connection.socket.recv(1) == zygote_wire.GO:
                    code = -1
            connection.socket.detach()
            if code != -1:
                os._exit(_EXIT_FAILED)
            if kind.child_of_requester:
                set_parent_death_signal(connection.pid)
            become_own_process(kind.arrange(fds, self._null))
            self._title.set(request.title)
            code = kind.run(request.args, self._config)
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:
            code = _EXIT_FAILED
            traceback.print_exc()
        finally:
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)


def _receive(connection: socket.socket, fds: list[int]) -> zygote_wire.Request:
    """The request that waits on ``connection``; its descriptors are added to ``fds``, which the caller closes."""
    data, received, flags, _ = socket.recv_fds(
        connection, zygote_wire.MAX_REQUEST_BYTES + 1, zygote_wire.MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    fds.extend(received)
    if flags & socket.MSG_CTRUNC:
        raise InvalidArgument(f"more than {zygote_wire.MAX_DESCRIPTORS} descriptors")
    if not data:
        raise ConnectionResetError("the requester closed the connection")
    return zygote_wire.decode_request(data)


def _listen(path: str) -> socket.socket:
    """Bind ``path``, replacing what a dead zygote left there. Raises :class:`Unavailable` where a live one listens."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(os.stat(directory).st_mode)
    if mode & 0o077:
        raise PermissionDenied(
            f"supervisor.zygote: {directory} has mode {mode:04o}, but only its owner may enter (0700)"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise Unavailable(f"supervisor.zygote: another zygote listens on {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def preload(modules: Sequence[str]) -> None:
    """Import ``modules``; one that cannot be is skipped with a line in the log.

    Raises :class:`Unavailable` if one starts a thread: that cannot be undone.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as exc:  # somebody else's code: whatever it raises, the others are still worth having
            log.warning("not preloaded", module=name, error=exc)
        if threads_of_this_process() != 1:
            raise Unavailable(f"supervisor.preload: importing {name} starts a thread; take it out of the list")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m kuasar.supervisor.zygote --config FILE``."""
    parser = argparse.ArgumentParser(prog="kuasar-zygote", description="forks workers and agents for supervisord")
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--announce", action="store_true", help="tell supervisord on standard output when ready")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
        return run(config, announce=options.announce)
    except (ConfigError, KuasarError) as exc:
        print(f"kuasar-zygote: {exc}", file=sys.stderr)
        return 1


def run(config: Config, kinds: Mapping[str, Kind] = KINDS, announce: bool = False) -> NoReturn:
    """Preload, listen and serve."""
    log.configure(config.log_level, form=config.log_format, process="zygote")
    failpoints.configure(config.failpoints_dir)
    set_parent_death_signal(os.getppid())
    preload((*_ALWAYS_PRELOADED, *_MAINS, *_ENGINES, *config.supervisor.preload))
    Zygote(config, kinds).serve(announce)


def _fill_holes() -> list[bytes]:
    """Objects that occupy the free places in Python's half-used memory pools; to be kept for ever.

    Else the first objects of every clone would land in those places, and each would make a whole shared page the
    clone's own. So they lie densely in fresh pools: 0.4 MiB less per clone, for at most a few MiB here.
    """
    filling: list[bytes] = []
    for size in range(48, _LARGEST_SMALL_OBJECT + 1, 16):
        for _ in range(_MOST_FILLED_BYTES // size):
            filling.append(bytes(size - _BYTES_OVERHEAD))
            if id(filling[-1]) % _POOL_BYTES == _POOL_HEADER:
                break  # the first place of a fresh pool: this size has no holes left
    return filling


if __name__ == "__main__":
    sys.exit(main())
