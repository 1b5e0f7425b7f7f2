"""A stand-in for Kubernetes' API server: nodes and their labels, over TLS, as strict about a request as the real one.

Answers like it does, with a ``Status`` for everything that is refused. What was refused for being wrong is kept, so
that a test can say that there was nothing of the kind.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HAS_OPENSSL = shutil.which("openssl") is not None
"""It makes the certificate."""
_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PATCHES = {"application/merge-patch+json", "application/strategic-merge-patch+json"}


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class ApiServer:
    """Listens on 127.0.0.1 from its making to :meth:`close`."""

    def __init__(self, directory: Path) -> None:
        """``directory`` becomes the directory of a service account, with token and certificate."""
        self.account = directory
        self.token = "token-1"
        self.nodes: dict[str, dict[str, str]] = {}
        self.may = {"get", "patch"}
        """The verbs of the service account's role."""
        self.broken: tuple[int, bytes] | None = None
        """What is answered instead, whatever is asked."""
        self.calls: list[tuple[str, str]] = []
        self.mistakes: list[str] = []
        (directory / "token").write_text(self.token + "\n")
        _make_certificate(directory)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "ca.crt", directory / "key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        """One request. Raises Refused."""
        self.calls.append((method, path))
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        match = re.fullmatch(r"/api/v1/nodes/([^/?]+)", path)
        verb = {"GET": "get", "PATCH": "patch"}.get(method)
        if match is None or verb is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        node = match[1]
        if verb not in self.may:
            raise Refused(403, "Forbidden", f'nodes "{node}" is forbidden: User cannot {verb} resource "nodes"')
        if node not in self.nodes:
            raise Refused(404, "NotFound", f'nodes "{node}" not found')
        if verb == "patch":
            self._patch(node, headers, body)
        metadata = {"name": node, "labels": self.nodes[node]}
        return {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}}

    def _patch(self, node: str, headers: Any, body: bytes) -> None:
        kind = headers.get("Content-Type")
        if kind not in _PATCHES:
            raise self._mistake(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}"
            )
        try:
            patch = json.loads(body)
        except ValueError:
            raise self._mistake(400, "BadRequest", "error decoding patch") from None
        if not isinstance(patch, dict) or set(patch) != {"metadata"} or set(patch["metadata"]) != {"labels"}:
            raise self._mistake(422, "Invalid", f"the patch touches more than labels: {patch}")
        labels = patch["metadata"]["labels"]
        for name, value in labels.items():
            if not _NAME.fullmatch(name) or not (value is None or (isinstance(value, str) and _VALUE.fullmatch(value))):
                raise self._mistake(422, "Invalid", f"metadata.labels: Invalid value: {name}={value!r}")
        merged = {**self.nodes[node], **labels}
        self.nodes[node] = {name: value for name, value in merged.items() if value is not None}

    def _mistake(self, code: int, reason: str, message: str) -> Refused:
        self.mistakes.append(message)
        return Refused(code, reason, message)


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if server.broken is not None:
                self._send(*server.broken)
                return
            try:
                code, value = 200, server.answer(self.command, self.path, self.headers, body)
            except Refused as exc:
                code = exc.code
                value = {"kind": "Status", "status": "Failure", "message": str(exc), "reason": exc.reason, "code": code}
            self._send(code, json.dumps(value).encode())

        def _send(self, code: int, raw: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _make_certificate(directory: Path) -> None:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", f"{directory}/key", "-out", f"{directory}/ca.crt", "-days", "2", "-subj", "/CN=stand-in"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
