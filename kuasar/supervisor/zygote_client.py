"""Asks the zygote for a process. Synchronous and small: supervisord's plugin and the workers use it.

The handle owns one connection. Until :meth:`Clone.commit` the new process does nothing but wait, so that its pid can
be recorded and put into cgroups first; when the requester dies or gives up, it exits without having run anything.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from kuasar.core.errors import Unavailable
from kuasar.supervisor import zygote_wire


class Clone:
    """A process that waits to be let go. States: waiting -> committed | aborted; leaving the block aborts."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        """Its number in this pid namespace."""
        self._connection = connection
        self._committed = False

    def commit(self) -> None:
        """Let it run. Raises :class:`Unavailable` if it died or was aborted before; repeating is harmless."""
        if self._committed:
            return
        try:
            self._connection.send(zygote_wire.GO)
        except OSError as exc:
            raise Unavailable(f"process {self.pid} died before it was let go: {exc.strerror}") from exc
        finally:
            self._connection.close()
        self._committed = True

    def abort(self) -> None:
        """Make it exit instead; harmless after :meth:`commit`."""
        self._connection.close()

    def __enter__(self) -> Clone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def fork(socket_path: str, request: Mapping[str, Any], fds: Sequence[int], timeout: float) -> Clone:
    """Have the zygote at ``socket_path`` make a process; it gets copies of ``fds``, the caller keeps its own.

    ``timeout`` seconds bound the whole exchange. Raises :class:`Unavailable` when the zygote is away, too slow, or says
    no (the message has its words): fall back to starting a program. ``request`` is checked before anything is sent
    (:class:`kuasar.core.errors.InvalidArgument`).
    """
    data = zygote_wire.encode_request(request)
    deadline = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(timeout)
        connection.connect(socket_path)
        socket.send_fds(connection, [data], fds)
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        answer = zygote_wire.decode_reply(connection.recv(8192))
    except TimeoutError as exc:
        connection.close()
        raise Unavailable(f"the zygote at {socket_path} did not answer within {timeout:g} s", hung=True) from exc
    except OSError as exc:
        connection.close()
        raise Unavailable(f"the zygote at {socket_path} is away: {exc.strerror}") from exc
    except BaseException:
        with suppress(OSError):
            connection.close()
        raise
    if isinstance(answer, str):
        connection.close()
        raise Unavailable(f"the zygote at {socket_path} refused: {answer}")
    return Clone(answer, connection)
