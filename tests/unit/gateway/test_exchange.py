"""The log of a connection: whatever has happened, replaying leads to the same state, and so does its shortest form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.core.ttrpc import FrameType, ProtocolError, encode_frame
from kuasar.gateway import exchange
from kuasar.gateway.exchange import DamagedLog, Exchange

PAYLOADS = st.binary(max_size=40)


def state(of: Exchange) -> tuple[object, ...]:
    """Everything, as comparable values; when a request arrived is kept for whole ones only."""
    answers = [(stream, answer.frame, answer.sent) for stream, answer in of.unsent.items()]
    return of.received, of.last_stream, list(of.requests.values()), answers, of.bound


class Writer:
    """Makes changes to an exchange, and the log of them."""

    def __init__(self, live: Exchange, log: bytes = b"") -> None:
        self.live = live
        self.log = log

    def receive(self, data: bytes, at: int) -> None:
        self.log += exchange.received(data, at)
        self.live.receive(data, at)

    def end(self, choice: int, sent: int) -> None:
        """Something becomes of one of the requests or answers that are there."""
        requests, unsent = list(self.live.requests), list(self.live.unsent)
        if choice % 3 == 0 and requests:
            self.log += exchange.answered(requests[choice % len(requests)])
            self.live.answered(requests[choice % len(requests)])
        elif choice % 3 == 1 and requests:
            stream = requests[choice % len(requests)]
            self.log += exchange.unsent(stream, b"answer", sent)
            self.live.keep(stream, b"answer", sent)
        elif unsent:
            self.log += exchange.progress(unsent[0], sent)
            self.live.progress(unsent[0], sent)

    def bind(self, container: str, sandbox: str) -> None:
        self.log += exchange.bound(container, sandbox)
        self.live.bound[container] = sandbox


@settings(deadline=None)
@given(st.lists(PAYLOADS, max_size=12), st.data())
def test_a_log_and_its_shortest_form_lead_to_the_same_state(payloads: list[bytes], data: st.DataObject) -> None:
    stream_of_bytes = b"".join(encode_frame(2 * n + 1, FrameType.REQUEST, p) for n, p in enumerate(payloads))
    writer = Writer(Exchange())
    at = 0
    while stream_of_bytes and data.draw(st.integers(0, 9)) != 0:
        size = data.draw(st.integers(1, 60))
        at += 1
        writer.receive(stream_of_bytes[:size], at)
        stream_of_bytes = stream_of_bytes[size:]
        for _ in range(data.draw(st.integers(0, 3))):
            writer.end(data.draw(st.integers(0, 20)), data.draw(st.integers(0, 6)))
        if data.draw(st.booleans()):
            writer.bind(f"k8s.io/c{at}", f"s{at % 3}")
    replayed, size = exchange.replay(writer.log)
    assert size == len(writer.log)
    assert state(replayed) == state(writer.live)
    short, size = exchange.replay(replayed.snapshot())
    assert size == len(replayed.snapshot())
    assert state(short) == state(writer.live)
    # and all go on alike
    for each in (replayed, short):
        each.receive(stream_of_bytes, 99)
    writer.live.receive(stream_of_bytes, 99)
    assert [r.payload for r in short.requests.values()] == [r.payload for r in writer.live.requests.values()]
    assert state(replayed) == state(writer.live)
    assert short.received == writer.live.received


@settings(deadline=None)
@given(st.integers(0, 200))
def test_a_torn_record_at_the_end_is_cut_off(cut: int) -> None:
    whole = exchange.received(encode_frame(1, FrameType.REQUEST, b"request"), 5)
    torn = exchange.unsent(1, b"answer" * 10, 7)
    log = whole + torn[: min(cut, len(torn) - 1)]
    replayed, size = exchange.replay(log)
    assert size == len(whole)
    assert replayed.requests[1].payload == b"request"


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_log_or_damaged(log: bytes) -> None:
    try:
        _, size = exchange.replay(log)
    except (DamagedLog, ProtocolError):
        return
    assert size <= len(log)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_frame(2, FrameType.REQUEST, b""), "stream 2 after 0"),
        (encode_frame(3, FrameType.REQUEST, b"") + encode_frame(3, FrameType.REQUEST, b""), "stream 3 after 3"),
        (encode_frame(1, FrameType.DATA, b""), "only unary calls"),
        (b"\xff" * 10, "unknown type"),
    ],
)
def test_nonsense_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        Exchange().receive(data, 0)
