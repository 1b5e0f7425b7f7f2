"""What no peer of ours would send: real messages that were cut, flipped, repeated or glued, and plain rubbish."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from hypothesis import strategies as st

_SECONDS = 10.0
_MOST_ANSWER_BYTES = 16 << 20

Edit = Callable[[bytes], bytes]


def _at(data: bytes, part: float) -> int:
    return int(part * len(data))


_PART = st.floats(0, 1, exclude_max=True)
_EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(lambda part: lambda data: data[: _at(data, part)], _PART),
    st.builds(lambda part: lambda data: data[_at(data, part) :], _PART),
    st.builds(
        lambda part, new: lambda data: data[: _at(data, part)] + new + data[_at(data, part) + len(new) :],
        _PART,
        st.binary(min_size=1, max_size=4),
    ),
    st.builds(
        lambda part, new: lambda data: data[: _at(data, part)] + new + data[_at(data, part) :],
        _PART,
        st.sampled_from([b"\0" * 64, b"\xff" * 64, b"\xdb\xff\xff\xff\xff", b"\x91" * 5000, b"\xc1"])
        | st.binary(max_size=200),
    ),
    st.builds(lambda times: lambda data: data * times, st.integers(2, 5)),
)


def spoilt(messages: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Some of ``messages`` behind each other, edited here and there; or none of them at all."""

    def edited(chosen: list[bytes], edits: list[Edit]) -> bytes:
        data = b"".join(chosen)
        for edit in edits:
            data = edit(data)
        return data

    mutated = st.builds(
        edited, st.lists(st.sampled_from(messages), min_size=1, max_size=4), st.lists(_EDITS, min_size=1, max_size=4)
    )
    return st.one_of(mutated, mutated, st.binary(max_size=2000))


def throw(path: str, data: bytes, kind: socket.SocketKind = socket.SOCK_STREAM, *, until_end: bool = True) -> None:
    """Connect, send ``data``, say that nothing follows, and read what comes until the other side has closed the
    connection, too. Raises TimeoutError when it does not."""
    with socket.socket(socket.AF_UNIX, kind) as peer:
        peer.settimeout(_SECONDS)
        peer.connect(path)
        with suppress(BrokenPipeError, ConnectionResetError, OSError):  # it need not hear all of it
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        taken = 0
        with suppress(ConnectionResetError):
            while until_end and (answer := peer.recv(1 << 16)):
                taken += len(answer)
                assert taken < _MOST_ANSWER_BYTES, "it does not stop to answer"
