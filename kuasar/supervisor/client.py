"""The gateway's line to supervisord: adds, removes and looks at workers through the plugin's XML-RPC.

Blocking, for one worker thread. Owns one kept-alive connection (supervisord's loop needs 5 ms to accept a new one),
opened at the first call and again after supervisord was restarted. Every call is harmless to repeat, so a call whose
connection broke is tried once more.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import xmlrpc.client  # the peer is our own supervisord, behind a socket that only we may open
from typing import Any, TypedDict, cast

from kuasar.core.errors import (
    BackendFailed,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    KuasarError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WrongState,
)

DEFAULT_SECONDS = 10.0

# supervisor.xmlrpc.Faults, by what the caller can do (importing supervisor would cost the gateway 40 ms)
_FAULTS: dict[int, type[KuasarError]] = {
    1: Internal,  # UNKNOWN_METHOD: supervisord runs without our plugin
    2: InvalidArgument,  # INCORRECT_PARAMETERS
    3: InvalidArgument,  # BAD_ARGUMENTS
    6: Unavailable,  # SHUTDOWN_STATE
    10: NotFound,  # BAD_NAME
    30: ResourceExhausted,  # FAILED: supervisord's descriptors are used up
    40: Unavailable,  # ABNORMAL_TERMINATION: the worker does not stay up
    50: BackendFailed,  # SPAWN_ERROR
    70: WrongState,  # NOT_RUNNING: an operator has stopped it
    91: Unavailable,  # STILL_RUNNING: the one before is still ending
}


class WorkerState(TypedDict):
    """What supervisord knows of one worker."""

    id: str
    state: str
    """supervisord's word: RUNNING, BACKOFF, STOPPING, STOPPED."""
    pid: int
    """0 when it does not run."""
    restarts: int
    """Starts after a crash, not counting an operator's."""
    stopped_by_operator: bool
    started_by: str
    """``zygote`` or ``exec``."""
    started_at: float
    """Seconds since the epoch; 0 before the first start."""
    last_exit: str
    """How the life before ended, in words; empty if there was none."""
    description: str
    """What it waits for, when it does not run by itself."""
    log: str
    """Path of its log file."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class SupervisorClient:
    """Calls ``kuasar.*`` of the supervisord behind the unix socket ``path``. Not for several threads at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: _UnixConnection | None = None

    def add(self, sandbox: str, timeout: float = DEFAULT_SECONDS) -> int:
        """See to it that ``sandbox`` has a worker and give its pid; repeating is harmless.

        Raises WrongState (an operator has stopped it), Unavailable (supervisord is away or reloading, the worker does
        not stay up or is still ending), BackendFailed (no process to be had), ResourceExhausted (supervisord's
        descriptors are used up), DeadlineExceeded (``timeout`` seconds).
        """
        return cast(int, self._call("addSandbox", (sandbox,), timeout))

    def remove(self, sandbox: str, timeout: float = DEFAULT_SECONDS) -> bool:
        """Have the worker stopped and forgotten; True if it is gone already. Harmless when there is none."""
        return cast(bool, self._call("removeSandbox", (sandbox,), timeout))

    def state(self, sandbox: str, timeout: float = DEFAULT_SECONDS) -> WorkerState:
        """The state of one worker. Raises NotFound when supervisord knows none."""
        return cast(WorkerState, self._call("sandboxState", (sandbox,), timeout))

    def states(self, timeout: float = DEFAULT_SECONDS) -> list[WorkerState]:
        """The states of all workers, sorted by id."""
        return cast("list[WorkerState]", self._call("list", (), timeout))

    def counts(self, timeout: float = DEFAULT_SECONDS) -> dict[str, int]:
        """How many workers there are in each state."""
        return cast("dict[str, int]", self._call("counts", (), timeout))

    def restarts(self, timeout: float = DEFAULT_SECONDS) -> dict[str, int]:
        """How often each worker has been restarted after a crash: cheap, also for hundreds."""
        return {str(sandbox): int(count) for sandbox, count in json.loads(self._call("restarts", (), timeout)).items()}

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, method: str, arguments: tuple[str, ...], timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        body = xmlrpc.client.dumps(arguments, f"kuasar.{method}").encode()
        kept_alive = self._connection is not None
        try:
            try:
                answer = self._post(body, deadline)
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()
                if not kept_alive:
                    raise
                answer = self._post(body, deadline)
        except TimeoutError as exc:
            self.close()
            raise DeadlineExceeded(f"supervisord at {self._path} did not answer {method} within {timeout:g} s") from exc
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise Unavailable(f"supervisord at {self._path} is away: {exc}") from exc
        return self._decode(answer, method)

    def _post(self, body: bytes, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._connection is None:
            self._connection = _UnixConnection(self._path)
        connection = self._connection
        connection.timeout = left
        if connection.sock is not None:
            connection.sock.settimeout(left)
        connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml", "Accept": "text/xml"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP status {response.status} {response.reason}")
        return answer

    def _decode(self, answer: bytes, method: str) -> Any:
        try:
            (value,), _ = xmlrpc.client.loads(answer)
        except xmlrpc.client.Fault as fault:
            kind = _FAULTS.get(fault.faultCode, Internal)
            raise kind(f"supervisord, {method}: {fault.faultString}", fault=fault.faultCode) from None
        except Exception as exc:  # expat's error is no ValueError, and a half answer can break it anywhere
            self.close()
            raise Internal(f"supervisord at {self._path} gave a malformed answer to {method}: {exc}") from exc
        return value
