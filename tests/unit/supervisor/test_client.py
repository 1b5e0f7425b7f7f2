"""The XML-RPC client against servers that answer well, badly, late and not at all."""

from __future__ import annotations

import socket
import socketserver
import threading
import xmlrpc.client
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import (
    BackendFailed,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    KuasarError,
    NotFound,
    Unavailable,
    WrongState,
)
from kuasar.supervisor.client import SupervisorClient


class Server(socketserver.ThreadingUnixStreamServer):
    """Speaks XML-RPC over HTTP on a unix socket; answers what the test has put there."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.answer: Any = xmlrpc.client.dumps((1,), methodresponse=True)
        self.status = 200
        self.hang_up_after = 1000
        self.calls: list[tuple[Any, str | None]] = []
        self.connections = 0
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.client_address = ("unix", 0)
        self.server.connections += 1
        self.served = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append(xmlrpc.client.loads(body))
        answer = self.server.answer.encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.served += 1
        self.close_connection = self.served >= self.server.hang_up_after

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(str(tmp_path / "s")) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SupervisorClient]:
    made = SupervisorClient(str(tmp_path / "s"))
    yield made
    made.close()


def test_calls_share_a_connection(server: Server, client: SupervisorClient) -> None:
    for _ in range(3):
        assert client.add("a") == 1
    assert server.connections == 1
    assert server.calls == [(("a",), "kuasar.addSandbox")] * 3


def test_a_connection_that_was_closed_meanwhile_is_opened_again(server: Server, client: SupervisorClient) -> None:
    server.hang_up_after = 1
    for _ in range(3):
        assert client.add("a") == 1
    assert server.connections == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, Internal),
        (2, InvalidArgument),
        (3, InvalidArgument),
        (6, Unavailable),
        (10, NotFound),
        (40, Unavailable),
        (50, BackendFailed),
        (70, WrongState),
        (91, Unavailable),
        (4711, Internal),
    ],
)
def test_faults_become_our_errors(server: Server, client: SupervisorClient, code: int, kind: type[KuasarError]) -> None:
    server.answer = xmlrpc.client.dumps(xmlrpc.client.Fault(code, "its words"), methodresponse=True)
    with pytest.raises(kind, match="supervisord, sandboxState: its words"):
        client.state("a")
    server.answer = xmlrpc.client.dumps((True,), methodresponse=True)
    assert client.remove("a")


@pytest.mark.parametrize("answer", ["", "<", "<methodResponse/>", "<methodResponse><params/></methodResponse>"])
def test_a_malformed_answer_is_an_error(server: Server, client: SupervisorClient, answer: str) -> None:
    server.answer = answer
    with pytest.raises(Internal, match="malformed answer to addSandbox"):
        client.add("a")


def test_another_status_means_away(server: Server, client: SupervisorClient) -> None:
    server.status = 500
    with pytest.raises(Unavailable, match="HTTP status 500"):
        client.add("a")


def test_nobody_listens(client: SupervisorClient) -> None:
    with pytest.raises(Unavailable, match="is away"):
        client.add("a")


def test_somebody_listens_and_never_answers(client: SupervisorClient, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(DeadlineExceeded, match=r"did not answer addSandbox within 0.05 s"):
            client.add("a", timeout=0.05)
