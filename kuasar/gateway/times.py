"""Nanoseconds since the epoch of UTC, as we carry time, and protobuf's Timestamp."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(nanoseconds: int) -> Timestamp | None:
    """The Timestamp; None for 0, which means "not yet"."""
    if not nanoseconds:
        return None
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
