"""A running stand-in for Cloud Hypervisor, and the worker's client of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.api import Api
from kuasar.backends.sockets import listen
from kuasar.core.aio import Loop
from tests.standins.install import install

SOCKET = "api.sock"


class StandIn:
    """The process; ``faults`` says which calls go wrong, and how."""

    def __init__(self, directory: Path, loop: Loop, faults: Mapping[str, str]) -> None:
        self._journal = directory / "journal"
        self._journal.touch()
        self.events = directory / "events"
        program = install("cloud_hypervisor", directory / "program")
        with listen(str(directory), SOCKET) as listener, self.events.open("ab") as events:
            self.process = subprocess.Popen(
                bodies.argv(program, listener.fileno(), events.fileno()),
                pass_fds=[listener.fileno(), events.fileno()],
                cwd=directory,
                env={**os.environ, "STANDIN_JOURNAL": str(self._journal), "STANDIN_FAULTS": json.dumps(dict(faults))},
            )
        self.api = Api(loop, str(directory), SOCKET)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """All requests so far: call, body, files that came beside it."""
        return [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]

    def end(self) -> None:
        """Kill it, unless it has ended."""
        self.process.kill()
        self.process.wait()
