"""The tree of errors, named after what the caller can do about them, and their form on the wire.

Every process of the tree raises these; they cross the bus and the agent channel as ``{"kind", "message", "data"}`` and
come out as the same class on the other side. The gateway alone translates them to gRPC codes
(``kuasar/gateway/errors.py``). A message says what failed, on what, then a hint.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KuasarError(Exception):
    """Base of all errors that may cross a process border; ``data`` holds plain msgpack values."""

    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = data

    def to_wire(self) -> dict[str, Any]:
        """The form that travels: kind, message and data."""
        return {"kind": self.kind, "message": self.message, "data": self.data}


class Internal(KuasarError):
    """A defect of ours: something happened that no state allows."""

    kind = "internal"


class InvalidArgument(KuasarError):
    """The request is wrong and will stay wrong; ``field`` names the part of it."""

    kind = "invalid_argument"

    def __init__(self, message: str, *, field: str = "", **data: Any) -> None:
        super().__init__(message, field=field, **data)
        self.field = field


class NotFound(KuasarError):
    """The named thing does not exist (any more)."""

    kind = "not_found"


class AlreadyExists(KuasarError):
    """A thing of this name exists already."""

    kind = "already_exists"


class WrongState(KuasarError):
    """The thing exists but its state does not allow the call: ``seen`` and ``needed`` name both."""

    kind = "wrong_state"

    def __init__(self, message: str, *, seen: str = "", needed: str = "", **data: Any) -> None:
        super().__init__(message, seen=seen, needed=needed, **data)
        self.seen = seen
        self.needed = needed


class Unavailable(KuasarError):
    """The peer is gone or not there yet; the same call may succeed when repeated."""

    kind = "unavailable"


class DeadlineExceeded(KuasarError):
    """The call did not finish in its time; whether it will have an effect is unknown."""

    kind = "deadline_exceeded"


class Unimplemented(KuasarError):
    """The engine lacks a capability; both are named."""

    kind = "unimplemented"

    def __init__(self, message: str, *, engine: str = "", capability: str = "", **data: Any) -> None:
        super().__init__(message, engine=engine, capability=capability, **data)
        self.engine = engine
        self.capability = capability


class ResourceExhausted(KuasarError):
    """A limit was hit: message size, requests in flight, descriptors, disk."""

    kind = "resource_exhausted"


class PermissionDenied(KuasarError):
    """The peer may not do this."""

    kind = "permission_denied"


class BackendFailed(KuasarError):
    """The engine (runc, a VMM, a Wasm runtime) said no or died; the message carries its own words."""

    kind = "backend_failed"


_KINDS: dict[str, type[KuasarError]] = {
    cls.kind: cls
    for cls in (
        Internal,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        WrongState,
        Unavailable,
        DeadlineExceeded,
        Unimplemented,
        ResourceExhausted,
        PermissionDenied,
        BackendFailed,
    )
}


def from_wire(wire: Any) -> KuasarError:
    """Total decoder of :meth:`KuasarError.to_wire`: anything unknown becomes :class:`Internal` that shows it."""
    if not isinstance(wire, dict):
        return Internal(f"malformed error on the wire: {wire!r:.200}")
    cls = _KINDS.get(str(wire.get("kind")))
    message, data = wire.get("message"), wire.get("data")
    if cls is None or not isinstance(message, str) or not isinstance(data, dict):
        return Internal(f"malformed error on the wire: {wire!r:.200}")
    error = cls(message)
    error.data = {str(k): v for k, v in data.items()}
    for name in ("field", "seen", "needed", "engine", "capability"):
        if hasattr(error, name) and name in error.data:
            setattr(error, name, error.data[name])
    return error


def wrap(exc: BaseException, doing: str) -> KuasarError:
    """Any exception as one of ours; ours pass unchanged, an ``OSError`` keeps its errno in words and data."""
    if isinstance(exc, KuasarError):
        return exc
    if isinstance(exc, OSError):
        what = f"{doing}: {exc.strerror or exc}" + (f" ({exc.filename})" if exc.filename else "")
        return BackendFailed(what, errno=exc.errno)
    return Internal(f"{doing}: {type(exc).__name__}: {exc}")
