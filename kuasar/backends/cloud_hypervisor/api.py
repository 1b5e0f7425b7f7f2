"""Cloud Hypervisor's REST interface."""

from __future__ import annotations

import json
from contextlib import suppress

from kuasar.backends.rest import Rest
from kuasar.core.aio import Loop

_BACKTRACE = "\n\nStack backtrace:"


class Api(Rest):
    """The interface that listens on the socket ``name`` in ``directory``."""

    def __init__(self, loop: Loop, directory: str, name: str) -> None:
        super().__init__(loop, directory, name, vmm="Cloud Hypervisor", prefix="/api/v1/", words=_words)


def _words(data: bytes) -> str:
    """Why it said no: newer versions send the chain of causes as a list, older ones plain text."""
    text = data.decode(errors="replace").strip()
    with suppress(ValueError):
        causes = json.loads(text)
        if isinstance(causes, list):
            return ": ".join(str(cause).partition(_BACKTRACE)[0].strip() for cause in causes)
    return text
