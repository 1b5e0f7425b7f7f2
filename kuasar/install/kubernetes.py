"""The two calls that we make to Kubernetes: reading a node's labels, and changing them.

Nothing but the standard library: a client of Kubernetes for two requests would be the largest thing on the node. Made
as a pod's service account; its token is read anew for each call, because the kubelet replaces it.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kuasar.core.errors import (
    BackendFailed,
    InvalidArgument,
    KuasarError,
    NotFound,
    PermissionDenied,
    Unavailable,
)

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_SECONDS = 30.0
_MOST_BYTES = 8 << 20
_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ERRORS: dict[int, type[KuasarError]] = {401: PermissionDenied, 403: PermissionDenied, 404: NotFound}
_LATER = (409, 429)


@dataclass(frozen=True)
class Api:
    """One API server."""

    host: str
    port: int
    account: str = ACCOUNT
    """Directory with ``token`` and ``ca.crt``."""

    @classmethod
    def of_pod(cls, environment: Mapping[str, str], account: str = ACCOUNT) -> Api:
        """The one whose pod we are. Raises InvalidArgument outside of any."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdecimal():
            raise InvalidArgument("this is no pod of Kubernetes: KUBERNETES_SERVICE_HOST is not set")
        return cls(host, int(port), account)

    def labels(self, node: str) -> dict[str, str]:
        """Those of a node. Raises NotFound, PermissionDenied, Unavailable (worth another try), BackendFailed."""
        found = self._call("GET", node).get("metadata", {}).get("labels", {})
        if not isinstance(found, dict):
            raise BackendFailed(f"the API server's answer about node {node} has no labels")
        return {str(name): str(value) for name, value in found.items()}

    def change_labels(self, node: str, changes: Mapping[str, str | None]) -> None:
        """Set them; None removes. Errors as above."""
        self._call("PATCH", node, {"metadata": {"labels": dict(changes)}})

    def _call(self, method: str, node: str, body: Any = None) -> dict[str, Any]:
        if not _NODE.fullmatch(node):
            raise InvalidArgument(f"node: {node!r} is not the name of a node", field="node")
        headers = {"Accept": "application/json", "Authorization": f"Bearer {self._token()}"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/merge-patch+json"
        what = f"{method} of node {node} at {self.host}:{self.port}"
        try:
            context = ssl.create_default_context(cafile=f"{self.account}/ca.crt")
            with closing(http.client.HTTPSConnection(self.host, self.port, timeout=_SECONDS, context=context)) as peer:
                peer.request(method, f"/api/v1/nodes/{node}", data, headers)
                answer = peer.getresponse()
                text = answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise Unavailable(f"{what}: {exc}") from exc
        return _decoded(what, answer.status, text)

    def _token(self) -> str:
        try:
            with open(f"{self.account}/token", encoding="ascii") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise PermissionDenied(f"{self.account}/token: the service account's token cannot be read: {exc}") from exc


def _decoded(what: str, status: int, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if status == http.client.OK and isinstance(value, dict):
        return value
    said = value.get("message") if isinstance(value, dict) else None
    kind = _ERRORS.get(status, Unavailable if status >= 500 or status in _LATER else BackendFailed)
    raise kind(f"{what}: {status}: {said or text[:200].decode(errors='replace')}")
