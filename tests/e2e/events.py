"""containerd's events as `ctr events` prints them: subscribed before the test acts, waited for with a deadline."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from scripts.layout import CONTAINERD_BIN
from scripts.stack import Stack
from tests.deadline import eventually


class Event(NamedTuple):
    """One event: its topic, its fields, and when it arrived (``time.monotonic``)."""

    topic: str
    body: dict[str, Any]
    at: float


class Events:
    """Events since the subscription."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def of(self, container: str) -> list[Event]:
        """Those of a container, in order of arrival."""
        return [event for event in self.seen if event.body.get("container_id") == container]

    def wait_for(self, topic: str, container: str, **fields: Any) -> dict[str, Any]:
        """The first event of `topic` about `container` with these fields."""

        def found() -> list[dict[str, Any]]:
            bodies = [event.body for event in self.of(container) if event.topic == topic]
            return [body for body in bodies if fields.items() <= body.items()]

        eventually(found, f"event {topic} {fields}")
        return found()[0]


@contextmanager
def subscribed(stack: Stack) -> Iterator[Events]:
    """Events from now on."""
    argv = [f"{CONTAINERD_BIN}/ctr", "--address", stack.layout.containerd_socket, "--namespace", "k8s.io", "events"]
    events = Events()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                _, _, rest = line.partition(" /")
                topic, _, body = rest.partition(" ")
                if body.startswith("{"):
                    events.seen.append(Event("/" + topic, json.loads(body), time.monotonic()))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            _prove_subscription(stack, events)
            yield events
        finally:
            process.terminate()
            reader.join(10)


def _prove_subscription(stack: Stack, events: Events) -> None:
    """ctr does not say when it listens: make harmless events until one of them arrives."""

    def provoke() -> bool:
        stack.ctr("namespaces", "label", "k8s.io", f"kuasar.test/turn={len(events.seen)}")
        return bool(events.seen)

    eventually(provoke, "ctr events listens")
