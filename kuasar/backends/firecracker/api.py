"""Firecracker's REST interface."""

from __future__ import annotations

import json
from contextlib import suppress

from kuasar.backends.firecracker.bodies import API_SOCKET, Request
from kuasar.backends.rest import Rest
from kuasar.core.aio import Loop


class Api(Rest):
    """The interface of the VMM that runs in ``directory``."""

    def __init__(self, loop: Loop, directory: str) -> None:
        super().__init__(loop, directory, API_SOCKET, vmm="Firecracker", prefix="/", words=_words)

    async def do(self, request: Request, deadline: float | None = None) -> None:
        """Have it done. Errors as :meth:`Rest.call`."""
        await self.call(request.method, request.endpoint, request.body, deadline=deadline)


def _words(data: bytes) -> str:
    """Why it said no, in one line."""
    text = data.decode(errors="replace")
    with suppress(ValueError):
        answer = json.loads(text)
        if isinstance(answer, dict) and isinstance(answer.get("fault_message"), str):
            text = answer["fault_message"]
    return " ".join(text.replace("\\\n", " ").split())
