"""The one place where our errors become gRPC codes. As numbers: ttrpc needs them before gRPC is there, which loads
slowly."""

from __future__ import annotations

from enum import IntEnum

from kuasar.core import errors


class Code(IntEnum):
    """The codes of gRPC that we answer with (google/rpc/code.proto)."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


_CODES: dict[str, Code] = {
    errors.Internal.kind: Code.INTERNAL,
    errors.InvalidArgument.kind: Code.INVALID_ARGUMENT,
    errors.NotFound.kind: Code.NOT_FOUND,
    errors.AlreadyExists.kind: Code.ALREADY_EXISTS,
    errors.WrongState.kind: Code.FAILED_PRECONDITION,
    errors.Unavailable.kind: Code.UNAVAILABLE,
    errors.DeadlineExceeded.kind: Code.DEADLINE_EXCEEDED,
    errors.Unimplemented.kind: Code.UNIMPLEMENTED,
    errors.ResourceExhausted.kind: Code.RESOURCE_EXHAUSTED,
    errors.PermissionDenied.kind: Code.PERMISSION_DENIED,
    # containerd reports what a runtime said as UNKNOWN: the call was right, the engine failed.
    errors.BackendFailed.kind: Code.UNKNOWN,
}


def code_of(error: errors.KuasarError) -> Code:
    """The gRPC code of ``error``; every kind of the tree has one."""
    return _CODES[error.kind]
