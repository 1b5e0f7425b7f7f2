"""The keeper: holds duplicates of descriptors under names, so that their holders may die, and does nothing else.

What systemd's descriptor store is to its services: the gateway keeps its listening socket and containerd's task
connections here, the workers their stdio. A descriptor that the keeper holds stays open, with its file position and
whatever lies unread in it, until it is dropped by name; that a holder has gone means nothing.

Started by supervisord. It may die at any moment: its holders notice and put everything again (``keeper_client.py``).
It does *not* end with supervisord, whose death takes all holders along: the keeper of the next supervisord finds the
old one listening, takes everything over from it, and has it exit.

The protocol is in ``keeper_wire.py``. One thread, one poll loop, nothing that blocks; a peer that does not read its
reply is cut off. Limits: names, sizes and descriptors per name there; in all, what RLIMIT_NOFILE allows.

    serving --resign--> resigned (serves its successor only) --done--> exits
       ^------------------------- the successor is gone -----'
"""

from __future__ import annotations

import argparse
import bisect
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from kuasar.core import log
from kuasar.core.config import ConfigError, load
from kuasar.core.errors import (
    InvalidArgument,
    KuasarError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    wrap,
)
from kuasar.core.process import raise_descriptor_limit
from kuasar.supervisor import keeper_client, keeper_wire
from kuasar.supervisor.clone import outlive_parent
from kuasar.supervisor.keeper_wire import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Reply, Request

_BACKLOG = 1024
_SPARE_DESCRIPTORS = 64
"""Never given to holders: our own, and what arrives with a message before it can be refused."""
_MAX_NAMES = 65536
_MAX_ALL_META_BYTES = 64 * 1024 * 1024
_PEER = struct.Struct("3i")  # pid, uid, gid


@dataclass
class Entry:
    """What is kept under one name. The store owns the descriptors."""

    fds: list[int]
    meta: bytes = b""


@dataclass
class Store:
    """Names and what is kept under them. No sockets of its own."""

    budget: int
    """How many descriptors it may hold."""
    entries: dict[str, Entry] = field(default_factory=dict)
    held: int = 0
    meta_bytes: int = 0

    def put(self, name: str, entry: Entry) -> None:
        """Take ``entry`` over, in place of what was there; :class:`ResourceExhausted` means that it was not taken."""
        old = self.entries.get(name)
        held = self.held + len(entry.fds) - (len(old.fds) if old else 0)
        meta_bytes = self.meta_bytes + len(entry.meta) - (len(old.meta) if old else 0)
        if held > self.budget and len(entry.fds) > (len(old.fds) if old else 0):
            raise ResourceExhausted(
                f"{name}: the keeper holds {self.held} descriptors and may hold {self.budget} (its RLIMIT_NOFILE)"
            )
        if meta_bytes > _MAX_ALL_META_BYTES or (old is None and len(self.entries) >= _MAX_NAMES):
            raise ResourceExhausted(
                f"{name}: the keeper holds {len(self.entries)} names with {self.meta_bytes} bytes, which is the limit"
            )
        self.entries[name] = entry
        self.held, self.meta_bytes = held, meta_bytes
        if old is not None:
            _close_all(old.fds)

    def drop(self, name: str) -> None:
        """Close what is kept under ``name``; harmless when there is nothing."""
        entry = self.entries.pop(name, None)
        if entry is not None:
            self.held -= len(entry.fds)
            self.meta_bytes -= len(entry.meta)
            _close_all(entry.fds)

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Those that begin with ``prefix`` and come behind ``after``, in order."""
        names = sorted(name for name in self.entries if name.startswith(prefix))
        return names[bisect.bisect_right(names, after) :] if after else names


class KeeperServer:
    """Listens on ``path`` and serves ``store``. One per process."""

    def __init__(self, path: str, store: Store) -> None:
        """Raises :class:`PermissionDenied` when others may enter the socket's directory."""
        self._path = path
        self._store = store
        self._poll = select.poll()
        self._clients: dict[int, socket.socket] = {}
        self._successor: socket.socket | None = None
        self._finished = False
        self._listener: socket.socket | None = None
        self._listen()

    def serve(self) -> None:
        """Answer requests until a successor has taken over."""
        while not self._finished:
            for fd, _ in self._poll.poll():
                if self._listener is not None and fd == self._listener.fileno():
                    self._accept_client()
                elif fd in self._clients:
                    self._answer(self._clients[fd])

    def _listen(self) -> None:
        self._listener = listen(self._path)
        self._poll.register(self._listener, select.POLLIN)

    def _accept_client(self) -> None:
        assert self._listener is not None
        with suppress(OSError):  # the peer is gone again
            peer, _ = self._listener.accept()
            pid, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            peer.setblocking(False)
            if uid != os.geteuid():
                log.warning("refused a holder of another user", uid=uid, pid=pid)
                _send_last(peer, PermissionDenied(f"only user {os.geteuid()} may ask, not {uid}"))
            elif len(self._clients) + self._store.held >= self._store.budget:
                _send_last(peer, ResourceExhausted(f"the keeper holds {self._store.held} descriptors and can no more"))
            else:
                self._clients[peer.fileno()] = peer
                self._poll.register(peer, select.POLLIN)

    def _forget(self, client: socket.socket) -> None:
        self._poll.unregister(client)
        del self._clients[client.fileno()]
        if client is self._successor:
            log.warning("the successor went away again")
            self._successor = None
            self._listen()
        client.close()

    def _answer(self, client: socket.socket) -> None:
        """Read one request and answer it."""
        fds: list[int] = []
        try:
            data, fds, flags, _ = socket.recv_fds(
                client, MAX_MESSAGE_BYTES + 1, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return  # what was announced belonged to a client that had this number before
        except OSError:
            data, flags = b"", 0
        if not data:
            self._forget(client)
            return
        back: Sequence[int] = ()
        try:
            reply, back = self._carry_out(client, data, fds, flags)
            answer = keeper_wire.encode_reply(reply)
        except KuasarError as exc:
            log.warning("refused a request", error=exc)
            answer = keeper_wire.encode_error(exc)
        finally:
            _close_all(fds)
        try:
            socket.send_fds(client, [answer], back)
        except OSError as exc:
            log.warning("a holder did not take its answer", error=exc)
            self._forget(client)

    def _carry_out(self, client: socket.socket, data: bytes, fds: list[int], flags: int) -> tuple[Reply, Sequence[int]]:
        """Gives the reply and the descriptors that go with it; takes out of ``fds`` what is kept."""
        request = keeper_wire.decode_request(data)
        if flags & socket.MSG_CTRUNC:
            raise ResourceExhausted(f"{request.name}: the descriptors could not all be taken (limit {MAX_DESCRIPTORS})")
        if fds and request.op != "put":
            raise InvalidArgument(f"{request.op}: takes no descriptors, got {len(fds)}", field="fds")
        match request.op:
            case "put":
                self._store.put(request.name, Entry(list(fds), request.meta))
                fds.clear()
            case "get":
                entry = self._store.entries.get(request.name)
                if entry is not None:
                    return Reply(found=True, meta=entry.meta), entry.fds
            case "drop":
                self._store.drop(request.name)
            case "drop_all":
                for name in self._store.names(request.prefix):
                    self._store.drop(name)
            case "list":
                names, more = keeper_wire.page(self._store.names(request.prefix, request.after))
                return Reply(names=names, more=more), ()
            case "accept":
                return self._accept_for(request)
            case "resign":
                self._resign(client)
            case "done":
                if client is not self._successor:
                    raise InvalidArgument("done: only a successor may say so", field="op")
                self._finished = True
        return Reply(), ()

    def _accept_for(self, request: Request) -> tuple[Reply, Sequence[int]]:
        entry = self._store.entries.get(request.listener)
        if entry is None or len(entry.fds) != 1:
            raise NotFound(f"listener: no socket is kept as {request.listener}")
        try:
            with socket.socket(fileno=os.dup(entry.fds[0])) as listener:
                os.set_blocking(listener.fileno(), False)
                accepted = listener.accept()[0].detach()
        except BlockingIOError:
            return Reply(found=False), ()
        except OSError as exc:
            raise wrap(exc, f"accept on {request.listener}") from exc
        os.set_blocking(accepted, False)
        try:
            self._store.put(request.name, Entry([accepted]))
        except BaseException:
            os.close(accepted)
            raise
        return Reply(found=True), [accepted]

    def _resign(self, client: socket.socket) -> None:
        if self._successor is not None:
            raise Unavailable("resign: another successor is taking over")
        log.info("a successor takes over", names=len(self._store.entries))
        self._successor = client
        if self._listener is not None:
            self._poll.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for other in list(self._clients.values()):
            if other is not client:
                self._forget(other)


def listen(path: str) -> socket.socket:
    """Bind ``path``, replacing what lies there: whoever it belonged to is dead or has resigned.

    Raises :class:`PermissionDenied` when anyone but the owner may enter the directory.
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(os.stat(directory).st_mode)
    if mode & 0o077:
        raise PermissionDenied(
            f"supervisor.keeper: {directory} has mode {mode:04o}, but only its owner may enter (0700)"
        )
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def inherit(path: str, store: Store) -> keeper_client.Keeper | None:
    """Fill ``store`` from the keeper that listens at ``path``; None if there is none.

    It serves nobody else from then on, so nothing is missed; say ``done`` once the successor listens. Raises
    :class:`Unavailable` when it does not answer.
    """
    old = keeper_client.Keeper(path)
    if not _is_listening(path):
        return None
    old.resign()
    for name in old.list(""):
        kept = old.get(name)
        if kept is not None:
            store.put(name, Entry(*kept))
    log.info("took over from another keeper", names=len(store.entries), descriptors=store.held)
    return old


def _is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _send_last(peer: socket.socket, error: KuasarError) -> None:
    with peer, suppress(OSError):
        peer.send(keeper_wire.encode_error(error))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def budget() -> int:
    """How many descriptors holders may have kept; the soft limit is raised to the hard one first."""
    return raise_descriptor_limit() - _SPARE_DESCRIPTORS - MAX_DESCRIPTORS


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m kuasar.supervisor.keeper --config FILE``. Exits with 0 once a successor has taken over."""
    parser = argparse.ArgumentParser(prog="kuasar-keeper", description="holds descriptors for gateway and workers")
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
        log.configure(config.log_level, form=config.log_format, process="keeper")
        outlive_parent()
        path = config.supervisor.keeper
        store = Store(budget())
        old = inherit(path, store)
        server = KeeperServer(path, store)
        if old is not None:
            old.done()
        log.info("keeper is listening", socket=path, budget=store.budget)
        server.serve()
    except (ConfigError, KuasarError) as exc:
        print(f"kuasar-keeper: {exc}", file=sys.stderr)
        return 1
    log.info("the successor has everything, leaving")
    return 0


if __name__ == "__main__":
    sys.exit(main())
