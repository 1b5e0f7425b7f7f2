"""The worker's channel to its agent: made, mended, and asked through.

A channel may break while the agent lives (the worker was replaced, a serial port was opened by another): it is made
anew and what was asked is asked again under its key. When the machine has ended, everybody who waits is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Backend
from kuasar.core import log
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import KuasarError, Unavailable

_RECONNECT_SECONDS = 5.0


class AgentLink:
    """One per sandbox. ``on_agent`` is called with every new connection; ``on_unreachable`` when the agent of a machine
    that should be running cannot be reached any more."""

    def __init__(self, loop: Loop, sandbox_id: str, is_over: Callable[[], str]) -> None:
        self._loop = loop
        self._sandbox_id = sandbox_id
        self._is_over = is_over
        """Why the machine has ended; empty while it has not."""
        self._changes: list[Future[None]] = []
        self._wanted = False
        self.agent: AgentClient | None = None
        self.on_agent: Callable[[AgentClient], None] = lambda _: None
        self.on_unreachable: Callable[[KuasarError], None] = lambda _: None

    async def call(self, op: str, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        """Have the agent do ``op``. Raises :class:`Unavailable` when the machine has ended before the answer."""
        while True:
            agent = self.agent
            if agent is not None:
                try:
                    return await agent.call(op, body, key=key, deadline=deadline)
                except Unavailable:
                    log.info("the channel to the agent broke", op=op)
            reason = self._is_over()
            if reason:
                raise Unavailable(f"{op}: the machine of sandbox {self._sandbox_id} has ended: {reason}")
            if self.agent is agent:
                await self._loop.wait_for(self._next_change(), deadline, op)

    def forget_answers(self, keys: list[str]) -> None:
        """These answers have arrived for good; the agent need not keep them."""
        if self.agent is not None:
            self.agent.ack_keys(keys)

    async def connect(self, backend: Backend, deadline: float) -> AgentClient:
        """A channel to the agent, which is kept up from :meth:`keep` on."""
        agent = await backend.connect_agent(deadline)
        agent.on_close = lambda: self._on_lost(agent, backend)
        self.agent = agent
        self.on_agent(agent)
        self.changed()
        return agent

    def keep(self, wanted: bool) -> None:
        """Whether a channel that breaks shall be made anew."""
        self._wanted = wanted

    def close(self) -> None:
        """There is no agent any more; whoever waits for one is told."""
        self._wanted = False
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.close()
        self.changed()

    def changed(self) -> None:
        """Have those who wait look again."""
        changes, self._changes = self._changes, []
        for change in changes:
            change.set_result(None)

    def _next_change(self) -> Future[None]:
        future: Future[None] = self._loop.future()
        self._changes.append(future)
        return future

    def _on_lost(self, agent: AgentClient, backend: Backend) -> None:
        if self.agent is not agent:
            return
        self.agent = None
        if self._wanted:
            self._loop.spawn(self._reconnect(backend), "reconnect")

    async def _reconnect(self, backend: Backend) -> None:
        """Mostly the agent is dying, which the machine's watcher sees; else the channel is made anew."""
        try:
            agent = await self.connect(backend, time.monotonic() + _RECONNECT_SECONDS)
            await backend.adopted(agent)
        except KuasarError as exc:
            if self._wanted:
                self.on_unreachable(exc)
