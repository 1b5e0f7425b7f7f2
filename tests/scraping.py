"""What Prometheus does: asks for the metrics and reads them, with the library's own parser."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

SECONDS = 20.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


class Answer(NamedTuple):
    """Of the server."""

    status: int
    content_type: str
    text: str


def ask(listen: str, method: str = "GET", path: str = "/metrics", accept: str = "") -> Answer:
    """One request over a connection of its own; ``listen`` is as in the configuration."""
    if listen.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(listen.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(listen, timeout=SECONDS)
    try:
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        return Answer(response.status, response.headers["Content-Type"], response.read().decode())
    finally:
        connection.close()


class Scrape:
    """All samples of one answer."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Of one sample; 0 if there is none, as Prometheus' ``rate`` would have it."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Of all samples of that name that have these labels."""
        return sum(value for _, value in self.matching(name, **labels))

    def matching(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those samples."""
        for (found, pairs), value in self.samples.items():
            if found == name and labels.items() <= pairs:
                yield dict(pairs), value


def scrape(listen: str) -> Scrape:
    """What there is now."""
    answer = ask(listen)
    assert answer.status == 200, answer
    return Scrape(answer.text)
