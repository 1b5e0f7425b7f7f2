"""The standard streams of a machine whose agent cannot open containerd's FIFOs: relayed by the worker.

One relay per stream (``workers/relays.py``), named by container, exec and field, from ``task.create`` or ``task.exec``
until ``task.delete``. They outlive connections to the agent, and by way of the keeper also this worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.agent.protocol import STREAM, Data, Window
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument
from kuasar.core.fifo import check_path
from kuasar.workers.keeping import Keeper, Keeping
from kuasar.workers.relays import Discard, InputRelay, OutputRelay, Relay

FIELDS = ("stdin", "stdout", "stderr")
COMMANDS = "@"
"""In the place of a container, for commands in the sandbox itself (``agent/commands.py``)."""


class Stdio:
    """All relays of a sandbox."""

    def __init__(self, loop: Loop, sandbox_id: str, keeper: Keeper | None) -> None:
        self._loop = loop
        self._prefix = f"sandbox/{sandbox_id}/stdio"
        self._keeping = Keeping(loop, keeper)
        self._relays: dict[str, Relay] = {}
        self._agent: AgentClient | None = None

    # -- processes -----------------------------------------------------------------------------------------------------

    def open(self, container_id: str, exec_id: str, paths: Mapping[str, Any], adopt: bool = False) -> dict[str, str]:
        """Begin to relay a new process's streams; gives what the agent is told instead of the paths.

        Undoes itself and raises :class:`InvalidArgument` naming the field where something is no FIFO. Streams that are
        open already stay as they are. ``adopt``: the process may not be new, so the keeper is asked first.
        """
        made: list[Relay] = []
        try:
            for field in _used(paths):
                check_path(paths[field], field)
                relay = self._make(container_id, exec_id, field)
                if relay.stream not in self._relays:
                    if not (adopt and relay.adopt()):
                        relay.open(paths[field], field)
                    made.append(relay)
        except BaseException:
            for relay in made:
                relay.close()
            raise
        for relay in made:
            self._add(relay)
            if adopt and isinstance(relay, InputRelay):
                relay.ask()
        return {field: STREAM if field in _used(paths) else "" for field in FIELDS}

    def restore(self, container_id: str, exec_id: str, paths: Mapping[str, Any]) -> None:
        """Go on with the streams of a process that a predecessor has opened; harmless when they are here already.

        What the keeper does not have is begun anew: what was on its way is lost then, and the log says so.
        """
        for field in _used(paths):
            relay = self._make(container_id, exec_id, field)
            if relay.stream in self._relays:
                continue
            if not relay.adopt():
                log.warning(
                    "the keeper has not held a stream, going on without what was on its way", stream=relay.stream
                )
                try:
                    relay.open(paths[field], field)
                except InvalidArgument as exc:
                    log.error("the stream's FIFO is gone", stream=relay.stream, error=exc)
                    relay = Discard(self._loop, self._keeping, relay.stream, f"{self._prefix}/{relay.stream}")
            if isinstance(relay, InputRelay) and paths.get("stdin_closed"):
                relay.close_writer()
            self._add(relay)

    def close_stdin(self, container_id: str, exec_id: str) -> bool:
        """Let the input end once its writers have closed it; False if there is none here."""
        relay = self._relays.get(f"{container_id}/{exec_id}/stdin")
        if not isinstance(relay, InputRelay):
            return False
        relay.close_writer()
        return True

    async def passed_on(self, container_id: str, exec_id: str) -> None:
        """Until all output of a process that has ended is in its FIFOs; as long as its readers take."""
        for field in FIELDS[1:]:
            relay = self._relays.get(f"{container_id}/{exec_id}/{field}")
            if isinstance(relay, OutputRelay):
                await relay.passed_on()

    def close(self, container_id: str, exec_id: str) -> None:
        """Let go of one process's streams; harmless when there are none."""
        self._close(f"{container_id}/{exec_id}/")

    def close_container(self, container_id: str) -> None:
        """Let go of the streams of a container and all its execs."""
        self._close(f"{container_id}/")

    def machine_ended(self) -> None:
        """Nothing more comes: what is here is passed on, and the readers see the end."""
        self._agent = None
        for relay in self._relays.values():
            relay.machine_ended()

    def close_all(self) -> None:
        """Let go of everything, also of what the keeper has of it."""
        self._close("")
        self._keeping.close()

    # -- the agent -----------------------------------------------------------------------------------------------------

    def connected(self, agent: AgentClient) -> None:
        """There is a (new) connection: every stream goes on over it."""
        self._agent = agent
        for relay in self._relays.values():
            relay.connected(agent.send)
        agent.on_stream = self._on_frame

    def _on_frame(self, frame: Data | Window) -> None:
        relay = self._relays.get(frame.stream)
        if relay is not None:
            try:
                relay.on_frame(frame)
            except OSError as exc:  # no memory: the stream stands still, the others go on
                log.error("a stream cannot go on", stream=frame.stream, error=exc.strerror)

    # -- relays --------------------------------------------------------------------------------------------------------

    def _make(self, container_id: str, exec_id: str, field: str) -> Relay:
        stream = f"{container_id}/{exec_id}/{field}"
        kind = InputRelay if field == "stdin" else OutputRelay
        return kind(self._loop, self._keeping, stream, f"{self._prefix}/{stream}")

    def _add(self, relay: Relay) -> None:
        self._relays[relay.stream] = relay
        if self._agent is not None:
            relay.connected(self._agent.send)

    def _close(self, prefix: str) -> None:
        for stream in [stream for stream in self._relays if stream.startswith(prefix)]:
            self._relays.pop(stream).close()


def _used(paths: Mapping[str, Any]) -> Iterator[str]:
    """The streams that there are; a terminal has no standard error of its own."""
    return (field for field in FIELDS if paths[field] and not (field == "stderr" and paths["terminal"]))
