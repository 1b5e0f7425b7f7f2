"""The node that the commands look at: its configuration, its gateway, and its directories where no gateway answers.

Lives as long as one command. The connection to the gateway is made when it is first needed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kuasar.cli.ctl.failures import Absent, Away, Failed
from kuasar.cli.ctl.model import Sandbox, from_gateway, from_record
from kuasar.cli.ctl.select import Named, select
from kuasar.core import records, tombstones
from kuasar.core.config import Config

if TYPE_CHECKING:
    from kuasar.api.gen.kuasar.admin.v1 import admin_pb2
    from kuasar.api.gen.kuasar.admin.v1.admin_pb2_grpc import AdminStub

CALL_SECONDS = 10.0
ENGINES_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """All sandboxes, and how we know."""

    sandboxes: list[Sandbox]
    source: str
    """``gateway`` or ``directories``."""
    note: str
    """What the reader must know about that; empty: nothing."""


def listener_pid(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """The process that serves a unix socket. Raises ``OSError`` if none does."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")


class Node:
    """One node; a context manager that ends its connection."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stack = ExitStack()
        self._stub: AdminStub | None = None

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- the gateway ---------------------------------------------------------------------------------------------------

    def why_no_gateway(self) -> str:
        """Why the gateway cannot be asked; empty if it can."""
        path = self.config.gateway.socket
        try:
            listener_pid(path)
        except OSError as exc:
            return f"the gateway does not answer at {path}: {exc.strerror or exc}"
        return ""

    def admin(self) -> AdminStub:
        """The gateway's admin service. Raises :class:`Away`."""
        if self._stub is None:
            why = self.why_no_gateway()
            if why:
                raise Away(why)
            import grpc

            from kuasar.api.gen.kuasar.admin.v1.admin_pb2_grpc import AdminStub

            channel = self._stack.enter_context(grpc.insecure_channel(f"unix:{self.config.gateway.socket}"))
            self._stub = AdminStub(channel)
        return self._stub

    def call(self, method: Callable[..., T], request: Any, seconds: float = CALL_SECONDS) -> T:
        """Ask the gateway; its refusals become ours."""
        import grpc

        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as exc:
            raise _failure(exc) from exc

    def watch(self, sandbox: str) -> Iterator[admin_pb2.Event]:
        """Events, until the gateway ends; then :class:`Away` is raised."""
        from kuasar.api.gen.kuasar.admin.v1 import admin_pb2

        stream = self.admin().Watch(admin_pb2.WatchRequest(id=sandbox))
        try:
            yield from self.following(stream)
        finally:
            stream.cancel()

    def following(self, stream: Iterable[T]) -> Iterator[T]:
        """What the gateway sends; its refusals become ours."""
        import grpc

        try:
            yield from stream
        except grpc.RpcError as exc:
            raise _failure(exc) from exc

    # -- sandboxes -----------------------------------------------------------------------------------------------------

    def listing(self) -> Listing:
        """All sandboxes: from the gateway, or from the directories if it does not answer."""
        from kuasar.api.gen.kuasar.admin.v1 import admin_pb2

        try:
            answer = self.call(self.admin().ListSandboxes, admin_pb2.ListSandboxesRequest())
        except Away as exc:
            found = [from_record(summary) for summary in records.read_all(self.config.sandboxes_dir)]
            note = f"{exc.message}; this is what the directories below {self.config.sandboxes_dir} say"
            return Listing(found, "directories", note)
        note = f"restarts are unknown: {answer.supervisord_error}" if answer.supervisord_error else ""
        return Listing([from_gateway(each) for each in answer.sandboxes], "gateway", note)

    def find(self, wanted: str) -> str:
        """The id of the sandbox that ``wanted`` means, by the directories. Raises :class:`Absent` and
        :class:`Ambiguous`."""
        return select(wanted, self.names())

    def find_also_ended(self, wanted: str) -> str:
        """Like :meth:`find`, and also what has ended in the last day. What exists goes first."""
        try:
            return self.find(wanted)
        except Absent:
            ended = (Named(each.sandbox, each.pod) for each in tombstones.read_all(self.config.state_dir))
            return select(wanted, ended, "sandbox, nor has one ended in the last day, named")

    def names(self) -> list[Named]:
        """What can be chosen."""
        found = records.read_all(self.config.sandboxes_dir)
        return [Named(each.id, each.pod_name, each.pod_namespace) for each in found]

    def recorded(self, sandbox: str) -> Sandbox | None:
        """What the record of a sandbox says; None if it has none."""
        summary = records.read(self.config.sandboxes_dir, sandbox)
        return None if summary is None else from_record(summary)

    def tombstone(self, sandbox: str) -> tombstones.Tombstone | None:
        """How it ended, or why its last start failed; None if nothing is known."""
        return tombstones.read(f"{tombstones.directory(self.config.state_dir)}/{sandbox}.json")


def _failure(exc: Any) -> Failed | Absent | Away:
    words = f"the gateway says: {exc.details()}"
    match exc.code().name:
        case "NOT_FOUND":
            return Absent(words)
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED":
            return Away(words)
        case _:
            return Failed(words)
