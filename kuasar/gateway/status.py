"""The one place where our errors become gRPC codes."""

from __future__ import annotations

import grpc

from kuasar.core import errors

_CODES: dict[str, grpc.StatusCode] = {
    errors.Internal.kind: grpc.StatusCode.INTERNAL,
    errors.InvalidArgument.kind: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound.kind: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists.kind: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState.kind: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unavailable.kind: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded.kind: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unimplemented.kind: grpc.StatusCode.UNIMPLEMENTED,
    errors.ResourceExhausted.kind: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PermissionDenied.kind: grpc.StatusCode.PERMISSION_DENIED,
    # containerd reports what a runtime said as UNKNOWN: the call was right, the engine failed.
    errors.BackendFailed.kind: grpc.StatusCode.UNKNOWN,
}


def code_of(error: errors.KuasarError) -> grpc.StatusCode:
    """The gRPC code of ``error``; every kind of the tree has one."""
    return _CODES[error.kind]
